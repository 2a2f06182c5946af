"""core/v1 Endpoints of a Service with a selector. Pure.

Deprecated since 1.33 (KEP-4974), but `kubectl get endpoints`, and `describe service` before 1.31,
read nothing else. One address family, no terminating pods, at most 1,000 addresses.
Source: pkg/controller/endpoint/endpoints_controller.go, pkg/api/v1/endpoints/util.go.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from msgspec.structs import replace

from podwire.controllers.endpoints.members import Member, PortKey, in_endpoints
from podwire.controllers.endpoints.slices import (
    HEADLESS_LABEL,
    TRIGGER_ANNOTATION,
    address_families,
)
from podwire.controllers.views import Pod
from podwire.objects.core import (
    EndpointAddress,
    EndpointPort,
    Endpoints,
    EndpointSubset,
    ObjectReference,
    Service,
)
from podwire.objects.meta import ObjectMeta

MANAGED_BY_LABEL = "endpoints.kubernetes.io/managed-by"
MANAGER = "endpoint-controller"
OVER_CAPACITY = "endpoints.kubernetes.io/over-capacity"
CAPACITY = 1000


class _Address(NamedTuple):
    """Sorted by what EndpointAddresses are sorted by: IP text, then uid."""

    ip: str
    uid: str
    ready: bool
    hostname: str
    node: str
    namespace: str
    name: str


def plan_endpoints(
    service: Service,
    members: Iterable[tuple[Pod, Member]],
    existing: Endpoints | None,
    trigger: str = "",
) -> Endpoints | None:
    """The Endpoints as they are to be, None when they are."""
    every = _subsets(service, members)
    subsets = truncate(every)
    truncated = subsets is not every
    meta = existing.metadata if existing is not None else _metadata(service)
    ours = {TRIGGER_ANNOTATION: trigger, OVER_CAPACITY: "truncated" if truncated else ""}
    annotations = {k: v for k, v in meta.annotations.items() if k not in ours}
    annotations |= {k: v for k, v in ours.items() if v}
    wanted = Endpoints(
        metadata=replace(meta, labels=_labels(service), annotations=annotations), subsets=subsets
    )
    return None if existing is not None and _same(existing, wanted) else wanted


def _metadata(service: Service) -> ObjectMeta:
    return ObjectMeta(name=service.metadata.name, namespace=service.metadata.namespace)


def _same(one: Endpoints, other: Endpoints) -> bool:
    return (
        one.subsets == other.subsets
        and one.metadata.labels == other.metadata.labels
        and one.metadata.annotations.get(OVER_CAPACITY)
        == other.metadata.annotations.get(OVER_CAPACITY)
    )


def _labels(service: Service) -> dict[str, str]:
    labels = {k: v for k, v in service.metadata.labels.items() if k != HEADLESS_LABEL}
    if not service.spec.cluster_ip or service.spec.headless:
        labels[HEADLESS_LABEL] = ""
    return labels | {MANAGED_BY_LABEL: MANAGER}


def _subsets(service: Service, members: Iterable[tuple[Pod, Member]]) -> list[EndpointSubset]:
    """Ports with the same addresses, in the same readiness, share a subset."""
    by_port: dict[PortKey, dict[_Address, None]] = {}
    family = address_families(service)[0]
    publish_all = service.spec.publish_not_ready_addresses
    for pod, member in members:
        endpoint = member.endpoints.get(family)
        if endpoint is None or not in_endpoints(pod, terminating=publish_all):
            continue
        if not member.ports and service.spec.ports:
            continue
        meta = pod.metadata
        address = _Address(
            endpoint.addresses[0],
            meta.uid,
            publish_all or pod.ready,
            endpoint.hostname or "",
            pod.spec.node_name,
            meta.namespace,
            meta.name,
        )
        for port in member.port_key or ((),):
            by_port.setdefault((port,) if port else (), {})[address] = None
    sharing: dict[tuple[_Address, ...], list[PortKey]] = {}
    for key, addresses in by_port.items():
        sharing.setdefault(tuple(sorted(addresses)), []).append(key)
    return [
        _subset(addresses, sorted(port for key in keys for port in key))
        for addresses, keys in sorted(sharing.items(), key=lambda item: min(item[1]))
    ]


def _subset(
    addresses: tuple[_Address, ...], ports: list[tuple[str, str, int, str]]
) -> EndpointSubset:
    return EndpointSubset(
        addresses=[_render(a) for a in addresses if a.ready],
        not_ready_addresses=[_render(a) for a in addresses if not a.ready],
        ports=[
            EndpointPort(name=name, protocol=protocol, port=port, app_protocol=app or None)
            for name, protocol, port, app in ports
        ],
    )


def _render(address: _Address) -> EndpointAddress:
    return EndpointAddress(
        ip=address.ip,
        hostname=address.hostname,
        node_name=address.node or None,
        target_ref=ObjectReference(
            kind="Pod", namespace=address.namespace, name=address.name, uid=address.uid
        ),
    )


def truncate(subsets: list[EndpointSubset]) -> list[EndpointSubset]:
    """At most 1,000 addresses, ready ones first, each subset in proportion to its size."""
    ready = sum(len(subset.addresses) for subset in subsets)
    unready = sum(len(subset.not_ready_addresses) for subset in subsets)
    if ready + unready <= CAPACITY:
        return subsets
    cut_ready = ready > CAPACITY
    room, total = (CAPACITY, ready) if cut_ready else (CAPACITY - ready, unready)
    left = room
    out: list[EndpointSubset] = []
    for subset in subsets:
        among = subset.addresses if cut_ready else subset.not_ready_addresses
        share = min(math.ceil(len(among) / total * room), left)
        kept = among[:share]
        left -= len(kept)
        cut = (
            replace(subset, addresses=kept, not_ready_addresses=[])
            if cut_ready
            else replace(subset, not_ready_addresses=kept)
        )
        if cut.addresses or cut.not_ready_addresses:
            out.append(cut)
    return out


def is_managed(labels: Mapping[str, str]) -> bool:
    return labels.get(MANAGED_BY_LABEL) == MANAGER
