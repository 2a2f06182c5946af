"""How one agent's progress is told: to those who wait for it, and as a condition of its Node."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import logging
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Final, Generic, TypeVar

import aiohttp
import msgspec
from aiohttp import web

from podwire.client import Api, PatchType
from podwire.errors import ApiError, BadRequestError
from podwire.objects import kinds
from podwire.objects.meta import format_time
from podwire.telemetry.progress import Progress, describe_progress, write_interval_s
from podwire.telemetry.waiting import WaitRequest, WaitResponse

_LOG = logging.getLogger(__name__)
_MAX_WAIT_S: Final = 600.0
K = TypeVar("K", bound=Hashable)


class Watchers:
    """Who wants to know whenever something was programmed."""

    def __init__(self) -> None:
        self._events: set[asyncio.Event] = set()

    @contextlib.contextmanager
    def watched(self) -> Iterator[asyncio.Event]:
        """An event that is set whenever something was programmed; who waits clears it."""
        event = asyncio.Event()
        self._events.add(event)
        try:
            yield event
        finally:
            self._events.discard(event)

    def moved(self) -> None:
        for event in self._events:
            event.set()


def answer(document: msgspec.Struct) -> web.Response:
    return web.Response(body=msgspec.json.encode(document), content_type="application/json")


async def answer_wait(
    request: web.Request,
    watchers: Watchers,
    missing: Callable[[Mapping[str, int]], dict[str, str]],
) -> web.Response:
    """A `WaitRequest`, answered as soon as `missing` says that nothing is."""
    try:
        wanted = msgspec.json.decode(await request.read(), type=WaitRequest)
    except msgspec.MsgspecError as error:
        raise BadRequestError(f"wait request: {error}") from error
    with watchers.watched() as moved, contextlib.suppress(TimeoutError):
        async with asyncio.timeout(min(wanted.timeout_s, _MAX_WAIT_S)):
            while missing(wanted.revisions):
                await moved.wait()
                moved.clear()
    return answer(WaitResponse(missing(wanted.revisions)))


class ProgressTeller(Generic[K]):
    """Writes a Node's condition (`SERVICES`, `POLICIES`) as its agent moves on.

    `what` are `Services` or the like, `nodes` tells how many there are.
    """

    def __init__(
        self,
        api: Api,
        node: str,
        condition: str,
        what: str,
        progress: Progress[K],
        watchers: Watchers,
        nodes: Callable[[], int],
    ) -> None:
        self._api = api
        self._node = node
        self._condition = condition
        self._what = what
        self._progress = progress
        self._watchers = watchers
        self._nodes = nodes
        self._written = ("", "", "")

    async def run(self) -> None:
        """Tell how far this node is until cancelled."""
        with self._watchers.watched() as moved:
            while True:
                await moved.wait()
                # What comes within the interval is told with it: there is one write at its end.
                await asyncio.sleep(write_interval_s(self._nodes()))
                moved.clear()
                try:
                    await self._write()
                except (ApiError, aiohttp.ClientError, OSError, TimeoutError) as error:
                    _LOG.info("node %s: %s not written: %s", self._node, self._condition, error)
                    moved.set()

    async def _write(self) -> None:
        words = describe_progress(self._progress, self._what)
        if words == self._written:
            return
        status, reason, message = words
        now = format_time(dt.datetime.now(dt.UTC))
        condition = {
            "type": self._condition,
            "status": status,
            "reason": reason,
            "message": message,
            "lastHeartbeatTime": now,
        }
        if status != self._written[0]:
            condition["lastTransitionTime"] = now
        await self._api.patch(
            kinds.NODE,
            self._node,
            {"status": {"conditions": [condition]}},
            subresource="status",
            patch_type=PatchType.STRATEGIC,
        )
        self._written = words
