"""Who announces an address: one node, the same for all, and as few moves as can be."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from service_worlds import make_service, make_slice

from podwire.objects.core import Node
from podwire.services.election import (
    Candidate,
    Member,
    State,
    digest,
    eligible_nodes,
    plan_announced,
    plan_circles,
    plan_group,
    plan_owner,
    plan_owners,
    shared_eligibility,
)
from podwire.services.loadbalancers import carries_load_balancers

VIPS = [ip_address(f"172.30.0.{n}") for n in range(200, 251)]
VIP = VIPS[0]
NAMES = [f"node-{n}" for n in range(1, 8)]
MEMBERS = {n: Member(ip_address(f"172.30.0.{i}")) for i, n in enumerate(NAMES, 2)}
states = st.fixed_dictionaries({n: st.sampled_from(["alive", "frozen", "dead"]) for n in NAMES})


def candidates(found: dict[str, State], **held: list[Any]) -> list[Candidate]:
    return [
        Candidate(n, s, frozenset(digest(str(a)) for a in held.get(n.replace("-", "_"), ())))
        for n, s in found.items()
    ]


def announced(
    node: str,
    groups: dict[Any, Any],
    known: dict[str, Candidate],
    before: frozenset[Any] = frozenset(),
) -> frozenset[Any]:
    return plan_announced(node, plan_owners(node, groups, known), known, before)


def best(vip: Any = VIP, count: int = 3) -> list[str]:
    return list(plan_group(vip, MEMBERS, None))[:count]


def test_the_best_that_lives() -> None:
    first, second, third = best()
    alive: dict[str, State] = {first: "alive", second: "alive", third: "alive"}
    assert plan_owner(VIP, candidates(alive)) == first
    assert plan_owner(VIP, candidates(alive | {first: "dead"})) == second
    assert plan_owner(VIP, candidates(dict.fromkeys(alive, "dead"))) is None
    assert plan_owner(VIP, []) is None


def test_frozen_keeps_what_it_announced_and_gets_nothing_new() -> None:
    first, second, third = best()
    found: dict[str, State] = {first: "alive", second: "frozen", third: "alive"}
    held = {second.replace("-", "_"): [VIP]}
    assert plan_owner(VIP, candidates(found, **held)) == second
    assert plan_owner(VIP, candidates(found)) == first
    assert plan_owner(VIP, candidates({first: "frozen", second: "alive"})) == second


def test_a_group_reaches_down_to_the_third_ready_node() -> None:
    whole = plan_group(VIP, MEMBERS, None)
    assert len(whole) == 3
    unready = MEMBERS | {whole[0]: Member(MEMBERS[whole[0]].address, ready=False)}
    longer = plan_group(VIP, unready, None)
    assert longer[:3] == whole
    assert len(longer) == 4
    assert plan_group(VIP, MEMBERS, frozenset({"node-3", "elsewhere"})) == ("node-3",)
    assert plan_group(VIP, MEMBERS, frozenset()) == ()


@given(states)
def test_one_announcer_and_all_agree(found: dict[str, State]) -> None:
    """Each node that is alive computes for itself; together they announce every address once."""
    groups = {vip: plan_group(vip, MEMBERS, None) for vip in VIPS}
    known = {n: Candidate(n, s) for n, s in found.items()}
    claims = [
        address
        for name, state in found.items()
        if state == "alive"
        for address in announced(name, groups, known)
    ]
    assert len(claims) == len(set(claims))
    served = {v for v, group in groups.items() if any(found[n] == "alive" for n in group)}
    assert set(claims) == served


@given(st.sampled_from(NAMES))
def test_a_death_moves_its_own_addresses_only(dead: str) -> None:
    groups = {vip: plan_group(vip, MEMBERS, None) for vip in VIPS}
    known = {n: Candidate(n) for n in NAMES}
    before = {n: announced(n, groups, known) for n in NAMES}
    known[dead] = Candidate(dead, "dead")
    after = {n: announced(n, groups, known) for n in NAMES}
    assert all(before[n] <= after[n] for n in NAMES if n != dead)
    assert frozenset().union(*(after[n] for n in NAMES if n != dead)) == frozenset(VIPS)


def test_a_better_node_takes_over_when_it_says_so() -> None:
    """Until then the one that has the address keeps it: nobody else may serve it yet."""
    first, second, third = best()
    groups = {VIP: (first, second, third)}
    known = {n: Candidate(n) for n in groups[VIP]}
    mine = frozenset({VIP})
    assert announced(second, groups, known, mine) == mine
    assert announced(third, groups, known) == frozenset()
    known[first] = Candidate(first, "alive", frozenset({digest(str(VIP))}))
    assert announced(second, groups, known, mine) == frozenset()
    # Who may not have it any more lets go at once.
    assert announced(second, {VIP: (first, third)}, known, mine) == frozenset()


def test_circles() -> None:
    a, b, c = VIPS[:3]
    groups = {a: ("n1", "n2", "n3"), b: ("n2", "n4", "n1"), c: ("n3", "n4", "n5")}
    assert plan_circles("n1", groups) == {"n2": {"n3", "n4"}, "n3": {"n2"}, "n4": {"n2"}}
    assert plan_circles("n9", groups) == {}


def test_addresses_are_spread() -> None:
    groups = {vip: plan_group(vip, MEMBERS, None) for vip in VIPS}
    known = {n: Candidate(n) for n in NAMES}
    assert all(len(announced(n, groups, known)) >= 2 for n in NAMES)


@pytest.mark.parametrize(
    ("policy", "endpoints", "wanted"),
    [
        ("Cluster", [{"ip": "10.244.1.2", "node": "node-1"}], None),
        ("Local", [{"ip": "10.244.1.2", "node": "node-1"}], {"node-1"}),
        (
            "Local",
            [
                {"ip": "10.244.1.2", "node": "node-1", "ready": False, "terminating": True},
                {"ip": "10.244.2.2", "node": "node-2"},
            ],
            {"node-2"},
        ),
        (
            "Local",
            [
                {
                    "ip": "10.244.1.2",
                    "node": "node-1",
                    "ready": False,
                    "serving": True,
                    "terminating": True,
                },
                {"ip": "10.244.2.2", "node": "node-2", "ready": False},
            ],
            {"node-1"},
        ),
        ("Local", [{"ip": "10.244.1.2", "node": "node-1", "ready": False}], None),
        ("Local", [], None),
    ],
)
def test_eligible(policy: str, endpoints: list[dict[str, Any]], wanted: set[str] | None) -> None:
    service = make_service(type="LoadBalancer", externalTrafficPolicy=policy)
    assert eligible_nodes(service, [make_slice(*endpoints)]) == wanted


def test_shared() -> None:
    a, ab, c = frozenset("a"), frozenset("ab"), frozenset("c")
    assert shared_eligibility([None, None]) is None
    assert shared_eligibility([ab, a]) == a
    assert shared_eligibility([None, ab]) == ab
    assert shared_eligibility([a, c]) == {"a", "c"}


def node(**meta: Any) -> Node:
    taints = meta.pop("taints", [])
    return msgspec.convert({"metadata": {"name": "n", **meta}, "spec": {"taints": taints}}, Node)


def test_nodes_that_carry_no_balanced_traffic() -> None:
    label = {"node.kubernetes.io/exclude-from-external-load-balancers": ""}
    taint = {"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}
    assert carries_load_balancers(node())
    assert not carries_load_balancers(node(labels=label))
    assert not carries_load_balancers(node(taints=[taint]))
    assert not carries_load_balancers(node(deletionTimestamp="2026-01-01T00:00:00Z"))
