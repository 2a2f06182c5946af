"""Addresses of names are those DNS answered, for their time, and only of names policies mean."""

from __future__ import annotations

from ipaddress import ip_address

import dns.message
import dns.rrset
import pytest
from hypothesis import given
from hypothesis import strategies as st

from podwire.policy.names import GRACE_S, Answer, NameTable, addresses_of

ONE, TWO, SIX = (ip_address(a) for a in ("192.0.2.1", "192.0.2.2", "2001:db8::1"))


def _response(question: str, *records: str, rcode: int = 0) -> bytes:
    message = dns.message.make_response(dns.message.make_query(question, "A"))
    message.set_rcode(rcode)
    for record in records:
        name, ttl, kind, *data = record.split()
        message.answer.append(dns.rrset.from_text(name, int(ttl), "IN", kind, *data))
    return message.to_wire()


def test_the_name_that_was_asked_has_the_addresses() -> None:
    found = addresses_of(_response("API.example.com.", "api.example.com. 30 A 192.0.2.1 192.0.2.2"))
    assert found == [Answer("api.example.com", frozenset({ONE, TWO}), 30.0)]


def test_every_alias_on_the_way_has_them_too_for_the_shortest_time() -> None:
    found = addresses_of(
        _response(
            "www.example.com.",
            "www.example.com. 10 CNAME edge.example.net.",
            "edge.example.net. 300 A 192.0.2.1",
            "other.example.org. 300 A 192.0.2.2",
        )
    )
    assert [(a.name, a.ttl_s) for a in found] == [
        ("www.example.com", 10.0),
        ("edge.example.net", 10.0),
    ]
    assert {a.addresses for a in found} == {frozenset({ONE})}


@pytest.mark.parametrize(
    "wire",
    [
        b"",
        b"\0" * 11,
        dns.message.make_query("a.example.", "A").to_wire(),
        _response("a.example.", rcode=3),
        _response("a.example.", "a.example. 5 CNAME b.example.", "b.example. 5 CNAME a.example."),
    ],
    ids=["nothing", "too short", "a question", "NXDOMAIN", "a loop"],
)
def test_what_is_no_answer_says_nothing(wire: bytes) -> None:
    assert addresses_of(wire) == []


@given(st.binary(max_size=80))
def test_no_bytes_break_it(wire: bytes) -> None:
    addresses_of(wire)


def test_addresses_count_for_their_time_and_a_little_longer() -> None:
    table = NameTable()
    table.want(["*.example.com"])
    assert table.learn([Answer("a.example.com", frozenset({ONE, SIX}), 10.0)], 100.0)
    assert not table.learn([Answer("a.example.com", frozenset({ONE}), 20.0)], 100.0)
    assert table.next_end == 110.0 + GRACE_S
    assert table.expire(111.0 + GRACE_S)
    assert table.names == {"a.example.com": frozenset({ONE})}
    assert table.expire(500.0)
    assert table.names == {}
    assert table.next_end is None


def test_only_names_that_policies_mean_are_kept() -> None:
    table = NameTable()
    table.want(["a.example.com"])
    assert not table.learn([Answer("b.example.com", frozenset({ONE}), 10.0)], 0.0)
    assert table.learn([Answer("a.example.com", frozenset({ONE}), 10.0)], 0.0)
    assert table.want(["b.example.com"])
    assert table.names == {}


def test_what_has_ended_is_remembered_for_connections_that_stand() -> None:
    table = NameTable()
    table.want(["*.example.com"])
    name = "a.example.com"
    table.learn([Answer(name, frozenset({ONE, TWO}), 10.0)], 0.0)
    assert table.expire(11.0 + GRACE_S)
    assert (table.names, table.ever) == ({}, {name: frozenset({ONE, TWO})})
    assert table.learn([Answer(name, frozenset({ONE}), 10.0)], 100.0)
    assert (table.names, table.ever) == ({name: {ONE}}, {name: {ONE, TWO}})
    table.want([])
    assert table.ever == {}
