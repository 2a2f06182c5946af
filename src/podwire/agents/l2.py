"""Announcing by ARP and neighbour discovery: one node answers for an address, the kernel answers.

    heartbeats -> Liveness -> plan_owners (pure) -> route dev lo, proxy neighbour -> ARP

On the owner `ip route VIP dev lo` and `ip neigh add proxy VIP dev eth0` make the kernel answer who
asks, without any process and without the address being anybody's own; taking over sends gratuitous
ARP or an unsolicited neighbour advertisement. So an agent that dies costs nothing: its kernel goes
on, and the others, who still get answers from that kernel, leave its addresses alone.

Nothing announced, nothing sent: only who announces beats, to those who would follow it, and they
have one timer that every heartbeat puts off.

The proxy's random delay (0.8 s) is turned off; `proxy_arp`, which would answer for everything that
is routed elsewhere, is not used.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
from collections.abc import Collection, Iterable, Mapping
from ipaddress import ip_interface, ip_network
from typing import Protocol

from podwire.agents.announcer import Wanted
from podwire.agents.heartbeats import HeartbeatSocket, MakeWire
from podwire.cni.links import ROUTE_PROTOCOL
from podwire.errors import KernelError
from podwire.kernel import announce, sysctl
from podwire.kernel.requests import Address as OwnAddress
from podwire.kernel.requests import Delete, Proxy, Replace, Request, Route
from podwire.kernel.rtnl import Rtnl
from podwire.services.election import (
    Candidate,
    Member,
    digest,
    plan_announced,
    plan_circles,
    plan_group,
    plan_owners,
)
from podwire.services.heartbeats import Heartbeat, pack_heartbeat
from podwire.services.liveness import BEAT_S, DEAD_AFTER_S, Liveness
from podwire.services.pools import Address

_LOG = logging.getLogger(__name__)
_LOOPBACK = "lo"
_RETRY_S = 0.25
# Event loops count milliseconds: a timer that is early by less would only turn in circles.
_TIMER_MIN_S = 0.001


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


class AnnouncingKernel(Protocol):
    """What answers for addresses."""

    def read(self) -> frozenset[Address]: ...
    def change(self, before: frozenset[Address], after: frozenset[Address]) -> None: ...
    def announce(self, addresses: Iterable[Address]) -> None: ...
    def close(self) -> None: ...


class L2Announcement:
    """`announced` is what this node's kernel answers for."""

    def __init__(
        self, node_name: str, kernel: AnnouncingKernel, wire: MakeWire = HeartbeatSocket
    ) -> None:
        self._name = node_name
        self._kernel = kernel
        self.liveness = Liveness()
        self._groups: dict[Address, tuple[str, ...]] = {}
        self._elected: tuple[object, ...] | None = None
        self._deaf: KernelError | None = None
        self.announced = kernel.read()
        self._doubtful = self.announced
        """What may be in the kernel, whole or by half, besides what is announced."""
        self._released: dict[Address, float] = {}
        """What was let go, until when those who share it are told."""
        self._marks: frozenset[bytes] = frozenset()
        self._steady = b""
        self._beat_at = float("inf")
        self._retry_at = float("inf")
        self._look_at = float("inf")
        self._wire = wire(self._heard, self._answered)
        self._timer: asyncio.TimerHandle | None = None
        self._running = False

    # --- what changes ---

    def set(self, wanted: Wanted, members: Mapping[str, Member]) -> None:
        now = asyncio.get_running_loop().time()
        self._groups = {a: plan_group(a, members, nodes) for a, nodes in wanted.items()}
        circles = plan_circles(self._name, self._groups)
        self.liveness.expect(circles, now)
        own = members.get(self._name)
        addresses = {name: members[name].address for name in circles}
        self._deaf = None
        try:
            self._wire.set_peers(own.address if own else None, addresses)
        except KernelError as error:
            # To who hears nobody all are dead: it takes nothing.
            self._deaf = error
        try:
            self._elect(now)
        finally:
            self._rearm(now)
        if self._deaf is not None:
            raise self._deaf

    def _elect(self, now: float) -> None:
        candidates = self.liveness.candidates(now) | {self._name: Candidate(self._name)}
        question = (self._groups, candidates, self._deaf is not None)
        if question == self._elected:
            return
        owners = plan_owners(self._name, self._groups, candidates)
        self.liveness.watch({name for name in owners.values() if name}, now)
        before = self.announced
        wanted = plan_announced(self._name, owners, candidates, before)
        if self._deaf is not None:
            wanted &= before
        if wanted != before or self._doubtful:
            doubtful = self._doubtful | before | wanted
            try:
                self._kernel.change((before - self._doubtful) | (doubtful - wanted), wanted)
            except KernelError:
                self._doubtful = doubtful
                raise
            self._doubtful = frozenset()
        self.announced, self._elected = wanted, question
        self._marks = frozenset(digest(str(address)) for address in wanted)
        self._steady = pack_heartbeat(Heartbeat(self._name, self._marks))
        # What the last heartbeat said counts when its sender freezes: it is not said only once.
        self._released |= dict.fromkeys(before - wanted, now + DEAD_AFTER_S)
        # The others learn at once, and a former owner lets go.
        self._beat(now)
        if wanted != before:
            shown = ", ".join(map(str, sorted(wanted, key=_order)))
            _LOG.info("load balancers: announcing %s", shown or "nothing")
            self._announce(wanted - before)

    def _announce(self, addresses: Iterable[Address]) -> None:
        try:
            self._kernel.announce(addresses)
        except KernelError as error:
            _LOG.warning("load balancers: %s", error)

    # --- liveness ---

    def _beat(self, now: float) -> None:
        """To all who share what we announce; who announces nothing is quiet."""
        told = [*self.announced, *self._released]
        audience = {name for a in told for name in self._groups.get(a, ())} - {self._name}
        self._wire.send(self._steady, audience)
        self._released = {a: until for a, until in self._released.items() if until > now}
        self._beat_at = now + BEAT_S if audience else float("inf")

    def _report(self, now: float, *, asking: bool) -> bytes:
        heard = self.liveness.heard_ms(now)
        return pack_heartbeat(Heartbeat(self._name, self._marks, heard, asking))

    def _ask(self, silent: Collection[str], now: float) -> None:
        self._wire.send(self._report(now, asking=True), self.liveness.circle(silent))
        for name in silent:
            self._wire.ask(name)

    def _heard(self, beat: Heartbeat) -> None:
        now = asyncio.get_running_loop().time()
        heard = self.liveness.hear(beat, now)
        if beat.asking:
            self._wire.send(self._report(now, asking=False), (beat.node,))
        if heard.news:
            self._try_elect(now)
        # Who answers, or did until now, for what is ours may be believed by neighbours.
        if not self._marks.isdisjoint(heard.disputed):
            self._announce([a for a in self.announced if digest(str(a)) in heard.disputed])
        self._rearm(now)

    def _answered(self, name: str) -> None:
        now = asyncio.get_running_loop().time()
        self.liveness.answered(name, now)
        self._rearm(now)

    def _try_elect(self, now: float) -> None:
        self._retry_at = float("inf")
        try:
            self._elect(now)
        except KernelError as error:
            _LOG.error("load balancers: not announced: %s; trying again", error)
            self._retry_at = now + _RETRY_S

    # --- time ---

    def _rearm(self, now: float) -> None:
        """One timer for all, at the earliest; a stand-by whose owner beats is never woken by it."""
        if now >= self._look_at:
            self._look(now)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._look_at = min(self._retry_at, self.liveness.next_at(now))
        when = min(self._beat_at, self._look_at)
        if self._running and when < float("inf"):
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(max(when - now, _TIMER_MIN_S), self._tick)

    def _look(self, now: float) -> None:
        """Somebody's time is over."""
        silent = self.liveness.doubt(now)
        if silent:
            self._ask(silent, now)
        self._try_elect(now)

    def _tick(self) -> None:
        self._timer = None
        now = asyncio.get_running_loop().time()
        try:
            if now >= self._beat_at:
                self._beat(now)
        finally:
            self._rearm(now)

    async def run(self) -> None:
        self._running = True
        try:
            self._rearm(asyncio.get_running_loop().time())
            await asyncio.Event().wait()
        finally:
            self._running = False
            self._rearm(0.0)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._wire.close()
            self._kernel.close()
