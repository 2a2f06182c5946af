"""Reading a container's CRI log the way `kubectl logs` asks for it.

A line is `TIMESTAMP stdout|stderr F|P TEXT`; P lines are pieces of one longer line. Following waits
for inotify events, never by looking again and again. Source: kubernetes/kubernetes
pkg/kubelet/kuberuntime/logs.
"""

from __future__ import annotations

import asyncio
import ctypes
import datetime as dt
import os
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from podwire.errors import BadRequestError, InvalidError, KernelError

_IN_MODIFY, _IN_MOVED, _IN_CREATE, _IN_DELETE = 0x2, 0xC0, 0x100, 0x200
_IN_FLAGS: Final = os.O_NONBLOCK | os.O_CLOEXEC
_BLOCK: Final = 64 * 1024
_TRUE: Final = ("1", "true", "True", "TRUE")


@dataclass(frozen=True)
class LogOptions:
    """PodLogOptions; `since` is a Unix time. `stream` is All, Stdout or Stderr."""

    follow: bool = False
    previous: bool = False
    timestamps: bool = False
    tail_lines: int | None = None
    limit_bytes: int | None = None
    since: float | None = None
    stream: str = "All"

    @staticmethod
    def parse(query: Mapping[str, str], now: float) -> LogOptions:
        """Raises `BadRequestError` or `InvalidError` as upstream does."""

        def number(name: str, least: int) -> int | None:
            text = query.get(name)
            if text is None:
                return None
            try:
                value = int(text)
            except ValueError as error:
                raise BadRequestError(f"unable to decode query: {name}: {text!r}") from error
            if value < least:
                bound = f"must be greater than or equal to {least}"
                raise InvalidError(f"{name}: Invalid value: {value}: {bound}")
            return value

        seconds, moment = number("sinceSeconds", 1), query.get("sinceTime")
        since = now - seconds if seconds is not None else None
        if moment:
            try:
                since = dt.datetime.fromisoformat(moment).timestamp()
            except ValueError as error:
                raise BadRequestError(f"unable to decode query: sinceTime: {moment!r}") from error
        return LogOptions(
            follow=query.get("follow") in _TRUE,
            previous=query.get("previous") in _TRUE,
            timestamps=query.get("timestamps") in _TRUE,
            tail_lines=number("tailLines", 0),
            limit_bytes=number("limitBytes", 1),
            since=since,
            stream=query.get("stream") or "All",
        )


def format_line(line: bytes, options: LogOptions) -> bytes:
    """One CRI line as the client sees it; b"" when the options leave it out."""
    parts = line.split(b" ", 3)
    if len(parts) < 4:
        return b""
    stamp, stream, tag, text = parts
    if options.stream != "All" and options.stream.lower().encode() != stream:
        return b""
    if options.since is not None and _unix(stamp) < options.since:
        return b""
    body = text.rstrip(b"\n") + (b"\n" if tag != b"P" else b"")
    return stamp + b" " + body if options.timestamps else body


def _unix(stamp: bytes) -> float:
    # Nanoseconds are more than datetime takes; microseconds are enough to compare.
    text = stamp.decode("ascii", "replace")
    head, dot, rest = text.partition(".")
    digits = rest.rstrip("Z")[:6]
    try:
        return dt.datetime.fromisoformat(f"{head}{dot}{digits.ljust(6, '0')}+00:00").timestamp()
    except ValueError:
        return 0.0


def tail_offset(path: Path, lines: int) -> int:
    """Where the last `lines` lines of a file begin, read from its end."""
    with path.open("rb") as file:
        position = end = file.seek(0, os.SEEK_END)
        if lines == 0:
            return end
        seen = 0
        while position > 0:
            size = min(_BLOCK, position)
            position -= size
            file.seek(position)
            block = file.read(size)
            found = len(block)
            while (found := block.rfind(b"\n", 0, found)) >= 0:
                # The newline that ends the file ends its last line, it does not begin another.
                if position + found + 1 == end:
                    continue
                seen += 1
                if seen == lines:
                    return position + found + 1
    return 0


def _whole_lines(data: bytes) -> Iterator[bytes]:
    yield from (line + b"\n" for line in data.split(b"\n")[:-1])


async def read_log(
    path: Path, options: LogOptions, ended: Callable[[], bool]
) -> AsyncIterator[bytes]:
    """The log's bytes in chunks; a followed log ends after `ended()` and its last line."""
    left = options.limit_bytes
    async for block in _blocks(path, options, ended):
        chunk = b"".join(format_line(line, options) for line in _whole_lines(block))
        if left is not None:
            chunk = chunk[:left]
            left -= len(chunk)
        if chunk:
            yield chunk
        if left == 0:
            return


async def _blocks(
    path: Path, options: LogOptions, ended: Callable[[], bool]
) -> AsyncIterator[bytes]:
    offset = 0
    if options.tail_lines is not None and path.exists():
        offset = tail_offset(path, options.tail_lines)
    watch = _Inotify(path.parent) if options.follow else None
    rest = b""
    inode = 0
    try:
        while True:
            last = ended()
            try:
                with path.open("rb") as file:
                    known = os.fstat(file.fileno()).st_ino
                    if inode and known != inode:
                        offset = 0  # rotated
                    inode = known
                    file.seek(offset)
                    while data := file.read(_BLOCK):
                        offset += len(data)
                        whole, newline, tail = (rest + data).rpartition(b"\n")
                        rest = tail
                        if newline:
                            yield whole + newline
            except FileNotFoundError:
                pass
            if watch is None or last:
                return
            await watch.wait()
    finally:
        if watch is not None:
            watch.close()


class _Inotify:
    """Wakes when anything in a directory is written, made or renamed."""

    def __init__(self, directory: Path) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._fd: int = libc.inotify_init1(_IN_FLAGS)
        if self._fd < 0:
            raise KernelError("inotify", errno=ctypes.get_errno())
        mask = ctypes.c_uint32(_IN_MODIFY | _IN_MOVED | _IN_CREATE | _IN_DELETE)
        if libc.inotify_add_watch(self._fd, os.fsencode(directory), mask) < 0:
            os.close(self._fd)
            raise KernelError(f"inotify on {directory}", errno=ctypes.get_errno())
        self._changed = asyncio.Event()
        asyncio.get_running_loop().add_reader(self._fd, self._readable)

    def _readable(self) -> None:
        os.read(self._fd, 4096)
        self._changed.set()

    async def wait(self) -> None:
        """Return at the next change, and now and then without one: a container's end is no event
        of its directory."""
        try:
            async with asyncio.timeout(0.5):
                await self._changed.wait()
        except TimeoutError:
            return
        self._changed.clear()

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._fd)
        os.close(self._fd)
