"""Running the host's programs as if inside a pod: what `kubectl exec` into a stand-in does.

nsenter enters the pod's network namespace, unshare gives private mount and UTS namespaces, and a
shell line lays the pod's hosts file and resolv.conf over /etc's. Nothing of it outlives it.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import shutil
import struct
import termios
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from podwire.errors import ContainerError
from podwire.runtime.containers import ExecProcess, ExitStatus, Stdin

# $1 hosts, $2 resolv.conf, $3 host name, then the program. A file missing on the host cannot be
# covered. 126 and 127 are what a shell answers for a program that cannot run or does not exist.
_ENTER: Final = """\
cover() { [ -f "$1" ] && [ -e "$2" ] && mount --bind "$1" "$(readlink -f "$2")" 2>/dev/null; }
cover "$1" /etc/hosts
cover "$2" /etc/resolv.conf
[ -n "$3" ] && hostname "$3" 2>/dev/null
shift 3
exec "$@"
"""
_NEEDED: Final = ("nsenter", "unshare", "sh")


@dataclass(frozen=True)
class PodShell:
    """Where a pod's programs run. `netns` None: the node's own namespace."""

    netns: Path | None
    hosts: Path
    resolv_conf: Path
    hostname: str

    def command(self, program: Sequence[str], *, tty: bool) -> list[str]:
        """The whole command line around `program`."""
        words = ["nsenter", f"--net={self.netns}"] if self.netns is not None else []
        words += ["unshare", "--mount", "--uts", "--propagation", "private"]
        if tty:
            words += ["setsid", "--ctty", "--wait"]
        hosts, resolv = str(self.hosts), str(self.resolv_conf)
        return [*words, "sh", "-c", _ENTER, "sh", hosts, resolv, self.hostname, *program]

    async def run(
        self,
        program: Sequence[str],
        env: Mapping[str, str],
        *,
        tty: bool = False,
        stdin: bool = False,
    ) -> ExecProcess:
        """Start a program. Raises `ContainerError` when it does not exist on this machine."""
        if not program:
            raise ContainerError("exec: you must specify at least one command for the container")
        missing = [tool for tool in _NEEDED if shutil.which(tool) is None]
        if missing:
            raise ContainerError(f"exec: {', '.join(missing)} not found; install util-linux")
        if shutil.which(program[0]) is None:
            raise ContainerError(
                f'exec: "{program[0]}": executable file not found in $PATH '
                "(a stand-in runs this machine's programs)"
            )
        environment = _base_environment() | dict(env)
        command = self.command(program, tty=tty)
        if tty:
            return await _start_tty(command, environment)
        return await _start_piped(command, environment, stdin=stdin)


def _base_environment() -> dict[str, str]:
    inherited = {k: v for k, v in os.environ.items() if k in ("PATH", "LANG", "LC_ALL")}
    return {"TERM": "xterm", "HOME": "/root", "PATH": os.defpath} | inherited


class _Process:
    """A subprocess in the shape of `ExecProcess`."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        stdin: Stdin | None,
        stdout: asyncio.StreamReader,
        stderr: asyncio.StreamReader | None,
        terminal: int | None = None,
    ) -> None:
        self._process = process
        self._terminal = terminal
        self.stdin = stdin
        self.stdout = stdout
        self.stderr = stderr

    def resize(self, columns: int, rows: int) -> None:
        if self._terminal is not None:
            size = struct.pack("HHHH", rows, columns, 0, 0)
            with contextlib.suppress(OSError):
                fcntl.ioctl(self._terminal, termios.TIOCSWINSZ, size)

    def kill(self, signal: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            # Its own session: the program's children are meant as well.
            os.killpg(self._process.pid, signal)

    async def wait(self) -> ExitStatus:
        code = await self._process.wait()
        if self._terminal is not None:
            os.close(self._terminal)
            self._terminal = None
        return ExitStatus(128 - code, -code) if code < 0 else ExitStatus(code)


async def _start_piped(
    command: Sequence[str], env: Mapping[str, str], *, stdin: bool
) -> ExecProcess:
    pipe, null = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=pipe if stdin else null,
        stdout=pipe,
        stderr=pipe,
        env=env,
        start_new_session=True,
    )
    assert process.stdout is not None
    return _Process(process, process.stdin, process.stdout, process.stderr)


async def _start_tty(command: Sequence[str], env: Mapping[str, str]) -> ExecProcess:
    ours, theirs = os.openpty()
    try:
        process = await asyncio.create_subprocess_exec(
            *command, stdin=theirs, stdout=theirs, stderr=theirs, env=env, start_new_session=True
        )
    except OSError:
        os.close(ours)
        raise
    finally:
        os.close(theirs)
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    # Separate descriptors, because each transport closes its own.
    read_file = os.fdopen(os.dup(ours), "rb", buffering=0)
    write_file = os.fdopen(os.dup(ours), "wb", buffering=0)
    await loop.connect_read_pipe(lambda: _TerminalReader(reader), read_file)
    transport, protocol = await loop.connect_write_pipe(
        asyncio.streams.FlowControlMixin, write_file
    )
    writer = asyncio.StreamWriter(transport, protocol, None, loop)
    return _Process(process, writer, reader, None, ours)


class _TerminalReader(asyncio.StreamReaderProtocol):
    """A terminal whose last program ended reads as EIO: that is its end of file."""

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(None if isinstance(exc, OSError) else exc)
