"""From what IPVS and its table hold to what they should, in an order no packet falls between. Pure.

    Claims that changed -> Plan:
      claim     new frontends are in the table, and refused
      serve     ipvsadm: virtual servers and destinations that come or change
      appear    addresses on the device
      switch    verdicts, marks, firewall, hairpin
      withdraw  ipvsadm: destinations that go have weight 0 first, servers that go are deleted
      release   what only former frontends had, then their addresses

ipvsadm has no transactions, so a virtual server is whole before a verdict leads to it and is there
until none does. The table names every frontend from before its server is made until after it is
gone: so an agent that starts anew knows which servers are ours, wherever the former one was killed.

Over TCP a destination stays with weight 0 until its last connection has ended (`drained`), as
kube-proxy's graceful termination has it; over UDP and SCTP it goes at once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from podwire.kernel.ipvs import Counted
from podwire.kernel.nfpack import Change, Data, Key
from podwire.services import ipvs
from podwire.services import nftables as nf
from podwire.services.claims import Claims
from podwire.services.ipvs import Name, Server, Servers
from podwire.services.model import Frontend, FrontendKey
from podwire.services.plan import Elements, Place, Step

Draining = tuple[Name, str]


@dataclass(frozen=True)
class Plan:
    """In the order it is applied; changes of elements are one transaction where they fit in one."""

    claim: tuple[Change, ...] = ()
    serve: str = ""
    appear: tuple[bytes, ...] = ()
    switch: tuple[Change, ...] = ()
    withdraw: str = ""
    release: tuple[Change, ...] = ()
    vanish: tuple[bytes, ...] = ()

    @property
    def empty(self) -> bool:
        return self == Plan()


def _step() -> Step:
    return Step(ipvs.TABLE, ipvs.SETS)


@dataclass
class _Steps:
    claim: Step = field(default_factory=_step)
    switch: Step = field(default_factory=_step)
    release: Step = field(default_factory=_step)
    serve: list[str] = field(default_factory=list)
    withdraw: list[str] = field(default_factory=list)
    appear: list[bytes] = field(default_factory=list)
    vanish: list[bytes] = field(default_factory=list)

    def plan(self) -> Plan:
        return Plan(
            self.claim.changes(),
            "".join(self.serve),
            tuple(self.appear),
            self.switch.changes(),
            "".join(self.withdraw),
            self.release.changes(),
            tuple(self.vanish),
        )


@dataclass(frozen=True)
class _Installed:
    frontend: Frontend
    mark: int
    servers: Servers


_ON_DEVICE: Final = ("ClusterIP", "LoadBalancer", "ExternalIP")


class Ruleset:
    """What was planned, and what that makes of the next change."""

    def __init__(self, claims: Claims) -> None:
        self._claims = claims
        self._installed: dict[FrontendKey, _Installed] = {}
        self._marks: dict[tuple[int, int], FrontendKey] = {}
        self._draining: set[Draining] = set()
        self._hairpins: Counter[bytes] = Counter()
        self._vips: Counter[bytes] = Counter()
        self._users: Counter[bytes] = Counter()
        self._own: frozenset[bytes] = frozenset()
        self._stale: set[bytes] = set()
        self._elements: dict[Place, dict[Key, Data]] = {}
        self.addresses: set[bytes] = set()

    def set_own(self, addresses: frozenset[bytes]) -> None:
        """The node's own addresses, from the next plan on: they are on other devices already, and
        their other ports are not ours to refuse."""
        self._stale |= self._own ^ addresses
        self._own = addresses

    @property
    def stale(self) -> bool:
        """Whether there is something to plan besides the claims."""
        return bool(self._stale)

    # --- what should be ---------------------------------------------------------------------------

    def servers(self) -> Servers:
        """All virtual servers as planned last, those that drain with weight 0."""
        whole: Servers = {}
        for installed in self._installed.values():
            for name, server in installed.servers.items():
                whole[name] = Server(server.options, dict(server.destinations), server.graceful)
        for name, destination in self._draining:
            whole[name].destinations[destination] = 0
        return whole

    def elements(self) -> Elements:
        """Everything the sets should hold after the last plan."""
        whole: Elements = {(v, name): {} for v in (4, 6) for name in ipvs.SETS}
        for place, elements in self._elements.items():
            whole[place].update(elements)
        for key, installed in self._installed.items():
            for name, part in _frontend_elements(installed).items():
                whole[_version(key.ip), name].update(part)
        return whole

    # --- the difference ---------------------------------------------------------------------------

    def plan(self) -> Plan:
        """What leads from the last plan to what should be now; the state moves on."""
        steps = _Steps()
        touched = set(self._stale)
        self._stale.clear()
        freed: list[tuple[int, int]] = []
        for key in self._claims.take_touched():
            before, after = self._installed.get(key), self._next(key)
            if before is None and after is None:
                continue
            self._frontend(key, before, after, steps)
            for installed, sign in ((before, -1), (after, +1)):
                if installed is not None:
                    touched |= self._count(installed.frontend, sign)
            if before is not None and before.mark and (after is None or not after.mark):
                freed.append((_version(key.ip), before.mark))
            if after is None:
                del self._installed[key]
            else:
                self._installed[key] = after
        # A mark is free only now: its former server is deleted last.
        for place in freed:
            del self._marks[place]
        for ip in touched:
            self._address(ip, steps)
        return steps.plan()

    def _next(self, key: FrontendKey) -> _Installed | None:
        frontend = self._claims.winner(key)
        if frontend is None:
            return None
        before = self._installed.get(key)
        mark = 0
        if frontend.internal is not None:
            mark = before.mark if before is not None and before.mark else self._free_mark(key)
        return _Installed(frontend, mark, ipvs.render_servers(frontend, mark))

    def _free_mark(self, key: FrontendKey) -> int:
        version, mark = _version(key.ip), ipvs.first_mark(key)
        while (version, mark) in self._marks:
            mark = ipvs.next_mark(mark)
        self._marks[version, mark] = key
        return mark

    def _frontend(
        self, key: FrontendKey, before: _Installed | None, after: _Installed | None, steps: _Steps
    ) -> None:
        was = before.servers if before else {}
        will = after.servers if after else {}
        for name in was.keys() - will.keys():
            steps.withdraw.append(ipvs.delete_server(name))
            self._draining = {entry for entry in self._draining if entry[0] != name}
        for name, server in will.items():
            former = was.get(name)
            if former is None:
                steps.serve.append(ipvs.add_server(name, server))
            elif former != server:
                self._server(name, self._with_draining(name, former), server, steps)
        old = _frontend_elements(before) if before else {}
        new = _frontend_elements(after) if after else {}
        for set_name in ipvs.SETS:
            place = (_version(key.ip), set_name)
            _set_difference(place, old.get(set_name, {}), new.get(set_name, {}), steps)

    def _with_draining(self, name: Name, server: Server) -> Server:
        gone = {destination: 0 for found, destination in self._draining if found == name}
        return Server(server.options, {**server.destinations, **gone}, server.graceful)

    def _server(self, name: Name, was: Server, will: Server, steps: _Steps) -> None:
        """`was` is what IPVS has, with what drains."""
        if was.options != will.options:
            steps.serve.append(ipvs.edit_server(name, will.options))
        for destination, weight in will.destinations.items():
            self._draining.discard((name, destination))
            former = was.destinations.get(destination)
            if former is None:
                steps.serve.append(ipvs.add_destination(name, destination, weight))
            elif former != weight:
                steps.serve.append(ipvs.edit_destination(name, destination, weight))
        for destination, weight in was.destinations.items():
            if destination not in will.destinations:
                if weight:
                    steps.withdraw.append(ipvs.edit_destination(name, destination, 0))
                if will.graceful:
                    self._draining.add((name, destination))
                else:
                    steps.withdraw.append(ipvs.delete_destination(name, destination))

    def drained(self, connections: Iterable[Counted]) -> str:
        """The text that deletes the destinations whose last connection has ended."""
        busy = {(c.server, c.destination): c.active + c.inactive for c in connections}
        done = sorted(entry for entry in self._draining if not busy.get(entry))
        self._draining.difference_update(done)
        # One that is not listed is gone already.
        return "".join(ipvs.delete_destination(*entry) for entry in done if entry in busy)

    @property
    def draining(self) -> bool:
        return bool(self._draining)

    # --- addresses --------------------------------------------------------------------------------

    def _count(self, frontend: Frontend, sign: int) -> set[bytes]:
        """Count who uses which address; returns those that may have changed."""
        ip = frontend.key.ip
        touched = set()
        if frontend.role in _ON_DEVICE:
            self._users[ip] += sign
            touched.add(ip)
        if frontend.exclusive:
            self._vips[ip] += sign
        for backends in (frontend.backends, frontend.internal or ()):
            for backend in backends:
                if backend.local:
                    self._hairpins[backend.ip] += sign
                    touched.add(backend.ip)
        return touched

    def _address(self, ip: bytes, steps: _Steps) -> None:
        # A pool's address is on the uplink of the node that announces it, and may leave any time.
        on_device = self._vips[ip] > 0 or (self._users[ip] > 0 and ip not in self._own)
        if on_device and ip not in self.addresses:
            self.addresses.add(ip)
            steps.appear.append(ip)
        elif not on_device and ip in self.addresses:
            self.addresses.remove(ip)
            steps.vanish.append(ip)
        wanted = {
            ipvs.VIPS: (ip, self._vips[ip] > 0),
            ipvs.ADDRESSES: (ip, on_device and not self._vips[ip]),
            ipvs.HAIRPIN: (ip + ip, self._hairpins[ip] > 0),
        }
        for name, (key, there) in wanted.items():
            place = (_version(ip), name)
            present = self._elements.setdefault(place, {})
            if there and key not in present:
                present[key] = None
                steps.switch.put(place, key, None)
            elif not there and key in present:
                del present[key]
                steps.release.remove(place, key)

    # --- beginning from what the kernel says ------------------------------------------------------

    def mend(self, servers: Servers, elements: Elements, addresses: Iterable[bytes]) -> Plan:
        """What leads from what the kernel has to what should be. Virtual servers that neither the
        claims nor the table `elements` were read from know are somebody else's."""
        self.plan()
        steps = _Steps()
        wanted = self.servers()
        self._draining.clear()
        for name, server in wanted.items():
            found = servers.get(name)
            live = Server(server.options, dict(server.destinations), server.graceful)
            if found is None:
                live.destinations = {d: w for d, w in live.destinations.items() if w}
                steps.serve.append(ipvs.add_server(name, live))
                continue
            self._server(name, found, self._live(name, live), steps)
        for name in sorted(servers.keys() & _ours(servers, elements) - wanted.keys()):
            steps.withdraw.append(ipvs.delete_server(name))
        for place, will in self.elements().items():
            _set_difference(place, elements.get(place, {}), will, steps, servers)
        there = set(addresses)
        steps.appear += sorted(self.addresses - there)
        steps.vanish += sorted(there - self.addresses)
        return steps.plan()

    def _live(self, name: Name, server: Server) -> Server:
        """Without what only drains: weights of pods are never 0."""
        return Server(
            server.options, {d: w for d, w in server.destinations.items() if w}, server.graceful
        )


def _version(ip: bytes) -> int:
    return 4 if len(ip) == 4 else 6


def _frontend_elements(installed: _Installed) -> dict[str, dict[Key, Data]]:
    """All elements one frontend has, by set."""
    frontend = installed.frontend
    base = nf.pack_key(frontend.key)
    found: dict[str, dict[Key, Data]] = {
        ipvs.FRONTENDS: {base: ipvs.pack_verdict(ipvs.render_verdict(frontend))}
    }
    if frontend.internal:
        found[ipvs.MARKS] = {base: nf.pack_index(installed.mark)}
    if frontend.ranges is not None:
        found[ipvs.FIREWALLED] = {base: None}
        found[ipvs.ALLOWED] = {(base + low, base + high): None for low, high in frontend.ranges}
    return found


_REFUSED: Final = ipvs.pack_verdict(ipvs.REFUSE)


def _set_difference(
    place: Place,
    was: Mapping[Key, Data],
    will: Mapping[Key, Data],
    steps: _Steps,
    served: Servers | None = None,
) -> None:
    """Frontends come and go by way of `refuse`; of those that `served` has, none comes anew."""
    verdicts = place[1] == ipvs.FRONTENDS
    # Restrictions come before the verdict and go with it or after it; intervals may not overlap,
    # not even for a moment.
    early = steps.claim if place[1] in (ipvs.FIREWALLED, ipvs.ALLOWED) and not was else steps.switch
    for key, data in will.items():
        if key not in was:
            if verdicts and not _is_served(key, served):
                steps.claim.put(place, key, _REFUSED)
                if data == _REFUSED:
                    continue
                steps.switch.remove(place, key)
            (steps.switch if verdicts else early).put(place, key, data)
        elif was[key] != data:
            steps.switch.remove(place, key)
            steps.switch.put(place, key, data)
    for key in was.keys() - will.keys():
        if verdicts and was[key] != _REFUSED:
            steps.switch.remove(place, key)
            steps.switch.put(place, key, _REFUSED)
        late = steps.switch if will or place[1] == ipvs.MARKS else steps.release
        (steps.release if verdicts else late).remove(place, key)


def _is_served(key: Key, served: Servers | None) -> bool:
    return (
        served is not None
        and isinstance(key, bytes)
        and (ipvs.server_name(nf.unpack_key(key)) in served)
    )


def _ours(servers: Servers, elements: Elements) -> set[Name]:
    """Of the servers that were found, those an earlier agent made."""
    names = {
        ipvs.server_name(nf.unpack_key(key))
        for version in (4, 6)
        for key in elements.get((version, ipvs.FRONTENDS), {})
        if isinstance(key, bytes)
    }
    for name in servers:
        words = name.split()
        if words[0] == "-f" and ipvs.is_our_mark(int(words[1])):
            names.add(name)
    return names
