"""The world beyond a lab: a zone file and RFC 1034's way through it."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import pytest
from hypothesis import given
from hypothesis import strategies as st

from podwire.errors import UsageError
from podwire.lab.outsidezone import OutsideZone, default_zone, read_zone_file

V4, V6 = ip_address("203.0.113.10"), ip_address("2001:db8:113::10")
WORLD = OutsideZone(default_zone((V4, V6)))


def ask(world: OutsideZone, name: str, kind: str, *, tcp: bool = False) -> dns.message.Message:
    query = dns.message.make_query(name, kind)
    wire = world.answer(query.to_wire(), tcp=tcp)
    assert wire is not None
    response = dns.message.from_wire(wire)
    assert response.id == query.id
    assert response.flags & dns.flags.RA
    return response


def lines(response: dns.message.Message) -> list[str]:
    return [line for rrset in response.answer for line in rrset.to_text().splitlines()]


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        ("outside.example", "A", ["outside.example. 60 IN A 203.0.113.10"]),
        ("outside.example", "AAAA", ["outside.example. 60 IN AAAA 2001:db8:113::10"]),
        ("Outside.Example", "A", ["Outside.Example. 60 IN A 203.0.113.10"]),
        (
            "www.example.com",
            "A",
            ["www.example.com. 60 IN CNAME example.com.", "example.com. 60 IN A 203.0.113.10"],
        ),
        ("www.example.com", "CNAME", ["www.example.com. 60 IN CNAME example.com."]),
        (
            "any.wild.outside.example",
            "A",
            [
                "any.wild.outside.example. 60 IN CNAME outside.example.",
                "outside.example. 60 IN A 203.0.113.10",
            ],
        ),
        ("10.113.0.203.in-addr.arpa", "PTR", [
            "10.113.0.203.in-addr.arpa. 60 IN PTR outside.example.",
        ]),
        ("example.com", "MX", ["example.com. 60 IN MX 10 mail.example.com."]),
    ],
)  # fmt: skip
def test_what_is_there_is_answered(name: str, kind: str, expected: list[str]) -> None:
    response = ask(WORLD, name, kind)
    assert response.rcode() == dns.rcode.NOERROR
    assert lines(response) == expected


@pytest.mark.parametrize(
    ("name", "kind", "rcode", "zone"),
    [
        ("outside.example", "SRV", dns.rcode.NOERROR, "outside.example."),
        ("wild.outside.example", "A", dns.rcode.NOERROR, "outside.example."),
        ("no.example.com", "A", dns.rcode.NXDOMAIN, "example.com."),
        ("no.such.tld", "A", dns.rcode.NXDOMAIN, "."),
        ("web.shop.svc.cluster.local", "A", dns.rcode.NXDOMAIN, "."),
        ("com", "A", dns.rcode.NOERROR, "."),
    ],
)
def test_what_is_not_there_has_the_soa(name: str, kind: str, rcode: int, zone: str) -> None:
    response = ask(WORLD, name, kind)
    assert (response.rcode(), response.answer) == (rcode, [])
    assert [(r.name.to_text(), r.rdtype) for r in response.authority] == [(zone, dns.rdatatype.SOA)]


def test_a_chain_of_aliases_that_never_ends_is_given_up() -> None:
    response = ask(OutsideZone("a.x. CNAME b.x.\nb.x. CNAME a.x.\n"), "a.x", "A")
    assert len(response.answer) in (2, 8)


def test_too_much_for_udp_is_truncated_and_whole_by_tcp() -> None:
    world = OutsideZone("".join(f"many.x. A 10.0.0.{n}\n" for n in range(1, 100)))
    short = ask(world, "many.x", "A")
    assert short.flags & dns.flags.TC
    assert not short.answer
    assert len(lines(ask(world, "many.x", "A", tcp=True))) == 99


def test_a_transfer_is_refused() -> None:
    assert ask(WORLD, "example.com", "AXFR", tcp=True).rcode() == dns.rcode.REFUSED


@given(st.binary(max_size=80))
def test_no_packet_breaks_it(packet: bytes) -> None:
    answer = WORLD.answer(packet)
    assert answer is None or answer[:2] == packet[:2]


@pytest.mark.parametrize("text", ["a.x. A 300.1.2.3\n", "a.x. NOSUCH x\n", "a.x. SOA x\n", '"\n'])
def test_a_file_that_is_no_zone_is_said_at_once(tmp_path: Path, text: str) -> None:
    path = tmp_path / "zone"
    path.write_text(text)
    with pytest.raises(UsageError, match=rf"--outside-zone {path}:\d+: "):
        read_zone_file(str(path))


def test_a_file_that_is_missing_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        read_zone_file(str(tmp_path / "zone"))


def test_origin_and_ttl_of_the_file_count(tmp_path: Path) -> None:
    path = tmp_path / "zone"
    path.write_text("$ORIGIN corp.\n$TTL 7\n@ SOA ns hostmaster 1 2 3 4 5\nwiki A 192.0.2.1\n")
    world = OutsideZone(read_zone_file(str(path)))
    assert lines(ask(world, "wiki.corp", "A")) == ["wiki.corp. 7 IN A 192.0.2.1"]
    assert ask(world, "no.corp", "A").authority[0].name.to_text() == "corp."
