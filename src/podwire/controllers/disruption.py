"""PodDisruptionBudgets: how many of the selected pods may be evicted right now.

Only the status; the eviction subresource of the API server reads it.
Source: pkg/controller/disruption.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import Any

from podwire.client import Change, WorkQueue
from podwire.controllers.cluster import Cluster
from podwire.controllers.podstate import condition, is_active
from podwire.controllers.rollout import scaled
from podwire.controllers.views import Pod, raw
from podwire.objects import kinds
from podwire.objects.apps import DisruptionBudget
from podwire.objects.core import Condition
from podwire.objects.meta import Key, format_time


def plan_budget(
    budget: DisruptionBudget, pods: Sequence[Pod], expected: int, now: dt.datetime
) -> dict[str, Any]:
    """The status; `expected` is what the pods' controllers want together."""
    healthy = sum(pod.ready and is_active(pod) for pod in pods)
    spec = budget.spec
    if spec.max_unavailable is not None:
        allowed = scaled(spec.max_unavailable, expected, up=True, default=0)
        desired = max(0, expected - allowed)
    elif isinstance(spec.min_available, str):
        desired = scaled(spec.min_available, expected, up=True, default=1)
    else:
        desired = 1 if spec.min_available is None else spec.min_available
        expected = len(pods)
    disruptions = max(0, healthy - desired) if expected > 0 else 0
    return {
        "observedGeneration": budget.metadata.generation,
        "currentHealthy": healthy,
        "desiredHealthy": desired,
        "expectedPods": expected,
        "disruptionsAllowed": disruptions,
        "conditions": [raw(_allowed(budget, disruptions, now))],
    }


def _allowed(budget: DisruptionBudget, disruptions: int, now: dt.datetime) -> Condition:
    status = "True" if disruptions else "False"
    old = condition(budget.status.conditions, "DisruptionAllowed")
    since = old.last_transition_time if old and old.status == status else format_time(now)
    return Condition(
        type="DisruptionAllowed",
        status=status,
        reason="SufficientPods" if disruptions else "InsufficientPods",
        last_transition_time=since,
    )


class DisruptionController:
    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._queue: WorkQueue[Key] = WorkQueue("disruption-controller", self._reconcile)
        self._served = cluster.resources.has(kinds.DISRUPTION_BUDGET)
        if not self._served:
            return
        self._budgets = cluster.informer(kinds.DISRUPTION_BUDGET).objects
        cluster.informer(kinds.DISRUPTION_BUDGET).on_change(self._changed)
        cluster.pods.on_change(self._pod_changed)

    async def run(self) -> None:
        if self._served:
            await self._queue.run()

    def _changed(self, change: Change[DisruptionBudget]) -> None:
        if change.new is not None:
            self._queue.add(change.key)

    def _pod_changed(self, change: Change[Pod]) -> None:
        if not self._budgets:
            return
        pod = change.new or change.old
        assert pod is not None
        for key, budget in self._budgets.items():
            selector = budget.spec.selector
            if (
                key.namespace == pod.metadata.namespace
                and selector is not None
                and selector.matches(pod.metadata.labels)
            ):
                self._queue.add_after(key, self._cluster.config.settle_s * 5)

    async def _reconcile(self, key: Key) -> None:
        budget = self._budgets.get(key)
        if budget is None or budget.spec.selector is None:
            return
        selector = budget.spec.selector
        pods = [
            pod
            for at, pod in self._cluster.pods.objects.items()
            if at.namespace == key.namespace
            and not pod.finished
            and selector.matches(pod.metadata.labels)
        ]
        status = plan_budget(budget, pods, self._expected(pods), self._cluster.now())
        was = raw(budget.status)
        if any(was.get(k, 0) != v for k, v in status.items()):
            await self._cluster.patch_status(kinds.DISRUPTION_BUDGET, budget, status)

    def _expected(self, pods: Sequence[Pod]) -> int:
        """The sum of `replicas` over the pods' controllers; a bare pod counts for itself."""
        wanted: dict[str, int] = {}
        for pod in pods:
            uid, replicas = self._controller(pod)
            wanted[uid] = replicas
        return sum(wanted.values())

    def _controller(self, pod: Pod) -> tuple[str, int]:
        ref = pod.metadata.controller
        if ref is None:
            return pod.metadata.uid, 1
        key = Key(pod.metadata.namespace, ref.name)
        if ref.kind == "StatefulSet":
            found = self._cluster.live(kinds.STATEFUL_SET, key, ref.uid)
            return ref.uid, found.spec.replicas if found else 1
        if ref.kind != "ReplicaSet":
            return pod.metadata.uid, 1
        rs = self._cluster.live(kinds.REPLICA_SET, key, ref.uid)
        if rs is None:
            return ref.uid, 1
        above = rs.metadata.controller
        if above is not None and above.kind == "Deployment":
            owner = Key(pod.metadata.namespace, above.name)
            d = self._cluster.live(kinds.DEPLOYMENT, owner, above.uid)
            if d is not None:
                return above.uid, d.spec.replicas
        return ref.uid, rs.spec.replicas
