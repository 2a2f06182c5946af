"""Endpoints shared out by zone: upstream's cases (topologycache_test.go, utils_test.go)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from podwire.controllers.endpoints.hints import allocate, assign_hints, zone_ratios
from podwire.controllers.endpoints.members import Member
from podwire.controllers.endpoints.packing import Draft
from podwire.controllers.endpoints.slices import SlicePlan, Topology, plan_slices
from podwire.objects.core import Node, Service
from podwire.objects.discovery import (
    Endpoint,
    EndpointConditions,
    EndpointHints,
    EndpointSlice,
    HintName,
)
from podwire.objects.meta import Key


def node(cpu: str, zone: str = "", *, ready: bool = True, **labels: str) -> Node:
    named = {"topology.kubernetes.io/zone": zone} if zone else {}
    named |= {f"node-role.kubernetes.io/{k}": v for k, v in labels.items()}
    condition = {"type": "Ready", "status": "True" if ready else "False"}
    status = {"allocatable": {"cpu": cpu}, "conditions": [condition]}
    return msgspec.convert({"metadata": {"labels": named}, "status": status}, Node)


RATIOS = [
    ("empty", [], {}),
    ("single node", [node("1", "a")], {}),
    ("single zone", [node("1", "a"), node("1", "a")], {}),
    ("two zones", [node("1", "a"), node("1", "b")], {"a": 0.5, "b": 0.5}),
    ("2 zones, unbalanced", [node("1000m", "a"), node("3", "b")], {"a": 0.25, "b": 0.75}),
    ("a node without zone", [node("1", "a"), node("1", "b"), node("1")], {}),
    ("a node without cpu", [node("0", "a"), node("1", "b")], {}),
    (
        "unready nodes",
        [node("1", "a"), node("1", "b"), node("1", ready=False)],
        {"a": 0.5, "b": 0.5},
    ),
    ("2 nodes, one control plane", [node("1", "a"), node("1", "b", **{"control-plane": ""})], {}),
    (
        "control plane without zone",
        [node("1", "a"), node("1", "b"), node("1", master="")],
        {"a": 0.5, "b": 0.5},
    ),
]


@pytest.mark.parametrize(("case", "nodes", "ratios"), RATIOS, ids=[r[0] for r in RATIOS])
def test_set_nodes(case: str, nodes: list[Node], ratios: dict[str, float]) -> None:
    assert zone_ratios(nodes) == ratios


ALLOCATIONS = [
    # upstream's Test_getAllocations: ratios, endpoints -> (minimum, maximum, desired) by zone
    ({"a": 0.4, "b": 0.4, "c": 0.2}, 2, None),
    ({"a": 0.4, "b": 0.4, "c": 0.2}, 4, None),
    ({"a": 0.75, "b": 0.25}, 4, {"a": (3, 3, 3.0), "b": (1, 1, 1.0)}),
    ({"a": 0.9, "b": 0.1}, 5, {"a": (4, 4, 4.5), "b": (1, 1, 1.0)}),
    (
        {"a": 0.5, "b": 0.25, "c": 0.25},
        50,
        {"a": (21, 28, 25.0), "b": (11, 18, 12.5), "c": (11, 18, 12.5)},
    ),
    ({"a": 0.5, "b": 0.5}, 10, {"a": (5, 5, 5.0), "b": (5, 5, 5.0)}),
]


@pytest.mark.parametrize(("ratios", "count", "wanted"), ALLOCATIONS)
def test_get_allocations(
    ratios: dict[str, float], count: int, wanted: dict[str, tuple[int, int, float]] | None
) -> None:
    found, problem = allocate(ratios, count)
    if wanted is None:
        assert problem
        assert found == {}
    else:
        assert {z: (a.minimum, a.maximum, a.desired) for z, a in found.items()} == {
            z: (low, high, pytest.approx(desired)) for z, (low, high, desired) in wanted.items()
        }


def test_why_there_are_no_allocations() -> None:
    assert allocate({}, 5)[1] == (
        "Insufficient Node information: allocatable CPU or zone not specified on one or more nodes"
    )
    assert allocate({"a": 0.5, "b": 0.5}, 1)[1] == (
        "Insufficient number of endpoints (1 endpoints, 2 zones)"
    )
    assert allocate({"a": 0.4, "b": 0.4, "c": 0.2}, 4)[1] == (
        "Unable to allocate minimum required endpoints to each zone without exceeding overload "
        "threshold (4 endpoints, 3 zones)"
    )


def endpoint(number: int, zone: str | None, *, ready: bool = True, hint: str = "") -> Endpoint:
    return Endpoint(
        addresses=[f"10.0.0.{number}"],
        conditions=EndpointConditions(ready=ready),
        zone=zone,
        hints=EndpointHints(for_zones=[HintName(name=hint)]) if hint else None,
    )


def hinted(drafts: Sequence[Draft]) -> Counter[str]:
    return Counter(
        hint.name
        for draft in drafts
        for e in draft.endpoints
        if e.hints
        for hint in e.hints.for_zones
    )


def draft(*endpoints: Endpoint, changed: bool = True) -> Draft:
    return Draft("IPv4", [], list(endpoints), None, changed)


def test_every_zone_keeps_its_own() -> None:
    drafts = [draft(endpoint(1, "a"), endpoint(2, "b"), endpoint(3, "b", ready=False))]
    assert assign_hints(drafts, {"a": 0.5, "b": 0.5}) == ""
    assert [e.hints.for_zones[0].name if e.hints else None for e in drafts[0].endpoints] == [
        "a",
        "b",
        None,
    ]


def test_a_zone_with_more_than_its_share_gives() -> None:
    drafts = [draft(*(endpoint(n, "a" if n < 8 else "b") for n in range(10)))]
    assert assign_hints(drafts, {"a": 0.5, "b": 0.5}) == ""
    assert hinted(drafts) == {"a": 5, "b": 5}


def test_a_zone_without_endpoints_receives() -> None:
    drafts = [draft(*(endpoint(n, "a" if n % 2 else "b") for n in range(9)))]
    assert assign_hints(drafts, {"a": 1 / 3, "b": 1 / 3, "c": 1 / 3}) == ""
    assert hinted(drafts) == {"a": 3, "b": 3, "c": 3}


def test_slices_that_did_not_change_keep_their_hints() -> None:
    kept = draft(*(endpoint(n, "a", hint="a" if n < 2 else "b") for n in range(4)), changed=False)
    fresh = draft(endpoint(8, "a"), endpoint(9, "b"))
    assert assign_hints([kept, fresh], {"a": 0.5, "b": 0.5}) == ""
    assert not kept.changed
    assert hinted([kept, fresh]) == {"a": 3, "b": 3}


@pytest.mark.parametrize(
    "bad", [endpoint(3, "a"), endpoint(3, "a", hint="gone")], ids=["no hint", "zone that is gone"]
)
def test_hints_that_cannot_stay_are_made_anew(bad: Endpoint) -> None:
    old = draft(endpoint(1, "a", hint="a"), endpoint(2, "b", hint="b"), bad, changed=False)
    fresh = draft(endpoint(8, "b"))
    assert assign_hints([old, fresh], {"a": 0.5, "b": 0.5}) == ""
    assert old.changed
    assert hinted([old, fresh]) == {"a": 2, "b": 2}


def test_an_endpoint_without_zone_ends_it() -> None:
    old = draft(endpoint(1, "a", hint="a"), endpoint(2, "b", hint="b"), changed=False)
    fresh = draft(endpoint(3, None), endpoint(4, "a"))
    problem = assign_hints([old, fresh], {"a": 0.5, "b": 0.5})
    assert problem == "One or more endpoints do not have a zone specified"
    assert hinted([old, fresh]) == {}
    assert old.changed


# --- within a plan ---


def service(**annotations: str) -> Service:
    meta = {"name": "foo", "namespace": "ns", "uid": "svc", "annotations": annotations}
    body = {
        "metadata": meta,
        "spec": {"clusterIP": "10.96.0.9", "ipFamilies": ["IPv4"], "trafficDistribution": "x"},
    }
    return msgspec.convert(body, Service)


AUTO = {"service.kubernetes.io/topology-mode": "Auto"}


def plan(
    svc: Service, zones: str, existing: Sequence[EndpointSlice] = (), **topology: Any
) -> SlicePlan:
    members = [
        Member(Key("ns", f"p{n}"), [], (), {"IPv4": endpoint(n, zone)})
        for n, zone in enumerate(zones)
    ]
    options = {"ratios": {"a": 0.5, "b": 0.5}} | topology
    return plan_slices(svc, members, existing, topology=Topology(**options))


def named(done: SlicePlan) -> list[EndpointSlice]:
    return [
        msgspec.structs.replace(p, metadata=msgspec.structs.replace(p.metadata, name=f"s{n}"))
        for n, p in enumerate(done.creates)
    ]


def test_hints_come_and_go_with_the_annotation_and_are_told() -> None:
    on = plan(service(**AUTO), "aabb")
    assert [s.message for s in on.says] == [
        "Topology Aware Hints has been enabled, addressType: IPv4"
    ]
    assert on.hinted == {"IPv4"}
    have = named(on)
    again = plan(service(**AUTO), "aabb", have, hinted=on.hinted)
    assert again.empty
    assert again.says == []
    off = plan(service(), "aabb", have, hinted=on.hinted)
    assert [(s.type, s.reason) for s in off.says] == [("Warning", "TopologyAwareHintsDisabled")]
    assert off.says[0].message == "Topology Aware Hints has been disabled, addressType: IPv4"
    assert all(e.hints is None for _, new in off.updates for e in new.endpoints)
    assert len(off.updates) == 1


def test_too_few_endpoints_remove_the_hints() -> None:
    have = named(plan(service(**AUTO), "ab"))
    few = plan(service(**AUTO), "a", have, hinted=frozenset({"IPv4"}))
    assert few.says[0].message == (
        "Insufficient number of endpoints (1 endpoints, 2 zones), addressType: IPv4"
    )
    assert few.hinted == frozenset()


def test_the_older_annotation_decides() -> None:
    both = AUTO | {"service.kubernetes.io/topology-aware-hints": "Disabled"}
    assert plan(service(**both), "aabb").hinted == frozenset()


@given(
    zones=st.lists(st.sampled_from("abc"), min_size=1, max_size=40),
    more=st.lists(st.sampled_from("abc"), max_size=10),
    cpu=st.lists(st.integers(1, 9), min_size=3, max_size=3),
)
def test_shares_hold_in_random_worlds(zones: list[str], more: list[str], cpu: list[int]) -> None:
    """No zone is above its maximum by more than the rounding of an exchange, and planning again
    writes nothing."""
    ratios = {zone: n / sum(cpu) for zone, n in zip("abc", cpu, strict=True)}
    svc = service(**AUTO)
    have = named(plan(svc, "".join(zones), ratios=ratios))
    for text in ("".join(zones), "".join(zones + more)):
        done = plan(svc, text, have, ratios=ratios, hinted=frozenset({"IPv4"}))
        after = {p.metadata.name: p for p in have}
        after |= {new.metadata.name: new for _, new in done.updates}
        assert not done.creates
        found = Counter(
            e.hints.for_zones[0].name for p in after.values() for e in p.endpoints if e.hints
        )
        allocations, problem = allocate(ratios, len(text))
        assert bool(found) == (not problem)
        assert all(n <= allocations[zone].maximum + 1 for zone, n in found.items())
        have = list(after.values())
        assert plan(svc, text, have, ratios=ratios, hinted=done.hinted).empty
