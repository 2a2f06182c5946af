"""Announcing by ARP and neighbour discovery: one node answers for an address, the kernel answers.

    heartbeats -> Liveness -> plan_announced (pure) -> route dev lo, proxy neighbour -> ARP

On the owner `ip route VIP dev lo` and `ip neigh add proxy VIP dev eth0` make the kernel answer who
asks, without any process and without the address being anybody's own; taking over sends gratuitous
ARP or an unsolicited neighbour advertisement. So an agent that dies costs nothing: its kernel goes
on, and the others, who still get answers from that kernel, leave its addresses alone.

The proxy's random delay (0.8 s) is turned off; `proxy_arp`, which would answer for everything that
is routed elsewhere, is not used.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
from collections.abc import Iterable, Mapping
from ipaddress import ip_interface, ip_network

from podwire.agents.announcer import Wanted
from podwire.agents.heartbeats import HeartbeatSocket
from podwire.cni.links import ROUTE_PROTOCOL
from podwire.errors import KernelError
from podwire.kernel import announce, sysctl
from podwire.kernel.requests import Address as OwnAddress
from podwire.kernel.requests import Delete, Proxy, Replace, Request, Route
from podwire.kernel.rtnl import Rtnl
from podwire.services.election import (
    INTERVAL_S,
    Candidate,
    Member,
    digest,
    plan_announced,
    plan_group,
)
from podwire.services.heartbeats import Heartbeat, Liveness, pack_heartbeat
from podwire.services.pools import Address

_LOG = logging.getLogger(__name__)
_LOOPBACK = "lo"
# While somebody is silent his end is looked for more often than heartbeats are sent.
_SUSPECT_TICK_S = 0.05


def route_of(address: Address) -> Route:
    """What makes the proxy entry count: the address must lead out of another device."""
    return Route(
        destination=ip_network(f"{address}/{address.max_prefixlen}"),
        device=_LOOPBACK,
        protocol=ROUTE_PROTOCOL,
    )


def plan_kernel(
    uplink: str, before: frozenset[Address], after: frozenset[Address], *, delivered: bool = False
) -> list[Request]:
    """Route before proxy entry, and the other way round: an entry without its route is mute.

    `delivered`: Services have the address delivered on every node (IPVS). What is a node's own has
    no proxy, and with arp_ignore 1 only the device that has the address answers for it.
    """
    requests: list[Request] = []
    for address in sorted(before - after, key=_order):
        if delivered:
            requests.append(Delete(_on_uplink(uplink, address)))
        requests += [Delete(Proxy(uplink, address)), Delete(route_of(address))]
    for address in sorted(after - before, key=_order):
        requests += [Replace(route_of(address)), Replace(Proxy(uplink, address))]
        if delivered:
            requests.append(Replace(_on_uplink(uplink, address)))
    return requests


def _on_uplink(uplink: str, address: Address) -> OwnAddress:
    return OwnAddress(uplink, ip_interface(address))


def _order(address: Address) -> tuple[int, int]:
    return address.version, int(address)


class L2Kernel:
    """The entries in this node's namespace."""

    def __init__(self, uplink: str, families: Iterable[int], *, delivered: bool = False) -> None:
        self.uplink = uplink
        self._delivered = delivered
        self._rtnl = Rtnl()
        values: dict[str, str | int] = {}
        if 4 in families:
            values[f"net/ipv4/neigh/{uplink}/proxy_delay"] = 0
        if 6 in families:
            values[f"net/ipv6/neigh/{uplink}/proxy_delay"] = 0
            values[f"net/ipv6/conf/{uplink}/proxy_ndp"] = 1
        for key, value in values.items():
            try:
                sysctl.write({key: value})
            except KernelError as error:
                # Old kernels hide the neighbour settings from user namespaces: answers come, late.
                if error.errno != errno.ENOENT:
                    raise
                _LOG.warning("load balancers: %s: who asks is answered up to 0.8 s late", error)

    def read(self) -> frozenset[Address]:
        """What an earlier agent announced, even by half: the route is there first and last."""
        return frozenset(
            route.destination.network_address
            for route in self._rtnl.routes()
            if route.device == _LOOPBACK and route.protocol == ROUTE_PROTOCOL
        )

    def change(self, before: frozenset[Address], after: frozenset[Address]) -> None:
        requests = plan_kernel(self.uplink, before, after, delivered=self._delivered)
        self._rtnl.apply(requests)

    def announce(self, addresses: Iterable[Address]) -> None:
        announce.announce(self.uplink, sorted(addresses, key=_order), router=True)

    def close(self) -> None:
        self._rtnl.close()


class L2Announcement:
    """`announced` is what this node's kernel answers for."""

    def __init__(self, node_name: str, kernel: L2Kernel) -> None:
        self._name = node_name
        self._kernel = kernel
        self.liveness = Liveness()
        self._groups: dict[Address, tuple[str, ...]] = {}
        self._elected: tuple[object, object] | None = None
        self.announced = kernel.read()
        self._doubtful = self.announced
        """What may be in the kernel, whole or by half, besides what is announced."""
        self._socket = HeartbeatSocket(self._heard, self._answered)
        self._active = asyncio.Event()

    # --- what changes ---

    def set(self, wanted: Wanted, members: Mapping[str, Member]) -> None:
        now = asyncio.get_running_loop().time()
        self._groups = {a: plan_group(a, members, nodes) for a, nodes in wanted.items()}
        mine = [group for group in self._groups.values() if self._name in group]
        peers = {name for group in mine for name in group if name != self._name}
        self.liveness.expect(peers, now)
        own = members.get(self._name)
        addresses = {name: members[name].address for name in peers}
        self._socket.set_peers(own.address if own else None, addresses)
        if not peers:
            self._active.clear()
        elif not self._active.is_set():
            self.liveness.restart(now)
            self._active.set()
        self._elect()

    def _elect(self) -> None:
        now = asyncio.get_running_loop().time()
        candidates = self.liveness.candidates(now) | {self._name: Candidate(self._name)}
        question = (self._groups, candidates)
        if question == self._elected:
            return
        wanted = plan_announced(self._name, self._groups, candidates)
        before = self.announced
        if wanted != before or self._doubtful:
            doubtful = self._doubtful | before | wanted
            try:
                self._kernel.change((before - self._doubtful) | (doubtful - wanted), wanted)
            except KernelError:
                self._doubtful = doubtful
                raise
            self._doubtful = frozenset()
        self.announced, self._elected = wanted, question
        if wanted != before:
            shown = ", ".join(map(str, sorted(wanted, key=_order)))
            _LOG.info("load balancers: announcing %s", shown or "nothing")
            # The others learn at once, and a former owner lets go.
            self._beat()
            self._announce(wanted - before)

    def _announce(self, addresses: Iterable[Address]) -> None:
        try:
            self._kernel.announce(addresses)
        except KernelError as error:
            _LOG.warning("load balancers: %s", error)

    # --- liveness ---

    def _beat(self) -> None:
        now = asyncio.get_running_loop().time()
        digests = frozenset(digest(str(address)) for address in self.announced)
        beat = Heartbeat(self._name, digests, self.liveness.heard_ms(now))
        self._socket.send(pack_heartbeat(beat))

    def _heard(self, beat: Heartbeat) -> None:
        now = asyncio.get_running_loop().time()
        before = self.liveness.state(beat.node, now)
        disputed = self.liveness.hear(beat, now)
        if before != "alive":
            self._try_elect()
        # Who answers, or did until now, for what is ours may be believed by neighbours.
        mine = [a for a in self.announced if digest(str(a)) in disputed] if disputed else []
        if mine:
            self._announce(mine)

    def _answered(self, name: str) -> None:
        self.liveness.answered(name, asyncio.get_running_loop().time())

    def _try_elect(self) -> None:
        try:
            self._elect()
        except KernelError as error:
            _LOG.error("load balancers: not announced: %s; trying again", error)

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        due = 0.0
        while True:
            await self._active.wait()
            now = loop.time()
            if now >= due:
                self._beat()
                due = now + INTERVAL_S
            suspects = self.liveness.suspects(now)
            for name in suspects:
                self._socket.ask(name)
            self._try_elect()
            await asyncio.sleep(_SUSPECT_TICK_S if suspects else due - now)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.close()
            self._kernel.close()
