"""Objects to policies: what is defaulted, what is the same, what is refused and where."""

# Each table row is one object; wrapping would tear it apart.
# ruff: noqa: E501

from __future__ import annotations

from ipaddress import ip_network
from typing import Any

import msgspec
import pytest
import yaml
from policy_worlds import make_admin_policy, make_cluster_policy, make_network_policy, parse_policy

from podwire.errors import PolicyError
from podwire.objects.policy import ClusterPolicy
from podwire.policy.model import (
    DomainPeer,
    NamedPort,
    NetworkPeer,
    NodesPeer,
    PodsPeer,
    Policy,
    PortRange,
    Tier,
    in_order,
)
from podwire.policy.parse_cluster import parse_cluster_policy
from podwire.policy.selector import EVERYTHING, Expression, Selector

TCP, UDP, SCTP = 6, 17, 132
A_IS_B = Selector((Expression("a", "In", ("b",)),))


def np(spec: str) -> Policy:
    return parse_policy(make_network_policy("x", "p", **yaml.safe_load("{" + spec + "}")))


def cnp(spec: str) -> Policy:
    raw = make_cluster_policy("p")
    raw["spec"].update(yaml.safe_load("{" + spec + "}"))
    return parse_policy(raw)


def old(kind: str, spec: str) -> Policy:
    return parse_policy(make_admin_policy(kind, "default", **yaml.safe_load("{" + spec + "}")))


# --- NetworkPolicy ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "isolates"),
    [
        ("", {"ingress"}),
        ("policyTypes: null", {"ingress"}),
        ("policyTypes: []", {"ingress"}),
        ("egress: null", {"ingress"}),
        ("egress: []", {"ingress"}),
        ("egress: [{}]", {"ingress", "egress"}),
        ("policyTypes: [], egress: [{}]", {"ingress", "egress"}),
        ("policyTypes: [Ingress], egress: [{}]", {"ingress"}),
        ("policyTypes: [Egress], ingress: [{}]", {"egress"}),
        ("policyTypes: [Ingress, Egress]", {"ingress", "egress"}),
    ],
)
def test_isolation(spec: str, isolates: set[str]) -> None:
    policy = np(spec)
    assert policy.isolates == isolates
    assert bool(policy.egress) <= ("egress" in isolates)
    assert bool(policy.ingress) <= ("ingress" in isolates)


def test_a_policy_is_of_its_namespace() -> None:
    policy = np("podSelector: {matchLabels: {a: b}}")
    assert (policy.tier, policy.subject) == (Tier.NETWORK_POLICY, PodsPeer(A_IS_B, "x"))
    raw = make_network_policy("", "p")
    assert parse_policy(raw).ref.namespace == "default"


@pytest.mark.parametrize("text", ["", "from: null", "from: []"])
def test_no_peers_are_everybody(text: str) -> None:
    assert np(f"ingress: [{{{text}}}]").ingress[0].peers is None


@pytest.mark.parametrize("text", ["", "ports: null", "ports: []"])
def test_no_ports_are_all(text: str) -> None:
    assert np(f"ingress: [{{{text}}}]").ingress[0].ports is None


PEERS: list[tuple[str, object]] = [
    ("podSelector: {}", PodsPeer(EVERYTHING, "x")),
    ("podSelector: {}, namespaceSelector: null", PodsPeer(EVERYTHING, "x")),
    ("podSelector: {matchLabels: {a: b}}", PodsPeer(A_IS_B, "x")),
    ("podSelector: {matchLabels: null, matchExpressions: null}", PodsPeer(EVERYTHING, "x")),
    ("namespaceSelector: {}", PodsPeer(EVERYTHING, namespaces=EVERYTHING)),
    ("namespaceSelector: {}, podSelector: null", PodsPeer(EVERYTHING, namespaces=EVERYTHING)),
    (
        "namespaceSelector: {matchLabels: {a: b}}, podSelector: {}",
        PodsPeer(EVERYTHING, namespaces=A_IS_B),
    ),
    (
        "namespaceSelector: {}, podSelector: {matchLabels: {a: b}}",
        PodsPeer(A_IS_B, namespaces=EVERYTHING),
    ),
    ("ipBlock: {cidr: 10.1.2.3/8}", NetworkPeer(ip_network("10.0.0.0/8"))),
    ("ipBlock: {cidr: 10.0.0.0/8, except: null}", NetworkPeer(ip_network("10.0.0.0/8"))),
    (
        "ipBlock: {cidr: 10.0.0.0/8, except: [10.9.0.0/16]}",
        NetworkPeer(ip_network("10.0.0.0/8"), (ip_network("10.9.0.0/16"),)),
    ),
    (
        "ipBlock: {cidr: '2001:db8::/32'}, podSelector: null",
        NetworkPeer(ip_network("2001:db8::/32")),
    ),
]


@pytest.mark.parametrize(("text", "peer"), PEERS)
@pytest.mark.parametrize(("direction", "word"), [("ingress", "from"), ("egress", "to")])
def test_peers(text: str, peer: object, direction: Any, word: str) -> None:
    assert np(f"{direction}: [{{{word}: [{{{text}}}]}}]").rules(direction)[0].peers == (peer,)


PORTS: list[tuple[str, object]] = [
    ("", PortRange(TCP)),
    ("protocol: null, port: null", PortRange(TCP)),
    ("protocol: UDP", PortRange(UDP)),
    ("port: 80", PortRange(TCP, 80, 80)),
    ("port: 80, endPort: null", PortRange(TCP, 80, 80)),
    ("port: 80, endPort: 80", PortRange(TCP, 80, 80)),
    ("protocol: SCTP, port: 1, endPort: 65535", PortRange(SCTP, 1, 65535)),
    ("port: web", NamedPort("web", TCP)),
    ("protocol: UDP, port: dns", NamedPort("dns", UDP)),
    ("port: '80'", NamedPort("80", TCP)),
]


@pytest.mark.parametrize(("text", "port"), PORTS)
def test_ports(text: str, port: object) -> None:
    assert np(f"ingress: [{{ports: [{{{text}}}]}}]").ingress[0].ports == (port,)


def test_rules_know_their_place() -> None:
    policy = np("ingress: [{}, null, {ports: [{port: 80}]}]")
    assert [rule.path for rule in policy.ingress] == [f"spec.ingress[{i}]" for i in range(3)]
    assert policy.ingress[1].peers is None


BAD_NP = [
    ("policyTypes: [Ingress, Both]", "spec.policyTypes[1]", "'Both': want Ingress or Egress"),
    (
        "ingress: [{from: [{}]}]",
        "spec.ingress[0].from[0]",
        "must specify a peer: podSelector, namespaceSelector, ipBlock",
    ),
    (
        "egress: [{}, {to: [{podSelector: null}]}]",
        "spec.egress[1].to[0]",
        "must specify a peer: podSelector, namespaceSelector, ipBlock",
    ),
    (
        "ingress: [{from: [{podSelector: {}, ipBlock: {cidr: 10.0.0.0/8}}]}]",
        "spec.ingress[0].from[0]",
        "podSelector or namespaceSelector may not be specified when ipBlock is specified",
    ),
    (
        "ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/33}}]}]",
        "spec.ingress[0].from[0].ipBlock.cidr",
        "'10.0.0.0/33': must be a CIDR, e.g. 10.9.8.0/24",
    ),
    (
        "ingress: [{from: [{ipBlock: {}}]}]",
        "spec.ingress[0].from[0].ipBlock.cidr",
        "'': must be a CIDR, e.g. 10.9.8.0/24",
    ),
    (
        "ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.0.0.0/8]}}]}]",
        "spec.ingress[0].from[0].ipBlock.except[0]",
        "'10.0.0.0/8': must be a strict subset of `cidr`",
    ),
    (
        "ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16, 11.0.0.0/16]}}]}]",
        "spec.ingress[0].from[0].ipBlock.except[1]",
        "'11.0.0.0/16': must be a strict subset of `cidr`",
    ),
    (
        "ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: ['2001:db8::/64']}}]}]",
        "spec.ingress[0].from[0].ipBlock.except[0]",
        "'2001:db8::/64': must be a strict subset of `cidr`",
    ),
    (
        "ingress: [{ports: [{protocol: tcp}]}]",
        "spec.ingress[0].ports[0].protocol",
        "'tcp': want TCP, UDP or SCTP",
    ),
    (
        "ingress: [{ports: [{port: 0}]}]",
        "spec.ingress[0].ports[0].port",
        "0: must be between 1 and 65535, inclusive",
    ),
    (
        "ingress: [{ports: [{port: 80, endPort: 65536}]}]",
        "spec.ingress[0].ports[0].endPort",
        "65536: must be between 1 and 65535, inclusive",
    ),
    (
        "ingress: [{ports: [{port: 80, endPort: 79}]}]",
        "spec.ingress[0].ports[0].endPort",
        "79: must be greater than or equal to `port`",
    ),
    (
        "ingress: [{ports: [{port: web, endPort: 79}]}]",
        "spec.ingress[0].ports[0].endPort",
        "may not be specified when `port` is non-numeric",
    ),
    (
        "ingress: [{ports: [{endPort: 79}]}]",
        "spec.ingress[0].ports[0].endPort",
        "may not be specified when `port` is not specified",
    ),
    (
        "podSelector: {matchExpressions: [{key: a, operator: Is}]}",
        "spec.podSelector",
        "'Is' is not a valid label selector operator",
    ),
    (
        "ingress: [{from: [{podSelector: {matchExpressions: [{key: a, operator: In}]}}]}]",
        "spec.ingress[0].from[0].podSelector",
        "In of 'a' needs values",
    ),
    (
        "ingress: [{from: [{namespaceSelector: {matchExpressions: [{key: a, operator: NotIn, values: []}]}}]}]",
        "spec.ingress[0].from[0].namespaceSelector",
        "NotIn of 'a' needs values",
    ),
]


@pytest.mark.parametrize(("spec", "path", "text"), BAD_NP)
def test_bad_network_policies(spec: str, path: str, text: str) -> None:
    with pytest.raises(PolicyError) as caught:
        np(spec)
    assert str(caught.value) == f"NetworkPolicy x/p: {path}: {text}"
    assert (caught.value.path, caught.value.message) == (path, text)


@pytest.mark.parametrize(("value", "staged"), [("true", True), ("false", False), ("yes", False)])
def test_the_stage_annotation(value: str, staged: bool) -> None:
    raw = make_network_policy("x", "p")
    raw["metadata"]["annotations"] = {"policy.podwire.dev/stage": value}
    assert parse_policy(raw).staged == staged


# --- the cluster's policies ---------------------------------------------------------------------


def test_tiers_and_priorities() -> None:
    assert (cnp("tier: Baseline, priority: 7").tier, cnp("priority: 7").priority) == (
        Tier.BASELINE,
        7,
    )
    assert old("AdminNetworkPolicy", "priority: 5").tier is Tier.ADMIN
    assert old("BaselineAdminNetworkPolicy", "").tier is Tier.BASELINE
    assert cnp("ingress: null, egress: []").isolates == frozenset()


@pytest.mark.parametrize(
    "pods",
    [
        "namespaceSelector: {}, podSelector: {}",
        "podSelector: {}",
        "namespaceSelector: {}",
        "namespaceSelector: null, podSelector: null",
        "",
    ],
)
def test_the_old_kinds_selectors_left_out_select_everything(pods: str) -> None:
    said = old("AdminNetworkPolicy", f"priority: 1, subject: {{pods: {{{pods}}}}}")
    want = "priority: 1, subject: {pods: {namespaceSelector: {}, podSelector: {}}}"
    assert said.subject == old("AdminNetworkPolicy", want).subject


def test_kinds_of_lists_are_told() -> None:
    raw = make_admin_policy("AdminNetworkPolicy", "p", priority=5)
    del raw["kind"]
    view = msgspec.convert(raw, ClusterPolicy)
    assert parse_cluster_policy(view, "AdminNetworkPolicy").tier is Tier.ADMIN


SUBJECTS: list[tuple[str, object]] = [
    ("namespaces: {}", PodsPeer(EVERYTHING, namespaces=EVERYTHING)),
    ("namespaces: {matchLabels: {a: b}}, pods: null", PodsPeer(EVERYTHING, namespaces=A_IS_B)),
    (
        "pods: {podSelector: {matchLabels: {a: b}}, namespaceSelector: {}}",
        PodsPeer(A_IS_B, namespaces=EVERYTHING),
    ),
    ("pods: {podSelector: {matchLabels: {a: b}}}", PodsPeer(A_IS_B, namespaces=EVERYTHING)),
]


@pytest.mark.parametrize(("text", "subject"), SUBJECTS)
def test_subjects(text: str, subject: object) -> None:
    assert cnp(f"subject: {{{text}}}").subject == subject


EGRESS_PEERS: list[tuple[str, tuple[object, ...]]] = [
    ("{namespaces: {}}", (PodsPeer(EVERYTHING, namespaces=EVERYTHING),)),
    ("{nodes: {matchLabels: {a: b}}}", (NodesPeer(A_IS_B),)),
    (
        "{networks: [10.0.0.0/8, '::/0']}",
        (NetworkPeer(ip_network("10.0.0.0/8")), NetworkPeer(ip_network("::/0"))),
    ),
    (
        "{domainNames: [Example.com., '*.example.org']}",
        (DomainPeer("example.com"), DomainPeer("*.example.org")),
    ),
    (
        "{nodes: {}}, {pods: {podSelector: {}}}",
        (NodesPeer(EVERYTHING), PodsPeer(EVERYTHING, namespaces=EVERYTHING)),
    ),
]


@pytest.mark.parametrize(("text", "peers"), EGRESS_PEERS)
def test_egress_peers(text: str, peers: tuple[object, ...]) -> None:
    assert cnp(f"egress: [{{action: Accept, to: [{text}]}}]").egress[0].peers == peers


PROTOCOLS: list[tuple[str, object]] = [
    ("tcp: {}", PortRange(TCP)),
    ("udp: {destinationPort: null}", PortRange(UDP)),
    ("tcp: {destinationPort: {number: 80}}", PortRange(TCP, 80, 80)),
    ("sctp: {destinationPort: {range: {start: 1, end: 9}}}", PortRange(SCTP, 1, 9)),
    ("destinationNamedPort: web", NamedPort("web")),
    ("destinationNamedPort: web, tcp: null", NamedPort("web")),
]


@pytest.mark.parametrize(("text", "port"), PROTOCOLS)
def test_protocols(text: str, port: object) -> None:
    policy = cnp(
        f"ingress: [{{action: Deny, from: [{{namespaces: {{}}}}], protocols: [{{{text}}}]}}]"
    )
    assert policy.ingress[0].ports == (port,)


ADMIN_PORTS: list[tuple[str, object]] = [
    ("portNumber: {port: 80}", PortRange(TCP, 80, 80)),
    ("portNumber: {protocol: UDP, port: 53}", PortRange(UDP, 53, 53)),
    ("portRange: {protocol: SCTP, start: 1, end: 9}", PortRange(SCTP, 1, 9)),
    ("namedPort: web", NamedPort("web")),
]


@pytest.mark.parametrize(("text", "port"), ADMIN_PORTS)
def test_admin_ports(text: str, port: object) -> None:
    policy = old(
        "AdminNetworkPolicy",
        f"priority: 1, ingress: [{{action: Allow, from: [{{namespaces: {{}}}}], ports: [{{{text}}}]}}]",
    )
    assert policy.ingress[0].action == "Accept"
    assert policy.ingress[0].ports == (port,)


@pytest.mark.parametrize(
    "text", ["", "protocols: null", "protocols: []", "ports: null", "ports: []"]
)
def test_no_protocols_are_all(text: str) -> None:
    assert (
        cnp(f"ingress: [{{action: Deny, from: [{{namespaces: {{}}}}], {text}}}]").ingress[0].ports
        is None
    )


UNKNOWN = [
    ("from: [{}]", "a peer of no field"),
    ("from: [{services: {}}]", "a peer of a later version"),
    ("from: [{namespaces: {}}, {services: {}}]", "one of two peers"),
    ("from: [{namespaces: {}, services: {}}]", "a known field beside an unknown one"),
    ("from: [{namespaces: {}}], protocols: [{}]", "a protocol of no field"),
    ("from: [{namespaces: {}}], protocols: [{icmp: {}}]", "a protocol of a later version"),
    ("from: [{namespaces: {}}], protocols: [{tcp: {}}, {icmp: {}}]", "one of two protocols"),
]


@pytest.mark.parametrize(("text", "what"), UNKNOWN)
def test_fail_closed(text: str, what: str) -> None:
    for action, closed in (
        ("Accept", ("Accept", ())),
        ("Deny", ("Deny", None)),
        ("Pass", ("Deny", None)),
    ):
        rule = cnp(f"ingress: [{{name: n, action: {action}, {text}}}]").ingress[0]
        assert (rule.action, rule.peers) == closed, what
        assert (rule.ports, rule.name) == (None, "n")


BAD_CNP = [
    ("tier: Middle", "spec.tier", "'Middle': want Admin or Baseline"),
    ("priority: 1001", "spec.priority", "1001: must be between 0 and 1000, inclusive"),
    ("priority: -1", "spec.priority", "-1: must be between 0 and 1000, inclusive"),
    ("subject: {}", "spec.subject", "want exactly one of namespaces, pods"),
    (
        "subject: {namespaces: {}, pods: {podSelector: {}}}",
        "spec.subject",
        "want exactly one of namespaces, pods",
    ),
    ("subject: {pods: {namespaceSelector: {}}}", "spec.subject.pods.podSelector", "is required"),
    (
        "ingress: [{action: Deny, from: [{nodes: {}}]}]",
        "spec.ingress[0].from[0].nodes",
        "is for egress only",
    ),
    (
        "ingress: [{action: Deny, from: [{namespaces: {}, pods: {podSelector: {}}}]}]",
        "spec.ingress[0].from[0]",
        "want exactly one of namespaces, pods, nodes, networks, domainNames",
    ),
    (
        "egress: [{action: Deny, to: [{networks: [10.0.0.0/8, bad]}]}]",
        "spec.egress[0].to[0].networks[1]",
        "'bad': must be a CIDR, e.g. 10.9.8.0/24",
    ),
    (
        "ingress: [{action: Deny, from: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {number: 0}}}]}]",
        "spec.ingress[0].protocols[0].tcp.destinationPort.number",
        "0: must be between 1 and 65535, inclusive",
    ),
    (
        "ingress: [{action: Deny, from: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {}}}]}]",
        "spec.ingress[0].protocols[0].tcp.destinationPort",
        "want exactly one of number, range",
    ),
    (
        "ingress: [{action: Deny, from: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {range: {start: 9, end: 9}}}}]}]",
        "spec.ingress[0].protocols[0].tcp.destinationPort.range",
        "start 9 must be less than end 9",
    ),
    (
        "ingress: [{action: Deny, from: [{namespaces: {}}], protocols: [{tcp: {}, udp: {}}]}]",
        "spec.ingress[0].protocols[0]",
        "want exactly one of tcp, udp, sctp, destinationNamedPort",
    ),
]


@pytest.mark.parametrize(("spec", "path", "text"), BAD_CNP)
def test_bad_cluster_policies(spec: str, path: str, text: str) -> None:
    with pytest.raises(PolicyError) as caught:
        cnp(spec)
    assert str(caught.value) == f"ClusterNetworkPolicy p: {path}: {text}"


BAD_OLD = [
    (
        "AdminNetworkPolicy",
        "priority: 1, ingress: [{action: Allow, from: [{namespaces: {}}], ports: [{}]}]",
        "spec.ingress[0].ports[0]",
        "want exactly one of portNumber, namedPort, portRange",
    ),
    (
        "AdminNetworkPolicy",
        "priority: 1, ingress: [{action: Allow, from: [{namespaces: {}}], ports: [{portNumber: {protocol: X, port: 1}}]}]",
        "spec.ingress[0].ports[0].portNumber.protocol",
        "'X': want TCP, UDP or SCTP",
    ),
]


@pytest.mark.parametrize(("kind", "spec", "path", "text"), BAD_OLD)
def test_bad_admin_policies(kind: str, spec: str, path: str, text: str) -> None:
    with pytest.raises(PolicyError) as caught:
        old(kind, spec)
    assert str(caught.value) == f"{kind} default: {path}: {text}"


def test_order_is_tier_priority_name() -> None:
    made = [
        parse_policy(make_cluster_policy("b", "Baseline", 0)),
        parse_policy(make_network_policy("x", "n")),
        parse_policy(make_cluster_policy("b", "Admin", 5)),
        parse_policy(make_admin_policy("AdminNetworkPolicy", "c", priority=5)),
        parse_policy(make_cluster_policy("a", "Admin", 5)),
        parse_policy(make_cluster_policy("z", "Admin", 1)),
    ]
    assert [policy.ref.name for policy in in_order(made)] == ["z", "a", "b", "c", "n", "b"]
