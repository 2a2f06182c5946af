"""Pods, nodes and namespaces as policies see them."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

import msgspec
import pytest
from policy_worlds import make_namespace, make_node, make_pod

from podwire.objects.core import Namespace, Node, Pod
from podwire.objects.meta import Key
from podwire.objects.policy import PeerPod
from podwire.policy.model import NamedPort, PortRange
from podwire.policy.world import (
    NAME_LABEL,
    LiveWorld,
    NodeView,
    PodView,
    make_world,
    owners_of,
    view_namespace,
    view_node,
    view_pod,
)


def pod(**more: Any) -> PodView:
    view = view_pod(msgspec.convert(make_pod("x", "a", ["10.244.1.2"], **more), PeerPod))
    assert view is not None
    return view


@pytest.mark.parametrize(
    ("phase", "there"),
    [
        ("Pending", True),
        ("Running", True),
        ("Unknown", True),
        ("Succeeded", False),
        ("Failed", False),
    ],
)
def test_pods_that_ended_are_not_there(phase: str, there: bool) -> None:
    raw = make_pod("x", "a", ["10.244.1.2"], phase=phase)
    assert (view_pod(msgspec.convert(raw, PeerPod)) is not None) == there


def test_both_views_of_a_pod_say_the_same() -> None:
    ports = [{"name": "web", "containerPort": 80}, {"containerPort": 81}]
    raw = make_pod("x", "a", ["10.244.1.2", "fd00::2"], {"a": "b"}, ports=ports)
    whole = raw | {
        "spec": raw["spec"] | {"containers": [{"name": "m", "image": "i", "ports": ports}]}
    }
    assert view_pod(msgspec.convert(raw, PeerPod)) == view_pod(msgspec.convert(whole, Pod))


def test_addresses_may_come_before_the_status() -> None:
    raw = msgspec.convert(make_pod("x", "a", []), PeerPod)
    view = view_pod(raw, ["10.244.1.9"])
    assert view is not None
    assert view.ips == (ip_address("10.244.1.9"),)


def test_named_ports() -> None:
    """By name, and by protocol where one is asked for; one name may be several numbers."""
    there = pod(
        ports=[
            {"name": "web", "containerPort": 80},
            {"name": "dns", "containerPort": 53, "protocol": "UDP"},
            {"name": "dns", "containerPort": 5353, "protocol": "TCP"},
            {"containerPort": 99},
        ],
        sidecarPorts=[{"name": "web", "containerPort": 8080}],
    )
    assert there.resolve(NamedPort("web")) == (PortRange(6, 80, 80), PortRange(6, 8080, 8080))
    assert there.resolve(NamedPort("dns")) == (PortRange(17, 53, 53), PortRange(6, 5353, 5353))
    assert there.resolve(NamedPort("dns", 6)) == (PortRange(6, 5353, 5353),)
    assert there.resolve(NamedPort("dns", 132)) == ()
    assert there.resolve(NamedPort("absent")) == ()


def test_init_containers_that_end_have_no_ports() -> None:
    raw = make_pod("x", "a", [], sidecarPorts=[{"name": "side", "containerPort": 1}])
    del raw["spec"]["initContainers"][0]["restartPolicy"]
    view = view_pod(msgspec.convert(raw, PeerPod))
    assert view is not None
    assert view.ports == ()


def test_a_node_is_all_its_addresses() -> None:
    raw = make_node("n", ["172.30.0.2", "192.0.2.2", "fd00:30::2"], {"a": "b"})
    raw["status"]["addresses"].append({"type": "ExternalIP", "address": "172.30.0.2"})
    wanted = tuple(map(ip_address, ("172.30.0.2", "192.0.2.2", "fd00:30::2")))
    assert view_node(msgspec.convert(raw, Node)) == NodeView("n", {"a": "b"}, wanted)


def test_namespaces_have_their_name_for_a_label() -> None:
    raw = make_namespace("x", {"a": "b", NAME_LABEL: "forged"})
    assert view_namespace(msgspec.convert(raw, Namespace)) == ("x", {"a": "b", NAME_LABEL: "x"})
    world = make_world([pod()], {"y": {}})
    assert world.namespaces == {"x": {NAME_LABEL: "x"}, "y": {NAME_LABEL: "y"}}


def test_whose_an_address_is() -> None:
    node = NodeView("node-1", {}, (ip_address("172.30.0.2"),))
    host = PodView(Key("x", "h"), ips=node.ips, node="node-1", host_network=True)
    there = make_world([pod(), host], nodes=[node])
    assert owners_of(there) == {ip_address("10.244.1.2"): pod(), ip_address("172.30.0.2"): node}


_X = ip_address("10.244.1.2")


def _at_x(name: str, **labels: str) -> PodView:
    return PodView(Key("x", name), labels, (_X,), "node-1")


def test_an_address_is_whose_who_came_to_it_last_whatever_is_told_of_those_before() -> None:
    live = LiveWorld()
    before, after = _at_x("before"), _at_x("after")
    live.set_pod(before)
    live.set_pod(after)
    assert live.owners[_X] is after
    assert not live.set_pod(before)
    assert live.set_pod(_at_x("before", app="web"))
    assert live.owners[_X] is after
    live.remove_pod(before.key)
    assert live.owners[_X] is after
    live.set_pod(before)
    live.remove_pod(before.key)
    assert live.owners[_X] is after, "one who came last and went leaves it to the one before"
    live.remove_pod(after.key)
    assert live.owners == {}


def test_a_pod_goes_before_a_node_with_its_address() -> None:
    live = LiveWorld()
    pod_, node = _at_x("a"), NodeView("node-1", {}, (_X,))
    live.set_pod(pod_)
    live.set_node(node)
    assert live.owners[_X] is pod_
    live.remove_pod(pod_.key)
    assert live.owners[_X] is node


def test_namespaces_that_are_gone_are_forgotten_with_their_last_pod() -> None:
    live = LiveWorld()
    live.set_namespace("x", {"team": "a"})
    live.set_pod(_at_x("a"))
    live.set_namespace("x", None)
    assert live.view().namespaces == {"x": {NAME_LABEL: "x"}}
    live.remove_pod(Key("x", "a"))
    live.set_namespace("y", {})
    live.set_namespace("y", None)
    assert live.view().namespaces == {}
