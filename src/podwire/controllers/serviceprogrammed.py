"""Whether a Service is in the kernel of every node, as a condition of the Service.

    Node condition ServicesProgrammed (number N)  +  newest version of the Service and its slices
      -> networking.podwire.dev/Programmed True | False

Writes must not storm, so there is at most one for a change of the Service itself: True once every
Ready node has reached it. Endpoints that come and go write nothing. False is written for what the
kernel refused, and for what is not there after `_PATIENCE_S`; True again when it is. The write
itself is no change: only what proxies read counts. Nodes tell their number once a second, so the
condition is that much late; `podwire wait services` asks the nodes themselves.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from podwire.client import Change, PatchType, WorkQueue
from podwire.controllers.cluster import Cluster
from podwire.objects import kinds
from podwire.objects.core import Condition, Node, Service
from podwire.objects.discovery import EndpointSlice
from podwire.objects.meta import JsonObject, Key, Object, format_time
from podwire.services.model import HEADLESS_LABEL, PROXY_NAME_LABEL, ignored
from podwire.telemetry.progress import SERVICES, parse_progress

CONDITION: Final = "networking.podwire.dev/Programmed"
_PATIENCE_S: Final = 5.0


@dataclass(frozen=True)
class Verdict:
    """What the condition should say; `final` False means that time may still change it."""

    status: str
    reason: str
    message: str
    final: bool = True


def evaluate_programmed(key: Key, revision: int, nodes: Iterable[Node]) -> Verdict:
    """Pure: what the Ready nodes have of a Service's `revision`; without any, or before the first
    one tells its number, there is nothing to say."""
    ready = {
        node.metadata.name: condition_of(node.status.conditions, SERVICES)
        for node in nodes
        if node.ready
    }
    if not any(ready.values()):
        return Verdict("Unknown", "NobodyTells", "no node tells what it programmed", final=False)
    refused = [name for name, c in ready.items() if c and f"service {key}:" in c.message]
    behind = [name for name, c in ready.items() if not c or parse_progress(c.message) < revision]
    if refused:
        message = f"the kernel refused it on {_some(refused)}; the former state works on"
        return Verdict("False", "KernelRefused", message)
    if behind:
        message = f"resourceVersion {revision} is not in the kernel of {_some(behind)}"
        return Verdict("False", "Pending", message, final=False)
    message = f"resourceVersion {revision} is in the kernel of {len(ready)} nodes"
    return Verdict("True", "Programmed", message)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(sorted(names)[:3]) + more


def condition_of(conditions: Iterable[Condition], kind: str) -> Condition | None:
    return next((c for c in conditions if c.type == kind), None)


def meaning_of(service: Service) -> tuple[object, ...]:
    """What proxies read of a Service: a change of anything else is none."""
    meta = service.metadata
    return service.spec, service.status.load_balancer, meta.labels, meta.annotations


def _version(obj: Object) -> int:
    text = obj.metadata.resource_version
    return int(text) if text.isdigit() else 0


@dataclass
class _Waiting:
    """A Service whose condition may have to change; `fresh` when the Service itself changed."""

    revision: int
    since: float
    fresh: bool


class ServiceProgrammed:
    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._limit = cluster.config.programmed_services
        self._queue: WorkQueue[Key] = WorkQueue("service-programmed", self._reconcile, workers=4)
        self._waiting: dict[Key, _Waiting] = {}
        self._started = False
        self._services = cluster.informer(kinds.SERVICE).objects
        self._nodes = cluster.informer(kinds.NODE).objects

    async def run(self) -> None:
        if not self._limit:
            return
        cluster = self._cluster
        cluster.informer(kinds.SERVICE).on_change(self._service_changed)
        cluster.informer(kinds.ENDPOINT_SLICE).on_change(self._slice_changed)
        cluster.informer(kinds.NODE).on_change(self._node_changed)
        # What was there before is looked at, but written only where its condition is wrong.
        self._started = True
        await self._queue.run()

    def _service_changed(self, change: Change[Service]) -> None:
        old, new = change.old, change.new
        if new is None:
            self._waiting.pop(change.key, None)
        elif old is None or meaning_of(old) != meaning_of(new):
            self._await(new, _version(new), fresh=self._started)

    def _slice_changed(self, change: Change[EndpointSlice]) -> None:
        piece = change.new or change.old
        if piece is None or not piece.service_name:
            return
        key = Key(piece.metadata.namespace, piece.service_name)
        service = self._services.get(key)
        if service is not None:
            self._await(service, _version(piece), fresh=False)

    def _await(self, service: Service, revision: int, *, fresh: bool) -> None:
        labels = service.metadata.labels
        if ignored(service) or PROXY_NAME_LABEL in labels or HEADLESS_LABEL in labels:
            return
        now = self._cluster.now().timestamp()
        waiting = self._waiting.setdefault(service.key, _Waiting(0, now, False))
        waiting.revision = max(waiting.revision, revision)
        waiting.fresh = waiting.fresh or fresh
        self._queue.add(service.key)

    def _node_changed(self, change: Change[Node]) -> None:
        """Only what the nodes say of Services is news, and only for who waits for it."""
        if self._said(change.old) != self._said(change.new):
            for key in self._waiting:
                self._queue.add(key)

    @staticmethod
    def _said(node: Node | None) -> tuple[bool, str]:
        if node is None:
            return False, ""
        found = condition_of(node.status.conditions, SERVICES)
        return node.ready, found.message if found else ""

    async def _reconcile(self, key: Key) -> float | None:
        service, waiting = self._services.get(key), self._waiting.get(key)
        if service is None or waiting is None or len(self._services) > self._limit:
            self._waiting.pop(key, None)
            return None
        verdict = evaluate_programmed(key, waiting.revision, self._nodes.values())
        left = waiting.since + _PATIENCE_S - self._cluster.now().timestamp()
        if verdict.status == "Unknown":
            return None
        if not verdict.final and left > 0:
            return left
        revision = waiting.revision
        old = condition_of(service.status.conditions, CONDITION)
        if waiting.fresh or old is None or old.status != verdict.status:
            if old is None or (old.status, old.message) != (verdict.status, verdict.message):
                await self._write(service, old, verdict)
            waiting.fresh = False
        if verdict.status == "True" and waiting.revision == revision:
            self._waiting.pop(key, None)
        return None

    async def _write(self, service: Service, old: Condition | None, verdict: Verdict) -> None:
        since = old.last_transition_time if old and old.status == verdict.status else None
        condition: JsonObject = {
            "type": CONDITION,
            "status": verdict.status,
            "reason": verdict.reason,
            "message": verdict.message,
            "lastTransitionTime": since or format_time(self._cluster.now()),
        }
        await self._cluster.patch_status(
            kinds.SERVICE, service, {"conditions": [condition]}, PatchType.STRATEGIC
        )
