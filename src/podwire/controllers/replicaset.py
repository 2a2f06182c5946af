"""ReplicaSets: keep exactly `replicas` active pods that match the selector.

Source: pkg/controller/replicaset.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from podwire.controllers.podcontrol import PodTemplate, is_namespace_going
from podwire.controllers.podowner import PodOwner
from podwire.controllers.podstate import (
    available_in_s,
    condition,
    is_active,
    rank_for_deletion,
)
from podwire.controllers.views import Pod, raw
from podwire.errors import ApiError
from podwire.objects import kinds
from podwire.objects.apps import ReplicaSet
from podwire.objects.core import Condition
from podwire.objects.meta import LabelSelector, format_time

FAILURE = "ReplicaFailure"


@dataclass(frozen=True)
class ReplicaSetPlan:
    """`requeue_s`: when a pod that is Ready becomes available."""

    create: int
    delete: Sequence[Pod]
    status: dict[str, int]
    requeue_s: float | None


def plan_replica_set(
    rs: ReplicaSet, pods: Sequence[Pod], related: Sequence[Pod], now: dt.datetime
) -> ReplicaSetPlan:
    """`pods` are the set's own, `related` those of all sets of the same Deployment."""
    active = [pod for pod in pods if is_active(pod)]
    missing = 0 if rs.deleting else rs.spec.replicas - len(active)
    delete: Sequence[Pod] = ()
    if missing < 0 and not rs.deleting:
        delete = rank_for_deletion(active, related, now)[:-missing]
    status, requeue_s = _count(rs, active, now)
    return ReplicaSetPlan(max(missing, 0), delete, status, requeue_s)


def _count(
    rs: ReplicaSet, active: Sequence[Pod], now: dt.datetime
) -> tuple[dict[str, int], float | None]:
    labels = ((rs.spec.template.get("metadata") or {}).get("labels") or {}).items()
    ready = available = 0
    requeue_s: float | None = None
    for pod in active:
        due = available_in_s(pod, rs.spec.min_ready_seconds, now)
        if due is None:
            continue
        ready += 1
        if due == 0:
            available += 1
        elif requeue_s is None or due < requeue_s:
            requeue_s = due
    status = {
        "replicas": len(active),
        "fullyLabeledReplicas": sum(labels <= pod.metadata.labels.items() for pod in active),
        "readyReplicas": ready,
        "availableReplicas": available,
        "observedGeneration": rs.metadata.generation,
    }
    return status, requeue_s


def plan_failure(
    rs: ReplicaSet, error: ApiError | None, reason: str, now: dt.datetime
) -> list[Condition]:
    """The conditions with ReplicaFailure set or cleared."""
    found = condition(rs.status.conditions, FAILURE)
    if error is None:
        return [c for c in rs.status.conditions if c.type != FAILURE]
    if found is not None and found.message == error.message:
        return rs.status.conditions
    failure = Condition(
        type=FAILURE,
        status="True",
        reason=reason,
        message=error.message,
        last_transition_time=format_time(now),
    )
    return [c for c in rs.status.conditions if c.type != FAILURE] + [failure]


class ReplicaSetController(PodOwner[ReplicaSet]):
    kind = kinds.REPLICA_SET
    component = "replicaset-controller"

    def selector(self, obj: ReplicaSet) -> LabelSelector:
        return obj.spec.selector

    async def sync(self, obj: ReplicaSet) -> float | None:
        pods = await self.claimed(obj)
        if pods is None:
            return None
        now = self.cluster.now()
        waiting_s = self.expectations.pending_s(obj.metadata.uid)
        plan = plan_replica_set(obj, pods, self._related(obj, pods), now)
        error: ApiError | None = None
        reason = ""
        if waiting_s is None:
            if plan.create:
                reason = "FailedCreate"
                template = PodTemplate(obj.spec.template, self.owner(obj))
                prefix = f"{obj.metadata.name}-"
                bodies = [template.generated(prefix) for _ in range(plan.create)]
                error = await self.control.create(self.owner(obj), bodies)
            elif plan.delete:
                reason = "FailedDelete"
                try:
                    await self.control.delete(self.owner(obj), plan.delete)
                except ApiError as failure:
                    error = failure
            conditions = plan_failure(obj, error, reason, now)
        else:
            conditions = obj.status.conditions
        await self._write_status(obj, plan, conditions)
        if error is not None and not is_namespace_going(error):
            raise error
        return min((s for s in (waiting_s, plan.requeue_s) if s is not None), default=None)

    def _related(self, obj: ReplicaSet, pods: Sequence[Pod]) -> Sequence[Pod]:
        controller = obj.metadata.controller
        if controller is None or len(pods) <= obj.spec.replicas:
            return pods
        siblings = self.cluster.owned(kinds.REPLICA_SET).owned(controller.uid)
        return [pod for rs in siblings for pod in self.pods.owned(rs.metadata.uid)]

    async def _write_status(
        self, obj: ReplicaSet, plan: ReplicaSetPlan, conditions: list[Condition]
    ) -> None:
        status = obj.status
        current = {
            "replicas": status.replicas,
            "fullyLabeledReplicas": status.fully_labeled_replicas,
            "readyReplicas": status.ready_replicas,
            "availableReplicas": status.available_replicas,
            "observedGeneration": status.observed_generation,
        }
        if current == plan.status and conditions == status.conditions:
            return
        body: dict[str, Any] = dict(plan.status)
        if conditions != status.conditions:
            body["conditions"] = [raw(c) for c in conditions] or None
        await self.cluster.patch_status(self.kind, obj, body)
