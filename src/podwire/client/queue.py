"""A keyed work queue: one key is worked on by one worker at a time, duplicates collapse, failures
come back with exponential back-off. The shape every Kubernetes controller has."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

from podwire.errors import ConflictError

_LOG = logging.getLogger(__name__)
_RETRY_MIN_S, _RETRY_MAX_S = 0.01, 30.0

K = TypeVar("K", bound=Hashable)


class WorkQueue(Generic[K]):
    """`reconcile(key)` may return seconds after which the key is due again, or None."""

    def __init__(
        self, name: str, reconcile: Callable[[K], Awaitable[float | None]], *, workers: int = 8
    ) -> None:
        self._name = name
        self._reconcile = reconcile
        self._workers = workers
        self._ready: asyncio.Queue[K] = asyncio.Queue()
        self._queued: set[K] = set()
        self._active: set[K] = set()
        self._again: set[K] = set()
        self._failures: dict[K, int] = {}
        self._timers: dict[K, asyncio.TimerHandle] = {}

    def add(self, key: K) -> None:
        """Make `key` due now; while it is being worked on, once more afterwards."""
        if key in self._active:
            self._again.add(key)
        elif key not in self._queued:
            self._queued.add(key)
            self._ready.put_nowait(key)

    def add_after(self, key: K, delay_s: float) -> None:
        """Make `key` due after a delay; an earlier pending time wins."""
        loop = asyncio.get_running_loop()
        pending = self._timers.get(key)
        due = loop.time() + delay_s
        if pending is not None:
            if pending.when() <= due:
                return
            pending.cancel()
        self._timers[key] = loop.call_at(due, self._fire, key)

    def _fire(self, key: K) -> None:
        self._timers.pop(key, None)
        self.add(key)

    async def run(self) -> None:
        """Work until cancelled."""
        async with asyncio.TaskGroup() as group:
            for _ in range(self._workers):
                group.create_task(self._work())

    async def _work(self) -> None:
        while True:
            key = await self._ready.get()
            self._queued.discard(key)
            self._active.add(key)
            try:
                due_s = await self._reconcile(key)
                self._failures.pop(key, None)
                if due_s is not None:
                    self.add_after(key, due_s)
            except Exception as error:
                self._retry(key, error)
            finally:
                self._active.discard(key)
                if key in self._again:
                    self._again.discard(key)
                    self.add(key)

    def _retry(self, key: K, error: Exception) -> None:
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        # A conflict is the ordinary way to learn that a snapshot was stale; nothing to report.
        if not isinstance(error, ConflictError):
            _LOG.warning("%s %s: %s; retrying", self._name, key, error, exc_info=failures == 3)
        self.add_after(key, min(_RETRY_MIN_S * 2**failures, _RETRY_MAX_S))
