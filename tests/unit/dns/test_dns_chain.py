"""The chain of plugins: rewriting, hosts, logs, loops, search lists, and the door in front."""

from __future__ import annotations

import random
from dataclasses import replace

import dns.flags
import dns.message
import pytest
from dns_fakes import POD, Bench, FakeUpstream, FakeZone, query, rcode, respond, show, soa
from virtual_time import run

from podwire.dns import packet
from podwire.dns.corefile import parse_corefile
from podwire.dns.front import Front
from podwire.dns.index import Changes
from podwire.dns.packet import parse_question
from podwire.dns.plugins.autopath import search_list
from podwire.dns.plugins.hosts import parse_hosts
from podwire.dns.plugins.loadbalance import find_run, shuffle
from podwire.dns.seam import Client
from podwire.dns.seam import SlowPath as SlowPathSeam
from podwire.dns.slowpath import SlowPath, World

ZONE = {
    ("web.shop.svc.cluster.local.", "A"): ["web.shop.svc.cluster.local. 5 IN A 10.96.0.80"],
    ("1.0.96.10.in-addr.arpa.", "PTR"): [
        "1.0.96.10.in-addr.arpa. 5 IN PTR web.shop.svc.cluster.local."
    ],
}


def outside(wire: bytes) -> bytes:
    """An upstream that knows example.org and consul names."""
    asked = dns.message.from_wire(wire).question[0]
    name = str(asked.name)
    if name.lower().endswith(("example.org.", ".consul.", "5.2.0.192.in-addr.arpa.")):
        if asked.rdtype == dns.rdatatype.PTR:
            return respond(wire, [f"{name} 300 IN PTR a.example.org."])
        if asked.rdtype == dns.rdatatype.A:
            return respond(wire, [f"{name} 300 IN A 192.0.2.1"])
        if asked.rdtype == dns.rdatatype.MX:
            return respond(wire, [f"{name} 300 IN MX 10 mail.{name}"])
        return respond(wire, authority=[soa()])
    return respond(wire, rcode="NXDOMAIN", authority=[soa()])


class Scene:
    def __init__(self, body: str, *, zone: FakeZone | None = None, **world: object) -> None:
        self.zone = zone or FakeZone("cluster.local.", dict(ZONE))
        self.upstream = FakeUpstream(outside)
        text = f". {{\n{body}\n forward . 10.0.0.1\n}}\n"
        self.bench = Bench(text, {"10.0.0.1": self.upstream}, World(fast=self.zone, **world))  # type: ignore[arg-type]

    def ask(self, *questions: tuple[str, str], client: Client = POD) -> list[bytes]:
        async def scenario() -> list[bytes]:
            slow = self.bench.build()
            answers = [await slow.resolve(query(*question), client) for question in questions]
            await slow.close()
            assert None not in answers
            return [answer for answer in answers if answer is not None]

        return run(scenario())

    def one(self, name: str, kind: str = "A", *, client: Client = POD) -> bytes:
        return self.ask((name, kind), client=client)[0]


# --- kubernetes -------------------------------------------------------------------------------


def test_cluster_names_are_answered_live_and_others_forwarded() -> None:
    scene = Scene("cache\n kubernetes cluster.local")
    assert show(scene.one("web.shop.svc.cluster.local")) == [
        "web.shop.svc.cluster.local. 5 IN A 10.96.0.80"
    ]
    assert rcode(scene.one("no.shop.svc.cluster.local")) == "NXDOMAIN"
    assert scene.upstream.names() == []
    assert rcode(scene.one("a.example.org")) == "NOERROR"


def test_live_answers_are_never_cached() -> None:
    async def scenario() -> None:
        scene = Scene("cache\n kubernetes cluster.local")
        slow = scene.bench.build()
        name = ("new.shop.svc.cluster.local", "A")
        assert rcode(await slow.resolve(query(*name), POD)) == "NXDOMAIN"
        scene.zone.records["new.shop.svc.cluster.local.", "A"] = [
            "new.shop.svc.cluster.local. 5 IN A 10.96.0.81"
        ]
        assert rcode(await slow.resolve(query(*name), POD)) == "NOERROR"
        await slow.close()

    run(scenario())


def test_only_nxdomain_in_the_named_zones_falls_through() -> None:
    body = "kubernetes cluster.local in-addr.arpa {\n fallthrough in-addr.arpa\n }"
    zone = FakeZone("", dict(ZONE))
    scene = Scene(body, zone=zone)
    assert show(scene.one("5.2.0.192.in-addr.arpa", "PTR")) == [
        "5.2.0.192.in-addr.arpa. 300 IN PTR a.example.org."
    ]
    assert show(scene.one("1.0.96.10.in-addr.arpa", "PTR"))[0].endswith("cluster.local.")
    assert scene.upstream.names() == ["5.2.0.192.in-addr.arpa. PTR"]
    assert rcode(scene.one("no.cluster.local")) == "NXDOMAIN"
    assert len(scene.upstream.names()) == 1


def test_what_fell_through_is_evicted_when_the_name_comes_to_be() -> None:
    async def scenario() -> None:
        scene = Scene("cache\n kubernetes cluster.local {\n fallthrough\n }")
        slow = scene.bench.build()
        wire = query("new.shop.svc.cluster.local")
        for _ in range(2):
            assert rcode(await slow.resolve(wire, POD)) == "NXDOMAIN"
        assert len(scene.upstream.names()) == 1
        scene.zone.records["new.shop.svc.cluster.local.", "A"] = [
            "new.shop.svc.cluster.local. 5 IN A 10.96.0.81"
        ]
        question = parse_question(wire)
        assert question is not None
        slow.evict(Changes(frozenset({question.name})))
        assert rcode(await slow.resolve(wire, POD)) == "NOERROR"
        await slow.close()

    run(scenario())


class AliasTo:
    """Completes one name, in the manner of ExternalName Services."""

    def __init__(self, inner: SlowPathSeam) -> None:
        self.inner = inner

    async def resolve(self, wire: bytes, client: Client) -> bytes | None:
        question = parse_question(wire)
        assert question is not None
        if not question.name.startswith(b"\x03ext"):
            return await self.inner.resolve(wire, client)
        found = await self.inner.resolve(query("a.example.org"), client)
        assert found is not None
        target = [r.to_text() for r in dns.message.from_wire(found).answer]
        name = packet.name_to_text(question.name)
        return respond(wire, [f"{name} 5 IN CNAME a.example.org.", *target])


def test_aliases_are_completed_from_the_top_of_the_server() -> None:
    scene = Scene("cache\n kubernetes cluster.local", external=AliasTo)
    scene.zone.silent = True
    for wire in scene.ask(("ext.shop.svc.cluster.local", "A"), ("ext.shop.svc.cluster.local", "A")):
        assert show(wire) == [
            "ext.shop.svc.cluster.local. 5 IN CNAME a.example.org.",
            "a.example.org. 300 IN A 192.0.2.1",
        ]
    assert scene.upstream.names() == ["a.example.org. A"], "the target is cached, the alias live"
    assert rcode(scene.one("other.cluster.local")) == "NXDOMAIN"


# --- rewrite ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rules", "name", "asked", "answer"),
    [
        (
            "rewrite name shop.example.org web.shop.svc.cluster.local",
            "shop.example.org",
            None,
            "shop.example.org. 5 IN A 10.96.0.80",
        ),
        (
            "rewrite name suffix .eu.example.org .example.org answer auto",
            "a.eu.example.org",
            "a.example.org. A",
            "a.eu.example.org. 300 IN A 192.0.2.1",
        ),
        (
            "rewrite name prefix old- new-",
            "old-a.example.org",
            "new-a.example.org. A",
            "new-a.example.org. 300 IN A 192.0.2.1",
        ),
        (
            "rewrite name prefix old- new- answer auto",
            "old-a.example.org",
            "new-a.example.org. A",
            "old-a.example.org. 300 IN A 192.0.2.1",
        ),
        (
            "rewrite name substring .b. .c.",
            "a.b.example.org",
            "a.c.example.org. A",
            "a.c.example.org. 300 IN A 192.0.2.1",
        ),
        (
            (
                r"rewrite name regex (.*)-(eu)\.test {1}.{2}.consul "
                r"answer name (.*)\.(eu)\.consul {1}-{2}.test"
            ),
            "ftp-eu.test",
            "ftp.eu.consul. A",
            "ftp-eu.test. 300 IN A 192.0.2.1",
        ),
        (
            (
                "rewrite continue name a.example.org b.example.org\n"
                " rewrite name b.example.org c.example.org"
            ),
            "a.example.org",
            "c.example.org. A",
            "a.example.org. 300 IN A 192.0.2.1",
        ),
        (
            "rewrite name a.example.org b.example.org\n rewrite name b.example.org c.example.org",
            "a.example.org",
            "b.example.org. A",
            "a.example.org. 300 IN A 192.0.2.1",
        ),
        (
            "rewrite ttl suffix .example.org 15",
            "a.example.org",
            "a.example.org. A",
            "a.example.org. 15 IN A 192.0.2.1",
        ),
    ],
)
def test_rewriting(rules: str, name: str, asked: str | None, answer: str) -> None:
    scene = Scene(f"{rules}\n kubernetes cluster.local")
    wire = scene.one(name)
    assert show(wire) == [answer]
    assert scene.upstream.names() == ([asked] if asked else [])
    assert dns.message.from_wire(wire).question[0].to_text() == f"{name}. IN A"


def test_values_are_rewritten_back() -> None:
    scene = Scene(
        "rewrite name suffix .in.test .example.org answer auto\n kubernetes cluster.local"
    )
    assert show(scene.one("a.in.test", "MX")) == ["a.in.test. 300 IN MX 10 mail.a.in.test."]


def test_a_type_is_rewritten() -> None:
    scene = Scene("rewrite type ANY A\n kubernetes cluster.local")
    wire = scene.one("a.example.org", "ANY")
    assert scene.upstream.names() == ["a.example.org. A"]
    assert dns.message.from_wire(wire).question[0].rdtype == dns.rdatatype.ANY


def test_rewritten_answers_of_the_cluster_are_not_cached_and_others_are() -> None:
    body = (
        "cache\n rewrite name shop.test web.shop.svc.cluster.local\n"
        " rewrite name far.test a.example.org\n kubernetes cluster.local"
    )

    async def scenario() -> None:
        scene = Scene(body)
        slow = scene.bench.build()
        for _ in range(2):
            await slow.resolve(query("far.test"), POD)
        assert scene.upstream.names() == ["a.example.org. A"]
        before = show(await slow.resolve(query("shop.test"), POD))
        scene.zone.records["web.shop.svc.cluster.local.", "A"] = [
            "web.shop.svc.cluster.local. 5 IN A 10.96.0.99"
        ]
        assert show(await slow.resolve(query("shop.test"), POD)) != before
        await slow.close()

    run(scenario())


# --- hosts ------------------------------------------------------------------------------------

HOSTS = """ hosts /nonexistent {
  10.0.0.7 db.test db
  fd00::7 db.test
  10.0.0.8 v4.test *.wild.test
  fallthrough
 }"""


@pytest.mark.parametrize(
    ("name", "kind", "shown"),
    [
        ("db.test", "A", ["db.test. 3600 IN A 10.0.0.7"]),
        ("DB.test", "AAAA", ["DB.test. 3600 IN AAAA fd00::7"]),
        ("v4.test", "AAAA", []),
        ("v4.test", "MX", []),
        ("x.wild.test", "A", ["x.wild.test. 3600 IN A 10.0.0.8"]),
        ("7.0.0.10.in-addr.arpa", "PTR", [
            "7.0.0.10.in-addr.arpa. 3600 IN PTR db.test.",
            "7.0.0.10.in-addr.arpa. 3600 IN PTR db.",
        ]),
        ("a.example.org", "A", ["a.example.org. 300 IN A 192.0.2.1"]),
    ],
)  # fmt: skip
def test_hosts(name: str, kind: str, shown: list[str]) -> None:
    wire = Scene(HOSTS).one(name, kind)
    assert rcode(wire) == "NOERROR"
    assert show(wire) == shown


def test_unknown_hosts_without_fallthrough_are_servfail() -> None:
    assert rcode(Scene("hosts /nonexistent {\n 10.0.0.7 db.test\n }").one("x.test")) == "SERVFAIL"


def test_lines_of_hosts() -> None:
    table = parse_hosts(
        ["# no", "10.0.0.1 a # b", "nonsense c", "10.0.0.1", "fe80::1%eth0 d", "10.0.0.2 a..b"],
        ["."],
    )
    assert table.v4 == {"a.": ("10.0.0.1",)}
    assert table.v6 == {"d.": ("fe80::1",)}


# --- log, errors, loop ------------------------------------------------------------------------


def test_the_query_log_is_coredns() -> None:
    scene = Scene("log\n kubernetes cluster.local")
    scene.one("a.example.org")
    (line,) = scene.bench.lines
    assert line == (
        '[INFO] 10.244.1.7:40000 - 4711 "A IN a.example.org. udp 31 false 512" '
        "NOERROR qr,rd,ra 47 0.000000000s"
    )


def test_log_classes_names_and_formats() -> None:
    body = (
        'log example.org "{type} {rcode} {remote} {>opcode} {/meta}" {\n class denial\n }\n'
        " log cluster.local {combined}\n kubernetes cluster.local"
    )
    scene = Scene(body)
    v6 = Client("fd00::7", 1, True)
    scene.ask(("a.example.org", "A"), ("a.example.org", "TXT"), ("b.test", "A"), client=v6)
    assert scene.bench.lines == ["[INFO] TXT NOERROR [fd00::7] QUERY -"]
    scene.one("web.shop.svc.cluster.local")
    assert scene.bench.lines[-1].endswith('"QUERY"')


def test_errors_are_consolidated() -> None:
    body = 'errors {\n consolidate 30s ".* i/o timeout$" warning\n }'
    scene = Scene(body)
    scene.upstream.down = True
    scene.ask(("a.test", "A"), ("b.test", "A"))
    assert scene.bench.lines == [
        "[WARNING] plugin/errors: 2 errors like '.* i/o timeout$' occurred in last 30s"
    ]


def test_a_loop_is_seen_and_the_server_halted() -> None:
    halted: list[str] = []
    scene = Scene("loop", halt=halted.append)

    async def scenario() -> None:
        slow = scene.bench.build()
        (loop,) = [block.loop for block in slow._blocks if block.loop]

        async def itself(wire: bytes) -> bytes:
            answer = await slow.resolve(wire, Client("127.0.0.1", 1, False))
            assert answer is not None
            return answer

        probes = 0

        async def probe(wire: bytes) -> None:
            nonlocal probes
            probes += 1
            for _ in range(3):
                await itself(wire)

        assert loop is not None
        await loop.watch(probe)
        assert probes == 1
        assert not loop.active
        await itself(loop.query())
        await slow.close()

    run(scenario())
    assert len(halted) == 1
    assert 'detected for zone ".". Query: "HINFO ' in halted[0]
    assert "name others" in halted[0]


def test_without_a_loop_the_watch_ends_by_itself() -> None:
    halted: list[str] = []
    scene = Scene("loop", halt=halted.append)

    async def scenario() -> None:
        slow = scene.bench.build()
        (loop,) = [block.loop for block in slow._blocks if block.loop]
        tries = 0

        async def probe(wire: bytes) -> None:
            nonlocal tries
            tries += 1
            if tries < 3:
                raise ConnectionRefusedError
            await slow.resolve(wire, POD)

        assert loop is not None
        await loop.watch(probe)
        for _ in range(5):
            await slow.resolve(loop.query(), POD)
        assert tries == 3
        await slow.close()

    run(scenario())
    assert halted == []


# --- autopath, dns64, loadbalance -------------------------------------------------------------

PODS = {"10.244.1.7": "shop", "10.244.1.8": "bank"}


def searched(address: str) -> list[str] | None:
    namespace = PODS.get(address)
    return None if namespace is None else search_list(namespace, "cluster.local")


def test_the_search_list_is_walked_here() -> None:
    scene = Scene("autopath @kubernetes\n kubernetes cluster.local", search_of=searched)
    wire = scene.one("a.example.org.shop.svc.cluster.local")
    assert show(wire) == [
        "a.example.org.shop.svc.cluster.local. 300 IN CNAME a.example.org.",
        "a.example.org. 300 IN A 192.0.2.1",
    ]
    assert "coredns_autopath_success_total" in scene.bench.world.metrics.render()


def test_a_pod_of_another_namespace_is_not_helped_with_this_ones_names() -> None:
    scene = Scene("autopath @kubernetes\n kubernetes cluster.local", search_of=searched)
    bank = POD._replace(address="10.244.1.8")
    stranger = POD._replace(address="10.9.9.9")
    for client in (bank, stranger):
        wire = scene.one("a.example.org.shop.svc.cluster.local", client=client)
        assert rcode(wire) == "NXDOMAIN"
    wire = scene.one("web.shop.bank.svc.cluster.local", client=bank)
    assert show(wire) == [
        "web.shop.bank.svc.cluster.local. 5 IN CNAME web.shop.svc.cluster.local.",
        "web.shop.svc.cluster.local. 5 IN A 10.96.0.80",
    ]


def test_names_that_are_nowhere_get_the_first_answer() -> None:
    scene = Scene("autopath @kubernetes\n kubernetes cluster.local", search_of=searched)
    wire = scene.one("nowhere.test.shop.svc.cluster.local")
    assert rcode(wire) == "NXDOMAIN"
    assert scene.upstream.names() == ["nowhere.test. A"]


@pytest.mark.parametrize(
    "name", ["Nowhere.Test.SHOP.svc.cluster.local", "A.org.SHOP.svc.Cluster.local"]
)
def test_autopath_keeps_the_case_of_the_question(name: str) -> None:
    scene = Scene("autopath @kubernetes\n kubernetes cluster.local", search_of=searched)
    wire = scene.one(name)
    assert wire is not None
    assert str(dns.message.from_wire(wire).question[0].name) == f"{name}."


def test_with_autopath_outside_names_are_still_cached() -> None:
    async def scenario() -> None:
        scene = Scene("cache\n autopath @kubernetes\n kubernetes cluster.local", search_of=searched)
        slow = scene.bench.build()
        for client in (POD, POD._replace(address="10.244.1.8")):
            namespace = PODS[client.address]
            wire = query(f"a.example.org.{namespace}.svc.cluster.local")
            assert rcode(await slow.resolve(wire, client)) == "NOERROR"
        assert scene.upstream.names() == ["a.example.org. A"]
        await slow.close()

    run(scenario())


def test_dns64_makes_addresses_for_clients_by_ipv6() -> None:
    v6 = Client("fd00:244::7", 40000, False)
    scene = Scene("dns64\n kubernetes cluster.local")
    assert show(scene.one("a.example.org", "AAAA", client=v6)) == [
        "a.example.org. 300 IN AAAA 64:ff9b::c000:201"
    ]
    assert show(scene.one("a.example.org", "AAAA"))[0].startswith("example.org. 300 IN SOA")


def test_addresses_change_places_and_aliases_stay_first() -> None:
    wire = respond(
        query("www.test"),
        ["www.test. 60 IN CNAME a.test."] + [f"a.test. 60 IN A 192.0.2.{n}" for n in range(5)],
    )
    found = packet.records(wire, 12 + 10 + 4)
    run_ = find_run(wire, found or ())
    rng = random.Random(1)
    orders = {tuple(show(shuffle(wire, run_, rng))) for _ in range(50)}
    assert len(orders) > 10
    assert {order[0] for order in orders} == {"www.test. 60 IN CNAME a.test."}
    assert {tuple(sorted(order)) for order in orders} == {tuple(sorted(show(wire)))}


def test_mx_records_change_places_too() -> None:
    wire = respond(query("a.test", "MX"), [f"a.test. 60 IN MX 10 m{n}.a.test." for n in range(4)])
    found = packet.records(wire, 12 + 8 + 4)
    rng = random.Random(1)
    orders = {tuple(show(shuffle(wire, find_run(wire, found or ()), rng))) for _ in range(50)}
    assert len(orders) > 5
    assert {tuple(sorted(order)) for order in orders} == {tuple(sorted(show(wire)))}


# --- the door in front ------------------------------------------------------------------------


def front(body: str, **world: object) -> tuple[Front, Scene, SlowPath]:
    scene = Scene(body, **world)
    slow = SlowPath(
        parse_corefile(scene.bench.corefile).blocks,
        replace(
            scene.bench.world,
            transport=lambda address, port: scene.upstream,
            write=scene.bench.lines.append,
            clock=lambda: 0.0,
        ),
    )
    return Front(scene.zone, slow), scene, slow


@pytest.mark.parametrize(
    ("body", "name", "kind", "chain"),
    [
        ("", "web.shop.svc.cluster.local", "A", False),
        ("", "no.shop.svc.cluster.local", "A", False),
        ("log\n", "web.shop.svc.cluster.local", "A", True),
        (
            "rewrite name web.shop.svc.cluster.local x.test\n",
            "web.shop.svc.cluster.local",
            "A",
            True,
        ),
        (
            "rewrite name web.shop.svc.cluster.local x.test\n",
            "no.shop.svc.cluster.local",
            "A",
            False,
        ),
        (
            HOSTS.replace("db.test db", "web.shop.svc.cluster.local") + "\n",
            "web.shop.svc.cluster.local",
            "A",
            True,
        ),
        (HOSTS + "\n", "web.shop.svc.cluster.local", "A", False),
        ("autopath @kubernetes\n", "a.example.org.shop.svc.cluster.local", "A", True),
        ("autopath @kubernetes\n", "no.bank.svc.cluster.local", "A", False),
        ("autopath @kubernetes\n", "web.shop.svc.cluster.local", "A", False),
        ("dns64 {\n allow_ipv4\n }\n", "web.shop.svc.cluster.local", "AAAA", True),
        ("dns64 {\n allow_ipv4\n }\n", "web.shop.svc.cluster.local", "A", False),
    ],
)
def test_what_the_chain_has_to_see(body: str, name: str, kind: str, chain: bool) -> None:
    door, _, _ = front(f"{body}kubernetes cluster.local", search_of=searched)
    assert (door.answer(query(name, kind), POD) is None) is chain
    assert (door.answer(query(name, kind), POD) is None) is chain, "remembered"
    assert door.direct is (body == "")


def test_falling_through_passes_the_door() -> None:
    door, _, _ = front("kubernetes cluster.local {\n fallthrough\n }")
    assert door.answer(query("no.cluster.local"), POD) is None
    assert door.answer(query("web.shop.svc.cluster.local"), POD) is not None


# --- the edges of the seam --------------------------------------------------------------------


def test_what_is_no_query() -> None:
    scene = Scene("")

    async def scenario() -> None:
        slow = scene.bench.build()
        good = query("a.example.org")
        assert await slow.resolve(b"", POD) is None
        assert await slow.resolve(good[:2] + b"\x80" + good[3:], POD) is None
        assert rcode(await slow.resolve(good[:4] + b"\0\2" + good[6:], POD)) == "FORMERR"
        assert rcode(await slow.resolve(good[:2] + b"\x28" + good[3:], POD)) == "NOTIMP"
        assert rcode(await slow.resolve(query("a.example.org", "AXFR"), POD)) == "REFUSED"
        message = dns.message.make_query("a.example.org", "A")
        message.use_edns(1)
        assert rcode(await slow.resolve(message.to_wire(), POD)) == "BADVERS"
        await slow.close()

    run(scenario())


def test_metrics_have_coredns_names() -> None:
    scene = Scene("prometheus :9153\n cache\n kubernetes cluster.local")
    scene.ask(("a.example.org", "A"), ("a.example.org", "A"), ("no.cluster.local", "AAAA"))
    text = scene.bench.world.metrics.render()
    base = 'server="dns://:53"'
    responses = "coredns_dns_responses_total{"
    asked = 'coredns_proxy_request_duration_seconds_count{proxy_name="forward",'
    for line in (
        f'coredns_dns_requests_total{{family="1",proto="udp",{base},type="A",view="",zone="."}} 2',
        f'coredns_dns_responses_total{{plugin="cache",rcode="NOERROR",{base},view="",zone="."}} 1',
        f'{responses}plugin="forward",rcode="NOERROR",{base},view="",zone="."}} 1',
        f'{responses}plugin="kubernetes",rcode="NXDOMAIN",{base},view="",zone="."}} 1',
        f'coredns_dns_request_duration_seconds_count{{{base},type="A",view="",zone="."}} 2',
        f'{asked}rcode="NOERROR",to="10.0.0.1:53"}} 1',
        "# TYPE coredns_dns_request_size_bytes histogram",
        "# TYPE coredns_dns_response_size_bytes histogram",
    ):
        assert line in text
