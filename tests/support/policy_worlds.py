"""Random worlds of pods, nodes, outsiders and policies, for every test that compares two answers.

    worlds() -> PolicyWorld: .raw (JSON objects, as `naive_policy` reads them)
                             .world, .policies, .policy_set (the same, parsed)
                             .flow(Probe) -> Flow
    probes(world) -> Probe: two of the world's addresses, a protocol, a port

Keys, values, names, ports and networks are few, so that rules meet what is there. Everything is
valid for the API, but with `unknown=True`, which adds peers and protocols of a later version.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from ipaddress import ip_address, ip_network
from typing import Any, Final, NamedTuple

import msgspec
from hypothesis import strategies as st
from naive_policy import NaiveWorld

from podwire.objects.core import Namespace, Node
from podwire.objects.policy import ClusterPolicy, NetworkPolicy, PeerPod
from podwire.policy.evaluate import Flow, Party, PolicySet
from podwire.policy.model import ICMP, PROTOCOLS, Policy
from podwire.policy.parse import parse_network_policy
from podwire.policy.parse_cluster import parse_cluster_policy
from podwire.policy.world import (
    PodView,
    World,
    make_world,
    owners_of,
    view_namespace,
    view_node,
    view_pod,
)

Raw = dict[str, Any]

POLICY_GROUP: Final = "policy.networking.k8s.io"
OUTSIDERS: Final = ("203.0.113.10", "198.51.100.7")
OUTSIDERS6: Final = ("2001:db8:113::10",)
NAMES: Final[Mapping[str, tuple[str, ...]]] = {
    "example.com": ("203.0.113.10",),
    "www.example.com": ("198.51.100.7", "2001:db8:113::10"),
    "a.b.example.com": ("203.0.113.10",),
}
PORTS: Final = (80, 81, 8080)
ICMP_NAME: Final = "ICMP"


class Probe(NamedTuple):
    """A first packet after any Service; `protocol` is TCP, UDP, SCTP or ICMP."""

    source: str
    destination: str
    protocol: str = "TCP"
    port: int = 80
    hairpin: bool = False


@dataclass(frozen=True)
class PolicyWorld:
    raw: NaiveWorld

    @cached_property
    def world(self) -> World:
        raw = self.raw
        pods = [view_pod(msgspec.convert(pod, PeerPod)) for pod in raw.pods]
        return make_world(
            [pod for pod in pods if pod is not None],
            dict(view_namespace(msgspec.convert(n, Namespace)) for n in raw.namespaces),
            [view_node(msgspec.convert(node, Node)) for node in raw.nodes],
            {name: frozenset(map(ip_address, addresses)) for name, addresses in raw.names.items()},
        )

    @cached_property
    def policies(self) -> tuple[Policy, ...]:
        return tuple(parse_policy(policy) for policy in self.raw.policies)

    @cached_property
    def policy_set(self) -> PolicySet:
        return PolicySet(self.policies)

    @cached_property
    def addresses(self) -> tuple[str, ...]:
        """Of all who may talk: running pods, nodes, outsiders; of pods that ended, too."""
        pods = [row["ip"] for pod in self.raw.pods for row in pod["status"]["podIPs"]]
        nodes = [row["address"] for node in self.raw.nodes for row in node["status"]["addresses"]]
        found = [*pods, *nodes, *OUTSIDERS, *OUTSIDERS6]
        return tuple(dict.fromkeys(text for text in found if _is_address(text)))

    def party(self, text: str) -> Party:
        address = ip_address(text)
        owner = owners_of(self.world).get(address)
        if isinstance(owner, PodView):
            return Party(address, pod=owner)
        return Party(address, node=owner)

    def flow(self, probe: Probe) -> Flow:
        protocol = ICMP if probe.protocol == ICMP_NAME else PROTOCOLS[probe.protocol]
        return Flow(
            self.party(probe.source),
            self.party(probe.destination),
            protocol,
            probe.port,
            probe.hairpin,
        )


def parse_policy(raw: Raw | Mapping[str, Any]) -> Policy:
    """Of whichever kind it says it is."""
    if raw["kind"] == "NetworkPolicy":
        return parse_network_policy(msgspec.convert(raw, NetworkPolicy))
    return parse_cluster_policy(msgspec.convert(raw, ClusterPolicy))


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


# --- objects ------------------------------------------------------------------------------------


def make_pod(
    namespace: str,
    name: str,
    ips: Sequence[str],
    labels: Mapping[str, str] | None = None,
    *,
    node: str = "node-1",
    ports: Sequence[Raw] = (),
    **more: Any,
) -> Raw:
    """`more`: phase, hostNetwork, sidecarPorts."""
    spec: Raw = {"nodeName": node, "containers": [{"name": "main", "ports": list(ports)}]}
    if more.get("hostNetwork"):
        spec["hostNetwork"] = True
    if more.get("sidecarPorts"):
        sidecar = {"name": "side", "restartPolicy": "Always", "ports": more["sidecarPorts"]}
        spec["initContainers"] = [sidecar]
    return {
        "metadata": {"namespace": namespace, "name": name, "labels": dict(labels or {})},
        "spec": spec,
        "status": {
            "phase": more.get("phase", "Running"),
            "podIPs": [{"ip": ip} for ip in ips],
        },
    }


def make_namespace(name: str, labels: Mapping[str, str] | None = None) -> Raw:
    return {"metadata": {"name": name, "labels": dict(labels or {})}}


def make_node(name: str, ips: Sequence[str], labels: Mapping[str, str] | None = None) -> Raw:
    """The first address is internal, others external; the name is an address of its type, too."""
    rows = [
        {"type": "InternalIP" if i == 0 or ":" in ip else "ExternalIP", "address": ip}
        for i, ip in enumerate(ips)
    ]
    return {
        "metadata": {"name": name, "labels": dict(labels or {})},
        "status": {"addresses": [*rows, {"type": "Hostname", "address": name}]},
    }


def make_network_policy(namespace: str, name: str, **spec: Any) -> Raw:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"namespace": namespace, "name": name},
        "spec": spec,
    }


def make_cluster_policy(
    name: str, tier: str = "Admin", priority: int = 10, subject: Raw | None = None, **rules: Any
) -> Raw:
    return {
        "apiVersion": f"{POLICY_GROUP}/v1alpha2",
        "kind": "ClusterNetworkPolicy",
        "metadata": {"name": name},
        "spec": {
            "tier": tier,
            "priority": priority,
            "subject": {"namespaces": {}} if subject is None else subject,
            **rules,
        },
    }


def make_admin_policy(kind: str, name: str, subject: Raw | None = None, **spec: Any) -> Raw:
    """AdminNetworkPolicy (with a priority) or BaselineAdminNetworkPolicy."""
    return {
        "apiVersion": f"{POLICY_GROUP}/v1alpha1",
        "kind": kind,
        "metadata": {"name": name},
        "spec": {"subject": {"namespaces": {}} if subject is None else subject, **spec},
    }


# --- strategies: pods, nodes, selectors ---------------------------------------------------------

_KEYS = ("app", "tier")
_VALUES = ("a", "b")
_NAMESPACES = ("x", "y")
_NODES = ("node-1", "node-2")
_NAME_LABEL = "kubernetes.io/metadata.name"

labels: Final = st.dictionaries(st.sampled_from(_KEYS), st.sampled_from(_VALUES), max_size=2)


@st.composite
def selectors(draw: st.DrawFn, *, of_namespaces: bool = False) -> Raw:
    """Null lists and absent ones mean the same; so do both for `matchLabels`."""
    keys: tuple[str, ...] = _KEYS
    values: tuple[str, ...] = _VALUES
    if of_namespaces and draw(st.booleans()):
        keys, values = (_NAME_LABEL,), _NAMESPACES
    found: Raw = {}
    if draw(st.booleans()):
        return found
    if draw(st.booleans()):
        found["matchLabels"] = draw(
            st.none() | st.dictionaries(st.sampled_from(keys), st.sampled_from(values), max_size=1)
        )
    if draw(st.booleans()):
        found["matchExpressions"] = draw(
            st.lists(_requirements(keys, values), max_size=2) | st.none()
        )
    return found


@st.composite
def _requirements(draw: st.DrawFn, keys: Sequence[str], values: Sequence[str]) -> Raw:
    operator = draw(st.sampled_from(["In", "NotIn", "Exists", "DoesNotExist"]))
    row: Raw = {"key": draw(st.sampled_from(keys)), "operator": operator}
    if operator in ("In", "NotIn"):
        row["values"] = draw(st.lists(st.sampled_from(values), min_size=1, max_size=2))
    return row


@st.composite
def _container_ports(draw: st.DrawFn) -> list[Raw]:
    names = draw(st.lists(st.sampled_from(["web", "metrics", "dns"]), unique=True, max_size=2))
    ports: list[Raw] = []
    for name in names:
        row: Raw = {"name": name, "containerPort": draw(st.sampled_from(PORTS))}
        protocol = draw(st.sampled_from([None, "TCP", "UDP", "SCTP"]))
        ports.append(row if protocol is None else {**row, "protocol": protocol})
    return ports


@st.composite
def _pods(draw: st.DrawFn, index: int, *, ipv6: bool) -> Raw:
    node = draw(st.integers(1, len(_NODES)))
    host_network = draw(st.sampled_from([False] * 7 + [True]))
    if host_network:
        ips = [f"172.30.0.{node + 1}"]
    else:
        ips = [f"10.244.{node}.{index + 2}"]
        if ipv6 and draw(st.booleans()):
            ips.append(f"fd00:244:{node}::{index + 2}")
    return make_pod(
        draw(st.sampled_from(_NAMESPACES)),
        f"p{index}",
        ips,
        draw(labels),
        node=f"node-{node}",
        ports=draw(_container_ports()),
        sidecarPorts=draw(st.just([]) | _container_ports()),
        hostNetwork=host_network,
        phase=draw(st.sampled_from([*["Running"] * 6, "Pending", "Succeeded", "Failed"])),
    )


# --- strategies: rules --------------------------------------------------------------------------

_BLOCKS4 = ("0.0.0.0/0", "10.244.0.0/16", "10.244.1.0/24", "10.244.1.2/32", "172.30.0.0/24")
_BLOCKS4_OUT = ("203.0.113.0/24", "198.51.100.7/32")
_BLOCKS6 = ("::/0", "fd00:244::/32", "2001:db8::/32", "fd00:244:1::2/128")


@st.composite
def ip_blocks(draw: st.DrawFn) -> Raw:
    cidr = draw(st.sampled_from((*_BLOCKS4, *_BLOCKS4_OUT, *_BLOCKS6)))
    network = ip_network(cidr)
    inside = [
        text
        for text in (*_BLOCKS4, *_BLOCKS4_OUT, *_BLOCKS6, "10.244.1.0/30", "10.244.2.0/24")
        if (other := ip_network(text)).version == network.version
        and other.prefixlen > network.prefixlen
        and other.network_address in network
    ]
    holes = draw(st.lists(st.sampled_from(inside), max_size=2)) if inside else []
    return {"cidr": cidr, "except": holes} if holes else {"cidr": cidr}


@st.composite
def _network_peers(draw: st.DrawFn) -> Raw:
    if draw(st.sampled_from([False, False, True])):
        return {"ipBlock": draw(ip_blocks())}
    pods, namespaces = draw(selectors()), draw(selectors(of_namespaces=True))
    return draw(
        st.sampled_from(
            [
                {"podSelector": pods},
                {"namespaceSelector": namespaces},
                {"podSelector": pods, "namespaceSelector": namespaces},
                {"podSelector": pods, "namespaceSelector": None},
                {"podSelector": None, "namespaceSelector": namespaces},
            ]
        )
    )


@st.composite
def _network_ports(draw: st.DrawFn) -> Raw:
    row: Raw = {}
    protocol = draw(st.sampled_from([None, "TCP", "UDP", "SCTP"]))
    if protocol is not None:
        row["protocol"] = protocol
    port = draw(st.sampled_from([None, *PORTS, "web", "metrics", "absent"]))
    if port is not None:
        row["port"] = port
        if isinstance(port, int) and draw(st.booleans()):
            row["endPort"] = port + draw(st.sampled_from([0, 1, 8000]))
    return row


_some = st.sampled_from([None, [], "list"])
"""Absent, empty, or with elements."""


@st.composite
def _lists(draw: st.DrawFn, elements: st.SearchStrategy[Raw], most: int = 2) -> list[Raw] | None:
    shape = draw(_some)
    return draw(st.lists(elements, min_size=1, max_size=most)) if shape == "list" else shape


@st.composite
def network_policies(draw: st.DrawFn, index: int) -> Raw:
    spec: Raw = {}
    if draw(st.sampled_from([True, True, False])):
        spec["podSelector"] = draw(st.none() | selectors())
    types = draw(
        st.sampled_from([None, [], ["Ingress"], ["Egress"], ["Ingress", "Egress"], ["Egress"]])
    )
    if types is not None:
        spec["policyTypes"] = types
    for direction, word in (("ingress", "from"), ("egress", "to")):
        rules = st.fixed_dictionaries(
            {}, optional={word: _lists(_network_peers()), "ports": _lists(_network_ports())}
        )
        found = draw(_lists(rules))
        if found is not None or draw(st.booleans()):
            spec[direction] = found
    made = make_network_policy(draw(st.sampled_from(_NAMESPACES)), f"np{index}", **spec)
    if draw(st.sampled_from([False] * 9 + [True])):
        made["metadata"]["annotations"] = {"policy.podwire.dev/stage": "true"}
    return made


@st.composite
def _namespaced_pods(draw: st.DrawFn, *, both: bool = True) -> Raw:
    found = {"podSelector": draw(selectors())}
    if both or draw(st.booleans()):
        found["namespaceSelector"] = draw(selectors(of_namespaces=True))
    return found


@st.composite
def _cluster_peers(
    draw: st.DrawFn, direction: str, action: str, *, old: bool, unknown: bool, names: bool
) -> Raw:
    kinds = ["namespaces", "pods"]
    if direction == "egress":
        kinds += ["networks", "nodes"]
        kinds += ["domainNames"] if names and action in ("Accept", "Allow") else []
    if unknown:
        kinds += ["unknown"]
    kind = draw(st.sampled_from(kinds))
    found: dict[str, st.SearchStrategy[Any]] = {
        "namespaces": selectors(of_namespaces=True),
        "pods": _namespaced_pods(both=old),
        "nodes": selectors(),
        "networks": st.lists(
            st.sampled_from((*_BLOCKS4, *_BLOCKS4_OUT, *_BLOCKS6)),
            min_size=1,
            max_size=2,
            unique=True,
        ),
        "domainNames": st.lists(
            st.sampled_from(
                ["example.com", "*.example.com", "WWW.example.com.", "*.b.example.com", "no.org"]
            ),
            min_size=1,
            max_size=2,
            unique=True,
        ),
        "unknown": st.just({}),
    }
    if kind == "unknown":
        return draw(st.sampled_from([{}, {"externalGroups": {"matchLabels": {"a": "b"}}}]))
    return {kind: draw(found[kind])}


@st.composite
def _cluster_protocols(draw: st.DrawFn, *, unknown: bool) -> Raw:
    if unknown and draw(st.sampled_from([False, False, True])):
        return draw(st.sampled_from([{}, {"icmp": {"type": 8}}]))
    if draw(st.sampled_from([False, False, True])):
        return {"destinationNamedPort": draw(st.sampled_from(["web", "metrics", "absent"]))}
    number = {"number": draw(st.sampled_from(PORTS))}
    span = {"range": {"start": 80, "end": draw(st.sampled_from([81, 9000]))}}
    said = draw(st.sampled_from([{"destinationPort": number}, {"destinationPort": span}]))
    return {draw(st.sampled_from(["tcp", "udp", "sctp"])): said}


@st.composite
def _admin_ports(draw: st.DrawFn) -> Raw:
    protocol = {"protocol": draw(st.sampled_from(["TCP", "UDP", "SCTP"]))}
    return draw(
        st.sampled_from(
            [
                {"namedPort": draw(st.sampled_from(["web", "metrics", "absent"]))},
                {"portNumber": {"port": draw(st.sampled_from(PORTS)), **protocol}},
                {"portRange": {"start": 80, "end": 81, **protocol}},
                {"portRange": {"start": 81, "end": 9000}},
            ]
        )
    )


@st.composite
def _cluster_rules(draw: st.DrawFn, direction: str, kind: str, *, unknown: bool) -> Raw:
    old = kind != "ClusterNetworkPolicy"
    actions = ["Allow", "Deny"] if old else ["Accept", "Deny", "Pass"]
    if kind == "AdminNetworkPolicy":
        actions.append("Pass")
    action = draw(st.sampled_from(actions))
    names = kind != "BaselineAdminNetworkPolicy"  # its API does not know them
    peers = _cluster_peers(direction, action, old=old, unknown=unknown, names=names)
    word = "from" if direction == "ingress" else "to"
    rule: Raw = {"action": action, word: draw(st.lists(peers, min_size=1, max_size=2))}
    ports = _admin_ports() if old else _cluster_protocols(unknown=unknown)
    found = draw(_lists(ports))
    if found:
        nowhere = {"networks", "nodes", "domainNames"} & {k for p in rule[word] for k in p}
        named = {"namedPort", "destinationNamedPort"}
        found = [p for p in found if not (nowhere and named & set(p))]
    if found:
        rule["ports" if old else "protocols"] = found
    return rule


@st.composite
def cluster_policies(draw: st.DrawFn, index: int, *, unknown: bool = False) -> Raw:
    kind = draw(
        st.sampled_from(
            ["ClusterNetworkPolicy"] * 3 + ["AdminNetworkPolicy", "BaselineAdminNetworkPolicy"]
        )
    )
    subject = draw(
        st.one_of(
            st.builds(lambda s: {"namespaces": s}, selectors(of_namespaces=True)),
            st.builds(lambda s: {"pods": s}, _namespaced_pods(both=kind != "ClusterNetworkPolicy")),
        )
    )
    rules = {
        direction: draw(st.lists(_cluster_rules(direction, kind, unknown=unknown), max_size=3))
        for direction in ("ingress", "egress")
        if draw(st.booleans())
    }
    # Few priorities: ties happen.
    priority = draw(st.sampled_from([0, 10, 1000]))
    name = f"{draw(st.sampled_from('abc'))}{index}"
    if kind == "ClusterNetworkPolicy":
        tier = draw(st.sampled_from(["Admin", "Baseline"]))
        return make_cluster_policy(name, tier, priority, subject, **rules)
    if kind == "AdminNetworkPolicy":
        return make_admin_policy(kind, name, subject, priority=priority, **rules)
    return make_admin_policy(kind, "default", subject, **rules)


# --- strategies: worlds -------------------------------------------------------------------------


@st.composite
def worlds(
    draw: st.DrawFn, *, ipv6: bool = True, cluster: bool = True, unknown: bool = False
) -> PolicyWorld:
    """`cluster`: with the kinds of network-policy-api; `unknown`: with what they do not know."""
    pods = [draw(_pods(index, ipv6=ipv6)) for index in range(draw(st.integers(2, 5)))]
    policies = [draw(network_policies(i)) for i in range(draw(st.integers(0, 4)))]
    if cluster:
        found = [draw(cluster_policies(i, unknown=unknown)) for i in range(draw(st.integers(0, 3)))]
        # There is one BaselineAdminNetworkPolicy at most.
        policies += {(p["kind"], p["metadata"]["name"]): p for p in found}.values()
    nodes = []
    for index, name in enumerate(_NODES):
        ips = [f"172.30.0.{index + 2}", f"192.0.2.{index + 2}"]
        nodes.append(
            make_node(name, [*ips, f"fd00:30::{index + 2}"] if ipv6 else ips, draw(labels))
        )
    namespaces = [make_namespace(name, draw(labels)) for name in _NAMESPACES]
    return PolicyWorld(NaiveWorld(namespaces, pods, nodes, policies, NAMES))


@st.composite
def probes(draw: st.DrawFn, world: PolicyWorld) -> Probe:
    """Mostly between running pods. Both ends are of one family; a pod that meets itself does so
    directly or by a Service."""
    pods = [str(ip) for pod in world.world.pods.values() if not pod.host_network for ip in pod.ips]
    anybody = st.sampled_from(world.addresses)
    ends = st.one_of([anybody, *([st.sampled_from(pods)] * 4 if pods else [])])
    source, destination = draw(ends), draw(ends)
    if ip_address(source).version != ip_address(destination).version:
        version = ip_address(source).version
        destination = draw(
            st.sampled_from([t for t in world.addresses if ip_address(t).version == version])
        )
    protocol = draw(st.sampled_from(["TCP", "TCP", "UDP", "SCTP", ICMP_NAME]))
    port = 0 if protocol == ICMP_NAME else draw(st.sampled_from((*PORTS, 82)))
    same = source == destination and world.party(source).pod is not None
    return Probe(source, destination, protocol, port, same and draw(st.booleans()))
