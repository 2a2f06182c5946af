"""`reach` says for all pairs and ports what `evaluate` says of one connection."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from itertools import pairwise

import policy_worlds
from hypothesis import given
from hypothesis import strategies as st

from podwire.objects.meta import Key
from podwire.policy import intervals, ports
from podwire.policy.classviews import members
from podwire.policy.evaluate import Flow, Party, PolicySet, Semantics, evaluate
from podwire.policy.model import (
    Address,
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
from podwire.policy.reach import Reach
from podwire.policy.selector import EVERYTHING, Expression, Selector
from podwire.policy.world import ContainerPort, NodeView, PodView, World, make_world

_SELECTORS = st.sampled_from(
    [
        EVERYTHING,
        Selector((Expression("app", "In", ("a",)),)),
        Selector((Expression("app", "NotIn", ("a", "b")),)),
        Selector((Expression("tier", "Exists"),)),
        Selector((Expression("tier", "DoesNotExist"),)),
    ]
)
_NAMESPACES = st.sampled_from([EVERYTHING, Selector((Expression("team", "In", ("x",)),))])
_NETWORKS = st.sampled_from(
    [
        NetworkPeer(ip_network("0.0.0.0/0")),
        NetworkPeer(ip_network("10.0.0.0/29")),
        NetworkPeer(ip_network("10.0.0.0/24"), (ip_network("10.0.0.4/30"),)),
        NetworkPeer(ip_network("192.0.2.0/24"), (ip_network("192.0.2.128/25"),)),
        NetworkPeer(ip_network("2001:db8::/32")),
    ]
)
_PORTS = st.sampled_from(
    [
        PortRange(6, 80, 80),
        PortRange(6, 1, 100),
        PortRange(17),
        PortRange(132, 80, 90),
        NamedPort("web", 6),
        NamedPort("web"),
    ]
)
NAMED = (ContainerPort("web", 6, 80), ContainerPort("web", 17, 53))
PROBED = [(6, 79), (6, 80), (6, 100), (6, 101), (17, 53), (17, 54), (132, 85), (1, 0)]


@st.composite
def _worlds(draw: st.DrawFn) -> World:
    labels = st.dictionaries(
        st.sampled_from(["app", "tier"]), st.sampled_from(["a", "b", "c"]), max_size=2
    )
    pods = []
    for i in range(draw(st.integers(1, 5))):
        host = draw(st.integers(0, 5)) == 0
        node = draw(st.sampled_from(["", "n1", "n2"]))
        ip = f"10.1.0.{node[-1:] or 9}" if host else f"10.0.0.{i + 1}"
        pods.append(
            PodView(
                Key(draw(st.sampled_from(["x", "y"])), f"p{i}"),
                draw(labels),
                (ip_address(ip),) if host or draw(st.booleans()) else (),
                node,
                draw(st.sampled_from([(), NAMED[:1], NAMED])),
                host,
            )
        )
    nodes = [NodeView("n1", {"tier": "a"}, (ip_address("10.1.0.1"),))]
    names = {"www.example.com": frozenset({ip_address("192.0.2.7"), ip_address("10.0.0.2")})}
    return make_world(pods, {"x": {"team": "x"}}, nodes, names)


@st.composite
def _policies(draw: st.DrawFn) -> tuple[Policy, ...]:
    return tuple(draw(_policy(i)) for i in range(draw(st.integers(0, 5))))


@st.composite
def _policy(draw: st.DrawFn, number: int) -> Policy:
    tier = draw(st.sampled_from(Tier))
    ordinary = tier is Tier.NETWORK_POLICY
    ref = PolicyRef(tier.name, "x" if ordinary else "", f"p{number}")
    pods_peers: st.SearchStrategy[Peer] = st.builds(
        PodsPeer, _SELECTORS, st.just("x"), _NAMESPACES if not ordinary else st.none() | _NAMESPACES
    )
    others = st.sampled_from([NodesPeer(EVERYTHING), DomainPeer("*.example.com")])
    egress: st.SearchStrategy[Peer] = pods_peers | _NETWORKS | others
    ingress: st.SearchStrategy[Peer] = pods_peers | _NETWORKS if ordinary else pods_peers
    matches: st.SearchStrategy[PortMatch] = _PORTS

    def rule(direction: str, index: int) -> Rule:
        peers = egress if direction == "egress" else ingress
        return Rule(
            ref,
            "egress" if direction == "egress" else "ingress",
            index,
            "Accept" if ordinary else draw(st.sampled_from(["Accept", "Deny", "Pass"])),
            draw(st.none() | st.lists(peers, max_size=2).map(tuple)),
            draw(st.none() | st.lists(matches, min_size=1, max_size=2).map(tuple)),
        )

    subject = draw(pods_peers)
    assert isinstance(subject, PodsPeer)
    isolates = draw(st.sets(st.sampled_from(["ingress", "egress"]))) if ordinary else set()
    return Policy(
        ref,
        tier,
        PodsPeer(subject.pods, "x") if ordinary else subject,
        tuple(rule("ingress", i) for i in range(draw(st.integers(0, 2)))),
        tuple(rule("egress", i) for i in range(draw(st.integers(0, 2)))),
        frozenset(d for d in ("ingress", "egress") if d in isolates),  # type: ignore[misc]
        draw(st.integers(0, 2)),
    )


_SEMANTICS = st.builds(Semantics, st.booleans(), st.booleans(), ipblock_matches_nodes=st.booleans())


def _party(world: World, pod: PodView) -> Party:
    node = world.nodes.get(pod.node) if pod.host_network else None
    return Party(pod.ips[0] if pod.ips else None, pod, node)


@given(_worlds(), _policies(), _SEMANTICS)
def test_every_pair_is_as_evaluate_says(
    world: World, policies: tuple[Policy, ...], semantics: Semantics
) -> None:
    chosen = PolicySet(policies)
    reach = Reach(world, chosen, semantics)
    for source in reach.pods:
        row = reach.row(reach.group_of[source.key])
        assert sum(bits.bit_count() for bits in row.values()) == len(reach.groups)
        for destination in reach.pods:
            if source.key == destination.key:
                continue
            found = reach.between(source.key, destination.key)
            number = reach.group_of[destination.key]
            assert number in members(row[found])
            for protocol, port in PROBED:
                flow = Flow(_party(world, source), _party(world, destination), protocol, port)
                said = evaluate(flow, chosen, world, semantics).allowed
                assert intervals.contains(found, ports.point(protocol, port)) == said


@given(_worlds(), _policies(), _SEMANTICS)
def test_the_outside_is_cut_where_it_matters(
    world: World, policies: tuple[Policy, ...], semantics: Semantics
) -> None:
    chosen = PolicySet(policies)
    reach = Reach(world, chosen, semantics)
    for direction in ("ingress", "egress"):
        ranges = reach.outside("ingress" if direction == "ingress" else "egress")
        assert (ranges[0].first, ranges[-1].last) == (0, (1 << 32) - 1)
        assert all(a.last + 1 == b.first for a, b in pairwise(ranges))
        for outside in ranges:
            for address in {outside.first, outside.last}:
                party = Party(ip_address(address))
                for pod in reach.pods:
                    group, own = reach.group_of[pod.key], _party(world, pod)
                    if direction == "ingress":
                        found = reach.from_outside(outside, group)
                    else:
                        found = reach.to_outside(group, outside)
                    for protocol, port in PROBED:
                        ends = (party, own) if direction == "ingress" else (own, party)
                        said = evaluate(Flow(*ends, protocol, port), chosen, world, semantics)
                        point = ports.point(protocol, port)
                        assert intervals.contains(found, point) == said.allowed


def test_pods_of_the_other_family_are_left_out() -> None:
    six = PodView(Key("x", "six"), ips=(ip_address("2001:db8::1"),))
    both = PodView(Key("x", "both"), ips=(ip_address("10.0.0.1"), ip_address("2001:db8::2")))
    world = make_world([six, both])
    assert [p.key.name for p in Reach(world, PolicySet([])).pods] == ["both"]
    assert [p.key.name for p in Reach(world, PolicySet([]), version=6).pods] == ["six", "both"]


@given(policy_worlds.worlds(), st.data())
def test_worlds_of_objects_are_as_evaluate_says(
    made: policy_worlds.PolicyWorld, data: st.DataObject
) -> None:
    """Parsed from the JSON an API server has: nodes, names and both families too."""
    reach = Reach(made.world, made.policy_set)
    pods = [pod for pod in reach.pods if not pod.host_network]
    if len(pods) < 2:
        return
    source, destination = data.draw(st.permutations(pods))[:2]
    found = reach.between(source.key, destination.key)
    for protocol, port in PROBED:
        ends = [Party(_v4(pod), pod) for pod in (source, destination)]
        said = evaluate(Flow(*ends, protocol, port), made.policy_set, made.world).allowed
        assert intervals.contains(found, ports.point(protocol, port)) == said


def _v4(pod: PodView) -> Address | None:
    return next((ip for ip in pod.ips if ip.version == 4), None)
