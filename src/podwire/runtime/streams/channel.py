"""Duplex byte channels under the stream protocols, and the bounded inbox above them.

A channel is what is left of an HTTP connection after `101 Switching Protocols` (`hijack`), or the
binary messages of a WebSocket (`WebSocketBytes`). The SPDY code cannot tell them apart.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping
from typing import Protocol

from aiohttp import ClientWebSocketResponse, WSMsgType, web

from podwire.errors import BadRequestError

_READ_SIZE = 64 * 1024


class ByteChannel(Protocol):
    """`read` returns b"" at the end of the data; `write` raises `OSError` when the peer is gone."""

    async def read(self) -> bytes: ...

    async def write(self, data: bytes) -> None: ...

    async def close(self) -> None: ...


class Inbox:
    """Bytes on their way to a slow consumer: `put` waits while `limit` bytes are unread."""

    def __init__(self, limit: int = 256 * 1024) -> None:
        self._limit = limit
        self._chunks: deque[bytes] = deque()
        self._size = 0
        self._eof = False
        self._changed = asyncio.Condition()

    async def put(self, data: bytes) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: self._size < self._limit or self._eof)
            if data and not self._eof:
                self._chunks.append(data)
                self._size += len(data)
                self._changed.notify_all()

    async def end(self) -> None:
        """No more data: `get` returns what is left, then b""; later `put`s are dropped."""
        async with self._changed:
            self._eof = True
            self._changed.notify_all()

    async def get(self) -> bytes:
        async with self._changed:
            await self._changed.wait_for(lambda: bool(self._chunks) or self._eof)
            if not self._chunks:
                return b""
            data = self._chunks.popleft()
            self._size -= len(data)
            self._changed.notify_all()
            return data


class SocketBytes:
    """A channel over a stream reader and writer."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def read(self) -> bytes:
        try:
            return await self._reader.read(_READ_SIZE)
        except OSError:
            return b""

    async def write(self, data: bytes) -> None:
        if self._writer.is_closing():
            raise ConnectionResetError("the peer is gone")
        self._writer.write(data)
        await self._writer.drain()

    async def close(self) -> None:
        self._writer.close()
        try:
            await self._writer.wait_closed()
        except OSError:
            return


class WebSocketBytes:
    """A channel over the binary messages of a WebSocket: `SPDY/3.1+portforward.k8s.io`."""

    def __init__(self, socket: web.WebSocketResponse | ClientWebSocketResponse) -> None:
        self._socket = socket

    async def read(self) -> bytes:
        while True:
            message = await self._socket.receive()
            if message.type is WSMsgType.BINARY:
                data: bytes = message.data
                if data:
                    return data
            elif message.type is not WSMsgType.TEXT:
                return b""

    async def write(self, data: bytes) -> None:
        await self._socket.send_bytes(data)

    async def close(self) -> None:
        await self._socket.close()


class Hijacked(web.StreamResponse):
    """What a handler returns after `hijack`: it tells aiohttp that nothing is left to send."""

    def __init__(self) -> None:
        super().__init__(status=101)

    async def prepare(self, request: web.BaseRequest) -> None:
        return None

    async def write_eof(self, data: bytes = b"") -> None:
        return None


class _HijackProtocol(asyncio.StreamReaderProtocol):
    """Takes the transport over from aiohttp, which still has to hear of the end of it."""

    def __init__(self, reader: asyncio.StreamReader, former: asyncio.BaseProtocol) -> None:
        super().__init__(reader)
        self._former = former

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._former.connection_lost(exc)


def hijack(request: web.Request, headers: Mapping[str, str]) -> SocketBytes:
    """Answer 101 with `headers` and take the connection; the handler then returns `Hijacked()`.

    Call it before anything was sent. The peer may send only after it saw the 101, so no byte of the
    new protocol can already sit in aiohttp's parser.
    """
    transport = request.transport
    if transport is None:
        raise BadRequestError("the client is gone before its connection was upgraded")
    lines = ["HTTP/1.1 101 Switching Protocols", *(f"{k}: {v}" for k, v in headers.items())]
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=_READ_SIZE)
    protocol = _HijackProtocol(reader, request.protocol)
    request.protocol.keep_alive(False)
    transport.set_protocol(protocol)
    protocol.connection_made(transport)
    if isinstance(transport, asyncio.ReadTransport) and not transport.is_reading():
        transport.resume_reading()
    writer = asyncio.StreamWriter(transport, protocol, reader, loop)
    writer.write("\r\n".join([*lines, "", ""]).encode("latin-1"))
    return SocketBytes(reader, writer)
