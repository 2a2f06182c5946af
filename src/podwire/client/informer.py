"""list + watch of one kind, kept in memory as typed views.

Handlers run in the event loop in the order of the watch and must not block: they put a key on a
queue or mend an index. After a broken watch the informer resumes from the last resourceVersion it
saw; after 410 it lists again and reports the difference, so a handler never misses a change.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Generic

import aiohttp
import msgspec

from podwire.client.decoding import decode_view
from podwire.client.http import Api
from podwire.errors import ApiError, ExpiredError, NotFoundError
from podwire.objects.meta import Key, Kind, T

_LOG = logging.getLogger(__name__)
_RETRY_MIN_S, _RETRY_MAX_S = 0.02, 2.0
_UNSERVED_RETRY_S = 30.0


@dataclass(frozen=True, slots=True)
class Change(Generic[T]):
    """`old` is None for an addition, `new` is None for a removal."""

    old: T | None
    new: T | None

    @property
    def key(self) -> Key:
        obj = self.new or self.old
        assert obj is not None
        return obj.key


Handler = Callable[[Change[T]], None]


def _raise_refusal(line: bytes) -> None:
    """The error an ERROR event carries; nothing for any other event."""
    event = msgspec.json.decode(line)
    if event.get("type") == "ERROR":
        status = event["object"]
        raise ApiError.from_status(status, status.get("code", 500))


class Informer(Generic[T]):
    """`objects` is the live snapshot; `synced` is set after the first complete list.

    With `optional` a cluster that does not serve the kind has no objects of it, for the time being.
    """

    def __init__(
        self,
        api: Api,
        kind: Kind[T],
        *,
        namespace: str = "",
        label_selector: str = "",
        field_selector: str = "",
        optional: bool = False,
    ) -> None:
        self._api = api
        self._optional = optional
        self.kind = kind
        self._namespace = namespace
        self._label_selector = label_selector
        self._field_selector = field_selector
        self._objects: dict[Key, T] = {}
        self._handlers: list[Handler[T]] = []
        self._version = ""
        self.synced = asyncio.Event()
        self.objects: Mapping[Key, T] = MappingProxyType(self._objects)
        # One decoder per view: `object` is decoded straight into the typed view, in C.
        self._event: type[Any] = msgspec.defstruct("Event", [("type", str), ("object", kind.view)])
        self._decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(self._event)

    def on_change(self, handler: Handler[T]) -> None:
        """Call `handler` for every change from now on, and at once for what is known."""
        self._handlers.append(handler)
        for obj in self._objects.values():
            handler(Change(None, obj))

    async def run(self) -> None:
        """Follow the API until cancelled; every failure is retried with back-off."""
        delay = _RETRY_MIN_S
        while True:
            try:
                if not self._version:
                    await self._list()
                await self._watch()
                delay = _RETRY_MIN_S
            except ExpiredError:
                self._version = ""
            except msgspec.MsgspecError as error:
                # Only this kind stands still, and it is heard of: others go on.
                _LOG.warning(
                    "informer %s: what the API says is not read: %s", self.kind.plural, error
                )
                self._version = ""
                await asyncio.sleep(delay)
                delay = min(delay * 2, _RETRY_MAX_S)
            except (ApiError, aiohttp.ClientError, OSError, TimeoutError) as error:
                _LOG.info("informer %s: %s; retrying", self.kind.plural, error)
                if self._optional and isinstance(error, NotFoundError):
                    self._unserved()
                    delay = _UNSERVED_RETRY_S
                await asyncio.sleep(delay)
                delay = min(delay * 2, _RETRY_MAX_S)

    async def _list(self) -> None:
        items, version = await self._api.list(
            self.kind,
            self._namespace,
            label_selector=self._label_selector,
            field_selector=self._field_selector,
        )
        fresh = {item.key: item for item in items}
        for key in [key for key in self._objects if key not in fresh]:
            self._notify(Change(self._objects.pop(key), None))
        for key, item in fresh.items():
            self._set(key, item)
        self._version = version
        self.synced.set()

    def _unserved(self) -> None:
        for key in list(self._objects):
            self._notify(Change(self._objects.pop(key), None))
        self._version = ""
        self.synced.set()

    def _set(self, key: Key, item: T) -> None:
        old = self._objects.get(key)
        if old is not None and (old.metadata.resource_version == item.metadata.resource_version):
            return
        self._objects[key] = item
        if old is not None and old.metadata.uid != item.metadata.uid:
            # Deleted and made again between two looks: two changes, not an update.
            self._notify(Change(old, None))
            old = None
        self._notify(Change(old, item))

    async def _watch(self) -> None:
        async for lines in self._api.watch_lines(
            self.kind,
            self._version,
            namespace=self._namespace,
            label_selector=self._label_selector,
            field_selector=self._field_selector,
        ):
            for line in lines:
                if line:
                    self._apply(line)

    def _apply(self, line: bytes) -> None:
        try:
            event = self._decoder.decode(line)
        except msgspec.ValidationError:
            _raise_refusal(line)  # a Status need not look like an object of the kind
            event = decode_view(line, self._event)
        if event.type == "ERROR":
            _raise_refusal(line)
        obj: T = event.object
        self._version = obj.metadata.resource_version
        if event.type == "DELETED":
            if self._objects.pop(obj.key, None) is not None:
                self._notify(Change(obj, None))
        elif event.type != "BOOKMARK":
            self._set(obj.key, obj)

    def _notify(self, change: Change[T]) -> None:
        for handler in self._handlers:
            try:
                handler(change)
            except Exception:
                _LOG.exception("informer %s: handler failed on %s", self.kind.plural, change.key)
