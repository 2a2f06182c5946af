"""What policies mean: every row of policy_semantics.yaml by the evaluator and by the naive reading,
who decided, and where Kubernetes leaves a choice."""

# Each policy is one line of YAML; wrapping would tear it apart.
# ruff: noqa: E501

from __future__ import annotations

import pytest
from naive_policy import NaiveWorld, allowed
from policy_semantics import NAMES, NAMESPACES, NODES, PODS, ROWS, Row, probe, world_of
from policy_worlds import PolicyWorld, make_network_policy

from podwire.objects.meta import Key
from podwire.policy.evaluate import Flow, Judgement, Party, PolicySet, Semantics, evaluate
from podwire.policy.model import PROTOCOLS
from podwire.policy.reach import Reach
from podwire.policy.world import ContainerPort, PodView, make_world

SUBJECT = "subject: {namespaces: {matchLabels: {ns: x}}}"
ALL = "[{namespaces: {}}]"


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_row(row: Row) -> None:
    there = world_of(row.policies)
    asked = {connection: probe(connection) for connection in row.verdicts}
    said = {
        connection: evaluate(there.flow(p), there.policy_set, there.world).allowed
        for connection, p in asked.items()
    }
    assert said == row.verdicts
    naive = {
        connection: allowed(
            there.raw, p.source, p.destination, p.protocol, p.port, hairpin=p.hairpin
        )
        for connection, p in asked.items()
    }
    assert naive == row.verdicts


def test_every_rule_of_semantics_has_a_row() -> None:
    """S16 and S19-S21 are of traffic and time: nothing a verdict can show."""
    wanted = {f"S{i}" for i in range(1, 22)} - {"S16", "S19", "S20", "S21"}
    assert {*wanted, "CNP", "fail closed"} == {row.of for row in ROWS}
    assert len({str(row) for row in ROWS}) == len(ROWS)


# --- who says so --------------------------------------------------------------------------------


def judged(text: str, connection: str) -> tuple[Judgement, Judgement]:
    there = world_of(text)
    decision = evaluate(there.flow(probe(connection)), there.policy_set, there.world)
    return decision.egress, decision.ingress


def test_a_rule_is_named() -> None:
    _, ingress = judged(
        "x/np: {podSelector: {}, ingress: [{ports: [{port: 81}]}, {}]}", "y/a > x/a:80"
    )
    assert (ingress.reason, str(ingress.rule)) == ("rule", "NetworkPolicy x/np spec.ingress[1]")


def test_isolating_policies_are_named() -> None:
    text = "x/one: {podSelector: {}}\nx/two: {podSelector: {matchLabels: {pod: a}}}\nx/three: {podSelector: {matchLabels: {pod: b}}}"
    egress, ingress = judged(text, "y/a > x/a:80")
    assert (egress.allowed, egress.reason) == (True, "no policy")
    assert (ingress.allowed, ingress.reason) == (False, "isolated")
    assert [ref.name for ref in ingress.isolating] == ["one", "two"]


def test_passes_are_told() -> None:
    text = (
        f"a: {{tier: Admin, priority: 1, {SUBJECT}, ingress: [{{name: first, action: Pass, from: {ALL}}}]}}\n"
        f"b: {{tier: Baseline, priority: 1, {SUBJECT}, ingress: [{{action: Deny, from: {ALL}}}]}}"
    )
    _, ingress = judged(text, "y/a > x/a:80")
    assert [str(rule) for rule in ingress.passed] == [
        "ClusterNetworkPolicy a spec.ingress[0] (first)"
    ]
    assert ingress.rule is not None
    assert ingress.rule.policy.name == "b"


@pytest.mark.parametrize(
    ("text", "connection", "egress", "ingress"),
    [
        ("", "node-1 > z/plain:80", "not a pod", "no policy"),
        ("", "node-1 > x/a:80", "not a pod", "own node"),
        ("", "x/a > x/a:80", "self", "self"),
        (
            f"c: {{tier: Admin, priority: 1, {SUBJECT}, ingress: [{{action: Deny, from: [{{namespaces: {{matchLabels: {{ns: q}}}}}}]}}]}}",
            "y/a > x/a:80",
            "no policy",
            "no rule",
        ),
    ],
)
def test_reasons(text: str, connection: str, egress: str, ingress: str) -> None:
    out, into = judged(text, connection)
    assert (out.reason, into.reason) == (egress, ingress)


# --- where Kubernetes leaves a choice -----------------------------------------------------------


def chosen(text: str, connection: str, semantics: Semantics) -> bool:
    there = world_of(text)
    return evaluate(there.flow(probe(connection)), there.policy_set, there.world, semantics).allowed


def test_ip_blocks_need_not_match_pods() -> None:
    text = "x/np: {podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 0.0.0.0/0}}]}]}"
    strict = Semantics(ipblock_matches_pods=False)
    assert not chosen(text, "y/a > x/a:80", strict)
    assert chosen(text, "outside > x/a:80", strict)
    assert chosen(text, "node-2 > x/a:80", strict)


def test_any_network_policy_may_end_baseline() -> None:
    text = (
        "x/np: {podSelector: {}, policyTypes: [Egress], egress: [{}]}\n"
        f"b: {{tier: Baseline, priority: 1, {SUBJECT}, ingress: [{{action: Deny, from: {ALL}}}]}}"
    )
    assert chosen(text, "y/a > x/a:80", Semantics(baseline_per_direction=False))
    assert not chosen(text, "y/a > x/a:80", Semantics())


def test_a_hairpin_may_always() -> None:
    text = "x/np: {podSelector: {}}"
    assert chosen(text, "x/a ~ x/a:80", Semantics(hairpin_judged=()))
    assert not chosen(text, "x/a ~ x/a:80", Semantics())


# --- files and stages ---------------------------------------------------------------------------


def test_a_pod_of_a_file_has_no_address() -> None:
    """Selectors match it, an ipBlock never does."""
    pods = [
        PodView(Key("x", "a"), {"pod": "a"}),
        PodView(Key("x", "b"), {"pod": "b"}, ports=(ContainerPort("web", 6, 80),)),
    ]
    there = make_world(pods)
    flow = Flow(Party(pod=pods[0]), Party(pod=pods[1]), PROTOCOLS["TCP"], 80)
    for text, wanted in (
        (
            "x/np: {podSelector: {}, ingress: [{from: [{podSelector: {}}], ports: [{port: web}]}]}",
            True,
        ),
        ("x/np: {podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 0.0.0.0/0}}]}]}", False),
    ):
        assert evaluate(flow, world_of(text).policy_set, there).allowed == wanted


def test_a_host_network_pod_has_no_named_ports() -> None:
    """Its address is its node's: no plugin sees whose port it is (S13)."""
    pods = [
        PodView(Key("x", "a"), {"pod": "a"}, node="node-1"),
        PodView(
            Key("y", "host"),
            {},
            node="node-2",
            ports=(ContainerPort("web", 6, 80),),
            host_network=True,
        ),
    ]
    there = make_world(pods)
    text = "x/np: {podSelector: {}, policyTypes: [Egress], egress: [{ports: [{port: web}]}]}"
    flow = Flow(Party(pod=pods[0]), Party(pod=pods[1]), PROTOCOLS["TCP"], 80)
    policies = world_of(text).policy_set
    assert not evaluate(flow, policies, there).allowed
    assert Reach(there, policies).between(pods[0].key, pods[1].key) == ()


def test_staged_policies_are_asked_for() -> None:
    raw = make_network_policy("x", "np", podSelector={})
    raw["metadata"]["annotations"] = {"policy.podwire.dev/stage": "true"}
    there = PolicyWorld(NaiveWorld(NAMESPACES, PODS, NODES, [raw], NAMES))
    flow = there.flow(probe("y/a > x/a:80"))
    assert evaluate(flow, there.policy_set, there.world).allowed
    staged = PolicySet(there.policies, staged=True)
    assert not evaluate(flow, staged, there.world).allowed


def test_ties_between_kinds_are_by_name() -> None:
    there = world_of(
        f"a: {{tier: Admin, priority: 5, {SUBJECT}, ingress: [{{action: Deny, from: {ALL}}}]}}"
    )
    admin = {
        "kind": "AdminNetworkPolicy",
        "metadata": {"name": "b"},
        "spec": {
            "priority": 5,
            "subject": {"namespaces": {}},
            "ingress": [{"action": "Allow", "from": [{"namespaces": {}}]}],
        },
    }
    both = PolicyWorld(NaiveWorld(NAMESPACES, PODS, NODES, [admin, *there.raw.policies], NAMES))
    assert not evaluate(both.flow(probe("y/a > x/a:80")), both.policy_set, both.world).allowed
