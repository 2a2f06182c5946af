"""Random worlds: the meaning, the walk over the compiled ruleset, and every step in between."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from ipaddress import ip_address

from hypothesis import given, settings
from hypothesis import strategies as st
from service_worlds import (
    CLUSTER_CIDRS,
    SERVICE_CIDRS,
    World,
    compiled,
    domain_of,
    worlds,
)

from podwire.kernel.nfelements import split
from podwire.kernel.nfpack import Change, Data, Key
from podwire.services import nftables as nf
from podwire.services.claims import Claims, Owner
from podwire.services.evaluate import Outcome, Packet, evaluate
from podwire.services.model import FrontendKey
from podwire.services.plan import SETS, Elements, Plan, Ruleset, is_whole
from podwire.services.walk import CompiledRuleset, Walk

FAMILIES = {name: version for version, name in nf.FAMILY_NAMES.items()}


class Kernel:
    """The sets as netlink leaves them: strict about what is there and what is not."""

    def __init__(self) -> None:
        self.sets: Elements = {}
        self.chains: dict[int, set[str]] = {4: set(), 6: set()}

    def apply(self, plan: Plan) -> None:
        self.make_chains(plan)
        for step in plan.steps:
            self.step(step)

    def make_chains(self, plan: Plan) -> None:
        for version, names in plan.chains.items():
            for name in names:
                self.chains[version].add(name)

    def step(self, changes: tuple[Change, ...]) -> None:
        for change in changes:
            place = (FAMILIES[change.family], change.set)
            elements = self.sets.setdefault(place, {})
            for key in change.delete:
                del elements[key]
            for key, data in change.add:
                assert key not in elements, (place, key)
                elements[key] = data

    def family(self, version: int) -> Mapping[str, dict[Key, Data]]:
        return {name: self.sets.get((version, name), {}) for name in SETS}

    def compiled(self) -> dict[int, CompiledRuleset]:
        return {
            version: CompiledRuleset(
                version,
                self.family(version),
                SERVICE_CIDRS,
                CLUSTER_CIDRS,
                self.chains[version],
            )
            for version in (4, 6)
        }

    def check_nothing_dangles(self) -> None:
        """Every number's chain is there, and every index it can draw has a backend."""
        for version in (4, 6):
            chains = self.chains[version]
            ruleset = CompiledRuleset(
                version, self.family(version), SERVICE_CIDRS, CLUSTER_CIDRS, chains
            )
            names = {
                nf.pack_index(nf.chain_code(name)): name
                for name in (*chains, nf.REFUSE, nf.NOBODY_LOCAL)
            }
            for name in (nf.SERVICES, nf.INTERNAL):
                for key, number in self.sets.get((version, name), {}).items():
                    assert isinstance(key, bytes)
                    assert isinstance(number, bytes)
                    needed = nf.needed_chains(names[number])
                    assert set(needed) <= chains
                    if needed:
                        ruleset.check_chain(needed[0], key)


def fill(claims: Claims, world: World) -> None:
    for number, (service, slices) in enumerate(world.services):
        result = compiled(service, *slices)
        owner = Owner("Service", service.key)
        claims.set(owner, result.frontends, (f"{number:03}",))


def agree(outcome: Outcome, walk: Walk) -> None:
    assert walk.verdict == outcome.verdict, walk.path
    assert {b[:2] for b in walk.backends} == {b[:2] for b in outcome.backends}
    assert {b[:2] for b in walk.masqueraded} == {b[:2] for b in outcome.masqueraded}


@given(worlds())
def test_a_walk_over_the_ruleset_ends_where_the_meaning_says(world: World) -> None:
    claims, kernel = Claims(), Kernel()
    ruleset = Ruleset(claims)
    fill(claims, world)
    kernel.apply(ruleset.plan())
    frontends = claims.frontends
    compiled_rulesets = kernel.compiled()
    packets = [
        *world.packets,
        *(p for key in frontends for p in _clients_of(key)),
    ]
    for packet in packets:
        version = 4 if len(packet.dst) == 4 else 6
        agree(
            evaluate(packet, frontends, domain_of(ruleset.vips)),
            compiled_rulesets[version].walk(packet),
        )


def _clients_of(key: FrontendKey) -> Iterator[Packet]:
    sources = {
        4: ["10.244.1.2", "10.244.2.3", "203.0.113.10", "203.0.113.200"],
        16: ["fd00:244:0:1::2", "fd00:244:0:2::3", "2001:db8:113::10"],
    }[len(key.ip)]
    for source in sources:
        yield Packet(ip_address(source).packed, *key[:2], key.port)
    own = {4: "172.30.0.2", 16: "fd00:30::2"}[len(key.ip)]
    yield Packet(ip_address(own).packed, *key[:2], key.port, from_node=True)


@given(st.lists(worlds(), min_size=2, max_size=4))
def test_no_step_between_two_worlds_leaves_a_verdict_without_backends(
    history: list[World],
) -> None:
    claims, kernel = Claims(), Kernel()
    ruleset = Ruleset(claims)
    known: set[Owner] = set()
    for world in history:
        owners = {Owner("Service", service.key) for service, _ in world.services}
        for gone in known - owners:
            claims.set(gone, ())
        known = owners
        fill(claims, world)
        plan = ruleset.plan()
        kernel.make_chains(plan)
        assert len(plan.steps) <= 3
        for step in plan.steps:
            kernel.step(step)
            kernel.check_nothing_dangles()
    wanted = {place: found for place, found in ruleset.elements().items() if found}
    assert {place: found for place, found in kernel.sets.items() if found} == wanted
    assert not ruleset.plan().steps


@given(worlds(), worlds(), st.randoms())
def test_mending_leads_from_anything_to_what_should_be(
    before: World, world: World, dice: random.Random
) -> None:
    """An agent that starts anew adopts what an earlier one left, whatever was lost of it."""
    claims, kernel = Claims(), Kernel()
    fill(claims, before)
    kernel.apply(Ruleset(claims).plan())
    for elements in kernel.sets.values():
        for key in [key for key in elements if dice.random() < 0.2]:
            del elements[key]
    claims = Claims()
    ruleset = Ruleset(claims)
    ruleset.adopt(kernel.sets)
    fill(claims, world)
    kernel.apply(ruleset.mend(kernel.sets))
    kernel.check_nothing_dangles()
    wanted = {place: found for place, found in ruleset.elements().items() if found}
    assert {place: found for place, found in kernel.sets.items() if found} == wanted


@given(worlds())
def test_compiling_and_planning_give_the_same_bytes_again(world: World) -> None:
    first, second = Claims(), Claims()
    fill(first, world)
    fill(second, World(tuple(reversed(world.services)), ()))
    fill(second, world)
    rulesets = Ruleset(first), Ruleset(second)
    for ruleset in rulesets:
        ruleset.plan()
    assert rulesets[0].elements() == rulesets[1].elements()


@settings(max_examples=50)
@given(worlds(), worlds(), st.booleans())
def test_between_two_worlds_a_packet_meets_one_of_them(
    before: World, after: World, cut: bool
) -> None:
    """Whatever is committed so far. Where steps are `cut` because the kernel takes no more at once,
    who is served in both is served in between."""
    claims, kernel = Claims(), Kernel()
    ruleset = Ruleset(claims)
    fill(claims, before)
    kernel.apply(ruleset.plan())
    was, was_vips = claims.frontends, ruleset.vips
    owners = {Owner("Service", service.key) for service, _ in after.services}
    for owner in set(claims.owners) - owners:
        claims.set(owner, ())
    fill(claims, after)
    plan = ruleset.plan()
    will, will_vips = claims.frontends, ruleset.vips
    packets = [p for key in was.keys() | will.keys() for p in [*_clients_of(key)][::2]]
    expected = [
        (
            evaluate(packet, was, domain_of(was_vips)),
            evaluate(packet, will, domain_of(will_vips)),
        )
        for packet in packets
    ]
    kernel.make_chains(plan)
    for step in plan.steps:
        for batch in split(step, 2000 if cut else 1 << 30, is_whole):
            kernel.step(tuple(batch))
            walks = kernel.compiled()
            for packet, outcomes in zip(packets, expected, strict=True):
                verdicts = {o.verdict for o in outcomes}
                if cut and verdicts != {"dnat"}:
                    continue
                if any(o.frontend and o.frontend.ranges is not None for o in outcomes):
                    # Ranges are a change of their own: new clients may meet the former endpoints.
                    verdicts.add("refuse")
                walk = walks[4 if len(packet.dst) == 4 else 6].walk(packet)
                assert walk.verdict in verdicts, (packet, walk.path)
                either = {b[:2] for o in outcomes for b in o.backends}
                assert {b[:2] for b in walk.backends} <= either
