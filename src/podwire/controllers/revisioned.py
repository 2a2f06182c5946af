"""The common shape of owners that keep revisions of their pod template: StatefulSet, DaemonSet.

    pods -> revisions -> plan -> status -> apply -> revisions that nothing uses are deleted

A subclass writes `plan` (pure), `apply` and `in_use`.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import Any, Generic, Protocol, TypeVar

from podwire.controllers import history
from podwire.controllers.cluster import Cluster
from podwire.controllers.history import Revisions
from podwire.controllers.podowner import PodOwner
from podwire.controllers.views import Pod
from podwire.objects import kinds
from podwire.objects.apps import DaemonSet, StatefulSet

W = TypeVar("W", StatefulSet, DaemonSet)


class Plan(Protocol):
    @property
    def status(self) -> dict[str, Any]: ...
    @property
    def requeue_s(self) -> float | None: ...


P = TypeVar("P", bound=Plan)


class Revisioned(PodOwner[W], Generic[W, P]):
    def __init__(self, cluster: Cluster) -> None:
        super().__init__(cluster)
        cluster.owned(kinds.CONTROLLER_REVISION)

    def plan(self, obj: W, pods: Sequence[Pod], revisions: Revisions) -> P:
        raise NotImplementedError

    async def apply(
        self, obj: W, pods: Sequence[Pod], plan: P, revisions: Revisions
    ) -> float | None:
        """Do what is planned; seconds until something that has to wait is due."""
        raise NotImplementedError

    def in_use(self, obj: W, pods: Sequence[Pod], revisions: Revisions) -> Set[str]:
        """Names of revisions to keep."""
        raise NotImplementedError

    async def sync(self, obj: W) -> float | None:
        # Asked of the very cache that is planned on: a pod that is reported while a revision or
        # the status is written is not among `pods`, and would be made again.
        waiting_s = self.expectations.pending_s(obj.metadata.uid)
        pods = await self.claimed(obj)
        if pods is None:
            return None
        revisions = await history.ensure_revision(
            self.cluster, self.owner(obj), obj.spec.template, obj.status.collision_count
        )
        if revisions is None:
            return None
        plan = self.plan(obj, pods, revisions)
        await self.write_status(obj, obj.status, plan.status)
        if waiting_s is not None:
            return waiting_s
        retry_s = await self.apply(obj, pods, plan, revisions)
        used = self.in_use(obj, pods, revisions)
        await history.truncate(self.cluster, revisions, used, obj.spec.revision_history_limit)
        return min((s for s in (plan.requeue_s, retry_s) if s is not None), default=None)
