"""HTTP/2 with prior knowledge, and gRPC on top: every method answers, health.v1 as it should.

A gRPC request is known by its content type. `grpc.health.v1.Health/Check` and `/Watch` answer
SERVING (or NOT_SERVING before `ready-after`); any other method answers one message whose first
field (string) is the identity JSON, so a generated client gets a message it can parse.
Source: RFC 9113, gRPC over HTTP/2 (PROTOCOL-HTTP2.md), grpc/health/v1/health.proto.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions

from podwire.runtime.standin.dial import dial
from podwire.runtime.standin.endpoint import Answer, Dial, Endpoint

if TYPE_CHECKING:
    from podwire.runtime.standin.tcp import Transport

_CONFIG = h2.config.H2Configuration(
    client_side=False,
    header_encoding="utf-8",
    validate_inbound_headers=True,
    normalize_outbound_headers=False,
    validate_outbound_headers=False,
)
SERVING, NOT_SERVING = b"\x08\x01", b"\x08\x02"
_HEALTH = "/grpc.health.v1.Health/"
_UNAVAILABLE = "14"


@dataclass
class _Stream:
    headers: dict[str, str]
    unsent: bytearray = field(default_factory=bytearray)
    trailers: list[tuple[str, str]] | None = None
    answered: bool = False
    keep_open: bool = False
    task: asyncio.Task[None] | None = None


class Http2:
    def __init__(self, endpoint: Endpoint, transport: Transport, client: str) -> None:
        self._endpoint = endpoint
        self._transport = transport
        self._client = client
        self._streams: dict[int, _Stream] = {}
        self._h2 = h2.connection.H2Connection(config=_CONFIG)
        self._h2.initiate_connection()
        self._flush()

    def feed(self, data: bytes) -> None:
        try:
            events = self._h2.receive_data(data)
        except h2.exceptions.ProtocolError:
            self._flush()
            self._transport.close()
            return
        for event in events:
            self._handle(event)
        self._flush()

    def closed(self) -> None:
        for stream in self._streams.values():
            if stream.task is not None:
                stream.task.cancel()

    def _flush(self) -> None:
        data = self._h2.data_to_send()
        if data:
            self._transport.write(data)

    def _handle(self, event: h2.events.Event) -> None:
        match event:
            case h2.events.RequestReceived(stream_id=int(number), headers=headers):
                pairs = [(_text(name), _text(value)) for name, value in headers or []]
                self._streams[number] = _Stream(dict(pairs))
            case h2.events.DataReceived(stream_id=int(number), flow_controlled_length=int(size)):
                if size:
                    self._h2.acknowledge_received_data(size, number)
                self._answer(number, ended=False)
            case h2.events.StreamEnded(stream_id=int(number)):
                self._answer(number, ended=True)
            case h2.events.StreamReset(stream_id=int(number)):
                stream = self._streams.pop(number, None)
                if stream is not None and stream.task is not None:
                    stream.task.cancel()
            case h2.events.WindowUpdated():
                for number in list(self._streams):
                    self._send(number)
            case h2.events.ConnectionTerminated():
                self._transport.close()

    def _answer(self, number: int, *, ended: bool) -> None:
        stream = self._streams.get(number)
        if stream is None or stream.answered:
            return
        grpc = stream.headers.get("content-type", "").startswith("application/grpc")
        # A gRPC client may keep its half open; its first message is enough to answer to.
        if not ended and not grpc:
            return
        stream.answered = True
        if grpc:
            self._answer_grpc(number, stream)
        else:
            self._answer_http(number, stream)

    def _answer_http(self, number: int, stream: _Stream) -> None:
        method, path = stream.headers[":method"], stream.headers.get(":path", "/")
        plain = {k: v for k, v in stream.headers.items() if not k.startswith(":")}
        answer = self._endpoint.answer(method, path, plain, self._client)
        if isinstance(answer, Dial):
            loop = asyncio.get_running_loop()
            stream.task = loop.create_task(self._dial(number, stream, answer))
            return
        self._respond(number, stream, answer, method, path)

    async def _dial(self, number: int, stream: _Stream, request: Dial) -> None:
        body = await dial(self._endpoint.serve, request)
        stream.task = None
        answer = Answer(200, body, b"application/json")
        self._respond(number, stream, answer, "GET", "/dial")
        self._flush()

    def _respond(
        self, number: int, stream: _Stream, answer: Answer, method: str, path: str
    ) -> None:
        headers = [
            (":status", str(answer.status)),
            ("content-type", answer.content_type.decode()),
            ("content-length", str(len(answer.body))),
            ("server", "podwire-standin"),
        ]
        self._h2.send_headers(number, headers)
        if method != "HEAD":
            stream.unsent += answer.body
        self._endpoint.log.write(f"{self._client} {method} {path} {answer.status} HTTP/2")
        self._send(number)

    def _answer_grpc(self, number: int, stream: _Stream) -> None:
        path = stream.headers.get(":path", "")
        endpoint = self._endpoint
        status = "0" if endpoint.status < 400 else _UNAVAILABLE
        health = path.startswith(_HEALTH)
        if health:
            message = SERVING if endpoint.ready else NOT_SERVING
            status = "0"
        else:
            plain = {k: v for k, v in stream.headers.items() if not k.startswith(":")}
            identity = endpoint.identity(self._client, method="POST", path=path, headers=plain)
            message = b"\x0a" + _varint(len(identity)) + identity
        self._h2.send_headers(number, [(":status", "200"), ("content-type", "application/grpc")])
        stream.keep_open = health and path.endswith("/Watch")
        stream.trailers = [("grpc-status", status)]
        if status == "0":
            stream.unsent += b"\0" + len(message).to_bytes(4) + message
        else:
            stream.trailers.append(("grpc-message", f"http-status {endpoint.status}"))
        if not stream.headers.get("user-agent", "").startswith("kube-probe/"):
            endpoint.log.write(f"{self._client} gRPC {path} {status}")
        self._send(number)

    def _send(self, number: int) -> None:
        """Send what the peer's window allows; the rest follows its WINDOW_UPDATE."""
        stream = self._streams.get(number)
        if stream is None or not stream.answered or stream.task is not None:
            return
        last = stream.trailers is None
        while stream.unsent:
            window = self._h2.local_flow_control_window(number)
            size = min(window, self._h2.max_outbound_frame_size, len(stream.unsent))
            if size <= 0:
                return
            chunk = bytes(stream.unsent[:size])
            del stream.unsent[:size]
            self._h2.send_data(number, chunk, end_stream=last and not stream.unsent)
            if last and not stream.unsent:
                del self._streams[number]
                return
        if stream.keep_open:
            return
        if stream.trailers is not None:
            self._h2.send_headers(number, stream.trailers, end_stream=True)
        else:
            self._h2.end_stream(number)
        del self._streams[number]


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode("latin-1")


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
