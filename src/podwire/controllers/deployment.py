"""Deployments: one ReplicaSet per pod template; rollouts move replicas between them.

The controller never touches pods. Every pass reads the Deployment's ReplicaSets, makes at most one
kind of move (create the new set, scale some, collect old ones) and writes the status; the sets'
own changes bring the next pass. Source: pkg/controller/deployment.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from podwire.client import Change, WorkQueue
from podwire.controllers import rollout
from podwire.controllers.claims import apply_claims, plan_claims
from podwire.controllers.cluster import Cluster
from podwire.controllers.podcontrol import Owner, controller_ref, is_namespace_going
from podwire.controllers.views import POD, Pod, raw
from podwire.errors import AlreadyExistsError, ApiError
from podwire.objects import kinds
from podwire.objects.apps import Deployment, ReplicaSet, TimedCondition
from podwire.objects.meta import JsonObject, Key

_COMPONENT = "deployment-controller"
# How long a write may stay unseen before the cache is believed again.
_STALE_S = 5.0


def plan_new_set(d: Deployment, sets: Sequence[ReplicaSet], revision: int) -> JsonObject:
    """The ReplicaSet of the Deployment's current template."""
    label = {rollout.HASH_LABEL: rollout.template_hash(d.spec.template, d.status.collision_count)}
    template = d.spec.template
    meta = template.get("metadata") or {}
    labels = {**(meta.get("labels") or {}), **label}
    selector = raw(d.spec.selector)
    selector["matchLabels"] = {**(selector.get("matchLabels") or {}), **label}
    spec: JsonObject = {
        "replicas": rollout.new_replicas(d, sets, 0),
        "selector": selector,
        "template": {**template, "metadata": {**meta, "labels": labels}},
    }
    if d.spec.min_ready_seconds:
        spec["minReadySeconds"] = d.spec.min_ready_seconds
    return {
        "metadata": {
            "name": f"{d.metadata.name}-{label[rollout.HASH_LABEL]}",
            "namespace": d.metadata.namespace,
            "labels": labels,
            "annotations": rollout.new_annotations(d, None, revision),
            "ownerReferences": [controller_ref(kinds.DEPLOYMENT, d)],
        },
        "spec": spec,
    }


class DeploymentController:
    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._queue: WorkQueue[Key] = WorkQueue(_COMPONENT, self._reconcile)
        self._objects = cluster.informer(kinds.DEPLOYMENT).objects
        self._sets = cluster.owned(kinds.REPLICA_SET)
        self._pods = cluster.owned(POD)
        # Sets just written, by Deployment: the pass waits until the cache shows them.
        self._written: dict[str, dict[str, tuple[str, float]]] = {}
        cluster.informer(kinds.DEPLOYMENT).on_change(self._changed)
        cluster.informer(kinds.REPLICA_SET).on_change(self._set_changed)
        cluster.pods.on_change(self._pod_changed)

    async def run(self) -> None:
        await self._queue.run()

    # --- observing ---

    def _changed(self, change: Change[Deployment]) -> None:
        if change.new is None:
            assert change.old is not None
            self._written.pop(change.old.metadata.uid, None)
        else:
            self._queue.add(change.key)

    def _set_changed(self, change: Change[ReplicaSet]) -> None:
        for rs in (change.new, change.old):
            if rs is None:
                continue
            ref = rs.metadata.controller
            if ref is not None:
                self._queue.add(Key(rs.metadata.namespace, ref.name))
            elif rs is change.new and (
                change.old is None or change.old.metadata.labels != rs.metadata.labels
            ):
                for key, d in self._objects.items():
                    if key.namespace == rs.metadata.namespace and d.spec.selector.matches(
                        rs.metadata.labels
                    ):
                        self._queue.add(key)

    def _pod_changed(self, change: Change[Pod]) -> None:
        """Recreate waits for the last pod of the old set, which no ReplicaSet change reports."""
        if change.new is not None and not change.new.finished:
            return
        pod = change.new or change.old
        assert pod is not None
        ref = pod.metadata.controller
        if ref is None or ref.kind != "ReplicaSet":
            return
        rs = self._cluster.live(kinds.REPLICA_SET, Key(pod.metadata.namespace, ref.name), ref.uid)
        owner = rs.metadata.controller if rs else None
        if owner is not None:
            key = Key(pod.metadata.namespace, owner.name)
            d = self._objects.get(key)
            if d is not None and d.spec.strategy.type == "Recreate":
                self._queue.add_after(key, self._cluster.config.settle_s)

    # --- one pass ---

    async def _reconcile(self, key: Key) -> float | None:
        d = self._objects.get(key)
        if d is None:
            return None
        owner = Owner(kinds.DEPLOYMENT, d, _COMPONENT)
        claims = plan_claims(
            d.spec.selector,
            self._sets.owned(d.metadata.uid),
            self._sets.orphans(key.namespace),
            deleting=d.deleting,
        )
        if await apply_claims(self._cluster, owner, kinds.REPLICA_SET, claims):
            return None
        stale_s = self._stale_s(d, claims.kept)
        if stale_s is not None:
            return stale_s
        return await self._pass(d, claims.kept)

    def _stale_s(self, d: Deployment, sets: Sequence[ReplicaSet]) -> float | None:
        """Seconds to wait at most while the cache does not show our last writes yet."""
        written = self._written.get(d.metadata.uid, {})
        shown = {s.metadata.name: s.metadata.resource_version for s in sets}
        now = time.monotonic()
        for name, (version, at) in list(written.items()):
            if now - at > _STALE_S or (name in shown and _reached(shown[name], version)):
                del written[name]
        return _STALE_S if written else None

    async def _pass(self, d: Deployment, sets: list[ReplicaSet]) -> float | None:
        new = rollout.find_new(d, sets)
        old = [s for s in sets if s is not new]
        note: TimedCondition | None = None
        if not d.deleting:
            if d.spec.paused:
                note = _pause_note(d)
                await self._scale(d, sets, rollout.plan_proportional(d, new, old))
            else:
                note = _resume_note(d)
                if rollout.is_scaling(d, sets):
                    await self._scale(d, sets, rollout.plan_proportional(d, new, old))
                else:
                    note = await self._roll(d, new, old) or note
            if rollout.complete(d, rollout.status_numbers(d, new, sets)) or d.spec.paused:
                for s in rollout.plan_history(d, old):
                    await self._cluster.delete(kinds.REPLICA_SET, s)
        return await self._write_status(d, new, sets, note)

    async def _roll(
        self, d: Deployment, new: ReplicaSet | None, old: Sequence[ReplicaSet]
    ) -> TimedCondition | None:
        if d.spec.strategy.type == "Recreate":
            active = {s.metadata.name: 0 for s in old if s.spec.replicas}
            if active:
                await self._scale(d, old, active)
                return None
            if any(not p.finished for s in old for p in self._pods.owned(s.metadata.uid)):
                return None
        revision = max((rollout.revision_of(s) for s in old), default=0) + 1
        if new is None:
            return await self._create(d, old, revision)
        note = await self._adopt_revision(d, new, revision)
        if d.spec.strategy.type == "Recreate":
            if new.spec.replicas != d.spec.replicas:
                await self._scale(d, [new], {new.metadata.name: d.spec.replicas})
        else:
            await self._scale(d, [*old, new], rollout.plan_rolling(d, new, old))
        return note

    async def _create(
        self, d: Deployment, old: Sequence[ReplicaSet], revision: int
    ) -> TimedCondition | None:
        body = plan_new_set(d, old, revision)
        name = body["metadata"]["name"]
        try:
            made = await self._cluster.api.create(kinds.REPLICA_SET, body)
        except AlreadyExistsError:
            await self._collided(d, name)
            return None
        except ApiError as error:
            if is_namespace_going(error):
                return None
            message = f'Failed to create new replica set "{name}": {error.message}'
            self._say(d, "Warning", "ReplicaSetCreateError", message)
            return _progressing("False", "ReplicaSetCreateError", error.message)
        self._wrote(d, made)
        if body["spec"]["replicas"]:
            self._scaled_event(d, name, 0, body["spec"]["replicas"])
        await self._write_revision(d, str(revision))
        return _progressing("True", "NewReplicaSetCreated", f'Created new replica set "{name}"')

    async def _collided(self, d: Deployment, name: str) -> None:
        """The name is taken: by our own set not yet seen, or by another template's hash."""
        taken = await self._cluster.api.get(kinds.REPLICA_SET, name, d.metadata.namespace)
        ref = taken.metadata.controller
        if (
            ref is not None
            and ref.uid == d.metadata.uid
            and rollout.same_template(taken.spec.template, d.spec.template)
        ):
            return
        count = {"collisionCount": d.status.collision_count + 1}
        await self._cluster.patch_status(kinds.DEPLOYMENT, d, count)

    async def _adopt_revision(
        self, d: Deployment, new: ReplicaSet, revision: int
    ) -> TimedCondition | None:
        """The existing set of this template (a rollback, usually) becomes the newest revision."""
        changed = rollout.new_annotations(d, new, revision)
        body: dict[str, Any] = {}
        if changed:
            body["metadata"] = {"annotations": changed}
        if new.spec.min_ready_seconds != d.spec.min_ready_seconds:
            body["spec"] = {"minReadySeconds": d.spec.min_ready_seconds}
        if body:
            written = await self._cluster.patch(kinds.REPLICA_SET, new, body)
            if written is not None:
                self._wrote(d, written)
        mine = changed.get(rollout.REVISION) or new.metadata.annotations.get(rollout.REVISION)
        await self._write_revision(d, mine or str(revision))
        if any(c.type == "Progressing" for c in d.status.conditions):
            return None
        return _progressing(
            "True", "FoundNewReplicaSet", f'Found new replica set "{new.metadata.name}"'
        )

    async def _write_revision(self, d: Deployment, revision: str) -> None:
        if d.metadata.annotations.get(rollout.REVISION) != revision:
            body = {"metadata": {"annotations": {rollout.REVISION: revision}}}
            await self._cluster.patch(kinds.DEPLOYMENT, d, body)

    async def _scale(
        self, d: Deployment, sets: Sequence[ReplicaSet], scales: rollout.Scales
    ) -> None:
        annotations = rollout.size_annotations(d)
        for s in sets:
            size = scales.get(s.metadata.name, s.spec.replicas)
            same = annotations.items() <= s.metadata.annotations.items()
            if size == s.spec.replicas and (same or not s.spec.replicas):
                continue
            body = {"metadata": {"annotations": annotations}, "spec": {"replicas": size}}
            written = await self._cluster.patch(kinds.REPLICA_SET, s, body)
            if written is not None:
                self._wrote(d, written)
            if size != s.spec.replicas:
                self._scaled_event(d, s.metadata.name, s.spec.replicas, size)

    def _wrote(self, d: Deployment, written: Any) -> None:
        shown = self._cluster.informer(kinds.REPLICA_SET).objects.get(written.key)
        version = written.metadata.resource_version
        if shown is None or not _reached(shown.metadata.resource_version, version):
            self._written.setdefault(d.metadata.uid, {})[written.metadata.name] = (
                version,
                time.monotonic(),
            )

    async def _write_status(
        self,
        d: Deployment,
        new: ReplicaSet | None,
        sets: Sequence[ReplicaSet],
        note: TimedCondition | None,
    ) -> float | None:
        status = rollout.plan_status(d, new, sets, self._cluster.now(), note)
        was = raw(d.status)
        numbers = {k: v for k, v in status.numbers.items() if was.get(k, 0) != v}
        body: dict[str, Any] = dict(numbers)
        if status.conditions != d.status.conditions:
            body["conditions"] = [raw(c) for c in status.conditions]
        if body:
            await self._cluster.patch_status(kinds.DEPLOYMENT, d, body)
        return status.check_s

    def _scaled_event(self, d: Deployment, name: str, was: int, size: int) -> None:
        way = "up" if size > was else "down"
        text = f"Scaled {way} replica set {name} from {was} to {size}"
        self._say(d, "Normal", "ScalingReplicaSet", text)

    def _say(self, d: Deployment, event_type: str, reason: str, message: str) -> None:
        self._cluster.events.say(_COMPONENT, kinds.DEPLOYMENT, d, event_type, reason, message)


def _reached(shown: str, written: str) -> bool:
    """Versions are opaque by contract, but every server numbers them upwards."""
    try:
        return int(shown) >= int(written)
    except ValueError:
        return shown == written


def _progressing(status: str, reason: str, message: str) -> TimedCondition:
    return TimedCondition(type="Progressing", status=status, reason=reason, message=message)


def _pause_note(d: Deployment) -> TimedCondition | None:
    current = next((c for c in d.status.conditions if c.type == "Progressing"), None)
    if current is not None and current.reason in ("DeploymentPaused", "ProgressDeadlineExceeded"):
        return None
    return _progressing("Unknown", "DeploymentPaused", "Deployment is paused")


def _resume_note(d: Deployment) -> TimedCondition | None:
    current = next((c for c in d.status.conditions if c.type == "Progressing"), None)
    if current is not None and current.reason == "DeploymentPaused":
        return _progressing("Unknown", "DeploymentResumed", "Deployment is resumed")
    return None
