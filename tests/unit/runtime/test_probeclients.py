"""Verdicts over the bytes a probed server may send."""

from __future__ import annotations

import hpack
import msgspec
import pytest

from podwire.objects.core import Container, HttpGetAction, HttpHeader, Probe
from podwire.runtime.probeclients import Check, grpc_check, http_check, tcp_check
from podwire.runtime.probes import compile_check, resolve_port


def http() -> Check:
    action = HttpGetAction(port=80, path="/x", http_headers=[HttpHeader(name="X-A", value="b")])
    return http_check(action, "10.0.0.1", 80, 1)


def test_http_request_is_a_kube_probe() -> None:
    payload = http().payload or b""
    assert payload.startswith(
        b"GET /x HTTP/1.1\r\nHost: 10.0.0.1:80\r\nUser-Agent: kube-probe/1.33"
    )
    assert b"\r\nX-A: b\r\n" in payload


@pytest.mark.parametrize(
    ("data", "closed", "ok"),
    [
        (b"HTTP/1.1 200 OK\r\n", False, True),
        (b"HTTP/1.1 399 x\r\n", False, True),
        (b"HTTP/1.1 400 x\r\n", False, False),
        (b"HTTP/1.1 50", False, None),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 x\r\n", False, True),
        (b"SSH-2.0-x\r\n", False, False),
        (b"", True, False),
    ],
)
def test_http_verdicts(data: bytes, closed: bool, ok: bool | None) -> None:
    outcome = http().judge(data, closed)
    assert (outcome.ok if outcome is not None else None) is ok


def frame(kind: int, flags: int, payload: bytes, stream: int = 1) -> bytes:
    return len(payload).to_bytes(3) + bytes((kind, flags)) + stream.to_bytes(4) + payload


SETTINGS = frame(4, 0, b"", 0)
HEADERS = frame(1, 4, hpack.Encoder().encode([(":status", "200")]))


def trailers(status: str) -> bytes:
    return frame(1, 5, hpack.Encoder().encode([("grpc-status", status)]))


def message(status: int) -> bytes:
    return frame(0, 0, b"\0\0\0\0\2\x08" + bytes((status,)))


@pytest.mark.parametrize(
    ("data", "ok", "words"),
    [
        (SETTINGS + HEADERS + message(1) + trailers("0"), True, ""),
        (SETTINGS + HEADERS + message(2) + trailers("0"), False, "NOT_SERVING"),
        (SETTINGS + frame(1, 5, hpack.Encoder().encode([("grpc-status", "12")])), False, "impl"),
        (SETTINGS + frame(3, 0, b"\0\0\0\2"), False, "reset"),
    ],
)
def test_grpc_verdicts(data: bytes, ok: bool, words: str) -> None:
    judge = grpc_check("10.0.0.1", 80, "svc", 1).judge
    for end in range(len(data)):
        assert judge(data[:end], False) is None
    outcome = judge(data, False)
    assert outcome is not None
    assert outcome.ok is ok
    assert words in outcome.message


def test_tcp_needs_no_bytes() -> None:
    assert tcp_check("::1", 80, 1).payload is None


def test_ports_by_name() -> None:
    container = msgspec.convert(
        {"name": "c", "ports": [{"name": "web", "containerPort": 8080}]}, Container
    )
    assert resolve_port("web", container.ports) == 8080
    assert resolve_port("81", container.ports) == 81
    probe = msgspec.convert({"tcpSocket": {"port": "nope"}}, Probe)
    with pytest.raises(ValueError, match="nope"):
        compile_check(probe, container, "10.0.0.1")
    exec_probe = msgspec.convert({"exec": {"command": ["true"]}}, Probe)
    assert compile_check(exec_probe, container, "10.0.0.1") is None
