"""What a node's kernel is told says of every packet what `evaluate` says of its connection."""

from __future__ import annotations

from collections.abc import Iterable
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st
from policy_node_worlds import (
    HERE,
    Change,
    Changing,
    apply_change,
    changes,
    is_local,
    outcomes_of,
    some_flows,
)

from podwire.policy import nftables as nf
from podwire.policy.classes import Outcome
from podwire.policy.evaluate import Flow
from podwire.policy.nodepolicies import NodePolicies
from podwire.policy.plan import Plan
from podwire.policy.walk import Packet, Tables, Walk


def fresh_tables(policies: NodePolicies) -> Tables:
    tables = Tables()
    for version in policies.versions:
        words = nf.Words(version, policies.generation)
        tables.apply_text(nf.render_table(version))
        tables.apply_text(nf.render_generation(words, policies.pod_interfaces))
        tables.apply_text(nf.render_switch(words))
    return tables


def apply(plan: Plan, tables: Tables) -> None:
    for step in plan.steps:
        for text in step.text.values():
            tables.apply_text(text)
        tables.apply_elements(step.changes)


def packet_of(flow: Flow) -> Packet:
    iif = "veth12345678" if is_local(flow.source) else "eth0"
    return Packet(
        flow.source.ip.packed, flow.destination.ip.packed, flow.protocol, flow.port, iif
    )


def met(walk: Walk, policies: NodePolicies) -> list[Outcome | None]:
    return [policies.outcome(number) for _, number in walk.outcomes]


Wanted = list[tuple[Flow, list[Outcome]]]


def check(tables: Tables, policies: NodePolicies, wanted: Wanted) -> None:
    for flow, outcomes in wanted:
        walk = tables.walk(packet_of(flow))
        assert met(walk, policies) == outcomes, (flow, walk.path)
        assert walk.allowed == all(outcome.allowed for outcome in outcomes)
        assert not walk.counted


def make(some: Iterable[Change]) -> tuple[Changing, NodePolicies]:
    api = Changing()
    policies = NodePolicies(HERE, pod_interfaces=("veth*",))
    for name, labels in api.namespaces.items():
        policies.set_namespace(name, labels)
    for node in api.nodes.values():
        policies.set_node(node)
    for change in some:
        apply_change(change, api, policies)
    return api, policies


@given(st.lists(changes, max_size=20), st.randoms(use_true_random=False))
@settings(max_examples=150, deadline=None)
def test_the_walk_is_what_evaluate_says(some: list[Change], random: Random):
    api, policies = make(some)
    tables = fresh_tables(policies)
    apply(policies.plan(), tables)
    check(tables, policies, outcomes_of(api, some_flows(api, random, 60)))
    assert policies.plan().empty


@given(
    st.lists(st.lists(changes, min_size=1, max_size=3), max_size=12),
    st.randoms(use_true_random=False),
)
@settings(max_examples=150, deadline=None)
def test_changes_lead_where_a_fresh_start_leads(batches: list[list[Change]], random: Random):
    api, policies = make([])
    tables = fresh_tables(policies)
    for batch in batches:
        for change in batch:
            apply_change(change, api, policies)
        apply(policies.plan(), tables)
    check(tables, policies, outcomes_of(api, some_flows(api, random, 60)))
    again = NodePolicies(HERE, pod_interfaces=("veth*",))
    again.set_world(api.world(), api.policies.values())
    other = fresh_tables(again)
    apply(again.plan(), other)
    for family in ("ip", "ip6"):
        sizes = {name: len(tables.elements(family, name)) for name in tables.names(family)[1]}
        fresh = {name: len(other.elements(family, name)) for name in other.names(family)[1]}
        assert sizes == fresh
        assert len(tables.names(family)[0]) == len(other.names(family)[0])
