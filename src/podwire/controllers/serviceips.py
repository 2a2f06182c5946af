"""Services and IPAddresses agree: every cluster IP has its IPAddress, none is left over.

    Service  -> IPAddress missing, of something else, badly labelled    made again, Warning event
             -> address outside every ServiceCIDR, or of two Services   Warning event only
    IPAddress of the allocator -> its Service does not have it          deleted, Warning event
                               -> its Service does not exist            the same, after 60 s

The embedded API server writes both in one transaction, so this mends what users delete and what a
store of an older version lacks. What the caches say is checked with the server before anything is
changed: two watches are not in step.

Source: pkg/registry/core/service/ipallocator/controller/repairip.go of Kubernetes 1.33.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, Literal

from podwire.client import Change, WorkQueue
from podwire.controllers.cluster import Cluster
from podwire.controllers.servicecidrs import Address, Network, covers, networks_of
from podwire.errors import AlreadyExistsError, NotFoundError
from podwire.objects import kinds
from podwire.objects.core import Service
from podwire.objects.discovery import (
    IP_ALLOCATOR,
    IP_FAMILY_LABEL,
    IP_MANAGED_BY_LABEL,
    IpAddress,
    ServiceCidr,
)
from podwire.objects.meta import JsonObject, Key, Kind, Object, T, parse_time

_COMPONENT = "ipallocator-repair-controller"
_NOT_ALLOCATED = "ClusterIPNotAllocated"
ORPHAN_S = 60.0
_SETTLE_S = 0.2
"""A Service and its IPAddress come by two watches; usually both are here by then."""


@dataclass(frozen=True)
class Finding:
    """What is wrong: the event to write (none where `reason` is empty) and what to do."""

    reason: str
    message: str
    action: Literal["create", "recreate", "delete", "tell"]


def cluster_addresses(service: Service) -> list[Address]:
    """The cluster IPs of a Service; none for headless ones and ExternalName."""
    if service.spec.headless or service.spec.type == "ExternalName":
        return []
    found: list[Address] = []
    for text in service.spec.cluster_ips:
        with contextlib.suppress(ValueError):
            found.append(ip_address(text))
    return found


def evaluate_service(
    service: Service,
    address: Address,
    networks: Iterable[Network],
    found: IpAddress | None,
    owner: Service | None,
) -> Finding | None:
    """One cluster IP of a Service; `owner` is the Service that the IPAddress names."""
    family, meta = f"IPv{address.version}", service.metadata
    shown = f"[{family}]: {address}"
    if not any(covers(network, address) for network in networks):
        text = f"Cluster IP {shown} is not within any configured Service CIDR; please recreate "
        return Finding("ClusterIPOutOfRange", f"{text}service", "tell")
    if found is None:
        text = f"Cluster IP {shown} is not allocated; repairing"
        return Finding(_NOT_ALLOCATED, text, "create")
    wrong = Finding(
        _NOT_ALLOCATED,
        f"the ClusterIP {shown} for Service {meta.namespace}/{meta.name} has a wrong reference; "
        "repairing",
        "recreate",
    )
    parent = found.spec.parent_ref
    if parent.group or parent.resource != "services":
        return wrong
    if (parent.namespace, parent.name) != (meta.namespace, meta.name):
        if owner is None:
            return wrong
        if address in cluster_addresses(owner):
            text = f"Cluster IP [{family}]:{address} was assigned to multiple services; please "
            return Finding("ClusterIPAlreadyAllocated", f"{text}recreate service", "tell")
        return None  # the IPAddress is a leftover; it is deleted as one, and then missing here
    labels = found.metadata.labels
    if labels.get(IP_FAMILY_LABEL) != family or labels.get(IP_MANAGED_BY_LABEL) != IP_ALLOCATOR:
        return Finding("", "", "recreate")
    return None


def evaluate_address(found: IpAddress, service: Service | None) -> Finding | None:
    """An IPAddress of the allocator; `service` is the one it names."""
    name, parent = found.metadata.name, found.spec.parent_ref
    if found.metadata.labels.get(IP_MANAGED_BY_LABEL) != IP_ALLOCATOR:
        return None
    if parent.group or parent.resource != "services":
        text = (
            f"IPAddress {name} appears to have been modified, not referencing a Service: "
            "cleaning up"
        )
        return Finding("IPAddressNotAllocated", text, "delete")
    whose = f"IPAddress: {name} for Service {parent.namespace}/{parent.name}"
    if service is None:
        text = f"{whose} appears to have leaked: cleaning up"
        return Finding("IPAddressNotAllocated", text, "delete")
    if ip_address(name) in cluster_addresses(service):
        return None
    return Finding(
        "IPAddressWrongReference", f"{whose} has a wrong reference; cleaning up", "delete"
    )


class ServiceIps:
    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._of_services: WorkQueue[Key] = WorkQueue(_COMPONENT, self._check_service)
        self._of_addresses: WorkQueue[Key] = WorkQueue(_COMPONENT, self._check_address)
        self._served = cluster.resources.has(kinds.IP_ADDRESS)
        if not self._served:
            return
        self._services = cluster.informer(kinds.SERVICE).objects
        self._addresses = cluster.informer(kinds.IP_ADDRESS).objects
        self._cidrs = cluster.informer(kinds.SERVICE_CIDR).objects
        cluster.informer(kinds.SERVICE).on_change(self._service_changed)
        cluster.informer(kinds.IP_ADDRESS).on_change(self._address_changed)
        cluster.informer(kinds.SERVICE_CIDR).on_change(self._cidr_changed)

    async def run(self) -> None:
        if not self._served:
            return
        async with asyncio.TaskGroup() as group:
            group.create_task(self._of_services.run())
            group.create_task(self._of_addresses.run())

    # --- observing ---

    def _service_changed(self, change: Change[Service]) -> None:
        before = cluster_addresses(change.old) if change.old else []
        after = cluster_addresses(change.new) if change.new else []
        if before == after:
            return
        if after:
            self._of_services.add_after(change.key, _SETTLE_S)
        for address in {*before, *after}:
            key = Key("", str(address))
            if key in self._addresses:
                self._of_addresses.add_after(key, _SETTLE_S)

    def _address_changed(self, change: Change[IpAddress]) -> None:
        for each in (change.old, change.new):
            parent = each.spec.parent_ref if each is not None else None
            if parent is not None and parent.resource == "services":
                self._of_services.add_after(Key(parent.namespace, parent.name), _SETTLE_S)
        if change.new is not None:
            self._of_addresses.add_after(change.key, _SETTLE_S)

    def _cidr_changed(self, change: Change[ServiceCidr]) -> None:
        if change.new is None:
            for key, service in self._services.items():
                if cluster_addresses(service):
                    self._of_services.add_after(key, _SETTLE_S)

    # --- acting ---

    async def _check_service(self, key: Key) -> None:
        service = self._services.get(key)
        if service is None:
            return
        for address in cluster_addresses(service):
            at = Key("", str(address))
            if self._judge(service, address, self._addresses.get(at)) is None:
                continue
            # Once more, by what the server says now.
            live = await self._live(kinds.SERVICE, key)
            if live is None or live.metadata.uid != service.metadata.uid:
                return
            found = await self._live(kinds.IP_ADDRESS, at)
            finding = self._judge(live, address, found)
            if finding is not None and address in cluster_addresses(live):
                await self._mend(live, address, found, finding)

    def _judge(self, service: Service, address: Address, found: IpAddress | None) -> Finding | None:
        networks = [n for cidr in self._cidrs.values() for n in networks_of(cidr)]
        owner = None
        if found is not None:
            parent = found.spec.parent_ref
            owner = self._services.get(Key(parent.namespace, parent.name))
        return evaluate_service(service, address, networks, found, owner)

    async def _mend(
        self, service: Service, address: Address, found: IpAddress | None, finding: Finding
    ) -> None:
        self._say(kinds.SERVICE, service, finding)
        if finding.action == "tell":
            return
        if found is not None:
            await self._cluster.delete(kinds.IP_ADDRESS, found)
        with contextlib.suppress(AlreadyExistsError):
            await self._cluster.api.create(kinds.IP_ADDRESS, ip_address_for(service, address))

    async def _check_address(self, key: Key) -> float | None:
        """Seconds to look again, for one whose Service may still come."""
        found = self._addresses.get(key)
        if found is None:
            return None
        parent = found.spec.parent_ref
        at = Key(parent.namespace, parent.name)
        if evaluate_address(found, self._services.get(at)) is None:
            return None
        service = await self._live(kinds.SERVICE, at) if parent.resource == "services" else None
        finding = evaluate_address(found, service)
        if finding is None:
            return None
        if service is None and parent.resource == "services" and not parent.group:
            age = self._age_s(found)
            if age <= ORPHAN_S:
                return ORPHAN_S - age + _SETTLE_S
        self._say(kinds.IP_ADDRESS, found, finding)
        await self._cluster.delete(kinds.IP_ADDRESS, found)
        return None

    def _age_s(self, found: IpAddress) -> float:
        made = found.metadata.creation_timestamp
        now = self._cluster.now()
        return (now - (parse_time(made) if made else now)).total_seconds()

    def _say(self, kind: Kind[Any], obj: Object, finding: Finding) -> None:
        if finding.reason:
            self._cluster.events.say(
                _COMPONENT, kind, obj, "Warning", finding.reason, finding.message
            )

    async def _live(self, kind: Kind[T], key: Key) -> T | None:
        try:
            return await self._cluster.api.get(kind, key.name, key.namespace)
        except NotFoundError:
            return None


def ip_address_for(service: Service, address: Address) -> JsonObject:
    """The IPAddress that the allocator makes for a Service."""
    meta = service.metadata
    labels = {IP_FAMILY_LABEL: f"IPv{address.version}", IP_MANAGED_BY_LABEL: IP_ALLOCATOR}
    parent = {"resource": "services", "namespace": meta.namespace, "name": meta.name}
    return {
        "metadata": {"name": str(address), "labels": labels},
        "spec": {"parentRef": parent},
    }
