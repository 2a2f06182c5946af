"""Policies as manifests: selectors, peers, ports and rules in the API's own shape. Pure.

Selector, Peer, ports -> the JSON that `parse_network_policy` reads back to the same
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from ipaddress import IPv4Network, IPv6Network, collapse_addresses

from podwire.objects.meta import JsonObject
from podwire.policy import ports
from podwire.policy.intervals import Intervals
from podwire.policy.model import (
    LAST_PORT,
    PROTOCOL_NAMES,
    Direction,
    Network,
    NetworkPeer,
    Peer,
    PodsPeer,
    PortRange,
)
from podwire.policy.needs import in_namespace
from podwire.policy.selector import Selector


def render_selector(selector: Selector) -> JsonObject:
    """A LabelSelector: what one value must equal as matchLabels, the rest as expressions."""
    labels = {
        e.key: e.values[0]
        for e in selector.expressions
        if e.operator == "In" and len(e.values) == 1
    }
    rest: list[JsonObject] = [
        {"key": e.key, "operator": e.operator, **({"values": [*e.values]} if e.values else {})}
        for e in selector.expressions
        if not (e.operator == "In" and len(e.values) == 1 and labels[e.key] == e.values[0])
    ]
    rendered: JsonObject = {}
    if labels:
        rendered["matchLabels"] = labels
    if rest:
        rendered["matchExpressions"] = rest
    return rendered


def render_peer(peer: Peer, namespace: str) -> JsonObject:
    """As a policy of `namespace` names it. Nodes and names are no peers of a NetworkPolicy."""
    match peer:
        case NetworkPeer():
            block: JsonObject = {"cidr": str(peer.network)}
            if peer.holes:
                block["except"] = [str(hole) for hole in peer.holes]
            return {"ipBlock": block}
        case PodsPeer(namespaces=None, namespace=own) if own == namespace:
            return {"podSelector": render_selector(peer.pods)}
        case PodsPeer():
            where = peer.namespaces if peer.namespaces is not None else in_namespace(peer.namespace)
            rendered: JsonObject = {"namespaceSelector": render_selector(where)}
            if peer.pods.expressions or peer.namespaces is None:
                rendered["podSelector"] = render_selector(peer.pods)
            return rendered
    raise TypeError(f"{peer!r} is no peer of a NetworkPolicy")


def render_ports(line: Intervals) -> list[JsonObject] | None:
    """None: every port and protocol. Only a rule without ports means other protocols, so a part
    of the line that has them is widened to all of it."""
    if any(first <= ports.OTHER <= last for first, last in line):
        return None
    return [_port(each) for each in ports.to_ranges(line)]


def _port(each: PortRange) -> JsonObject:
    rendered: JsonObject = {"protocol": PROTOCOL_NAMES[each.protocol]}
    if (each.first, each.last) != (0, LAST_PORT):
        rendered["port"] = max(each.first, 1)
        if each.last > each.first:
            rendered["endPort"] = each.last
    return rendered


def render_rules(
    direction: Direction, wanted: Mapping[Peer | None, Intervals], namespace: str
) -> list[JsonObject]:
    """Peers that need the same ports share a rule; adjacent networks become one."""
    word = "from" if direction == "ingress" else "to"
    groups: dict[Intervals, list[Peer | None]] = {}
    for peer, line in wanted.items():
        groups.setdefault(line, []).append(peer)
    rules: list[JsonObject] = []
    for line in sorted(groups):
        rule: JsonObject = {}
        peers = [peer for peer in groups[line] if peer is not None]
        if len(peers) == len(groups[line]):
            rule[word] = [render_peer(peer, namespace) for peer in merge_peers(peers)]
        rendered = render_ports(line)
        if rendered is not None:
            rule["ports"] = rendered
        rules.append(rule)
    return rules


def merge_peers(peers: Iterable[Peer]) -> list[Peer]:
    """Pods first, in the order of their text; then networks, as few as say the same."""
    chosen = list(peers)
    whole = [p.network for p in chosen if isinstance(p, NetworkPeer) and not p.holes]
    others = [p for p in chosen if not (isinstance(p, NetworkPeer) and not p.holes)]
    merged: list[Peer] = sorted(others, key=_order)
    merged += [NetworkPeer(network) for network in collapse(whole)]
    return merged


def collapse(networks: Sequence[Network]) -> list[Network]:
    v4 = [n for n in networks if isinstance(n, IPv4Network)]
    v6 = [n for n in networks if isinstance(n, IPv6Network)]
    return [*collapse_addresses(v4), *collapse_addresses(v6)]


def _order(peer: Peer) -> tuple[bool, str]:
    return (isinstance(peer, NetworkPeer), repr(peer))


def render_policy(
    name: str,
    namespace: str,
    selector: Selector,
    directions: Sequence[Direction],
    wanted: Mapping[Direction, Mapping[Peer | None, Intervals]],
    annotations: Mapping[str, str] | None = None,
) -> JsonObject:
    """A NetworkPolicy that isolates in `directions` and accepts what is `wanted`."""
    metadata: JsonObject = {"name": name, "namespace": namespace}
    if annotations:
        metadata["annotations"] = dict(annotations)
    spec: JsonObject = {
        "podSelector": render_selector(selector),
        "policyTypes": [
            word
            for word, direction in (("Ingress", "ingress"), ("Egress", "egress"))
            if direction in directions
        ],
    }
    for direction in ("ingress", "egress"):
        if direction in directions:
            rules = render_rules(direction, wanted.get(direction, {}), namespace)
            if rules:
                spec[direction] = rules
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": metadata,
        "spec": spec,
    }
