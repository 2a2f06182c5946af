"""The holder's control protocol: one JSON line per message over a unix socket, descriptors beside.

request   {"op": "status", ...}            (a descriptor may ride along: publish)
answer    {"ok": true, ...} | {"ok": false, "error": "..."}
event     {"event": "exit", "key": "...", "status": 0}   to the connection that spawned
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from podwire.errors import LabError, LabNotFoundError
from podwire.kernel import proc
from podwire.runtime.containers import ExitStatus, Process

_MAX_MESSAGE = 1 << 20
_TIMEOUT_S = 10.0

Message = dict[str, Any]


def encode(message: Message) -> bytes:
    return msgspec.json.encode(message) + b"\n"


def decode(line: bytes) -> Message:
    return msgspec.json.decode(line, type=dict[str, Any])


def call(path: Path, message: Message, *fds: int) -> Message:
    """Ask the holder and wait for its answer; `LabError` carries what it refused."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(_TIMEOUT_S)
        try:
            sock.connect(str(path))
            if fds:
                proc.send_fds(sock, encode(message), fds)
            else:
                sock.sendall(encode(message))
            answer = b""
            while not answer.endswith(b"\n"):
                part = sock.recv(_MAX_MESSAGE)
                if not part:
                    break
                answer += part
        except (FileNotFoundError, ConnectionRefusedError) as error:
            raise LabNotFoundError(
                f"lab at {path.parent}: is not running; start it with up"
            ) from error
        except OSError as error:
            raise LabError(f"lab at {path.parent}: the holder does not answer: {error}") from error
    return _checked(answer, path)


def _checked(answer: bytes, path: Path) -> Message:
    if not answer.strip():
        raise LabError(f"lab at {path.parent}: the holder closed the connection")
    decoded = decode(answer)
    if not decoded.get("ok"):
        raise LabError(str(decoded.get("error", "refused")))
    return decoded


class SpawnedProcess:
    """A process the holder forked for an agent; see `ForkSpawner`."""

    def __init__(self, spawner: ForkSpawner, key: str, pid: int, at: float) -> None:
        self._spawner = spawner
        self.key = key
        self.pid = pid
        self.started_at = at

    async def wait(self) -> ExitStatus:
        code = await self._spawner.exited(self.key)
        return ExitStatus(code, signal=code - 128 if code > 128 else 0)

    async def kill(self, signal: int) -> None:
        await self._spawner.ask({"op": "kill", "key": self.key, "signal": signal})


class ForkSpawner:
    """Asks the warmed parent to fork podwire's own programs into a pod; pages stay shared."""

    def __init__(self, control_socket: Path) -> None:
        self._path = control_socket
        self._writer: asyncio.StreamWriter | None = None
        self._answers: asyncio.Queue[Message] = asyncio.Queue()
        self._exits: dict[str, asyncio.Future[int]] = {}
        self._lock = asyncio.Lock()
        self._reader_task: asyncio.Task[None] | None = None

    async def ask(self, message: Message) -> Message:
        async with self._lock:
            if self._writer is None:
                reader, self._writer = await asyncio.open_unix_connection(str(self._path))
                self._reader_task = asyncio.create_task(self._read(reader))
            self._writer.write(encode(message))
            await self._writer.drain()
            answer = await self._answers.get()
        if not answer.get("ok"):
            raise LabError(str(answer.get("error")))
        return answer

    async def _read(self, reader: asyncio.StreamReader) -> None:
        while line := await reader.readline():
            message = decode(line)
            if message.get("event") == "exit":
                future = self._future(message["key"])
                if not future.done():
                    future.set_result(message["status"])
            else:
                self._answers.put_nowait(message)

    def _future(self, key: str) -> asyncio.Future[int]:
        future = self._exits.get(key)
        if future is None:
            future = self._exits[key] = asyncio.get_running_loop().create_future()
        return future

    async def exited(self, key: str) -> int:
        try:
            return await asyncio.shield(self._future(key))
        finally:
            self._exits.pop(key, None)

    async def spawn(
        self,
        key: str,
        entry: str,
        kwargs: Mapping[str, Any],
        *,
        netns: Path | None,
        env: Mapping[str, str],
        log_path: Path,
        sockets: Sequence[socket.socket] = (),
    ) -> SpawnedProcess:
        """Fork `entry` ("package.module:function") with `kwargs` inside the pod's namespace."""
        message: Message = {
            "op": "spawn",
            "key": key,
            "entry": entry,
            "kwargs": dict(kwargs),
            "netns": str(netns) if netns else "",
            "env": dict(env),
            "log": str(log_path),
        }
        if sockets:
            # Descriptors need a connection of their own; the process is then taken over by ours.
            fds = [sock.fileno() for sock in sockets]
            answer = await asyncio.to_thread(call, self._path, message, *fds)
            await self.ask({"op": "adopt", "prefix": key})
        else:
            answer = await self.ask(message)
        return SpawnedProcess(self, key, answer["pid"], answer["started_at"])

    async def recover(self, prefix: str) -> dict[str, Process]:
        """Adopt what an earlier agent spawned under keys that begin with `prefix`."""
        answer = await self.ask({"op": "adopt", "prefix": prefix})
        return {
            key: SpawnedProcess(self, key, pid, at) for key, (pid, at) in answer["running"].items()
        }

    async def close(self) -> None:
        if self._reader_task is not None:
            self._reader_task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._reader_task
        if self._writer is not None:
            self._writer.close()
