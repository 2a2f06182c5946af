"""Services through IPVS: `services.ipvs` in the kernel.

    Claims -> Ruleset.plan -> netlink: verdicts; ipvsadm: virtual servers; rtnetlink: addresses
                            every 30 s: what has drained goes; ipvsadm --save, compare

At the start nothing is sent until everything is compiled; then `mend` sends the difference to what
an earlier agent left. On stop everything stays.

Changes of the nftables table are told by its monitor. Nobody tells of IPVS's own tables and of
addresses: those are looked at every 30 s, when a destination that drains may go as well.
"""

from __future__ import annotations

import logging
import select
from collections.abc import Iterable, Iterator
from ipaddress import ip_address, ip_interface, ip_network

from podwire.agents.servicekernel import Ranges, read_keys
from podwire.errors import KernelError
from podwire.kernel import ipvs as kernel
from podwire.kernel import nft, sysctl
from podwire.kernel import requests as rq
from podwire.kernel.nfelements import Change, NfElements
from podwire.kernel.nfmonitor import NfMonitor
from podwire.kernel.nft import Nft
from podwire.kernel.rtnl import Rtnl
from podwire.kernel.timer import Timer
from podwire.services import ipvs
from podwire.services import nftables as nf
from podwire.services.claims import Claims
from podwire.services.ipvsplan import Plan, Ruleset
from podwire.services.model import FrontendKey
from podwire.services.plan import Elements, split_step

_LOG = logging.getLogger(__name__)
_LOOK_S = 30.0


class IpvsBackend:
    """`ServiceBackend` by IPVS, with a table of nftables for what IPVS cannot say."""

    name = "ipvs"

    def __init__(self, families: Iterable[int], claims: Claims, *, look_s: float = _LOOK_S) -> None:
        self._families = tuple(families)
        self._claims = claims
        self._ruleset = Ruleset(claims)
        self._nft = Nft()
        self._elements = NfElements()
        self._monitor = NfMonitor(lambda _family, table: table == ipvs.TABLE)
        self._monitor.ignore(self._elements.port)
        self._rtnl = Rtnl()
        self._timer = Timer(look_s)
        # One descriptor for two things to wait for.
        self._wake = select.epoll()
        for source in (self._monitor.fileno(), self._timer.fileno()):
            self._wake.register(source, select.EPOLLIN)
        self._ranges = Ranges((), ())
        self._started = False
        self.former: frozenset[FrontendKey] = frozenset()

    @property
    def ruleset(self) -> Ruleset:
        return self._ruleset

    def open(self, ranges: Ranges) -> bool:
        kernel.check()
        self._ranges = ranges
        sysctl.write(ipvs.SYSCTLS)
        self._make_base()
        self.former = read_keys(self._dump(), ipvs.FRONTENDS)
        return False

    def _make_base(self) -> None:
        self._rtnl.apply(
            [
                rq.AddLink(name=ipvs.DEVICE, kind=rq.Dummy(), exist_ok=True),
                rq.SetLink(device=ipvs.DEVICE, link_local=False),
                rq.SetLink(device=ipvs.DEVICE, up=True),
            ]
        )
        for version in self._families:
            text = ipvs.render_base(version) + self._render_ranges(version)
            try:
                self._text(text)
            except KernelError as error:
                _LOG.warning("services: the table is made anew: %s", error)
                self._nft.delete_table(nf.FAMILY_NAMES[version], ipvs.TABLE)
                self._text(text)

    def _text(self, text: str) -> None:
        self._nft.apply(text)
        if not nft.in_process():
            self._monitor.read()  # the nft program's changes look like anybody's

    def _render_ranges(self, version: int) -> str:
        return ipvs.render_ranges(version, self._ranges.service_cidrs, self._ranges.cluster_cidrs)

    def set_ranges(self, ranges: Ranges) -> None:
        if ranges != self._ranges:
            self._ranges = ranges
            for version in self._families:
                self._text(self._render_ranges(version))

    def commit(self) -> None:
        if self._started and self._claims.touched:
            self._apply(self._ruleset.plan())

    def mend(self) -> None:
        self._make_base()
        own, bound = self._addresses()
        self._ruleset.set_own(own)
        self._apply(self._ruleset.mend(self._servers(), self._dump(), bound))
        self._started = True

    # --- effects ----------------------------------------------------------------------------------

    def _apply(self, plan: Plan) -> None:
        self._change(plan.claim)
        kernel.restore(plan.serve)
        self._rtnl.apply(r for ip in plan.appear for r in _appear(ip))
        self._change(plan.switch)
        kernel.restore(plan.withdraw)
        self._change(plan.release)
        self._rtnl.apply(r for ip in plan.vanish for r in _vanish(ip))

    def _change(self, step: tuple[Change, ...]) -> None:
        mine = [c for c in step if c.family in {nf.FAMILY_NAMES[v] for v in self._families}]
        for batch in split_step(mine, self._elements.max_batch):
            self._elements.apply(batch)

    def _servers(self) -> ipvs.Servers:
        return ipvs.parse_save(kernel.save())

    def _dump(self) -> Elements:
        return {
            (version, name): self._elements.dump(nf.FAMILY_NAMES[version], ipvs.TABLE, name)
            for version in self._families
            for name in ipvs.SETS
        }

    def _addresses(self) -> tuple[frozenset[bytes], set[bytes]]:
        """The node's own addresses, and those on our device."""
        own: set[bytes] = set()
        bound: set[bytes] = set()
        for found in self._rtnl.addresses():
            (bound if found.device == ipvs.DEVICE else own).add(found.address.ip.packed)
        return frozenset(own), bound

    # --- others -----------------------------------------------------------------------------------

    def fileno(self) -> int:
        return self._wake.fileno()

    def foreign(self) -> list[str]:
        found = [str(transaction) for transaction in self._monitor.read()]
        if self._timer.read() and self._started:
            try:
                found += self._look()
            except KernelError as error:
                found.append(str(error))
        return found

    def _look(self) -> list[str]:
        """Delete what has drained, then compare."""
        if self._ruleset.draining:
            kernel.restore(self._ruleset.drained(kernel.connections()))
        found: list[str] = []
        servers, wanted = self._servers(), self._ruleset.servers()
        lost = [name for name, server in wanted.items() if not _same(servers.get(name), server)]
        if lost:
            found.append(f"IPVS: {len(lost)} virtual servers are not as they were left")
        own, bound = self._addresses()
        self._ruleset.set_own(own)
        if bound != self._ruleset.addresses:
            found.append(f"{ipvs.DEVICE}: its addresses are not as they were left")
        elif self._ruleset.stale:
            found.append("the node's own addresses changed")
        return found

    def close(self) -> None:
        self._wake.close()
        self._timer.close()
        self._monitor.close()
        self._elements.close()
        self._rtnl.close()
        self._nft.close()


def _same(found: ipvs.Server | None, wanted: ipvs.Server) -> bool:
    return (
        found is not None
        and found.options == wanted.options
        and found.destinations == wanted.destinations
    )


def _bound(ip: bytes) -> rq.Address:
    return rq.Address(ipvs.DEVICE, ip_interface(ip_address(ip)))


def _delivered(ip: bytes) -> rq.Route:
    destination = ip_network(ip_address(ip))
    return rq.Route(destination=destination, device=ipvs.DEVICE, table=rq.TABLE_LOCAL, type="local")


def _appear(ip: bytes) -> Iterator[rq.Request]:
    if len(ip) == 16:
        # The kernel makes an IPv6 address's local route some time later, in a work queue; a packet
        # in between would be routed on, and conntrack would not let IPVS translate the next.
        yield rq.Add(_delivered(ip), exist_ok=True)
    yield rq.Add(_bound(ip), exist_ok=True)


def _vanish(ip: bytes) -> Iterator[rq.Request]:
    yield rq.Delete(_bound(ip))
    if len(ip) == 16:
        yield rq.Delete(_delivered(ip))
