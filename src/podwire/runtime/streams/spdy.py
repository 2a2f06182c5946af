"""A SPDY/3.1 connection: streams multiplexed over one byte channel, either side of it.

    channel -> FrameReader -> SpdyConnection.run -> SpdyStream.inbox -> whoever reads the stream
    SpdyStream.write -> FrameWriter -> channel

Flow control: kubectl's library (moby/spdystream) neither sends nor obeys WINDOW_UPDATE, so
waiting for one would stop every answer after 64 KiB. Windows are obeyed only for a peer that has
shown that it keeps them (it sent SETTINGS with an initial window, or a WINDOW_UPDATE); towards
the peer, data that was consumed is always acknowledged, which spdystream ignores. Memory stays
bounded either way: a full inbox stops the reading of the connection, as upstream does it.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final

from podwire.runtime.streams import frames
from podwire.runtime.streams.channel import ByteChannel, Inbox
from podwire.runtime.streams.frames import FLAG_FIN, SpdyError

_CHUNK: Final = 32 * 1024
_ACKNOWLEDGE: Final = 32 * 1024
_MAX_STREAMS: Final = 1000
RST_PROTOCOL_ERROR: Final = 1
RST_REFUSED: Final = 3
RST_CANCEL: Final = 5


class SpdyStream:
    """One stream; `headers` are those it was opened with, names in lower case."""

    def __init__(
        self, connection: SpdyConnection, stream_id: int, headers: frames.Headers, window: int
    ) -> None:
        self.stream_id = stream_id
        self.headers = headers
        self.inbox = Inbox()
        self.send_window = window
        self.reset = False
        self.local_closed = False
        self.remote_closed = False
        self._connection = connection
        self._unacknowledged = 0

    async def reply(self) -> None:
        """Accept the stream: the peer waits for this."""
        await self._connection.send(frames.SynReply(self.stream_id))

    async def read(self) -> bytes:
        """The next bytes; b"" after the peer closed its half."""
        data = await self.inbox.get()
        self._unacknowledged += len(data)
        if self._unacknowledged >= _ACKNOWLEDGE and not self.remote_closed:
            delta, self._unacknowledged = self._unacknowledged, 0
            await self._connection.acknowledge(self, delta)
        return data

    async def write(self, data: bytes) -> None:
        """Raises `ConnectionResetError` when the stream or the connection is gone."""
        view = memoryview(data)
        while view:
            size = await self._connection.take_window(self, min(len(view), _CHUNK))
            await self._connection.send(frames.Data(self.stream_id, bytes(view[:size])))
            view = view[size:]

    async def close_write(self) -> None:
        """No more data from us (FIN); idempotent."""
        if not self.local_closed and not self.reset:
            self.local_closed = True
            await self._connection.send(frames.Data(self.stream_id, flags=FLAG_FIN))
            self._connection.forget_if_done(self)

    async def abort(self, status: int = RST_CANCEL) -> None:
        if not self.reset:
            self.reset = True
            await self._connection.send(frames.RstStream(self.stream_id, status))
            await self._connection.drop(self)


class SpdyConnection:
    """`run` until the peer is gone, and meanwhile `accept` the streams it opens."""

    def __init__(self, channel: ByteChannel, *, server: bool = True) -> None:
        self._channel = channel
        self._reader = frames.FrameReader()
        self._writer = frames.FrameWriter()
        self._write_lock = asyncio.Lock()
        self._streams: dict[int, SpdyStream] = {}
        self._accepted: asyncio.Queue[SpdyStream | None] = asyncio.Queue()
        self._last_id = 0
        self._next_id = 2 if server else 1
        self._flow_control = False
        self._initial_window = frames.INITIAL_WINDOW
        self._session_window = frames.INITIAL_WINDOW
        self._window_opened = asyncio.Condition()
        self.closed = asyncio.Event()

    async def run(self) -> None:
        """Read until the end of the channel; protocol errors end it with GOAWAY."""
        try:
            while data := await self._channel.read():
                for frame in self._reader.feed(data):
                    await self._handle(frame)
        except SpdyError:
            with contextlib.suppress(OSError):
                await self.send(frames.GoAway(self._last_id, RST_PROTOCOL_ERROR))
        finally:
            self.closed.set()
            self._accepted.put_nowait(None)
            for stream in list(self._streams.values()):
                stream.reset = True
                await stream.inbox.end()
            async with self._window_opened:
                self._window_opened.notify_all()

    async def accept(self) -> SpdyStream | None:
        """The next stream the peer opened, not yet replied to; None when the peer is gone."""
        return await self._accepted.get()

    async def open(self, headers: frames.Headers) -> SpdyStream:
        """Open a stream of our own."""
        stream = SpdyStream(self, self._next_id, headers, self._initial_window)
        self._next_id += 2
        self._streams[stream.stream_id] = stream
        await self.send(frames.SynStream(stream.stream_id, headers))
        return stream

    async def close(self) -> None:
        """Say GOAWAY and close the channel; everything written before is still delivered."""
        with contextlib.suppress(OSError):
            await self.send(frames.GoAway(self._last_id))
        await self._channel.close()

    async def send(self, frame: frames.Frame) -> None:
        # One lock for encoding and writing: header blocks must travel in the order of compression.
        async with self._write_lock:
            await self._channel.write(self._writer.encode(frame))

    async def acknowledge(self, stream: SpdyStream, delta: int) -> None:
        with contextlib.suppress(OSError):
            await self.send(frames.WindowUpdate(stream.stream_id, delta))
            await self.send(frames.WindowUpdate(0, delta))

    async def take_window(self, stream: SpdyStream, wanted: int) -> int:
        """How many bytes (1 to `wanted`) may be sent now; waits for the peer's window."""

        def may_send() -> bool:
            gone = self.closed.is_set() or stream.reset
            return gone or not self._flow_control or self._available(stream) > 0

        if self._flow_control:
            async with self._window_opened:
                await self._window_opened.wait_for(may_send)
        if self.closed.is_set() or stream.reset or stream.local_closed:
            raise ConnectionResetError(f"spdy stream {stream.stream_id} is closed")
        # Before the peer showed that it keeps windows, both go below zero and mean nothing yet.
        size = min(wanted, self._available(stream)) if self._flow_control else wanted
        stream.send_window -= size
        self._session_window -= size
        return size

    def _available(self, stream: SpdyStream) -> int:
        return min(stream.send_window, self._session_window)

    def forget_if_done(self, stream: SpdyStream) -> None:
        if stream.local_closed and stream.remote_closed:
            self._streams.pop(stream.stream_id, None)

    async def drop(self, stream: SpdyStream) -> None:
        stream.reset = True
        self._streams.pop(stream.stream_id, None)
        await stream.inbox.end()
        async with self._window_opened:
            self._window_opened.notify_all()

    async def _handle(self, frame: frames.Frame) -> None:
        match frame:
            case frames.SynStream():
                await self._on_syn(frame)
            case frames.Data(stream_id, data, flags):
                await self._on_data(stream_id, data, flags)
            case frames.SynReply(stream_id, _, flags) | frames.HeadersFrame(stream_id, _, flags):
                if flags & FLAG_FIN and (stream := self._streams.get(stream_id)):
                    await self._on_fin(stream)
            case frames.RstStream(stream_id):
                if stream := self._streams.get(stream_id):
                    await self.drop(stream)
            case frames.Ping(ping_id):
                # Even numbers are the server's own pings; we send none, so every ping is echoed.
                await self.send(frames.Ping(ping_id))
            case frames.Settings(values):
                await self._on_settings(values.get(frames.SETTING_INITIAL_WINDOW))
            case frames.WindowUpdate(stream_id, delta):
                await self._on_window(stream_id, delta)
            case frames.GoAway():
                # The peer opens no more streams; those that exist go on until it hangs up.
                return

    async def _on_syn(self, frame: frames.SynStream) -> None:
        if frame.stream_id <= self._last_id or len(self._streams) >= _MAX_STREAMS:
            status = RST_PROTOCOL_ERROR if frame.stream_id <= self._last_id else RST_REFUSED
            await self.send(frames.RstStream(frame.stream_id, status))
            return
        self._last_id = frame.stream_id
        stream = SpdyStream(self, frame.stream_id, frame.headers, self._initial_window)
        stream.local_closed = bool(frame.flags & frames.FLAG_UNIDIRECTIONAL)
        self._streams[frame.stream_id] = stream
        if frame.flags & FLAG_FIN:
            await self._on_fin(stream)
        self._accepted.put_nowait(stream)

    async def _on_data(self, stream_id: int, data: bytes, flags: int) -> None:
        stream = self._streams.get(stream_id)
        if stream is None or stream.remote_closed:
            return
        if data:
            await stream.inbox.put(data)
        if flags & FLAG_FIN:
            await self._on_fin(stream)

    async def _on_fin(self, stream: SpdyStream) -> None:
        stream.remote_closed = True
        await stream.inbox.end()
        self.forget_if_done(stream)

    async def _on_settings(self, window: int | None) -> None:
        if window is None:
            return
        async with self._window_opened:
            self._flow_control = True
            for stream in self._streams.values():
                stream.send_window += window - self._initial_window
            self._initial_window = window
            self._window_opened.notify_all()

    async def _on_window(self, stream_id: int, delta: int) -> None:
        async with self._window_opened:
            self._flow_control = True
            if stream_id == 0:
                self._session_window += delta
            elif stream := self._streams.get(stream_id):
                stream.send_window += delta
            self._window_opened.notify_all()
