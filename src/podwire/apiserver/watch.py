"""WATCH: every committed event, encoded once, written straight to each watcher's connection.

    Store.flush -> Table.apply -> Watcher.hear -> one chunk -> transport

A watcher has no queue of its own: the kernel's and the transport's buffers are the queue, and a
watcher whose transport holds more than MAX_BUFFERED bytes is closed (it lists and watches again,
as clients do after any break). Objects that enter or leave a selection are ADDED or DELETED.

Source: apiserver pkg/endpoints/handlers/watch.go, pkg/storage/cacher, KEP-3157 (WatchList).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable
from dataclasses import dataclass

from aiohttp import web

from podwire.apiserver.context import Context
from podwire.apiserver.kinds import DEPRECATED
from podwire.apiserver.negotiation import Format
from podwire.apiserver.reads import check_not_future, parse_resource_version
from podwire.apiserver.registry import Resource
from podwire.apiserver.representation import object_bytes, partial, read_object, shaped, table
from podwire.apiserver.request import Request, flag, warning_value
from podwire.apiserver.selection import Selection, parse_selection
from podwire.apiserver.store import Event, Record, Store, encode
from podwire.errors import ApiError, BadRequestError, Cause, InvalidError
from podwire.objects.meta import JsonObject

BOOKMARK_EVERY_S = 60.0
MAX_BUFFERED = 16 * 1024 * 1024
TIMEOUT_RANGE_S = (1800, 3600)
"""The length of watches that ask for none."""
INITIAL_END = "k8s.io/initial-events-end"


@dataclass(frozen=True)
class WatchOptions:
    """What a watch request asked for, checked."""

    start: int
    initial: bool
    """Begin with a synthetic ADDED for everything selected."""
    end_mark: bool
    """Then say so with the initial-events-end bookmark (WatchList)."""
    bookmarks: bool
    timeout_s: float


def parse_options(store: Store, request: Request) -> WatchOptions:
    query = request.query
    text, match = query.get("resourceVersion", ""), query.get("resourceVersionMatch", "")
    bookmarks = flag(query, "allowWatchBookmarks")
    send_initial = query.get("sendInitialEvents", "")
    _check_initial(send_initial, match, bookmarks)
    check_not_future(store, text)
    start = parse_resource_version(text)
    timeout = query.get("timeoutSeconds", "")
    if timeout and not timeout.isdigit():
        raise BadRequestError(f'Invalid value: "{timeout}": timeoutSeconds must be a number')
    if send_initial:
        initial = flag(query, "sendInitialEvents")
    else:
        initial = start == 0
    return WatchOptions(
        start=start,
        initial=initial,
        end_mark=initial and bool(send_initial),
        bookmarks=bookmarks,
        timeout_s=float(timeout)
        if timeout and timeout != "0"
        else random.uniform(*TIMEOUT_RANGE_S),
    )


def _check_initial(send_initial: str, match: str, bookmarks: bool) -> None:
    problem, where = "", "resourceVersionMatch"
    if send_initial and match != "NotOlderThan":
        problem = (
            "Forbidden: sendInitialEvents requires setting resourceVersionMatch to NotOlderThan"
        )
    elif match and not send_initial:
        problem = (
            "Forbidden: resourceVersionMatch is forbidden for watch unless sendInitialEvents is "
            "provided"
        )
    elif send_initial and not bookmarks:
        problem, where = (
            "Forbidden: sendInitialEvents requires setting allowWatchBookmarks",
            "allowWatchBookmarks",
        )
    if problem:
        raise InvalidError(
            f'ListOptions.meta.k8s.io "" is invalid: {where}: {problem}',
            causes=(Cause("FieldValueForbidden", problem, where),),
        )


class Watcher:
    """One open watch: hears commits and writes frames until it is closed."""

    def __init__(
        self, resource: Resource, selection: Selection, form: Format, transport: asyncio.Transport
    ) -> None:
        self._resource = resource
        self._selection = selection
        self._form = form
        self._transport = transport
        self._form_key = (resource.api_version, form)
        self._columns_sent = form.shape != "table"
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.slow = False

    def hear(self, events: list[Event]) -> None:
        frames = [frame for event in events if (frame := self._frame(event))]
        if frames:
            self.write(frames)

    def write(self, frames: list[bytes]) -> None:
        """One HTTP chunk; closes the watch when its reader does not keep up."""
        if self.done.done():
            return
        transport = self._transport
        if transport.is_closing():
            self.close()
            return
        size = sum(map(len, frames))
        transport.write(b"%x\r\n%b\r\n" % (size, b"".join(frames)))
        if transport.get_write_buffer_size() > MAX_BUFFERED:
            self.slow = True
            self.close()

    def close(self) -> None:
        if not self.done.done():
            self.done.set_result(None)

    def _frame(self, event: Event) -> bytes | None:
        """The event as this selection sees it; None where it does not."""
        selection, previous = self._selection, event.previous
        now = event.type != "DELETED" and selection.matches(event.record)
        before = previous is not None and selection.matches(previous)
        if now:
            return self._encode(event, "MODIFIED" if before else "ADDED")
        if before:
            return self._encode(event, "DELETED")
        return None

    def _encode(self, event: Event, type_: str) -> bytes:
        if not self._columns_sent:
            self._columns_sent = True
            return self._build(type_, self._object(event, type_), columns=True)
        key = (type_, self._form_key)
        frame = event.encoded.get(key)
        if frame is None:
            record = event.record
            if (self._form.shape == "object" and type_ == event.type) or (
                self._form.shape == "object" and type_ != "DELETED"
            ):
                frame = _frame(type_, object_bytes(self._resource, record))
            else:
                frame = self._build(type_, self._object(event, type_), columns=False)
            event.encoded[key] = frame
        return frame

    def _object(self, event: Event, type_: str) -> JsonObject:
        """The object to show: the last selected state, under the event's own number."""
        leaving = type_ == "DELETED" and event.type != "DELETED"
        source: Record = event.previous if leaving and event.previous else event.record
        obj = read_object(self._resource, source)
        obj["metadata"]["resourceVersion"] = str(event.rv)
        return obj

    def _build(self, type_: str, obj: JsonObject, *, columns: bool) -> bytes:
        return _frame(type_, encode(shaped(self._resource, obj, self._form, columns=columns)))

    def initial(self, records: Iterable[Record]) -> list[bytes]:
        frames = []
        for record in records:
            if self._form.shape == "object":
                frames.append(_frame("ADDED", object_bytes(self._resource, record)))
            else:
                columns, self._columns_sent = not self._columns_sent, True
                obj = read_object(self._resource, record)
                frames.append(self._build("ADDED", obj, columns=columns))
        return frames

    def bookmark(self, rv: int, *, initial_end: bool = False) -> bytes:
        meta: JsonObject = {"resourceVersion": str(rv), "creationTimestamp": None}
        if initial_end:
            meta["annotations"] = {INITIAL_END: "true"}
        resource = self._resource
        obj: JsonObject = {
            "kind": resource.kind,
            "apiVersion": resource.api_version,
            "metadata": meta,
        }
        if self._form.shape == "partial":
            obj = partial(obj, self._form)
        elif self._form.shape == "table":
            obj = table(resource, [], self._form, meta, columns=False)
        return _frame("BOOKMARK", encode(obj))


def _frame(type_: str, body: bytes) -> bytes:
    return b'{"type":"%b","object":%b}\n' % (type_.encode(), body)


async def watch(
    ctx: Context, request: Request, form: Format, http: web.BaseRequest
) -> web.StreamResponse:
    """Answer a watch; returns when its time is over, its reader is gone or too slow."""
    options = parse_options(ctx.store, request)
    selection = parse_selection(request.target, request.query)
    ctx.table(request.resource)  # loads it before anything is promised
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    if deprecated := DEPRECATED.get(request.resource.storage):
        response.headers["Warning"] = warning_value(deprecated)
    response.enable_chunked_encoding()
    await response.prepare(http)
    transport = http.transport
    if transport is None:
        return response
    watcher = Watcher(request.resource, selection, form, transport)
    ctx.metrics.watchers[request.resource.plural] += 1
    try:
        await _run(ctx, watcher, request.resource, selection, options)
    finally:
        ctx.metrics.watchers[request.resource.plural] -= 1
    if watcher.slow:
        ctx.metrics.slow_watchers += 1
        transport.abort()
    return response


async def _run(
    ctx: Context, watcher: Watcher, resource: Resource, selection: Selection, options: WatchOptions
) -> None:
    stored = ctx.table(resource)
    try:
        # From here to the listener there is no await: no commit can fall in between.
        if options.initial:
            frames = watcher.initial(selection.current(stored))
            if options.end_mark:
                frames.append(watcher.bookmark(ctx.store.rv, initial_end=True))
            if frames:
                watcher.write(frames)
        elif options.start:
            watcher.hear(stored.since(options.start))
    except ApiError as error:
        watcher.write([_frame("ERROR", encode(error.status()))])
        return
    stored.listeners.append(watcher.hear)
    stored.closers.append(watcher.close)
    try:
        await _until_over(ctx.store, watcher, options)
    finally:
        stored.listeners.remove(watcher.hear)
        stored.closers.remove(watcher.close)


async def _until_over(store: Store, watcher: Watcher, options: WatchOptions) -> None:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + options.timeout_s
    while (left := deadline - loop.time()) > 0 and not watcher.done.done():
        pause = min(left, BOOKMARK_EVERY_S) if options.bookmarks else left
        await asyncio.wait([watcher.done], timeout=pause)
        if options.bookmarks and not watcher.done.done():
            watcher.write([watcher.bookmark(store.rv)])
