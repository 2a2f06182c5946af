"""One container port as the stand-in plays it: who it is, and what it answers to a request.

`answer` is pure but for the clock (`ready_after`); the HTTP/1.1, HTTP/2 and UDP front ends share
it. The paths are those of Kubernetes' test image agnhost (netexec), so its users' scripts work.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, unquote

import msgspec

from podwire.runtime.standin.log import AccessLog
from podwire.runtime.standin.protocol import Port, Serve

JSON = b"application/json"
TEXT = b"text/plain; charset=utf-8"

_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    body: bytes
    content_type: bytes = TEXT


@dataclass(frozen=True, slots=True)
class Dial:
    """The answer is the outcome of connections made from inside the pod (`/dial`)."""

    host: str
    port: int
    protocol: str
    request: str
    tries: int


class Endpoint:
    """Shared by all connections of one port."""

    __slots__ = ("_prefix", "exit", "log", "port", "ready_at", "serve", "status")

    def __init__(
        self, serve: Serve, port: Port, log: AccessLog, exit_: Callable[[int], None]
    ) -> None:
        self.serve = serve
        self.port = port
        self.log = log
        self.exit = exit_
        self.tune(serve.options.http_status)
        self.ready_at = time.monotonic() + serve.options.ready_after_s
        who = {
            "namespace": serve.namespace,
            "pod": serve.pod,
            "node": serve.node,
            "container": serve.container,
            "address": serve.address,
            "port": port.port,
            "protocol": port.protocol,
        }
        self._prefix = _encode(who)[:-1]

    def tune(self, http_status: int) -> None:
        """The status of every answer from now on; 0 is the ordinary one."""
        self.status = http_status or 200

    @property
    def ready(self) -> bool:
        return self.status < 400 and time.monotonic() >= self.ready_at

    def identity(self, client: str, **request: Any) -> bytes:
        """Who answers, and whom: the JSON every unknown path, method and protocol gets."""
        return self._prefix + b"," + _encode({"client": client, **request})[1:] + b"\n"

    def answer(
        self, method: str, target: str, headers: Mapping[str, str], client: str
    ) -> Answer | Dial:
        path, _, query = target.partition("?")
        handler = _PATHS.get(path)
        if handler is not None:
            return handler(self, _Request(parse_qs(query) if query else {}, headers, client))
        body = self.identity(client, method=method, path=target, headers=headers)
        return Answer(self.status, body, JSON)

    def answer_datagram(self, data: bytes, client: str) -> bytes:
        """agnhost netexec's UDP forms; anything else is told who we are."""
        text = data.decode(errors="replace").strip()
        match text.split(" ", 1):
            case ["hostname"]:
                return self.serve.pod.encode()
            case ["clientip"]:
                return client.encode()
            case ["echo", message]:
                return message.encode()
        return self.identity(client)


@dataclass(frozen=True, slots=True)
class _Request:
    query: Mapping[str, list[str]]
    headers: Mapping[str, str]
    client: str

    def get(self, key: str, default: str = "") -> str:
        return self.query.get(key, [default])[0]


def _hostname(endpoint: Endpoint, _request: _Request) -> Answer:
    return Answer(endpoint.status, endpoint.serve.pod.encode())


def _client_ip(endpoint: Endpoint, request: _Request) -> Answer:
    return Answer(endpoint.status, request.client.encode())


def _echo(endpoint: Endpoint, request: _Request) -> Answer:
    return Answer(endpoint.status, request.get("msg").encode())


def _alive(endpoint: Endpoint, _request: _Request) -> Answer:
    return Answer(endpoint.status, b"ok")


def _ready(endpoint: Endpoint, _request: _Request) -> Answer:
    if endpoint.ready:
        return Answer(endpoint.status, b"ok")
    return Answer(endpoint.status if endpoint.status >= 400 else 503, b"not ready")


def _header(endpoint: Endpoint, request: _Request) -> Answer:
    return Answer(endpoint.status, request.headers.get(request.get("key").lower(), "").encode())


def _exit(endpoint: Endpoint, request: _Request) -> Answer:
    code = request.get("code", "0")
    if not code.isdigit() or int(code) > 255:
        return Answer(400, b"code must be a number from 0 to 255")
    endpoint.exit(int(code))
    return Answer(200, b"")


def _dial(endpoint: Endpoint, request: _Request) -> Answer | Dial:
    host, port = request.get("host"), request.get("port")
    protocol, tries = request.get("protocol", "http").lower(), request.get("tries", "1")
    if not host:
        return Answer(400, b"host parameter is required")
    if not port.isdigit() or not 0 < int(port) < 65536:
        return Answer(400, b"port must be a number from 1 to 65535")
    if not tries.isdigit() or not 0 < int(tries) <= 1000:
        return Answer(400, b"tries must be a number from 1 to 1000")
    if protocol not in ("http", "tcp", "udp", "sctp"):
        return Answer(400, f"unsupported protocol: {protocol}".encode())
    return Dial(host, int(port), protocol, unquote(request.get("request", "hostname")), int(tries))


_PATHS: dict[str, Callable[[Endpoint, _Request], Answer | Dial]] = {
    "/hostname": _hostname,
    "/hostName": _hostname,
    "/clientip": _client_ip,
    "/echo": _echo,
    "/healthz": _alive,
    "/livez": _alive,
    "/readyz": _ready,
    "/header": _header,
    "/exit": _exit,
    "/dial": _dial,
}
