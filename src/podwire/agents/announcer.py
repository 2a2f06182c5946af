"""Load balancer addresses this node answers for, kept as Services, endpoints and nodes say.

    Services of our class, their slices -> wanted: address -> eligible nodes (pure)
      -> Announcement: by ARP and NDP from one elected node, or by BGP from every eligible one

Every node has every address in its nftables; announcing only decides where clients beyond the
cluster come in. An address is announced once this node serves it, so no client comes too early.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from ipaddress import ip_address
from typing import Protocol, TypeAlias

from podwire.agents.progressing import Watchers
from podwire.client import Change, Informer
from podwire.errors import KernelError
from podwire.objects.core import Node, Service
from podwire.objects.discovery import EndpointSlice
from podwire.objects.meta import Key
from podwire.services.election import Member, eligible_nodes, shared_eligibility
from podwire.services.loadbalancers import carries_load_balancers, is_ours, vips_of
from podwire.services.pools import Address, Pools

_LOG = logging.getLogger(__name__)
_SETTLE_S = 0.005
_RETRY_S = 1.0

Wanted: TypeAlias = Mapping[Address, frozenset[str] | None]


class Announcement(Protocol):
    """One way to tell the network where an address is."""

    @property
    def announced(self) -> frozenset[Address]:
        """What this node tells others to send here."""

    async def run(self) -> None:
        """Work until cancelled. What an earlier agent announced stays until `set` was called."""

    def set(self, wanted: Wanted, members: Mapping[str, Member]) -> None:
        """All there is to announce in the cluster, and the nodes that may. Errors: KernelError."""

    def close(self) -> None: ...


class Served(Protocol):
    """What this node serves: its `ServiceAgent`."""

    synced: asyncio.Event
    services: Informer[Service]
    slices: Informer[EndpointSlice]

    @property
    def pools(self) -> Pools: ...

    @property
    def watchers(self) -> Watchers:
        """Who wants to know whenever something was programmed."""

    def slices_of(self, service: Key) -> list[EndpointSlice]: ...

    def serves(self, service: Service, addresses: Iterable[Address]) -> bool:
        """Whether the kernel has all these addresses of the Service."""


def compile_wanted(
    services: Iterable[Service],
    slices_of: Callable[[Key], Iterable[EndpointSlice]],
    pools: Pools,
) -> dict[Address, frozenset[str] | None]:
    """Every address to announce, and the nodes it may be announced from (None: any)."""
    behind: dict[Address, list[frozenset[str] | None]] = {}
    for service in services:
        vips = vips_of(service, pools)
        eligible = eligible_nodes(service, slices_of(service.key)) if vips else None
        for address in vips:
            behind.setdefault(address, []).append(eligible)
    return {address: shared_eligibility(each) for address, each in behind.items()}


class Announcer:
    """One node's; it reads what the `ServiceAgent` follows."""

    def __init__(self, served: Served, nodes: Informer[Node], announcement: Announcement) -> None:
        self._served = served
        self._nodes = nodes
        self._announcement = announcement
        self._ours: dict[Key, Service] = {}
        self._dirty = asyncio.Event()
        self._unserved = False

    # --- observe ---

    def _service_changed(self, change: Change[Service]) -> None:
        if change.new is not None and is_ours(change.new):
            self._ours[change.key] = change.new
            self._dirty.set()
        elif self._ours.pop(change.key, None) is not None:
            self._dirty.set()

    def _slice_changed(self, change: Change[EndpointSlice]) -> None:
        """With policy Local endpoints say which nodes may have the address."""
        for piece in (change.old, change.new):
            if piece is not None and piece.service_name:
                service = self._ours.get(Key(piece.metadata.namespace, piece.service_name))
                if service is not None and service.spec.external_traffic_policy == "Local":
                    self._dirty.set()

    def _node_changed(self, change: Change[Node]) -> None:
        seen = [member_of(node) if node is not None else None for node in (change.old, change.new)]
        if seen[0] != seen[1]:
            self._dirty.set()

    # --- run ---

    async def run(self) -> None:
        """Follow until cancelled."""
        await self._served.synced.wait()
        await self._nodes.synced.wait()
        self._served.services.on_change(self._service_changed)
        self._served.slices.on_change(self._slice_changed)
        self._nodes.on_change(self._node_changed)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._announcement.run())
            group.create_task(self._follow_programming())
            self._dirty.set()
            while True:
                await self._dirty.wait()
                await asyncio.sleep(_SETTLE_S)
                self._dirty.clear()
                self._update()

    async def _follow_programming(self) -> None:
        """What could not be served may be served now."""
        with self._served.watchers.watched() as moved:
            while True:
                await moved.wait()
                moved.clear()
                if self._unserved:
                    self._dirty.set()

    def _update(self) -> None:
        pools = self._served.pools
        served = [s for s in self._ours.values() if self._served.serves(s, vips_of(s, pools))]
        self._unserved = len(served) < len(self._ours)
        members = {
            node.metadata.name: member
            for node in self._nodes.objects.values()
            if (member := member_of(node)) is not None
        }
        try:
            self._announcement.set(compile_wanted(served, self._served.slices_of, pools), members)
        except KernelError as error:
            _LOG.error("load balancers: not announced: %s; trying again", error)
            asyncio.get_running_loop().call_later(_RETRY_S, self._dirty.set)

    @property
    def announced(self) -> frozenset[Address]:
        return self._announcement.announced

    def close(self) -> None:
        self._announcement.close()


def member_of(node: Node) -> Member | None:
    """None where balanced traffic may not enter, or nobody knows the address yet."""
    if not carries_load_balancers(node) or not node.internal_ips:
        return None
    return Member(ip_address(node.internal_ips[0]), node.ready)
