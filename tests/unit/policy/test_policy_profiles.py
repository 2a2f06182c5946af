"""Plugins are told apart where they differ, each cell has its source, and verdicts follow."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from podwire.objects.meta import Key
from podwire.policy.evaluate import Flow, Party, PolicySet, Semantics, evaluate
from podwire.policy.model import (
    Action,
    Direction,
    DomainPeer,
    NamedPort,
    NetworkPeer,
    NodesPeer,
    Peer,
    PodsPeer,
    Policy,
    PolicyRef,
    PortMatch,
    PortRange,
    Rule,
    Tier,
)
from podwire.policy.profiles import (
    CALICO,
    CILIUM,
    DEFAULT_PROFILE,
    OVN,
    PROFILES,
    QUESTIONS,
    Limits,
    Profile,
    honour,
)
from podwire.policy.selector import EVERYTHING
from podwire.policy.world import NodeView, PodView, make_world

README = Path(__file__).parents[3] / "src" / "podwire" / "policy" / "README.md"
NODE = NodeView("n1", {}, (ip_address("10.1.0.1"),))
POD = PodView(Key("x", "a"), {"app": "a"}, (ip_address("10.0.0.1"),), "n2")
OTHER = PodView(Key("x", "b"), {"app": "b"}, (ip_address("10.0.0.2"),), "n2")
HOST = PodView(Key("x", "h"), {}, (ip_address("10.1.0.1"),), "n1", host_network=True)
WORLD = make_world([POD, OTHER, HOST], nodes=[NODE])


def _policy(
    *,
    peers: tuple[Peer, ...] | None = None,
    ports: tuple[PortMatch, ...] | None = None,
    kind: str = "NetworkPolicy",
    action: Action = "Accept",
    direction: Direction = "ingress",
) -> Policy:
    plain = kind == "NetworkPolicy"
    ref = PolicyRef(kind, "x" if plain else "", "p")
    rule = Rule(ref, direction, 0, action, peers, ports)
    return Policy(
        ref,
        Tier.NETWORK_POLICY if plain else Tier.ADMIN,
        PodsPeer(namespace="x") if plain else PodsPeer(namespaces=EVERYTHING),
        ingress=(rule,) if direction == "ingress" else (),
        egress=(rule,) if direction == "egress" else (),
        isolates=frozenset({direction}) if plain else frozenset(),
    )


def _allows(policy: Policy, source: Party, semantics: Semantics, *, hairpin: bool = False) -> bool:
    flow = Flow(source, Party(POD.ips[0], POD), 6, 80, hairpin)
    return evaluate(flow, PolicySet([policy]), WORLD, semantics).allowed


# --- the data -----------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
def test_every_question_is_answered_with_a_source(profile: Profile) -> None:
    assert set(profile.cells) == set(QUESTIONS)
    assert all(cell.says and cell.source for cell in profile.cells.values())


def test_what_the_words_say_the_semantics_do() -> None:
    for profile in PROFILES.values():
        says = {question: cell.says for question, cell in profile.cells.items()}
        semantics, limits = profile.semantics, profile.limits
        assert says["ipBlock and pods"].startswith("yes") == semantics.ipblock_matches_pods
        assert says["ipBlock and nodes"].startswith("yes") == semantics.ipblock_matches_nodes
        assert says["Baseline"].startswith("yes") == semantics.baseline_per_direction
        judged = {"yes": ("egress", "ingress"), "egress only": ("egress",), "no": ()}
        word = next(w for w in judged if says["hairpin"].startswith(w))
        assert semantics.hairpin_judged == judged[word]
        assert says["SCTP"].startswith("yes") == limits.sctp
        assert says["endPort"].startswith("yes") == limits.end_port
        assert says["named ports"].startswith("every") == (limits.named_ports == "protocol")


def test_the_default_is_the_evaluators_own() -> None:
    assert DEFAULT_PROFILE.semantics == Semantics()
    policies = [_policy(ports=(NamedPort("web", 6), PortRange(132, 1, 9)))]
    assert honour(policies, DEFAULT_PROFILE) == (policies, [])


# --- semantics ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "pods", "nodes"),
    [
        (Party(OTHER.ips[0], OTHER), True, False),
        (Party(NODE.ips[0], None, NODE), False, True),
        (Party(HOST.ips[0], HOST, NODE), False, True),
        (Party(ip_address("10.9.9.9")), False, False),
    ],
)
def test_whom_an_ip_block_matches(source: Party, pods: bool, nodes: bool) -> None:
    policy = _policy(peers=(NetworkPeer(ip_network("10.0.0.0/8")),))
    assert _allows(policy, source, Semantics())
    assert _allows(policy, source, Semantics(ipblock_matches_pods=False)) != pods
    assert _allows(policy, source, Semantics(ipblock_matches_nodes=False)) != nodes


def test_hairpins_are_judged_per_direction() -> None:
    closed = replace(_policy(), ingress=())
    itself = Party(POD.ips[0], POD)
    for judged, allowed in ((("egress", "ingress"), False), (("egress",), True), ((), True)):
        semantics = Semantics(hairpin_judged=judged)  # type: ignore[arg-type]
        assert _allows(closed, itself, semantics, hairpin=True) == allowed
        assert _allows(closed, itself, semantics)


# --- limits -------------------------------------------------------------------------------------


def test_kinds_a_plugin_lacks_are_left_out_and_gated_ones_told() -> None:
    admin = _policy(kind="AdminNetworkPolicy")
    kept, found = honour([admin], CALICO)
    assert (kept, found[0].text) == ([], "AdminNetworkPolicy is not enforced at all")
    kept, found = honour([_policy(kind="ClusterNetworkPolicy")], CILIUM)
    assert len(kept) == 1
    assert found[0].only_maybe


def test_sctp_and_ranges_and_names() -> None:
    policy = _policy(ports=(PortRange(6, 80, 90), PortRange(132, 5, 5), NamedPort("web", 17)))
    limits = Limits(end_port=False, sctp=False, named_ports="protocol")
    (kept,), found = honour([policy], replace(DEFAULT_PROFILE, limits=limits))
    assert kept.ingress[0].ports == (PortRange(6, 80, 80), PortRange(17, 0, 65535))
    assert [(each.path, each.question) for each in found] == [
        ("spec.ingress[0].ports[0].endPort", "endPort"),
        ("spec.ingress[0].ports[1].protocol", "SCTP"),
        ("spec.ingress[0].ports[2].port", "named ports"),
    ]


def test_names_are_resolved_in_cluster_policies_of_ovn() -> None:
    policy = _policy(kind="AdminNetworkPolicy", ports=(NamedPort("web"),))
    assert honour([policy], OVN) == ([policy], [])


@pytest.mark.parametrize(
    ("action", "peers", "then"),
    [("Accept", (), "Accept"), ("Deny", None, "Deny"), ("Pass", None, "Deny")],
)
def test_unknown_peers_fail_closed(
    action: Action, peers: tuple[Peer, ...] | None, then: Action
) -> None:
    for peer in (NodesPeer(EVERYTHING), DomainPeer("a.example")):
        policy = _policy(
            kind="ClusterNetworkPolicy", peers=(peer,), action=action, direction="egress"
        )
        (kept,), found = honour([policy], CALICO)
        assert (kept.egress[0].peers, kept.egress[0].action) == (peers, then)
        assert found[0].path == "spec.egress[0].to"


@pytest.mark.parametrize(
    ("network", "holes", "told"),
    [
        ("0.0.0.0/0", (), True),
        ("10.3.0.0/16", (), True),
        ("203.0.113.0/24", (), False),
        ("0.0.0.0/0", ("10.0.0.0/8", "100.64.0.0/10", "172.16.0.0/12", "192.168.0.0/16"), False),
        ("::/0", (), True),
    ],
)
def test_ip_blocks_that_may_mean_pods_are_told(
    network: str, holes: tuple[str, ...], told: bool
) -> None:
    peer = NetworkPeer(ip_network(network), tuple(map(ip_network, holes)))
    kept, found = honour([_policy(peers=(peer,))], CILIUM)
    assert len(kept) == 1
    assert [each.only_maybe for each in found] == [True] * told


def test_the_readme_has_the_data() -> None:
    text = README.read_text()
    for question, words in QUESTIONS.items():
        says = " | ".join(profile.cells[question].says for profile in PROFILES.values())
        assert f"| {words} | {says} |" in text
