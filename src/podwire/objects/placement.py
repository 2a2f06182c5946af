"""May this pod be on that node? The questions that scheduler, DaemonSets and kubelet all ask.

Pure, over the little of a pod each of them needs (`Placed`), so that full and narrow views of a pod
do equally. Source: pkg/scheduler/framework/plugins (nodeports, noderesources, nodeaffinity,
tainttoleration) and component-helpers scheduling/corev1.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

from podwire.objects.core import (
    Affinity,
    ContainerPort,
    NodeSelector,
    NodeSelectorTerm,
    ResourceRequirements,
    Taint,
    Toleration,
)
from podwire.objects.meta import Requirement
from podwire.objects.quantity import Quantity, count_units

NODE_NAME = "node(s) didn't match the requested node name"
NODE_AFFINITY = "node(s) didn't match Pod's node affinity/selector"
PORTS = "node(s) didn't have free ports for the requested pod ports"

Resources = dict[str, int]
"""Amounts by resource: cpu in thousandths, all else in whole units."""


class PlacedContainer(Protocol):
    @property
    def ports(self) -> Sequence[ContainerPort]: ...
    @property
    def resources(self) -> ResourceRequirements: ...
    @property
    def restart_policy(self) -> str: ...


class Placed(Protocol):
    """What of a pod's spec decides where it may be."""

    @property
    def containers(self) -> Sequence[PlacedContainer]: ...
    @property
    def init_containers(self) -> Sequence[PlacedContainer]: ...
    @property
    def node_selector(self) -> Mapping[str, str]: ...
    @property
    def affinity(self) -> Affinity | None: ...
    @property
    def overhead(self) -> Mapping[str, Quantity]: ...


# --- host ports -----------------------------------------------------------------------------------


class HostPort(NamedTuple):
    ip: str
    protocol: str
    port: int


def host_ports(spec: Placed) -> tuple[HostPort, ...]:
    """Of containers and sidecars; other init containers give theirs back."""
    sidecars = (c for c in spec.init_containers if c.restart_policy == "Always")
    return tuple(
        HostPort(p.host_ip or "0.0.0.0", p.protocol, p.host_port)
        for c in (*spec.containers, *sidecars)
        for p in c.ports
        if p.host_port
    )


def ports_conflict(wanted: Sequence[HostPort], used: Mapping[HostPort, int]) -> bool:
    """Whether one of `wanted` is among those whose count is above 0; 0.0.0.0 is every address."""
    return any(
        count > 0
        and (other.protocol, other.port) == (port.protocol, port.port)
        and (other.ip == port.ip or "0.0.0.0" in (other.ip, port.ip))
        for port in wanted
        for other, count in used.items()
    )


# --- resources ------------------------------------------------------------------------------------


def amounts(quantities: Mapping[str, Quantity]) -> Resources:
    return {name: count_units(name, value) for name, value in quantities.items()}


def _add(total: Resources, more: Mapping[str, int]) -> None:
    for name, value in more.items():
        total[name] = total.get(name, 0) + value


def pod_requests(spec: Placed) -> Resources:
    """What a pod needs: containers and sidecars added, init containers by their peak."""
    total: Resources = {}
    for container in spec.containers:
        _add(total, amounts(container.resources.requests))
    sidecars: Resources = {}
    peak: Resources = {}
    for container in spec.init_containers:
        need = dict(sidecars)
        _add(need, amounts(container.resources.requests))
        if container.restart_policy == "Always":
            sidecars = need
        for name, value in need.items():
            peak[name] = max(peak.get(name, 0), value)
    _add(total, sidecars)
    for name, value in peak.items():
        total[name] = max(total.get(name, 0), value)
    _add(total, amounts(spec.overhead))
    return total


# --- node affinity, taints ------------------------------------------------------------------------


def matches_term(term: NodeSelectorTerm, labels: Mapping[str, str], name: str) -> bool:
    if not term.match_expressions and not term.match_fields:
        return False
    fields = {"metadata.name": name}
    return all(_matches(r, labels) for r in term.match_expressions) and all(
        _matches(r, fields) for r in term.match_fields
    )


def _matches(requirement: Requirement, labels: Mapping[str, str]) -> bool:
    try:
        return requirement.matches(labels)
    except ValueError:
        return False


def matches_selector(selector: NodeSelector, labels: Mapping[str, str], name: str) -> bool:
    return any(matches_term(term, labels, name) for term in selector.node_selector_terms)


def node_affinity_fits(spec: Placed, labels: Mapping[str, str], name: str) -> bool:
    """nodeSelector and required node affinity."""
    if spec.node_selector and not spec.node_selector.items() <= labels.items():
        return False
    if spec.affinity is None or spec.affinity.node_affinity is None:
        return True
    required = spec.affinity.node_affinity.required_during_scheduling_ignored_during_execution
    return required is None or matches_selector(required, labels, name)


def tolerates(toleration: Toleration, taint: Taint) -> bool:
    if toleration.effect and toleration.effect != taint.effect:
        return False
    if toleration.key and toleration.key != taint.key:
        return False
    if toleration.operator == "Exists":
        return True
    return bool(toleration.key) and toleration.value == taint.value


def untolerated(
    taints: Iterable[Taint], tolerations: Sequence[Toleration], effects: tuple[str, ...]
) -> Taint | None:
    """The first taint with one of `effects` that nothing tolerates."""
    for taint in taints:
        if taint.effect in effects and not any(tolerates(t, taint) for t in tolerations):
            return taint
    return None
