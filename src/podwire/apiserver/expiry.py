"""Objects that live for a time only: Events, an hour after they were last written.

    commit -> listener: deadline, in order of writing -> one timer for the oldest -> staged removal

Every deadline is the same distance from its write, so the order of writing is the order of ends and
no heap is needed. Source: kube-apiserver's `--event-ttl`, which is a lease that each write renews.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import functools

from podwire.apiserver.store import Event, Record, Store, Table
from podwire.objects.meta import Key

EVENT_TTL_S = 3600.0


class Expiry:
    """Removes a table's objects `ttl_s` after their last write; runs on the event loop."""

    def __init__(self, store: Store, table: Table, ttl_s: float = EVENT_TTL_S) -> None:
        self._store, self._table, self._ttl_s = store, table, ttl_s
        self._ends: dict[Key, float] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()

    def start(self) -> None:
        """What is stored already ends when it would have without a restart."""
        now, wall = self._loop.time(), dt.datetime.now(dt.UTC)
        ages = sorted(
            ((_age_s(record, wall), record.key) for record in self._table.snapshot()), reverse=True
        )
        self._ends = {key: now - age + self._ttl_s for age, key in ages}
        self._table.listeners.append(self._hear)
        self._arm()

    def stop(self) -> None:
        self._table.listeners.remove(self._hear)
        if self._timer is not None:
            self._timer.cancel()

    def _hear(self, events: list[Event]) -> None:
        end = self._loop.time() + self._ttl_s
        for event in events:
            self._ends.pop(event.record.key, None)
            if event.type != "DELETED":
                self._ends[event.record.key] = end
        if self._timer is None:
            self._arm()

    def _arm(self) -> None:
        self._timer = None
        if self._ends:
            self._timer = self._loop.call_at(next(iter(self._ends.values())), self._expire)

    def _expire(self) -> None:
        now = self._loop.time()
        for key, end in list(self._ends.items()):
            if end > now:
                break
            del self._ends[key]
            record = self._store.latest(self._table, key)
            if record is not None:
                self._store.stage_delete(self._table, record.object())
                self._store.on_rollback(functools.partial(self._try_later, key))
        self._arm()

    def _try_later(self, key: Key) -> None:
        self._ends[key] = self._loop.time() + self._ttl_s
        if self._timer is None:
            self._arm()


def _age_s(record: Record, now: dt.datetime) -> float:
    """Seconds since an Event was last written, as far as it tells."""
    obj = record.object()
    text = obj.get("lastTimestamp") or obj["metadata"]["creationTimestamp"]
    return (now - dt.datetime.fromisoformat(text)).total_seconds()
