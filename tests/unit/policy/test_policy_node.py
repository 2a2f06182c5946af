"""What a node's kernel is told says of every packet what `evaluate` says of its connection."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import replace
from ipaddress import ip_address, ip_network
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from policy_node_walks import apply, check, fresh_tables, packet_of
from policy_node_worlds import (
    HERE,
    Change,
    Changing,
    addresses_of,
    apply_change,
    changes,
    flows,
    outcomes_of,
    seen_in,
    some_flows,
)

from podwire.kernel.nfpack import Change as SetChange
from podwire.objects.meta import Key
from podwire.policy import nftables as nf
from podwire.policy.classes import Outcome
from podwire.policy.evaluate import Flow
from podwire.policy.model import (
    Direction,
    NetworkPeer,
    Peer,
    PodsPeer,
    Policy,
    PolicyRef,
    Rule,
    Tier,
)
from podwire.policy.nodepolicies import NodePolicies
from podwire.policy.plan import Plan, Step
from podwire.policy.selector import EVERYTHING, Expression, Selector
from podwire.policy.walk import Packet, Tables, Walk
from podwire.policy.world import PodView


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
    for family in ("ip", "ip6"):
        sizes = {name: len(tables.elements(family, name)) for name in tables.names(family)[1]}
        fresh = {name: len(other.elements(family, name)) for name in other.names(family)[1]}
        assert sizes == fresh
        assert len(tables.names(family)[0]) == len(other.names(family)[0])


def _verdicts(outcomes: Iterable[Outcome | None]) -> dict[str, bool]:
    """By direction; one in which nobody is asked is allowed."""
    return {"egress": True, "ingress": True} | {o.direction: o.allowed for o in outcomes if o}


def _between(
    flow: Flow, states: tuple[Tables, Step], policies: Names, at: int
) -> tuple[dict[str, bool], Walk, bool]:
    """A walk that meets the commit of a step before its look-up number `at`."""
    tables = states[0].copy()
    asked = itertools.count()
    committed = False

    def tick() -> None:
        nonlocal committed
        if next(asked) == at:
            committed = True
            apply(Plan((states[1],)), tables)

    walk = tables.walk(packet_of(flow), tick)
    return _verdicts(policies[number] for _, number in walk.outcomes), walk, committed


Names = dict[int, Outcome]


def check_between(
    api: Changing,
    policies: NodePolicies,
    tables: Tables,
    change: Change,
    choose: Callable[[list[Flow]], list[Flow]],
) -> None:
    """Each chosen flow, before each look-up of which each step of the change is committed."""
    before, names = api.copy(), policies.outcomes()
    apply_change(change, api, policies)
    plan = policies.plan()
    names |= policies.outcomes()
    moved = {ip for pod in api.pods.values() for ip in pod.ips} ^ {
        ip for pod in before.pods.values() for ip in pod.ips
    }
    for flow in choose([f for f in flows(before) if not {f.source.ip, f.destination.ip} & moved]):
        now = seen_in(flow, api)
        if now is None or flow.source.ip == flow.destination.ip:
            continue
        allowed = [_verdicts(outcomes_of(*each)[0][1]) for each in ((before, [flow]), (api, [now]))]
        standing = tables.copy()
        for step in plan.steps:
            for at in itertools.count():
                verdicts, walk, committed = _between(flow, (standing, step), names, at)
                if not committed:
                    break
                assert not walk.counted, (flow, step.name, walk)
                for direction in ("egress", "ingress"):
                    possible = {each[direction] for each in allowed}
                    assert verdicts[direction] in possible, (flow, step.name, walk)
                    if not verdicts[direction]:
                        break
            apply(Plan((step,)), standing)
    apply(plan, tables)


@given(
    st.lists(changes, max_size=20),
    changes.filter(lambda change: change[0] != "namespace"),
    st.randoms(use_true_random=False),
)
@settings(max_examples=100, deadline=None)
def test_a_packet_meets_the_state_before_or_the_state_after(
    some: list[Change], change: Change, random: Random
):
    """Whichever of its look-ups a commit comes before. A change of a namespace is one of each of
    its pods, and a pod that meets itself is both ends of its own change."""
    api, policies = make(some)
    tables = fresh_tables(policies)
    check_between(
        api, policies, tables, change, lambda all_: random.sample(all_, min(10, len(all_)))
    )


def _pod(key: Key, labels: dict[str, str]) -> Change:
    node = HERE if key.name in "ab" else "node-2"
    return "pod", PodView(key, labels, addresses_of(key), node)


def _allow(direction: Direction, *peers: Peer) -> Change:
    ref = PolicyRef("NetworkPolicy", "x", "p")
    rules = tuple(Rule(ref, direction, i, "Accept", (p,)) for i, p in enumerate(peers))
    ingress, egress = (rules, ()) if direction == "ingress" else ((), rules)
    subject = PodsPeer(Selector((Expression("app", "In", ("web",)),)), "x")
    isolates = frozenset([direction])
    return "policy", Policy(ref, Tier.NETWORK_POLICY, subject, ingress, egress, isolates)


def _labelled(key: str) -> PodsPeer:
    return PodsPeer(Selector((Expression(key, "In", ("1",)),)), "x")


_NETWORK = NetworkPeer(ip_network("10.244.0.0/16"))
_PEERS = (_labelled("k"), _labelled("l"), _NETWORK, PodsPeer(EVERYTHING, "", EVERYTHING))
X_A, X_B, X_C, X_D = (Key("x", name) for name in "abcd")


def _of_web(found: list[Flow]) -> list[Flow]:
    """One connection of each pod with the one that policies select."""
    return [
        flow
        for flow in found
        if {flow.source.ip, flow.destination.ip} & {addresses_of(X_A)[0]}
        and {flow.source.ip, flow.destination.ip} & {addresses_of(key)[0] for key in (X_B, X_C)}
        and (flow.protocol, flow.port) == (6, 80)
    ]


@pytest.mark.parametrize("direction", ["ingress", "egress"])
def test_a_policy_that_names_other_peers_of_the_same_pods_drops_nothing(direction: Direction):
    """Both states allow, each for its own reason: one pod is matched by all of the peers."""
    api, policies = make(
        [_pod(X_A, {"app": "web"}), _pod(X_B, {"k": "1"}), _pod(X_C, {"k": "1", "l": "1"})]
    )
    tables = fresh_tables(policies)
    for first, second in itertools.permutations(_PEERS, 2):
        for peers in ([first], [second], [first, second], [second]):
            change = _allow(direction, *peers)
            check_between(api, policies, tables, change, _of_web)


def test_a_number_is_not_read_in_two_meanings():
    """Policies come and go with peers of their own, and bits and numbers are used again."""
    api, policies = make(
        [_pod(X_A, {"app": "web"}), *(_pod(k, {n: "1"}) for k, n in ((X_B, "k"), (X_C, "l")))]
    )
    tables = fresh_tables(policies)
    for peer in _PEERS * 2:
        check_between(api, policies, tables, _allow("ingress", peer), _of_web)
        check_between(api, policies, tables, ("no policy", 0), _of_web)


# --- the size of a plan -------------------------------------------------------------------------


def _some_pods() -> tuple[Changing, NodePolicies, Tables]:
    api, policies = make(
        [_pod(X_A, {"app": "web"}), _pod(X_B, {"k": "1"}), _pod(X_C, {"k": "1"}), _pod(X_D, {})]
    )
    apply_change(_allow("ingress", _labelled("k")), api, policies)
    tables = fresh_tables(policies)
    return api, policies, tables


def test_a_label_that_moves_a_pod_to_a_known_group_is_one_element_of_each_family():
    api, policies, _tables = _some_pods()
    apply_change(_pod(X_D, {"k": "1"}), api, policies)
    plan = policies.plan()
    assert [(step.name, len(step.changes)) for step in plan.steps] == [("members", 2)]
    assert plan.elements == 2


def test_a_label_no_policy_asks_for_changes_nothing():
    api, policies, _tables = _some_pods()
    apply_change(_pod(X_B, {"k": "1", "build": "7"}), api, policies)
    apply_change(_pod(X_A, {"app": "web", "build": "7"}), api, policies)
    assert policies.plan().empty


def test_a_generation_alone_changes_nothing():
    api, policies, _tables = _some_pods()
    (policy,) = api.policies.values()
    policies.set_policy(replace(policy, generation=policy.generation + 1))
    assert policies.plan().empty


def test_a_peer_that_means_all_of_a_group_moves_nobody():
    """The group's number stays: the larger part keeps it, here the whole."""
    api, policies, _tables = _some_pods()
    apply_change(_allow("ingress", _labelled("k"), PodsPeer(EVERYTHING, "x")), api, policies)
    plan = policies.plan()
    moved = {a for step in plan.steps for c in step.changes if "peers" in c.set for a, _ in c.add}
    # x/b and x/c are in a group; x/a and x/d were in none, so they come into one.
    assert moved == {ip.packed for key in (X_A, X_D) for ip in addresses_of(key)}


def test_all_of_an_admitted_pod_comes_with_one_plan_and_its_address_last():
    api, policies = make([_allow("ingress", _labelled("k"))])
    tables = fresh_tables(policies)
    apply_change(_pod(X_A, {"app": "web"}), api, policies)
    apply_change(_pod(X_B, {}), api, policies)
    plan = policies.plan()
    last = plan.steps[-1]
    assert last.name == "classes"
    assert {c.set for c in last.changes} == {"a-local", "a-ingress"}
    source, target = addresses_of(X_B)[0].packed, addresses_of(X_A)[0].packed
    packet = Packet(source, target, 6, 80, "veth12345678")
    for step in plan.steps:
        assert tables.walk(packet).counted == ("a-unknown-source",)
        apply(Plan((step,)), tables)
    walk = tables.walk(packet)
    assert not walk.allowed
    assert not walk.counted


# --- what is no pod's policy --------------------------------------------------------------------


def test_what_opens_nothing_passes_only_where_nobody_is_selected():
    _api, _policies, tables = _some_pods()
    web, other, remote = (addresses_of(key)[0].packed for key in (X_A, X_B, X_C))
    for flags in (frozenset(["ack"]), frozenset(["syn", "ack"]), frozenset(["rst"]), frozenset()):
        for src, dst, passes in ((remote, web, False), (web, remote, False), (other, remote, True)):
            iif = "eth0" if src == remote else "veth0"
            walk = tables.walk(Packet(src, dst, 6, 80, iif, flags))
            assert walk.allowed == passes
            assert walk.counted == (() if passes else ("a-mid-stream",))
            assert tables.walk(replace(Packet(src, dst, 6, 80, iif, flags), known=True)).allowed
    for src, dst, passes in ((remote, web, False), (web, remote, False), (other, remote, True)):
        data = Packet(src, dst, 132, 80, "eth0" if src == remote else "veth0", chunk=0)
        walk = tables.walk(data)
        assert (walk.allowed, walk.counted) == (passes, () if passes else ("a-mid-stream",))
        assert tables.walk(replace(data, known=True)).allowed


def test_a_pod_may_send_from_its_own_addresses_only():
    _api, _policies, tables = _some_pods()
    outside = addresses_of(X_C)[0].packed
    for source in ("10.244.1.99", "172.30.0.2", "127.0.0.1"):
        walk = tables.walk(Packet(ip_address(source).packed, outside, 17, 53, "veth12345678"))
        assert (walk.allowed, walk.counted) == (False, ("a-unknown-source",))
    assert tables.walk(Packet(addresses_of(X_B)[0].packed, outside, 17, 53, "veth1")).allowed
    assert tables.walk(Packet(ip_address("10.9.9.9").packed, outside, 17, 53, "eth0")).allowed


def test_neighbour_discovery_is_nobodys_policy():
    _api, _policies, tables = _some_pods()
    source, target = (addresses_of(key)[1].packed for key in (X_D, X_A))
    packet = Packet(source, target, 58)
    assert tables.walk(replace(packet, icmp_type="nd-neighbor-solicit")).allowed
    assert not tables.walk(packet).allowed


# --- another generation -------------------------------------------------------------------------


def test_a_generation_built_beside_is_the_same_and_the_former_can_go():
    api, policies, tables = _some_pods()
    some = [*flows(api)][::7]
    former = {family: tables.names(family) for family in ("ip", "ip6")}
    plan = policies.rebuild("b")
    for version in (4, 6):
        words = nf.Words(version, "b")
        tables.apply_text(nf.render_generation(words, policies.pod_interfaces))
    apply(plan, tables)
    check(tables, policies, outcomes_of(api, some))
    for version, family in ((4, "ip"), (6, "ip6")):
        tables.apply_text(nf.render_switch(nf.Words(version, "b")))
        tables.apply_elements(
            SetChange(family, nf.TABLE, f"a-{name}", flush=True) for name in nf.LEADING
        )
        chains = [name for name in former[family][0] if name != nf.BASE_CHAIN]
        counters = [f"a-{name}" for name in nf.COUNTERS]
        tables.apply_text(nf.render_removal(version, chains, (), former[family][1], counters))
    check(tables, policies, outcomes_of(api, some))
    apply_change(_pod(X_D, {"k": "1"}), api, policies)
    apply(policies.plan(), tables)
    check(tables, policies, outcomes_of(api, [*flows(api)][::7]))


def test_logged_outcomes_have_chains_whose_prefix_names_them():
    api = Changing()
    policies = NodePolicies(HERE, (4,), logging=nf.Logging(7))
    for change in (_pod(X_A, {"app": "web"}), _allow("ingress", _labelled("k"))):
        apply_change(change, api, policies)
    tables = fresh_tables(policies)
    walk = tables.walk(Packet(b"\x01\x02\x03\x04", addresses_of(X_A)[0].packed, 6, 80))
    assert not walk.allowed
    (number,) = [n for _, n in walk.outcomes]
    text = policies.rebuild("a").steps[0].text[4]
    assert f'log prefix "{nf.log_prefix("ingress", number)}" group 7' in text
    assert nf.parse_log_prefix(nf.log_prefix("ingress", number)) == ("ingress", number)
    assert nf.parse_log_prefix("IN=eth0 ") is None
    apply_change(("no policy", 0), api, policies)
    apply(policies.plan(), tables)
    assert not any("outcome-" in name for name in tables.names("ip")[0])
