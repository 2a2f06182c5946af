"""The engine as an agent offers it: bytes in, bytes out, the event loop never blocked."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor

from podwire.explain.probes.engine import (
    DEFAULT_LIMITS,
    Limits,
    ProbeEngine,
    Resolve,
    only_the_node,
    raise_descriptor_limit,
)
from podwire.explain.probes.wire import ProbeRequest, ProbeResponse, encode, parse_request


class ProbeService:
    """Serves probe requests from one worker thread; requests queue up behind each other.

    One thread, because a second one would only share the interpreter, and because the concurrency
    limits are the node's, not the request's.
    """

    def __init__(self, resolve: Resolve = only_the_node, limits: Limits = DEFAULT_LIMITS) -> None:
        raise_descriptor_limit()
        self._engine = ProbeEngine(resolve, limits)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="probes")

    async def handle(self, body: bytes) -> bytes:
        """Answer the body of `POST /probe`; raises `UsageError` (HTTP 400) for a bad one."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._answer, body)

    async def run(self, request: ProbeRequest) -> ProbeResponse:
        """The same without JSON, for callers in the agent itself."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._run, request)

    def close(self) -> None:
        """End running probes and the thread."""
        self._engine.stop()
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _answer(self, body: bytes) -> bytes:
        return encode(self._run(parse_request(body)))

    def _run(self, request: ProbeRequest) -> ProbeResponse:
        started = time.monotonic()
        results = self._engine.run(request.probes)
        return ProbeResponse(results=tuple(results), elapsed_s=time.monotonic() - started)
