"""core/v1 Endpoints from pods, and slices mirrored from Endpoints: upstream's cases."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from podwire.controllers.endpoints import mirror
from podwire.controllers.endpoints.legacy import OVER_CAPACITY, plan_endpoints, truncate
from podwire.controllers.endpoints.legacycontroller import render_patch
from podwire.controllers.endpoints.members import compile_member
from podwire.controllers.endpoints.slices import SlicePlan, render_create
from podwire.controllers.views import Pod, raw
from podwire.objects.core import EndpointAddress, Endpoints, EndpointSubset, Node, Service
from podwire.objects.discovery import EndpointSlice

NODE = msgspec.convert({"metadata": {"name": "n1"}}, Node)


def service(*ports: dict[str, Any], **spec: Any) -> Service:
    meta = {"name": "foo", "namespace": "ns", "uid": "svc", "labels": spec.pop("labels", {})}
    body = {"clusterIP": "10.96.0.9", "ipFamilies": ["IPv4"], "selector": {"a": "b"}, **spec}
    return msgspec.convert({"metadata": meta, "spec": body | {"ports": list(ports)}}, Service)


HTTP = {"name": "http", "port": 80, "targetPort": 8080}
NAMED = {"name": "web", "port": 81, "targetPort": "web"}


def pod(number: int, *, ready: bool = True, port: int = 0, deleting: bool = False) -> Pod:
    ports = [{"name": "web", "containerPort": port}] if port else []
    meta = {"name": f"pod{number}", "namespace": "ns", "uid": f"u{number}"}
    body = {
        "metadata": meta | ({"deletionTimestamp": "2024-01-01T00:00:00Z"} if deleting else {}),
        "spec": {"nodeName": "n1", "containers": [{"name": "c", "ports": ports}]},
        "status": {
            "podIPs": [{"ip": f"1.2.{number // 200}.{number % 200}"}, {"ip": f"fd00::{number:x}"}],
            "conditions": [{"type": "Ready", "status": "True" if ready else "False"}],
        },
    }
    return msgspec.convert(body, Pod)


def plan(svc: Service, pods: Sequence[Pod], existing: Endpoints | None = None) -> Endpoints | None:
    members = [(p, compile_member(svc, p, NODE)) for p in pods]
    return plan_endpoints(svc, [(p, m) for p, m in members if m is not None], existing)


def shown(endpoints: Endpoints | None) -> list[Any]:
    assert endpoints is not None
    return [
        (
            [a.ip for a in s.addresses],
            [a.ip for a in s.not_ready_addresses],
            [(p.name, p.port) for p in s.ports],
        )
        for s in endpoints.subsets
    ]


def test_sync_endpoints_items() -> None:
    made = plan(service(HTTP, labels={"team": "a"}), [pod(2), pod(1)])
    assert made is not None
    assert shown(made) == [(["1.2.0.1", "1.2.0.2"], [], [("http", 8080)])]
    assert raw(made)["metadata"] == {
        "name": "foo",
        "namespace": "ns",
        "labels": {"team": "a", "endpoints.kubernetes.io/managed-by": "endpoint-controller"},
    }
    assert raw(made)["subsets"][0]["addresses"][0] == {
        "ip": "1.2.0.1",
        "nodeName": "n1",
        "targetRef": {"kind": "Pod", "namespace": "ns", "name": "pod1", "uid": "u1"},
    }
    assert plan(service(HTTP, labels={"team": "a"}), [pod(1), pod(2)], made) is None


@pytest.mark.parametrize(
    ("pods", "publish", "subsets"),
    [
        ([pod(1), pod(2, ready=False)], False, [(["1.2.0.1"], ["1.2.0.2"], [("http", 8080)])]),
        ([pod(1), pod(2, ready=False)], True, [(["1.2.0.1", "1.2.0.2"], [], [("http", 8080)])]),
        ([pod(1, deleting=True)], False, []),
        ([pod(1, deleting=True)], True, [(["1.2.0.1"], [], [("http", 8080)])]),
        ([], False, []),
    ],
)
def test_readiness(pods: list[Pod], publish: bool, subsets: list[Any]) -> None:
    svc = service(HTTP, publishNotReadyAddresses=publish)
    assert shown(plan(svc, pods)) == subsets


def test_ports_with_the_same_addresses_share_a_subset() -> None:
    other = {"name": "other", "port": 90, "targetPort": 9090}
    assert shown(plan(service(HTTP, other), [pod(1)])) == [
        (["1.2.0.1"], [], [("http", 8080), ("other", 9090)])
    ]
    split = shown(plan(service(HTTP, NAMED), [pod(1, port=1000), pod(2, port=2000), pod(3)]))
    assert split == [
        (["1.2.0.1", "1.2.0.2", "1.2.0.3"], [], [("http", 8080)]),
        (["1.2.0.1"], [], [("web", 1000)]),
        (["1.2.0.2"], [], [("web", 2000)]),
    ]


def test_headless_without_ports_and_the_second_family() -> None:
    headless = service(clusterIP="None", ipFamilies=["IPv6", "IPv4"])
    made = plan(headless, [pod(1)])
    assert made is not None
    assert shown(made) == [(["fd00::1"], [], [])]
    assert made.metadata.labels["service.kubernetes.io/headless"] == ""


def test_a_pod_without_the_named_port_is_left_out() -> None:
    assert shown(plan(service(NAMED), [pod(1)])) == []


def test_endpoints_over_capacity() -> None:
    svc = service(HTTP)
    made = plan(svc, [pod(n, ready=n % 5 > 0) for n in range(1200)])
    assert made is not None
    (subset,) = made.subsets
    assert (len(subset.addresses), len(subset.not_ready_addresses)) == (960, 40)
    assert made.metadata.annotations[OVER_CAPACITY] == "truncated"
    fewer = plan(svc, [pod(n) for n in range(10)], made)
    assert fewer is not None
    assert OVER_CAPACITY not in fewer.metadata.annotations
    assert render_patch(made, fewer)["metadata"]["annotations"] == {OVER_CAPACITY: None}


@pytest.mark.parametrize(
    ("ready", "unready", "left"),
    [
        # upstream's TestTruncateEndpoints
        ([500, 500], [0, 0], [(500, 0), (500, 0)]),
        ([700, 700], [0, 0], [(500, 0), (500, 0)]),
        ([1050], [200], [(1000, 0)]),
        ([400, 1600], [0, 0], [(200, 0), (800, 0)]),
        ([300, 100], [500, 500], [(300, 300), (100, 300)]),
    ],
)
def test_truncate_endpoints(
    ready: list[int], unready: list[int], left: list[tuple[int, int]]
) -> None:
    subsets = [
        EndpointSubset(
            addresses=[EndpointAddress(ip="1.1.1.1")] * a,
            not_ready_addresses=[EndpointAddress(ip="1.1.1.1")] * b,
        )
        for a, b in zip(ready, unready, strict=True)
    ]
    found = [(len(s.addresses), len(s.not_ready_addresses)) for s in truncate(subsets)]
    assert found == left


def test_no_address_left_is_no_subset() -> None:
    made = plan(service(HTTP), [pod(1)])
    assert made is not None
    empty = plan(service(HTTP), [], made)
    assert empty is not None
    assert render_patch(made, empty)["subsets"] is None


# --- mirroring ---


def endpoints(*subsets: dict[str, Any], **meta: Any) -> Endpoints:
    body = {"metadata": {"name": "db", "namespace": "ns", "uid": "e", **meta}}
    return msgspec.convert(body | {"subsets": list(subsets)}, Endpoints)


def addresses(*ips: str) -> list[dict[str, str]]:
    return [{"ip": ip} for ip in ips]


PG = {"ports": [{"name": "pg", "port": 5432}]}


def apply(have: Sequence[EndpointSlice], done: SlicePlan) -> list[EndpointSlice]:
    at = {piece.metadata.name: piece for piece in have}
    for piece in done.deletes:
        del at[piece.metadata.name]
    at |= {new.metadata.name: new for _, new in done.updates}
    for number, piece in enumerate(done.creates):
        name = f"db-{len(at)}-{number}"
        at[name] = replace(piece, metadata=replace(piece.metadata, name=name))
    return list(at.values())


def mirrored(one: Endpoints, have: Sequence[EndpointSlice] = ()) -> list[EndpointSlice]:
    left = apply(have, mirror.plan_mirror(one, have))
    assert mirror.plan_mirror(one, left).empty
    return left


def test_endpoints_with_multiple_subsets_and_families() -> None:
    made = mirrored(
        endpoints(
            {"addresses": addresses("10.0.0.1", "fd00::1"), **PG},
            {"notReadyAddresses": addresses("10.0.0.2"), "ports": [{"port": 80}]},
        )
    )
    found = {
        (p.address_type, p.ports[0].port): [(e.addresses, e.ready) for e in p.endpoints]
        for p in made
    }
    assert found == {
        ("IPv4", 5432): [(["10.0.0.1"], True)],
        ("IPv6", 5432): [(["fd00::1"], True)],
        ("IPv4", 80): [(["10.0.0.2"], False)],
    }


def test_what_a_mirrored_slice_carries() -> None:
    one = endpoints(
        {"addresses": [{"ip": "10.0.0.1", "hostname": "h", "nodeName": "n"}], **PG},
        labels={"team": "a"},
        annotations={
            "note": "x",
            "kubectl.kubernetes.io/last-applied-configuration": "{}",
            "endpoints.kubernetes.io/last-change-trigger-time": "t",
        },
    )
    assert render_create(mirror.plan_mirror(one, []).creates[0]) == {
        "addressType": "IPv4",
        "metadata": {
            "generateName": "db-",
            "namespace": "ns",
            "labels": {
                "team": "a",
                "kubernetes.io/service-name": "db",
                "endpointslice.kubernetes.io/managed-by": mirror.MANAGER,
            },
            "annotations": {"note": "x"},
            "ownerReferences": [
                {
                    "apiVersion": "v1",
                    "kind": "Endpoints",
                    "name": "db",
                    "uid": "e",
                    "controller": True,
                    "blockOwnerDeletion": True,
                }
            ],
        },
        "endpoints": [
            {
                "addresses": ["10.0.0.1"],
                "conditions": {"ready": True},
                "hostname": "h",
                "nodeName": "n",
            }
        ],
        "ports": [{"name": "pg", "port": 5432}],
    }


def test_changes_are_updates_of_the_same_slice() -> None:
    have = mirrored(endpoints({"addresses": addresses("10.0.0.1"), **PG}))
    for changed in (
        endpoints({"addresses": addresses("10.0.0.1", "10.0.0.2"), **PG}),
        endpoints({"addresses": addresses("10.0.0.9"), "ports": [{"port": 1}]}),
        endpoints({"addresses": addresses("10.0.0.9"), **PG}, labels={"x": "y"}),
        endpoints({"addresses": addresses("10.0.0.9"), **PG}, annotations={"x": "y"}),
    ):
        done = mirror.plan_mirror(changed, have)
        assert (len(done.creates), len(done.updates), len(done.deletes)) == (0, 1, 0)
        have = apply(have, done)
    assert mirrored(endpoints(), have) == []


def test_endpoints_made_again_have_slices_of_their_own() -> None:
    """The garbage collector takes those of the former Endpoints, whatever they hold by then."""
    have = mirrored(endpoints({"addresses": addresses("10.0.0.1"), **PG}))
    again = endpoints({"addresses": addresses("10.0.0.1"), **PG}, uid="e2")
    done = mirror.plan_mirror(again, have)
    assert (len(done.creates), done.updates, done.deletes) == (1, [], have)
    (piece,) = mirrored(again, have)
    assert [ref.uid for ref in piece.metadata.owner_references] == ["e2"]


def test_two_subsets_with_the_same_ports_are_one_slice() -> None:
    one = endpoints(
        {"addresses": addresses("10.0.0.1"), **PG}, {"addresses": addresses("10.0.0.2"), **PG}
    )
    (piece,) = mirrored(one)
    assert [e.addresses for e in piece.endpoints] == [["10.0.0.1"], ["10.0.0.2"]]


def test_too_many_and_invalid_addresses_are_told() -> None:
    many = [f"10.0.{n // 250}.{n % 250}" for n in range(1010)]
    done = mirror.plan_mirror(endpoints({"addresses": addresses("bad", *many), **PG}), [])
    assert len(done.creates[0].endpoints) == 1000
    assert [s.message for s in done.says] == [
        "Skipped 1 invalid IP addresses when mirroring to EndpointSlices",
        (
            "A max of 1000 addresses can be mirrored to EndpointSlices per Endpoints subset. "
            "11 addresses were skipped"
        ),
    ]


def test_what_is_not_mirrored() -> None:
    assert mirror.is_mirrored(endpoints())
    skip = {"endpointslice.kubernetes.io/skip-mirror": "true"}
    assert not mirror.is_mirrored(endpoints(labels=skip))
    assert not mirror.is_mirrored(
        endpoints(annotations={"control-plane.alpha.kubernetes.io/leader": "{}"})
    )
