"""Whether a node takes a pod: every refusal with upstream's words, and what is counted."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from podwire.objects.core import Node, Pod
from podwire.runtime.admission import Admission, Refusal, Taken, claim_of, judge

TAINT = {"key": "k", "value": "v", "effect": "NoExecute"}
PORTS = "node(s) didn't have free ports for the requested pod ports"


def a_node(*, labels: Any = None, taints: Any = (), **allocatable: str) -> Node:
    raw = {
        "metadata": {"name": "n1", "labels": labels or {"disk": "ssd"}},
        "spec": {"taints": list(taints)},
        "status": {"allocatable": {"cpu": "2", "memory": "2Ki", "pods": "3", **allocatable}},
    }
    return msgspec.convert(raw, Node)


def a_pod(uid: str = "u", *, labels: Any = None, **spec: Any) -> Pod:
    meta = {"name": uid, "namespace": "ns", "uid": uid, "labels": labels or {}}
    spec = {"nodeName": "n1", "containers": [{"name": "c"}], **spec}
    return msgspec.convert({"metadata": meta, "spec": spec}, Pod)


def port(number: int, ip: str = "", protocol: str = "TCP", **more: Any) -> list[dict[str, Any]]:
    declared = {"containerPort": number, "hostPort": number, "hostIP": ip, "protocol": protocol}
    return [{"name": "c", "ports": [declared], **more}]


def needs(**requests: str) -> list[dict[str, Any]]:
    return [{"name": "c", "resources": {"requests": requests}}]


def taken_by(*pods: Pod) -> Taken:
    taken = Taken()
    for pod in pods:
        taken.add(claim_of(pod))
    return taken


@pytest.mark.parametrize(
    ("spec", "reason", "message"),
    [
        (
            {"nodeSelector": {"disk": "hdd"}},
            "NodeAffinity",
            "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector",
        ),
        (
            {"nodeName": "n2"},
            "NodeName",
            "Predicate NodeName failed: node(s) didn't match the requested node name",
        ),
        ({"containers": port(80)}, "NodePorts", f"Predicate NodePorts failed: {PORTS}"),
        (
            {"containers": needs(cpu="1500m")},
            "OutOfcpu",
            "Node didn't have enough resource: cpu, requested: 1500, used: 1000, capacity: 2000",
        ),
        (
            {"containers": needs(memory="2Ki")},
            "OutOfmemory",
            "Node didn't have enough resource: memory, requested: 2048, used: 1024, capacity: 2048",
        ),
        (
            {"os": {"name": "windows"}},
            "PodOSNotSupported",
            "Failed to admit pod as the OS field doesn't match node OS",
        ),
    ],
)
def test_refusals(spec: dict[str, Any], reason: str, message: str) -> None:
    first = a_pod(
        "first", containers=port(80, resources={"requests": {"cpu": "1", "memory": "1Ki"}})
    )
    assert judge(a_pod(**spec), a_node(), taken_by(first)) == [Refusal(reason, message)]


def test_a_pod_label_for_another_system() -> None:
    (refusal,) = judge(a_pod(labels={"kubernetes.io/os": "windows"}), a_node(), Taken())
    assert refusal.reason == "PodOSSelectorNodeLabelDoesNotMatch"


def test_a_node_full_of_pods() -> None:
    others = taken_by(*(a_pod(str(i)) for i in range(3)))
    text = "Node didn't have enough resource: pods, requested: 1, used: 3, capacity: 3"
    assert judge(a_pod(), a_node(), others) == [Refusal("OutOfpods", text)]


def test_reasons_come_in_upstreams_order() -> None:
    bad = a_pod(nodeSelector={"disk": "hdd"}, containers=needs(cpu="3"))
    assert [r.reason for r in judge(bad, a_node(taints=[TAINT]), Taken())] == [
        "OutOfcpu",
        "NodeAffinity",
        "TaintToleration",
    ]


@pytest.mark.parametrize(
    ("effect", "tolerations", "fits"),
    [
        ("NoExecute", [], False),
        ("NoExecute", [{"key": "k", "operator": "Exists"}], True),
        ("NoSchedule", [], True),
    ],
)
def test_only_no_execute_matters(effect: str, tolerations: Any, fits: bool) -> None:
    node = a_node(taints=[{**TAINT, "effect": effect}])
    assert (judge(a_pod(tolerations=tolerations), node, Taken()) == []) == fits


@pytest.mark.parametrize(
    ("one", "other", "clash"),
    [
        (port(80), port(80), True),
        (port(80), port(81), False),
        (port(80), port(80, protocol="UDP"), False),
        (port(80, "10.0.0.1"), port(80), True),
        (port(80, "10.0.0.1"), port(80, "10.0.0.2"), False),
    ],
)
def test_host_ports(one: Any, other: Any, clash: bool) -> None:
    refusals = judge(a_pod(containers=one), a_node(), taken_by(a_pod("o", containers=other)))
    assert [r.reason for r in refusals] == (["NodePorts"] if clash else [])


def test_ports_of_sidecars_count_those_of_init_containers_do_not() -> None:
    sidecar = port(80, restartPolicy="Always")
    assert judge(a_pod(initContainers=sidecar), a_node(), taken_by(a_pod("o", containers=port(80))))
    assert not judge(a_pod(initContainers=port(80)), a_node(), taken_by(a_pod(containers=port(80))))


def test_resources_the_node_does_not_know_are_not_its_business() -> None:
    gpu = {"containers": needs(**{"example.com/gpu": "1"})}
    assert judge(a_pod(**gpu), a_node(), Taken()) == []
    (refusal,) = judge(a_pod(**gpu), a_node(**{"example.com/gpu": "0"}), Taken())
    assert refusal.reason == "OutOfexample.com/gpu"


class Nodes:
    """The node as last seen, and as the API has it now."""

    def __init__(self, seen: Node, now: Node) -> None:
        self.node: Node | None = seen
        self._now = now
        self.fetched = 0

    async def fetch(self) -> Node:
        self.fetched += 1
        return self._now


def reason(admission: Admission, pod: Pod) -> str:
    refusal = asyncio.run(admission.admit(pod))
    return refusal.reason if refusal is not None else ""


def test_the_later_pod_is_refused_until_the_first_is_gone() -> None:
    admission = Admission(Nodes(a_node(), a_node()))
    first, second = a_pod("1", containers=port(80)), a_pod("2", containers=port(80))
    assert [reason(admission, p) for p in (first, second, first)] == ["", "NodePorts", ""]
    admission.release("1")
    admission.release("1")
    assert reason(admission, second) == ""


def test_what_was_admitted_before_is_kept_and_counted() -> None:
    admission = Admission(Nodes(a_node(taints=[TAINT]), a_node()))
    old = a_pod("old", containers=port(80))
    admission.keep(old)
    assert reason(admission, old) == ""
    tolerant = {"tolerations": [{"operator": "Exists"}]}
    assert reason(admission, a_pod("new", containers=port(80), **tolerant)) == "NodePorts"
    assert set(admission.claims) == {"old"}


def test_a_label_just_set_is_looked_for_before_a_refusal() -> None:
    nodes = Nodes(a_node(labels={"a": "b"}), a_node())
    assert reason(Admission(nodes), a_pod(nodeSelector={"disk": "ssd"})) == ""
    assert nodes.fetched == 1
    full = a_pod(nodeSelector={"disk": "hdd"}, containers=needs(cpu="9"))
    assert reason(Admission(nodes), full) == "OutOfcpu"
    assert nodes.fetched == 1
