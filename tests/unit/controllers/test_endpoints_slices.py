"""Which EndpointSlices a Service gets: upstream's cases, by their names where they have one.

Source of the cases: k8s.io/endpointslice reconciler_test.go and utils_test.go.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from podwire.controllers.endpoints import slices
from podwire.controllers.endpoints.members import compile_member, members_of, weight_of
from podwire.controllers.endpoints.packing import MAX_ENDPOINTS, identity
from podwire.controllers.endpoints.slices import (
    SlicePlan,
    Topology,
    plan_slices,
    render_create,
    render_patch,
)
from podwire.controllers.endpoints.triggers import TriggerTimes
from podwire.controllers.views import Pod, raw
from podwire.objects.core import Condition, Node, Service
from podwire.objects.discovery import Endpoint, EndpointSlice, SlicePort
from podwire.objects.meta import Key

ZONE = "topology.kubernetes.io/zone"


def node(name: str, zone: str = "") -> Node:
    labels = {ZONE: zone} if zone else {}
    return msgspec.convert({"metadata": {"name": name, "labels": labels}}, Node)


NUMBERS = itertools.count()
NODES = {n.key: n for n in (node("n1", "a"), node("n2", "b"), node("bare"))}


def service(**spec: Any) -> Service:
    meta = {"name": "foo", "namespace": "shop", "uid": "svc", **spec.pop("metadata", {})}
    body = {
        "clusterIP": "10.96.0.9",
        "ipFamilies": ["IPv4"],
        "selector": {"app": "foo"},
        "ports": [{"name": "http", "port": 80, "targetPort": 8080, "protocol": "TCP"}],
        **spec,
    }
    return msgspec.convert({"metadata": meta, "spec": body}, Service)


def pod(
    number: int,
    *,
    ready: bool = True,
    meta: Mapping[str, Any] | None = None,
    status: Mapping[str, Any] | None = None,
    **spec: Any,
) -> Pod:
    v4 = f"10.244.{number // 250}.{number % 250 + 1}"
    body = {
        "metadata": {"name": f"pod{number}", "namespace": "shop", "uid": f"u{number}"}
        | dict(meta or {}),
        "spec": {"nodeName": "n1" if number % 2 else "n2"} | spec,
        "status": {
            "phase": "Running",
            "podIPs": [{"ip": v4}, {"ip": f"fd00:244::{number + 1:x}"}],
            "conditions": [{"type": "Ready", "status": "True" if ready else "False"}],
        }
        | dict(status or {}),
    }
    return msgspec.convert(body, Pod)


def plan(
    svc: Service, pods: Iterable[Pod], existing: Iterable[EndpointSlice] = (), **options: Any
) -> SlicePlan:
    return plan_slices(svc, members_of(svc, pods, NODES), existing, **options)


def apply(existing: Sequence[EndpointSlice], done: SlicePlan) -> list[EndpointSlice]:
    """What the API holds afterwards: patches are applied as a server would."""
    at = {piece.metadata.name: piece for piece in existing}
    for piece in done.deletes:
        del at[piece.metadata.name]
    for old, new in done.updates:
        patched = merge(raw(old), render_patch(old, new))
        assert msgspec.convert(patched, EndpointSlice) == new
        at[old.metadata.name] = new
    for piece in done.creates:
        name = f"{piece.metadata.generate_name}{next(NUMBERS)}"
        at[name] = replace(piece, metadata=replace(piece.metadata, name=name))
    return list(at.values())


def merge(target: Any, change: Any) -> Any:
    """RFC 7396."""
    if not isinstance(change, dict):
        return change
    out = dict(target) if isinstance(target, dict) else {}
    for key, value in change.items():
        if value is None:
            out.pop(key, None)
        else:
            out[key] = merge(out.get(key), value)
    return out


def settle(svc: Service, pods: Iterable[Pod], existing: Sequence[EndpointSlice] = ()) -> Any:
    return apply(existing, plan(svc, list(pods), existing))


def sizes(pieces: Iterable[EndpointSlice]) -> list[int]:
    return sorted(len(piece.endpoints) for piece in pieces)


def only(pieces: Sequence[EndpointSlice]) -> Endpoint:
    (piece,) = pieces
    (endpoint,) = piece.endpoints
    return endpoint


def piece_of(svc: Service, pods: Iterable[Pod], name: str) -> EndpointSlice:
    """A slice with these pods, whatever the packing would be."""
    (made,) = plan(svc, pods).creates
    return replace(made, metadata=replace(made.metadata, name=name))


# --- the form of a slice ---


def test_reconcile_empty() -> None:
    (made,) = plan(service(), []).creates
    assert made.endpoints == []
    assert made.ports == []
    assert made.address_type == "IPv4"


def test_what_a_slice_carries() -> None:
    svc = service(metadata={"labels": {"team": "a", "kubernetes.io/service-name": "not-this"}})
    (made,) = plan(svc, [pod(1)], trigger="2024-01-01T00:00:00Z").creates
    assert render_create(made) == {
        "addressType": "IPv4",
        "metadata": {
            "generateName": "foo-",
            "namespace": "shop",
            "labels": {
                "team": "a",
                "kubernetes.io/service-name": "foo",
                "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
            },
            "annotations": {
                "endpoints.kubernetes.io/last-change-trigger-time": "2024-01-01T00:00:00Z"
            },
            "ownerReferences": [
                {
                    "apiVersion": "v1",
                    "kind": "Service",
                    "name": "foo",
                    "uid": "svc",
                    "controller": True,
                    "blockOwnerDeletion": True,
                }
            ],
        },
        "endpoints": [
            {
                "addresses": ["10.244.0.2"],
                "conditions": {"ready": True, "serving": True, "terminating": False},
                "nodeName": "n1",
                "zone": "a",
                "targetRef": {"kind": "Pod", "namespace": "shop", "name": "pod1", "uid": "u1"},
            }
        ],
        "ports": [{"name": "http", "port": 8080}],
    }


def test_headless_services_are_labelled_and_may_have_no_ports() -> None:
    (made,) = plan(service(clusterIP="None", ports=[]), [pod(1)]).creates
    assert made.metadata.labels["service.kubernetes.io/headless"] == ""
    assert made.ports == []
    assert len(made.endpoints) == 1


def test_reconcile_dual_stack() -> None:
    made = plan(service(ipFamilies=["IPv6", "IPv4"]), [pod(1), pod(2)]).creates
    found = {p.address_type: [e.addresses for e in p.endpoints] for p in made}
    assert found == {
        "IPv6": [["fd00:244::2"], ["fd00:244::3"]],
        "IPv4": [["10.244.0.2"], ["10.244.0.3"]],
    }


def test_a_family_the_service_gave_up_loses_its_slices() -> None:
    both = settle(service(ipFamilies=["IPv4", "IPv6"]), [pod(1)])
    left = settle(service(), [pod(1)], both)
    assert [piece.address_type for piece in left] == ["IPv4"]


def test_addresses_are_written_in_their_canonical_form() -> None:
    odd = pod(1, status={"podIPs": [{"ip": "FD00:0::00A"}]})
    assert only(plan(service(ipFamilies=["IPv6"]), [odd]).creates).addresses == ["fd00::a"]


CONDITIONS = [
    # pod ready, being deleted, publishNotReadyAddresses -> ready, serving, terminating
    (True, False, False, (True, True, False)),
    (False, False, False, (False, False, False)),
    (True, True, False, (False, True, True)),
    (False, True, False, (False, False, True)),
    (True, False, True, (True, True, False)),
    (False, False, True, (True, False, False)),
    (True, True, True, (True, True, True)),
    (False, True, True, (True, False, True)),
]


@pytest.mark.parametrize(("ready", "deleting", "publish", "conditions"), CONDITIONS)
def test_pod_to_endpoint(
    ready: bool, deleting: bool, publish: bool, conditions: tuple[bool, bool, bool]
) -> None:
    meta = {"deletionTimestamp": "2024-01-01T00:00:00Z"} if deleting else {}
    svc = service(publishNotReadyAddresses=publish)
    found = only(plan(svc, [pod(1, ready=ready, meta=meta)]).creates).conditions
    assert (found.ready, found.serving, found.terminating) == conditions


@pytest.mark.parametrize(
    ("hostname", "subdomain", "told"),
    [("db-0", "foo", "db-0"), ("db-0", "bar", None), ("", "foo", None), ("db-0", "", None)],
)
def test_hostname_only_in_the_pods_subdomain(
    hostname: str, subdomain: str, told: str | None
) -> None:
    one = pod(1, hostname=hostname, subdomain=subdomain)
    assert only(plan(service(), [one]).creates).hostname == told


NOT_LISTED = {
    "succeeded": {"status": {"phase": "Succeeded"}},
    "failed": {"status": {"phase": "Failed"}},
    "evicted": {"status": {"phase": "Failed", "reason": "Evicted"}},
    "without an address": {"status": {"podIPs": []}},
    "on a node that is gone": {"nodeName": "gone"},
    "without a node": {"nodeName": ""},
}


@pytest.mark.parametrize("case", NOT_LISTED)
def test_pods_that_are_no_endpoints(case: str) -> None:
    one = pod(1, **NOT_LISTED[case])
    assert list(members_of(service(), [one], NODES)) == []


def test_a_missing_node_does_not_matter_with_publish_not_ready_addresses() -> None:
    found = only(plan(service(publishNotReadyAddresses=True), [pod(1, nodeName="gone")]).creates)
    assert (found.node_name, found.zone) == ("gone", None)


def test_host_network_pods_are_endpoints() -> None:
    one = pod(1, hostNetwork=True, status={"podIPs": [{"ip": "172.30.0.2"}]})
    assert only(plan(service(), [one]).creates).addresses == ["172.30.0.2"]


# --- ports ---


def named(number: int, port: int, where: str = "containers", **container: Any) -> Pod:
    ports = [{"name": "web", "containerPort": port, "protocol": "TCP"}]
    containers = {where: [{"name": "c", "ports": ports, **container}]}
    return pod(number, **containers)


NAMED = {"ports": [{"name": "http", "port": 80, "targetPort": "web", "protocol": "TCP"}]}


def test_reconcile_endpoint_slices_named_ports() -> None:
    svc = service(**NAMED)
    pods = [named(n, 8080 + n % 3) for n in range(30)]
    made = settle(svc, pods)
    assert sorted(piece.ports[0].port or 0 for piece in made) == [8080, 8081, 8082]
    assert sizes(made) == [10, 10, 10]
    assert plan(svc, pods, made).empty


def test_named_ports_of_restartable_init_containers() -> None:
    svc = service(**NAMED)
    sidecar = named(1, 9090, "initContainers", restartPolicy="Always")
    assert plan(svc, [sidecar]).creates[0].ports == [SlicePort(name="http", port=9090)]
    once = named(1, 9090, "initContainers")
    assert plan(svc, [once]).creates[0].ports == []


def test_a_container_port_comes_before_a_sidecars() -> None:
    ports = [{"name": "web", "containerPort": 1}]
    side = [
        {"name": "s", "restartPolicy": "Always", "ports": [{"name": "web", "containerPort": 2}]}
    ]
    one = pod(1, containers=[{"name": "c", "ports": ports}], initContainers=side)
    assert plan(service(**NAMED), [one]).creates[0].ports[0].port == 1


def test_a_pod_without_one_of_the_named_ports_is_in_a_set_of_its_own() -> None:
    both = [
        {"name": "http", "port": 80, "targetPort": "web"},
        {"name": "plain", "port": 81, "targetPort": 81},
    ]
    made = plan(service(ports=both), [named(1, 8080), pod(2)]).creates
    found = {tuple(p.name for p in piece.ports): len(piece.endpoints) for piece in made}
    assert found == {("http", "plain"): 1, ("plain",): 1}


def test_the_protocol_of_a_named_port_counts() -> None:
    udp = [{"name": "http", "port": 80, "targetPort": "web", "protocol": "UDP"}]
    assert plan(service(ports=udp), [named(1, 8080)]).creates[0].ports == []


def test_app_protocol_and_same_number_with_two_protocols() -> None:
    ports = [
        {"name": "dns", "port": 53, "protocol": "UDP"},
        {"name": "dns-tcp", "port": 53, "protocol": "TCP", "appProtocol": "kubernetes.io/h2c"},
    ]
    (made,) = plan(service(ports=ports), [pod(1)]).creates
    assert [(p.name, p.protocol, p.port, p.app_protocol) for p in made.ports] == [
        ("dns", "UDP", 53, None),
        ("dns-tcp", "TCP", 53, "kubernetes.io/h2c"),
    ]


# --- packing ---


def test_reconcile_many_pods() -> None:
    assert sizes(settle(service(), map(pod, range(250)))) == [50, 100, 100]


def test_reconcile_1_pod_writes_one_slice() -> None:
    svc = service()
    pods = [pod(n) for n in range(250)]
    made = settle(svc, pods)
    pods[120] = pod(120, ready=False)
    done = plan(svc, pods, made)
    assert (len(done.creates), len(done.updates), len(done.deletes)) == (0, 1, 0)


def test_reconcile_endpoint_slices_some_preexisting() -> None:
    """62 and 61 of 250 exist: a full slice is new, the other 27 fit into the larger."""
    svc = service()
    pods = [pod(n) for n in range(250)]
    existing = [piece_of(svc, pods[1:248:4], "a"), piece_of(svc, pods[3:246:4], "b")]
    done = plan(svc, pods, existing)
    assert (len(done.creates), len(done.updates), len(done.deletes)) == (1, 1, 0)
    assert sizes(apply(existing, done)) == [61, 89, 100]


def test_reconcile_endpoint_slices_updating() -> None:
    svc = service()
    pods = [pod(n) for n in range(250)]
    made = settle(svc, pods)
    relabelled = service(metadata={"labels": {"new": "label"}})
    done = plan(relabelled, pods, made)
    assert (len(done.creates), len(done.updates), len(done.deletes)) == (0, 3, 0)
    (old, new) = done.updates[0]
    assert render_patch(old, new).keys() == {"metadata"}
    assert plan(relabelled, pods, apply(made, done)).empty


def test_reconcile_endpoint_slices_recycling() -> None:
    """Three full slices with other ports are written over, never deleted."""
    pods = [pod(n) for n in range(250)]
    made = settle(service(), pods)
    moved = service(ports=[{"name": "http", "port": 80, "targetPort": 9090, "protocol": "TCP"}])
    done = plan(moved, pods, made)
    assert (len(done.creates), len(done.updates), len(done.deletes)) == (0, 3, 0)
    assert all(new.endpoints for _, new in done.updates)


def test_reconcile_endpoint_slices_update_packing() -> None:
    """Room is taken first in slices that must be written anyway."""
    svc = service()
    pods = [pod(n) for n in range(100)]
    existing = [piece_of(svc, pods[:60], "a"), piece_of(svc, pods[60:], "b")]
    pods[0] = pod(0, ready=False)
    pods += [pod(n) for n in range(100, 110)]
    done = plan(svc, pods, existing)
    ((old, new),) = done.updates
    assert (old.metadata.name, len(new.endpoints)) == ("a", 70)
    assert not done.creates


def test_what_is_left_goes_whole_into_the_fullest_slice_it_fits() -> None:
    svc = service()
    pods = [pod(n) for n in range(150)]
    existing = [piece_of(svc, pods[:60], "a"), piece_of(svc, pods[60:150], "b")]
    fits = plan(svc, [*pods, *(pod(n) for n in range(150, 160))], existing)
    assert [new.metadata.name for _, new in fits.updates] == ["b"]
    looser = plan(svc, [*pods, *(pod(n) for n in range(150, 170))], existing)
    assert [new.metadata.name for _, new in looser.updates] == ["a"]
    not_at_all = plan(svc, [*pods, *(pod(n) for n in range(150, 200))], existing)
    assert (len(not_at_all.creates), len(not_at_all.updates)) == (1, 0)


def test_the_last_endpoint_leaves_an_empty_slice_in_place() -> None:
    svc = service()
    made = settle(svc, [pod(1)])
    done = plan(svc, [], made)
    ((_, empty),) = done.updates
    assert (empty.endpoints, empty.ports) == ([], [])
    left = apply(made, done)
    assert plan(svc, [], left).empty
    again = plan(svc, [pod(1)], left)
    assert (len(again.creates), len(again.updates), len(again.deletes)) == (0, 1, 0)


def test_a_surplus_of_empty_slices_is_deleted() -> None:
    svc = service()
    empty = piece_of(svc, [], "a")
    twice = [empty, replace(empty, metadata=replace(empty.metadata, name="b"))]
    assert sizes(settle(svc, [], twice)) == [0]
    assert sizes(settle(svc, [pod(1)], twice)) == [1]


def test_an_endpoint_that_is_listed_twice_is_listed_once() -> None:
    svc = service()
    one = piece_of(svc, [pod(1), pod(2)], "a")
    two = piece_of(svc, [pod(2)], "b")
    left = settle(svc, [pod(1), pod(2)], [one, two])
    assert sizes(left) == [2]


def test_reconcile_endpoint_slices_replaces_foreign_owners() -> None:
    """A slice of an earlier Service of the same name is not reused."""
    old = settle(service(metadata={"uid": "before"}), [pod(1)])
    done = plan(service(), [pod(1)], old)
    assert (len(done.creates), len(done.updates), len(done.deletes)) == (1, 0, 1)


def test_a_service_that_is_being_deleted_gets_no_new_slices() -> None:
    going = service(metadata={"deletionTimestamp": "2024-01-01T00:00:00Z"})
    assert plan(going, [pod(1)]).empty


def test_slices_that_are_being_deleted_do_not_count() -> None:
    svc = service()
    made = piece_of(svc, [pod(1)], "a")
    meta = replace(made.metadata, deletion_timestamp="2024-01-01T00:00:00Z")
    assert len(plan(svc, [pod(1)], [replace(made, metadata=meta)]).creates) == 1


def test_annotations_of_others_stay() -> None:
    svc = service()
    made = piece_of(svc, [pod(1)], "a")
    meta = replace(made.metadata, annotations={"else": "x", slices.TRIGGER_ANNOTATION: "old"})
    done = plan(svc, [pod(1), pod(2)], [replace(made, metadata=meta)])
    ((old, new),) = done.updates
    assert new.metadata.annotations == {"else": "x"}
    assert render_patch(old, new)["metadata"]["annotations"] == {slices.TRIGGER_ANNOTATION: None}


@pytest.mark.parametrize(("length", "prefix"), [(10, "x" * 10 + "-"), (253, "x" * 253)])
def test_get_endpoint_slice_prefix(length: int, prefix: str) -> None:
    assert slices.name_prefix("x" * length) == prefix


# --- trafficDistribution ---


@pytest.mark.parametrize(
    ("wish", "zones", "nodes"),
    [
        (None, [], []),
        ("PreferClose", ["a"], []),
        ("PreferSameZone", ["a"], []),
        ("PreferSameNode", ["a"], ["n1"]),
        ("SomethingElse", [], []),
    ],
)
def test_reconcile_traffic_distribution(
    wish: str | None, zones: list[str], nodes: list[str]
) -> None:
    svc = service(trafficDistribution=wish)
    made = settle(svc, [pod(1), pod(3, ready=False), pod(5, nodeName="bare")])
    (piece,) = made
    ready, unready, bare = piece.endpoints
    found = ready.hints
    assert [h.name for h in found.for_zones] == zones if found else zones == []
    assert [h.name for h in found.for_nodes] == nodes if found else nodes == []
    assert unready.hints is None
    assert bool(bare.hints) == (wish == "PreferSameNode")
    off = plan(service(), [pod(1), pod(3, ready=False), pod(5, nodeName="bare")], made)
    assert len(off.updates) == (1 if zones else 0)
    assert all(e.hints is None for _, new in off.updates for e in new.endpoints)


# --- weights ---


def weighted(number: int, text: str) -> Pod:
    return pod(number, meta={"annotations": {"networking.podwire.dev/weight": text}})


def test_weights_are_told_for_those_that_have_one() -> None:
    svc = service(ipFamilies=["IPv4", "IPv6"])
    made = settle(svc, [weighted(1, "10"), weighted(2, "1000"), pod(3)])
    found = {
        p.address_type: json.loads(p.metadata.annotations[slices.WEIGHTS_ANNOTATION]) for p in made
    }
    assert found == {
        "IPv4": {"10.244.0.2": 10, "10.244.0.3": 1000},
        "IPv6": {"fd00:244::2": 10, "fd00:244::3": 1000},
    }
    changed = plan(svc, [weighted(1, "11"), weighted(2, "1000"), pod(3)], made)
    assert len(changed.updates) == 2
    gone = apply(made, plan(svc, [pod(1), pod(2), pod(3)], made))
    assert all(slices.WEIGHTS_ANNOTATION not in p.metadata.annotations for p in gone)


@pytest.mark.parametrize("text", ["0", "1001", "-1", "1.5", "", "ten", " 5", "٣"])
def test_weights_that_are_none(text: str) -> None:
    weight, problem = weight_of(weighted(1, text))
    assert weight is None
    assert "is not a whole number from 1 to 1000" in problem


# --- trigger times ---


def at(number: int, time: str) -> Pod:
    return pod(
        number,
        status={"conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": time}]},
    )


def test_trigger_time_is_the_earliest_of_what_changed() -> None:
    svc = service(metadata={"creationTimestamp": "2024-01-01T00:00:00Z"})
    times = TriggerTimes()
    first = [at(1, "2024-01-01T00:00:05Z"), at(2, "2024-01-01T00:00:07Z")]
    assert times.observe(svc, first) == "2024-01-01T00:00:00Z"
    assert times.observe(svc, first) == ""
    more = [*first, at(3, "2024-01-01T00:00:09Z"), at(4, "2024-01-01T00:00:08Z")]
    assert times.observe(svc, more) == "2024-01-01T00:00:08Z"
    assert times.observe(svc, more[1:]) == ""


# --- random worlds ---


class Drawn(NamedTuple):
    """A pod in few words, so that a failing world can be read."""

    number: int
    ready: bool = True
    port: int = 8080
    deleting: bool = False
    node: str = "n1"


@functools.cache
def drawn_pod(d: Drawn) -> Pod:
    return pod(
        d.number,
        ready=d.ready,
        meta={"deletionTimestamp": "2024-01-01T00:00:00Z"} if d.deleting else {},
        nodeName=d.node,
        containers=[{"name": "c", "ports": [{"name": "web", "containerPort": d.port}]}],
    )


DRAWN = st.builds(
    Drawn,
    st.integers(0, 400),
    st.booleans(),
    st.sampled_from([8080, 8081]),
    st.booleans(),
    st.sampled_from(["n1", "n2", "bare", "gone"]),
)
STEP = st.tuples(st.integers(0, 99), st.integers(0, 250), st.lists(DRAWN, max_size=20))
"""Pods from a number to another, and some that are different."""
WORLDS = st.lists(STEP, min_size=1, max_size=4)


def pods_of(step: tuple[int, int, list[Drawn]]) -> list[Pod]:
    first, last, others = step
    drawn = {n: Drawn(n) for n in range(first, last)} | {d.number: d for d in others}
    return [drawn_pod(d) for d in drawn.values()]


SERVICES = st.builds(
    lambda families, publish, wish, target: service(
        ipFamilies=families,
        publishNotReadyAddresses=publish,
        trafficDistribution=wish,
        ports=[{"name": "http", "port": 80, "targetPort": target}],
    ),
    st.sampled_from([["IPv4"], ["IPv6"], ["IPv4", "IPv6"]]),
    st.booleans(),
    st.sampled_from([None, "PreferClose", "PreferSameNode"]),
    st.sampled_from([8080, "web"]),
)


def _wanted(svc: Service, pods: Sequence[Pod], family: str) -> Counter[str]:
    members = [compile_member(svc, p, NODES.get(Key("", p.spec.node_name))) for p in pods]
    return Counter(
        repr((identity(m.endpoints[family]), m.endpoints[family], m.port_key))
        for m in members
        if m is not None and family in m.endpoints
    )


@given(svc=SERVICES, steps=WORLDS)
def test_random_worlds(svc: Service, steps: list[Any]) -> None:
    """After every step the slices list exactly what they must, planning again writes nothing, and
    no update was one for nothing."""
    have: list[EndpointSlice] = []
    for step in steps:
        pods = pods_of(step)
        done = plan(svc, pods, have)
        assert all(not slices.same_content(old, new) for old, new in done.updates)
        have = apply(have, done)
        assert plan(svc, pods, have).empty
        assert plan(svc, pods[::-1], have).empty
        for family in slices.address_families(svc):
            mine = [piece for piece in have if piece.address_type == family]
            assert mine
            assert all(len(piece.endpoints) <= MAX_ENDPOINTS for piece in mine)
            listed = Counter(
                repr((identity(e), e, tuple((p.name, p.protocol, p.port, "") for p in piece.ports)))
                for piece in mine
                for e in piece.endpoints
            )
            assert listed == _wanted(svc, pods, family)
            assert len(mine) == 1 or all(piece.endpoints for piece in mine)


@given(step=STEP, chosen=st.integers(0, 10_000))
def test_one_pod_that_changes_costs_one_write(step: Any, chosen: int) -> None:
    svc = service()
    pods = [p for p in pods_of(step) if p.spec.node_name != "gone"]
    have = settle(svc, pods)
    if not pods:
        return
    index = chosen % len(pods)
    was = pods[index]
    condition = {"type": "Ready", "status": "False" if was.ready else "True"}
    status = replace(was.status, conditions=[msgspec.convert(condition, Condition)])
    pods[index] = replace(was, status=status)
    done = plan(svc, pods, have)
    assert (len(done.creates), len(done.deletes)) == (0, 0)
    assert len(done.updates) == 1


def test_topology_is_left_alone_without_the_annotation() -> None:
    assert plan(service(), [pod(1)], topology=Topology({"a": 0.5, "b": 0.5})).says == []
