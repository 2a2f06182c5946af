"""Random worlds over iptables: the meaning, the walk over the chains, and every way there."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from service_worlds import CLUSTER_CIDRS, NODE, SERVICE_CIDRS, World, compiled, domain_of, worlds

from podwire.kernel import fake_iptables
from podwire.kernel.iptables import Family
from podwire.services.claims import Claims, Owner
from podwire.services.evaluate import Outcome, Packet, evaluate
from podwire.services.iptplan import TABLES, Ruleset, Tables, parse_save
from podwire.services.iptwalk import CompiledTables, Walk
from podwire.services.model import FrontendKey
from podwire.services.weights import spread

LOCAL = frozenset(address.packed for address in NODE.addresses)
VERSIONS = (4, 6)


_FAMILY: dict[int, Family] = {4: 4, 6: 6}


class Kernel:
    """What the programs make of the texts."""

    def __init__(self) -> None:
        self.tables: fake_iptables.Tables = {}

    def apply(self, texts: dict[int, str]) -> None:
        for _ in self.transactions(texts):
            pass

    def transactions(self, texts: dict[int, str]) -> Iterator[None]:
        """One after the other: a packet may come after each."""
        for version, text in texts.items():
            for transaction in text.split("COMMIT\n")[:-1]:
                fake_iptables.restore(self.tables, f"{transaction}COMMIT\n", _FAMILY[version])
                yield

    def found(self, version: int) -> Tables:
        return {
            table: parse_save(fake_iptables.save(self.tables, table, _FAMILY[version]))
            for table in TABLES
        }

    def walk(self, packets: Iterable[Packet]) -> list[Walk]:
        tables = {version: CompiledTables(self.found(version), LOCAL) for version in VERSIONS}
        return [tables[4 if len(packet.dst) == 4 else 6].walk(packet) for packet in packets]


def make_ruleset(claims: Claims) -> Ruleset:
    ruleset = Ruleset(claims, VERSIONS)
    ruleset.set_ranges(SERVICE_CIDRS, CLUSTER_CIDRS)
    return ruleset


def fill(claims: Claims, world: World) -> None:
    for number, (service, slices) in enumerate(world.services):
        result = compiled(service, *slices)
        claims.set(Owner("Service", service.key), result.frontends, (f"{number:03}",))


def agree(outcome: Outcome, walk: Walk) -> None:
    assert walk.verdict == outcome.verdict, walk.path
    assert {b[:2] for b in walk.backends} == {b[:2] for b in outcome.backends}
    assert {b[:2] for b in walk.masqueraded} == {b[:2] for b in outcome.masqueraded}
    if outcome.verdict != "dnat":
        return
    assert outcome.frontend is not None
    slots = spread(sorted(outcome.backends), outcome.frontend.weights)
    for backend in set(slots):
        share = walk.shares[backend._replace(local=False)]
        assert share == pytest.approx(slots.count(backend) / len(slots), rel=1e-6)


def clients_of(key: FrontendKey) -> Iterator[Packet]:
    sources = {
        4: ["10.244.1.2", "10.244.2.3", "203.0.113.10", "203.0.113.200"],
        16: ["fd00:244:0:1::2", "fd00:244:0:2::3", "2001:db8:113::10"],
    }[len(key.ip)]
    for source in sources:
        yield Packet(ip_address(source).packed, *key[:2], key.port)
    own = {4: "172.30.0.2", 16: "fd00:30::2"}[len(key.ip)]
    yield Packet(ip_address(own).packed, *key[:2], key.port, from_node=True)


def packets_of(world: World, *claims: Claims) -> list[Packet]:
    keys = {key: None for some in claims for key in some.frontends}
    return [*world.packets, *(packet for key in keys for packet in clients_of(key))]


def outcomes(claims: Claims, packets: Iterable[Packet]) -> list[Outcome]:
    frontends = claims.frontends
    domain = domain_of(frozenset(f.key.ip for f in frontends.values() if f.exclusive))
    return [evaluate(packet, frontends, domain) for packet in packets]


def check_everything(world: World, claims: Claims, kernel: Kernel) -> None:
    packets = packets_of(world, claims)
    for outcome, walk in zip(outcomes(claims, packets), kernel.walk(packets), strict=True):
        agree(outcome, walk)


@given(worlds())
def test_a_walk_over_the_chains_ends_where_the_meaning_says(world: World) -> None:
    claims, kernel = Claims(), Kernel()
    fill(claims, world)
    kernel.apply(make_ruleset(claims).plan())
    check_everything(world, claims, kernel)


@given(st.lists(worlds(), min_size=2, max_size=4))
def test_partial_restores_end_where_one_whole_restore_does(history: list[World]) -> None:
    claims, kernel = Claims(), Kernel()
    ruleset = make_ruleset(claims)
    known: set[Owner] = set()
    for world in history:
        owners = {Owner("Service", service.key) for service, _ in world.services}
        for gone in known - owners:
            claims.set(gone, ())
        known = owners
        fill(claims, world)
        kernel.apply(ruleset.plan())
        whole, again = Claims(), Kernel()
        fill(whole, world)
        again.apply(make_ruleset(whole).plan())
        for version in VERSIONS:
            assert kernel.found(version) == again.found(version) == ruleset.tables(version)
    check_everything(history[-1], claims, kernel)
    assert ruleset.plan() == {}


@given(worlds(), worlds())
def test_between_two_transactions_a_packet_meets_the_former_or_the_new(
    before: World, world: World
) -> None:
    """At worst one is dropped, and sent again, where the verdict is another afterwards."""
    former, claims, kernel = Claims(), Claims(), Kernel()
    ruleset = make_ruleset(claims)
    fill(former, before)
    fill(claims, before)
    kernel.apply(ruleset.plan())
    for owner in set(claims.owners) - {Owner("Service", s.key) for s, _ in world.services}:
        claims.set(owner, ())
    fill(claims, world)
    packets = packets_of(world, former, claims)
    bounds = list(zip(outcomes(former, packets), outcomes(claims, packets), strict=True))
    for _ in kernel.transactions(ruleset.plan()):
        for (old, new), walk in zip(bounds, kernel.walk(packets), strict=True):
            allowed = {old.verdict, new.verdict}
            if len(allowed) > 1:
                allowed.add("drop")
            assert walk.verdict in allowed, walk.path
            backends = {b[:2] for b in (*old.backends, *new.backends)}
            assert {b[:2] for b in walk.backends} <= backends


@given(worlds(), worlds(), st.randoms())
def test_mending_leads_from_anything_to_what_should_be(
    before: World, world: World, dice: random.Random
) -> None:
    """An agent that starts anew takes over what an earlier one left, whatever was lost of it."""
    claims, kernel = Claims(), Kernel()
    fill(claims, before)
    kernel.apply(make_ruleset(claims).plan())
    for chains in kernel.tables.values():
        for name, rules in chains.items():
            chains[name] = [rule for rule in rules if dice.random() > 0.2]
    claims = Claims()
    ruleset = make_ruleset(claims)
    fill(claims, world)
    kernel.apply(ruleset.mend({version: kernel.found(version) for version in VERSIONS}))
    check_everything(world, claims, kernel)
    for version in VERSIONS:
        assert kernel.found(version) == ruleset.tables(version)
    assert ruleset.mend({version: kernel.found(version) for version in VERSIONS}) == {}
