"""kube-scheduler: pending pods -> `schedule` -> binding, as fast as decisions can be made.

    pod without node -> heap by priority -> schedule() -> assume in the snapshot -> POST binding
                                        \\-> refused: PodScheduled=False, wait for a change

A decision is counted at once ("assumed"), so the next one sees it; bindings run behind, at most
`write_limit` at a time. A refused pod is looked at again when a node changes or a pod leaves
(or, if it waits for other pods, when one arrives), never by a timer.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import logging
import time
from collections.abc import Coroutine
from typing import Any

import aiohttp

from podwire.client import Change, PatchType
from podwire.controllers.cluster import Cluster
from podwire.controllers.schedsnapshot import Snapshot
from podwire.controllers.scheduling import Unschedulable, schedule
from podwire.controllers.views import POD, Pod, raw
from podwire.errors import ApiError, ConflictError, NotFoundError
from podwire.objects import kinds
from podwire.objects.core import Condition, Namespace, Node
from podwire.objects.meta import Key, format_time

_LOG = logging.getLogger(__name__)
_COMPONENT = "default-scheduler"
# The loop is given back between slices so that watches and bindings keep moving.
_SLICE_S = 0.01
# Changes that come together (a node's taints, a ReplicaSet's pods) are one reason to look again.
_RETRY_S = 0.02
_BACKOFF_S = 1.0


class Scheduler:
    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._snapshot = Snapshot()
        self._heap: list[tuple[int, int, Key]] = []
        self._order = itertools.count()
        self._queued: set[Key] = set()
        self._refused: dict[Key, Unschedulable] = {}
        self._wake = asyncio.Event()
        self._retry: asyncio.TimerHandle | None = None
        self._retry_all = False
        self._bindings = asyncio.Semaphore(cluster.config.write_limit)
        self._tasks: set[asyncio.Task[None]] = set()
        cluster.informer(kinds.NODE).on_change(self._node_changed)
        cluster.informer(kinds.NAMESPACE).on_change(self._namespace_changed)
        cluster.pods.on_change(self._pod_changed)

    # --- observing ---

    def _node_changed(self, change: Change[Node]) -> None:
        if change.new is None:
            self._snapshot.remove_node(change.key.name)
            return
        old, new = change.old, change.new
        if old is not None and _placement(old) == _placement(new):
            return
        self._snapshot.set_node(new)
        self._look_again(everything=True)

    def _namespace_changed(self, change: Change[Namespace]) -> None:
        labels = change.new.metadata.labels if change.new else None
        self._snapshot.set_namespace(change.key.name, labels)

    def _pod_changed(self, change: Change[Pod]) -> None:
        pod = change.new
        if pod is None or pod.finished:
            gone = change.new or change.old
            assert gone is not None
            self._refused.pop(gone.key, None)
            if self._snapshot.remove(gone.metadata.uid):
                self._look_again(everything=True)
        elif pod.spec.node_name:
            known = pod.metadata.uid in self._snapshot
            self._snapshot.add(pod, pod.spec.node_name)
            self._refused.pop(pod.key, None)
            if not known:
                self._look_again(everything=False)
        elif self._mine(pod) and pod.metadata.uid not in self._snapshot:
            old = change.old
            if (
                old is not None
                and pod.key in self._refused
                and old.spec == pod.spec
                and old.metadata.labels == pod.metadata.labels
            ):
                return  # our own PodScheduled=False, or the like
            self._refused.pop(pod.key, None)
            self._push(pod)

    @staticmethod
    def _mine(pod: Pod) -> bool:
        return (
            pod.spec.scheduler_name == _COMPONENT
            and not pod.deleting
            and not pod.spec.scheduling_gates
        )

    def _push(self, pod: Pod) -> None:
        if pod.key not in self._queued:
            self._queued.add(pod.key)
            heapq.heappush(self._heap, (-pod.spec.priority, next(self._order), pod.key))
            self._wake.set()

    def _look_again(self, *, everything: bool) -> None:
        if not self._refused:
            return
        self._retry_all |= everything
        if self._retry is None:
            loop = asyncio.get_running_loop()
            self._retry = loop.call_later(_RETRY_S, self._requeue_refused)

    def _requeue_refused(self) -> None:
        self._retry = None
        everything, self._retry_all = self._retry_all, False
        for key, why in list(self._refused.items()):
            pod = self._cluster.pods.objects.get(key)
            if pod is not None and (everything or why.waits_for_pods):
                self._push(pod)

    # --- deciding ---

    async def run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            until = time.monotonic() + _SLICE_S
            while self._heap:
                self._next()
                if time.monotonic() > until:
                    await asyncio.sleep(0)
                    until = time.monotonic() + _SLICE_S

    def _next(self) -> None:
        _, _, key = heapq.heappop(self._heap)
        self._queued.discard(key)
        pod = self._cluster.pods.objects.get(key)
        if pod is None or pod.spec.node_name or not self._mine(pod) or pod.finished:
            self._refused.pop(key, None)
            return
        if pod.metadata.uid in self._snapshot:
            return
        decision = schedule(pod, self._snapshot)
        if isinstance(decision, Unschedulable):
            known = self._refused.get(key)
            self._refused[key] = decision
            if known is None or known.message != decision.message:
                self._start(self._refuse(pod, decision))
            return
        self._refused.pop(key, None)
        self._snapshot.add(pod, decision)
        self._start(self._bind(pod, decision))

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task: asyncio.Task[None] = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- applying ---

    async def _bind(self, pod: Pod, node: str) -> None:
        meta = pod.metadata
        body = {
            "apiVersion": "v1",
            "kind": "Binding",
            "metadata": {"name": meta.name, "namespace": meta.namespace, "uid": meta.uid},
            "target": {"apiVersion": "v1", "kind": "Node", "name": node},
        }
        try:
            async with self._bindings:
                path = POD.path(meta.namespace, meta.name, "binding")
                await self._cluster.api.request("POST", path, body=body)
        except (NotFoundError, ConflictError):
            # Deleted, or bound by somebody else: the watch tells which.
            self._forget(pod)
        except (ApiError, aiohttp.ClientError, OSError, TimeoutError) as error:
            _LOG.warning("pod %s: binding to %s: %s; retrying", pod.key, node, error)
            await asyncio.sleep(_BACKOFF_S)
            self._forget(pod)
        else:
            text = f"Successfully assigned {pod.key} to {node}"
            self._cluster.events.say(_COMPONENT, POD, pod, "Normal", "Scheduled", text)

    def _forget(self, pod: Pod) -> None:
        """Undo the assumption and, if the pod still waits, decide again."""
        current = self._cluster.pods.objects.get(pod.key)
        if current is not None and current.metadata.uid == pod.metadata.uid:
            if current.spec.node_name:
                return
            self._snapshot.remove(pod.metadata.uid)
            self._push(current)
        else:
            self._snapshot.remove(pod.metadata.uid)

    async def _refuse(self, pod: Pod, why: Unschedulable) -> None:
        said = next((c for c in pod.status.conditions if c.type == "PodScheduled"), None)
        if said is not None and (said.status, said.message) == ("False", why.message):
            return
        condition = Condition(
            type="PodScheduled",
            status="False",
            reason="Unschedulable",
            message=why.message,
            last_transition_time=format_time(self._cluster.now()),
        )
        try:
            async with self._bindings:
                await self._cluster.patch_status(
                    POD, pod, {"conditions": [raw(condition)]}, PatchType.STRATEGIC
                )
        except (ApiError, aiohttp.ClientError, OSError, TimeoutError) as error:
            _LOG.info("pod %s: PodScheduled condition: %s", pod.key, error)
        self._cluster.events.say(_COMPONENT, POD, pod, "Warning", "FailedScheduling", why.message)


def _placement(node: Node) -> tuple[object, ...]:
    """What of a node can change a decision (heartbeats cannot)."""
    return (
        node.metadata.labels,
        node.spec.taints,
        node.spec.unschedulable,
        node.status.allocatable,
    )
