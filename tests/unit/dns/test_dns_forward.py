"""Forwarding: whom it asks, when it gives up, what counts as an answer. Time is virtual."""

from __future__ import annotations

import asyncio
import contextlib

import dns.flags
import dns.message
from dns_fakes import POD, Bench, FakeUpstream, query, rcode, respond, show
from hypothesis import given
from hypothesis import strategies as st
from virtual_time import run

from podwire.dns import packet
from podwire.dns.forward import parse_nameservers, parse_search
from podwire.dns.slowpath import SlowPath
from podwire.dns.upstream import ClosedError, Upstream, matches

TWO = ". {\n errors\n forward . 10.0.0.1 10.0.0.2 {\n policy sequential\n %s\n }\n}"
A = ["example.org. 300 IN A 192.0.2.1"]


def upstream(**more: object) -> FakeUpstream:
    return FakeUpstream(lambda wire: respond(wire, A), **more)  # type: ignore[arg-type]


def bench(
    first: FakeUpstream, second: FakeUpstream | None = None, *, more: str = "", text: str = TWO
) -> Bench:
    corefile = text % more if "%s" in text else text
    return Bench(corefile, {"10.0.0.1": first, "10.0.0.2": second or upstream()})


async def ask(slow: SlowPath, name: str = "example.org", **more: object) -> bytes | None:
    return await slow.resolve(query(name, **more), POD)  # type: ignore[arg-type]


def asked_once(b: Bench, name: str = "example.org") -> bytes | None:
    async def scenario() -> bytes | None:
        slow = b.build()
        try:
            return await ask(slow, name)
        finally:
            await slow.close()

    return run(scenario())


def test_the_answer_has_the_clients_id_and_case() -> None:
    first = upstream()
    wire = asked_once(bench(first), "eXample.ORG")
    assert wire is not None
    assert wire[:2] == query("x")[:2]
    assert b"\x07eXample\x03ORG" in wire
    assert show(wire) == ["eXample.ORG. 300 IN A 192.0.2.1"]


def test_each_query_has_another_id() -> None:
    first = upstream()

    async def scenario() -> None:
        slow = bench(first).build()
        for _ in range(8):
            await ask(slow)
        await slow.close()

    run(scenario())
    assert len({wire[:2] for _, wire in first.asked}) > 4


def test_a_silent_upstream_costs_two_seconds_then_the_next_is_asked() -> None:
    first, second = upstream(down=True), upstream()

    async def scenario() -> float:
        slow = bench(first, second).build()
        assert rcode(await ask(slow)) == "NOERROR"
        taken = asyncio.get_running_loop().time()
        await slow.close()
        return taken

    assert 2.0 <= run(scenario()) < 2.1
    assert second.names() == ["example.org. A"]


def test_a_refused_connection_costs_nothing() -> None:
    first, second = upstream(refuses=True), upstream()

    async def scenario() -> float:
        slow = bench(first, second).build()
        assert rcode(await ask(slow)) == "NOERROR"
        taken = asyncio.get_running_loop().time()
        await slow.close()
        return taken

    assert run(scenario()) < 0.1


def test_one_that_is_down_is_left_out_and_comes_back_when_it_answers_a_probe() -> None:
    first, second = upstream(down=True), upstream()

    async def scenario() -> None:
        slow = bench(first, second).build()
        await ask(slow)
        await asyncio.sleep(10)  # probes: more than max_fails of them fail
        before = len(first.names())
        started = asyncio.get_running_loop().time()
        await ask(slow)
        assert asyncio.get_running_loop().time() == started
        assert len(first.names()) == before
        first.down = False
        await asyncio.sleep(2)
        await ask(slow)
        assert len(first.names()) == before + 1
        probes = len(first.asked)
        await asyncio.sleep(10)
        assert len(first.asked) == probes, "probing has to end with the first answer"
        await slow.close()

    run(scenario())


def test_a_kept_connection_the_other_end_closed_fails_no_probe() -> None:
    class Closing(FakeUpstream):
        async def tcp(self, query: bytes, question: packet.Question, timeout: float) -> bytes:
            if question.qtype == packet.NS and not self.refuses:
                self.refuses = True
                raise ClosedError("read tcp fake: 0 bytes read")
            self.refuses = False
            return await super().tcp(query, question, timeout)

    async def scenario() -> None:
        probed = Upstream("10.0.0.1", 53, Closing(lambda wire: respond(wire)), probe_tcp=True)
        probed.probe()
        await asyncio.sleep(10)
        assert (probed.failed_probes, probed.fails) == (0, 0)
        await probed.close()

    run(scenario())


def test_any_answer_to_a_probe_is_a_healthy_one() -> None:
    first = FakeUpstream(lambda wire: respond(wire, rcode="REFUSED"), refuses=True)

    async def scenario() -> None:
        slow = bench(first).build()
        await ask(slow)
        first.refuses = False
        await asyncio.sleep(1)
        assert rcode(await ask(slow)) == "REFUSED"
        await slow.close()

    run(scenario())


def test_when_all_are_silent_it_is_servfail_within_five_seconds_and_logged() -> None:
    b = bench(upstream(down=True), upstream(down=True))

    async def scenario() -> float:
        slow = b.build()
        assert rcode(await ask(slow)) == "SERVFAIL"
        taken = asyncio.get_running_loop().time()
        await slow.close()
        return taken

    assert run(scenario()) <= 5.0
    assert b.lines == ["[ERROR] plugin/errors: 2 example.org. A: read udp fake: i/o timeout"]


def test_when_all_are_down_one_is_tried_all_the_same() -> None:
    first, second = upstream(down=True), upstream(down=True)

    async def scenario() -> tuple[str, str]:
        b = bench(first, second)
        slow = b.build()
        await ask(slow)
        await asyncio.sleep(10)
        before = len(first.names() + second.names())
        await ask(slow)
        assert len(first.names() + second.names()) == before + 1
        text = b.world.metrics.render()
        await slow.close()
        return text, ""

    text, _ = run(scenario())
    assert "coredns_forward_healthcheck_broken_total{" in text
    assert "coredns_proxy_healthcheck_failures_total{" in text


def test_failfast_does_not_try() -> None:
    first = upstream(down=True)

    async def scenario() -> None:
        slow = bench(
            first, text=". {\n forward . 10.0.0.1 {\n failfast_all_unhealthy_upstreams\n }\n}"
        ).build()
        await ask(slow)
        await asyncio.sleep(10)
        before = len(first.names())
        assert rcode(await ask(slow)) == "SERVFAIL"
        assert len(first.names()) == before
        await slow.close()

    run(scenario())


def test_above_max_concurrent_it_is_refused() -> None:
    first = upstream(delay_s=1.0)
    b = bench(first, more="max_concurrent 2")

    async def scenario() -> list[str]:
        slow = b.build()
        codes = await asyncio.gather(*(ask(slow, ident=n) for n in range(3)))
        text = b.world.metrics.render()
        assert 'coredns_forward_max_concurrent_rejects_total{from="."} 1' in text
        await slow.close()
        return [rcode(wire) for wire in codes]

    assert sorted(run(scenario())) == ["NOERROR", "NOERROR", "REFUSED"]
    assert "5 example.org. A: concurrent queries exceeded maximum 2" in b.lines[0]


def test_truncated_answers_are_passed_on_unless_udp_was_preferred() -> None:
    def cut(wire: bytes) -> bytes:
        return respond(wire, flags=dns.flags.TC)

    wire = asked_once(bench(FakeUpstream(cut)))
    assert wire is not None
    assert packet.flags(wire) & packet.TC

    class OnlyTcp(FakeUpstream):
        async def tcp(self, query: bytes, question: packet.Question, timeout: float) -> bytes:
            self.asked.append(("tcp", query))
            return respond(query, A)

    preferring = OnlyTcp(cut)
    assert show(asked_once(bench(preferring, more="prefer_udp"))) == [
        "example.org. 300 IN A 192.0.2.1"
    ]
    assert [proto for proto, _ in preferring.asked] == ["udp", "tcp"]


def test_force_tcp_and_clients_by_tcp_ask_over_tcp() -> None:
    forced, plain = upstream(), upstream()
    asked_once(bench(forced, more="force_tcp"))
    assert [proto for proto, _ in forced.asked] == ["tcp"]

    async def scenario() -> None:
        slow = bench(plain).build()
        await slow.resolve(query("example.org"), POD._replace(tcp=True))
        await slow.close()

    run(scenario())
    assert [proto for proto, _ in plain.asked] == ["tcp"]


def test_failover_and_next_by_response_code() -> None:
    sick = FakeUpstream(lambda wire: respond(wire, rcode="SERVFAIL"))
    assert rcode(asked_once(bench(sick, more="failover SERVFAIL REFUSED"))) == "NOERROR"
    assert rcode(asked_once(bench(sick, sick, more="failover SERVFAIL"))) == "SERVFAIL"
    unknown = FakeUpstream(lambda wire: respond(wire, rcode="NXDOMAIN"))
    text = ". {\n forward . 10.0.0.1 {\n next NXDOMAIN\n }\n forward . 10.0.0.2\n}"
    assert rcode(asked_once(bench(unknown, text=text))) == "NOERROR"
    assert rcode(asked_once(bench(unknown, unknown, text=text))) == "NXDOMAIN"


def test_except_and_other_zones_pass_by() -> None:
    text = ". {\n forward example.org 10.0.0.1 {\n except a.example.org\n }\n forward . 10.0.0.2\n}"
    first, second = upstream(), upstream()
    for name in ("example.org", "a.example.org", "x.a.example.org", "other.test"):
        asked_once(bench(first, second, text=text), name)
    assert first.names() == ["example.org. A"]
    assert second.names() == ["a.example.org. A", "x.a.example.org. A", "other.test. A"]


def test_round_robin_takes_turns() -> None:
    first, second = upstream(), upstream()

    async def scenario() -> None:
        slow = bench(
            first, second, text=". {\n forward . 10.0.0.1 10.0.0.2 {\n policy round_robin\n }\n}"
        ).build()
        for _ in range(6):
            await ask(slow)
        await slow.close()

    run(scenario())
    assert len(first.names()) == len(second.names()) == 3


def test_the_longest_zone_has_its_own_upstream() -> None:
    text = ". {\n forward . 10.0.0.1\n}\nconsul.local {\n forward . 10.0.0.2\n}"
    first, second = upstream(), upstream()
    asked_once(bench(first, second, text=text), "web.consul.local")
    asked_once(bench(first, second, text=text), "consul.local.test")
    assert second.names() == ["web.consul.local. A"]
    assert first.names() == ["consul.local.test. A"]


def test_names_outside_of_all_blocks_are_refused() -> None:
    wire = asked_once(bench(upstream(), text="a.example {\n forward . 10.0.0.1\n}"), "b.example")
    assert rcode(wire) == "REFUSED"


def test_cookies_are_not_passed_on_and_subnets_are() -> None:
    first = upstream()
    message = dns.message.make_query("example.org", "A", use_edns=0, payload=4096)
    cookie = dns.edns.GenericOption(10, b"12345678")
    subnet = dns.edns.ECSOption("198.51.100.0", 24)
    message.use_edns(0, payload=4096, options=[cookie, subnet])

    async def scenario() -> bytes | None:
        slow = bench(first).build()
        wire = await slow.resolve(message.to_wire(), POD)
        await slow.close()
        return wire

    answered = dns.message.from_wire(run(scenario()) or b"")
    (sent,) = [dns.message.from_wire(wire) for _, wire in first.asked]
    assert [int(option.otype) for option in sent.options] == [8]
    assert sent.payload == packet.OWN_SIZE
    assert answered.edns == 0


def test_no_opt_for_those_who_sent_none() -> None:
    def with_opt(wire: bytes) -> bytes:
        response = dns.message.from_wire(respond(wire, A))
        response.use_edns(0)
        return response.to_wire()

    wire = asked_once(bench(FakeUpstream(with_opt)))
    assert dns.message.from_wire(wire or b"").edns == -1


@given(st.binary(max_size=120), st.booleans())
def test_whatever_an_upstream_says_a_client_gets_a_message(noise: bytes, headed: bool) -> None:
    def answer(wire: bytes) -> bytes:
        return wire[:2] + b"\x81\x80" + wire[4:] + noise if headed else wire[:2] + noise

    wire = asked_once(bench(FakeUpstream(answer), FakeUpstream(answer)))
    assert wire is not None
    with contextlib.suppress(dns.exception.DNSException):
        dns.message.from_wire(wire, ignore_trailing=True)
    assert wire[:2] == query("x")[:2]


@given(st.data())
def test_broken_copies_of_an_answer_never_crash(data: st.DataObject) -> None:
    whole = bytearray(
        respond(query("example.org"), [*A, "example.org. 60 IN MX 10 a.example.org."])
    )
    for _ in range(data.draw(st.integers(1, 6))):
        whole[data.draw(st.integers(2, len(whole) - 1))] = data.draw(st.integers(0, 255))
    broken = bytes(whole[: data.draw(st.integers(12, len(whole)))])
    text = ". {\n cache\n loadbalance\n forward . 10.0.0.1 10.0.0.2\n}"
    fake = FakeUpstream(lambda wire: wire[:2] + broken[2:])
    wire = asked_once(bench(fake, fake, text=text))
    assert wire is not None
    assert packet.flags(wire) & packet.QR


def test_only_the_matching_answer_counts() -> None:
    sent = query("example.org")
    question = packet.parse_question(sent)
    assert question is not None
    good = respond(sent, A)
    assert matches(good, sent, question)
    assert matches(respond(query("EXAMPLE.org"), A), sent, question)
    assert not matches(b"\0\0" + good[2:], sent, question)
    assert not matches(respond(query("example.com")), sent, question)
    assert not matches(respond(query("example.org", "AAAA")), sent, question)
    assert not matches(sent, sent, question)
    assert not matches(good[:11], sent, question)


def test_files_like_resolv_conf() -> None:
    text = "# nameserver 1.1.1.1\nsearch a.example\nnameserver 10.0.0.1\n\nnameserver fd00::1 \n"
    assert parse_nameservers(text) == ["10.0.0.1", "fd00::1"]
    assert parse_search(text) == ["a.example"]
