"""Who must be able to talk to whom: what recommendations are made of. Pure.

    flows seen, or hints in manifests -> Need per workload and direction -> `recommend`

A workload is known by labels all its pods keep: what one ReplicaSet, one revision or one pod alone
has is no name for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from podwire.policy.evaluate import Flow
from podwire.policy.intervals import Intervals
from podwire.policy.model import Direction, Peer, PodsPeer
from podwire.policy.selector import EVERYTHING, Expression, Selector
from podwire.policy.world import NAME_LABEL, PodView

PASSING_LABELS: Final = frozenset(
    {
        "pod-template-hash",
        "controller-revision-hash",
        "pod-template-generation",
        "statefulset.kubernetes.io/pod-name",
        "apps.kubernetes.io/pod-index",
        "controller-uid",
        "batch.kubernetes.io/controller-uid",
        "batch.kubernetes.io/job-name",
        "batch.kubernetes.io/job-completion-index",
        "job-name",
    }
)
"""Labels that controllers give a pod and the next one does not have."""
_NAMING_LABELS: Final = ("app.kubernetes.io/name", "app", "k8s-app", "name", "run", "component")
SYSTEM_NAMESPACES: Final = frozenset({"kube-system", "kube-public", "kube-node-lease"})


class WorkloadRef(NamedTuple):
    namespace: str
    kind: str
    name: str

    def __str__(self) -> str:
        """In np-guard's words: `ns/web[Deployment]`."""
        return f"{self.namespace}/{self.name}[{self.kind}]"


@dataclass(frozen=True)
class Workload:
    """`selector` is its own, where it has one: without labels nobody can be selected alone."""

    ref: WorkloadRef
    selector: Selector
    pods: tuple[PodView, ...] = ()

    @property
    def peer(self) -> PodsPeer:
        """As others name it; unlabelled, as any pod of its namespace."""
        return PodsPeer(self.selector, self.ref.namespace)

    @property
    def common_labels(self) -> Selector:
        """The lasting labels all its pods have: the narrowest that still selects them all."""
        return labels_in_common(self.pods)


@dataclass(frozen=True)
class Need:
    """`peer` None is anybody. `ports` is a part of the line of `ports`, of the destination."""

    subject: WorkloadRef
    direction: Direction
    peer: Peer | None
    ports: Intervals


@dataclass(frozen=True)
class Observed:
    """A connection that a recommendation must leave open, `count` times seen."""

    flow: Flow
    text: str
    count: int = 1


# --- workloads ----------------------------------------------------------------------------------


def lasting(labels: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in labels.items() if key not in PASSING_LABELS}


def select_labels(labels: Mapping[str, str]) -> Selector:
    return Selector(tuple(sorted(Expression(k, "In", (v,)) for k, v in labels.items())))


def labels_in_common(pods: Iterable[PodView]) -> Selector:
    shared: dict[str, str] | None = None
    for pod in pods:
        own = lasting(pod.labels)
        shared = own if shared is None else dict(shared.items() & own.items())
    return select_labels(shared or {})


def without_passing(selector: Selector) -> Selector:
    """A ReplicaSet's selector without what its Deployment added."""
    kept = tuple(e for e in selector.expressions if e.key not in PASSING_LABELS)
    return Selector(kept) if kept else EVERYTHING


def workload_of_labels(namespace: str, labels: Mapping[str, str], pod: str) -> WorkloadRef:
    """What pods of which nothing but labels is known are called together."""
    for key in _NAMING_LABELS:
        if labels.get(key):
            return WorkloadRef(namespace, "Pod", labels[key].lower())
    return WorkloadRef(namespace, "Pod", pod)


def group_by_labels(pods: Iterable[PodView]) -> list[Workload]:
    """Pods of one namespace with equal lasting labels are one workload; unlabelled ones alone."""
    groups: dict[tuple[str, Selector, str], list[PodView]] = {}
    for pod in pods:
        selector = select_labels(lasting(pod.labels))
        alone = "" if selector.expressions else pod.key.name
        groups.setdefault((pod.key.namespace, selector, alone), []).append(pod)
    found: list[Workload] = []
    taken: set[WorkloadRef] = set()
    for (namespace, selector, _), members in sorted(
        groups.items(), key=lambda item: (item[0][0], str(item[0][1]), item[0][2])
    ):
        first = min(members, key=lambda pod: pod.key)
        ref = workload_of_labels(namespace, lasting(first.labels), first.key.name)
        number, free = 1, ref
        while free in taken:
            number += 1
            free = ref._replace(name=f"{ref.name}-{number}")
        taken.add(free)
        found.append(Workload(free, selector, tuple(sorted(members, key=lambda p: p.key))))
    return found


def in_namespace(name: str) -> Selector:
    """The namespace of that name, by the label every namespace has."""
    return Selector((Expression(NAME_LABEL, "In", (name,)),))
