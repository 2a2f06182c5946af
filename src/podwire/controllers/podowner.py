"""The common shape of controllers that own pods: ReplicaSet, StatefulSet, DaemonSet, Job.

object change ----------------------> queue (now)
pod change -> owner index -> owner -> queue (after `settle_s`, so that a burst is one pass)
orphan pod -> matching owners ------> queue (adoption)
"""

from __future__ import annotations

from typing import Generic

from podwire.client import Change, WorkQueue
from podwire.controllers.claims import apply_claims, plan_claims
from podwire.controllers.cluster import Cluster
from podwire.controllers.podcontrol import Expectations, Owner, PodControl
from podwire.controllers.views import POD, Pod, raw
from podwire.objects.meta import JsonObject, Key, Kind, LabelSelector, T, View

# Passes cost in proportion to the pods owned, so that bigger owners are looked at less often.
_SETTLE_PER_POD_S = 1e-4


class PodOwner(Generic[T]):
    """`sync` is what a subclass writes; it returns seconds until it wants to look again."""

    kind: Kind[T]
    component: str
    adopts = True

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.expectations = Expectations()
        self.control = PodControl(cluster, self.expectations)
        self.queue: WorkQueue[Key] = WorkQueue(self.component, self._reconcile)
        self.objects = cluster.informer(self.kind).objects
        self.pods = cluster.owned(POD)
        cluster.informer(self.kind).on_change(self._object_changed)
        cluster.pods.on_change(self._pod_changed)

    async def run(self) -> None:
        await self.queue.run()

    def owner(self, obj: T) -> Owner:
        return Owner(self.kind, obj, self.component)

    def selector(self, obj: T) -> LabelSelector | None:
        """Which pods the object wants; None where it cannot adopt."""
        raise NotImplementedError

    async def sync(self, obj: T) -> float | None:
        raise NotImplementedError

    def gone(self, obj: T) -> None:
        """The object was deleted."""

    async def claimed(self, obj: T) -> list[Pod] | None:
        """The object's pods, or None when claims had to be written first."""
        meta = obj.metadata
        selector = self.selector(obj)
        owned = self.pods.owned(meta.uid)
        if selector is None:
            return owned
        orphans = self.pods.orphans(meta.namespace)
        claims = plan_claims(selector, owned, orphans, deleting=obj.deleting)
        active = [pod for pod in claims.adopt if not pod.finished]
        claims = type(claims)(claims.kept, active, claims.release)
        if await apply_claims(self.cluster, self.owner(obj), POD, claims):
            return None
        return claims.kept

    async def write_status(self, obj: T, was: View, status: JsonObject) -> None:
        """Write the numbers and names of `status` that differ from `was`, the status as read."""
        known = raw(was)
        changed = {k: v for k, v in status.items() if known.get(k, type(v)()) != v}
        if changed:
            await self.cluster.patch_status(self.kind, obj, changed)

    async def _reconcile(self, key: Key) -> float | None:
        obj = self.objects.get(key)
        return None if obj is None else await self.sync(obj)

    def _object_changed(self, change: Change[T]) -> None:
        if change.new is None:
            assert change.old is not None
            self.expectations.forget(change.old.metadata.uid)
            self.gone(change.old)
        else:
            self.queue.add(change.key)

    def _pod_changed(self, change: Change[Pod]) -> None:
        new, old = change.new, change.old
        ref = new.metadata.controller if new is not None else None
        was = old.metadata.controller if old is not None else None
        if ref is not None and ref.kind == self.kind.kind:
            assert new is not None
            self.expectations.observe(ref.uid, change)
            self._wake(new.metadata.namespace, ref.name, ref.uid)
        if was is not None and was.kind == self.kind.kind and (ref is None or ref.uid != was.uid):
            assert old is not None
            if new is None:
                self.expectations.observe(was.uid, change)
            self._wake(old.metadata.namespace, was.name, was.uid)
        if self.adopts and ref is None and new is not None and not new.deleting:
            labels = new.metadata.labels
            if old is None or was is not None or old.metadata.labels != labels:
                self._wake_adopters(new)

    def _wake(self, namespace: str, name: str, uid: str) -> None:
        key = Key(namespace, name)
        if self.expectations.pending_s(uid) is not None:
            return  # the last expected change wakes it
        delay = self.cluster.config.settle_s + self.pods.count(uid) * _SETTLE_PER_POD_S
        self.queue.add_after(key, delay)

    def _wake_adopters(self, pod: Pod) -> None:
        for key, obj in self.objects.items():
            if key.namespace == pod.metadata.namespace:
                selector = self.selector(obj)
                if selector and not selector.empty and selector.matches(pod.metadata.labels):
                    self.queue.add(key)
