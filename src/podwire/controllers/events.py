"""Events written behind the work: queued, combined, sent when the controllers have nothing to do.

    say() -> spam filter per object -> combine similar -> one background writer -> EventRecorder

A thousand pods of one ReplicaSet produce a handful of Event writes, and no controller ever waits
for one. Source: client-go tools/record/events_cache.go (its limits are kept).
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from podwire.client import Api, EventRecorder
from podwire.objects.meta import Kind, Object

# client-go: 25 events per source and object at once, then one in five minutes; the eleventh
# similar message within ten minutes is combined with the others.
_BURST, _REFILL_S = 25, 300.0
_SIMILAR, _SIMILAR_S = 10, 600.0
_REMEMBERED = 4096
_MAX_DELAY_S = 5.0
_WRITERS = 4
# What a server that does not answer may leave waiting here; the oldest goes.
_MAX_WAITING = 8192


class _Said(NamedTuple):
    component: str
    kind: Kind[Any]
    obj: Object
    type: str
    reason: str
    message: str


@dataclass
class _Similar:
    since: float
    messages: set[str]


@dataclass
class _Bucket:
    tokens: float
    at: float


class EventLimits:
    """The pure part: which message, if any, an event is written with."""

    def __init__(self) -> None:
        self._buckets: dict[tuple[str, str], _Bucket] = {}
        self._similar: dict[tuple[str, ...], _Similar] = {}

    def evaluate(
        self, component: str, uid: str, event_type: str, reason: str, message: str, now: float
    ) -> str | None:
        """The message to write, or None when the object has said too much already."""
        bucket = self._remember(self._buckets, (component, uid), lambda: _Bucket(_BURST, now))
        bucket.tokens = min(_BURST, bucket.tokens + (now - bucket.at) / _REFILL_S)
        bucket.at = now
        if bucket.tokens < 1:
            return None
        bucket.tokens -= 1
        key = (component, uid, event_type, reason)
        similar = self._remember(self._similar, key, lambda: _Similar(now, set()))
        if now - similar.since > _SIMILAR_S:
            similar.since, similar.messages = now, set()
        similar.messages.add(message)
        if len(similar.messages) > _SIMILAR:
            return f"(combined from similar events): {message}"
        return message

    @staticmethod
    def _remember(table: dict[Any, Any], key: Any, make: Callable[[], Any]) -> Any:
        found = table.get(key)
        if found is None:
            if len(table) >= _REMEMBERED:
                del table[next(iter(table))]
            found = table[key] = make()
        return found


class EventWriter:
    """`say` never blocks; Warnings go out at once, the rest after `quiet_s` of silence."""

    def __init__(self, api: Api, quiet_s: float) -> None:
        self._api = api
        self._quiet_s = quiet_s
        self._limits = EventLimits()
        self._recorders: dict[str, EventRecorder] = {}
        self._queue: deque[_Said] = deque(maxlen=_MAX_WAITING)
        self._wake = asyncio.Event()
        self._first = 0.0
        self._last = 0.0
        self._urgent = False

    def say(
        self,
        component: str,
        kind: Kind[Any],
        obj: Object,
        event_type: str,
        reason: str,
        message: str,
    ) -> None:
        now = time.monotonic()
        uid = obj.metadata.uid
        allowed = self._limits.evaluate(component, uid, event_type, reason, message, now)
        if allowed is None:
            return
        if not self._queue:
            self._first = now
        self._last = now
        self._urgent |= event_type != "Normal"
        self._queue.append(_Said(component, kind, obj, event_type, reason, allowed))
        self._wake.set()

    async def run(self) -> None:
        while True:
            await self._wake.wait()
            await self._settle()
            self._wake.clear()
            self._urgent = False
            async with asyncio.TaskGroup() as group:
                for _ in range(min(_WRITERS, len(self._queue))):
                    group.create_task(self._write())

    async def _settle(self) -> None:
        while not self._urgent:
            now = time.monotonic()
            due = min(self._last + self._quiet_s, self._first + _MAX_DELAY_S)
            if now >= due:
                return
            await asyncio.sleep(due - now)

    async def _write(self) -> None:
        while self._queue:
            said = self._queue.popleft()
            recorder = self._recorders.get(said.component)
            if recorder is None:
                recorder = self._recorders[said.component] = EventRecorder(
                    self._api, said.component
                )
            await recorder.record(said.kind, said.obj, said.type, said.reason, said.message)
