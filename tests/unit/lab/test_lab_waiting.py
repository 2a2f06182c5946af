"""What a lab still waits for."""

from __future__ import annotations

from typing import Any

import msgspec

from podwire.lab.waiting import evaluate_readiness
from podwire.objects.apps import DaemonSet
from podwire.objects.core import Node


def node(name: str, **spec: Any) -> Node:
    ready = [{"type": "Ready", "status": "True"}]
    raw = {
        "metadata": {"name": name, "labels": {"disk": name[-1]}},
        "spec": spec,
        "status": {"conditions": ready},
    }
    return msgspec.convert(raw, Node)


def daemons(ready: int, **spec: Any) -> DaemonSet:
    """Every pod it knows to be wanted is Ready."""
    raw = {
        "metadata": {"name": "agent", "namespace": "ns", "generation": 1},
        "spec": {"template": {"spec": spec}},
        "status": {
            "observedGeneration": 1,
            "desiredNumberScheduled": ready,
            "numberReady": ready,
        },
    }
    return msgspec.convert(raw, DaemonSet)


def missing(daemon_set: DaemonSet, *nodes: Node) -> tuple[str, ...]:
    names = [each.metadata.name for each in nodes]
    return evaluate_readiness(names, iter(nodes), (), (), (daemon_set,), ()).missing


def test_a_daemon_set_is_not_ready_while_it_has_not_seen_a_new_node() -> None:
    two = (node("node-1"), node("node-2"))
    assert missing(daemons(2), *two) == ()
    assert missing(daemons(2), *two, node("node-3")) == ("daemonset ns/agent: 2 of 3 ready",)


def test_nodes_that_do_not_suit_are_not_waited_for() -> None:
    other = node("node-3")
    tainted = node("node-4", taints=[{"key": "k", "effect": "NoSchedule"}])
    picky = daemons(1, nodeSelector={"disk": "1"})
    assert missing(picky, node("node-1"), other, tainted) == ()
    cordon = {"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}
    assert missing(daemons(1), node("node-1"), node("node-2", taints=[cordon])) == (
        "daemonset ns/agent: 1 of 2 ready",
    )
