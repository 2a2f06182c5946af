"""Pod garbage: pods of nodes that no longer exist, and finished pods beyond the threshold.

Nobody else would end a pod whose kubelet is gone. Source: pkg/controller/podgc.
"""

from __future__ import annotations

from podwire.client import Change, PatchType, WorkQueue
from podwire.controllers.cluster import Cluster
from podwire.controllers.conditions import disruption_target
from podwire.controllers.views import POD, Pod
from podwire.errors import NotFoundError
from podwire.objects import kinds
from podwire.objects.core import Node
from podwire.objects.meta import Key

_COMPONENT = "pod-garbage-collector"
# A pod may be bound before its node has registered (40 s upstream, where nodes boot slowly).
_QUARANTINE_S = 5.0


class PodGarbage:
    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._queue: WorkQueue[Key] = WorkQueue(_COMPONENT, self._reconcile)
        self._nodes = cluster.informer(kinds.NODE).objects
        # Insertion order is the order of ending.
        self._finished: dict[Key, None] = {}
        _ = cluster.node_pods
        cluster.pods.on_change(self._pod_changed)
        cluster.informer(kinds.NODE).on_change(self._node_changed)

    async def run(self) -> None:
        await self._queue.run()

    def _node_changed(self, change: Change[Node]) -> None:
        if change.new is None:
            for pod in self._cluster.node_pods.on(change.key.name):
                self._queue.add(pod.key)

    def _pod_changed(self, change: Change[Pod]) -> None:
        pod = change.new
        if pod is None:
            self._finished.pop(change.key, None)
            return
        if pod.finished and change.key not in self._finished:
            self._finished[change.key] = None
            if len(self._finished) > self._cluster.config.terminated_pods:
                self._queue.add(next(iter(self._finished)))
        name = pod.spec.node_name
        if (
            name
            and Key("", name) not in self._nodes
            and (change.old is None or change.old.spec.node_name != name)
        ):
            self._queue.add_after(change.key, _QUARANTINE_S)

    async def _reconcile(self, key: Key) -> None:
        pod = self._cluster.pods.objects.get(key)
        if pod is None:
            return
        if len(self._finished) > self._cluster.config.terminated_pods and pod.finished:
            await self._cluster.delete(POD, pod, grace_period_s=0)
            return
        if not pod.spec.node_name or Key("", pod.spec.node_name) in self._nodes:
            return
        try:
            await self._cluster.api.get(kinds.NODE, pod.spec.node_name)
        except NotFoundError:
            await self._force(pod)

    async def _force(self, pod: Pod) -> None:
        if not pod.finished:
            target = disruption_target(
                "DeletionByPodGC", "PodGC: node no longer exists", self._cluster.now()
            )
            body = {"phase": "Failed", "conditions": [target]}
            await self._cluster.patch_status(POD, pod, body, PatchType.STRATEGIC)
        await self._cluster.delete(POD, pod, grace_period_s=0)
