"""Rows and groups say for all ports and peers what `evaluate` says of one connection."""

from __future__ import annotations

import itertools
from ipaddress import ip_address, ip_network

from hypothesis import given
from hypothesis import strategies as st

from podwire.objects.meta import Key
from podwire.policy import ports
from podwire.policy.evaluate import Case, Flow, Party, Semantics, judge_selected, matches_peer
from podwire.policy.intervals import EMPTY, Intervals
from podwire.policy.model import (
    ICMP,
    NetworkPeer,
    NodesPeer,
    Peer,
    PodsPeer,
    Policy,
    PolicyRef,
    PortRange,
    Rule,
    Tier,
    in_order,
)
from podwire.policy.peers import PeerIndex
from podwire.policy.rows import judge_ports, outcome_at
from podwire.policy.selector import EVERYTHING, Expression, Selector
from podwire.policy.world import NodeView, PodView, make_world

POD = PodView(Key("shop", "web"), {"app": "web"})
PEER = Party(ip_address("192.0.2.7"))
_ranges = st.builds(
    lambda protocol, first, more: PortRange(protocol, first, min(first + more, 65535)),
    st.sampled_from([6, 17, 132]),
    st.integers(0, 8),
    st.integers(0, 5) | st.just(65535),
)
_meets = st.booleans()


@st.composite
def _policies(draw: st.DrawFn) -> tuple[Policy, ...]:
    """Policies that select the pod; a rule whose peers are others has no peers at all here."""
    made = []
    for i in range(draw(st.integers(0, 4))):
        tier = draw(st.sampled_from(Tier))
        ordinary = tier is Tier.NETWORK_POLICY
        ref = PolicyRef("NetworkPolicy", "shop" if ordinary else "", f"p{i}")
        rules = tuple(
            Rule(
                ref,
                "ingress",
                j,
                "Accept" if ordinary else draw(st.sampled_from(["Accept", "Deny", "Pass"])),
                draw(st.sampled_from([None, ()])),
                draw(st.none() | st.lists(_ranges, min_size=1, max_size=3).map(tuple)),
            )
            for j in range(draw(st.integers(0, 3)))
        )
        isolates = frozenset(["ingress"]) if ordinary and draw(st.booleans()) else frozenset()
        made.append(Policy(ref, tier, PodsPeer(), rules, (), isolates, draw(st.integers(0, 1))))
    return in_order(made)


def _meant(rule: Rule) -> Intervals:
    if rule.peers is not None:
        return EMPTY
    if rule.ports is None:
        return ports.ALL
    return ports.of_ranges(p for p in rule.ports if isinstance(p, PortRange))


@given(_policies(), st.booleans(), st.sampled_from([6, 17, 132, ICMP]), st.integers(0, 14))
def test_a_row_is_evaluate_for_every_port(
    policies: tuple[Policy, ...], per_direction: bool, protocol: int, port: int
):
    semantics = Semantics(baseline_per_direction=per_direction)
    row = judge_ports("ingress", policies, _meant, semantics)
    flow = Flow(PEER, Party(pod=POD), protocol, 0 if protocol == ICMP else port)
    judgement = judge_selected(Case("ingress", flow, make_world([POD]), semantics), policies)
    outcome = outcome_at(row, ports.point(protocol, port))
    assert outcome.allowed == judgement.allowed
    assert outcome.rule == judgement.rule
    assert outcome.isolating == judgement.isolating
    assert outcome.reason == judgement.reason
    assert (row[0].first, row[-1].last) == (0, ports.OTHER)
    assert all(a.last + 1 == b.first for a, b in itertools.pairwise(row))


# --- peers --------------------------------------------------------------------------------------

_expressions = st.builds(
    lambda key, operator, values: Expression(key, operator, values if "In" in operator else ()),
    st.sampled_from("ab"),
    st.sampled_from(["In", "NotIn", "Exists", "DoesNotExist"]),
    st.sampled_from([("1",), ("2",), ("1", "2")]),
)
_selectors = st.lists(_expressions, max_size=2).map(lambda e: Selector(tuple(sorted(set(e)))))
_labels = st.dictionaries(st.sampled_from("ab"), st.sampled_from("123"), max_size=2)
_networks = st.sampled_from(
    [ip_network(n) for n in ("0.0.0.0/0", "10.0.0.0/29", "10.0.0.4/30", "10.0.0.8/29", "::/0")]
)


@st.composite
def _network_peers(draw: st.DrawFn) -> NetworkPeer:
    network = draw(_networks)
    inside = [n for length in (1, 2) for n in network.subnets(prefixlen_diff=length)]
    return NetworkPeer(network, tuple(draw(st.lists(st.sampled_from(inside), max_size=2))))


_peers: st.SearchStrategy[Peer] = st.one_of(
    st.builds(PodsPeer, _selectors, st.sampled_from(["x", "y"])),
    st.builds(PodsPeer, _selectors, st.just(""), _selectors),
    _network_peers(),
    st.builds(NodesPeer, _selectors),
)
_addresses = st.integers(0x0A000000, 0x0A000010).map(ip_address) | st.sampled_from(
    [ip_address("255.255.255.255"), ip_address("::"), ip_address("ffff::1")]
)


@given(st.lists(_peers, max_size=8), st.lists(_peers, max_size=4), _labels, _labels, _addresses)
def test_a_bit_says_what_matching_says(
    peers: list[Peer],
    removed: list[Peer],
    labels: dict[str, str],
    namespace: dict[str, str],
    address,
):
    index = PeerIndex([*peers, *removed])
    for peer in removed:
        index.remove(peer)
    pod = PodView(Key("x", "p"), labels)
    world = make_world([pod], {"x": namespace})
    node = NodeView("n", labels)
    masks = {
        PodsPeer: index.of_labels("x", world.namespaces["x"], labels),
        NetworkPeer: index.of_address(address),
        NodesPeer: index.of_node(labels),
    }
    parties = {
        PodsPeer: Party(pod=pod),
        NetworkPeer: Party(address),
        NodesPeer: Party(node=node),
    }
    assert set(index) == set(peers)
    for peer in peers:
        kind = type(peer)
        assert bool(masks[kind] & index.bit(peer)) == matches_peer(peer, parties[kind], world)
    wanted = {index.bit(p) for p in peers if matches_peer(p, parties[type(p)], world)}
    assert sum(wanted) == masks[PodsPeer] | masks[NetworkPeer] | masks[NodesPeer]
    ranges = index.ranges(address.version)
    assert all(r.mask for r in ranges)
    inside = [r.mask for r in ranges if r.first <= int(address) <= r.last]
    assert inside == ([masks[NetworkPeer]] if masks[NetworkPeer] else [])


def test_everything_is_matched_by_the_empty_selector():
    peer = PodsPeer(EVERYTHING, "shop")
    index = PeerIndex([peer])
    assert index.of_labels("shop", {}, {}) == index.bit(peer)
    assert index.of_labels("other", {}, {}) == 0
