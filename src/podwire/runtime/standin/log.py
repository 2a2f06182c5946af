"""Access lines of one stand-in, written as a CRI log: buffered, and bounded in memory and on disk.

A line is `TIMESTAMP stdout F TEXT`. Lines wait up to `FLUSH_S` for company, so a busy stand-in
writes once per batch; a file past `MAX_BYTES` becomes `FILE.1` and a new one begins.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time

FLUSH_S = 0.25
MAX_BYTES = 4 * 1024 * 1024
_MAX_BUFFER = 64 * 1024


class AccessLog:
    """`path` "" discards."""

    __slots__ = ("_buffer", "_path", "_second", "_size", "_stamp", "_timer")

    def __init__(self, path: str) -> None:
        self._path = path
        self._buffer: list[str] = []
        self._size = 0
        self._second = 0
        self._stamp = ""
        self._timer: asyncio.TimerHandle | None = None

    def write(self, text: str) -> None:
        if not self._path:
            return
        second, nanos = divmod(time.time_ns(), 1_000_000_000)
        if second != self._second:
            self._second = second
            self._stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        self._buffer.append(f"{self._stamp}.{nanos:09d}Z stdout F {text}\n")
        self._size += len(text) + 48
        if self._size > _MAX_BUFFER:
            self.flush()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(FLUSH_S, self.flush)

    def flush(self) -> None:
        """Write what waits. A log that cannot be written never harms the traffic."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._buffer:
            return
        data = "".join(self._buffer).encode(errors="replace")
        self._buffer.clear()
        self._size = 0
        with contextlib.suppress(OSError):
            fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
            try:
                os.write(fd, data)
                full = os.fstat(fd).st_size > MAX_BYTES
            finally:
                os.close(fd)
            if full:
                os.replace(self._path, self._path + ".1")
