"""Worlds of many pods and policies, always the same ones."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

from podwire.objects.meta import Key
from podwire.policy.model import (
    NamedPort,
    NetworkPeer,
    PodsPeer,
    Policy,
    PolicyRef,
    PortRange,
    Rule,
    Tier,
)
from podwire.policy.selector import EVERYTHING, Expression, Selector
from podwire.policy.world import NAME_LABEL, ContainerPort, NodeView, PodView, World, make_world

NODE = "node-0"
TCP, UDP = 6, 17
APPS = 10
LOCAL = 110


def select(**labels: str) -> Selector:
    return Selector(tuple(sorted(Expression(key, "In", (value,)) for key, value in labels.items())))


def namespace(name: str) -> Selector:
    return Selector((Expression(NAME_LABEL, "In", (name,)),))


def big_world(pods: int, namespaces: int) -> World:
    """`LOCAL` of the pods are on `NODE`, spread over namespaces and apps."""
    step = max(1, pods // LOCAL)
    views = [
        PodView(
            Key(f"ns{i % namespaces}", f"p{i}"),
            {"app": f"a{i // namespaces % APPS}", "release": f"r{i % 3}"},
            (IPv4Address(0x0AF40000 + i + 2),),
            NODE if i % step == 0 and i // step < LOCAL else f"node-{1 + i % 90}",
            (ContainerPort("web", TCP, 8080),),
        )
        for i in range(pods)
    ]
    return make_world(views, nodes=[NodeView(NODE, {}, (IPv4Address("172.30.0.2"),))])


def big_policies(count: int, namespaces: int) -> list[Policy]:
    """Each selects one app of a namespace and lets in two others, and a network by a named port."""
    return [_policy(i, namespaces) for i in range(count)]


def _policy(i: int, namespaces: int) -> Policy:
    home, number = f"ns{i % namespaces}", i // namespaces
    ref = PolicyRef("NetworkPolicy", home, f"policy-{number}")
    neighbour = namespace(f"ns{(i + 7) % namespaces}")
    peers = (
        PodsPeer(select(app=f"a{(number + 1) % APPS}"), home),
        PodsPeer(select(app="a3"), namespaces=neighbour),
    )
    network = NetworkPeer(IPv4Network(f"198.51.{i % 200}.0/24"))
    rules = (
        Rule(
            ref,
            "ingress",
            0,
            peers=peers,
            ports=(PortRange(TCP, 8080, 8080), PortRange(UDP, 53, 53)),
        ),
        Rule(ref, "ingress", 1, peers=(network,), ports=(NamedPort("web", TCP),)),
    )
    subject = PodsPeer(select(app=f"a{number % APPS}"), home)
    return Policy(ref, Tier.NETWORK_POLICY, subject, rules, (), frozenset({"ingress"}))


def one_more(i: int, namespaces: int) -> Policy:
    """A policy more for an app: whoever carries a release may come, on a port of its own."""
    home = f"ns{i % namespaces}"
    ref = PolicyRef("NetworkPolicy", home, f"more-{i}")
    peers = (PodsPeer(select(release="r1"), namespaces=EVERYTHING),)
    ports = (PortRange(TCP, 9000 + i, 9000 + i),)
    rule = Rule(ref, "ingress", 0, peers=peers, ports=ports)
    subject = PodsPeer(select(app=f"a{i % APPS}"), home)
    return Policy(ref, Tier.NETWORK_POLICY, subject, (rule,), (), frozenset({"ingress"}))


def stacked(count: int, client: str, server: str, port: int) -> tuple[World, list[Policy]]:
    """`count` policies select the server; only the last one lets the client in."""
    pods = [
        PodView(Key("x", "server"), {"app": "server"}, (IPv4Address(server),), NODE),
        PodView(Key("x", "client"), {"app": "client"}, (IPv4Address(client),), NODE),
    ]
    policies = []
    for i in range(count):
        ref = PolicyRef("NetworkPolicy", "x", f"policy-{i:04}")
        app = "client" if i == count - 1 else f"other-{i}"
        rule = Rule(
            ref,
            "ingress",
            0,
            peers=(PodsPeer(select(app=app), "x"),),
            ports=(PortRange(TCP, port, port),),
        )
        subject = PodsPeer(select(app="server"), "x")
        policies.append(
            Policy(ref, Tier.NETWORK_POLICY, subject, (rule,), (), frozenset({"ingress"}))
        )
    return make_world(pods), policies
