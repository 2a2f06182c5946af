"""Which node a pod goes to: pure, over a `Snapshot`.

    nodes -> filters (the first that refuses gives the reason) -> scores -> the best node

The reasons are upstream's texts, because people and tools read them.
Source: pkg/scheduler/framework/plugins.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from podwire.controllers.schedsnapshot import (
    ZONE,
    NodeInfo,
    Snapshot,
    Term,
    anti_affinity,
)
from podwire.controllers.views import Pod
from podwire.objects.core import (
    PodAffinity,
    PodAffinityTerm,
    Taint,
    TopologySpreadConstraint,
)
from podwire.objects.meta import LabelSelector, Requirement
from podwire.objects.placement import (
    NODE_AFFINITY,
    PORTS,
    Resources,
    host_ports,
    matches_term,
    node_affinity_fits,
    pod_requests,
    ports_conflict,
    tolerates,
    untolerated,
)

UNSCHEDULABLE_TAINT = Taint(key="node.kubernetes.io/unschedulable", effect="NoSchedule")

CORDONED = "node(s) were unschedulable"
TOO_MANY = "Too many pods"
AFFINITY = "node(s) didn't match pod affinity rules"
ANTI_AFFINITY = "node(s) didn't match pod anti-affinity rules"
EXISTING_ANTI = "node(s) didn't satisfy existing pods anti-affinity rules"
SPREAD = "node(s) didn't match pod topology spread constraints"
SPREAD_LABEL = f"{SPREAD} (missing required label)"
_POD_REASONS = frozenset((AFFINITY, ANTI_AFFINITY, EXISTING_ANTI, SPREAD))


@dataclass(frozen=True)
class Unschedulable:
    """Why no node fits: how many nodes gave which reason."""

    nodes: int
    reasons: Mapping[str, int]

    @property
    def message(self) -> str:
        if self.nodes == 0:
            return "no nodes available to schedule pods"
        reasons = ", ".join(sorted(f"{count} {reason}" for reason, count in self.reasons.items()))
        return f"0/{self.nodes} nodes are available: {reasons}."

    @property
    def waits_for_pods(self) -> bool:
        """Whether a new pod elsewhere could make it fit (affinity, spreading)."""
        return not _POD_REASONS.isdisjoint(self.reasons)


def schedule(pod: Pod, snapshot: Snapshot) -> str | Unschedulable:
    """The name of the best node, or the reasons why there is none."""
    filters = _Filters(pod, snapshot)
    fitting = []
    reasons: Counter[str] = Counter()
    for info in snapshot.nodes:
        refused = filters.refuse(info)
        if refused:
            reasons.update(refused)
        else:
            fitting.append(info)
    if not fitting:
        return Unschedulable(len(snapshot.nodes), reasons)
    if len(fitting) == 1:
        return fitting[0].name
    return _best(pod, fitting, snapshot).name


# --- filters --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Closed:
    """Values of a topology label that are closed, and the reason to give."""

    key: str
    values: frozenset[str]
    reason: str


@dataclass(frozen=True)
class _Open:
    """A required affinity term: only these values of the label will do (None: any that exists)."""

    key: str
    values: frozenset[str] | None


class _Filters:
    """What one pod requires, prepared once and asked per node."""

    def __init__(self, pod: Pod, snapshot: Snapshot) -> None:
        self._pod = pod
        self._requests: Resources = pod_requests(pod.spec)
        self._ports = host_ports(pod.spec)
        self._closed = _closed(pod, snapshot)
        self._open = _open(pod, snapshot)
        self._spread = [
            _Spread(pod, constraint, snapshot)
            for constraint in pod.spec.topology_spread_constraints
            if constraint.when_unsatisfiable == "DoNotSchedule"
        ]

    def refuse(self, info: NodeInfo) -> Sequence[str]:
        """The reasons of the first filter that refuses the node; empty when it fits."""
        for check in _CHECKS:
            reasons = check(self, info)
            if reasons:
                return reasons
        return ()

    def unschedulable(self, info: NodeInfo) -> Sequence[str]:
        assert info.node is not None
        if info.node.spec.unschedulable and not any(
            tolerates(t, UNSCHEDULABLE_TAINT) for t in self._pod.spec.tolerations
        ):
            return (CORDONED,)
        return ()

    def taints(self, info: NodeInfo) -> Sequence[str]:
        if not info.taints:
            return ()
        taint = untolerated(info.taints, self._pod.spec.tolerations, ("NoSchedule", "NoExecute"))
        if taint is None:
            return ()
        return (f"node(s) had untolerated taint {{{taint.key}: {taint.value}}}",)

    def affinity(self, info: NodeInfo) -> Sequence[str]:
        fits = node_affinity_fits(self._pod.spec, info.labels, info.name)
        return () if fits else (NODE_AFFINITY,)

    def ports(self, info: NodeInfo) -> Sequence[str]:
        return (PORTS,) if ports_conflict(self._ports, info.ports) else ()

    def resources(self, info: NodeInfo) -> Sequence[str]:
        reasons = []
        limit = info.allocatable.get("pods")
        if limit is not None and len(info.pods) + 1 > limit:
            reasons.append(TOO_MANY)
        for name, need in self._requests.items():
            # A node that reports no allocatable at all (not up yet) is not judged by it.
            if not info.allocatable or need <= 0:
                continue
            if need > info.allocatable.get(name, 0) - info.used.get(name, 0):
                reasons.append(f"Insufficient {name}")
        return reasons

    def spread(self, info: NodeInfo) -> Sequence[str]:
        for constraint in self._spread:
            reason = constraint.refuse(info)
            if reason:
                return (reason,)
        return ()

    def pods(self, info: NodeInfo) -> Sequence[str]:
        for open_ in self._open:
            value = info.topology(open_.key)
            if value is None or (open_.values is not None and value not in open_.values):
                return (AFFINITY,)
        for closed in self._closed:
            if info.topology(closed.key) in closed.values:
                return (closed.reason,)
        return ()


_CHECKS: tuple[Callable[[_Filters, NodeInfo], Sequence[str]], ...] = (
    _Filters.unschedulable,
    _Filters.taints,
    _Filters.affinity,
    _Filters.ports,
    _Filters.resources,
    _Filters.spread,
    _Filters.pods,
)


def _closed(pod: Pod, snapshot: Snapshot) -> list[_Closed]:
    closed = []
    for term in anti_affinity(pod):
        counts = snapshot.count(snapshot.term(pod, term))
        values = snapshot.per_topology(counts, term.topology_key)
        closed.append(_Closed(term.topology_key, frozenset(values), ANTI_AFFINITY))
    for key, values in snapshot.forbidden_for(pod):
        closed.append(_Closed(key, frozenset(values), EXISTING_ANTI))
    return closed


def _open(pod: Pod, snapshot: Snapshot) -> list[_Open]:
    affinity = pod.spec.affinity and pod.spec.affinity.pod_affinity
    terms = affinity.required_during_scheduling_ignored_during_execution if affinity else []
    keys: list[tuple[PodAffinityTerm, Term]] = [(t, snapshot.term(pod, t)) for t in terms]
    values = [snapshot.per_topology(snapshot.count(k), t.topology_key) for t, k in keys]
    if not any(values) and all(snapshot.matches(k, pod) for _, k in keys):
        # The first pod of a group that wants to be together may start anywhere.
        return [_Open(t.topology_key, None) for t, _ in keys]
    return [_Open(t.topology_key, frozenset(v)) for (t, _), v in zip(keys, values, strict=True)]


class _Spread:
    """One DoNotSchedule constraint: counts per domain over the nodes that take part."""

    def __init__(self, pod: Pod, constraint: TopologySpreadConstraint, snapshot: Snapshot) -> None:
        self._key = constraint.topology_key
        self._max_skew = constraint.max_skew
        term = snapshot.own_term(pod, spread_selector(pod, constraint))
        self._self = int(snapshot.matches(term, pod))
        counts = snapshot.count(term)
        self._domains: Counter[str] = Counter()
        for info in snapshot.nodes:
            value = info.topology(self._key)
            if value is not None and _takes_part(pod, constraint, info):
                self._domains[value] += counts.get(info.name, 0)
        least = min(self._domains.values(), default=0)
        if constraint.min_domains and len(self._domains) < constraint.min_domains:
            least = 0
        self._least = least

    def refuse(self, info: NodeInfo) -> str:
        value = info.topology(self._key)
        if value is None:
            return SPREAD_LABEL
        skew = self._domains.get(value, 0) + self._self - self._least
        return SPREAD if skew > self._max_skew else ""


def spread_selector(pod: Pod, constraint: TopologySpreadConstraint) -> LabelSelector | None:
    """The constraint's selector with the pod's own values of `matchLabelKeys`."""
    selector = constraint.label_selector
    if selector is None or not constraint.match_label_keys:
        return selector
    labels = pod.metadata.labels
    extra = [
        Requirement(key=key, operator="In", values=[labels[key]])
        for key in constraint.match_label_keys
        if key in labels
    ]
    return LabelSelector(
        match_labels=selector.match_labels,
        match_expressions=[*(selector.match_expressions or ()), *extra],
    )


def _takes_part(pod: Pod, constraint: TopologySpreadConstraint, info: NodeInfo) -> bool:
    if constraint.node_affinity_policy != "Ignore" and not node_affinity_fits(
        pod.spec, info.labels, info.name
    ):
        return False
    if constraint.node_taints_policy != "Honor":
        return True
    return untolerated(info.taints, pod.spec.tolerations, ("NoSchedule", "NoExecute")) is None


# --- scores ---------------------------------------------------------------------------------------


def _best(pod: Pod, fitting: Sequence[NodeInfo], snapshot: Snapshot) -> NodeInfo:
    """Preferences first; then fewest pods of the same controller on the node, in the zone; then
    the emptiest node."""
    wishes = _wishes(pod, fitting, snapshot)
    controller = pod.metadata.controller
    owner = controller.uid if controller else ""
    in_zone: dict[str, float] = {}
    if owner and len(snapshot.zones) > 1:
        for zone, nodes in snapshot.zones.items():
            in_zone[zone] = sum(n.owners.get(owner, 0) for n in nodes) / len(nodes)

    def rank(info: NodeInfo) -> tuple[float, float, float, float, int, str]:
        soft = sum(
            taint.effect == "PreferNoSchedule"
            and not any(tolerates(t, taint) for t in pod.spec.tolerations)
            for taint in info.taints
        )
        return (
            soft,
            -wishes.get(info.name, 0.0),
            info.owners.get(owner, 0) if owner else 0,
            in_zone.get(info.labels.get(ZONE, ""), 0.0),
            len(info.pods),
            info.name,
        )

    return min(fitting, key=rank)


def _wishes(pod: Pod, fitting: Sequence[NodeInfo], snapshot: Snapshot) -> dict[str, float]:
    """The sum of preferred node affinity, pod (anti-)affinity and soft spreading per node, each
    normalised to 0..1 so that no kind of wish drowns the others."""
    parts = []
    affinity = pod.spec.affinity
    if affinity is not None:
        if affinity.node_affinity is not None:
            parts.append(_wished_nodes(pod, fitting))
        if affinity.pod_affinity is not None or affinity.pod_anti_affinity is not None:
            parts.append(_wished_neighbours(pod, fitting, snapshot))
    soft = [
        c for c in pod.spec.topology_spread_constraints if c.when_unsatisfiable == "ScheduleAnyway"
    ]
    if soft:
        parts.append(_soft_spread(pod, soft, fitting, snapshot))
    total: Counter[str] = Counter()
    for part in parts:
        low, high = min(part.values()), max(part.values())
        if high > low:
            for name, value in part.items():
                total[name] += (value - low) / (high - low)  # type: ignore[assignment]
    return dict(total)


def _wished_nodes(pod: Pod, fitting: Sequence[NodeInfo]) -> dict[str, float]:
    assert pod.spec.affinity is not None
    assert pod.spec.affinity.node_affinity is not None
    terms = pod.spec.affinity.node_affinity.preferred_during_scheduling_ignored_during_execution
    return {
        info.name: float(
            sum(t.weight for t in terms if matches_term(t.preference, info.labels, info.name))
        )
        for info in fitting
    }


def _wished_neighbours(
    pod: Pod, fitting: Sequence[NodeInfo], snapshot: Snapshot
) -> dict[str, float]:
    scores = {info.name: 0.0 for info in fitting}
    assert pod.spec.affinity is not None
    sides: tuple[tuple[PodAffinity | None, int], ...] = (
        (pod.spec.affinity.pod_affinity, 1),
        (pod.spec.affinity.pod_anti_affinity, -1),
    )
    for side, sign in sides:
        for wish in side.preferred_during_scheduling_ignored_during_execution if side else ():
            term = wish.pod_affinity_term
            counts = snapshot.count(snapshot.term(pod, term))
            values = snapshot.per_topology(counts, term.topology_key)
            for info in fitting:
                value = info.topology(term.topology_key)
                if value is not None:
                    scores[info.name] += sign * wish.weight * values.get(value, 0)
    return scores


def _soft_spread(
    pod: Pod,
    constraints: Sequence[TopologySpreadConstraint],
    fitting: Sequence[NodeInfo],
    snapshot: Snapshot,
) -> dict[str, float]:
    scores = {info.name: 0.0 for info in fitting}
    for constraint in constraints:
        term = snapshot.own_term(pod, spread_selector(pod, constraint))
        values = snapshot.per_topology(snapshot.count(term), constraint.topology_key)
        worst = max(values.values(), default=0) + 1
        for info in fitting:
            value = info.topology(constraint.topology_key)
            scores[info.name] -= worst if value is None else values.get(value, 0)
    return scores
