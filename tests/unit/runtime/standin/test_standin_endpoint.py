"""What a stand-in says: paths, identity, recognition, and its small DNS reader."""

from __future__ import annotations

import struct
from typing import Any

import msgspec
import pytest

from podwire.runtime.standin.dial import parse_answer, parse_resolv_conf, search_candidates
from podwire.runtime.standin.endpoint import Answer, Dial, Endpoint
from podwire.runtime.standin.log import AccessLog
from podwire.runtime.standin.protocol import Options, Port, Serve
from podwire.runtime.standin.tcp import PREFACE, plain_address, recognise


def endpoint(exits: list[int] | None = None, **options: Any) -> Endpoint:
    serve = Serve(
        id="standin://1",
        namespace="shop",
        pod="web-0",
        pod_uid="u",
        container="c",
        attempt=0,
        node="node-1",
        address="10.244.0.5",
        ports=[Port(80)],
        options=Options(**options),
    )
    return Endpoint(serve, Port(80), AccessLog(""), (exits if exits is not None else []).append)


def get(target: str, where: Endpoint | None = None) -> Answer | Dial:
    return (where or endpoint()).answer("GET", target, {"x-a": "b"}, "10.244.1.9")


@pytest.mark.parametrize(
    ("target", "body"),
    [
        ("/hostname", b"web-0"),
        ("/clientip", b"10.244.1.9"),
        ("/echo?msg=hello%20you", b"hello you"),
        ("/healthz", b"ok"),
        ("/readyz", b"ok"),
        ("/livez", b"ok"),
        ("/header?key=X-A", b"b"),
    ],
)
def test_paths(target: str, body: bytes) -> None:
    answer = get(target)
    assert isinstance(answer, Answer)
    assert (answer.status, answer.body) == (200, body)


def test_any_other_path_tells_who_answers() -> None:
    answer = get("/cart?id=1")
    assert isinstance(answer, Answer)
    assert msgspec.json.decode(answer.body) == {
        "namespace": "shop",
        "pod": "web-0",
        "node": "node-1",
        "container": "c",
        "address": "10.244.0.5",
        "port": 80,
        "protocol": "TCP",
        "client": "10.244.1.9",
        "method": "GET",
        "path": "/cart?id=1",
        "headers": {"x-a": "b"},
    }


def test_http_status_and_ready_after() -> None:
    failing = get("/healthz", endpoint(http_status=503))
    late = get("/readyz", endpoint(ready_after_s=60))
    alive = get("/healthz", endpoint(ready_after_s=60))
    statuses = [a.status for a in (failing, late, alive) if isinstance(a, Answer)]
    assert statuses == [503, 503, 200]


def test_exit_and_dial() -> None:
    exits: list[int] = []
    get("/exit?code=3", endpoint(exits))
    assert exits == [3]
    refused = get("/exit?code=x")
    assert isinstance(refused, Answer)
    assert refused.status == 400
    target = "/dial?host=10.0.0.1&port=80&protocol=udp&tries=2&request=clientip"
    assert get(target) == Dial("10.0.0.1", 80, "udp", "clientip", 2)
    for bad in ("/dial", "/dial?host=a&port=0", "/dial?host=a&port=80&protocol=x"):
        answer = get(bad)
        assert isinstance(answer, Answer)
        assert answer.status == 400


@pytest.mark.parametrize(
    ("data", "reply"), [(b"hostname\n", b"web-0"), (b"clientip", b"1.2.3.4"), (b"echo a b", b"a b")]
)
def test_datagrams(data: bytes, reply: bytes) -> None:
    assert endpoint().answer_datagram(data, "1.2.3.4") == reply


def test_unknown_datagram_gets_the_identity() -> None:
    assert msgspec.json.decode(endpoint().answer_datagram(b"\xff", "c"))["pod"] == "web-0"


@pytest.mark.parametrize(
    ("data", "speaks"),
    [
        (PREFACE, "http2"),
        (PREFACE[:10], None),
        (b"GET / HTTP/1.1\r\n", "http1"),
        (b"GE", None),
        (b"\x16", None),
        (b"\x16\x03\x01", "tls"),
        (b"hello", "raw"),
        (b"PRIVATE", "raw"),
        (b"\x00", "raw"),
    ],
)
def test_recognise(data: bytes, speaks: str | None) -> None:
    assert recognise(data) == speaks


def test_plain_address() -> None:
    assert plain_address("::ffff:10.0.0.1") == "10.0.0.1"
    assert plain_address("fd00::1") == "fd00::1"


def test_resolver_order() -> None:
    text = "search a.svc svc\nnameserver 10.96.0.10\noptions ndots:5 timeout:1\n"
    assert parse_resolv_conf(text) == (["10.96.0.10"], ["a.svc", "svc"], 5)
    assert search_candidates("web", ["a", "b"], 5) == ["web.a", "web.b", "web"]
    assert search_candidates("x.y", ["a"], 1) == ["x.y", "x.y.a"]
    assert search_candidates("x.y.", ["a"], 5) == ["x.y"]


def test_parse_answer_skips_to_the_wanted_record() -> None:
    question = struct.pack("!6H", 7, 0x8180, 1, 2, 0, 0) + b"\x01a\0" + struct.pack("!2H", 1, 1)
    cname = b"\xc0\x0c" + struct.pack("!2HIH", 5, 1, 30, 2) + b"\xc0\x0c"
    record = b"\xc0\x0c" + struct.pack("!2HIH", 1, 1, 30, 4) + bytes((10, 0, 0, 9))
    assert parse_answer(question + cname + record, len(question), 1) == "10.0.0.9"
    assert parse_answer(question, len(question), 1) is None
