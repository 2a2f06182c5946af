"""May this connection be opened? A second answer, from the text of the API's documentation alone.

It works on the JSON objects as they are, looks at everything for every question and shares nothing
with the package: where the two disagree, one of them has misread the text.

Read for it: the comments of NetworkPolicy in k8s.io/api/networking/v1/types.go and of
ClusterNetworkPolicy in network-policy-api:apis/v1alpha2/clusternetworkpolicy_types.go, with the
older AdminNetworkPolicy and BaselineAdminNetworkPolicy of v1alpha1. What the text leaves open is
taken from src/podwire/policy/README.md; such places say "choice".
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Raw = Mapping[str, Any]
Verdict = Literal["Accept", "Deny"] | None


@dataclass(frozen=True)
class NaiveWorld:
    """Objects as the API returns them; `names` are the addresses DNS gave for each name."""

    namespaces: Sequence[Raw] = ()
    pods: Sequence[Raw] = ()
    nodes: Sequence[Raw] = ()
    policies: Sequence[Raw] = ()
    names: Mapping[str, Sequence[str]] = field(default_factory=dict)


def allowed(
    world: NaiveWorld,
    source: str,
    destination: str,
    protocol: str,
    port: int = 0,
    *,
    hairpin: bool = False,
) -> bool:
    """A first packet between two addresses; `port` is the destination's, after any Service.

    `hairpin`: a pod that reaches itself through a Service (choice: judged as any other).
    """
    sender, receiver = pod_at(world, source), pod_at(world, destination)
    if sender is not None and sender is receiver and not hairpin:
        return True  # its own address: nothing leaves the pod
    packet = Packet(world, source, destination, protocol, port)
    out = sender is None or _between_pod_and_its_node(world, sender, destination)
    into = receiver is None or _between_pod_and_its_node(world, receiver, source)
    return (out or _direction_allows(packet, "egress", sender)) and (
        into or _direction_allows(packet, "ingress", receiver)
    )


@dataclass(frozen=True)
class Packet:
    world: NaiveWorld
    source: str
    destination: str
    protocol: str
    port: int


# --- whose address is it? -----------------------------------------------------------------------


def pod_at(world: NaiveWorld, address: str) -> Raw | None:
    """The running pod with this address; a pod of the host's network is its node (choice)."""
    for pod in world.pods:
        if pod["spec"].get("hostNetwork"):
            continue
        if (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed"):
            continue
        if any(_same(row["ip"], address) for row in (pod.get("status") or {}).get("podIPs") or ()):
            return pod
    return None


def _node_has(node: Raw, address: str) -> bool:
    rows = (node.get("status") or {}).get("addresses") or ()
    return any(_same(row["address"], address) for row in rows)


def _between_pod_and_its_node(world: NaiveWorld, pod: Raw | None, other: str) -> bool:
    """ "OR if the traffic source is the pod's local node"; the way back likewise (choice)."""
    name = pod["spec"].get("nodeName") if pod is not None else None
    return any(node["metadata"]["name"] == name and _node_has(node, other) for node in world.nodes)


def _same(a: str, b: str) -> bool:
    try:
        return ipaddress.ip_address(a) == ipaddress.ip_address(b)
    except ValueError:
        return False


# --- selectors ----------------------------------------------------------------------------------


def labels_match(selector: Raw, labels: Mapping[str, str]) -> bool:
    """A LabelSelector: all of it must hold; an empty one matches everything."""
    for key, value in (selector.get("matchLabels") or {}).items():
        if labels.get(key) != value:
            return False
    for row in selector.get("matchExpressions") or ():
        key, values = row["key"], row.get("values") or ()
        holds = {
            "In": key in labels and labels[key] in values,
            "NotIn": not (key in labels and labels[key] in values),
            "Exists": key in labels,
            "DoesNotExist": key not in labels,
        }
        if not holds[row["operator"]]:
            return False
    return True


def _labels(obj: Raw) -> dict[str, str]:
    return dict(obj["metadata"].get("labels") or {})


def _namespace_labels(world: NaiveWorld, name: str) -> dict[str, str]:
    """Every namespace has its name for a label."""
    found: dict[str, str] = {}
    for namespace in world.namespaces:
        if namespace["metadata"]["name"] == name:
            found = _labels(namespace)
    return {**found, "kubernetes.io/metadata.name": name}


def _pod_in(world: NaiveWorld, pod: Raw | None, namespaces: Raw | None, pods: Raw | None) -> bool:
    """Whether the pod is one of these pods in one of these namespaces; no selector, no limit."""
    if pod is None:
        return False
    home = _namespace_labels(world, pod["metadata"]["namespace"])
    return labels_match(namespaces or {}, home) and labels_match(pods or {}, _labels(pod))


# --- one direction ------------------------------------------------------------------------------


def _direction_allows(packet: Packet, direction: str, subject: Raw | None) -> bool:
    """Admin tier, then NetworkPolicy, then Baseline tier, then the default: all may talk."""
    assert subject is not None
    decided = _tier(packet, direction, subject, "Admin")
    if decided is None:
        decided = _network_policies(packet, direction, subject)
    if decided is None:
        decided = _tier(packet, direction, subject, "Baseline")
    return decided != "Deny"


def _live(world: NaiveWorld, *kinds: str) -> list[Raw]:
    """Policies that count: one that is staged is only watched (choice)."""
    stage = "policy.podwire.dev/stage"
    return [
        policy
        for policy in world.policies
        if policy["kind"] in kinds
        and (policy["metadata"].get("annotations") or {}).get(stage) != "true"
    ]


def _network_policies(packet: Packet, direction: str, subject: Raw) -> Verdict:
    """ "Traffic is allowed if there are no NetworkPolicies selecting the pod, OR if it matches at
    least one rule across all of those that do"."""
    isolated = False
    for policy in _live(packet.world, "NetworkPolicy"):
        spec = policy["spec"]
        if policy["metadata"]["namespace"] != subject["metadata"]["namespace"]:
            continue
        if not labels_match(spec.get("podSelector") or {}, _labels(subject)):
            continue
        types = spec.get("policyTypes") or (
            ["Ingress", "Egress"] if spec.get("egress") else ["Ingress"]
        )
        if direction.capitalize() not in types:
            continue
        isolated = True
        for rule in spec.get(direction) or ():
            if _rule_allows(packet, direction, policy, rule or {}):
                return "Accept"
    return "Deny" if isolated else None


def _rule_allows(packet: Packet, direction: str, policy: Raw, rule: Raw) -> bool:
    peers = rule.get("from" if direction == "ingress" else "to") or []
    ports = rule.get("ports") or []
    return (
        not peers or any(_peer_matches(packet, direction, policy, peer) for peer in peers)
    ) and (not ports or any(_port_matches(packet, port) for port in ports))


def _peer_matches(packet: Packet, direction: str, policy: Raw, peer: Raw) -> bool:
    address = packet.source if direction == "ingress" else packet.destination
    block = peer.get("ipBlock")
    if block is not None:
        return _within(address, block["cidr"]) and not any(
            _within(address, hole) for hole in block.get("except") or ()
        )
    other = pod_at(packet.world, address)
    if peer.get("namespaceSelector") is None:
        near = other is not None and (
            other["metadata"]["namespace"] == policy["metadata"]["namespace"]
        )
        return near and _pod_in(packet.world, other, None, peer.get("podSelector"))
    return _pod_in(packet.world, other, peer["namespaceSelector"], peer.get("podSelector"))


def _within(address: str, cidr: str) -> bool:
    network = ipaddress.ip_network(cidr, strict=False)
    it = ipaddress.ip_address(address)
    return it.version == network.version and it in network


def _port_matches(packet: Packet, port: Raw) -> bool:
    """Protocol (TCP if not said) AND port; no port: every port; endPort: a range."""
    if packet.protocol != (port.get("protocol") or "TCP"):
        return False
    wanted = port.get("port")
    if wanted is None:
        return True
    if isinstance(wanted, str):
        return _has_named_port(packet, wanted)
    return bool(wanted <= packet.port <= (port.get("endPort") or wanted))


def _has_named_port(packet: Packet, name: str) -> bool:
    """Whether the destination pod names the packet's port so; nobody else has named ports."""
    pod = pod_at(packet.world, packet.destination)
    return pod is not None and any(
        port.get("name") == name
        and (port.get("protocol") or "TCP") == packet.protocol
        and port["containerPort"] == packet.port
        for container in _running_containers(pod)
        for port in container.get("ports") or ()
    )


def _running_containers(pod: Raw) -> Iterable[Raw]:
    yield from pod["spec"].get("containers") or ()
    for container in pod["spec"].get("initContainers") or ():
        if container.get("restartPolicy") == "Always":
            yield container


# --- tiers --------------------------------------------------------------------------------------

_TIER_OF_KIND = {"AdminNetworkPolicy": "Admin", "BaselineAdminNetworkPolicy": "Baseline"}


def _tier(packet: Packet, direction: str, subject: Raw, tier: str) -> Verdict:
    """Lower priority values first, in a policy rule after rule; Pass leaves the tier."""
    policies = [
        policy
        for policy in _live(packet.world, "ClusterNetworkPolicy", *_TIER_OF_KIND)
        if _TIER_OF_KIND.get(policy["kind"], policy["spec"].get("tier")) == tier
        and _is_subject(packet.world, subject, policy["spec"]["subject"])
    ]
    # Equal priorities in the order of names (choice).
    policies.sort(key=lambda p: (p["spec"].get("priority") or 0, p["metadata"]["name"], p["kind"]))
    for policy in policies:
        for rule in policy["spec"].get(direction) or ():
            action = _tier_rule(packet, direction, rule)
            if action == "Pass":
                return None
            if action is not None:
                return "Deny" if action == "Deny" else "Accept"
    return None


def _is_subject(world: NaiveWorld, pod: Raw, subject: Raw) -> bool:
    if subject.get("namespaces") is not None:
        return _pod_in(world, pod, subject["namespaces"], None)
    pods = subject["pods"]
    return _pod_in(world, pod, pods.get("namespaceSelector"), pods.get("podSelector"))


_PEERS = {
    "ingress": {"namespaces", "pods"},
    "egress": {"namespaces", "pods", "nodes", "networks", "domainNames"},
}
_PROTOCOLS = {"tcp", "udp", "sctp", "destinationNamedPort"}


def _tier_rule(packet: Packet, direction: str, rule: Raw) -> str | None:
    """The rule's action if it matches.

    A peer of no known field, or a protocol of none, is of a version this is not: "fail closed".
    For Accept that is to match nothing, for Deny and Pass it is to deny all.
    """
    action = rule["action"]
    peers = rule.get("from" if direction == "ingress" else "to") or []
    protocols = rule.get("protocols") or []
    readable = all(set(_set_fields(peer)) & _PEERS[direction] for peer in peers) and all(
        set(_set_fields(protocol)) & _PROTOCOLS for protocol in protocols
    )
    if not readable:
        return None if action in ("Accept", "Allow") else "Deny"
    if not any(_tier_peer(packet, direction, peer) for peer in peers):
        return None
    if protocols and not any(_tier_protocol(packet, protocol) for protocol in protocols):
        return None
    ports = rule.get("ports") or []
    if ports and not any(_admin_port(packet, port) for port in ports):
        return None
    return str(action)


def _set_fields(union: Raw) -> list[str]:
    return [key for key, value in union.items() if value is not None]


def _tier_peer(packet: Packet, direction: str, peer: Raw) -> bool:
    address = packet.source if direction == "ingress" else packet.destination
    world, other = packet.world, pod_at(packet.world, address)
    if peer.get("namespaces") is not None:
        return _pod_in(world, other, peer["namespaces"], None)
    if peer.get("pods") is not None:
        pods = peer["pods"]
        return _pod_in(world, other, pods.get("namespaceSelector"), pods.get("podSelector"))
    if peer.get("nodes") is not None:
        return any(
            labels_match(peer["nodes"], _labels(node)) and _node_has(node, address)
            for node in world.nodes
        )
    if peer.get("networks") is not None:
        return any(_within(address, cidr) for cidr in peer["networks"])
    return any(_name_has(world, pattern, address) for pattern in peer["domainNames"])


def _name_has(world: NaiveWorld, pattern: str, address: str) -> bool:
    wanted = pattern.lower().rstrip(".").split(".")
    for name, addresses in world.names.items():
        said = name.lower().rstrip(".").split(".")
        if wanted[0] == "*":
            rest = wanted[1:]
            meant = len(said) > len(rest) and said[-len(rest) :] == rest
        else:
            meant = said == wanted
        if meant and any(_same(each, address) for each in addresses):
            return True
    return False


def _tier_protocol(packet: Packet, protocol: Raw) -> bool:
    if protocol.get("destinationNamedPort") is not None:
        return _has_named_port(packet, protocol["destinationNamedPort"])
    said = protocol.get(packet.protocol.lower())
    if said is None:
        return False
    port = said.get("destinationPort")
    if port is None:
        return True
    if port.get("range") is not None:
        return bool(port["range"]["start"] <= packet.port <= port["range"]["end"])
    return bool(port["number"] == packet.port)


def _admin_port(packet: Packet, port: Raw) -> bool:
    """v1alpha1: `portNumber`, `portRange` or `namedPort`."""
    if port.get("namedPort") is not None:
        return _has_named_port(packet, port["namedPort"])
    said = port.get("portNumber") or port["portRange"]
    if packet.protocol != (said.get("protocol") or "TCP"):
        return False
    first, last = said.get("port") or said.get("start"), said.get("port") or said.get("end")
    return bool(first <= packet.port <= last)
