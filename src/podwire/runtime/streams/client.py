"""`podwire exec`: a WebSocket `v5.channel.k8s.io` client on the user's terminal.

terminal (raw) -> thread -> channel 0 -> server -> channels 1, 2 -> terminal
SIGWINCH -> channel 4                    channel 3 -> exit code
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import ssl
import sys
import termios
import threading
import tty as tty_module
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import aiohttp
import msgspec

from podwire.errors import ApiError
from podwire.runtime.streams import protocol
from podwire.runtime.streams.protocol import Channel

_CHUNK: Final = 32 * 1024


@dataclass(frozen=True)
class Terminal:
    """The client's own streams: file descriptors, so that tests can hand in pipes and ptys."""

    stdin: int = 0
    stdout: int = 1
    stderr: int = 2

    def size(self) -> tuple[int, int]:
        """Columns and rows."""
        try:
            return os.get_terminal_size(self.stdout)
        except OSError:
            return shutil.get_terminal_size()

    @contextlib.contextmanager
    def raw(self) -> Iterator[None]:
        """Raw mode while the remote side owns the terminal; nothing where stdin is not one."""
        if not os.isatty(self.stdin):
            yield
            return
        former = termios.tcgetattr(self.stdin)
        # DRAIN keeps what was typed ahead.
        tty_module.setraw(self.stdin, termios.TCSADRAIN)
        try:
            yield
        finally:
            termios.tcsetattr(self.stdin, termios.TCSADRAIN, former)


@dataclass(frozen=True)
class ExecTarget:
    """Where to connect: `url` is the exec or attach URL with its whole query."""

    url: str
    unix_socket: Path | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    ssl_context: ssl.SSLContext | None = None

    def connector(self) -> aiohttp.BaseConnector:
        if self.unix_socket is not None:
            return aiohttp.UnixConnector(str(self.unix_socket))
        return aiohttp.TCPConnector(ssl=self.ssl_context or True)


async def exec_client(
    target: ExecTarget, *, stdin: bool = False, tty: bool = False, terminal: Terminal | None = None
) -> int:
    """Run one remote command on this terminal and return its exit code.

    `stdin` and `tty` must say what the query of `target.url` says. Raises `ApiError` when the
    server refuses, or when the command could not be started or its end is not known.
    """
    terminal = terminal or Terminal()
    async with (
        aiohttp.ClientSession(connector=target.connector()) as http,
        _connected(http, target) as socket,
    ):
        loop = asyncio.get_running_loop()
        client = _Client(socket, terminal, loop)
        with terminal.raw() if tty else contextlib.nullcontext():
            if tty:
                await client.send_size()
                _on_resize(loop, client)
            if stdin:
                threading.Thread(target=client.forward_stdin, daemon=True).start()
            try:
                return await client.receive()
            finally:
                if tty and threading.current_thread() is threading.main_thread():
                    loop.remove_signal_handler(signal.SIGWINCH)


@contextlib.asynccontextmanager
async def _connected(http: aiohttp.ClientSession, target: ExecTarget) -> Any:
    try:
        socket = await http.ws_connect(
            target.url,
            protocols=protocol.WEBSOCKET_PROTOCOLS,
            headers=dict(target.headers),
            max_msg_size=0,
            heartbeat=30.0,
        )
    except aiohttp.WSServerHandshakeError as e:
        raise ApiError(f"exec: the server refused: {e.status} {e.message}", code=e.status) from e
    async with socket:
        yield socket


def _on_resize(loop: asyncio.AbstractEventLoop, client: _Client) -> None:
    if threading.current_thread() is threading.main_thread():
        loop.add_signal_handler(
            signal.SIGWINCH, lambda: client.keep(loop.create_task(client.send_size()))
        )


class _Client:
    def __init__(
        self,
        socket: aiohttp.ClientWebSocketResponse,
        terminal: Terminal,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._socket = socket
        self._terminal = terminal
        self._loop = loop
        self._tasks: set[asyncio.Task[None]] = set()

    def keep(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def send(self, channel: Channel, data: bytes) -> None:
        with contextlib.suppress(OSError, aiohttp.ClientError):
            await self._socket.send_bytes(bytes([channel]) + data)

    async def send_size(self) -> None:
        columns, rows = self._terminal.size()
        size = protocol.Resize(width=columns, height=rows)
        await self.send(Channel.RESIZE, msgspec.json.encode(size))

    def forward_stdin(self) -> None:
        """Runs in a thread: stdin may be a file or a terminal; only a read tells when it ends."""
        with contextlib.suppress(OSError, RuntimeError):
            while data := os.read(self._terminal.stdin, _CHUNK):
                self._submit(Channel.STDIN, data)
            if self._socket.protocol == protocol.V5:
                self._submit(Channel.CLOSE, bytes([Channel.STDIN]))

    def _submit(self, channel: Channel, data: bytes) -> None:
        sending = self.send(channel, data)
        try:
            asyncio.run_coroutine_threadsafe(sending, self._loop).result()
        except RuntimeError:
            sending.close()
            raise

    async def receive(self) -> int:
        outputs = {Channel.STDOUT: self._terminal.stdout, Channel.STDERR: self._terminal.stderr}
        errors = b""
        async for message in self._socket:
            if message.type is not aiohttp.WSMsgType.BINARY or not message.data:
                continue
            channel, data = message.data[0], message.data[1:]
            if channel in outputs:
                _write_all(outputs[Channel(channel)], data)
            elif channel == Channel.ERROR:
                errors += data
        return _exit_code(errors)


def _exit_code(raw: bytes) -> int:
    if not raw:
        raise ApiError("exec: the connection ended before the command did; is the pod still there?")
    try:
        status = msgspec.json.decode(raw, type=dict[str, Any])
    except msgspec.MsgspecError:
        raise ApiError(f"exec: {raw.decode(errors='replace')}") from None
    code = protocol.exit_code_of(status)
    if code is None:
        raise ApiError.from_status(status, int(status.get("code") or 500))
    return code


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    try:
        while view:
            view = view[os.write(fd, view) :]
    except BrokenPipeError:
        # `podwire exec ... | head`: nobody reads any more.
        sys.exit(128 + signal.SIGPIPE)
