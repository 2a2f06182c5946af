"""May a pod run on this node? The kubelet's own answer, whoever placed the pod here.

    pod, Node, what admitted pods take -> judge (pure) -> refusals -> Admission: the first counts

A refused pod ends as Failed with the refusal's reason and never gets a sandbox. What was admitted
stays so: also when a label or taint changes, also over a restart of the agent.
Source: kubernetes/kubernetes pkg/kubelet/lifecycle/predicate.go and pkg/scheduler/eventhandlers.go
(AdmissionCheck).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

from podwire.objects.core import Node, Pod
from podwire.objects.placement import (
    NODE_AFFINITY,
    NODE_NAME,
    PORTS,
    HostPort,
    Resources,
    amounts,
    host_ports,
    node_affinity_fits,
    pod_requests,
    ports_conflict,
    untolerated,
)

_OS: Final = "linux"
_OS_LABEL: Final = "kubernetes.io/os"
_TAINTS: Final = "node(s) had taints that the pod didn't tolerate"
_NATIVE: Final = ("cpu", "memory", "ephemeral-storage")


@dataclass(frozen=True)
class Refusal:
    """`reason` is the pod's status.reason and the Event's, `message` upstream's text."""

    reason: str
    message: str


@dataclass(frozen=True)
class Claim:
    """What one pod takes from its node."""

    requests: Resources
    ports: tuple[HostPort, ...]


def claim_of(pod: Pod) -> Claim:
    return Claim(pod_requests(pod.spec), host_ports(pod.spec))


@dataclass
class Taken:
    """The sum of all claims."""

    pods: int = 0
    requests: Counter[str] = field(default_factory=Counter)
    ports: Counter[HostPort] = field(default_factory=Counter)

    def add(self, claim: Claim) -> None:
        self.pods += 1
        self.requests.update(claim.requests)
        self.ports.update(claim.ports)

    def remove(self, claim: Claim) -> None:
        self.pods -= 1
        self.requests.subtract(claim.requests)
        self.ports.subtract(claim.ports)
        for port in claim.ports:
            if not self.ports[port]:
                del self.ports[port]


def judge(pod: Pod, node: Node, taken: Taken) -> list[Refusal]:
    """Everything that speaks against the pod, in upstream's order; empty when it may run."""
    wanted_os = pod.metadata.labels.get(_OS_LABEL, _OS)
    if wanted_os != _OS:
        text = f"Failed to admit pod as the `{_OS_LABEL}` label doesn't match node label"
        return [Refusal("PodOSSelectorNodeLabelDoesNotMatch", text)]
    if pod.spec.os is not None and pod.spec.os.name != _OS:
        text = "Failed to admit pod as the OS field doesn't match node OS"
        return [Refusal("PodOSNotSupported", text)]
    claim = claim_of(pod)
    refusals = list(_short_of(claim.requests, amounts(node.status.allocatable), taken))
    name = node.metadata.name
    if not node_affinity_fits(pod.spec, node.metadata.labels, name):
        refusals.append(_predicate("NodeAffinity", NODE_AFFINITY))
    if pod.spec.node_name not in ("", name):
        refusals.append(_predicate("NodeName", NODE_NAME))
    if ports_conflict(claim.ports, taken.ports):
        refusals.append(_predicate("NodePorts", PORTS))
    if untolerated(node.spec.taints, pod.spec.tolerations, ("NoExecute",)) is not None:
        refusals.append(_predicate("TaintToleration", _TAINTS))
    return refusals


def _predicate(name: str, why: str) -> Refusal:
    return Refusal(name, f"Predicate {name} failed: {why}")


def _short_of(requests: Resources, allocatable: Resources, taken: Taken) -> Iterator[Refusal]:
    capacity = allocatable.get("pods", 0)
    if taken.pods + 1 > capacity:
        yield _out_of("pods", 1, taken.pods, capacity)
    native = {name: requests.get(name, 0) for name in _NATIVE}
    for name, need in (native | _extended(requests, allocatable)).items():
        capacity, used = allocatable.get(name, 0), taken.requests[name]
        if need > 0 and need > capacity - used:
            yield _out_of(name, need, used, capacity)


def _extended(requests: Resources, allocatable: Resources) -> Resources:
    """A resource that the node does not know at all is the cluster's, not the node's."""
    return {
        name: need
        for name, need in requests.items()
        if name not in _NATIVE and name != "pods" and name in allocatable
    }


def _out_of(name: str, need: int, used: int, capacity: int) -> Refusal:
    text = f"Node didn't have enough resource: {name}, requested: {need}, used: {used}, "
    return Refusal(f"OutOf{name}", f"{text}capacity: {capacity}")


class NodeSource(Protocol):
    @property
    def node(self) -> Node | None:
        """The node as last seen."""

    async def fetch(self) -> Node:
        """The node as the API has it now."""


class Admission:
    """The ledger of this node: who is admitted, and what that leaves for others."""

    def __init__(self, source: NodeSource) -> None:
        self._source = source
        self._claims: dict[str, Claim] = {}
        self._taken = Taken()

    @property
    def claims(self) -> Mapping[str, Claim]:
        """By pod UID."""
        return self._claims

    async def admit(self, pod: Pod) -> Refusal | None:
        """Count the pod in, or say why not. What was admitted before is not judged again."""
        if pod.metadata.uid in self._claims:
            return None
        node = self._source.node or await self._source.fetch()
        refusals = judge(pod, node, self._taken)
        if refusals and all(NODE_AFFINITY in refusal.message for refusal in refusals):
            # A label just set may not have been seen yet.
            refusals = judge(pod, await self._source.fetch(), self._taken)
        if refusals:
            return refusals[0]
        self.keep(pod)
        return None

    def keep(self, pod: Pod) -> None:
        """The pod was admitted before this agent began."""
        if pod.metadata.uid not in self._claims:
            claim = self._claims[pod.metadata.uid] = claim_of(pod)
            self._taken.add(claim)

    def release(self, uid: str) -> None:
        """Nothing of the pod runs any more."""
        claim = self._claims.pop(uid, None)
        if claim is not None:
            self._taken.remove(claim)
