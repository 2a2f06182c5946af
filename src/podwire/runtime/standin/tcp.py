"""A TCP connection of a stand-in: the first bytes decide what is spoken.

    PRI * HTTP/2.0 -> http2    METHOD SP -> HTTP/1.1    0x16 0x03 -> TLS, then again    else raw

Raw answers the identity line and echoes from then on. Nothing is said before the client spoke: a
prober that only connects must not be sent bytes it would have to reset.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Protocol, cast

import httptools

from podwire.runtime.standin.dial import dial
from podwire.runtime.standin.endpoint import Answer, Dial, Endpoint

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_METHODS = (b"GET ", b"POST ", b"PUT ", b"HEAD ", b"DELETE ", b"OPTIONS ", b"PATCH ", b"TRACE ")
_LONGEST = max(map(len, _METHODS))
_TLS = b"\x16\x03"
_HIGH_WATER = 256 * 1024
_LINES = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus
}


class Transport(Protocol):
    """What a speaker needs of its connection, be it plain or TLS."""

    def write(self, data: bytes) -> None: ...

    def close(self) -> None: ...

    def abort(self) -> None: ...

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


class Speaker(Protocol):
    """One protocol on one connection."""

    def feed(self, data: bytes) -> None: ...

    def closed(self) -> None: ...


def recognise(data: bytes) -> str | None:
    """`http2`, `http1`, `tls` or `raw`; None while the bytes could still become several."""
    if data.startswith(PREFACE):
        return "http2"
    if PREFACE.startswith(data):
        return None
    if data.startswith(_METHODS):
        return "http1"
    if len(data) < _LONGEST and any(method.startswith(data) for method in _METHODS):
        return None
    if data.startswith(_TLS):
        return "tls"
    return None if data == _TLS[:1] else "raw"


def speaker_for(name: str, endpoint: Endpoint, transport: Transport, client: str) -> Speaker:
    match name:
        case "http1":
            return Http1(endpoint, transport, client)
        case "http2":
            from podwire.runtime.standin.http2 import Http2

            return Http2(endpoint, transport, client)
        case "tls":
            from podwire.runtime.standin.tls import Tls

            return Tls(endpoint, transport, client)
    return Raw(endpoint, transport, client)


class Connection(asyncio.Protocol):
    """Accepted on a pod's port; becomes the speaker its first bytes ask for."""

    __slots__ = ("_client", "_connections", "_endpoint", "_first", "_speaker", "transport")

    def __init__(self, endpoint: Endpoint, connections: set[Connection]) -> None:
        self._endpoint = endpoint
        self._connections = connections
        self._first = b""
        self._speaker: Speaker | None = None
        self._client = ""
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are not subclasses of asyncio's.
        self.transport = cast(asyncio.Transport, transport)
        self._connections.add(self)
        peer = transport.get_extra_info("peername")
        self._client = plain_address(peer[0]) if peer else ""

    def data_received(self, data: bytes) -> None:
        if self._speaker is not None:
            self._speaker.feed(data)
            return
        self._first += data
        name = recognise(self._first)
        if name is not None and self.transport is not None:
            self._speaker = speaker_for(name, self._endpoint, self.transport, self._client)
            first, self._first = self._first, b""
            self._speaker.feed(first)

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None:
        # Whoever does not read our answers gets no more of them.
        if self.transport is not None:
            self.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.transport is not None and not self.transport.is_closing():
            self.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.discard(self)
        if self._speaker is not None:
            self._speaker.closed()


def plain_address(address: str) -> str:
    """IPv4 clients of a dual-stack socket appear as ::ffff:a.b.c.d; they are told a.b.c.d."""
    return address[7:] if address.startswith("::ffff:") else address


class Raw:
    """The identity line, then everything comes back."""

    __slots__ = ("_endpoint", "_greeted", "_peer", "_transport")

    def __init__(self, endpoint: Endpoint, transport: Transport, client: str) -> None:
        self._endpoint = endpoint
        self._transport = transport
        self._peer = client
        self._greeted = False

    def feed(self, data: bytes) -> None:
        if not self._greeted:
            self._greeted = True
            data = self._endpoint.identity(self._peer) + data
            self._endpoint.log.write(f"TCP :{self._endpoint.port.port} from {self._peer}")
        self._transport.write(data)

    def closed(self) -> None:
        pass


class Http1:
    """HTTP/1.0 and 1.1 with keep-alive and pipelining."""

    __slots__ = (
        "_client",
        "_dialing",
        "_endpoint",
        "_headers",
        "_parser",
        "_pending",
        "_target",
        "_transport",
    )

    def __init__(self, endpoint: Endpoint, transport: Transport, client: str) -> None:
        self._endpoint = endpoint
        self._transport = transport
        self._client = client
        self._headers: dict[str, str] = {}
        self._target = b""
        self._parser = httptools.HttpRequestParser(self)
        self._dialing: asyncio.Task[None] | None = None
        self._pending = b""

    def feed(self, data: bytes) -> None:
        if self._dialing is not None:
            self._pending += data
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._transport.write(
                b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            )
            self._transport.close()

    def closed(self) -> None:
        if self._dialing is not None:
            self._dialing.cancel()

    # -- httptools callbacks -------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._headers = {}
        self._target = b""

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        if self._headers.get("expect", "").lower() == "100-continue":
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_message_complete(self) -> None:
        method = self._parser.get_method().decode("latin-1")
        target = self._target.decode("latin-1")
        keep = self._parser.should_keep_alive()
        answer = self._endpoint.answer(method, target, self._headers, self._client)
        if isinstance(answer, Dial):
            self._dialing = asyncio.get_running_loop().create_task(self._dial(answer, method, keep))
            return
        self._send(answer, method, target, keep)

    async def _dial(self, request: Dial, method: str, keep: bool) -> None:
        body = await dial(self._endpoint.serve, request)
        self._dialing = None
        self._send(Answer(200, body, b"application/json"), method, "/dial", keep)
        pending, self._pending = self._pending, b""
        if pending:
            self.feed(pending)

    def _send(self, answer: Answer, method: str, target: str, keep: bool) -> None:
        line = _LINES.get(answer.status) or f"HTTP/1.1 {answer.status} \r\n".encode()
        body = answer.body if answer.status >= 200 and answer.status not in (204, 304) else b""
        head = b"%bContent-Type: %b\r\nContent-Length: %d\r\nServer: podwire-standin\r\n%b\r\n" % (
            line,
            answer.content_type,
            len(body),
            b"" if keep else b"Connection: close\r\n",
        )
        self._transport.write(head if method == "HEAD" else head + body)
        if not self._headers.get("user-agent", "").startswith("kube-probe/"):
            self._endpoint.log.write(f"{self._client} {method} {target} {answer.status}")
        if not keep:
            self._transport.close()
