"""Node life cycle: silent nodes become unreachable, their pods not ready, and are evicted in time.

    Lease renewed -----> last heard (local clock, as upstream: the nodes' clocks do not matter)
    silent for the grace -> Ready=Unknown -> taints unreachable -> pods Ready=False
    taint NoExecute -----> each pod's tolerations -> delete now, later, or never

One timer per node, armed again only when it fires: a heartbeat costs one dictionary write.
Source: pkg/controller/nodelifecycle, pkg/controller/tainteviction.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import time
from collections.abc import Sequence

from podwire.client import Change, PatchType, WorkQueue
from podwire.controllers.cluster import Cluster
from podwire.controllers.conditions import disruption_target
from podwire.controllers.podstate import condition
from podwire.controllers.views import POD, Pod
from podwire.errors import NotFoundError
from podwire.objects import kinds
from podwire.objects.apps import Lease
from podwire.objects.core import Node, Taint, Toleration
from podwire.objects.meta import JsonObject, Key, format_time
from podwire.objects.placement import tolerates

_COMPONENT = "node-controller"
LEASES = "kube-node-lease"
NOT_READY = "node.kubernetes.io/not-ready"
UNREACHABLE = "node.kubernetes.io/unreachable"
CORDONED = "node.kubernetes.io/unschedulable"
_OURS = frozenset((NOT_READY, UNREACHABLE, CORDONED))
_SILENT = "NodeStatusUnknown"
_SILENT_TEXT = "Kubelet stopped posting node status."


def plan_taints(node: Node) -> list[tuple[str, str]]:
    """(key, effect) of the taints this node's conditions call for."""
    ready = condition(node.status.conditions, "Ready")
    wanted = []
    if ready is None:
        # Never heard of: nothing is scheduled there, but nothing is evicted either.
        wanted.append((NOT_READY, "NoSchedule"))
    elif ready.status == "False":
        wanted += [(NOT_READY, "NoSchedule"), (NOT_READY, "NoExecute")]
    elif ready.status != "True":
        wanted += [(UNREACHABLE, "NoSchedule"), (UNREACHABLE, "NoExecute")]
    if node.spec.unschedulable:
        wanted.append((CORDONED, "NoSchedule"))
    return wanted


def taints_differ(node: Node) -> bool:
    have = {(t.key, t.effect) for t in node.spec.taints if t.key in _OURS}
    return have != set(plan_taints(node))


def merge_taints(
    have: Sequence[JsonObject], wanted: Sequence[tuple[str, str]], now: dt.datetime
) -> list[JsonObject]:
    """The node's raw taints with ours brought up to date; others and times are kept."""
    kept = [t for t in have if t["key"] not in _OURS or (t["key"], t["effect"]) in wanted]
    known = {(t["key"], t["effect"]) for t in kept}
    for key, effect in wanted:
        if (key, effect) not in known:
            kept.append({"key": key, "effect": effect, "timeAdded": format_time(now)})
    return kept


def plan_eviction_s(taints: Sequence[Taint], tolerations: Sequence[Toleration]) -> float | None:
    """Seconds a pod may stay under these NoExecute taints; None for ever."""
    limits: list[float] = []
    for taint in taints:
        used = [t for t in tolerations if tolerates(t, taint)]
        if not used:
            return 0.0
        limits += [max(0, t.toleration_seconds) for t in used if t.toleration_seconds is not None]
    return min(limits, default=None)


class NodeLifecycle:
    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._grace_s = cluster.config.node_grace_s
        self._nodes = cluster.informer(kinds.NODE).objects
        self._heard: dict[str, float] = {}
        self._node_queue: WorkQueue[Key] = WorkQueue(_COMPONENT, self._check_node)
        self._pod_queue: WorkQueue[Key] = WorkQueue("taint-eviction-controller", self._check_pod)
        # When a tainted pod must go: (pod uid -> monotonic time).
        self._deadlines: dict[str, float] = {}
        self._marked: set[str] = set()
        _ = cluster.node_pods
        cluster.informer(kinds.NODE).on_change(self._node_changed)
        cluster.informer(kinds.LEASE).on_change(self._lease_changed)
        cluster.pods.on_change(self._pod_changed)

    async def run(self) -> None:
        # What was listed says nothing about now: every node gets a whole grace from here.
        now = time.monotonic()
        self._heard = dict.fromkeys(self._heard, now)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._node_queue.run())
            group.create_task(self._pod_queue.run())

    # --- observing ---

    def _lease_changed(self, change: Change[Lease]) -> None:
        if change.new is None or change.key.namespace != LEASES:
            return
        name = change.key.name
        if change.old is not None and (change.old.spec.renew_time == change.new.spec.renew_time):
            return
        self._heard[name] = time.monotonic()
        if name in self._marked:
            self._node_queue.add(Key("", name))

    def _node_changed(self, change: Change[Node]) -> None:
        name = change.key.name
        if change.new is None:
            self._heard.pop(name, None)
            self._marked.discard(name)
            return
        if change.old is None:
            self._heard.setdefault(name, time.monotonic())
            self._node_queue.add(change.key)
        elif (
            change.old.status.conditions != change.new.status.conditions
            or change.old.spec != change.new.spec
        ):
            self._node_queue.add(change.key)
        if change.old is None or change.old.spec.taints != change.new.spec.taints:
            for pod in self._cluster.node_pods.on(name):
                self._pod_queue.add(pod.key)

    def _pod_changed(self, change: Change[Pod]) -> None:
        if change.new is None:
            if self._deadlines:
                assert change.old is not None
                self._deadlines.pop(change.old.metadata.uid, None)
            return
        name = change.new.spec.node_name
        if not name or (change.old is not None and change.old.spec == change.new.spec):
            return
        node = self._nodes.get(Key("", name))
        if node is not None and node.spec.taints:
            self._pod_queue.add(change.key)

    # --- nodes ---

    async def _check_node(self, key: Key) -> float | None:
        node = self._nodes.get(key)
        if node is None:
            return None
        silent_s = time.monotonic() - self._heard.setdefault(key.name, time.monotonic())
        ready = condition(node.status.conditions, "Ready")
        if silent_s >= self._grace_s:
            if ready is None or ready.status != "Unknown":
                await self._mark_unknown(node)
            due_s = None
        else:
            due_s = self._grace_s - silent_s + 0.01
            if ready is not None and ready.reason == _SILENT:
                await self._mark_back(node)
        if ready is not None and ready.status == "Unknown":
            self._marked.add(key.name)
        if taints_differ(node):
            await self._write_taints(node)
        if ready is not None and ready.status in ("False", "Unknown"):
            await self._mark_pods(key.name)
        return due_s

    async def _mark_unknown(self, node: Node) -> None:
        self._marked.add(node.metadata.name)
        await self._write_ready(node, "Unknown", _SILENT, _SILENT_TEXT)
        self._say(node, "NodeNotReady", f"Node {node.metadata.name} status is now: NodeNotReady")

    async def _mark_back(self, node: Node) -> None:
        """The heartbeat is back: what we said of the node no longer holds. Whatever else the
        kubelet knows it writes itself."""
        self._marked.discard(node.metadata.name)
        await self._write_ready(node, "True", "KubeletReady", "kubelet is posting ready status")
        self._say(node, "NodeReady", f"Node {node.metadata.name} status is now: NodeReady")

    async def _write_ready(self, node: Node, status: str, reason: str, message: str) -> None:
        now = format_time(self._cluster.now())
        ready = {
            "type": "Ready",
            "status": status,
            "reason": reason,
            "message": message,
            "lastTransitionTime": now,
        }
        body = {"conditions": [ready]}
        await self._cluster.patch_status(kinds.NODE, node, body, PatchType.STRATEGIC)

    async def _write_taints(self, node: Node) -> None:
        try:
            fresh = await self._cluster.api.get_raw(kinds.NODE, node.metadata.name)
        except NotFoundError:
            return
        meta = fresh["metadata"]
        if meta["uid"] != node.metadata.uid:
            return
        have = fresh.get("spec", {}).get("taints") or []
        taints = merge_taints(have, plan_taints(node), self._cluster.now())
        body = {
            "metadata": {"resourceVersion": meta["resourceVersion"]},
            "spec": {"taints": taints or None},
        }
        await self._cluster.patch(kinds.NODE, node, body)

    async def _mark_pods(self, name: str) -> None:
        for pod in self._cluster.node_pods.on(name):
            if pod.ready and not pod.finished:
                ready = {
                    "type": "Ready",
                    "status": "False",
                    "lastTransitionTime": format_time(self._cluster.now()),
                }
                body = {"conditions": [ready]}
                await self._cluster.patch_status(POD, pod, body, PatchType.STRATEGIC)
                self._cluster.events.say(
                    _COMPONENT, POD, pod, "Warning", "NodeNotReady", "Node is not ready"
                )

    # --- eviction ---

    async def _check_pod(self, key: Key) -> float | None:
        pod = self._cluster.pods.objects.get(key)
        if pod is None or pod.deleting or pod.finished:
            return None
        node = self._nodes.get(Key("", pod.spec.node_name))
        taints = [t for t in node.spec.taints if t.effect == "NoExecute"] if node else []
        stay_s = plan_eviction_s(taints, pod.spec.tolerations)
        uid = pod.metadata.uid
        if stay_s is None:
            self._deadlines.pop(uid, None)
            return None
        now = time.monotonic()
        deadline = self._deadlines.setdefault(uid, now + stay_s)
        if now < deadline:
            return deadline - now
        await self._evict(pod)
        return None

    async def _evict(self, pod: Pod) -> None:
        text = f"Marking for deletion Pod {pod.key}"
        self._cluster.events.say(
            "taint-eviction-controller", POD, pod, "Normal", "TaintManagerEviction", text
        )
        target = disruption_target(
            "DeletionByTaintManager",
            "Taint manager: deleting due to NoExecute taint",
            self._cluster.now(),
        )
        body = {"conditions": [target]}
        await self._cluster.patch_status(POD, pod, body, PatchType.STRATEGIC)
        await self._cluster.delete(POD, pod)
        self._deadlines.pop(pod.metadata.uid, None)

    def _say(self, node: Node, reason: str, message: str) -> None:
        self._cluster.events.say(_COMPONENT, kinds.NODE, node, "Normal", reason, message)
