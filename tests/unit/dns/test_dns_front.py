"""The zone's own answers behind the door: aliases, names that lead into the cluster, changes."""

from __future__ import annotations

import asyncio
from pathlib import Path

import dns.message
import dns.rcode
import pytest
from dns_fakes import POD, FakeUpstream, query, rcode, respond, show
from dns_worlds import World as Cluster
from dns_worlds import cluster_ip, external
from virtual_time import run

from podwire.dns.corefile import parse_corefile
from podwire.dns.external import ExternalNames
from podwire.dns.front import Front
from podwire.dns.index import PodMode
from podwire.dns.slowpath import SlowPath, World, zone_options


def outside(wire: bytes) -> bytes:
    name = str(dns.message.from_wire(wire).question[0].name)
    return respond(wire, [f"{name} 300 IN A 192.0.2.1"])


class Scene:
    """A cluster of two Services, and an upstream that knows every name."""

    def __init__(self, body: str = "") -> None:
        self.cluster = Cluster(
            namespaces=("shop",),
            services=(
                cluster_ip("shop", "web", "10.96.0.80"),
                external("shop", "away", "www.example.com"),
            ),
        )
        answers = self.cluster.answers
        self.upstream = FakeUpstream(outside)
        self.world = World(
            fast=answers,
            external=lambda inner: ExternalNames(answers, inner),
            transport=lambda address, port: self.upstream,
            write=lambda line: None,
        )
        text = f". {{\n prometheus :9153\n cache\n {body}\n kubernetes cluster.local\n"
        corefile = parse_corefile(f"{text} forward . 10.0.0.1\n}}")
        self.slow = SlowPath(corefile.blocks, self.world)
        self.front = Front(answers, self.slow)
        self.slow.count_fast(answers.counts)
        answers.on_evict(self.slow.evict)

    async def ask(self, name: str) -> bytes:
        """As the server does."""
        wire = query(name)
        response = self.front.answer(wire, POD)
        if response is None:
            response = await self.slow.resolve(wire, POD)
        assert response is not None
        return response


def test_the_server_may_look_into_kept_answers_where_no_plugin_wants_them() -> None:
    async def scenario() -> None:
        plain = Scene()
        assert plain.front.direct
        assert plain.front.hot is plain.cluster.answers.hot
        guarded = Scene("rewrite name shop.test web.shop.svc.cluster.local")
        assert not guarded.front.direct
        assert guarded.front.hot == {}

    run(scenario())


def test_an_alias_is_live_and_its_target_cached() -> None:
    async def scenario() -> None:
        scene = Scene()
        for _ in range(2):
            assert [
                line.split(None, 1)[0]
                for line in show(await scene.ask("away.shop.svc.cluster.local"))
            ] == [
                "away.shop.svc.cluster.local.",
                "www.example.com.",
            ]
        assert scene.upstream.names() == ["www.example.com. A"]
        scene.upstream.answer = lambda wire: respond(wire, rcode="SERVFAIL")
        assert rcode(await scene.ask("other.example.com")) == "SERVFAIL"
        await scene.slow.close()

    run(scenario())


def test_an_alias_is_asked_for_as_its_client_asks() -> None:
    """Upstreams that have no TCP serve its clients by UDP, as they do for names without alias."""

    async def scenario() -> None:
        for tcp in (False, True):
            scene = Scene()
            wire = query("away.shop.svc.cluster.local")
            response = await scene.slow.resolve(wire, POD._replace(tcp=tcp))
            assert len(show(response)) == 2
            assert [proto for proto, _ in scene.upstream.asked] == ["tcp" if tcp else "udp"]
            await scene.slow.close()

    run(scenario())


def test_an_alias_that_leads_to_itself_by_a_rewrite_fails() -> None:
    async def scenario() -> None:
        scene = Scene("rewrite name www.example.com away.shop.svc.cluster.local")
        assert rcode(await scene.ask("away.shop.svc.cluster.local")) == "SERVFAIL"
        assert not scene.upstream.asked
        await scene.slow.close()

    run(scenario())


def test_rewritten_names_lead_to_aliases_and_services() -> None:
    async def scenario() -> None:
        scene = Scene("rewrite name suffix .shop.test .shop.svc.cluster.local answer auto")
        assert show(await scene.ask("web.shop.test")) == ["web.shop.test. 5 IN A 10.96.0.80"]
        assert show(await scene.ask("away.shop.test"))[0].endswith("CNAME www.example.com.")
        await scene.slow.close()

    run(scenario())


def test_the_block_configures_the_zone() -> None:
    text = (
        ". {\n kubernetes cluster.local in-addr.arpa {\n pods verified\n ttl 30\n"
        " namespaces a b\n labels app=web\n fallthrough in-addr.arpa\n noendpoints\n }\n}"
    )
    settings = parse_corefile(text).blocks[0].kubernetes
    assert settings is not None
    options = zone_options(settings, ["10.244.0.5"])
    assert (options.zones, options.ttl_s) == (("cluster.local", "in-addr.arpa"), 30)
    assert (options.pods, options.namespaces) == (PodMode.VERIFIED, {"a", "b"})
    assert (options.fallthrough, options.endpoints) == (("in-addr.arpa",), False)
    assert options.labels.matches({"app": "web"})
    assert not options.labels.matches({})
    assert options.local_addresses == ("10.244.0.5",)


def test_fast_answers_are_on_the_page_once() -> None:
    async def scenario() -> None:
        scene = Scene("rewrite name shop.test web.shop.svc.cluster.local")
        await scene.ask("web.shop.svc.cluster.local")
        await scene.ask("web.shop.svc.cluster.local")
        await scene.ask("shop.test")
        text = scene.world.metrics.render()
        base = 'server="dns://:53",type="A"'
        assert (
            f'coredns_dns_requests_total{{family="",proto="",{base},view="fast",zone="."}} 2'
            in text
        )
        assert (
            f'coredns_dns_requests_total{{family="1",proto="udp",{base},view="",zone="."}} 1'
            in text
        )
        await scene.slow.close()

    run(scenario())


def test_a_hosts_file_that_changes_takes_names_from_the_cluster(tmp_path: Path) -> None:
    file = tmp_path / "hosts"
    file.write_text("")

    async def scenario() -> None:
        scene = Scene(f"hosts {file} {{\n reload 1s\n fallthrough\n }}")
        scene.slow.start()
        name = "web.shop.svc.cluster.local"
        assert show(await scene.ask(name)) == [f"{name}. 5 IN A 10.96.0.80"]
        file.write_text(f"192.0.2.7 {name}\n")
        await asyncio.sleep(2)
        assert show(await scene.ask(name)) == [f"{name}. 3600 IN A 192.0.2.7"]
        file.write_text("")
        await asyncio.sleep(2)
        assert show(await scene.ask(name)) == [f"{name}. 5 IN A 10.96.0.80"]
        await scene.slow.close()

    run(scenario())


_OPT = b"\0\0\x29\x04\xd0\0\0\0\0\0\0"
UNREADABLE = {
    "two OPT records": query("www.example.com")[:10] + b"\0\2" + query("www.example.com")[12:]
    + 2 * _OPT,
    "an option longer than its record": query("www.example.com")[:10] + b"\0\1"
    + query("www.example.com")[12:] + _OPT[:-2] + b"\0\5\0\1\0\x09a",
    "a record that is promised": query("www.example.com")[:10] + b"\0\1"
    + query("www.example.com")[12:],
    "many answers": query("www.example.com")[:6] + b"\0\2" + query("www.example.com")[8:],
}  # fmt: skip


@pytest.mark.parametrize("case", UNREADABLE)
@pytest.mark.parametrize("body", ["", "log", "rewrite type MX A"])
def test_what_cannot_be_read_is_a_format_error_whatever_is_configured(case: str, body: str) -> None:
    async def scenario() -> None:
        scene = Scene(body)
        response = scene.front.answer(UNREADABLE[case], POD)
        assert response is not None
        assert response[3] & 0xF == dns.rcode.FORMERR
        assert not scene.upstream.asked
        await scene.slow.close()

    run(scenario())


@pytest.mark.parametrize("body", ["", "log", "rewrite type MX A"])
def test_other_classes_are_refused_whatever_is_configured(body: str) -> None:
    async def scenario() -> None:
        scene = Scene(body)
        for name in ("version.bind", "web.shop.svc.cluster.local"):
            wire = dns.message.make_query(name, "TXT", "CH").to_wire()
            response = scene.front.answer(wire, POD) or await scene.slow.resolve(wire, POD)
            assert rcode(response) == "REFUSED"
        assert not scene.upstream.asked
        await scene.slow.close()

    run(scenario())


def test_a_class_is_rewritten_whosever_the_name() -> None:
    async def scenario() -> None:
        scene = Scene("rewrite class CH IN")
        for name in ("www.example.com", "web.shop.svc.cluster.local"):
            wire = dns.message.make_query(name, "A", "CH").to_wire()
            response = scene.front.answer(wire, POD) or await scene.slow.resolve(wire, POD)
            assert rcode(response) == "NOERROR", name
        other = dns.message.make_query("www.example.com", "A", "HS").to_wire()
        response = scene.front.answer(other, POD) or await scene.slow.resolve(other, POD)
        assert rcode(response) == "REFUSED"
        await scene.slow.close()

    run(scenario())
