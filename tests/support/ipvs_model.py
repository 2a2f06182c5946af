"""IPVS, its table and its device in memory: strict about what is there, and a packet's walk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from ipaddress import ip_address

from service_worlds import CLUSTER_CIDRS, SERVICE_CIDRS

from podwire.kernel.nfpack import Change, Data, Key
from podwire.services import ipvs
from podwire.services import nftables as nf
from podwire.services.endpoints import Backend
from podwire.services.evaluate import Outcome, Packet, address_ranges, within
from podwire.services.ipvs import Server, Servers
from podwire.services.ipvsplan import Plan
from podwire.services.model import FrontendKey
from podwire.services.plan import Elements

FAMILIES = {name: version for version, name in nf.FAMILY_NAMES.items()}
VERDICTS = {ipvs.pack_verdict(name): name for name in ipvs.VERDICT_NUMBERS}
_SERVICE_RANGES = address_ranges(SERVICE_CIDRS)
_CLUSTER_RANGES = address_ranges(CLUSTER_CIDRS)


class Kernel:
    """What a node has after the plans that were applied."""

    def __init__(self, own: frozenset[bytes] = frozenset()) -> None:
        self.own = own
        self.servers: Servers = {}
        self.sets: Elements = {}
        self.addresses: set[bytes] = set()

    def apply(self, plan: Plan) -> None:
        for _ in self.steps(plan):
            pass

    def steps(self, plan: Plan) -> Iterator[None]:
        """One after the other: a packet may come after each, and after each line of ipvsadm."""
        self._change(plan.claim)
        yield
        yield from self._restore(plan.serve)
        for ip in plan.appear:
            assert ip not in self.addresses
            self.addresses.add(ip)
            yield
        self._change(plan.switch)
        yield
        yield from self._restore(plan.withdraw)
        self._change(plan.release)
        yield
        for ip in plan.vanish:
            self.addresses.remove(ip)
            yield

    def _change(self, changes: tuple[Change, ...]) -> None:
        for change in changes:
            elements = self.sets.setdefault((FAMILIES[change.family], change.set), {})
            for key in change.delete:
                del elements[key]
            for key, data in change.add:
                assert key not in elements, (change.set, key)
                elements[key] = data

    def _restore(self, text: str) -> Iterator[None]:
        for line in text.splitlines():
            self.restore_line(line)
            yield

    def restore_line(self, line: str) -> None:
        verb, name, rest = ipvs.split_line(line)
        if verb == "-A":
            assert name not in self.servers, line
            self.servers[name] = Server(rest)
            return
        server = self.servers[name]
        if verb == "-E":
            server.options = rest
        elif verb == "-D":
            del self.servers[name]
        else:
            words = rest.split()
            destination = words[1]
            if verb == "-d":
                assert server.destinations.pop(destination) == 0, f"{line}: connections are cut"
                return
            assert words[2:4] == ["-m", "-w"], line
            assert (destination in server.destinations) == (verb == "-e"), line
            server.destinations[destination] = int(words[4])

    # --- packets ----------------------------------------------------------------------------------

    def check_nothing_dangles(self) -> None:
        """Where a verdict leads to IPVS, there is a server with a destination, and the address is
        delivered here."""
        for version in (4, 6):
            marks = self.sets.get((version, ipvs.MARKS), {})
            for key, number in self.sets.get((version, ipvs.FRONTENDS), {}).items():
                assert isinstance(key, bytes)
                assert isinstance(number, bytes)
                frontend = nf.unpack_key(key)
                verdict = VERDICTS[number]
                if verdict.removeprefix("local-") in (ipvs.SERVED, ipvs.EXTERNAL):
                    assert self._open(ipvs.server_name(frontend)), frontend
                if verdict.startswith("local-") and key in marks:
                    assert self._open(self._marked(version, key)), frontend
                if verdict not in (ipvs.REFUSE, ipvs.NOBODY):
                    assert frontend.ip in self.addresses | self.own, frontend

    def _marked(self, version: int, key: bytes) -> str:
        data = self.sets[version, ipvs.MARKS][key]
        assert isinstance(data, bytes)
        return ipvs.mark_name(nf.unpack_index(data), version)

    def _open(self, name: str) -> list[str]:
        """Destinations a new connection may get."""
        return [d for d, weight in self.servers[name].destinations.items() if weight > 0]

    def walk(self, packet: Packet) -> Outcome:
        """The first packet of a connection through dispatch, IPVS and postrouting."""
        version = 4 if len(packet.dst) == 4 else 6
        sets = {name: self.sets.get((version, name), {}) for name in ipvs.SETS}
        key = nf.pack_key(FrontendKey(packet.dst, packet.protocol, packet.dport))
        if key in sets[ipvs.FIREWALLED] and not any(
            low <= key + packet.src <= high and len(low) == len(key + packet.src)
            for low, high in sets[ipvs.ALLOWED]
            if isinstance(low, bytes) and isinstance(high, bytes)
        ):
            return Outcome("drop", "source-ranges")
        number = sets[ipvs.FRONTENDS].get(key)
        if number is None:
            return self._unserved(packet, sets)
        assert isinstance(number, bytes)
        verdict, name = VERDICTS[number], ipvs.server_name(nf.unpack_key(key))
        if verdict.startswith("local-"):
            verdict = verdict.removeprefix("local-")
            if packet.from_node or within(packet.src, _CLUSTER_RANGES):
                if key not in sets[ipvs.MARKS]:
                    return Outcome("refuse", "")
                verdict, name = ipvs.SERVED, self._marked(version, key)
        if verdict in (ipvs.REFUSE, ipvs.NOBODY):
            return Outcome("refuse" if verdict == ipvs.REFUSE else "drop", verdict)
        backends = frozenset(map(_parse_destination, self._open(name)))
        everyone = packet.from_node or verdict == ipvs.EXTERNAL
        off_cluster = within(packet.dst, _SERVICE_RANGES) and not within(
            packet.src, _CLUSTER_RANGES
        )
        hairpins = sets[ipvs.HAIRPIN]
        masqueraded = frozenset(
            b
            for b in backends
            if everyone or off_cluster or (b.ip == packet.src and b.ip + b.ip in hairpins)
        )
        return Outcome("dnat", verdict, backends, masqueraded)

    def _unserved(self, packet: Packet, sets: Mapping[str, Mapping[Key, Data]]) -> Outcome:
        if packet.dst in sets[ipvs.VIPS] or packet.dst in sets[ipvs.ADDRESSES]:
            return Outcome("refuse", "no port")
        if within(packet.dst, _SERVICE_RANGES):
            return Outcome("drop", "unallocated")
        return Outcome("pass", "")


def _parse_destination(text: str) -> Backend:
    address, _, port = text.rpartition(":")
    return Backend(ip_address(address.strip("[]")).packed, int(port))
