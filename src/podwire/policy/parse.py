"""NetworkPolicy as objects say it -> `Policy`. Pure.

What an API server would default is defaulted here too, so that files mean what they will mean in a
cluster (S4, S8). What cannot mean anything raises `PolicyError`, naming object and field.
Cluster-scoped kinds: `parse_cluster`.
"""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_network
from typing import Final

from podwire.errors import PolicyError
from podwire.objects.meta import LabelSelector
from podwire.objects.policy import (
    IpBlock,
    NetworkPolicy,
    NetworkPolicyPeer,
    NetworkPolicyPort,
    NetworkPolicyRule,
)
from podwire.policy.model import (
    LAST_PORT,
    PROTOCOLS,
    STAGE_ANNOTATION,
    Direction,
    NamedPort,
    Network,
    NetworkPeer,
    Peer,
    PodsPeer,
    Policy,
    PolicyRef,
    PortMatch,
    PortRange,
    Rule,
    Tier,
)
from podwire.policy.selector import EVERYTHING, Selector, normalise

_TYPES: Final[dict[str, Direction]] = {"Ingress": "ingress", "Egress": "egress"}


def parse_network_policy(obj: NetworkPolicy) -> Policy:
    """policyTypes unset means Ingress, and Egress where there is an egress rule; rules of a
    direction that is not listed count for nothing (S4, S5)."""
    ref = PolicyRef("NetworkPolicy", obj.metadata.namespace or "default", obj.metadata.name)
    spec = obj.spec
    types = spec.policy_types or ["Ingress", *(["Egress"] if spec.egress else [])]
    for i, kind in enumerate(types):
        if kind not in _TYPES:
            raise PolicyError(ref, f"spec.policyTypes[{i}]", f"{kind!r}: want Ingress or Egress")
    isolates = frozenset(_TYPES[kind] for kind in types)
    subject = read_selector(ref, "spec.podSelector", spec.pod_selector)
    return Policy(
        ref=ref,
        tier=Tier.NETWORK_POLICY,
        subject=PodsPeer(subject, ref.namespace),
        ingress=_rules(ref, "ingress", spec.ingress) if "ingress" in isolates else (),
        egress=_rules(ref, "egress", spec.egress) if "egress" in isolates else (),
        isolates=isolates,
        staged=obj.metadata.annotations.get(STAGE_ANNOTATION) == "true",
        generation=obj.metadata.generation,
    )


def _rules(
    ref: PolicyRef, direction: Direction, rules: Sequence[NetworkPolicyRule | None] | None
) -> tuple[Rule, ...]:
    return tuple(
        _rule(ref, direction, i, rule or NetworkPolicyRule()) for i, rule in enumerate(rules or ())
    )


def _rule(ref: PolicyRef, direction: Direction, index: int, rule: NetworkPolicyRule) -> Rule:
    """No peers at all means everybody, no ports every port (S5)."""
    path = f"spec.{direction}[{index}]"
    word, peers = ("from", rule.sources) if direction == "ingress" else ("to", rule.destinations)
    return Rule(
        ref,
        direction,
        index,
        peers=tuple(_peer(ref, f"{path}.{word}[{i}]", p) for i, p in enumerate(peers or ()))
        or None,
        ports=tuple(_port(ref, f"{path}.ports[{i}]", p) for i, p in enumerate(rule.ports or ()))
        or None,
    )


def _peer(ref: PolicyRef, path: str, peer: NetworkPolicyPeer) -> Peer:
    """Selectors of one element are a conjunction; a null one is absent, `{}` is all (S6)."""
    pods, namespaces = peer.pod_selector, peer.namespace_selector
    if peer.ip_block is not None:
        if pods is not None or namespaces is not None:
            text = "may not be specified when ipBlock is specified"
            raise PolicyError(ref, path, f"podSelector or namespaceSelector {text}")
        return _network(ref, f"{path}.ipBlock", peer.ip_block)
    if pods is None and namespaces is None:
        raise PolicyError(ref, path, "must specify a peer: podSelector, namespaceSelector, ipBlock")
    chosen = read_selector(ref, f"{path}.podSelector", pods)
    if namespaces is None:
        return PodsPeer(chosen, ref.namespace)
    where = read_selector(ref, f"{path}.namespaceSelector", namespaces)
    return PodsPeer(chosen, namespaces=where)


def _network(ref: PolicyRef, path: str, block: IpBlock) -> NetworkPeer:
    network = read_network(ref, f"{path}.cidr", block.cidr)
    holes = tuple(
        _hole(ref, f"{path}.except[{i}]", text, network)
        for i, text in enumerate(block.excepted or ())
    )
    return NetworkPeer(network, holes)


def _hole(ref: PolicyRef, path: str, text: str, network: Network) -> Network:
    hole = read_network(ref, path, text)
    if hole.version != network.version or not (
        int(network.network_address) <= int(hole.network_address)
        and hole.prefixlen > network.prefixlen
        and hole.network_address in network
    ):
        raise PolicyError(ref, path, f"{text!r}: must be a strict subset of `cidr`")
    return hole


def _port(ref: PolicyRef, path: str, port: NetworkPolicyPort) -> PortMatch:
    protocol = PROTOCOLS.get(port.protocol or "TCP")
    if protocol is None:
        raise PolicyError(ref, f"{path}.protocol", f"{port.protocol!r}: want TCP, UDP or SCTP")
    if isinstance(port.port, str):
        if port.end_port is not None:
            text = "may not be specified when `port` is non-numeric"
            raise PolicyError(ref, f"{path}.endPort", text)
        return NamedPort(port.port, protocol)
    if port.port is None:
        if port.end_port is not None:
            text = "may not be specified when `port` is not specified"
            raise PolicyError(ref, f"{path}.endPort", text)
        return PortRange(protocol)
    first = read_port(ref, f"{path}.port", port.port)
    last = first if port.end_port is None else read_port(ref, f"{path}.endPort", port.end_port)
    if last < first:
        text = f"{last}: must be greater than or equal to `port`"
        raise PolicyError(ref, f"{path}.endPort", text)
    return PortRange(protocol, first, last)


# --- what both groups share ---------------------------------------------------------------------


def read_selector(ref: PolicyRef, path: str, selector: LabelSelector | None) -> Selector:
    """Null is "all" where a selector is required (S3)."""
    if selector is None:
        return EVERYTHING
    try:
        return normalise(selector)
    except ValueError as error:
        raise PolicyError(ref, path, str(error)) from error


def read_network(ref: PolicyRef, path: str, text: str) -> Network:
    """Host bits are ignored, as the API server does with a warning."""
    try:
        return ip_network(text, strict=False)
    except ValueError as error:
        raise PolicyError(ref, path, f"{text!r}: must be a CIDR, e.g. 10.9.8.0/24") from error


def read_port(ref: PolicyRef, path: str, number: int) -> int:
    if not 1 <= number <= LAST_PORT:
        raise PolicyError(ref, path, f"{number}: must be between 1 and 65535, inclusive")
    return number
