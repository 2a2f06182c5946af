"""One kind as it is now: the newer of what its watch said and what our own writes were answered.

    watch event ----\\
                     > objects (higher resourceVersion wins) --> changed(old, new, news)
    write answered -/

A controller that plans on a cache which does not show its last write yet plans that write again.
Instead of waiting for the watch (upstream's EndpointSliceTracker and staleEndpointsTracker do, by
failing and retrying), answers are taken in at once, and the event that follows is no news.
resourceVersions are compared as numbers (KEP-5504).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Generic

from podwire.client import Change, Informer
from podwire.objects.meta import Key, T

Changed = Callable[[T | None, T | None, bool], None]
"""The object before and after, and whether somebody else than we ourselves changed it."""


def version(obj: T) -> int:
    return int(obj.metadata.resource_version or 0)


class Latest(Generic[T]):
    """`objects` is the live snapshot; make it before the informer runs."""

    def __init__(self, informer: Informer[T], changed: Changed[T]) -> None:
        self.objects: dict[Key, T] = {}
        self._changed = changed
        self._writing: dict[Key, int] = {}
        """Keys with a write in flight -> the newest version the watch said meanwhile."""
        self._deleted: set[str] = set()
        """UIDs of what we deleted and the watch has not taken leave of."""
        informer.on_change(self._hear)

    async def write(self, key: Key, call: Awaitable[T]) -> T:
        """Await a create or patch of `key` and take its answer in."""
        self._writing[key] = 0
        try:
            answer = await call
        except BaseException:
            if self._writing.pop(key):
                self._report(key)
            raise
        heard = self._writing.pop(key)
        known = self.objects.get(key)
        if known is None or version(known) < version(answer):
            self._set(key, answer, news=False)
        elif heard > version(answer):
            self._report(key)
        return answer

    async def delete(self, obj: T, call: Awaitable[None]) -> None:
        """Await the deletion of `obj`."""
        key, uid = obj.key, obj.metadata.uid
        self._deleted.add(uid)
        try:
            await call
        except BaseException:
            self._deleted.discard(uid)
            raise
        known = self.objects.get(key)
        if known is None or known.metadata.uid != uid:
            self._deleted.discard(uid)
        elif known.deleting or known.metadata.finalizers:
            self._deleted.discard(uid)  # a finalizer holds it: it goes when the watch says so
        else:
            self._set(key, None, news=False)

    def _hear(self, change: Change[T]) -> None:
        key, new = change.key, change.new
        known = self.objects.get(key)
        if new is None:
            assert change.old is not None
            uid = change.old.metadata.uid
            ours = uid in self._deleted
            self._deleted.discard(uid)
            if known is not None and known.metadata.uid == uid:
                self._set(key, None, news=not ours)
            return
        if new.metadata.uid in self._deleted:
            return
        if known is not None and version(new) <= version(known):
            return
        writing = key in self._writing
        if writing:
            self._writing[key] = version(new)
        self._set(key, new, news=not writing)

    def _set(self, key: Key, obj: T | None, *, news: bool) -> None:
        old = self.objects.pop(key, None) if obj is None else self.objects.get(key)
        if obj is not None:
            self.objects[key] = obj
        self._changed(old, obj, news)

    def _report(self, key: Key) -> None:
        obj = self.objects.get(key)
        self._changed(obj, obj, True)
