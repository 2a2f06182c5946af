"""StatefulSets: pods with names that stay, made, updated and removed in order.

One pass makes the moves that are allowed now; with OrderedReady that is at most one. The next pod
change brings the next pass. Source: pkg/controller/statefulset/stateful_set_control.go.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from typing import Any

from podwire.controllers import history
from podwire.controllers.cluster import Cluster
from podwire.controllers.history import Revisions
from podwire.controllers.podcontrol import PodTemplate
from podwire.controllers.podstate import available_in_s
from podwire.controllers.revisioned import Revisioned
from podwire.controllers.statefulclaims import StatefulClaims, claim_name
from podwire.controllers.views import Pod
from podwire.objects import kinds
from podwire.objects.apps import StatefulSet
from podwire.objects.meta import JsonObject, LabelSelector

POD_NAME_LABEL = "statefulset.kubernetes.io/pod-name"
POD_INDEX_LABEL = "apps.kubernetes.io/pod-index"


def ordinal_of(obj: StatefulSet, pod: Pod) -> int | None:
    parent, _, number = pod.metadata.name.rpartition("-")
    return int(number) if parent == obj.metadata.name and number.isdigit() else None


def with_ordinals(obj: StatefulSet, pods: Sequence[Pod]) -> list[tuple[int, Pod]]:
    found = ((ordinal_of(obj, pod), pod) for pod in pods)
    return [(ordinal, pod) for ordinal, pod in found if ordinal is not None]


def wanted_ordinals(obj: StatefulSet) -> range:
    start = obj.spec.ordinals.start
    return range(start, start + obj.spec.replicas)


@dataclass(frozen=True)
class Create:
    ordinal: int
    revision: str


@dataclass(frozen=True)
class StatefulSetPlan:
    """What may be done now; `requeue_s`: when a Ready pod becomes available."""

    create: list[Create] = field(default_factory=list)
    delete: list[Pod] = field(default_factory=list)
    status: dict[str, Any] = field(default_factory=dict)
    requeue_s: float | None = None


class _Planner:
    """One pass over the ordinals. `current` and `update` are revision names."""

    def __init__(
        self,
        obj: StatefulSet,
        pods: Sequence[Pod],
        current: str,
        update: str,
        now: dt.datetime,
    ) -> None:
        self.obj = obj
        self.current, self.update = current, update
        self.ordered = obj.spec.pod_management_policy != "Parallel"
        self.start = obj.spec.ordinals.start
        self.due = {
            p.metadata.uid: available_in_s(p, obj.spec.min_ready_seconds, now) for p in pods
        }
        by_ordinal = dict(with_ordinals(obj, pods))
        keep = wanted_ordinals(obj)
        self.wanted = [(i, by_ordinal.get(i)) for i in keep]
        self.condemned = sorted(
            ((i, p) for i, p in by_ordinal.items() if i not in keep),
            reverse=True,
        )
        self.create: list[Create] = []
        self.delete: list[Pod] = []

    def healthy(self, pod: Pod) -> bool:
        return pod.status.phase == "Running" and pod.ready and not pod.deleting

    def available(self, pod: Pod) -> bool:
        return self.healthy(pod) and self.due[pod.metadata.uid] == 0

    def first_unhealthy(self) -> Pod | None:
        pods = [p for _, p in self.wanted if p is not None]
        pods += [p for _, p in reversed(self.condemned)]
        return next((p for p in pods if not self.healthy(p)), None)

    def revision_for(self, ordinal: int) -> str:
        """Old ordinals come back in the old version while an update is under way."""
        strategy = self.obj.spec.update_strategy
        if strategy.type != "RollingUpdate":
            return self.update
        if strategy.rolling_update is None:
            kept = self.obj.status.current_replicas
        else:
            kept = strategy.rolling_update.partition
        return self.current if ordinal < self.start + kept else self.update

    def plan(self) -> None:
        """Wanted pods upwards, surplus ones downwards, then updates; each may stop the rest."""
        _ = self._fill() and self._shrink() and self._update()

    def _fill(self) -> bool:
        for ordinal, pod in self.wanted:
            if pod is None:
                self.create.append(Create(ordinal, self.revision_for(ordinal)))
            elif pod.finished and not pod.deleting:
                self.delete.append(pod)
            elif self.available(pod):
                continue
            if self.ordered:
                return False
        return True

    def _shrink(self) -> bool:
        first = self.first_unhealthy()
        for _, pod in self.condemned:
            if pod.deleting:
                if self.ordered:
                    return False
                continue
            if self.ordered and not self.healthy(pod) and pod is not first:
                return False
            self.delete.append(pod)
            if self.ordered:
                return False
        return True

    def _update(self) -> bool:
        strategy = self.obj.spec.update_strategy
        if strategy.type == "OnDelete":
            return True
        partition = strategy.rolling_update.partition if strategy.rolling_update else 0
        for ordinal, pod in reversed(self.wanted):
            if ordinal < partition:
                break
            if pod is None or pod in self.delete:
                return False
            if revision_label(pod) != self.update and not pod.deleting:
                self.delete.append(pod)
                return False
            if not self.available(pod):
                return False
        return True


def revision_label(pod: Pod) -> str:
    return pod.metadata.labels.get(history.REVISION_LABEL, "")


def plan_stateful_set(
    obj: StatefulSet, pods: Sequence[Pod], current: str, update: str, now: dt.datetime
) -> StatefulSetPlan:
    planner = _Planner(obj, pods, current, update, now)
    if not obj.deleting:
        planner.plan()
    waits = [due for due in planner.due.values() if due]
    status = _status(planner, [p for p in pods if not p.finished])
    return StatefulSetPlan(planner.create, planner.delete, status, min(waits, default=None))


def _status(planner: _Planner, pods: Sequence[Pod]) -> dict[str, Any]:
    obj, current, update = planner.obj, planner.current, planner.update
    ready = sum(planner.healthy(p) for p in pods)
    going = [p for p in pods if not p.deleting]
    updated = sum(revision_label(p) == update for p in going)
    kept = sum(revision_label(p) == current for p in going)
    if (
        obj.spec.update_strategy.type == "RollingUpdate"
        and updated == len(pods) == ready == obj.spec.replicas
    ):
        current, kept = update, updated
    return {
        "observedGeneration": obj.metadata.generation,
        "replicas": len(pods),
        "readyReplicas": ready,
        "availableReplicas": sum(planner.available(p) for p in pods),
        "currentReplicas": kept,
        "updatedReplicas": updated,
        "currentRevision": current,
        "updateRevision": update,
    }


def pod_body(obj: StatefulSet, template: PodTemplate, create: Create) -> JsonObject:
    """The pod of one ordinal, with its identity."""
    name = f"{obj.metadata.name}-{create.ordinal}"
    body = template.named(name)
    meta = body["metadata"]
    identity = {
        POD_NAME_LABEL: name,
        POD_INDEX_LABEL: str(create.ordinal),
        history.REVISION_LABEL: create.revision,
    }
    return {**body, "metadata": {**meta, "labels": {**meta["labels"], **identity}}}


def with_identity(obj: StatefulSet, template: JsonObject, ordinal: int) -> JsonObject:
    """The template with hostname, subdomain and claims of one ordinal."""
    spec = {**(template.get("spec") or {}), "hostname": f"{obj.metadata.name}-{ordinal}"}
    if obj.spec.service_name:
        spec["subdomain"] = obj.spec.service_name
    claims = {
        claim["metadata"]["name"]: {"claimName": claim_name(obj, claim, ordinal)}
        for claim in obj.spec.volume_claim_templates
    }
    if claims:
        others = [v for v in spec.get("volumes") or [] if v["name"] not in claims]
        spec["volumes"] = others + [
            {"name": name, "persistentVolumeClaim": source} for name, source in claims.items()
        ]
    return {**template, "spec": spec}


class StatefulSetController(Revisioned[StatefulSet, StatefulSetPlan]):
    kind = kinds.STATEFUL_SET
    component = "statefulset-controller"

    def __init__(self, cluster: Cluster) -> None:
        super().__init__(cluster)
        self._claims = StatefulClaims(cluster)

    def selector(self, obj: StatefulSet) -> LabelSelector:
        return obj.spec.selector

    def plan(self, obj: StatefulSet, pods: Sequence[Pod], revisions: Revisions) -> StatefulSetPlan:
        mine = [pod for _, pod in with_ordinals(obj, pods)]
        current, update = _current(obj, revisions), revisions.update.metadata.name
        return plan_stateful_set(obj, mine, current, update, self.cluster.now())

    def in_use(self, obj: StatefulSet, pods: Sequence[Pod], revisions: Revisions) -> Set[str]:
        return {*map(revision_label, pods), _current(obj, revisions)}

    async def apply(
        self, obj: StatefulSet, pods: Sequence[Pod], plan: StatefulSetPlan, revisions: Revisions
    ) -> None:
        owner = self.owner(obj)
        if not obj.deleting:
            await self._claims.settle(obj, with_ordinals(obj, pods), wanted_ordinals(obj))
        bodies = []
        for create in plan.create:
            revision = revisions.named(create.revision) or revisions.update
            template = with_identity(obj, history.template_of(revision), create.ordinal)
            await self._claims.ensure(obj, create.ordinal)
            bodies.append(pod_body(obj, PodTemplate(template, owner), create))
        if bodies:
            # A pod of that name that is not ours, or ours not seen yet: look again later.
            await self.control.create_all(owner, bodies)
        for pod in plan.delete:
            if pod.status.phase == "Failed":
                text = f"StatefulSet {obj.key} is recreating failed Pod {pod.metadata.name}"
                self.cluster.events.say(
                    self.component, self.kind, obj, "Warning", "RecreatingFailedPod", text
                )
        if plan.delete:
            await self.control.delete(owner, plan.delete)


def _current(obj: StatefulSet, revisions: Revisions) -> str:
    """The revision the set comes from: the newest one when its own is not known any more."""
    name = obj.status.current_revision
    return name if name and revisions.named(name) else revisions.update.metadata.name
