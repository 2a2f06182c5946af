"""Services through IPVS: `services.ipvs` in the kernel.

    Claims -> Ruleset.plan -> netlink: verdicts; ipvsadm: virtual servers; rtnetlink: addresses
                            every 30 s: what has drained goes; ipvsadm --save, compare

At the start nothing is sent until everything is compiled; then `mend` sends the difference to what
an earlier agent left. On stop everything stays.

Changes of the nftables table are told by its monitor. Nobody tells of IPVS's own tables and of
addresses: those are looked at every 30 s, when a destination that drains may go as well.
"""

from __future__ import annotations

import select
from collections.abc import Iterable, Iterator
from ipaddress import ip_address, ip_interface, ip_network

from podwire.agents.nftable import NftTable, TableForm, read_keys
from podwire.agents.servicekernel import Ranges
from podwire.errors import KernelError
from podwire.kernel import ipvs as kernel
from podwire.kernel import requests as rq
from podwire.kernel import sysctl
from podwire.kernel.nfelements import Change
from podwire.kernel.rtnl import Rtnl
from podwire.kernel.timer import Timer
from podwire.services import ipvs
from podwire.services.claims import Claims
from podwire.services.ipvsplan import Plan, Ruleset
from podwire.services.model import FrontendKey

_LOOK_S = 30.0
_FORM = TableForm(ipvs.TABLE, ipvs.SETS, ipvs.render_base, ipvs.render_ranges)


class IpvsBackend:
    """`ServiceBackend` by IPVS, with a table of nftables for what IPVS cannot say."""

    name = "ipvs"

    def __init__(self, families: Iterable[int], claims: Claims, *, look_s: float = _LOOK_S) -> None:
        self._claims = claims
        self._ruleset = Ruleset(claims)
        self._table = NftTable(_FORM, families)
        self._rtnl = Rtnl()
        self._timer = Timer(look_s)
        # One descriptor for two things to wait for.
        self._wake = select.epoll()
        for source in (self._table.fileno(), self._timer.fileno()):
            self._wake.register(source, select.EPOLLIN)
        self._started = False
        self.former: frozenset[FrontendKey] = frozenset()

    @property
    def ruleset(self) -> Ruleset:
        return self._ruleset

    def open(self, ranges: Ranges) -> bool:
        kernel.check()
        sysctl.write(ipvs.SYSCTLS)
        self._make_base(ranges)
        self.former = read_keys(self._table.dump(), ipvs.FRONTENDS)
        return False

    def _make_base(self, ranges: Ranges | None = None) -> None:
        self._rtnl.apply(
            [
                rq.AddLink(name=ipvs.DEVICE, kind=rq.Dummy(), exist_ok=True),
                rq.SetLink(device=ipvs.DEVICE, link_local=False),
                rq.SetLink(device=ipvs.DEVICE, up=True),
            ]
        )
        self._table.ensure(ranges)

    def set_ranges(self, ranges: Ranges) -> None:
        self._table.set_ranges(ranges)

    def commit(self) -> None:
        if self._started and self._claims.touched:
            self._apply(self._ruleset.plan())

    def mend(self) -> None:
        self._make_base()
        own, bound = self._addresses()
        self._ruleset.set_own(own)
        self._apply(self._ruleset.mend(self._servers(), self._table.dump(), bound))
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
        for batch in self._table.batches(step):
            self._table.elements.apply(batch)

    def _servers(self) -> ipvs.Servers:
        return ipvs.parse_save(kernel.save())

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
        found = self._table.foreign()
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
        self._table.close()
        self._rtnl.close()


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
