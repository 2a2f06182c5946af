"""Messages: what is refused and how, EDNS0, size limits, what is kept, and bytes of any kind."""

from __future__ import annotations

import gc
import struct
import tracemalloc
from collections import Counter

import dns.edns
import dns.flags
import dns.message
import dns.opcode
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import pytest
from dns_worlds import TCP, UDP, World, cluster_ip, endpoint, external, headless, rows, slice_of
from hypothesis import given
from hypothesis import strategies as st

from podwire.dns.answers import DROP, truncated
from podwire.dns.external import ExternalNames
from podwire.dns.index import Changes, PodMode, ZoneOptions
from podwire.dns.seam import Client

NAME = "web.shop.svc.cluster.local."
WEB = cluster_ip("shop", "web", "10.96.0.1")


def world(**more: object) -> World:
    many = [endpoint(f"10.1.{n // 250}.{n % 250 + 1}", host=f"host-{n}") for n in range(200)]
    few = [endpoint(f"10.2.0.{n}") for n in range(1, 4)]
    return World(
        namespaces=("shop",),
        services=(
            WEB,
            headless("shop", "many"),
            headless("shop", "few"),
            external("shop", "away", "www.example.com"),
        ),
        slices=(slice_of("shop", "many", *many), slice_of("shop", "few", *few)),
        **more,  # type: ignore[arg-type]
    )


def query(name: str = NAME, rtype: str = "A", **more: object) -> bytes:
    return dns.message.make_query(name, rtype, **more).to_wire()  # type: ignore[arg-type]


def reply(data: bytes, at: World | None = None, client: Client = UDP) -> dns.message.Message:
    response = (at or world()).answers.answer(data, client)
    assert response
    return dns.message.from_wire(response)


def header(data: bytes) -> tuple[int, ...]:
    return struct.unpack_from("!HHHHHH", data)


# --- what is refused --------------------------------------------------------------------------


@pytest.mark.parametrize("data", [b"", b"\0", bytes(11), b"\0\1\x80\0" + bytes(8)])
def test_what_is_no_query_gets_no_answer(data: bytes) -> None:
    assert world().answers.answer(data, UDP) == DROP


@pytest.mark.parametrize("opcode", [dns.opcode.IQUERY, dns.opcode.NOTIFY, dns.opcode.UPDATE, 15])
def test_other_opcodes_are_not_implemented(opcode: int) -> None:
    data = bytearray(query())
    data[2] |= opcode << 3
    response = world().answers.answer(bytes(data), UDP)
    assert response is not None
    identifier, flags, *counts = header(response)
    assert identifier == int.from_bytes(data[:2], "big")
    assert (flags & 0xF, flags >> 11 & 0xF, counts) == (dns.rcode.NOTIMP, opcode, [0, 0, 0, 0])


_QUESTION = b"\3web\4shop\3svc\7cluster\5local\0\0\1\0\1"


@pytest.mark.parametrize(
    "rest",
    [
        b"\0\0\0\0\0\0\0\0",  # no question
        b"\0\2\0\0\0\0\0\0" + 2 * _QUESTION,
        b"\0\1\0\0\0\0\0\0",  # one is promised
        b"\0\1\0\0\0\0\0\0" + _QUESTION[:-1],
        b"\0\1\0\0\0\0\0\0" + b"\xc0\x0c\0\1\0\1",  # points at itself
        b"\0\1\0\0\0\0\0\0" + b"\x40" + 64 * b"a" + b"\0\0\1\0\1",
        b"\0\1\0\0\0\0\0\0" + 5 * (b"\x3f" + 63 * b"a") + b"\0\0\1\0\1",
        b"\0\1\0\0\0\0\0\3" + _QUESTION,
        b"\0\1\0\0\0\0\0\1" + _QUESTION,  # a record is promised
        b"\0\1\0\0\0\0\0\1" + _QUESTION + b"\1a\0\0\x29\x10\0\0\0\0\0\0\0",  # OPT of a name
        b"\0\1\0\0\0\0\0\2" + _QUESTION + 2 * b"\0\0\x29\x10\0\0\0\0\0\0\0",  # two
        b"\0\1\0\0\0\0\0\1" + _QUESTION + b"\0\0\x29\x10\0\0\0\0\0\0\5\0\1\0\\9",  # option too long
    ],
)
def test_what_cannot_be_read_is_a_format_error(rest: bytes) -> None:
    response = world().answers.answer(b"\x12\x34\1\0" + rest, UDP)
    assert response is not None
    identifier, flags, *counts = header(response)
    assert (identifier, flags & 0xF, counts) == (0x1234, dns.rcode.FORMERR, [0, 0, 0, 0])


def test_other_classes_are_refused() -> None:
    for name, rclass in (("version.bind.", "CH"), (NAME, "CH"), (NAME, "ANY")):
        data = dns.message.make_query(name, "TXT", rclass).to_wire()
        message = reply(data)
        assert message.rcode() == dns.rcode.REFUSED
        assert message.question == dns.message.from_wire(data).question


def test_names_of_others_are_for_the_slow_path() -> None:
    at = world()
    for name in (
        "www.example.com.",
        ".",
        "local.",
        "xcluster.local.",
        "away.shop.svc.cluster.local.",
    ):
        assert at.answers.answer(query(name), UDP) is None
    assert at.answers.owns(b"\3svc\7cluster\5local\0")
    assert not at.answers.owns(b"\10xcluster\5local\0")


def test_fallthrough_passes_on_what_is_unknown_in_its_zones() -> None:
    at = world(options=ZoneOptions(fallthrough=("in-addr.arpa", "ip6.arpa")))
    assert at.answers.answer(query("9.9.9.9.in-addr.arpa.", "PTR"), UDP) is None
    assert reply(query("never.shop.svc.cluster.local."), at).rcode() == dns.rcode.NXDOMAIN
    assert reply(query("1.0.96.10.in-addr.arpa.", "PTR"), at).answer
    everywhere = world(options=ZoneOptions(fallthrough=()))
    assert everywhere.answers.answer(query("never.shop.svc.cluster.local."), UDP) is None


# --- flags and EDNS0 --------------------------------------------------------------------------


def test_flags() -> None:
    message = reply(query(flags=dns.flags.RD | dns.flags.CD | dns.flags.AD))
    assert message.flags == dns.flags.QR | dns.flags.AA | dns.flags.RD | dns.flags.RA | dns.flags.CD
    assert not reply(query(flags=0)).flags & dns.flags.RD


def test_the_opt_record_comes_back() -> None:
    message = reply(query(use_edns=0, payload=4096, want_dnssec=True))
    assert (message.edns, message.payload) == (0, 1232)
    assert message.ednsflags & dns.flags.DO
    assert reply(query(use_edns=False)).edns == -1


def test_options_are_not_echoed_and_not_kept() -> None:
    at = world()
    cookie = dns.edns.GenericOption(dns.edns.OptionType.COOKIE, b"12345678")
    message = reply(query(use_edns=0, options=[cookie]), at)
    assert (message.edns, message.options) == (0, ())
    assert not at.answers.hot


def test_unknown_edns_versions_are_told_so() -> None:
    message = reply(query(use_edns=1))
    assert (message.rcode(), message.edns) == (dns.rcode.BADVERS, 0)


# --- sizes ------------------------------------------------------------------------------------

_MANY = "many.shop.svc.cluster.local."


@pytest.mark.parametrize(
    ("payload", "limit"), [(None, 512), (100, 512), (1000, 1000), (4096, 1232)]
)
def test_what_does_not_fit_is_cut_and_says_so(payload: int | None, limit: int) -> None:
    more = {"use_edns": False} if payload is None else {"use_edns": 0, "payload": payload}
    response = world().answers.answer(query(_MANY, **more), UDP)
    assert response is not None
    assert limit - 16 < len(response) <= limit
    message = dns.message.from_wire(response)
    assert message.flags & dns.flags.TC
    assert 20 < len(message.answer[0]) < 200


def test_everything_fits_by_tcp() -> None:
    message = reply(query(_MANY), client=TCP)
    assert not message.flags & dns.flags.TC
    assert len(message.answer[0]) == 200


def test_additional_records_go_first_and_silently() -> None:
    few = "_http._tcp.few.shop.svc.cluster.local."
    whole = reply(query(few, "SRV", use_edns=0, payload=1232))
    assert len(whole.additional) == 3
    cut = reply(query("_http._tcp.host-9.x.svc.cluster.local.", "SRV"))
    assert cut.rcode() == dns.rcode.NXDOMAIN
    srv = reply(query("_http._tcp.many.shop.svc.cluster.local.", "SRV", use_edns=False))
    assert srv.flags & dns.flags.TC
    assert srv.additional == []


def test_truncated() -> None:
    response = truncated(query(_MANY, use_edns=0))
    assert response is not None
    message = dns.message.from_wire(response)
    assert message.flags & dns.flags.TC
    assert (message.answer, message.edns) == ([], 0)
    assert truncated(b"") is None


# --- what is kept -----------------------------------------------------------------------------


def test_the_second_answer_is_the_first_with_its_own_identifier() -> None:
    at = world()
    one, two = query(use_edns=False), query(use_edns=False)
    first = at.answers.answer(one, UDP)
    assert one[2:] in at.answers.hot
    second = at.answers.answer(two, UDP)
    assert first is not None
    assert second == two[:2] + first[2:]
    assert at.answers.counts["A", "NOERROR"] == [2]


def test_what_fits_a_datagram_is_kept_for_both_transports() -> None:
    at = world()
    one, two = query(), query()
    first = at.answers.answer(one, TCP)
    assert one[2:] in at.answers.hot
    assert first is not None
    assert at.answers.answer(two, UDP) == two[:2] + first[2:]
    assert at.answers.answer(one, TCP) == first


@pytest.mark.parametrize("order", [(UDP, TCP), (TCP, UDP)])
def test_what_does_not_fit_is_kept_for_each_transport(order: tuple[Client, Client]) -> None:
    at = world()
    at.set_slice(slice_of("shop", "few", *[endpoint(f"10.2.0.{n}") for n in range(1, 7)]))
    srv = "_http._tcp.few.shop.svc.cluster.local."
    for data in (query(_MANY), query(srv, "SRV", use_edns=False)):
        seen = []
        for client in (*order, *order):
            response = at.answers.answer(data, client)
            assert response is not None
            seen.append((client.tcp, response))
        by = dict(seen)
        assert seen[:2] == seen[2:], "kept as they were"
        whole = dns.message.from_wire(by[True])
        assert not whole.flags & dns.flags.TC
    # The additional records of the second were left out without a word.
    assert len(whole.additional) == 6
    assert len(dns.message.from_wire(by[False]).additional) < 6
    late = slice_of("shop", "many", endpoint("10.1.0.1"))
    at.set_slice(late)
    assert len(reply(query(_MANY), at, TCP).answer[0]) == 1


def test_addresses_take_turns() -> None:
    at = world(rotate=True)
    name = "few.shop.svc.cluster.local."
    firsts, sets = Counter(), set()
    for _ in range(30):
        addresses = [str(rdata) for rdata in reply(query(name), at).answer[0]]
        firsts[addresses[0]] += 1
        sets.add(frozenset(addresses))
    assert set(firsts.values()) == {10}
    assert len(sets) == 1


def test_all_addresses_have_their_turn_where_not_all_fit() -> None:
    at = world(rotate=True)
    seen = set()
    for _ in range(200):
        message = reply(query(_MANY, use_edns=False), at)
        assert message.flags & dns.flags.TC
        seen.add(str(message.answer[0][0]))
    assert len(seen) == 200


def test_a_name_that_comes_to_be_is_answered_at_once() -> None:
    at = world()
    name = "late.shop.svc.cluster.local."
    for question in ((name, "A"), (f"_http._tcp.{name}", "SRV"), (f"10-1-0-1.{name}", "A")):
        assert reply(query(*question), at).rcode() == dns.rcode.NXDOMAIN
    assert len(at.answers.cold) == 3
    at.set_service(headless("shop", "late"))
    at.set_slice(slice_of("shop", "late", endpoint("10.1.0.1")))
    for question in ((name, "A"), (f"_http._tcp.{name}", "SRV"), (f"10-1-0-1.{name}", "A")):
        assert reply(query(*question), at).answer


def test_only_what_changed_is_forgotten() -> None:
    at = world()
    told: list[Changes] = []
    at.answers.on_evict(told.append)
    for name in (NAME, _MANY, "few.shop.svc.cluster.local."):
        reply(query(name), at)
    changes = at.set_slice(slice_of("shop", "few", endpoint("10.2.0.1"), endpoint("10.2.0.9")))
    names = {".".join(map(bytes.decode, parse(wire))) for wire in changes.subtrees}
    assert names == {
        "few.shop.svc.cluster.local",
        "2.0.2.10.in-addr.arpa",
        "3.0.2.10.in-addr.arpa",
        "9.0.2.10.in-addr.arpa",
    }
    assert told == [changes]
    assert len(at.answers.hot) == 2


def parse(wire: bytes) -> tuple[bytes, ...]:
    from podwire.dns.names import parse_wire

    return parse_wire(wire)


def test_writes_that_change_nothing_forget_nothing() -> None:
    at = world()
    assert not at.set_service(cluster_ip("shop", "web", "10.96.0.1"))
    same = [endpoint(f"10.2.0.{n}") for n in range(1, 4)]
    assert not at.set_slice(slice_of("shop", "few", *same))
    assert not at.set_namespace("shop")


def test_a_flood_of_unknown_names_costs_bounded_memory() -> None:
    at = world(options=ZoneOptions(pods=PodMode.INSECURE))
    tracemalloc.start()
    try:
        for number in range(30_000):
            name = f"n{number:08}".ljust(60, "x")
            at.answers.answer(query_of(name), UDP)
            if number == 1000:
                before, _ = tracemalloc.get_traced_memory()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert not at.answers.hot
    assert after - before < 20 << 20


def test_what_was_kept_for_two_objects_goes_with_either_of_them() -> None:
    """An alias hangs on its target, too: the target's changes must not leave the alias's share."""
    at = world()
    at.set_service(external("shop", "alias", NAME))
    name = "alias.shop.svc.cluster.local."
    tracemalloc.start()
    try:
        for number in range(3000):
            data = query(name, use_edns=0, payload=1000 + number)
            assert at.answers.answer(data, UDP)
            at.set_service(cluster_ip("shop", "web", f"10.96.0.{number % 200 + 1}"))
            if number == 500:
                gc.collect()
                before, _ = tracemalloc.get_traced_memory()
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert not at.answers.hot
    assert after - before < 64 << 10


def query_of(label: str) -> bytes:
    question = bytes((len(label),)) + label.encode() + b"\4shop\3svc\7cluster\5local\0\0\1\0\1"
    return b"\0\1\1\0\0\1\0\0\0\0\0\0" + question


# --- aliases that lead outside ----------------------------------------------------------------


class Upstream:
    """Answers every question with one response, and remembers what it was asked."""

    def __init__(self, rcode: dns.rcode.Rcode, *lines: str, truncated: bool = False) -> None:
        self.rcode, self.lines, self.truncated = rcode, lines, truncated
        self.asked: list[str] = []

    async def resolve(self, query: bytes, client: Client) -> bytes | None:
        message = dns.message.from_wire(query)
        self.asked.append(message.question[0].to_text())
        response = dns.message.make_response(message, recursion_available=True)
        response.set_rcode(self.rcode)
        for line in self.lines:
            name, ttl, _, kind, data = line.split(maxsplit=4)
            response.answer.append(dns.rrset.from_text(name, int(ttl), "IN", kind, data))
        if self.truncated:
            response.flags |= dns.flags.TC
        return response.to_wire()


_AWAY = "away.shop.svc.cluster.local."
_CNAME = f"{_AWAY} 5 IN CNAME www.example.com."


async def _chased(upstream: Upstream) -> dns.message.Message:
    response = await ExternalNames(world().answers, upstream).resolve(query(_AWAY), UDP)
    assert response is not None
    assert upstream.asked == ["www.example.com. IN A"]
    return dns.message.from_wire(response)


async def test_an_external_name_is_answered_with_what_it_stands_for() -> None:
    target = "www.example.com. 60 IN A 203.0.113.1"
    message = await _chased(Upstream(dns.rcode.NOERROR, target))
    assert rows(message.answer) == sorted([_CNAME, target])
    assert message.flags & dns.flags.AA


async def test_addresses_of_a_name_that_stands_nowhere_else() -> None:
    """A server may leave out the alias that leads to them."""
    targets = [f"far.example.net. 60 IN A 203.0.113.{n}" for n in range(1, 60)]
    for more in ([], ["z.example.net. 7 IN A 198.51.100.7"]):
        response = await ExternalNames(
            world().answers, Upstream(dns.rcode.NOERROR, *more, *targets)
        ).resolve(query(_AWAY), TCP)
        assert response is not None
        assert rows(dns.message.from_wire(response, one_rr_per_rrset=True).answer) == sorted(
            [_CNAME, *more, *targets]
        )


async def test_an_external_name_that_does_not_exist_outside() -> None:
    message = await _chased(Upstream(dns.rcode.NXDOMAIN))
    assert message.rcode() == dns.rcode.NXDOMAIN
    assert rows(message.answer) == [_CNAME]


async def test_an_external_name_nobody_can_resolve() -> None:
    message = await _chased(Upstream(dns.rcode.REFUSED))
    assert message.rcode() == dns.rcode.SERVFAIL


async def test_serve_dns_cname_external_truncated_lookup() -> None:
    target = "www.example.com. 60 IN A 203.0.113.1"
    message = await _chased(Upstream(dns.rcode.NOERROR, target, truncated=True))
    assert message.flags & dns.flags.TC


async def test_other_names_pass_through_untouched() -> None:
    upstream = Upstream(dns.rcode.NOERROR)
    await ExternalNames(world().answers, upstream).resolve(query("www.example.org."), UDP)
    assert upstream.asked == ["www.example.org. IN A"]


# --- bytes of any kind ------------------------------------------------------------------------

FUZZED = world()


def _survives(data: bytes) -> None:
    for client in (UDP, TCP):
        response = FUZZED.answers.answer(data, client)
        if response in (None, DROP):
            continue
        assert len(response) >= 12
        assert response[:2] == data[:2]
        assert response[2] & 0x80
        message = dns.message.from_wire(response, ignore_trailing=False)
        if not message.question:
            assert message.rcode() in (dns.rcode.FORMERR, dns.rcode.NOTIMP)


@given(st.binary(max_size=600))
def test_random_bytes(data: bytes) -> None:
    _survives(data)


@given(st.binary(max_size=80), st.integers(0, 3))
def test_random_bytes_after_a_header(data: bytes, additional: int) -> None:
    _survives(b"\x12\x34\1\0\0\1\0\0\0\0" + additional.to_bytes(2, "big") + data)


@given(st.data())
def test_queries_with_a_bit_flipped_cut_or_grown(data: st.DataObject) -> None:
    good = bytearray(query(use_edns=0, payload=1400))
    for _ in range(data.draw(st.integers(0, 3))):
        at = data.draw(st.integers(0, len(good) - 1))
        good[at] ^= 1 << data.draw(st.integers(0, 7))
    cut = data.draw(st.integers(0, len(good)))
    _survives(bytes(good))
    _survives(bytes(good[:cut]))
    _survives(bytes(good) + data.draw(st.binary(max_size=20)))


@pytest.mark.parametrize("byte", [0, 0x0C, 0x3F, 0x40, 0xC0, 0xFF])
def test_the_largest_messages(byte: int) -> None:
    for head in (b"", b"\x12\x34\1\0\0\1\0\0\0\0\0\0", query()):
        _survives((head + bytes((byte,)) * 65535)[:65535])


def test_fuzzed_packets_leave_nothing_behind() -> None:
    at = FUZZED.answers
    at.evict(Changes(everything=True))
    junk = [
        bytes((n % 256, n // 256, 1, 0, 0, 1)) + bytes(7) + bytes((n % 64,)) * 40
        for n in range(2000)
    ]
    for data in junk:
        at.answer(data, UDP)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for data in junk:
            at.answer(data, UDP)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 64 << 10
