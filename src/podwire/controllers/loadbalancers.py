"""Services of type LoadBalancer: what a cloud's service controller does, and its seam to a cloud.

    Service wants one -> finalizer -> LoadBalancer.ensure -> status.loadBalancer
    deleted, or of another type now -> LoadBalancer.delete -> status cleared -> finalizer removed
    Nodes that carry balanced traffic changed -> LoadBalancer.update_hosts

Order, Events and texts are upstream's (k/k cloud-provider controllers/service, KEP-980, KEP-1959).
Services of another loadBalancerClass belong to somebody else and are never touched.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import msgspec

from podwire.client import Change, WorkQueue
from podwire.controllers.cluster import Cluster
from podwire.controllers.loadbalancerplan import Claim, claim_of, plan_addresses
from podwire.errors import PodwireError
from podwire.objects import kinds
from podwire.objects.core import LoadBalancerIngress, Node, Service
from podwire.objects.meta import JsonObject, Key
from podwire.services.loadbalancers import (
    FINALIZER,
    addresses_of,
    carries_load_balancers,
    is_ours,
    wants,
)
from podwire.services.pools import Address, Pools

COMPONENT = "service-controller"


class LoadBalancer(Protocol):
    """A kind of load balancer, as a cloud provider would implement it. Every verb is idempotent
    and may raise `PodwireError`, whose text becomes the Service's Event."""

    def exists(self, service: Service) -> bool:
        """Whether there may be anything that `delete` must remove."""

    async def ensure(
        self, service: Service, nodes: Sequence[Node]
    ) -> Sequence[LoadBalancerIngress]:
        """Create or change the balancer; returns what belongs in status.loadBalancer.ingress."""

    async def update_hosts(self, service: Service, nodes: Sequence[Node]) -> None:
        """Other nodes carry traffic now."""

    async def delete(self, service: Service) -> None: ...


class PoolLoadBalancer:
    """Addresses from pools; the nodes' agents announce them (ARP and NDP, or BGP).

    What Services hold is told by `observe`; what was given and is not in a status yet is
    remembered until it is.
    """

    def __init__(self, pools: Pools) -> None:
        self._pools = pools
        self._claims: dict[Key, Claim] = {}
        self._given: dict[Key, tuple[Address, ...]] = {}

    def observe(self, key: Key, service: Service | None) -> bool:
        """Take note of a Service as it is now; True when something may be free that was not."""
        before = self._claims.pop(key, None)
        if service is None or not (is_ours(service) or self.exists(service)):
            self._given.pop(key, None)
            return before is not None
        given = self._given.get(key, ())
        if set(given) <= set(addresses_of(service)):
            self._given.pop(key, None)
        self._claims[key] = claim_of(service, given)
        return before is not None and before != self._claims[key]

    def sharers(self, key: Key) -> list[Key]:
        """Who has an address of this Service too."""
        mine = self._claims.get(key)
        if mine is None:
            return []
        return [k for k, c in self._claims.items() if k != key and c.addresses & mine.addresses]

    def exists(self, service: Service) -> bool:
        return any(address in self._pools for address in addresses_of(service))

    async def ensure(
        self, service: Service, nodes: Sequence[Node]
    ) -> Sequence[LoadBalancerIngress]:
        addresses = plan_addresses(service, self._claims, self._pools)
        self._given[service.key] = addresses
        self._claims[service.key] = claim_of(service, addresses)
        return [LoadBalancerIngress(ip=str(address), ip_mode="VIP") for address in addresses]

    async def update_hosts(self, service: Service, nodes: Sequence[Node]) -> None:
        """Nothing: the agents elect among the nodes they see."""

    async def delete(self, service: Service) -> None:
        """Nothing: the address is free when the Service no longer shows it."""


class LoadBalancers:
    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._services = cluster.informer(kinds.SERVICE).objects
        self._nodes = cluster.informer(kinds.NODE).objects
        self._pool = PoolLoadBalancer(cluster.config.load_balancer_pools)
        self._balancer: LoadBalancer = self._pool
        # One worker: two Services must never be given the same address.
        self._queue: WorkQueue[Key] = WorkQueue(COMPONENT, self._reconcile, workers=1)
        self._hosts_queue: WorkQueue[Key] = WorkQueue(COMPONENT, self._update_hosts)
        self._waiting: set[Key] = set()
        self._hosts: frozenset[str] | None = None
        cluster.informer(kinds.SERVICE).on_change(self._service_changed)
        cluster.informer(kinds.NODE).on_change(self._node_changed)

    async def run(self) -> None:
        self._hosts = self._host_names()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._queue.run())
            group.create_task(self._hosts_queue.run())

    # --- what wakes a Service ---

    def _service_changed(self, change: Change[Service]) -> None:
        key, old, new = change.key, change.old, change.new
        freed = self._pool.observe(key, new)
        if new is None:
            self._waiting.discard(key)
        if freed:
            for waiting in self._waiting:
                self._queue.add(waiting)
        if new is None:
            return
        if needs_cleanup(new, self._balancer):
            self._queue.add(key)
        elif wants(new) and (old is None or needs_update(old, new)):
            self._tell_change(old, new)
            self._queue.add(key)
            # A Service that may no longer share makes way, or the younger one it shared with does.
            for other in self._pool.sharers(key):
                self._queue.add(other)

    def _tell_change(self, old: Service | None, new: Service) -> None:
        if old is None:
            return
        for reason, before, after in told_changes(old, new):
            self._say(new, "Normal", reason, f"{before} -> {after}")

    def _host_names(self) -> frozenset[str]:
        return frozenset(node.metadata.name for node in self._balanced_nodes())

    def _balanced_nodes(self) -> list[Node]:
        nodes = [node for node in self._nodes.values() if carries_load_balancers(node)]
        return sorted(nodes, key=lambda node: node.metadata.name)

    def _node_changed(self, change: Change[Node]) -> None:
        if self._hosts is None:
            return
        hosts = self._host_names()
        if hosts != self._hosts:
            self._hosts = hosts
            for key, service in self._services.items():
                if wants(service) and service.status.load_balancer.ingress:
                    self._hosts_queue.add(key)

    # --- one pass over a Service ---

    async def _reconcile(self, key: Key) -> None:
        service = self._services.get(key)
        if service is None:
            return
        if needs_cleanup(service, self._balancer):
            await self._clean_up(service)
        elif wants(service):
            await self._ensure(service)

    async def _ensure(self, service: Service) -> None:
        nodes = self._balanced_nodes()
        before = service.status.load_balancer.ingress
        try:
            wanted = await self._balancer.ensure(service, nodes)
        except PodwireError as error:
            await self._refuse(service, error)
            return
        self._waiting.discard(service.key)
        changed = not same_ingress(before, wanted)
        if changed:
            self._say(service, "Normal", "EnsuringLoadBalancer", "Ensuring load balancer")
        if not nodes:
            text = "There are no available nodes for LoadBalancer"
            self._say(service, "Warning", "UnAvailableLoadBalancer", text)
        # Before the address is anywhere: a Service with one cannot vanish without us.
        if FINALIZER not in service.metadata.finalizers:
            await self._set_finalizers(service, [*service.metadata.finalizers, FINALIZER])
        if changed:
            await self._show(service, wanted)
            self._say(service, "Normal", "EnsuredLoadBalancer", "Ensured load balancer")

    async def _refuse(self, service: Service, error: PodwireError) -> None:
        """It waits for another Service to change or go; what it must not keep is taken away."""
        first = service.key not in self._waiting
        self._waiting.add(service.key)
        text = f"Error syncing load balancer: failed to ensure load balancer: {error}"
        if first or service.status.load_balancer.ingress:
            self._say(service, "Warning", "SyncLoadBalancerFailed", text)
        if self._balancer.exists(service):
            await self._show(service, ())

    async def _clean_up(self, service: Service) -> None:
        if self._balancer.exists(service):
            self._say(service, "Normal", "DeletingLoadBalancer", "Deleting load balancer")
            try:
                await self._balancer.delete(service)
            except PodwireError as error:
                text = f"Error syncing load balancer: failed to delete load balancer: {error}"
                self._say(service, "Warning", "SyncLoadBalancerFailed", text)
                raise
        self._waiting.discard(service.key)
        finalized = FINALIZER in service.metadata.finalizers
        if service.status.load_balancer.ingress and not service.deleting:
            await self._show(service, ())
            if finalized:
                return  # what was just written comes back as a change, and then the finalizer goes
        if finalized:
            left = [name for name in service.metadata.finalizers if name != FINALIZER]
            await self._set_finalizers(service, left)
        self._say(service, "Normal", "DeletedLoadBalancer", "Deleted load balancer")

    async def _update_hosts(self, key: Key) -> None:
        service = self._services.get(key)
        if service is None or not wants(service):
            return
        try:
            await self._balancer.update_hosts(service, self._balanced_nodes())
        except PodwireError as error:
            text = f"Error updating load balancer with new hosts: {error}"
            self._say(service, "Warning", "UpdateLoadBalancerFailed", text)
            raise
        text = "Updated load balancer with new hosts"
        self._say(service, "Normal", "UpdatedLoadBalancer", text)

    # --- writing ---

    async def _set_finalizers(self, service: Service, finalizers: list[str]) -> None:
        body: dict[str, Any] = {"metadata": {"finalizers": finalizers}}
        await self._cluster.patch(kinds.SERVICE, service, body, exact=True)

    async def _show(self, service: Service, ingress: Iterable[LoadBalancerIngress]) -> None:
        entries: list[JsonObject] = [_write_ingress(one) for one in ingress]
        body = {"loadBalancer": {"ingress": entries or None}}
        await self._cluster.patch_status(kinds.SERVICE, service, body)

    def _say(self, service: Service, event_type: str, reason: str, message: str) -> None:
        self._cluster.events.say(COMPONENT, kinds.SERVICE, service, event_type, reason, message)


def needs_cleanup(service: Service, balancer: LoadBalancer) -> bool:
    """Whether it has, and must lose, what a load balancer of ours left.

    The finalizer is everybody's: on a Service that shows somebody else's address it stays.
    """
    if is_ours(service):
        return service.deleting and FINALIZER in service.metadata.finalizers
    if service.spec.type == "LoadBalancer":
        return False
    shown = bool(service.status.load_balancer.ingress)
    ours = balancer.exists(service)
    return ours or (FINALIZER in service.metadata.finalizers and not shown)


def needs_update(old: Service, new: Service) -> bool:
    """Whether anything a load balancer may depend on differs (upstream's needsUpdate)."""
    return (
        _relevant(old) != _relevant(new)
        or wants(old) != wants(new)
        # Somebody else changed what we show, or our finalizer.
        or not same_ingress(old.status.load_balancer.ingress, new.status.load_balancer.ingress)
        or FINALIZER not in new.metadata.finalizers
    )


def _relevant(service: Service) -> tuple[object, ...]:
    spec = service.spec
    return (
        service.metadata.uid,
        service.metadata.annotations,
        spec.type,
        spec.ports,
        spec.selector,
        spec.ip_families,
        spec.ip_family_policy,
        spec.cluster_ips,
        spec.session_affinity,
        spec.session_affinity_config,
        spec.load_balancer_ip,
        spec.load_balancer_source_ranges,
        spec.external_ips,
        spec.external_traffic_policy,
        spec.health_check_node_port,
    )


def told_changes(old: Service, new: Service) -> list[tuple[str, str, str]]:
    """(reason, before, after) of the changes upstream tells as Events."""
    before, after = old.spec, new.spec
    pairs = [
        ("Type", before.type, after.type),
        (
            "LoadBalancerSourceRanges",
            _go_list(before.load_balancer_source_ranges),
            _go_list(after.load_balancer_source_ranges),
        ),
        ("LoadbalancerIP", before.load_balancer_ip, after.load_balancer_ip),
        (
            "ExternalTrafficPolicy",
            before.external_traffic_policy,
            after.external_traffic_policy,
        ),
        (
            "HealthCheckNodePort",
            str(before.health_check_node_port),
            str(after.health_check_node_port),
        ),
    ]
    different = [pair for pair in pairs if pair[1] != pair[2]]
    # A change of type changes the rest with it; upstream stops at the first.
    return different[:1] if before.type != after.type else different


def _go_list(texts: Sequence[str]) -> str:
    return f"[{' '.join(texts)}]"


def same_ingress(
    before: Sequence[LoadBalancerIngress], after: Sequence[LoadBalancerIngress]
) -> bool:
    return [(i.ip, i.hostname, i.ip_mode or "VIP") for i in before] == [
        (i.ip, i.hostname, i.ip_mode or "VIP") for i in after
    ]


def _write_ingress(ingress: LoadBalancerIngress) -> JsonObject:
    whole: JsonObject = msgspec.to_builtins(ingress)
    return {name: value for name, value in whole.items() if value}
