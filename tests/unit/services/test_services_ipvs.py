"""IPVS: what is sent to ipvsadm, the table beside it, and every step from one world to the next."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ipvs_model import Kernel
from service_rows import ROWS, Row, backends_of, variants
from service_worlds import NODE, World, compiled, domain_of, make_service, make_slice, worlds

from podwire.kernel.ipvs import Counted, parse_connections
from podwire.objects.discovery import EndpointSlice
from podwire.services import ipvs
from podwire.services.claims import Claims, Owner
from podwire.services.evaluate import Packet, evaluate
from podwire.services.ipvsplan import Ruleset
from podwire.services.model import FrontendKey, compile_service

OWN = frozenset(address.packed for address in NODE.addresses)
WEB = Owner("Service", make_service().key)
HERE = {"ip": "10.244.1.2", "node": "node-1"}
THERE = {"ip": "10.244.2.2", "node": "node-2"}
THIRD = {"ip": "10.244.3.2", "node": "node-3"}


def make_ruleset(claims: Claims) -> Ruleset:
    ruleset = Ruleset(claims)
    ruleset.set_own(OWN)
    return ruleset


class Node:
    """One Service after the other, and what the kernel has of it."""

    def __init__(self) -> None:
        self.claims = Claims()
        self.ruleset = make_ruleset(self.claims)
        self.kernel = Kernel(OWN)

    def program(self, *slices: EndpointSlice, **spec: Any) -> None:
        self.claims.set(WEB, compiled(make_service(**spec), *slices).frontends)
        for _ in self.kernel.steps(self.ruleset.plan()):
            self.kernel.check_nothing_dangles()

    @property
    def text(self) -> str:
        return ipvs.render_save(self.kernel.servers)


# --- texts --------------------------------------------------------------------------------------

_SCHEDULER = "networking.podwire.dev/ipvs-scheduler"
_BALANCING = "networking.podwire.dev/balancing"
_BALANCER = {
    "type": "LoadBalancer",
    "clusterIPs": ["10.96.0.1", "fd00:96::1"],
    "ports": [
        {"name": "http", "port": 80, "nodePort": 30080},
        {"name": "dns", "port": 53, "protocol": "UDP", "nodePort": 30053},
    ],
    "externalTrafficPolicy": "Local",
    "ingress": [{"ip": "203.0.113.77"}],
    "sessionAffinity": "ClientIP",
}


def test_restore_text_is_golden(golden: Callable[[str, str], None]) -> None:
    ports = ({"name": "http", "port": 8080}, {"name": "dns", "port": 5353, "protocol": "UDP"})
    slices = [
        make_slice(HERE, THERE, ports=ports),
        make_slice({"ip": "fd00:244:0:1::2", "node": "node-1"}, name="web-6", ports=ports),
    ]
    node = Node()
    node.program(*slices, **_BALANCER)
    golden("ipvs/balancer-local.txt", node.text)


def test_the_table_is_golden(golden: Callable[[str, str], None]) -> None:
    for version in (4, 6):
        golden(f"ipvs/base-{version}.nft.txt", ipvs.render_base(version))


def test_what_is_saved_is_read_back() -> None:
    node = Node()
    node.program(make_slice(HERE, THERE), **_BALANCER)
    assert ipvs.render_save(ipvs.parse_save(node.text)) == node.text


@pytest.mark.parametrize(
    ("annotations", "weights", "options"),
    [
        ({}, None, "-s rr"),
        ({}, {"10.244.1.2": 3}, "-s wrr"),
        ({_BALANCING: "maglev"}, None, "-s mh -b mh-fallback,mh-port"),
        ({_BALANCING: "maglev-source"}, None, "-s mh -b mh-fallback"),
        ({_SCHEDULER: "lc", _BALANCING: "maglev"}, None, "-s lc"),
        ({_SCHEDULER: "rr"}, {"10.244.1.2": 3}, "-s rr"),
        ({_SCHEDULER: "sh"}, None, "-s sh -b sh-fallback"),
        ({_SCHEDULER: "mh"}, None, "-s mh -b mh-fallback"),
        *(({_SCHEDULER: s}, None, f"-s {s}") for s in ("wrr", "wlc", "dh", "sed", "nq")),
    ],
)
def test_schedulers(
    annotations: dict[str, str], weights: dict[str, int] | None, options: str
) -> None:
    node = Node()
    node.program(make_slice(HERE, weights=weights), annotations=annotations)
    assert node.text.splitlines()[0] == f"-A -t 10.96.0.1:80 {options}"
    assert node.text.endswith(f"-w {(weights or {}).get('10.244.1.2', 1)}\n")


def test_affinity_is_persistence() -> None:
    node = Node()
    node.program(
        make_slice(HERE),
        sessionAffinity="ClientIP",
        sessionAffinityConfig={"clientIP": {"timeoutSeconds": 60}},
    )
    assert node.text.startswith("-A -t 10.96.0.1:80 -s rr -p 60\n")


def test_an_unknown_scheduler_is_a_problem() -> None:
    found = compiled(make_service(annotations={_SCHEDULER: "best"}), make_slice(HERE))
    assert found.problems == (
        f"annotation {_SCHEDULER}: 'best' is none of rr, wrr, lc, wlc, sh, dh, mh, sed, nq",
    )
    assert {f.scheduler for f in found.frontends} == {""}


# --- endings ------------------------------------------------------------------------------------


def test_tcp_drains_before_it_goes() -> None:
    node = Node()
    node.program(make_slice(HERE, THERE))
    node.program(make_slice(THERE))
    assert "10.244.1.2:8080 -m -w 0" in node.text
    busy = [Counted("-t 10.96.0.1:80", "10.244.1.2:8080", 1, 0)]
    assert node.ruleset.drained(busy) == ""
    lingering = [Counted("-t 10.96.0.1:80", "10.244.1.2:8080", 0, 2)]
    assert node.ruleset.drained(lingering) == ""
    idle = [Counted("-t 10.96.0.1:80", "10.244.1.2:8080", 0, 0)]
    assert node.ruleset.drained(idle) == "-d -t 10.96.0.1:80 -r 10.244.1.2:8080\n"
    assert not node.ruleset.draining


def test_what_drains_may_come_back() -> None:
    node = Node()
    node.program(make_slice(HERE, THERE))
    node.program(make_slice(THERE))
    node.program(make_slice(HERE, THERE))
    assert "10.244.1.2:8080 -m -w 1" in node.text
    assert not node.ruleset.draining


def test_the_last_endpoint_drains_and_new_clients_are_refused() -> None:
    node = Node()
    node.program(make_slice(HERE))
    node.program()
    assert "10.244.1.2:8080 -m -w 0" in node.text
    packet = Packet(ip_address("10.244.2.3").packed, ip_address("10.96.0.1").packed, 6, 80)
    assert node.kernel.walk(packet).verdict == "refuse"


def test_udp_goes_at_once_by_way_of_weight_0() -> None:
    ports = [{"name": "dns", "port": 53, "protocol": "UDP"}]
    piece = ({"name": "dns", "port": 5353, "protocol": "UDP"},)
    node = Node()
    node.program(make_slice(HERE, THERE, ports=piece), ports=ports)
    node.claims.set(
        WEB, compiled(make_service(ports=ports), make_slice(THERE, ports=piece)).frontends
    )
    assert node.ruleset.plan().withdraw == (
        "-e -u 10.96.0.1:53 -r 10.244.1.2:5353 -m -w 0\n-d -u 10.96.0.1:53 -r 10.244.1.2:5353\n"
    )


def test_a_service_that_goes_is_refused_first() -> None:
    node = Node()
    node.program(make_slice(HERE))
    node.claims.set(WEB, ())
    plan = node.ruleset.plan()
    assert plan.withdraw == "-D -t 10.96.0.1:80\n"
    assert plan.vanish == (ip_address("10.96.0.1").packed,)
    assert [change.set for change in plan.switch] == [ipvs.FRONTENDS]
    node.kernel.apply(plan)
    assert not node.kernel.servers
    assert not any(node.kernel.sets.values())


def test_the_nodes_own_address_is_not_on_the_device() -> None:
    node = Node()
    node.program(
        make_slice(HERE), type="LoadBalancer", ingress=[{"ip": "172.30.0.2"}, {"ip": "172.30.0.9"}]
    )
    assert {str(ip_address(ip)) for ip in node.kernel.addresses} == {"10.96.0.1", "172.30.0.9"}
    ssh = Packet(ip_address("203.0.113.10").packed, ip_address("172.30.0.2").packed, 6, 22)
    assert node.kernel.walk(ssh).verdict == "pass"
    node.ruleset.set_own(frozenset())
    assert node.ruleset.stale
    node.kernel.apply(node.ruleset.plan())
    assert "172.30.0.2" in {str(ip_address(ip)) for ip in node.kernel.addresses}


def test_somebody_elses_virtual_servers_stay() -> None:
    node = Node()
    node.program(make_slice(HERE))
    for line in ("-A -t 192.0.2.1:80 -s rr", "-A -f 7 -s rr", "-A -u 10.96.0.77:53 -s rr"):
        node.kernel.restore_line(line)
    found = ipvs.parse_save(node.text)
    plan = node.ruleset.mend(found, node.kernel.sets, node.kernel.addresses)
    assert plan.empty


def test_marks_are_one_per_frontend() -> None:
    mark = ipvs.first_mark(FrontendKey(b"\x0a\x60\x00\x01", 6, 80))
    for _ in range(1000):
        assert ipvs.is_our_mark(mark)
        following = ipvs.next_mark(mark)
        assert following != mark
        mark = following
    assert ipvs.next_mark(0x5FFFBFFF) == 0x50000000


def test_connections_are_read_from_a_listing() -> None:
    text = """IP Virtual Server version 1.2.1 (size=4096)
Prot LocalAddress:Port Scheduler Flags
  -> RemoteAddress:Port           Forward Weight ActiveConn InActConn
TCP  10.96.0.1:80 rr persistent 10800
  -> 10.244.1.2:8080              Masq    0      3          14
SCTP 10.96.0.1:80 mh (mh-fallback,mh-port)
UDP  [fd00:96::1]:53 rr
  -> [fd00:244::2]:5353           Masq    1      0          2
FWM  1342177282 IPv6 lc
  -> [fd00:244::2]:8080           Masq    1      1          0
"""
    assert parse_connections(text) == [
        Counted("-t 10.96.0.1:80", "10.244.1.2:8080", 3, 14),
        Counted("-u [fd00:96::1]:53", "[fd00:244::2]:5353", 0, 2),
        Counted("-f 1342177282 -6", "[fd00:244::2]:8080", 1, 0),
    ]


# --- the meaning ----------------------------------------------------------------------------------

VARIANTS = [
    pytest.param(variant, id=f"{row.name} ({suffix})")
    for row in ROWS
    for suffix, variant in variants(row)
]


@pytest.mark.parametrize("row", VARIANTS)
def test_rows(row: Row) -> None:
    claims = Claims()
    for number, (service, slices) in enumerate(row.build()):
        found = compile_service(service, slices, row.node)
        claims.set(Owner("Service", service.key), found.frontends, (f"{number:03}",))
    kernel = Kernel(OWN)
    kernel.apply(make_ruleset(claims).plan())
    for case in row.cases:
        outcome = kernel.walk(case.packet())
        assert outcome.verdict == case.verdict, case
        assert backends_of(outcome.backends) == case.backends(case.ends), case
        hidden = {b for b in outcome.masqueraded if case.origin == "node" or b.ip not in OWN}
        assert backends_of(hidden) == case.backends(case.masqueraded), case


def fill(claims: Claims, world: World, known: set[Owner]) -> set[Owner]:
    owners = {Owner("Service", service.key) for service, _ in world.services}
    for gone in known - owners:
        claims.set(gone, ())
    for number, (service, slices) in enumerate(world.services):
        found = compiled(service, *slices)
        claims.set(Owner("Service", service.key), found.frontends, (f"{number:03}",))
    return owners


def agree(kernel: Kernel, claims: Claims, packets: list[Packet]) -> None:
    frontends = claims.frontends
    domain = domain_of(frozenset(f.key.ip for f in frontends.values() if f.exclusive))
    for packet in packets:
        wanted, found = evaluate(packet, frontends, domain), kernel.walk(packet)
        if wanted.verdict == "pass" and packet.dst in kernel.addresses:
            # An address on the device is delivered here: nobody beyond can answer.
            assert found.verdict == "refuse", packet
            continue
        assert found.verdict == wanted.verdict, (packet, wanted, found)
        assert backends_of(found.backends) == backends_of(wanted.backends), packet
        assert backends_of(found.masqueraded) == backends_of(wanted.masqueraded), packet


def clients_of(claims: Claims) -> Iterator[Packet]:
    sources = {
        4: ["10.244.1.2", "10.244.2.3", "203.0.113.10", "203.0.113.200"],
        16: ["fd00:244:0:1::2", "fd00:244:0:2::3", "2001:db8:113::10"],
    }
    own = {4: "172.30.0.2", 16: "fd00:30::2"}
    for key in claims.frontends:
        for source in sources[len(key.ip)]:
            yield Packet(ip_address(source).packed, *key)
        yield Packet(ip_address(own[len(key.ip)]).packed, *key, from_node=True)


def check_equal(ruleset: Ruleset, kernel: Kernel) -> None:
    assert {n: (s.options, s.destinations) for n, s in kernel.servers.items()} == {
        n: (s.options, s.destinations) for n, s in ruleset.servers().items()
    }
    wanted = {place: found for place, found in ruleset.elements().items() if found}
    assert {place: found for place, found in kernel.sets.items() if found} == wanted
    assert kernel.addresses == ruleset.addresses


@given(st.lists(worlds(), min_size=1, max_size=4))
def test_every_step_between_worlds_is_whole(history: list[World]) -> None:
    claims, kernel = Claims(), Kernel(OWN)
    ruleset = make_ruleset(claims)
    known: set[Owner] = set()
    for world in history:
        known = fill(claims, world, known)
        for _ in kernel.steps(ruleset.plan()):
            kernel.check_nothing_dangles()
        agree(kernel, claims, [*world.packets, *clients_of(claims)])
        check_equal(ruleset, kernel)
    assert ruleset.plan().empty
    drained = ruleset.drained(
        Counted(name, destination, 0, 0)
        for name, server in ruleset.servers().items()
        for destination in server.destinations
    )
    for line in drained.splitlines():
        kernel.restore_line(line)
    check_equal(ruleset, kernel)
    assert all(w for server in kernel.servers.values() for w in server.destinations.values())


@given(worlds(), worlds(), st.randoms())
def test_mending_leads_from_anything_to_what_should_be(
    before: World, world: World, dice: random.Random
) -> None:
    """An agent that starts anew takes over what an earlier one left, whatever was lost of it."""
    claims, kernel = Claims(), Kernel(OWN)
    fill(claims, before, set())
    kernel.apply(make_ruleset(claims).plan())
    for (_, name), elements in kernel.sets.items():
        # Without its element nobody knows whose a virtual server is.
        for key in [key for key in elements if name != ipvs.FRONTENDS and dice.random() < 0.2]:
            del elements[key]
    for server in kernel.servers.values():
        for destination in [d for d in server.destinations if dice.random() < 0.2]:
            del server.destinations[destination]
    for name in [n for n in kernel.servers if dice.random() < 0.2]:
        del kernel.servers[name]
    kernel.addresses = {ip for ip in kernel.addresses if dice.random() < 0.8}
    claims = Claims()
    ruleset = make_ruleset(claims)
    fill(claims, world, set())
    found = ipvs.parse_save(ipvs.render_save(kernel.servers))
    kernel.apply(ruleset.mend(found, kernel.sets, kernel.addresses))
    kernel.check_nothing_dangles()
    check_equal(ruleset, kernel)
    agree(kernel, claims, [*world.packets, *clients_of(claims)])


@given(worlds(), worlds())
def test_a_restart_does_not_touch_what_stays(before: World, world: World) -> None:
    claims, kernel = Claims(), Kernel(OWN)
    fill(claims, before, set())
    kernel.apply(make_ruleset(claims).plan())
    again = Claims()
    ruleset = make_ruleset(again)
    fill(again, before, set())
    found = ipvs.parse_save(ipvs.render_save(kernel.servers))
    assert ruleset.mend(found, kernel.sets, kernel.addresses).empty
    fill(again, world, set(again.owners))
    for _ in kernel.steps(ruleset.plan()):
        kernel.check_nothing_dangles()
    check_equal(ruleset, kernel)
