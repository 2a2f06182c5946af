"""DaemonSets: one pod on every node that suits; the scheduler binds it there.

Each pod is pinned to its node by a required node affinity on `metadata.name`, as upstream, so that
resources and ports are still judged in one place. Source: pkg/controller/daemon.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field

import msgspec

from podwire.client import Change
from podwire.controllers import history
from podwire.controllers.cluster import Cluster
from podwire.controllers.history import Revisions
from podwire.controllers.podcontrol import PodTemplate
from podwire.controllers.podstate import available_in_s
from podwire.controllers.revisioned import Revisioned
from podwire.controllers.rollout import scaled
from podwire.controllers.views import Pod, PodSpec
from podwire.objects import kinds
from podwire.objects.apps import DaemonSet, RollingUpdate
from podwire.objects.core import Node
from podwire.objects.daemons import daemon_template, suits
from podwire.objects.meta import JsonObject, Key, LabelSelector

GENERATION_LABEL = "pod-template-generation"
_FAILED_MIN_S, _FAILED_MAX_S = 1.0, 900.0


def pinned(template: JsonObject, node: str) -> JsonObject:
    """The template with required affinity to one node; other required terms give way."""
    spec = dict(template.get("spec") or {})
    affinity = dict(spec.get("affinity") or {})
    node_affinity = dict(affinity.get("nodeAffinity") or {})
    field_ = {"key": "metadata.name", "operator": "In", "values": [node]}
    required = node_affinity.get("requiredDuringSchedulingIgnoredDuringExecution") or {}
    terms = [
        {**term, "matchFields": [field_]} for term in required.get("nodeSelectorTerms") or []
    ] or [{"matchFields": [field_]}]
    node_affinity["requiredDuringSchedulingIgnoredDuringExecution"] = {"nodeSelectorTerms": terms}
    affinity["nodeAffinity"] = node_affinity
    spec["affinity"] = affinity
    return {**template, "spec": spec}


def node_of(pod: Pod) -> str:
    """The node a daemon pod is on or was made for."""
    if pod.spec.node_name:
        return pod.spec.node_name
    affinity = pod.spec.affinity and pod.spec.affinity.node_affinity
    required = affinity and affinity.required_during_scheduling_ignored_during_execution
    for term in required.node_selector_terms if required else ():
        for requirement in term.match_fields:
            if requirement.key == "metadata.name" and requirement.values:
                return requirement.values[0]
    return ""


@dataclass(frozen=True)
class DaemonSetPlan:
    create: list[str] = field(default_factory=list)
    """Names of nodes that need a pod."""
    delete: list[Pod] = field(default_factory=list)
    failed: list[tuple[str, Pod]] = field(default_factory=list)
    """(node, pod) that failed: to be replaced, but not for ever at once."""
    status: dict[str, int] = field(default_factory=dict)
    requeue_s: float | None = None


class _Planner:
    def __init__(
        self,
        ds: DaemonSet,
        spec: PodSpec,
        pods: Sequence[Pod],
        nodes: Sequence[Node],
        update: str,
        now: dt.datetime,
    ) -> None:
        self.ds, self.update = ds, update
        self.min_ready_s, self.now = ds.spec.min_ready_seconds, now
        self.fits = {n.metadata.name: suits(spec, n) for n in nodes}
        self.by_node: dict[str, list[Pod]] = {}
        for pod in sorted(pods, key=lambda p: (not p.ready, p.metadata.creation_timestamp or "")):
            self.by_node.setdefault(node_of(pod), []).append(pod)
        self.create: list[str] = []
        self.delete: list[Pod] = []
        self.failed: list[tuple[str, Pod]] = []
        self.requeue_s: float | None = None
        rolling = ds.spec.update_strategy.rolling_update or RollingUpdate()
        desired = sum(runs for runs, _ in self.fits.values())
        self.surge = scaled(rolling.max_surge, desired, up=True, default=0)
        self.max_unavailable = scaled(rolling.max_unavailable, desired, up=True, default=1)
        if self.surge == 0:
            self.max_unavailable = max(1, self.max_unavailable)

    def available(self, pod: Pod) -> bool:
        due = available_in_s(pod, self.min_ready_s, self.now)
        if due:
            self.requeue_s = min(due, self.requeue_s or due)
        return due == 0 and not pod.deleting

    def is_new(self, pod: Pod) -> bool:
        return pod.metadata.labels.get(history.REVISION_LABEL) == self.update

    def manage(self) -> None:
        """Pods where they should be, none where they should not."""
        for name, (runs, stays) in self.fits.items():
            live = [p for p in self.by_node.get(name, []) if not p.deleting]
            failed = [p for p in live if p.finished]
            live = [p for p in live if not p.finished]
            if not stays:
                self.delete += live
                continue
            self.failed += [(name, p) for p in failed if p.status.phase == "Failed"]
            self.delete += [p for p in failed if p.status.phase != "Failed"]
            if live:
                self._dedupe(live)
            elif runs and not failed and not self.by_node.get(name):
                self.create.append(name)
        for name, pods in self.by_node.items():
            if name not in self.fits:
                self.delete += [p for p in pods if not p.deleting]

    def _dedupe(self, live: list[Pod]) -> None:
        if len(live) < 2:
            return
        if self.surge:
            new = next((p for p in live if self.is_new(p)), None)
            old = next((p for p in live if not self.is_new(p)), None)
            if new is not None and old is not None:
                if self.available(new) or not self.available(old):
                    self.delete.append(old)
                self.delete += [p for p in live if p is not new and p is not old]
                return
        self.delete += live[1:]

    def roll(self) -> None:
        """RollingUpdate: replace old pods, at most `maxUnavailable` nodes without one."""
        if (
            self.ds.spec.update_strategy.type != "RollingUpdate"
            or self.create
            or self.delete
            or self.failed
        ):
            return
        unavailable = surging = 0
        candidates: list[tuple[str, Pod]] = []
        for name, (runs, _) in self.fits.items():
            if not runs:
                continue
            pods = self.by_node.get(name, [])
            old = next((p for p in pods if not self.is_new(p) and not p.deleting), None)
            if any(self.available(p) for p in pods):
                if old is not None:
                    candidates.append((name, old))
            else:
                unavailable += 1
                if old is not None:
                    # It serves nobody: replacing it costs nothing.
                    self.delete.append(old)
            surging += len(pods) > 1
        if self.surge:
            lonely = [name for name, _ in candidates if len(self.by_node[name]) == 1]
            self.create += lonely[: max(0, self.surge - surging)]
        else:
            room = max(0, self.max_unavailable - unavailable)
            self.delete += [pod for _, pod in candidates[:room]]

    def status(self) -> dict[str, int]:
        counts = dict.fromkeys(("desired", "current", "mis", "ready", "available", "updated"), 0)
        for name, (runs, _) in self.fits.items():
            pods = [p for p in self.by_node.get(name, []) if not p.finished]
            if not runs:
                counts["mis"] += bool(pods)
                continue
            counts["desired"] += 1
            if pods:
                counts["current"] += 1
                first = pods[0]
                counts["ready"] += first.ready
                counts["available"] += self.available(first)
                counts["updated"] += self.is_new(first)
        return {
            "observedGeneration": self.ds.metadata.generation,
            "desiredNumberScheduled": counts["desired"],
            "currentNumberScheduled": counts["current"],
            "numberMisscheduled": counts["mis"],
            "numberReady": counts["ready"],
            "numberAvailable": counts["available"],
            "numberUnavailable": counts["desired"] - counts["available"],
            "updatedNumberScheduled": counts["updated"],
        }


def plan_daemon_set(
    ds: DaemonSet, pods: Sequence[Pod], nodes: Sequence[Node], update: str, now: dt.datetime
) -> DaemonSetPlan:
    """`update` is the hash of the current template's revision."""
    template = daemon_template(ds.spec.template)
    spec = msgspec.convert(template.get("spec") or {}, PodSpec)
    planner = _Planner(ds, spec, pods, nodes, update, now)
    if not ds.deleting:
        planner.manage()
        planner.roll()
    status = planner.status()
    return DaemonSetPlan(planner.create, planner.delete, planner.failed, status, planner.requeue_s)


class FailedBackoff:
    """How long a node's failed daemon pod stays before it is replaced: at once the first time, then
    1 s doubled up to 15 minutes, forgotten after twice that without a failure (upstream's
    failedPodsBackoff). Keys are (DaemonSet uid, generation, node)."""

    def __init__(self) -> None:
        self._waits: dict[tuple[str, int, str], tuple[float, dt.datetime]] = {}

    def due_in_s(self, key: tuple[str, int, str], now: dt.datetime) -> float:
        """0 when the pod may be replaced now; then the next one has to wait longer."""
        wait_s, since = self._waits.get(key, (0.0, now))
        passed_s = (now - since).total_seconds()
        if passed_s < wait_s:
            return wait_s - passed_s
        if passed_s > 2 * _FAILED_MAX_S:
            wait_s = 0.0
        self._waits[key] = (min(max(wait_s * 2, _FAILED_MIN_S), _FAILED_MAX_S), now)
        return 0.0

    def forget(self, uid: str) -> None:
        self._waits = {key: wait for key, wait in self._waits.items() if key[0] != uid}


class DaemonSetController(Revisioned[DaemonSet, DaemonSetPlan]):
    kind = kinds.DAEMON_SET
    component = "daemonset-controller"

    def __init__(self, cluster: Cluster) -> None:
        super().__init__(cluster)
        self._backoff = FailedBackoff()
        self._nodes: Mapping[Key, Node] = cluster.informer(kinds.NODE).objects
        cluster.informer(kinds.NODE).on_change(self._node_changed)

    def selector(self, obj: DaemonSet) -> LabelSelector:
        return obj.spec.selector

    def _node_changed(self, change: Change[Node]) -> None:
        old, new = change.old, change.new
        if (
            old is not None
            and new is not None
            and old.metadata.labels == new.metadata.labels
            and old.spec.taints == new.spec.taints
        ):
            return
        for key in self.objects:
            self.queue.add(key)

    def gone(self, obj: DaemonSet) -> None:
        self._backoff.forget(obj.metadata.uid)

    def plan(self, obj: DaemonSet, pods: Sequence[Pod], revisions: Revisions) -> DaemonSetPlan:
        nodes = list(self._nodes.values())
        return plan_daemon_set(obj, pods, nodes, _hash(revisions), self.cluster.now())

    def in_use(self, obj: DaemonSet, pods: Sequence[Pod], revisions: Revisions) -> Set[str]:
        hashes = {p.metadata.labels.get(history.REVISION_LABEL) for p in pods}
        return {
            r.metadata.name
            for r in revisions.every
            if r.metadata.labels.get(history.HASH_LABEL) in hashes
        }

    def _due(
        self, obj: DaemonSet, failed: Sequence[tuple[str, Pod]]
    ) -> tuple[list[Pod], float | None]:
        """Of the failed pods, those to replace now, and when the next one may be."""
        due, waits = [], []
        for node, pod in failed:
            key = (obj.metadata.uid, obj.metadata.generation, node)
            left_s = self._backoff.due_in_s(key, self.cluster.now())
            if left_s > 0:
                waits.append(left_s)
                continue
            due.append(pod)
            text = f"Found failed daemon pod {pod.key} on node {node}, will try to kill it"
            self.cluster.events.say(
                self.component, self.kind, obj, "Warning", "FailedDaemonPod", text
            )
        return due, min(waits, default=None)

    async def apply(
        self, obj: DaemonSet, pods: Sequence[Pod], plan: DaemonSetPlan, revisions: Revisions
    ) -> float | None:
        owner = self.owner(obj)
        replace, retry_s = self._due(obj, plan.failed)
        if plan.delete or replace:
            await self.control.delete(owner, [*plan.delete, *replace])
        if plan.create:
            template = _labelled(obj, _hash(revisions))
            prefix = f"{obj.metadata.name}-"
            bodies = [
                PodTemplate(pinned(template, node), owner).generated(prefix) for node in plan.create
            ]
            await self.control.create_all(owner, bodies)
        return retry_s


def _hash(revisions: Revisions) -> str:
    return revisions.update.metadata.labels.get(history.HASH_LABEL, "")


def _labelled(obj: DaemonSet, update: str) -> JsonObject:
    """The daemon pods' template with the labels that tell its version."""
    template = daemon_template(obj.spec.template)
    meta = template.get("metadata") or {}
    labels = {
        **(meta.get("labels") or {}),
        history.REVISION_LABEL: update,
        GENERATION_LABEL: str(obj.metadata.generation),
    }
    return {**template, "metadata": {**meta, "labels": labels}}
