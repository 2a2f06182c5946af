"""A connection is denied: which rule almost let it through, and what differs? Pure.

    denied Case + PolicySet -> rules that could have accepted it -> misses of each -> the fewest

A miss is one field of the policy that says something else than the connection does: a port, a
protocol, a label of the peer, its namespace, an address, a label of the subject itself. A rule with
a single miss is most likely what its author meant, and the miss the line to correct.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, TypeAlias

from podwire.policy.evaluate import Case, Judgement, PolicySet, matches_peer, selects
from podwire.policy.model import (
    PROTOCOL_NAMES,
    DomainPeer,
    NamedPort,
    NetworkPeer,
    NodesPeer,
    Peer,
    PodsPeer,
    Policy,
    PortMatch,
    PortRange,
    Rule,
    Tier,
)
from podwire.policy.selector import Selector
from podwire.policy.world import PodView, World

What: TypeAlias = Literal[
    "port",
    "service port",  # a Service's port where policies see the pod's own
    "end port",  # the range ends too early
    "named port",
    "protocol",
    "label",
    "namespace",
    "network",
    "except",
    "peer",  # nothing but another kind of peer would do
    "subject",  # the policy does not select the pod
]
_MOST: Final = 4
"""With more misses than that a rule is about something else."""


_ELSEWHERE: Final = 2
"""A policy that does not select the pod was most likely not written for it."""


class ServicePort(NamedTuple):
    """A Service's port that leads to the port the connection has."""

    service: str
    protocol: int
    port: int


@dataclass(frozen=True, slots=True)
class Miss:
    """`field` says `wanted`, the connection has `found`."""

    what: What
    field: str
    wanted: str
    found: str

    def __str__(self) -> str:
        match self.what:
            case "service port":
                return f"{self.field}: {self.wanted}; policies see the pod's own port, {self.found}"
            case "except":
                return f"{self.field}: {self.found} is in {self.wanted}"
        return f"{self.field}: wants {self.wanted}, is {self.found}"


@dataclass(frozen=True, slots=True)
class Near:
    """A rule that accepts, but for `misses`."""

    rule: Rule
    misses: tuple[Miss, ...]


def find_nearest(
    case: Case, judgement: Judgement, policies: PolicySet, services: Sequence[ServicePort] = ()
) -> Near | None:
    """Of the rules that would have been asked before the one that denied; None where none is near.

    Equal ones: the one whose misses are likelier mistakes, then the first in order. Of policies
    that do not select the pod only those that miss it by one label are asked, and they come after
    those that do.
    """
    best: Near | None = None
    least = (_MOST + 1, 0)
    for rule, misses in _candidates(case, judgement, policies):
        found = (*misses, *_misses(case, rule, services))
        distance = (len(found) + len(misses) * _ELSEWHERE, _weight(found))
        if found and distance < least:
            best, least = Near(rule, found), distance
    return best


def _candidates(
    case: Case, judgement: Judgement, policies: PolicySet
) -> Iterator[tuple[Rule, tuple[Miss, ...]]]:
    """Rules that let through, with what keeps their policy from being asked."""
    pod, world = case.subject.pod, case.world
    if pod is None:
        return
    denying = judgement.rule
    for policy in policies.policies:
        if denying is not None and policy.tier is not _tier(policies, denying):
            continue
        if denying is None and policy.tier is not Tier.NETWORK_POLICY:
            continue
        misses = _subject_misses(policy, pod, world)
        if len(misses) > 1:
            continue
        for rule in policy.rules(case.direction):
            if rule == denying:
                return
            blanket = rule.peers is None and rule.ports is None
            if rule.action != "Deny" and not (misses and blanket):
                yield rule, misses


def _tier(policies: PolicySet, rule: Rule) -> Tier:
    return next(policy.tier for policy in policies.policies if policy.ref == rule.policy)


# --- what differs -------------------------------------------------------------------------------


def _subject_misses(policy: Policy, pod: PodView, world: World) -> tuple[Miss, ...]:
    if selects(policy.subject, pod, world):
        return ()
    cluster = policy.subject.namespaces is not None
    path = "spec.subject" if cluster else "spec.podSelector"
    found = tuple(_pod_misses(policy.subject, pod, world, path, path))
    if pod.host_network:
        return (*found, Miss("subject", path, "pods of the cluster network", "host network"))
    return tuple(Miss("subject", miss.field, miss.wanted, miss.found) for miss in found)


def _misses(case: Case, rule: Rule, services: Sequence[ServicePort]) -> tuple[Miss, ...]:
    found: list[Miss] = []
    if not case.meets_ports(rule):
        found += _least(
            _port_misses(case, port, f"{rule.path}.{_word(rule)}[{i}]", services)
            for i, port in enumerate(rule.ports or ())
        )
    if not case.meets_peers(rule):
        found += _least(
            _peer_misses(case, peer, f"{rule.path}.{_side(rule)}[{i}]", _is_cluster(rule))
            for i, peer in enumerate(rule.peers or ())
        )
    return tuple(found)


def _least(choices: Iterable[Iterable[Miss]]) -> list[Miss]:
    """The alternative with the fewest misses; there is one more than allowed where there is none,
    as in a rule that fails closed."""
    listed = [list(choice) for choice in choices]
    nothing = [Miss("peer", "", "nobody", "anybody")] * (_MOST + 1)
    return min(listed, key=lambda misses: (len(misses), _weight(misses)), default=nothing)


def _weight(misses: Sequence[Miss]) -> int:
    """Among equals, what is likelier a mistake comes first."""
    likely = ("service port", "end port", "protocol", "except", "label", "namespace", "named port")
    return sum(miss.what not in likely for miss in misses)


def _word(rule: Rule) -> str:
    return "protocols" if rule.policy.kind == "ClusterNetworkPolicy" else "ports"


def _side(rule: Rule) -> str:
    return "from" if rule.direction == "ingress" else "to"


def _is_cluster(rule: Rule) -> bool:
    return rule.policy.kind != "NetworkPolicy"


# --- ports --------------------------------------------------------------------------------------


def _port_misses(
    case: Case, port: PortMatch, path: str, services: Sequence[ServicePort]
) -> Iterator[Miss]:
    flow = case.flow
    has = f"{PROTOCOL_NAMES.get(flow.protocol, str(flow.protocol))} {flow.port}"
    if isinstance(port, NamedPort):
        yield _named_miss(case, port, path, has)
        return
    if port.protocol != flow.protocol:
        wanted, own = PROTOCOL_NAMES[port.protocol], PROTOCOL_NAMES.get(flow.protocol, "ICMP")
        yield Miss("protocol", f"{path}.protocol", wanted, own)
    if not port.first <= flow.port <= port.last:
        yield _number_miss(port, path, flow.port, services)


def _number_miss(port: PortRange, path: str, number: int, services: Sequence[ServicePort]) -> Miss:
    for service in services:
        if port.contains(service.protocol, service.port):
            wanted = f"{service.port} is the port of Service {service.service}"
            return Miss("service port", f"{path}.port", wanted, str(number))
    if port.first < port.last:
        what: What = "end port" if number > port.last else "port"
        field = f"{path}.endPort" if number > port.last else f"{path}.port"
        return Miss(what, field, f"{port.first}-{port.last}", str(number))
    return Miss("port", f"{path}.port", str(port.first), str(number))


def _named_miss(case: Case, port: NamedPort, path: str, has: str) -> Miss:
    pod = case.flow.destination.pod
    if pod is None or pod.host_network:
        return Miss("named port", path, f"{port.name!r} of a pod", "no pod, which has no names")
    own = pod.resolve(NamedPort(port.name))
    if not own:
        names = ", ".join(p.name for p in pod.ports) or "none"
        return Miss("named port", path, repr(port.name), f"not among the pod's ports ({names})")
    numbers = ", ".join(f"{PROTOCOL_NAMES[r.protocol]} {r.first}" for r in own)
    return Miss("named port", path, f"{port.name!r}, which is {numbers}", has)


# --- peers --------------------------------------------------------------------------------------


def _peer_misses(case: Case, peer: Peer, path: str, cluster: bool) -> Iterator[Miss]:
    party, world = case.peer, case.world
    match peer:
        case PodsPeer():
            if party.pod is None or party.pod.host_network:
                is_ = str(party.ip) if party.ip is not None else "a node"
                yield Miss("peer", path, "a pod", f"{is_}, which is none")
                return
            pods = f"{path}.pods.podSelector" if cluster else f"{path}.podSelector"
            where = f"{path}.namespaces" if cluster else f"{path}.namespaceSelector"
            yield from _pod_misses(peer, party.pod, world, pods, where)
        case NetworkPeer():
            field = f"{path}.networks" if cluster else f"{path}.ipBlock"
            yield from _network_misses(case, peer, field)
        case NodesPeer():
            is_ = party.node.name if party.node is not None else "no node"
            yield Miss("peer", f"{path}.nodes", str(peer.nodes) or "any node", is_)
        case DomainPeer():
            is_ = str(party.ip) if party.ip is not None else "a pod without address"
            wanted = f"an address of {peer.name} that cluster DNS answered"
            yield Miss("peer", f"{path}.domainNames", wanted, is_)


def _pod_misses(
    peer: PodsPeer, pod: PodView, world: World, pods_path: str, namespaces_path: str
) -> Iterator[Miss]:
    if peer.namespaces is None:
        if peer.namespace != pod.key.namespace:
            wanted = f"{peer.namespace}, the policy's own"
            yield Miss("namespace", namespaces_path, wanted, pod.key.namespace)
    else:
        labels = world.namespaces[pod.key.namespace]
        for miss in _label_misses(peer.namespaces, labels, namespaces_path):
            found = f"{miss.found} (namespace {pod.key.namespace})"
            yield Miss("namespace", miss.field, miss.wanted, found)
    yield from _label_misses(peer.pods, pod.labels, pods_path)


def _label_misses(selector: Selector, labels: Mapping[str, str], path: str) -> Iterator[Miss]:
    for expression in selector.expressions:
        if not expression.matches(labels):
            value = labels.get(expression.key)
            found = f"{expression.key}={value}" if value is not None else f"no {expression.key}"
            yield Miss("label", path, str(expression), found)


def _network_misses(case: Case, peer: NetworkPeer, path: str) -> Iterator[Miss]:
    ip = case.peer.ip
    if ip is None:
        yield Miss("peer", path, str(peer.network), "a pod without address")
        return
    hole = next((hole for hole in peer.holes if ip in hole), None)
    if ip in peer.network and hole is not None:
        yield Miss("except", f"{path}.except", str(hole), str(ip))
    elif ip not in peer.network:
        yield Miss("network", path, str(peer.network), str(ip))
    elif not matches_peer(peer, case.peer, case.world, case.semantics):
        yield Miss("peer", path, "an address of no pod", f"{ip}, a pod's")
