"""Topology hints of endpoints: for whom an endpoint is meant. Pure.

Two ways, as upstream has them:
- `spec.trafficDistribution` (KEP-4444, KEP-3015): every ready endpoint is hinted for its own zone
  and, with PreferSameNode, its own node. That is a property of the endpoint alone.
- the annotation `service.kubernetes.io/topology-mode: Auto` (KEP-2433), which wins over the field:
  endpoints are shared out so that every zone gets as many as its share of the allocatable CPU.
  Slices that did not change keep their hints while they still allow that, so that writes stay few.

Source: k8s.io/endpointslice topologycache and trafficdist.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from msgspec.structs import replace

from podwire.controllers.endpoints.packing import Draft
from podwire.objects.core import Node, Service
from podwire.objects.discovery import Endpoint, EndpointHints, HintName
from podwire.objects.meta import Object
from podwire.objects.quantity import parse_quantity

OVERLOAD = 0.2
"""How far above its fair share any endpoint may be loaded."""
DISABLED = "TopologyAwareHintsDisabled"
ENABLED = "TopologyAwareHintsEnabled"
ENABLED_TEXT = "Topology Aware Hints has been enabled"
DISABLED_TEXT = "Topology Aware Hints has been disabled"
_NO_NODE_INFO = (
    "Insufficient Node information: allocatable CPU or zone not specified on one or more nodes"
)
_FEW_ENDPOINTS = "Insufficient number of endpoints"
_OVERLOADED = (
    "Unable to allocate minimum required endpoints to each zone without exceeding overload "
    "threshold"
)
_NO_ZONE = "One or more endpoints do not have a zone specified"
_NO_HINTS = "No hints allocated for zones"

_ZONE_LABEL = "topology.kubernetes.io/zone"
_OUTSIDE_CAPACITY = (
    "node-role.kubernetes.io/control-plane",
    "node-role.kubernetes.io/master",
)
_SAME_ZONE = ("PreferClose", "PreferSameZone", "PreferSameNode")


def topology_mode_auto(service: Object) -> bool:
    """The deprecated `topology-aware-hints` decides where both annotations are set."""
    annotations = service.metadata.annotations
    value = annotations.get(
        "service.kubernetes.io/topology-aware-hints",
        annotations.get("service.kubernetes.io/topology-mode"),
    )
    return value in ("Auto", "auto")


def distribution_hints(
    service: Service, zone: str | None, node: str | None
) -> EndpointHints | None:
    """What `trafficDistribution` says about a ready endpoint."""
    wish = service.spec.traffic_distribution
    if wish not in _SAME_ZONE or topology_mode_auto(service):
        return None
    zones = [HintName(name=zone)] if zone else []
    nodes = [HintName(name=node)] if node and wish == "PreferSameNode" else []
    return EndpointHints(for_zones=zones, for_nodes=nodes) if zones or nodes else None


# --- topology-mode: Auto ---


def zone_ratios(nodes: Iterable[Node]) -> dict[str, float]:
    """Each zone's share of the allocatable CPU of ready nodes; empty where it cannot be told:
    a node without zone or CPU, or fewer than two zones."""
    cpu: dict[str, float] = {}
    for node in nodes:
        labels = node.metadata.labels
        if any(label in labels for label in _OUTSIDE_CAPACITY) or not node.ready:
            continue
        zone = labels.get(_ZONE_LABEL)
        amount = float(parse_quantity(node.status.allocatable.get("cpu", 0)))
        if not zone or not amount:
            return {}
        cpu[zone] = cpu.get(zone, 0.0) + amount
    total = sum(cpu.values())
    return {zone: amount / total for zone, amount in sorted(cpu.items())} if len(cpu) > 1 else {}


@dataclass(frozen=True)
class Allocation:
    """How many endpoints a zone needs, may have at most, and should have."""

    minimum: int
    maximum: int
    desired: float


def allocate(ratios: Mapping[str, float], count: int) -> tuple[dict[str, Allocation], str]:
    """Allocations of `count` ready endpoints by zone, or why there can be none."""
    if not ratios:
        return {}, _NO_NODE_INFO
    figures = f"({count} endpoints, {len(ratios)} zones)"
    if len(ratios) > count:
        return {}, f"{_FEW_ENDPOINTS} {figures}"
    desired = {zone: ratio * count for zone, ratio in ratios.items()}
    minimum = {zone: math.ceil(n * (1 / (1 + OVERLOAD))) for zone, n in desired.items()}
    spare = count - sum(minimum.values())
    if spare < 0:
        return {}, f"{_OVERLOADED} {figures}"
    return {
        zone: Allocation(least, least + spare, max(desired[zone], float(least)))
        for zone, least in minimum.items()
    }, ""


def assign_hints(drafts: Sequence[Draft], ratios: Mapping[str, float]) -> str:
    """Put hints on the endpoints of `drafts`; "" when done, else why every hint was removed."""
    count = sum(e.conditions.ready is True for draft in drafts for e in draft.endpoints)
    allocations, problem = allocate(ratios, count)
    if problem:
        return _without(drafts, problem)
    allocated: Counter[str] = Counter()
    fresh: list[Draft] = []
    for draft in drafts:
        kept = None if draft.changed else _kept_hints(draft, allocated, allocations)
        if kept is None:
            fresh.append(draft)
        else:
            allocated.update(kept)
    ready = [e for draft in fresh for e in draft.endpoints if e.conditions.ready]
    if any(not endpoint.zone for endpoint in ready):
        return _without(drafts, _NO_ZONE)
    allocated.update(endpoint.zone or "" for endpoint in ready)
    if not allocated:
        return _without(drafts, _NO_HINTS)
    giving, receiving = _exchange(allocations, allocated)
    for draft in fresh:
        hinted = [_hinted(endpoint, giving, receiving) for endpoint in draft.endpoints]
        draft.changed |= hinted != draft.endpoints
        draft.endpoints = hinted
    return ""


def _without(drafts: Iterable[Draft], problem: str) -> str:
    for draft in drafts:
        if any(endpoint.hints is not None for endpoint in draft.endpoints):
            draft.endpoints = [replace(endpoint, hints=None) for endpoint in draft.endpoints]
            draft.changed = True
    return problem


def _kept_hints(
    draft: Draft, allocated: Counter[str], allocations: Mapping[str, Allocation]
) -> Counter[str] | None:
    """The hints of a slice that did not change; None where they cannot stay."""
    hints: Counter[str] = Counter()
    for endpoint in draft.endpoints:
        if not endpoint.conditions.ready:
            continue
        zones = [hint.name for hint in endpoint.hints.for_zones] if endpoint.hints else []
        if not zones or any(zone not in allocations for zone in zones):
            return None
        hints.update(zones)
    if any(allocated[zone] + n > allocations[zone].maximum for zone, n in hints.items()):
        return None
    return hints


def _exchange(
    allocations: Mapping[str, Allocation], allocated: Mapping[str, int]
) -> tuple[Counter[str], Counter[str]]:
    """How many endpoints each zone gives to others, and how many each receives."""
    surplus: dict[str, float] = {}
    need: dict[str, float] = {}
    for zone, allocation in allocations.items():
        over = allocated.get(zone, 0) - allocation.desired
        if over > 0:
            surplus[zone] = over
        elif over < 0:
            need[zone] = -over
    giving: Counter[str] = Counter()
    receiving: Counter[str] = Counter()
    while surplus and need:
        giver = max(surplus, key=lambda zone: surplus[zone])
        taker = max(need, key=lambda zone: need[zone])
        most, least = max(surplus[giver], need[taker]), min(surplus[giver], need[taker])
        if most < 1.0 or least < 0.5:
            break
        giving[giver] += 1
        surplus[giver] -= 1
        receiving[taker] += 1
        need[taker] -= 1
    return giving, receiving


def _hinted(endpoint: Endpoint, giving: Counter[str], receiving: Counter[str]) -> Endpoint:
    if not endpoint.conditions.ready:
        return replace(endpoint, hints=None) if endpoint.hints is not None else endpoint
    zone = endpoint.zone or ""
    if giving[zone] > 0:
        taker = next((name for name, n in sorted(receiving.items()) if n > 0), None)
        if taker is not None:
            giving[zone] -= 1
            receiving[taker] -= 1
            zone = taker
    return replace(endpoint, hints=EndpointHints(for_zones=[HintName(name=zone)]))
