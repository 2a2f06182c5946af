"""Plans applied to tables that are walked instead of a kernel, held against `evaluate`."""

from __future__ import annotations

from policy_node_worlds import is_local

from podwire.policy import nftables as nf
from podwire.policy.classes import Outcome
from podwire.policy.evaluate import Flow
from podwire.policy.nodepolicies import NodePolicies
from podwire.policy.plan import Plan
from podwire.policy.walk import Packet, Tables, Walk

Wanted = list[tuple[Flow, list[Outcome]]]


def fresh_tables(policies: NodePolicies) -> Tables:
    """As the kernel's are once all that is known has been planned."""
    tables = Tables()
    for version in policies.versions:
        words = nf.Words(version, policies.generation)
        tables.apply_text(nf.render_table(version))
        tables.apply_text(nf.render_generation(words, policies.pod_interfaces))
        tables.apply_text(nf.render_switch(words))
    apply(policies.plan(), tables)
    return tables


def apply(plan: Plan, tables: Tables) -> None:
    for step in plan.steps:
        for text in step.text.values():
            tables.apply_text(text)
        tables.apply_elements(step.changes)


def packet_of(flow: Flow) -> Packet:
    iif = "veth12345678" if is_local(flow.source) else "eth0"
    return Packet(flow.source.ip.packed, flow.destination.ip.packed, flow.protocol, flow.port, iif)


def met(walk: Walk, policies: NodePolicies) -> list[Outcome | None]:
    return [policies.outcome(number) for _, number in walk.outcomes]


def check(tables: Tables, policies: NodePolicies, wanted: Wanted) -> None:
    for flow, outcomes in wanted:
        walk = tables.walk(packet_of(flow))
        assert met(walk, policies) == outcomes, (flow, walk.path)
        assert walk.allowed == all(outcome.allowed for outcome in outcomes)
        assert not walk.counted
