"""The watch of the cluster behind the zone: informers in, changes out, right at once.

API -> Informer -> Index.set_* -> Changes -> Answers.evict -> other caches   in one turn

Nothing awaits between an event and the eviction, and queries are answered in the same loop: the
next query after an event is answered from what the event said. Until all lists are complete the
answer is SERVFAIL, so that a half-filled zone denies nothing that exists.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import time
from collections.abc import Callable
from typing import Any

from podwire.client import Api, Informer
from podwire.client.informer import Change
from podwire.dns import views
from podwire.dns.answers import Answers
from podwire.dns.index import Changes, PodMode
from podwire.objects.meta import parse_time

Programmed = Callable[[str, float], None]
"""Told of each change of endpoints that is in the answers: the kind of its Service (cluster_ip,
headless_with_selector, headless_without_selector), and seconds since the endpoints controller noted
the change of a pod or Service on the slice."""


def _nobody(kind: str, seconds: float) -> None:
    pass


class DnsWatch:
    """Follows an API and keeps `answers` as it says. `synced` is set when all of it was listed."""

    def __init__(
        self,
        api: Api,
        answers: Answers,
        *,
        programmed: Programmed = _nobody,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._answers = answers
        self._index = answers.zone.index
        self._index.telling = answers.synced
        self._clock = clock
        options = self._index.options
        self._programmed = programmed
        self.synced = asyncio.Event()
        self.services = Informer(api, views.SERVICE)
        self.namespaces = Informer(api, views.NAMESPACE)
        self.slices = Informer(api, views.SLICE) if options.endpoints else None
        self.pods = Informer(api, views.POD) if options.pods is PodMode.VERIFIED else None
        self.services.on_change(self._service_changed)
        self.namespaces.on_change(self._namespace_changed)
        if self.slices is not None:
            self.slices.on_change(self._slice_changed)
        if self.pods is not None:
            self.pods.on_change(self._pod_changed)

    async def run(self) -> None:
        """Follow until cancelled."""
        informers: list[Informer[Any]] = [
            informer
            for informer in (self.services, self.namespaces, self.slices, self.pods)
            if informer is not None
        ]
        async with asyncio.TaskGroup() as group:
            for informer in informers:
                group.create_task(informer.run())
            group.create_task(self._wait_synced(informers))

    async def _wait_synced(self, informers: list[Informer[Any]]) -> None:
        for informer in informers:
            await informer.synced.wait()
        self._index.telling = True
        self._answers.mark_synced()
        self.synced.set()

    def _changed(self, changes: Changes) -> None:
        # Before all is listed nothing is kept, so there is nothing to forget.
        if self._answers.synced:
            self._answers.evict(changes)

    def _service_changed(self, change: Change[views.Service]) -> None:
        self._changed(self._index.set_service(change.key, change.new))

    def _namespace_changed(self, change: Change[views.Namespace]) -> None:
        self._changed(self._index.set_namespace(change.key, change.new))

    def _pod_changed(self, change: Change[views.Pod]) -> None:
        self._changed(self._index.set_pod(change.key, change.old, change.new))

    def _slice_changed(self, change: Change[views.Slice]) -> None:
        changes = self._index.set_slice(change.key, change.new)
        self._changed(changes)
        if changes and change.new is not None and self._answers.synced:
            self._note_latency(change.old, change.new)

    def _note_latency(self, old: views.Slice | None, new: views.Slice) -> None:
        """Only what the controller dates anew: a slice written again keeps its older time."""
        text = new.metadata.annotations.get(views.TRIGGER_TIME_ANNOTATION)
        before = old.metadata.annotations.get(views.TRIGGER_TIME_ANNOTATION) if old else None
        if not text or text == before:
            return
        try:
            moment = parse_time(text)
        except ValueError:
            return
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=dt.UTC)
        kind = self._index.service_kind(new.metadata.namespace, new.service_name)
        self._programmed(kind, max(0.0, self._clock() - moment.timestamp()))
