"""The cache: what is kept, how long, what it says of time, and what a change leaves of it."""

from __future__ import annotations

import asyncio

import dns.flags
import dns.message
import pytest
from dns_fakes import POD, Bench, FakeUpstream, query, rcode, respond, show, soa
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from virtual_time import run

from podwire.dns import config, packet
from podwire.dns.cache import Cache, cache_key
from podwire.dns.front import Front
from podwire.dns.index import Changes
from podwire.dns.request import name_from_text
from podwire.dns.slowpath import SlowPath

TEXT = ". {\n cache %s\n forward . 10.0.0.1\n}"


class Changing:
    """An upstream whose answer tests change as they go."""

    def __init__(self) -> None:
        self.answers = ["example.org. 300 IN A 192.0.2.1"]
        self.authority: list[str] = []
        self.code = "NOERROR"
        self.flags = 0

    def __call__(self, wire: bytes) -> bytes:
        return respond(
            wire, self.answers, rcode=self.code, authority=self.authority, flags=self.flags
        )

    def deny(self, ttl: int = 300, minimum: int = 300) -> None:
        self.answers, self.code, self.authority = [], "NXDOMAIN", [soa(ttl, minimum)]


class Scene:
    """One cache in front of one changing upstream, in virtual time."""

    def __init__(self, more: str = "") -> None:
        self.says = Changing()
        self.upstream = FakeUpstream(self.says)
        self.bench = Bench(TEXT % more, {"10.0.0.1": self.upstream})
        self.slow: SlowPath | None = None

    async def ask(self, name: str = "example.org", kind: str = "A", **more: bool) -> bytes:
        if self.slow is None:
            self.slow = self.bench.build()
        wire = await self.slow.resolve(query(name, kind, **more), POD)  # type: ignore[arg-type]
        assert wire is not None
        return wire

    async def ttl(self, name: str = "example.org") -> int:
        message = dns.message.from_wire(await self.ask(name))
        return (message.answer or message.authority)[0].ttl

    @property
    def asked(self) -> int:
        return len(self.upstream.names())

    @property
    def metrics(self) -> str:
        return self.bench.world.metrics.render()

    async def close(self) -> None:
        if self.slow is not None:
            await self.slow.close()


def test_the_second_query_is_answered_from_the_cache_and_its_ttl_counts_down() -> None:
    async def scenario() -> None:
        scene = Scene()
        assert await scene.ttl() == 300
        await asyncio.sleep(100)
        assert await scene.ttl() == 200
        assert scene.asked == 1
        await asyncio.sleep(200)
        assert await scene.ttl() == 300
        assert scene.asked == 2
        text = scene.metrics
        labels = 'server="dns://:53",type="success",view="",zones="."'
        assert f"coredns_cache_hits_total{{{labels}}} 1\n" in text
        assert f"coredns_cache_entries{{{labels}}} 1\n" in text
        assert 'coredns_cache_misses_total{server="dns://:53",view="",zones="."} 2\n' in text
        await scene.close()

    run(scenario())


def test_a_hit_has_the_clients_id_case_and_rd() -> None:
    async def scenario() -> None:
        scene = Scene()
        await scene.ask()
        wire = await scene.ask("EXAMPLE.Org")
        assert b"\x07EXAMPLE\x03Org" in wire
        assert packet.flags(wire) & packet.RD
        assert packet.flags(wire) & packet.AA, "as CoreDNS says of what it has cached"
        assert scene.asked == 1
        await scene.close()

    run(scenario())


@pytest.mark.parametrize(
    ("more", "ttl", "shown"),
    [("", 7200, 3600), ("30", 7200, 30), ("", 0, 5), ("{\n success 9984 60 20\n }", 1, 20)],
)
def test_ttls_are_brought_into_bounds(more: str, ttl: int, shown: int) -> None:
    async def scenario() -> None:
        scene = Scene(more)
        scene.says.answers = [f"example.org. {ttl} IN A 192.0.2.1"]
        assert await scene.ttl() == shown
        assert await scene.ttl() == shown
        assert scene.asked == 1
        await scene.close()

    run(scenario())


@pytest.mark.parametrize(
    ("ttl", "minimum", "shown"), [(300, 60, 60), (60, 300, 60), (9000, 9000, 1800), (300, 0, 5)]
)
def test_a_denial_lives_as_long_as_its_soa_says(ttl: int, minimum: int, shown: int) -> None:
    async def scenario() -> None:
        scene = Scene()
        scene.says.deny(ttl, minimum)
        assert await scene.ttl() == shown
        await asyncio.sleep(shown - 1)
        assert rcode(await scene.ask()) == "NXDOMAIN"
        assert scene.asked == 1
        await asyncio.sleep(1)
        await scene.ask()
        assert scene.asked == 2
        await scene.close()

    run(scenario())


def test_types_do_and_cd_have_entries_of_their_own() -> None:
    async def scenario() -> None:
        scene = Scene()
        await scene.ask()
        await scene.ask(dnssec=True)
        await scene.ask(kind="AAAA")
        # HTTPS is type 65, 'A'; 97 is 'a': lower case is for names only.
        await scene.ask(kind="TYPE65")
        await scene.ask(kind="TYPE97")
        assert scene.asked == 5
        await scene.close()

    run(scenario())


def test_servfail_is_kept_for_five_seconds_and_truncated_not_at_all() -> None:
    async def scenario() -> None:
        scene = Scene()
        scene.says.answers, scene.says.code = [], "SERVFAIL"
        for _ in range(3):
            assert rcode(await scene.ask()) == "SERVFAIL"
        assert scene.asked == 1
        await asyncio.sleep(5)
        scene.says.code, scene.says.flags = "NOERROR", dns.flags.TC
        await scene.ask()
        await scene.ask()
        assert scene.asked == 3
        await scene.close()

    run(scenario())


def test_servfail_zero_keeps_none() -> None:
    async def scenario() -> None:
        scene = Scene("{\n servfail 0\n }")
        scene.says.answers, scene.says.code = [], "SERVFAIL"
        await scene.ask()
        await scene.ask()
        assert scene.asked == 2
        await scene.close()

    run(scenario())


def test_disabled_zones_are_not_kept() -> None:
    async def scenario() -> None:
        scene = Scene("{\n disable success example.org\n disable denial other.test\n }")
        await scene.ask()
        await scene.ask()
        scene.says.deny()
        await scene.ask("a.other.test")
        await scene.ask("a.other.test")
        await scene.ask("a.example.org")
        await scene.ask("a.example.org")
        assert scene.asked == 5
        await scene.close()

    run(scenario())


def test_stale_answers_have_ttl_0_and_are_renewed_behind_the_client() -> None:
    async def scenario() -> None:
        scene = Scene("{\n serve_stale 1h\n }")
        await scene.ask()
        await asyncio.sleep(400)
        scene.says.answers = ["example.org. 300 IN A 192.0.2.2"]
        wire = await scene.ask()
        assert show(wire) == ["example.org. 0 IN A 192.0.2.1"]
        await asyncio.sleep(1)
        assert show(await scene.ask()) == ["example.org. 299 IN A 192.0.2.2"]
        assert scene.asked == 2
        assert 'coredns_cache_served_stale_total{server="dns://:53",view="",zones="."} 1' in (
            scene.metrics
        )
        await scene.close()

    run(scenario())


def test_stale_answers_survive_an_upstream_that_is_silent_or_fails() -> None:
    async def scenario() -> None:
        scene = Scene("{\n serve_stale 1h\n }")
        await scene.ask()
        await asyncio.sleep(400)
        scene.upstream.down = True
        for _ in range(3):
            assert show(await scene.ask()) == ["example.org. 0 IN A 192.0.2.1"]
            await asyncio.sleep(30)
        scene.upstream.down = False
        scene.says.answers, scene.says.code = [], "SERVFAIL"
        for _ in range(3):
            assert show(await scene.ask()) == ["example.org. 0 IN A 192.0.2.1"]
            await asyncio.sleep(2)
        await asyncio.sleep(3600)
        assert rcode(await scene.ask()) == "SERVFAIL"
        await scene.close()

    run(scenario())


def test_renewals_of_a_silent_upstream_are_bounded() -> None:
    async def scenario() -> None:
        scene = Scene("{\n serve_stale 1h\n }")
        names = [f"n{number}.example.org" for number in range(300)]
        for name in names:
            await scene.ask(name)
        await asyncio.sleep(400)
        scene.upstream.down = True
        before = scene.asked
        for name in names:
            assert (await scene.ttl(name)) == 0
        await asyncio.sleep(1)
        assert scene.asked - before == 100
        scene.upstream.down = False
        await asyncio.sleep(30)
        assert (await scene.ttl(names[-1])) == 0
        await asyncio.sleep(1)
        assert (await scene.ttl(names[-1])) > 0
        await scene.close()

    run(scenario())


def test_verify_asks_first() -> None:
    async def scenario() -> None:
        scene = Scene("{\n serve_stale 1h verify\n }")
        await scene.ask()
        await asyncio.sleep(400)
        scene.says.answers = ["example.org. 300 IN A 192.0.2.2"]
        assert show(await scene.ask()) == ["example.org. 300 IN A 192.0.2.2"]
        await asyncio.sleep(400)
        scene.says.answers, scene.says.code = [], "SERVFAIL"
        assert show(await scene.ask()) == ["example.org. 0 IN A 192.0.2.2"]
        await scene.close()

    run(scenario())


def test_popular_answers_are_renewed_before_they_end() -> None:
    async def scenario() -> None:
        scene = Scene("{\n prefetch 3 1m 10%\n }")
        for _ in range(6):
            await scene.ask()
            await asyncio.sleep(55)
        # 330 s: without a gap of a minute, the hit in the last tenth renewed it.
        assert scene.asked == 2
        assert await scene.ttl() < 300
        assert "coredns_cache_prefetch_total{" in scene.metrics
        await scene.close()

    run(scenario())


def test_rare_answers_are_not_renewed() -> None:
    async def scenario() -> None:
        scene = Scene("{\n prefetch 3 1m 10%\n }")
        for _ in range(4):
            await scene.ask()
            await asyncio.sleep(95)
        assert scene.asked == 1
        await scene.close()

    run(scenario())


def test_a_denial_ends_at_once_when_the_name_comes_to_be() -> None:
    async def scenario() -> None:
        scene = Scene()
        scene.says.deny()
        for name in ("web.example.org", "a.web.example.org", "example.org", "other.org"):
            await scene.ask(name)
        before = scene.asked
        assert scene.slow is not None
        scene.slow.evict(Changes(frozenset({name_from_text("web.example.org.")})))
        for name in ("web.example.org", "a.web.example.org", "example.org", "other.org"):
            await scene.ask(name)
        assert scene.asked == before + 3, "the name, below it, and the denial above it"
        await scene.close()

    run(scenario())


def test_an_answer_asked_for_before_the_change_is_not_kept_after_it() -> None:
    async def scenario() -> None:
        scene = Scene()
        scene.says.deny()
        scene.upstream.delay_s = 1.0
        asking = asyncio.ensure_future(scene.ask("web.example.org"))
        await asyncio.sleep(0.5)
        assert scene.slow is not None
        scene.slow.evict(Changes(frozenset({name_from_text("web.example.org.")})))
        assert rcode(await asking) == "NXDOMAIN"
        await scene.ask("web.example.org")
        assert scene.asked == 2
        await scene.close()

    run(scenario())


def test_answers_for_a_subnet_are_for_that_subnet_only() -> None:
    async def scenario() -> None:
        scene = Scene()
        slow = scene.bench.build()
        message = dns.message.make_query("example.org", "A")
        message.use_edns(0, options=[dns.edns.ECSOption("198.51.100.0", 24)])
        for _ in range(2):
            await slow.resolve(message.to_wire(), POD)
        assert scene.asked == 2
        await slow.close()

    run(scenario())


def test_fresh_answers_need_no_task() -> None:
    class Nobody:
        def answer(self, query: bytes, client: object) -> None:
            return None

        def owns(self, qname: bytes) -> bool:
            return False

    async def scenario() -> None:
        scene = Scene()
        await scene.ask()
        slow = scene.slow
        assert slow is not None
        front = Front(Nobody(), slow)
        assert front.direct
        wire = front.answer(query("Example.ORG", edns=0), POD)
        assert show(wire) == ["Example.ORG. 300 IN A 192.0.2.1"]
        assert dns.message.from_wire(wire or b"").edns == 0
        assert front.answer(query("example.org", "MX"), POD) is None
        await asyncio.sleep(300)
        assert front.answer(query("example.org"), POD) is None
        await scene.close()

    run(scenario())


def test_long_answers_are_cut_to_what_a_client_takes() -> None:
    async def scenario() -> None:
        scene = Scene()
        scene.says.answers = [f"example.org. 300 IN A 192.0.2.{n}" for n in range(80)]
        slow = scene.bench.build()
        for _ in range(2):
            for edns, limit in ((None, 512), (0, 1232)):
                wire = await slow.resolve(query("example.org", edns=edns), POD)
                assert wire is not None
                assert len(wire) <= limit
                assert packet.flags(wire) & packet.TC
                assert len(show_cut(wire)) > 20
        whole = await slow.resolve(query("example.org"), POD._replace(tcp=True))
        assert len(show(whole)) == 80
        await slow.close()

    run(scenario())


def show_cut(wire: bytes) -> list[str]:
    message = dns.message.from_wire(wire, one_rr_per_rrset=True)
    return [rrset.to_text() for rrset in message.answer]


# --- the store by itself ------------------------------------------------------------------------

NAMES = [
    name_from_text(text)
    for text in ("a.test.", "b.test.", "x.a.test.", "y.x.a.test.", "test.", "c.other.")
]
KINDS = st.sampled_from(["A", "NXDOMAIN", "NODATA"])


def put(cache: Cache, name: bytes, kind: str, ttl: int, now: float) -> None:
    text = packet.name_to_text(name)
    wire = query(text)
    if kind == "A":
        message = respond(wire, [f"{text} {ttl} IN A 192.0.2.1"])
    else:
        code = "NXDOMAIN" if kind == "NXDOMAIN" else "NOERROR"
        message = respond(wire, rcode=code, authority=[soa(ttl, ttl)])
    cache.store(cache.begin(key(name), name), message, packet.A, now)


def key(name: bytes) -> bytes:
    return cache_key(name, b"\0\1\0\1", dnssec=False, checking_disabled=False)


class CacheMachine(RuleBasedStateMachine):
    """Against a model that knows of each name only the newest answer, until when it may be told."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = Cache(config.Cache((".",)))
        self.model: dict[bytes, tuple[str, float]] = {}
        self.now = 0.0

    @rule(seconds=st.integers(0, 400))
    def passes(self, seconds: int) -> None:
        self.now += seconds

    @rule(name=st.sampled_from(NAMES), kind=KINDS, ttl=st.integers(0, 700))
    def answered(self, name: bytes, kind: str, ttl: int) -> None:
        put(self.cache, name, kind, ttl, self.now)
        self.model[name] = (kind, self.now + max(ttl, 5))

    @rule(names=st.sets(st.sampled_from(NAMES), min_size=1))
    def changed(self, names: set[bytes]) -> None:
        self.cache.evict(names)
        for known, (kind, _) in list(self.model.items()):
            below = not names.isdisjoint(packet.parents(known))
            above = any(known in packet.parents(name) for name in names)
            if below or (above and kind != "A"):
                del self.model[known]

    @invariant()
    def tells_what_is_known_and_only_in_its_time(self) -> None:
        for name in NAMES:
            entry = self.cache.lookup(key(name), self.now)
            kind, until = self.model.get(name, ("", 0.0))
            if until <= self.now:
                assert entry is None
                continue
            assert entry is not None
            assert entry.kind == ("success" if kind == "A" else "denial")
            assert 0 < entry.remaining(self.now) <= until - self.now
            wire = query(packet.name_to_text(name))
            rendered = entry.render(wire, len(wire), entry.remaining(self.now), keep_ad=False)
            message = dns.message.from_wire(rendered)
            for rrset in (*message.answer, *message.authority):
                assert rrset.ttl == entry.remaining(self.now)

    @invariant()
    def the_indexes_know_exactly_what_there_is(self) -> None:
        cache = self.cache
        below: dict[bytes, set[bytes]] = {}
        for entry in (*cache.success.values(), *cache.denial.values()):
            for name in packet.parents(entry.name)[:-1]:
                below.setdefault(name, set()).add(entry.key)
        assert cache._below == below
        assert cache._denials_at == {e.name: {e.key} for e in cache.denial.values()}


TestCacheMachine = CacheMachine.TestCase


@given(st.lists(st.tuples(st.integers(0, 3000), KINDS), max_size=40))
def test_capacity_is_a_bound_and_the_oldest_go(steps: list[tuple[int, str]]) -> None:
    cache = Cache(config.Cache((".",), success_capacity=1, denial_capacity=1))
    for number in range(1100):
        put_fast(cache, number)
    for number, kind in steps:
        put(cache, name_from_text(f"n{number}.test."), kind, 300, 0.0)
    assert len(cache.success) <= 1024
    assert len(cache.denial) <= 1024
    cache.clear()
    assert not cache._below
    assert not cache._denials_at


_TEMPLATE = respond(query("n00000.test."), ["n00000.test. 300 IN A 192.0.2.1"])


def put_fast(cache: Cache, number: int) -> None:
    label = f"n{number:05}".encode()
    name = bytes([6]) + label + b"\4test\0"
    message = _TEMPLATE.replace(b"n00000", label)
    cache.store(cache.begin(key(name), name), message, packet.A, 0.0)


def test_stale_is_never_served_without_leave() -> None:
    cache = Cache(config.Cache((".",)))
    put(cache, NAMES[0], "A", 10, 0.0)
    assert cache.lookup(key(NAMES[0]), 9.9) is not None
    assert cache.lookup(key(NAMES[0]), 10.0) is None
    lenient = Cache(config.Cache((".",), stale_s=60.0))
    put(lenient, NAMES[0], "A", 10, 0.0)
    assert lenient.lookup(key(NAMES[0]), 69.0) is not None
    assert lenient.lookup(key(NAMES[0]), 70.0) is None


# --- one question at a time -------------------------------------------------------------------


def test_who_asks_for_the_same_at_once_waits_for_one_answer() -> None:
    """RFC 5452 section 5: each outstanding copy of a query is one more that a spoof may hit."""

    async def scenario() -> None:
        scene = Scene()
        scene.upstream.delay_s = 1.0
        slow = scene.bench.build()
        names = ["example.org", "EXAMPLE.org"] * 20
        wires = [query(name, ident=number) for number, name in enumerate(names)]
        replies = await asyncio.gather(*(slow.resolve(wire, POD) for wire in wires))
        assert len(scene.upstream.names()) == 1
        for name, wire, reply in zip(names, wires, replies, strict=True):
            assert reply is not None
            assert reply[:2] == wire[:2]
            assert show(reply) == [f"{name}. 300 IN A 192.0.2.1"]
        await slow.close()

    run(scenario())


def test_what_fails_fails_for_all_that_waited() -> None:
    async def scenario() -> None:
        scene = Scene()
        scene.upstream.refuses = True
        slow = scene.bench.build()
        loop = asyncio.get_running_loop()
        first = asyncio.create_task(slow.resolve(query("example.org"), POD))
        await asyncio.sleep(4)
        others = [slow.resolve(query("example.org", ident=n), POD) for n in range(9)]
        replies = await asyncio.gather(first, *others)
        assert {rcode(reply) for reply in replies} == {"SERVFAIL"}
        assert loop.time() <= 5.1
        await slow.close()

    run(scenario())


def test_an_answer_that_is_not_kept_is_asked_for_by_each() -> None:
    async def scenario() -> None:
        scene = Scene()
        scene.upstream.delay_s = 1.0
        scene.says.flags = dns.flags.TC
        slow = scene.bench.build()
        wires = [query("example.org", ident=number) for number in range(5)]
        await asyncio.gather(*(slow.resolve(wire, POD) for wire in wires))
        assert len(scene.upstream.names()) == 5
        assert asyncio.get_running_loop().time() == 2.0, "not one after the other"
        await slow.close()

    run(scenario())


def test_a_client_that_goes_takes_no_answer_from_others() -> None:
    async def scenario() -> None:
        scene = Scene()
        scene.upstream.delay_s = 1.0
        slow = scene.bench.build()
        first = asyncio.create_task(slow.resolve(query("example.org"), POD))
        await asyncio.sleep(0.5)
        second = asyncio.create_task(slow.resolve(query("example.org", ident=2), POD))
        third = asyncio.create_task(slow.resolve(query("example.org", ident=3), POD))
        await asyncio.sleep(0.1)
        second.cancel()
        first.cancel()
        assert show(await third) == ["example.org. 300 IN A 192.0.2.1"]
        await slow.close()

    run(scenario())
