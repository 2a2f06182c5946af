"""Scheduling decisions, one row each; and that a thousand of them are quick."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import msgspec
import pytest

from podwire.controllers.schedsnapshot import Snapshot
from podwire.controllers.scheduling import Unschedulable, schedule
from podwire.controllers.views import Pod
from podwire.objects.core import Node
from podwire.objects.placement import pod_requests

HOSTNAME, ZONE = "kubernetes.io/hostname", "topology.kubernetes.io/zone"
_UID = iter(range(1, 1_000_000))


def node(
    name: str, zone: str = "", *, taints: Any = (), cordoned: bool = False, **room: str
) -> Node:
    labels = {HOSTNAME: name, "disk": name[-1]} | ({ZONE: zone} if zone else {})
    raw = {
        "metadata": {"name": name, "labels": labels},
        "spec": {"taints": list(taints), "unschedulable": cordoned},
        "status": {"allocatable": {"cpu": "4", "memory": "8Gi", "pods": "110", **room}},
    }
    return msgspec.convert(raw, Node)


def pod(app: str = "web", *, owner: str = "", namespace: str = "ns", **spec: Any) -> Pod:
    uid = f"u{next(_UID)}"
    meta: dict[str, Any] = {
        "name": f"{app}-{uid}",
        "namespace": namespace,
        "uid": uid,
        "labels": {"app": app},
    }
    if owner:
        meta["ownerReferences"] = [{"kind": "ReplicaSet", "uid": owner, "controller": True}]
    return msgspec.convert({"metadata": meta, "spec": spec}, Pod)


def snapshot(*nodes: Node) -> Snapshot:
    made = Snapshot()
    for one in nodes:
        made.set_node(one)
    return made


def three() -> Snapshot:
    return snapshot(node("n1", "a"), node("n2", "a"), node("n3", "b"))


def place(snap: Snapshot, one: Pod) -> str:
    where = schedule(one, snap)
    assert isinstance(where, str), where
    snap.add(one, where)
    return where


def refused(snap: Snapshot, one: Pod) -> str:
    why = schedule(one, snap)
    assert isinstance(why, Unschedulable), why
    return why.message


def term(app: str, key: str = HOSTNAME) -> dict[str, Any]:
    return {"labelSelector": {"matchLabels": {"app": app}}, "topologyKey": key}


def anti(app: str, key: str = HOSTNAME) -> dict[str, Any]:
    return {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term(app, key)]}}


def near(app: str, key: str = HOSTNAME) -> dict[str, Any]:
    return {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term(app, key)]}}


def requests(**need: str) -> list[dict[str, Any]]:
    return [{"name": "c", "resources": {"requests": need}}]


PORT = [{"name": "c", "ports": [{"containerPort": 80, "hostPort": 80}]}]


def test_pods_of_one_controller_spread_over_nodes_then_zones() -> None:
    snap = three()
    where = [place(snap, pod(owner="rs")) for _ in range(6)]
    assert Counter(where) == {"n1": 2, "n2": 2, "n3": 2}
    assert {snap.topology_of(n, ZONE) for n in where[:2]} == {"a", "b"}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"nodeSelector": {"disk": "9"}}, "3 node(s) didn't match Pod's node affinity/selector."),
        ({"containers": requests(cpu="5")}, "3 Insufficient cpu."),
        ({"containers": requests(memory="9Gi")}, "3 Insufficient memory."),
        ({"affinity": near("db")}, "3 node(s) didn't match pod affinity rules."),
    ],
)
def test_refusals(spec: dict[str, Any], message: str) -> None:
    assert refused(three(), pod(**spec)) == f"0/3 nodes are available: {message}"


def test_reasons_are_counted_and_sorted() -> None:
    taint = {"key": "k", "value": "v", "effect": "NoSchedule"}
    snap = snapshot(node("n1", taints=[taint]), node("n2"), node("n3"), node("n4", cordoned=True))
    assert refused(snap, pod(nodeSelector={"disk": "1"})) == (
        "0/4 nodes are available: 1 node(s) had untolerated taint {k: v}, "
        "1 node(s) were unschedulable, 2 node(s) didn't match Pod's node affinity/selector."
    )
    tolerant = pod(nodeSelector={"disk": "1"}, tolerations=[{"key": "k", "operator": "Exists"}])
    assert place(snap, tolerant) == "n1"


def test_no_nodes() -> None:
    assert refused(Snapshot(), pod()) == "no nodes available to schedule pods"


def test_host_ports_and_pod_limit() -> None:
    snap = snapshot(node("n1", pods="2"))
    place(snap, pod(containers=PORT))
    assert "free ports" in refused(snap, pod(containers=PORT))
    other = pod()
    place(snap, other)
    assert refused(snap, pod()) == "0/1 nodes are available: 1 Too many pods."
    snap.remove(other.metadata.uid)
    place(snap, pod())


def test_anti_affinity_holds_both_ways() -> None:
    snap = three()
    assert {place(snap, pod(affinity=anti("web"))) for _ in range(3)} == {"n1", "n2", "n3"}
    assert "3 node(s) didn't match pod anti-affinity rules" in refused(
        snap, pod(affinity=anti("web"))
    )
    assert "existing pods anti-affinity" in refused(snap, pod())
    place(snap, pod("other"))


def test_anti_affinity_by_zone() -> None:
    snap = three()
    zones = {snap.topology_of(place(snap, pod(affinity=anti("web", ZONE))), ZONE) for _ in "12"}
    assert zones == {"a", "b"}
    refused(snap, pod(affinity=anti("web", ZONE)))


def test_affinity_follows_and_the_first_of_a_group_may_start() -> None:
    snap = three()
    home = place(snap, pod("db", affinity=near("db")))
    assert {place(snap, pod("db", affinity=near("db"))) for _ in range(3)} == {home}
    assert place(snap, pod("web", affinity=near("db"))) == home


def test_spread_constraint_is_hard() -> None:
    constraint = {
        "maxSkew": 1,
        "topologyKey": ZONE,
        "whenUnsatisfiable": "DoNotSchedule",
        "labelSelector": {"matchLabels": {"app": "web"}},
    }
    snap = snapshot(node("n1", "a"), node("n2", "b", pods="1"))
    for _ in range(3):
        place(snap, pod(topologySpreadConstraints=[constraint]))
    message = refused(snap, pod(topologySpreadConstraints=[constraint]))
    assert "1 node(s) didn't match pod topology spread constraints" in message
    assert "1 Too many pods" in message


def test_preferences_win_over_spreading() -> None:
    wish = {
        "nodeAffinity": {
            "preferredDuringSchedulingIgnoredDuringExecution": [
                {
                    "weight": 1,
                    "preference": {
                        "matchExpressions": [{"key": "disk", "operator": "In", "values": ["3"]}]
                    },
                }
            ]
        }
    }
    snap = three()
    assert {place(snap, pod(owner="rs", affinity=wish)) for _ in range(3)} == {"n3"}
    soft = {"key": "x", "effect": "PreferNoSchedule"}
    snap.set_node(node("n3", "b", taints=[soft]))
    assert place(snap, pod(affinity=wish)) != "n3"


def test_requests_take_the_peak_of_init_containers() -> None:
    one = pod(
        containers=requests(cpu="1"),
        initContainers=[
            {"name": "s", "restartPolicy": "Always", "resources": {"requests": {"cpu": "500m"}}},
            {"name": "i", "resources": {"requests": {"cpu": "2"}}},
        ],
    )
    assert pod_requests(one.spec)["cpu"] == 2500


@pytest.mark.parametrize(
    "spec",
    [
        {},
        {
            "affinity": {
                "podAntiAffinity": {
                    "preferredDuringSchedulingIgnoredDuringExecution": [
                        {"weight": 1, "podAffinityTerm": term("web")}
                    ]
                }
            }
        },
    ],
    ids=["plain", "anti-affinity"],
)
def test_a_thousand_pods_on_four_nodes_are_quick(spec: dict[str, Any]) -> None:
    snap = snapshot(*(node(f"n{i}", "ab"[i % 2], pods="500") for i in range(4)))
    pods = [pod(owner="rs", **spec) for _ in range(1000)]
    start = time.process_time()
    where = Counter(place(snap, one) for one in pods)
    assert time.process_time() - start < 0.6  # 0.05 s on the machine it was written on
    assert set(where.values()) == {250}
