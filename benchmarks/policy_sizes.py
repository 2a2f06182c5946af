"""Worlds of many pods and policies, always the same ones: as objects and as what they mean."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Address
from typing import Any

import msgspec

from nodeagent import NODE, NODE_ADDRESS
from podwire.objects.meta import Key
from podwire.objects.policy import NetworkPolicy, PeerPod
from podwire.policy.model import Policy
from podwire.policy.parse import parse_network_policy
from podwire.policy.world import NAME_LABEL, NodeView, PodView, World, make_world, view_pod

APPS = 10
LOCAL = 110
_NODES = 90


def pod_address(i: int) -> str:
    return str(IPv4Address(0x0AF40000 + i + 2))


def local_pods(pods: int) -> Iterator[int]:
    """Which of them are on `NODE`, spread over namespaces and apps."""
    step = max(1, pods // LOCAL)
    return iter(range(0, min(pods, step * LOCAL), step))


def raw_pod(i: int, namespaces: int, local: bool) -> dict[str, Any]:
    port = {"name": "web", "protocol": "TCP", "containerPort": 8080}
    return {
        "metadata": {
            "name": f"p{i}",
            "namespace": f"ns{i % namespaces}",
            "labels": {"app": f"a{i // namespaces % APPS}", "release": f"r{i % 3}"},
        },
        "spec": {
            "nodeName": NODE if local else f"node-{1 + i % _NODES}",
            "containers": [{"name": "c", "image": "nginx", "ports": [port]}],
        },
    }


def raw_policy(i: int, namespaces: int) -> dict[str, Any]:
    """Selects one app of a namespace and lets in two others, and a network by a named port."""
    number = i // namespaces
    neighbour = {"matchLabels": {NAME_LABEL: f"ns{(i + 7) % namespaces}"}}
    peers = [
        {"podSelector": _labels(app=f"a{(number + 1) % APPS}")},
        {"podSelector": _labels(app="a3"), "namespaceSelector": neighbour},
    ]
    ports = [{"port": 8080}, {"protocol": "UDP", "port": 53}]
    network = {"ipBlock": {"cidr": f"198.51.{i % 200}.0/24"}}
    return _raw(
        f"ns{i % namespaces}",
        f"policy-{number}",
        f"a{number % APPS}",
        [{"from": peers, "ports": ports}, {"from": [network], "ports": [{"port": "web"}]}],
    )


def raw_one_more(i: int, pods: int, namespaces: int) -> dict[str, Any]:
    """For the app of a pod of `NODE`: whoever carries a release may come, on a port of its own."""
    chosen = [*local_pods(pods)][i % LOCAL]
    pod = raw_pod(chosen, namespaces, local=True)["metadata"]
    peer = {"podSelector": _labels(release="r1"), "namespaceSelector": {}}
    rule = {"from": [peer], "ports": [{"port": 9000 + i}]}
    return _raw(pod["namespace"], f"more-{i}", pod["labels"]["app"], [rule])


def _labels(**labels: str) -> dict[str, Any]:
    return {"matchLabels": labels}


def _raw(namespace: str, name: str, app: str, rules: list[Any]) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"podSelector": _labels(app=app), "policyTypes": ["Ingress"], "ingress": rules},
    }


# --- what they mean -------------------------------------------------------------------------------


def big_world(pods: int, namespaces: int) -> World:
    here = set(local_pods(pods))
    views = []
    for i in range(pods):
        pod = msgspec.convert(raw_pod(i, namespaces, i in here), PeerPod)
        view = view_pod(pod, [pod_address(i)])
        assert view is not None
        views.append(view)
    return make_world(views, nodes=[NodeView(NODE, {}, (IPv4Address(NODE_ADDRESS),))])


def big_policies(count: int, namespaces: int) -> list[Policy]:
    return [_parse(raw_policy(i, namespaces)) for i in range(count)]


def one_more(i: int, pods: int, namespaces: int) -> Policy:
    return _parse(raw_one_more(i, pods, namespaces))


def _parse(raw: dict[str, Any]) -> Policy:
    return parse_network_policy(msgspec.convert(raw, NetworkPolicy))


def stacked(count: int, client: str, server: str, port: int) -> tuple[World, list[Policy]]:
    """`count` policies select the server; only the last one lets the client in."""
    pods = [
        PodView(Key("x", "server"), {"app": "server"}, (IPv4Address(server),), NODE),
        PodView(Key("x", "client"), {"app": "client"}, (IPv4Address(client),), NODE),
    ]
    policies = []
    for i in range(count):
        app = "client" if i == count - 1 else f"other-{i}"
        rule = {"from": [{"podSelector": _labels(app=app)}], "ports": [{"port": port}]}
        policies.append(_parse(_raw("x", f"policy-{i:04}", "server", [rule])))
    return make_world(pods), policies
