"""Small worlds of pods, nodes and policies in which everything meets everything; their flows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from random import Random

from hypothesis import strategies as st

from podwire.objects.meta import Key
from podwire.policy.classes import Outcome
from podwire.policy.evaluate import Case, Flow, Party, PolicySet, judge
from podwire.policy.model import (
    Address,
    Direction,
    DomainPeer,
    NamedPort,
    NetworkPeer,
    NodesPeer,
    Peer,
    PodsPeer,
    Policy,
    PolicyRef,
    PortRange,
    Rule,
    Tier,
)
from podwire.policy.selector import Expression, Selector
from podwire.policy.world import ContainerPort, NodeView, PodView, World, make_world, owners_of

HERE = "node-1"
NODES = {
    HERE: ("172.30.0.2", "fd00:30::2"),
    "node-2": ("172.30.0.3", "fd00:30::3"),
    "node-3": ("172.30.0.4", "fd00:30::4"),
}
OUTSIDERS = ("203.0.113.10", "203.0.113.77", "2001:db8:113::10")
NAMESPACES = ("x", "y")
KEYS = [Key(namespace, name) for namespace in NAMESPACES for name in "abcd"]
PORTS = (79, 80, 81, 100, 101, 5000)


def addresses_of(key: Key) -> tuple[Address, Address]:
    """Every pod has an address of its own for ever; x/a, x/b, y/a, y/b are on the node here."""
    at = KEYS.index(key)
    node = 1 if key.name in "ab" else 2
    return ip_address(f"10.244.{node}.{at + 2}"), ip_address(f"fd00:244:0:{node}::{at + 2:x}")


# --- strategies ---------------------------------------------------------------------------------

_expressions = st.builds(
    lambda key, operator, values: Expression(key, operator, values if "In" in operator else ()),
    st.sampled_from("kl"),
    st.sampled_from(["In", "In", "In", "NotIn", "Exists", "DoesNotExist"]),
    st.sampled_from([("1",), ("2",), ("1", "2")]),
)
selectors = st.lists(_expressions, max_size=1).map(lambda e: Selector(tuple(sorted(set(e)))))
labels = st.dictionaries(st.sampled_from("kl"), st.sampled_from("123"), max_size=2)
_container_ports = st.lists(
    st.builds(
        ContainerPort,
        st.sampled_from(["web", "dns"]),
        st.sampled_from([6, 17]),
        st.sampled_from(PORTS),
    ),
    max_size=2,
    unique_by=lambda port: (port.name, port.protocol),
).map(tuple)


@st.composite
def network_peers(draw: st.DrawFn) -> NetworkPeer:
    network = ip_network(
        draw(
            st.sampled_from(
                [
                    "0.0.0.0/0",
                    "10.244.0.0/16",
                    "10.244.1.0/24",
                    "10.244.1.2/32",
                    "203.0.113.0/24",
                    "172.30.0.0/30",
                    "::/0",
                    "fd00:244:0:1::/64",
                    "2001:db8::/32",
                ]
            )
        )
    )
    holes = [
        ip_network(n)
        for n in ("10.244.1.0/29", "203.0.113.64/26", "10.0.0.0/8", "fd00:244:0:1::/126")
    ]
    inside = [h for h in holes if h.version == network.version and h.subnet_of(network)]
    if not inside:
        return NetworkPeer(network)
    return NetworkPeer(network, tuple(draw(st.lists(st.sampled_from(inside), max_size=2))))


peers: st.SearchStrategy[Peer] = st.one_of(
    st.builds(PodsPeer, selectors, st.sampled_from(NAMESPACES)),
    st.builds(PodsPeer, selectors, st.just(""), selectors),
    network_peers(),
)
egress_peers: st.SearchStrategy[Peer] = st.one_of(
    peers,
    st.builds(NodesPeer, selectors),
    st.builds(DomainPeer, st.sampled_from(["example.com", "*.example.com"])),
)
_ranges = st.builds(
    lambda protocol, bounds: PortRange(protocol, *bounds),
    st.sampled_from([6, 6, 17, 132]),
    st.sampled_from([(80, 80), (79, 81), (80, 100), (80, 5000), (101, 65535), (0, 65535)]),
)
_named = st.builds(NamedPort, st.sampled_from(["web", "dns"]), st.sampled_from([None, 6, 17]))


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    tier = draw(st.sampled_from([Tier.NETWORK_POLICY, Tier.NETWORK_POLICY, *Tier]))
    ordinary = tier is Tier.NETWORK_POLICY
    namespace = draw(st.sampled_from(NAMESPACES)) if ordinary else ""
    kind = "NetworkPolicy" if ordinary else "ClusterNetworkPolicy"
    ref = PolicyRef(kind, namespace, draw(st.sampled_from("pqrs")))
    if ordinary:
        subject = PodsPeer(draw(selectors), namespace)
    else:
        subject = PodsPeer(draw(selectors), "", draw(selectors))
    rules = {
        direction: tuple(
            Rule(
                ref,
                direction,
                i,
                "Accept" if ordinary else draw(st.sampled_from(["Accept", "Deny", "Pass"])),
                draw(st.none() | st.lists(some_peers, max_size=2).map(tuple)),
                draw(st.none() | st.lists(_ranges | _named, min_size=1, max_size=2).map(tuple)),
            )
            for i in range(draw(st.integers(0, 2)))
        )
        for direction, some_peers in (("ingress", peers), ("egress", egress_peers))
    }
    isolates: frozenset[Direction] = frozenset()
    if ordinary:
        isolates = frozenset(draw(st.sets(st.sampled_from(["ingress", "egress"]), min_size=1)))
        rules = {d: some if d in isolates else () for d, some in rules.items()}
    return Policy(
        ref,
        tier,
        subject,
        rules["ingress"],
        rules["egress"],
        isolates,
        0 if ordinary else draw(st.integers(0, 1)),
    )


@st.composite
def pods(draw: st.DrawFn) -> PodView:
    key = draw(st.sampled_from(KEYS))
    return PodView(
        key,
        draw(labels),
        addresses_of(key),
        HERE if key.name in "ab" else "node-2",
        draw(_container_ports),
        draw(st.sampled_from([False, False, False, True])),
    )


nodes = st.builds(
    lambda name, own: NodeView(name, own, tuple(map(ip_address, NODES[name]))),
    st.sampled_from(sorted(NODES)),
    labels,
)
names = st.dictionaries(
    st.sampled_from(["example.com", "www.example.com"]),
    st.frozensets(
        st.sampled_from([*map(ip_address, OUTSIDERS), ip_address("10.244.1.2")]), max_size=2
    ),
    max_size=2,
)


# --- worlds that change -------------------------------------------------------------------------


@dataclass
class Changing:
    """What the API says now."""

    namespaces: dict[str, dict[str, str]] = field(default_factory=lambda: {"x": {}, "y": {}})
    pods: dict[Key, PodView] = field(default_factory=dict)
    nodes: dict[str, NodeView] = field(
        default_factory=lambda: {
            name: NodeView(name, {}, tuple(map(ip_address, ips))) for name, ips in NODES.items()
        }
    )
    names: Mapping[str, frozenset[Address]] = field(default_factory=dict)
    policies: dict[PolicyRef, Policy] = field(default_factory=dict)

    def world(self) -> World:
        return make_world(self.pods.values(), self.namespaces, self.nodes.values(), self.names)

    def copy(self) -> Changing:
        return Changing(
            {name: dict(own) for name, own in self.namespaces.items()},
            dict(self.pods),
            dict(self.nodes),
            self.names,
            dict(self.policies),
        )


Change = tuple[str, object]
changes: st.SearchStrategy[Change] = st.one_of(
    st.tuples(st.just("policy"), policies()),
    st.tuples(st.just("policy"), policies()),
    st.tuples(st.just("pod"), pods()),
    st.tuples(st.just("pod"), pods()),
    st.tuples(st.just("no policy"), st.integers(0, 7)),
    st.tuples(st.just("no pod"), st.integers(0, 7)),
    st.tuples(st.just("namespace"), st.tuples(st.sampled_from(NAMESPACES), labels)),
    st.tuples(st.just("node"), nodes),
    st.tuples(st.just("names"), names),
)


def apply_change(change: Change, api: Changing, *listeners: object) -> None:
    """To the API's state, and to whoever listens (`NodePolicies`)."""
    kind, what = change
    call: tuple[str, tuple[object, ...]] | None = None
    match kind, what:
        case "policy", Policy():
            api.policies[what.ref] = what
            call = "set_policy", (what,)
        case "no policy", int() if api.policies:
            ref = sorted(api.policies)[what % len(api.policies)]
            del api.policies[ref]
            call = "remove_policy", (ref,)
        case "pod", PodView():
            api.pods[what.key] = what
            call = "set_pod", (what,)
        case "no pod", int() if api.pods:
            key = sorted(api.pods)[what % len(api.pods)]
            del api.pods[key]
            call = "remove_pod", (key,)
        case "namespace", (str() as name, dict() as own):
            api.namespaces[name] = own
            call = "set_namespace", (name, own)
        case "node", NodeView():
            api.nodes[what.name] = what
            call = "set_node", (what,)
        case "names", dict():
            api.names = what
            call = "set_names", (what,)
    for listener in listeners:
        if call is not None:
            getattr(listener, call[0])(*call[1])


# --- flows --------------------------------------------------------------------------------------


def flows(api: Changing) -> Iterator[Flow]:
    """Every pair and port that meets the node's forward hook."""
    world = api.world()
    parties = [
        Party(ip, pod=pod) for pod in world.pods.values() if not pod.host_network for ip in pod.ips
    ]
    parties += [Party(ip, node=node) for node in world.nodes.values() for ip in node.ips]
    parties += [Party(ip_address(text)) for text in OUTSIDERS]
    for source in parties:
        for destination in parties:
            if is_forwarded(source, destination):
                for protocol in (6, 17, 132):
                    for port in PORTS:
                        yield Flow(source, destination, protocol, port, hairpin=True)
                yield Flow(source, destination, 1 if source.ip.version == 4 else 58, hairpin=True)


def is_forwarded(source: Party, destination: Party) -> bool:
    """Between families nothing goes; the node's own traffic is not forwarded."""
    if source.ip.version != destination.ip.version:
        return False
    if any(p.node is not None and p.node.name == HERE for p in (source, destination)):
        return False
    return is_local(source) or is_local(destination)


def is_local(party: Party) -> bool:
    return party.pod is not None and party.pod.node == HERE


def expected(flow: Flow, world: World, policy_set: PolicySet) -> list[Outcome]:
    """What the node says of it: egress, if that allows ingress; without who was asked nothing."""
    found = []
    for direction, party in (("egress", flow.source), ("ingress", flow.destination)):
        if is_local(party):
            judgement = judge(Case(direction, flow, world), policy_set)
            if judgement.reason != "no policy":
                found.append(Outcome.of(direction, judgement))
            if not judgement.allowed:
                break
    return found


def outcomes_of(api: Changing, some: Iterable[Flow]) -> list[tuple[Flow, list[Outcome]]]:
    world, policy_set = api.world(), PolicySet(api.policies.values())
    return [(flow, expected(flow, world, policy_set)) for flow in some]


def some_flows(api: Changing, random: Random, count: int) -> list[Flow]:
    found = list(flows(api))
    return random.sample(found, min(count, len(found)))


def seen_in(flow: Flow, api: Changing) -> Flow | None:
    """The same addresses in another state; None where nothing of the kind is forwarded there."""
    world = api.world()
    parties = []
    for party in (flow.source, flow.destination):
        owner = owners_of(world).get(party.ip)
        if isinstance(owner, PodView):
            parties.append(Party(party.ip, pod=owner))
        else:
            parties.append(Party(party.ip, node=owner))
    source, destination = parties
    if not is_forwarded(source, destination):
        return None
    return Flow(source, destination, flow.protocol, flow.port, hairpin=True)
