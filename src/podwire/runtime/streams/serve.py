"""The server's side of exec and attach: negotiate, then move bytes between a client and a process.

    request -> upgrade -> Remote (WebSocket or SPDY) <-> _Session <-> ExecProcess

The session ends when the process has ended and its output was sent (then the exit code goes out
as a Status), or when the client is gone (then the process is killed, as containerd does on a
cancelled exec; an attached process only loses its onlooker: its `kill` detaches).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, runtime_checkable

import msgspec
from aiohttp import WSMsgType, web

from podwire.errors import ApiError, BadRequestError, ContainerError, ForbiddenError
from podwire.runtime.containers import ExecProcess, ExitStatus
from podwire.runtime.streams import protocol
from podwire.runtime.streams.channel import Hijacked, Inbox, hijack
from podwire.runtime.streams.protocol import Channel
from podwire.runtime.streams.spdy import RST_REFUSED, SpdyConnection, SpdyStream

log = logging.getLogger(__name__)

_READ_SIZE: Final = 32 * 1024
_STREAMS_TIMEOUT_S: Final = 30.0
# A background grandchild may hold the output open after the process ended; what it already wrote is
# sent, then the session ends.
_DRAIN_IDLE_S: Final = 1.0
_SPDY_HEADER: Final = "X-Stream-Protocol-Version"
_TRUE: Final = frozenset({"1", "true", "True", "TRUE"})


@dataclass(frozen=True)
class ExecRequest:
    """PodExecOptions and PodAttachOptions from a query (a kubelet's own spelling too)."""

    command: tuple[str, ...] = ()
    container: str = ""
    stdin: bool = False
    stdout: bool = False
    stderr: bool = False
    tty: bool = False

    @staticmethod
    def parse(request: web.BaseRequest) -> ExecRequest:
        """Raises `BadRequestError` as upstream does when no stream is asked for."""
        query = request.query

        def on(*names: str) -> bool:
            return any(query.get(name) in _TRUE for name in names)

        tty = on("tty")
        options = ExecRequest(
            command=tuple(query.getall("command", [])),
            container=query.get("container", ""),
            stdin=on("stdin", "input"),
            stdout=on("stdout", "output"),
            stderr=on("stderr", "error") and not tty,
            tty=tty,
        )
        if not (options.stdin or options.stdout or options.stderr):
            raise BadRequestError("you must specify at least 1 of stdin, stdout, stderr")
        return options


Start = Callable[[ExecRequest], Awaitable[ExecProcess]]


@runtime_checkable
class SupportsClose(Protocol):
    """A process that holds descriptors to let go of when its session is over."""

    def close(self) -> None: ...


class Remote(Protocol):
    """A connected client. `send` raises `OSError` once it is gone, and then `gone` is set."""

    stdin: Inbox
    resize: Inbox
    gone: asyncio.Event

    async def send(self, channel: Channel, data: bytes) -> None: ...

    async def finish(self, status: dict[str, Any]) -> None:
        """Send the final Status and close."""


async def serve_exec(request: web.Request, start: Start) -> web.StreamResponse:
    """Serve one exec or attach to its end; `start` gives the process once the client is connected.

    What `start` raises reaches the client as a Status, so look up pods and containers before
    calling this: only then a 404 is a 404. Raises `ApiError` when the upgrade is refused.
    """
    options = ExecRequest.parse(request)
    upgrade = request.headers.get("Upgrade", "").lower()
    if upgrade == "websocket":
        return await _serve_websocket(request, options, start)
    if upgrade == "spdy/3.1":
        return await _serve_spdy(request, options, start)
    raise BadRequestError("Upgrade request required")


# --- WebSocket ----------------------------------------------------------------------------------


class _WebSocketRemote:
    def __init__(self, socket: web.WebSocketResponse) -> None:
        self.stdin = Inbox()
        self.resize = Inbox()
        self.gone = asyncio.Event()
        self._socket = socket

    async def receive(self) -> None:
        try:
            async for message in self._socket:
                if message.type is WSMsgType.BINARY and message.data:
                    await self._on_message(message.data[0], message.data[1:])
        finally:
            self.gone.set()
            await self.stdin.end()
            await self.resize.end()

    async def _on_message(self, channel: int, data: bytes) -> None:
        if channel == Channel.STDIN:
            await self.stdin.put(data)
        elif channel == Channel.RESIZE:
            await self.resize.put(data)
        elif channel == Channel.CLOSE and data[:1] == b"\0":
            await self.stdin.end()

    async def send(self, channel: Channel, data: bytes) -> None:
        await self._socket.send_bytes(bytes([channel]) + data)

    async def finish(self, status: dict[str, Any]) -> None:
        await self.send(Channel.ERROR, msgspec.json.encode(status))
        await self._socket.close()


async def _serve_websocket(
    request: web.Request, options: ExecRequest, start: Start
) -> web.StreamResponse:
    offered = _split(request.headers.getall("Sec-WebSocket-Protocol", []))
    if not set(offered) & set(protocol.WEBSOCKET_PROTOCOLS):
        raise _no_common_protocol(offered, protocol.WEBSOCKET_PROTOCOLS)
    # The server's pings are not needed: kubectl sends its own, and aiohttp answers them.
    socket = web.WebSocketResponse(
        protocols=protocol.WEBSOCKET_PROTOCOLS, compress=False, max_msg_size=0, timeout=5.0
    )
    await socket.prepare(request)
    remote = _WebSocketRemote(socket)
    async with _background(remote.receive()):
        with contextlib.suppress(OSError):
            # An empty first message tells the client that the streams stand, as upstream does.
            await remote.send(Channel.STDOUT if options.stdout else Channel.ERROR, b"")
        await _run(remote, options, start)
    return socket


# --- SPDY ---------------------------------------------------------------------------------------


class _SpdyRemote:
    def __init__(self, connection: SpdyConnection, streams: dict[str, SpdyStream]) -> None:
        self._connection = connection
        self._streams = streams
        self._error = streams["error"]
        self.gone = connection.closed
        self.stdin = Inbox()
        self.resize = Inbox()

    async def pump(self) -> None:
        """Move what the client sends from its streams to the inboxes."""
        inboxes = {"stdin": self.stdin, "resize": self.resize}
        await asyncio.gather(
            *(_pump(self._streams[k], inbox) for k, inbox in inboxes.items() if k in self._streams)
        )

    async def send(self, channel: Channel, data: bytes) -> None:
        stream = self._streams.get(channel.name.lower())
        if stream is not None:
            await stream.write(data)

    async def finish(self, status: dict[str, Any]) -> None:
        for name in ("stdout", "stderr"):
            if stream := self._streams.get(name):
                await stream.close_write()
        await self._error.write(msgspec.json.encode(status))
        await self._error.close_write()
        # spdystream drops what it has not delivered when the connection breaks: let the client,
        # which now has all, hang up first.
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.gone.wait(), 5.0)


async def _pump(stream: SpdyStream, inbox: Inbox) -> None:
    while data := await stream.read():
        await inbox.put(data)
    await inbox.end()


async def _serve_spdy(
    request: web.Request, options: ExecRequest, start: Start
) -> web.StreamResponse:
    offered = _split(request.headers.getall(_SPDY_HEADER, []))
    chosen = next((name for name in offered if name in protocol.SPDY_PROTOCOLS), None)
    if chosen is None:
        raise _no_common_protocol(offered, protocol.SPDY_PROTOCOLS)
    channel = hijack(
        request, {"Connection": "Upgrade", "Upgrade": "SPDY/3.1", _SPDY_HEADER: chosen}
    )
    connection = SpdyConnection(channel)
    async with _background(connection.run()):
        with contextlib.suppress(OSError):
            streams = await _accept_streams(connection, _expected_streams(options))
            if streams is not None:
                remote = _SpdyRemote(connection, streams)
                async with _background(remote.pump()):
                    await _run(remote, options, start)
        await connection.close()
    return Hijacked()


def _expected_streams(options: ExecRequest) -> set[str]:
    wanted = {
        "error": True,
        "stdin": options.stdin,
        "stdout": options.stdout,
        "stderr": options.stderr,
        "resize": options.tty,
    }
    return {name for name, on in wanted.items() if on}


async def _accept_streams(
    connection: SpdyConnection, expected: set[str]
) -> dict[str, SpdyStream] | None:
    """All `expected` streams, or None when the client left or did not open them in time."""
    streams: dict[str, SpdyStream] = {}
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_STREAMS_TIMEOUT_S):
            while expected - streams.keys():
                stream = await connection.accept()
                if stream is None:
                    return None
                name = stream.headers.get("streamtype", "")
                if name not in expected or name in streams:
                    await stream.abort(RST_REFUSED)
                    continue
                await stream.reply()
                streams[name] = stream
            return streams
    log.warning("exec: the client opened only %s of %s", sorted(streams), sorted(expected))
    return None


# --- the session --------------------------------------------------------------------------------


async def _run(remote: Remote, options: ExecRequest, start: Start) -> None:
    """One process from start to the final Status; never raises for what a client can cause."""
    try:
        process = await start(options)
    except (ContainerError, ApiError) as e:
        with contextlib.suppress(OSError):
            await remote.finish(protocol.internal_error_object(str(e)))
        return
    session = _Session(remote, process)
    try:
        exit_status = await session.run()
        if exit_status is not None:
            with contextlib.suppress(OSError):
                await remote.finish(protocol.exit_status_object(exit_status))
    finally:
        if not session.ended:
            process.kill(signal.SIGKILL)
        if isinstance(process, SupportsClose):
            process.close()


class _Session:
    """`ended`: the process is known to have ended."""

    def __init__(self, remote: Remote, process: ExecProcess) -> None:
        self.ended = False
        self._remote = remote
        self._process = process
        self._moved = 0

    async def run(self) -> ExitStatus | None:
        """How the process ended, all output being sent; None when the client left before that."""
        gone = asyncio.create_task(self._remote.gone.wait())
        work = asyncio.create_task(self._output_and_exit())
        inputs = [asyncio.create_task(job) for job in (self._stdin(), self._resizes())]
        try:
            await asyncio.wait({gone, work}, return_when=asyncio.FIRST_COMPLETED)
            return await work if work.done() else None
        except OSError:
            return None
        finally:
            await _cancel([gone, work, *inputs])

    async def _output_and_exit(self) -> ExitStatus:
        process = self._process
        outputs = [asyncio.create_task(self._output(Channel.STDOUT, process.stdout))]
        if process.stderr is not None:
            outputs.append(asyncio.create_task(self._output(Channel.STDERR, process.stderr)))
        try:
            exit_status = await process.wait()
            self.ended = True
            await self._drain(outputs)
            return exit_status
        finally:
            await _cancel(outputs)

    async def _drain(self, outputs: Sequence[asyncio.Task[None]]) -> None:
        pending = set(outputs)
        while pending:
            before = self._moved
            done, pending = await asyncio.wait(pending, timeout=_DRAIN_IDLE_S)
            for task in done:
                task.result()
            if not done and self._moved == before:
                return

    async def _output(self, channel: Channel, reader: asyncio.StreamReader) -> None:
        while data := await _read(reader):
            await self._remote.send(channel, data)
            self._moved += len(data)

    async def _stdin(self) -> None:
        stdin = self._process.stdin
        while data := await self._remote.stdin.get():
            if stdin is not None:
                stdin.write(data)
                with contextlib.suppress(OSError):
                    await stdin.drain()
        if stdin is not None:
            stdin.close()

    async def _resizes(self) -> None:
        decoder = msgspec.json.Decoder(protocol.Resize)
        rest = b""
        while data := await self._remote.resize.get():
            *objects, rest = (rest + data).replace(b"}", b"}\n").split(b"\n")
            for raw in filter(bytes.strip, objects):
                with contextlib.suppress(msgspec.MsgspecError, OSError):
                    size = decoder.decode(raw)
                    self._process.resize(size.width, size.height)


async def _read(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.read(_READ_SIZE)
    except OSError:
        # EIO: the last holder of a pty's other side is gone; that is how a terminal ends.
        return b""


async def _cancel(tasks: Sequence[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@contextlib.asynccontextmanager
async def _background(job: Any) -> Any:
    task = asyncio.create_task(job)
    try:
        yield task
    finally:
        await _cancel([task])


def _split(values: Sequence[str]) -> list[str]:
    """Header values, whether sent one per line or separated by commas."""
    return [part.strip() for value in values for part in value.split(",") if part.strip()]


def _no_common_protocol(offered: Sequence[str], accepted: Sequence[str]) -> ApiError:
    return ForbiddenError(
        "unable to upgrade: unable to negotiate protocol: "
        f"client supports {offered}, server accepts {list(accepted)}"
    )
