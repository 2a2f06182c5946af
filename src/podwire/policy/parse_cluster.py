"""ClusterNetworkPolicy v1alpha2 and its v1alpha1 ancestors -> `Policy`. Pure.

    ClusterNetworkPolicy            spec.tier Admin | Baseline, actions Accept | Deny | Pass
    AdminNetworkPolicy              tier Admin, Allow is Accept
    BaselineAdminNetworkPolicy      tier Baseline, a singleton named `default`

Peers and protocols nobody here knows make a rule fail closed: Accept then matches nothing, Deny
and Pass deny everything (network-policy-api:apis/v1alpha2/clusternetworkpolicy_types.go, "fail
closed"; Calico converts them so too).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeVar

import msgspec

from podwire.errors import PolicyError
from podwire.objects.meta import LabelSelector
from podwire.objects.policy import (
    AdminPort,
    ClusterPolicy,
    ClusterPolicyPeer,
    ClusterPolicyProtocol,
    ClusterPolicyRule,
    NamespacedPods,
    ProtocolPorts,
)
from podwire.policy.model import (
    PROTOCOLS,
    STAGE_ANNOTATION,
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
from podwire.policy.parse import read_network, read_port, read_selector

_TIERS: Final = {"Admin": Tier.ADMIN, "Baseline": Tier.BASELINE}
_KIND_TIERS: Final = {
    "AdminNetworkPolicy": Tier.ADMIN,
    "BaselineAdminNetworkPolicy": Tier.BASELINE,
}
_ACTIONS: Final[Mapping[str, Mapping[str, Action]]] = {
    "ClusterNetworkPolicy": {"Accept": "Accept", "Deny": "Deny", "Pass": "Pass"},
    "AdminNetworkPolicy": {"Allow": "Accept", "Deny": "Deny", "Pass": "Pass"},
    "BaselineAdminNetworkPolicy": {"Allow": "Accept", "Deny": "Deny"},
}
T = TypeVar("T", bound=msgspec.Struct)


class _UnknownError(Exception):
    """A union has a member this version does not know."""


def parse_cluster_policy(obj: ClusterPolicy, kind: str = "") -> Policy:
    """`kind` is for objects of a list, which do not say it themselves."""
    ref = PolicyRef(kind or obj.kind or "ClusterNetworkPolicy", "", obj.metadata.name)
    spec = obj.spec
    tier = _KIND_TIERS.get(ref.kind, _TIERS.get(spec.tier))
    if tier is None:
        raise PolicyError(ref, "spec.tier", f"{spec.tier!r}: want Admin or Baseline")
    if ref.kind not in _ACTIONS:
        raise PolicyError(ref, "kind", f"{ref.kind!r}: want one of {', '.join(_ACTIONS)}")
    if ref.kind == "BaselineAdminNetworkPolicy" and ref.name != "default":
        raise PolicyError(ref, "metadata.name", f"{ref.name!r}: there is one only, named default")
    if not 0 <= spec.priority <= 1000:
        text = f"{spec.priority}: must be between 0 and 1000, inclusive"
        raise PolicyError(ref, "spec.priority", text)
    return Policy(
        ref=ref,
        tier=tier,
        subject=_subject(ref, obj),
        ingress=_rules(ref, "ingress", spec.ingress),
        egress=_rules(ref, "egress", spec.egress),
        priority=spec.priority,
        staged=obj.metadata.annotations.get(STAGE_ANNOTATION) == "true",
        generation=obj.metadata.generation,
    )


def _subject(ref: PolicyRef, obj: ClusterPolicy) -> PodsPeer:
    subject, path = obj.spec.subject, "spec.subject"
    if (subject.namespaces is None) == (subject.pods is None):
        raise PolicyError(ref, path, "want exactly one of namespaces, pods")
    return _pods(ref, path, subject.namespaces, subject.pods)


def _pods(
    ref: PolicyRef, path: str, namespaces: LabelSelector | None, pods: NamespacedPods | None
) -> PodsPeer:
    """`pods.namespaceSelector` may be left out since v1alpha2: all namespaces, as an empty one."""
    if pods is None:
        return PodsPeer(namespaces=read_selector(ref, f"{path}.namespaces", namespaces))
    # v1alpha1 says "required" of both; its Go clients wrote absent ones as `{}`, everything.
    if pods.pod_selector is None and ref.kind not in _KIND_TIERS:
        raise PolicyError(ref, f"{path}.pods.podSelector", "is required")
    where = read_selector(ref, f"{path}.pods.namespaceSelector", pods.namespace_selector)
    chosen = read_selector(ref, f"{path}.pods.podSelector", pods.pod_selector)
    return PodsPeer(chosen, namespaces=where)


def _rules(
    ref: PolicyRef, direction: Direction, rules: Sequence[ClusterPolicyRule] | None
) -> tuple[Rule, ...]:
    return tuple(_rule(ref, direction, i, rule) for i, rule in enumerate(rules or ()))


def _rule(ref: PolicyRef, direction: Direction, index: int, rule: ClusterPolicyRule) -> Rule:
    path = f"spec.{direction}[{index}]"
    actions = _ACTIONS[ref.kind]
    action = actions.get(rule.action)
    if action is None:
        text = f"{rule.action!r}: want one of {', '.join(actions)}"
        raise PolicyError(ref, f"{path}.action", text)
    word, said = ("from", rule.sources) if direction == "ingress" else ("to", rule.destinations)
    if not said:
        raise PolicyError(ref, f"{path}.{word}", "needs at least one peer")
    made = Rule(ref, direction, index, action, name=rule.name)
    try:
        peers = tuple(
            peer
            for i, raw in enumerate(said)
            for peer in _peers(ref, f"{path}.{word}[{i}]", raw, direction)
        )
        ports = _ports(ref, path, rule)
    except _UnknownError:
        return _closed(made)
    return Rule(ref, direction, index, action, peers, ports, rule.name)


def _closed(rule: Rule) -> Rule:
    """What a rule means of which a part is not understood."""
    if rule.action == "Accept":
        return Rule(rule.policy, rule.direction, rule.index, "Accept", (), None, rule.name)
    return Rule(rule.policy, rule.direction, rule.index, "Deny", None, None, rule.name)


def _peers(ref: PolicyRef, path: str, raw: Mapping[str, Any], direction: Direction) -> list[Peer]:
    """One element of `from` or `to`: exactly one field; lists of it stand for several peers."""
    name = _only_field(ref, path, raw, ClusterPolicyPeer)
    peer = _convert(ref, path, raw, ClusterPolicyPeer)
    if peer.namespaces is not None or peer.pods is not None:
        return [_pods(ref, path, peer.namespaces, peer.pods)]
    if direction == "ingress":
        raise PolicyError(ref, f"{path}.{name}", "is for egress only")
    if peer.networks == [] or peer.domain_names == []:
        raise PolicyError(ref, f"{path}.{name}", "needs at least one")
    if peer.networks is not None:
        return [
            NetworkPeer(read_network(ref, f"{path}.networks[{i}]", text))
            for i, text in enumerate(peer.networks)
        ]
    if peer.domain_names is not None:
        return [DomainPeer(text.rstrip(".").lower()) for text in peer.domain_names]
    return [NodesPeer(read_selector(ref, f"{path}.nodes", peer.nodes))]


# --- ports --------------------------------------------------------------------------------------


def _ports(ref: PolicyRef, path: str, rule: ClusterPolicyRule) -> tuple[PortMatch, ...] | None:
    """Each version has a field of its own; the other's is unknown to it, and means nothing."""
    if ref.kind not in _KIND_TIERS:
        rows = enumerate(rule.protocols or ())
        return tuple(_protocol(ref, f"{path}.protocols[{i}]", raw) for i, raw in rows) or None
    if not rule.ports:
        return None
    found = (_admin_port(ref, f"{path}.ports[{i}]", port) for i, port in enumerate(rule.ports))
    return tuple(port for port in found if port is not None)


def _protocol(ref: PolicyRef, path: str, raw: Mapping[str, Any]) -> PortMatch:
    """v1alpha2: `tcp: {destinationPort: {number: 80}}` or `destinationNamedPort: web`."""
    name = _only_field(ref, path, raw, ClusterPolicyProtocol)
    said = _convert(ref, path, raw, ClusterPolicyProtocol)
    if said.destination_named_port is not None:
        return NamedPort(said.destination_named_port)
    ports: ProtocolPorts | None = getattr(said, name)
    return _destination(ref, f"{path}.{name}.destinationPort", PROTOCOLS[name.upper()], ports)


def _destination(
    ref: PolicyRef, path: str, protocol: int, ports: ProtocolPorts | None
) -> PortRange:
    port = ports.destination_port if ports else None
    if port is None:
        return PortRange(protocol)
    if (port.number is None) == (port.range is None):
        raise PolicyError(ref, path, "want exactly one of number, range")
    if port.range is None:
        number = read_port(ref, f"{path}.number", port.number or 0)
        return PortRange(protocol, number, number)
    return _range(ref, f"{path}.range", protocol, port.range.start, port.range.end)


def _admin_port(ref: PolicyRef, path: str, port: AdminPort) -> PortMatch | None:
    """v1alpha1: `portNumber`, `portRange` or `namedPort`.

    None is a range that ends before it starts: v1alpha1 asks for start < end in words and checks
    nothing, so clusters have them, and no port is in one.
    """
    if (
        sum(field is not None for field in (port.port_number, port.port_range, port.named_port))
        != 1
    ):
        raise PolicyError(ref, path, "want exactly one of portNumber, namedPort, portRange")
    if port.named_port is not None:
        return NamedPort(port.named_port)
    if port.port_number is not None:
        protocol = _named_protocol(ref, f"{path}.portNumber", port.port_number.protocol)
        number = read_port(ref, f"{path}.portNumber.port", port.port_number.port)
        return PortRange(protocol, number, number)
    said = port.port_range
    assert said is not None
    path = f"{path}.portRange"
    protocol = _named_protocol(ref, path, said.protocol)
    first = read_port(ref, f"{path}.start", said.start)
    last = read_port(ref, f"{path}.end", said.end)
    return PortRange(protocol, first, last) if first <= last else None


def _named_protocol(ref: PolicyRef, path: str, name: str) -> int:
    if name not in PROTOCOLS:
        raise PolicyError(ref, f"{path}.protocol", f"{name!r}: want TCP, UDP or SCTP")
    return PROTOCOLS[name]


def _range(ref: PolicyRef, path: str, protocol: int, start: int, end: int) -> PortRange:
    first, last = read_port(ref, f"{path}.start", start), read_port(ref, f"{path}.end", end)
    if first >= last:
        raise PolicyError(ref, path, f"start {first} must be less than end {last}")
    return PortRange(protocol, first, last)


# --- unions -------------------------------------------------------------------------------------


def _only_field(ref: PolicyRef, path: str, raw: Mapping[str, Any], union: type[T]) -> str:
    known = [field.encode_name for field in msgspec.structs.fields(union)]
    said = [name for name, value in raw.items() if value is not None]
    if not said or any(name not in known for name in said):
        raise _UnknownError
    if len(said) > 1:
        raise PolicyError(ref, path, f"want exactly one of {', '.join(known)}")
    return said[0]


def _convert(ref: PolicyRef, path: str, raw: Mapping[str, Any], union: type[T]) -> T:
    try:
        return msgspec.convert(raw, union)
    except msgspec.ValidationError as error:
        raise PolicyError(ref, path, str(error)) from error
