"""Whether an object is in the kernel of every node, as a condition of the object.

    a Node condition (number N)  +  the newest version of the object and what belongs to it
      -> a condition True | False

Writes must not storm, so there is at most one for a change of the object itself: True once every
Ready node has reached it. What belongs to it (endpoints) comes and goes and writes nothing. False
is written for what the kernel refused, and for what is not there after `_PATIENCE_S`; True again
when it is. The write itself is no change: only what agents read counts. Nodes tell their number
once a second, so the condition is that much late; `podwire wait` asks the nodes themselves.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from podwire.client import Change, PatchType, WorkQueue
from podwire.controllers.cluster import Cluster
from podwire.objects import kinds
from podwire.objects.core import Condition, Node
from podwire.objects.meta import JsonObject, Key, Kind, Object, format_time
from podwire.telemetry.progress import parse_progress

CONDITION: Final = "networking.podwire.dev/Programmed"
_PATIENCE_S: Final = 5.0
T = TypeVar("T", bound=Object)


@dataclass(frozen=True)
class Verdict:
    """What the condition should say; `final` False means that time may still change it."""

    status: str
    reason: str
    message: str
    final: bool = True


def evaluate_programmed(
    name: str, revision: int, nodes: Iterable[Node], node_condition: str
) -> Verdict:
    """Pure: what the Ready nodes have of `revision` of the object they call `name`; without any,
    or before the first one tells its number, there is nothing to say."""
    ready = {
        node.metadata.name: condition_of(node.status.conditions, node_condition)
        for node in nodes
        if node.ready
    }
    if not any(ready.values()):
        return Verdict("Unknown", "NobodyTells", "no node tells what it programmed", final=False)
    refused = [node for node, c in ready.items() if c and f"{name}:" in c.message]
    behind = [node for node, c in ready.items() if not c or parse_progress(c.message) < revision]
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


def version_of(obj: Object) -> int:
    text = obj.metadata.resource_version
    return int(text) if text.isdigit() else 0


@dataclass
class _Waiting:
    """One whose condition may have to change; `fresh` when the object itself changed."""

    revision: int
    since: float
    fresh: bool


class ProgrammedConditions(Generic[T]):
    """The conditions of one kind. Subclasses say what of an object counts, and how it is called."""

    def __init__(self, cluster: Cluster, kind: Kind[T], node_condition: str, limit: int) -> None:
        self._cluster = cluster
        self._kind = kind
        self._node_condition = node_condition
        self._limit = limit
        """With more objects than that nothing is written; 0 writes nothing at all."""
        name = f"{kind.plural}-programmed"
        self._queue: WorkQueue[Key] = WorkQueue(name, self._reconcile, workers=4)
        self._waiting: dict[Key, _Waiting] = {}
        self._started = False
        self._objects = cluster.informer(kind, optional=True).objects
        self._nodes = cluster.informer(kinds.NODE).objects

    def _followed(self, obj: T) -> bool:
        """Whether agents programme the object at all."""
        raise NotImplementedError

    def _meaning(self, obj: T) -> object:
        """What agents read of it: a change of anything else is none."""
        raise NotImplementedError

    def _conditions(self, obj: T) -> list[Condition]:
        raise NotImplementedError

    def _called(self, key: Key) -> str:
        """What agents call it where they tell of a refusal."""
        raise NotImplementedError

    async def run(self) -> None:
        if not self._limit:
            return
        self._cluster.informer(self._kind).on_change(self._object_changed)
        self._watch_more()
        self._cluster.informer(kinds.NODE).on_change(self._node_changed)
        # What was there before is looked at, but written only where its condition is wrong.
        self._started = True
        await self._queue.run()

    def _watch_more(self) -> None:
        """Follow what belongs to the objects, if anything does."""

    def _object_changed(self, change: Change[T]) -> None:
        old, new = change.old, change.new
        if new is None:
            self._waiting.pop(change.key, None)
        elif old is None or self._meaning(old) != self._meaning(new):
            self._await(new, version_of(new), fresh=self._started)

    def _await(self, obj: T, revision: int, *, fresh: bool) -> None:
        if not self._followed(obj):
            return
        now = self._cluster.now().timestamp()
        waiting = self._waiting.setdefault(obj.key, _Waiting(0, now, False))
        waiting.revision = max(waiting.revision, revision)
        waiting.fresh = waiting.fresh or fresh
        self._queue.add(obj.key)

    def _node_changed(self, change: Change[Node]) -> None:
        """Only what the nodes say of their progress is news, and only for who waits for it."""
        if self._said(change.old) != self._said(change.new):
            for key in self._waiting:
                self._queue.add(key)

    def _said(self, node: Node | None) -> tuple[bool, str]:
        if node is None:
            return False, ""
        found = condition_of(node.status.conditions, self._node_condition)
        return node.ready, found.message if found else ""

    async def _reconcile(self, key: Key) -> float | None:
        obj, waiting = self._objects.get(key), self._waiting.get(key)
        if obj is None or waiting is None or len(self._objects) > self._limit:
            self._waiting.pop(key, None)
            return None
        verdict = evaluate_programmed(
            self._called(key), waiting.revision, self._nodes.values(), self._node_condition
        )
        left = waiting.since + _PATIENCE_S - self._cluster.now().timestamp()
        if verdict.status == "Unknown":
            return None
        if not verdict.final and left > 0:
            return left
        revision = waiting.revision
        old = condition_of(self._conditions(obj), CONDITION)
        if waiting.fresh or old is None or old.status != verdict.status:
            if old is None or (old.status, old.message) != (verdict.status, verdict.message):
                await self._write(obj, old, verdict)
            waiting.fresh = False
        if verdict.status == "True" and waiting.revision == revision:
            self._waiting.pop(key, None)
        return None

    async def _write(self, obj: T, old: Condition | None, verdict: Verdict) -> None:
        since = old.last_transition_time if old and old.status == verdict.status else None
        condition: JsonObject = {
            "type": CONDITION,
            "status": verdict.status,
            "reason": verdict.reason,
            "message": verdict.message,
            "lastTransitionTime": since or format_time(self._cluster.now()),
        }
        await self._patch(obj, condition)

    async def _patch(self, obj: T, condition: JsonObject) -> None:
        await self._cluster.patch_status(
            self._kind, obj, {"conditions": [condition]}, PatchType.STRATEGIC
        )
