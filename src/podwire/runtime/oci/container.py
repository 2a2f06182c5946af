"""One OCI container as the agent holds it: a connection to its shim, and exec beside it.

A container's directory outlives the agent, and `OciContainer.open` works from it alone: that is all
recovery is.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import socket
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from podwire.errors import ContainerError
from podwire.runtime.containers import ExecProcess, ExitStatus, Stdin
from podwire.runtime.oci import inside
from podwire.runtime.oci.probe import Facts
from podwire.runtime.oci.terminal import Resizer
from podwire.runtime.streams import LocalProcess, spawn_local

_HEADER: Final = struct.Struct(">cI")
_LOST: Final = ExitStatus(
    137,
    signal=9,
    reason="ContainerStatusUnknown",
    message="The container could not be located when the pod was checked: its supervisor is gone",
)
_WATCHES: Final[set[asyncio.Task[ExitStatus]]] = set()


class Saved(msgspec.Struct, frozen=True):
    """container.json: what the agent has to know after a restart."""

    id: str
    name: str
    attempt: int
    pod_uid: str
    image_id: str
    log_path: str
    started_at: float
    tty: bool
    process: dict[str, Any]


class _Exit(msgspec.Struct):
    exit_code: int
    signal: int = 0


class OciContainer:
    """Satisfies `RunningContainer`."""

    def __init__(
        self, directory: Path, saved: Saved, facts: Facts, on_remove: Callable[[str], None]
    ) -> None:
        self.id = f"{facts.flavour}://{saved.id}"
        self.name = saved.name
        self.attempt = saved.attempt
        self.image_id = saved.image_id
        self.log_path = Path(saved.log_path)
        self.started_at = saved.started_at
        self._directory = directory
        self._saved = saved
        self._facts = facts
        self._on_remove = on_remove
        self._shim: _ShimConnection | None = None
        self._ended: asyncio.Task[ExitStatus] | None = None

    async def connect(self) -> None:
        """Watch the container; it may have ended already."""
        with contextlib.suppress(OSError):
            self._shim = await _ShimConnection.open(self._directory)
        self._ended = asyncio.create_task(self._watch())
        # The loop keeps only weak references, and a caller may forget a container that runs.
        _WATCHES.add(self._ended)
        self._ended.add_done_callback(_WATCHES.discard)

    async def _watch(self) -> ExitStatus:
        if self._shim is not None:
            kind, payload = await self._shim.frame()
            self._shim.close()
            if kind == b"x":
                return _parse_exit(payload)
        with contextlib.suppress(OSError, msgspec.MsgspecError):
            return _parse_exit((self._directory / "exit.json").read_bytes())
        # Somebody killed the shim. Its container must not go on unwatched.
        await self._delete()
        return _LOST

    async def wait(self) -> ExitStatus:
        assert self._ended is not None
        return await asyncio.shield(self._ended)

    async def kill(self, signal: int) -> None:
        if self._shim is not None:
            await self._shim.send(b"k", str(int(signal)).encode())

    async def exec(
        self, command: Sequence[str], *, tty: bool = False, stdin: bool = False
    ) -> ExecProcess:
        pid = self._pid()
        process = self._saved.process | {"args": list(command), "terminal": tty}
        env = dict(entry.partition("=")[::2] for entry in process["env"])
        root = Path(f"/proc/{pid}/root")
        missing = inside.program_missing(root, command[0], env.get("PATH", ""), process["cwd"])
        if missing:
            raise ContainerError(f"container {self.name}: {missing}")
        if tty and "TERM" not in env:
            process["env"] = [*process["env"], "TERM=xterm"]
        name = secrets.token_hex(6)
        spec, pid_file = self._directory / f"exec-{name}.json", self._directory / f"exec-{name}.pid"
        spec.write_text(json.dumps(process))
        argv = self._facts.command(
            self._directory.parent / "runtime",
            *("exec", "--process", str(spec), "--pid-file", str(pid_file), self._saved.id),
        )
        try:
            local = await spawn_local(argv, stdin=stdin, tty=tty, cwd=self._directory)
        except OSError as e:
            raise ContainerError(f"container {self.name}: cannot run {argv[0]}: {e}") from e
        return _OciExec(local, spec, pid_file)

    def _pid(self) -> int:
        if self._ended is not None and self._ended.done():
            raise ContainerError(f"container {self.name}: is not running")
        try:
            return int((self._directory / "pid").read_text())
        except (OSError, ValueError) as e:
            raise ContainerError(f"container {self.name}: is not running") from e

    async def attach(self) -> ExecProcess:
        try:
            connection = await _ShimConnection.open(self._directory)
        except OSError as e:
            raise ContainerError(f"container {self.name}: is not running") from e
        await connection.send(b"a", b"")
        return _Attached(connection, tty=self._saved.tty)

    async def remove(self) -> None:
        if self._ended is not None and not self._ended.done():
            await self.kill(9)
            await self.wait()
        if self._shim is not None:
            self._shim.close()
        self._on_remove(self._saved.id)
        await asyncio.to_thread(shutil.rmtree, self._directory, ignore_errors=True)

    async def _delete(self) -> None:
        argv = self._facts.command(
            self._directory.parent / "runtime", "delete", "--force", self._saved.id
        )
        null = asyncio.subprocess.DEVNULL
        process = await asyncio.create_subprocess_exec(
            *argv, cwd=self._directory, stdin=null, stdout=null, stderr=null
        )
        await process.wait()


def _parse_exit(raw: bytes) -> ExitStatus:
    record = msgspec.json.decode(raw, type=_Exit)
    return ExitStatus(record.exit_code, record.signal)


class _ShimConnection:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer

    @staticmethod
    async def open(directory: Path) -> _ShimConnection:
        """By way of a descriptor: the path itself may be longer than AF_UNIX allows."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        fd = os.open(directory, os.O_PATH | os.O_CLOEXEC)
        try:
            await asyncio.get_running_loop().sock_connect(sock, f"/proc/self/fd/{fd}/shim.sock")
        except OSError:
            sock.close()
            raise
        finally:
            os.close(fd)
        return _ShimConnection(*await asyncio.open_unix_connection(sock=sock))

    async def frame(self) -> tuple[bytes, bytes]:
        """The next frame; of kind b"" when the shim is gone."""
        try:
            kind, length = _HEADER.unpack(await self._reader.readexactly(_HEADER.size))
            return kind, await self._reader.readexactly(length)
        except (OSError, asyncio.IncompleteReadError):
            return b"", b""

    def write(self, kind: bytes, payload: bytes) -> None:
        self.writer.write(_HEADER.pack(kind, len(payload)) + payload)

    async def send(self, kind: bytes, payload: bytes) -> None:
        with contextlib.suppress(OSError):
            self.write(kind, payload)
            await self.writer.drain()

    def close(self) -> None:
        self.writer.close()


class _OciExec:
    """`crun exec` in the foreground; `kill` reaches the program inside, not the middleman."""

    def __init__(self, local: LocalProcess, spec: Path, pid_file: Path) -> None:
        self._local = local
        self._files = (spec, pid_file)
        self.stdin: Stdin | None = local.stdin
        self.stdout = local.stdout
        self.stderr = local.stderr
        self._resizer = Resizer(self._pid)

    def resize(self, columns: int, rows: int) -> None:
        self._local.resize(columns, rows)
        self._resizer.want(columns, rows)

    def _pid(self) -> int:
        """The program's. Still the runtime's child, so not yet waited for: it is the right one.

        Raises OSError or ValueError before it runs and once it has ended.
        """
        pid = int(self._files[1].read_text())
        runtime = _parent(pid)
        # On a terminal the runtime is itself the child of what made its session (`setsid`).
        if self._local.pid not in (runtime, _parent(runtime)):
            raise ValueError(f"process {pid} is another's")
        return pid

    def kill(self, signal: int) -> None:
        with contextlib.suppress(OSError, ValueError):
            os.kill(self._pid(), signal)
            return
        self._local.kill(signal)

    async def wait(self) -> ExitStatus:
        ended = await self._local.wait()
        self._resizer.close()
        for path in self._files:
            path.unlink(missing_ok=True)
        if ended.signal == 0 and 128 < ended.exit_code < 128 + 65:
            return ExitStatus(ended.exit_code, signal=ended.exit_code - 128)
        return ended

    def close(self) -> None:
        self._resizer.close()
        self._local.close()


def _parent(pid: int) -> int:
    stat = Path(f"/proc/{pid}/stat").read_text()
    return int(stat.rpartition(")")[2].split()[1])


class _AttachedStdin:
    def __init__(self, connection: _ShimConnection) -> None:
        self._connection = connection

    def write(self, data: bytes) -> None:
        self._connection.write(b"i", data)

    async def drain(self) -> None:
        await self._connection.writer.drain()

    def close(self) -> None:
        self._connection.write(b"c", b"")


class _Attached:
    """The container's own streams. `kill` only detaches, and the end is always a success."""

    def __init__(self, connection: _ShimConnection, *, tty: bool) -> None:
        self._connection = connection
        self.stdin: Stdin | None = _AttachedStdin(connection)
        self.stdout = asyncio.StreamReader()
        self.stderr = None if tty else asyncio.StreamReader()
        self._task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        while True:
            kind, payload = await self._connection.frame()
            if kind == b"1":
                self.stdout.feed_data(payload)
            elif kind == b"2" and self.stderr is not None:
                self.stderr.feed_data(payload)
            elif kind in (b"x", b""):
                break
        for reader in (self.stdout, self.stderr):
            if reader is not None:
                reader.feed_eof()
        self._connection.close()

    def resize(self, columns: int, rows: int) -> None:
        self._connection.write(b"r", f"{columns} {rows}".encode())

    def kill(self, signal: int) -> None:
        self._connection.close()

    async def wait(self) -> ExitStatus:
        await asyncio.shield(self._task)
        return ExitStatus(0)

    def close(self) -> None:
        self._connection.close()
