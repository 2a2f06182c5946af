"""A program of this machine as an `ExecProcess`, over pipes or a pseudo-terminal.

    pipes  our ends <-> stdin, stdout, stderr of the program
    pty    master   <-> slave, which `setsid --ctty` makes the program's controlling terminal

asyncio's own pipes are not used: in Python 3.11 `wait()` then returns only when the last holder of
a pipe is gone, so a background grandchild would keep an exec from ever ending.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import struct
import termios
from collections.abc import Mapping, Sequence
from pathlib import Path

from podwire.runtime.containers import ExitStatus, Stdin

_LIMIT = 64 * 1024


class LocalProcess:
    """Ends with its main process; `kill` reaches its whole process group."""

    stdin: Stdin | None
    stdout: asyncio.StreamReader
    stderr: asyncio.StreamReader | None

    def __init__(self, process: asyncio.subprocess.Process, master: int | None = None) -> None:
        self._process = process
        self._master = master
        self._transports: list[asyncio.BaseTransport] = []

    @property
    def pid(self) -> int:
        return self._process.pid

    def resize(self, columns: int, rows: int) -> None:
        if self._master is not None:
            set_window_size(self._master, columns, rows)

    def kill(self, signal: int) -> None:
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal)

    async def wait(self) -> ExitStatus:
        return exit_status(await self._process.wait())

    def close(self) -> None:
        """Let go of the streams; the program itself is not touched."""
        for transport in self._transports:
            transport.close()
        if self._master is not None:
            os.close(self._master)
            self._master = None

    async def connect(self, stdin: int | None, stdout: int, stderr: int | None) -> None:
        """Wrap our ends of the program's streams, which belong to this object from now on."""
        self.stdin = None
        if stdin is not None:
            self.stdin = writer = await write_pipe(stdin)
            self._transports.append(writer.transport)
        self.stdout = await self._reader(stdout)
        self.stderr = await self._reader(stderr) if stderr is not None else None

    async def _reader(self, fd: int) -> asyncio.StreamReader:
        reader, transport = await read_pipe(fd)
        self._transports.append(transport)
        return reader


def exit_status(returncode: int) -> ExitStatus:
    """Python's return code (negative: a signal) as Kubernetes tells it."""
    if returncode < 0:
        return ExitStatus(128 - returncode, signal=-returncode)
    return ExitStatus(returncode)


def set_window_size(terminal: int, columns: int, rows: int) -> None:
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


async def spawn_local(
    argv: Sequence[str],
    *,
    stdin: bool = False,
    tty: bool = False,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> LocalProcess:
    """Start `argv` in a session of its own; raises `OSError` when it cannot be started."""
    spawn = _spawn_tty if tty else _spawn_pipes
    return await spawn(argv, stdin, env, cwd)


async def _spawn_pipes(
    argv: Sequence[str], stdin: bool, env: Mapping[str, str] | None, cwd: Path | None
) -> LocalProcess:
    with contextlib.ExitStack() as theirs, contextlib.ExitStack() as ours:
        out_r, out_w = _pipe(ours, theirs)
        err_r, err_w = _pipe(ours, theirs)
        if stdin:
            in_w, in_r = reversed(_pipe(theirs, ours))
        else:
            in_r, in_w = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC), None
            theirs.callback(os.close, in_r)
        process = await asyncio.create_subprocess_exec(
            *argv, stdin=in_r, stdout=out_w, stderr=err_w, env=env, cwd=cwd, start_new_session=True
        )
        ours.pop_all()
    local = LocalProcess(process)
    await local.connect(in_w, out_r, err_r)
    return local


def _pipe(reads: contextlib.ExitStack, writes: contextlib.ExitStack) -> tuple[int, int]:
    r, w = os.pipe2(os.O_CLOEXEC)
    reads.callback(os.close, r)
    writes.callback(os.close, w)
    return r, w


async def _spawn_tty(
    argv: Sequence[str], stdin: bool, env: Mapping[str, str] | None, cwd: Path | None
) -> LocalProcess:
    master, slave = os.openpty()
    try:
        process = await asyncio.create_subprocess_exec(
            "setsid",
            "--ctty",
            "--wait",
            *argv,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=env,
            cwd=cwd,
            process_group=0,
        )
    except OSError:
        os.close(master)
        raise
    finally:
        os.close(slave)
    local = LocalProcess(process, master)
    await local.connect(os.dup(master) if stdin else None, os.dup(master), None)
    return local


async def read_pipe(fd: int) -> tuple[asyncio.StreamReader, asyncio.BaseTransport]:
    """A reader that owns `fd`, and its transport, to close it early."""
    reader = asyncio.StreamReader(limit=_LIMIT)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(fd, "rb", 0)
    )
    return reader, transport


async def write_pipe(fd: int) -> asyncio.StreamWriter:
    """A writer that owns `fd`."""
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.connect_write_pipe(
        asyncio.streams.FlowControlMixin, os.fdopen(fd, "wb", 0)
    )
    return asyncio.StreamWriter(transport, protocol, None, loop)
