"""May this connection be opened, and who says so? The meaning of all policies. Pure.

    Flow + PolicySet + World -> evaluate -> Decision: egress of the source AND ingress of the
    destination, each judged alone:

        Admin rules by priority -> NetworkPolicy, where one isolates -> Baseline rules -> allowed
             first match wins        any match allows, else denied        first match wins

Compiled rulesets, `reach`, `why`, `diff` and real packets are held against this function. It looks
at one connection and at nothing clever; what is fast is derived from it and proven to agree.

Sources: Kubernetes' concept page "Network Policies" (S1-S21 of it are cited by number in
policy/README.md), network-policy-api v1alpha2.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from podwire.policy.model import (
    DIRECTIONS,
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
    PortMatch,
    Rule,
    Tier,
    in_order,
)
from podwire.policy.world import NodeView, PodView, World

Reason: TypeAlias = Literal[
    "rule",  # `rule` decided
    "isolated",  # `isolating` policies select the pod and none of their rules accepts
    "no policy",  # nothing speaks of this pod and direction
    "no rule",  # cluster policies speak of it, none of their rules matches or all passed
    "not a pod",  # nodes, hostNetwork pods and outsiders have no policy
    "own node",  # a pod and its own node may always talk
    "self",  # a pod's own address never leaves its namespace
]


@dataclass(frozen=True)
class Semantics:
    """Where Kubernetes leaves a choice: ours by default, other plugins' in `profiles`.

    `ipblock_matches_pods`   ipBlock and networks match the addresses of pods too
    `baseline_per_direction` a pod that NetworkPolicies isolate for egress only still meets
                             Baseline rules for ingress; else any NetworkPolicy ends Baseline
    `hairpin_judged`         directions in which a pod that reaches itself through a Service is
                             judged as any other; in others that is allowed
    `ipblock_matches_nodes`  ipBlock and networks match the addresses of nodes, which hostNetwork
                             pods have
    """

    ipblock_matches_pods: bool = True
    baseline_per_direction: bool = True
    hairpin_judged: tuple[Direction, ...] = DIRECTIONS
    ipblock_matches_nodes: bool = True


DEFAULT: Final = Semantics()


@dataclass(frozen=True, slots=True)
class Party:
    """One end of a connection: a pod, a node (its hostNetwork pods too) or an outsider.

    `ip` None is a pod of a file, which has no address: no ipBlock matches it.
    """

    ip: Address | None = None
    pod: PodView | None = None
    node: NodeView | None = None


@dataclass(frozen=True, slots=True)
class Flow:
    """A connection's first packet between DNAT and SNAT; `port` is the destination's own.

    ICMP has port 0. `hairpin`: the source meets itself through a Service.
    """

    source: Party
    destination: Party
    protocol: int
    port: int = 0
    hairpin: bool = False


@dataclass(frozen=True, slots=True)
class Judgement:
    """One direction. `isolating` are the NetworkPolicies that isolate the pod in it, `passed` the
    Pass rules that were followed."""

    direction: Direction
    allowed: bool
    reason: Reason
    rule: Rule | None = None
    isolating: tuple[PolicyRef, ...] = ()
    passed: tuple[Rule, ...] = ()


@dataclass(frozen=True, slots=True)
class Decision:
    egress: Judgement
    ingress: Judgement

    @property
    def allowed(self) -> bool:
        return self.egress.allowed and self.ingress.allowed


class PolicySet:
    """Policies in order, and quickly those that select a pod. Immutable but for its memory.

    Staged policies are left out unless asked for.
    """

    def __init__(self, policies: Iterable[Policy], *, staged: bool = False) -> None:
        self.policies = in_order([p for p in policies if staged or not p.staged])
        self._of_namespace: dict[str, list[Policy]] = {}
        self._of_cluster: list[Policy] = []
        for policy in self.policies:
            if policy.subject.namespaces is None:
                self._of_namespace.setdefault(policy.subject.namespace, []).append(policy)
            else:
                self._of_cluster.append(policy)

    def selecting(self, pod: PodView, world: World) -> tuple[Policy, ...]:
        """Those whose subject the pod is, in order."""
        near = self._of_namespace.get(pod.key.namespace, ())
        return in_order([p for p in (*self._of_cluster, *near) if selects(p.subject, pod, world)])


# --- matching -----------------------------------------------------------------------------------


def selects(peer: PodsPeer, pod: PodView, world: World) -> bool:
    if pod.host_network:
        return False
    if peer.namespaces is None:
        if peer.namespace != pod.key.namespace:
            return False
    elif not peer.namespaces.matches(world.namespaces[pod.key.namespace]):
        return False
    return peer.pods.matches(pod.labels)


def matches_peer(peer: Peer, party: Party, world: World, semantics: Semantics = DEFAULT) -> bool:
    match peer:
        case PodsPeer():
            return party.pod is not None and selects(peer, party.pod, world)
        case NetworkPeer():
            met = party.ip is not None and peer.contains(party.ip)
            return met and _has_an_address(party, semantics)
        case NodesPeer():
            return party.node is not None and peer.nodes.matches(party.node.labels)
        case DomainPeer():
            return party.ip is not None and any(
                party.ip in addresses
                for name, addresses in world.names.items()
                if matches_domain(peer.name, name)
            )


def _has_an_address(party: Party, semantics: Semantics) -> bool:
    """Whether addresses are how rules may know it."""
    if party.pod is not None and not party.pod.host_network:
        return semantics.ipblock_matches_pods
    if party.pod is not None or party.node is not None:
        return semantics.ipblock_matches_nodes
    return True


def matches_domain(pattern: str, name: str) -> bool:
    """`*.` stands for one or more labels, never for the apex (network-policy-api, DomainName)."""
    name = name.rstrip(".").lower()
    if pattern.startswith("*."):
        return name.endswith(pattern[1:]) and len(name) > len(pattern) - 1
    return name == pattern


@dataclass(frozen=True, slots=True)
class Case:
    """One flow seen from one of its ends; `peer` is the other."""

    direction: Direction
    flow: Flow
    world: World
    semantics: Semantics = DEFAULT

    @property
    def subject(self) -> Party:
        return self.flow.source if self.direction == "egress" else self.flow.destination

    @property
    def peer(self) -> Party:
        return self.flow.destination if self.direction == "egress" else self.flow.source

    def meets(self, rule: Rule) -> bool:
        return self.meets_ports(rule) and self.meets_peers(rule)

    def meets_ports(self, rule: Rule) -> bool:
        return rule.ports is None or any(self._meets_port(port) for port in rule.ports)

    def meets_peers(self, rule: Rule) -> bool:
        return rule.peers is None or any(
            matches_peer(peer, self.peer, self.world, self.semantics) for peer in rule.peers
        )

    def _meets_port(self, port: PortMatch) -> bool:
        """A named port is resolved on the destination, which must be a pod (S9); one of the host's
        network is its node (S13)."""
        flow = self.flow
        if isinstance(port, NamedPort):
            pod = flow.destination.pod
            return (
                pod is not None
                and not pod.host_network
                and any(own.contains(flow.protocol, flow.port) for own in pod.resolve(port))
            )
        return port.contains(flow.protocol, flow.port)


# --- judging ------------------------------------------------------------------------------------


def evaluate(
    flow: Flow, policies: PolicySet, world: World, semantics: Semantics = DEFAULT
) -> Decision:
    return Decision(
        egress=judge(Case("egress", flow, world, semantics), policies),
        ingress=judge(Case("ingress", flow, world, semantics), policies),
    )


def judge(case: Case, policies: PolicySet) -> Judgement:
    direction, pod, peer = case.direction, case.subject.pod, case.peer
    if pod is None or pod.host_network:
        return Judgement(direction, True, "not a pod")
    if peer.node is not None and peer.node.name == pod.node:
        return Judgement(direction, True, "own node")
    itself = peer.pod is not None and peer.pod.key == pod.key
    if itself and not (case.flow.hairpin and direction in case.semantics.hairpin_judged):
        return Judgement(direction, True, "self")
    return judge_selected(case, policies.selecting(pod, case.world))


def judge_selected(case: Case, selecting: Sequence[Policy]) -> Judgement:
    """What the policies that select the subject say, given in order."""
    direction = case.direction
    passed: list[Rule] = []
    rule = _first(case, Tier.ADMIN, selecting, passed)
    if rule is not None:
        return Judgement(direction, rule.action == "Accept", "rule", rule, passed=tuple(passed))
    ordinary = [p for p in selecting if p.tier is Tier.NETWORK_POLICY]
    isolating = tuple(p.ref for p in ordinary if direction in p.isolates)
    if isolating:
        rule = next((r for p in ordinary for r in p.rules(direction) if case.meets(r)), None)
        reason: Reason = "isolated" if rule is None else "rule"
        return Judgement(direction, rule is not None, reason, rule, isolating, tuple(passed))
    if case.semantics.baseline_per_direction or not ordinary:
        rule = _first(case, Tier.BASELINE, selecting, passed)
        if rule is not None:
            accepted = rule.action == "Accept"
            return Judgement(direction, accepted, "rule", rule, passed=tuple(passed))
    spoken = any(policy.concerns(direction) for policy in selecting)
    return Judgement(direction, True, "no rule" if spoken else "no policy", passed=tuple(passed))


def _first(case: Case, tier: Tier, selecting: Sequence[Policy], passed: list[Rule]) -> Rule | None:
    """The rule that decides in a tier of ordered rules; Pass leaves the tier and is noted."""
    for policy in selecting:
        if policy.tier is not tier:
            continue
        for rule in policy.rules(case.direction):
            if case.meets(rule):
                if rule.action == "Pass":
                    passed.append(rule)
                    return None
                return rule
    return None
