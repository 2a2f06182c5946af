"""What is likely wrong with policies, though each of them is valid. Pure.

    situations of a Reach (who is selected together, whom they meet) -> findings, each with its rule

A rule is judged by what it does to the pods there are: one that never decides is shadowed, one that
nothing depends on is redundant, one that names nobody is dangling.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple, TypeAlias

from podwire.objects.meta import Key
from podwire.policy import intervals, ports
from podwire.policy.classviews import ports_of
from podwire.policy.evaluate import Case, Flow, Party, PolicySet, judge_selected, selects
from podwire.policy.intervals import EMPTY, Intervals
from podwire.policy.model import (
    DIRECTIONS,
    Direction,
    NamedPort,
    PodsPeer,
    Policy,
    PolicyRef,
    PortRange,
    Rule,
    Tier,
)
from podwire.policy.reach import Reach, Situation
from podwire.policy.world import PodView, World

Severity: TypeAlias = Literal["error", "warning", "info"]
CHECKS: Final[Mapping[str, Severity]] = {
    "dangling-subject": "warning",
    "dangling-peer": "warning",
    "unknown-namespace": "info",
    "shadowed-rule": "warning",
    "redundant-rule": "info",
    "priority-tie": "error",
    "pass-to-nowhere": "warning",
    "baseline-never-reached": "warning",
    "dns-isolated": "warning",
    "service-port": "error",
    "named-port": "warning",
    "empty-rule": "info",
    "empty-range": "error",
    "fails-closed": "error",
}
_DNS: Final = PodView(Key("kube-system", "cluster-dns"), {"k8s-app": "kube-dns"})
_SHOWN: Final = 3


class Finding(NamedTuple):
    """`path` is the field, e.g. `spec.ingress[0]`; `others` are the policies it has to do with."""

    check: str
    policy: PolicyRef
    path: str
    text: str
    others: tuple[str, ...] = ()

    @property
    def severity(self) -> Severity:
        return CHECKS[self.check]


class ServiceLead(NamedTuple):
    """A Service's port and the pod's own port it leads to."""

    service: str
    pod: Key
    protocol: int
    port: int
    target: int


def lint(reach: Reach, policies: PolicySet, leads: Sequence[ServiceLead] = ()) -> list[Finding]:
    """In the order of policies and their fields."""
    found: list[Finding] = []
    for policy in policies.policies:
        found += _alone(policy, reach.world)
    usage = _Usage(policies)
    for direction in DIRECTIONS:
        for situation in reach.situations(direction):
            usage.note(situation)
    found += usage.findings()
    found += _isolated_dns(reach, policies)
    found += _service_ports(policies, reach.world, leads)
    order = {policy.ref: number for number, policy in enumerate(policies.policies)}
    return sorted(found, key=lambda f: (order[f.policy], f.path, f.check, f.text))


# --- a policy by itself -------------------------------------------------------------------------


def _alone(policy: Policy, world: World) -> Iterator[Finding]:
    ref = policy.ref
    subjects = [pod for pod in world.pods.values() if selects(policy.subject, pod, world)]
    if not subjects:
        yield Finding("dangling-subject", ref, "spec", "selects no pod there is")
    for rule in (*policy.ingress, *policy.egress):
        yield from _rule_alone(rule, world)
        if rule.direction == "ingress" and subjects:
            yield from _unnamed(rule, subjects)


def _rule_alone(rule: Rule, world: World) -> Iterator[Finding]:
    ref, path = rule.policy, rule.path
    if rule.peers is None and rule.ports is None and rule.action == "Accept":
        yield Finding("empty-rule", ref, path, "has no peers and no ports: it accepts everything")
    if rule.peers == ():
        text = "has a peer or protocol this version does not know: it accepts nothing"
        yield Finding("fails-closed", ref, path, text)
    if rule.ports == ():
        text = "its port ranges end before they start: it means no connection"
        yield Finding("empty-range", ref, path, text)
    for number, peer in enumerate(rule.peers or ()):
        if not isinstance(peer, PodsPeer):
            continue
        field = f"{path}.{'from' if rule.direction == 'ingress' else 'to'}[{number}]"
        if not _meets_namespace(peer, world):
            text = f"{_words(peer)}: matches no namespace there is"
            yield Finding("unknown-namespace", ref, field, text)
        elif not any(selects(peer, pod, world) for pod in world.pods.values()):
            text = f"{_words(peer)}: matches no pod there is"
            yield Finding("dangling-peer", ref, field, text)


def _meets_namespace(peer: PodsPeer, world: World) -> bool:
    """Files are often a part of a cluster: a namespace they lack is likely elsewhere."""
    if peer.namespaces is None:
        return peer.namespace in world.namespaces
    return any(peer.namespaces.matches(labels) for labels in world.namespaces.values())


def _words(peer: PodsPeer) -> str:
    pods = f"pods {peer.pods}" if peer.pods.expressions else "all pods"
    if peer.namespaces is None:
        return f"{pods} of namespace {peer.namespace}"
    where = f"namespaces {peer.namespaces}" if peer.namespaces.expressions else "all namespaces"
    return f"{pods} of {where}"


def _unnamed(rule: Rule, subjects: Sequence[PodView]) -> Iterator[Finding]:
    for port in rule.ports or ():
        if isinstance(port, NamedPort) and not any(pod.resolve(port) for pod in subjects):
            text = f"port {port.name!r}: none of the {len(subjects)} selected pods has one so named"
            yield Finding("named-port", rule.policy, rule.path, text)


# --- rules together -----------------------------------------------------------------------------


@dataclass
class _Usage:
    """What rules do, over all situations."""

    policies: PolicySet
    met: set[Rule] = field(default_factory=set)
    decides: set[Rule] = field(default_factory=set)
    shadows: dict[Rule, set[Rule]] = field(default_factory=dict)
    ties: dict[tuple[Rule, Rule], None] = field(default_factory=dict)
    passes: dict[Rule, bool] = field(default_factory=dict)
    """Rules that pass something, with whether somebody below spoke of it."""
    baseline: dict[PolicyRef, bool] = field(default_factory=dict)
    """Baseline policies that select somebody, with whether they are ever asked."""
    together: dict[object, list[tuple[Rule, Intervals]]] = field(default_factory=dict)
    """NetworkPolicies' rules that mean something in the same situation, each once."""

    def note(self, situation: Situation) -> None:
        rules = [
            (policy, rule, part)
            for policy in situation.policies
            for rule in policy.rules(situation.direction)
            if (part := situation.meant(rule))
        ]
        self.met.update(rule for _, rule, _ in rules)
        ordinary = [(rule, part) for p, rule, part in rules if p.tier is Tier.NETWORK_POLICY]
        self.together.setdefault(tuple((id(rule), part) for rule, part in ordinary), ordinary)
        self.decides.update(rule for rule, _ in ordinary)
        isolated = any(situation.direction in p.isolates for p in situation.policies)
        self._note_ties(rules)
        left, passed = self._walk([r for r in rules if r[0].tier is Tier.ADMIN], ports.ALL)
        lower = [r for r in rules if r[0].tier is Tier.BASELINE]
        for rule, part in passed:
            spoken = isolated or any(intervals.intersect(part, own) for _, _, own in lower)
            self.passes[rule] = self.passes.get(rule, False) or spoken
        for policy in situation.policies:
            if policy.tier is Tier.BASELINE and policy.rules(situation.direction):
                asked = not isolated and bool(left)
                self.baseline[policy.ref] = self.baseline.get(policy.ref, False) or asked
        if not isolated:
            self._walk(lower, left)

    def _walk(
        self, rules: Iterable[tuple[Policy, Rule, Intervals]], open_: Intervals
    ) -> tuple[Intervals, list[tuple[Rule, Intervals]]]:
        """Rules in order: what none decides, and what which rule passes."""
        passed: list[tuple[Rule, Intervals]] = []
        left = open_
        taken: list[tuple[Rule, Intervals]] = []
        for _, rule, meant in rules:
            part = intervals.intersect(left, meant)
            if part:
                self.decides.add(rule)
            for earlier, own in taken:
                if intervals.intersect(own, meant):
                    self.shadows.setdefault(rule, set()).add(earlier)
            if rule.action == "Pass" and part:
                passed.append((rule, part))
            taken.append((rule, part))
            left = intervals.subtract(left, meant)
        return intervals.union(left, *(part for _, part in passed)), passed

    def _note_ties(self, rules: Sequence[tuple[Policy, Rule, Intervals]]) -> None:
        ordered = [r for r in rules if r[0].tier is not Tier.NETWORK_POLICY]
        for i, (policy, rule, part) in enumerate(ordered):
            for other, rival, own in ordered[i + 1 :]:
                tied = (policy.tier, policy.priority) == (other.tier, other.priority)
                differ = policy.ref != other.ref and rule.action != rival.action
                if tied and differ and intervals.intersect(part, own):
                    self.ties.setdefault((rule, rival))

    # --- findings ---

    def findings(self) -> Iterator[Finding]:
        for rule in sorted(self.met - self.decides, key=_place):
            by = tuple(sorted(map(str, self.shadows.get(rule, ()))))
            text = f"never decides: earlier rules do, {', '.join(by[:_SHOWN]) or 'of a tier above'}"
            yield Finding("shadowed-rule", rule.policy, rule.path, text, by)
        for rule, rival in self.ties:
            text = (
                f"{rule.action} and {rival.action} of {rival} have the same priority and overlap; "
                "the API leaves open which wins, here it is the first by name"
            )
            yield Finding("priority-tie", rule.policy, rule.path, text, (str(rival),))
        for rule, spoken in self.passes.items():
            if not spoken:
                text = (
                    "passes to nowhere: no NetworkPolicy isolates there and no Baseline rule speaks"
                )
                yield Finding("pass-to-nowhere", rule.policy, rule.path, text)
        for ref, asked in self.baseline.items():
            if not asked:
                text = "is never asked: NetworkPolicies or Admin rules decide for all it selects"
                yield Finding("baseline-never-reached", ref, "spec", text)
        yield from self._redundant()

    def _redundant(self) -> Iterator[Finding]:
        """The later of rules that do the same goes first, so that one of them stays."""
        by_rule: dict[Rule, list[list[tuple[Rule, Intervals]]]] = {}
        for situation in self.together.values():
            for rule, _ in situation:
                by_rule.setdefault(rule, []).append(situation)
        gone: set[Rule] = set()
        for rule in sorted(by_rule, key=_place, reverse=True):
            helpers: set[Rule] = set()
            if all(_covered(rule, situation, gone, helpers) for situation in by_rule[rule]):
                gone.add(rule)
                by = tuple(sorted(map(str, helpers)))
                text = f"changes nothing: {', '.join(by[:_SHOWN])} allow all that it does"
                yield Finding("redundant-rule", rule.policy, rule.path, text, by)


def _place(rule: Rule) -> tuple[PolicyRef, str, int]:
    return rule.policy, rule.direction, rule.index


def _covered(
    rule: Rule,
    situation: Sequence[tuple[Rule, Intervals]],
    gone: set[Rule],
    helpers: set[Rule],
) -> bool:
    own = next(part for other, part in situation if other == rule)
    rest: Intervals = own
    for other, part in situation:
        if other != rule and other not in gone and intervals.intersect(rest, part):
            helpers.add(other)
            rest = intervals.subtract(rest, part)
    return rest == EMPTY


# --- what applications need ---------------------------------------------------------------------


def _isolated_dns(reach: Reach, policies: PolicySet) -> Iterator[Finding]:
    """Pods whose egress is isolated and that cannot ask cluster DNS, nor anybody at UDP 53."""
    world = reach.world
    servers = [p for p in world.pods.values() if p.labels.get("k8s-app") == "kube-dns"] or [_DNS]
    namespaces = {"kube-system": {"kubernetes.io/metadata.name": "kube-system"}, **world.namespaces}
    full = World(namespaces, world.pods, world.nodes, world.names)
    deaf: dict[tuple[PolicyRef, ...], list[PodView]] = {}
    for group in reach.groups:
        pod = group[0]
        selecting = policies.selecting(pod, world)
        isolating = tuple(p.ref for p in selecting if "egress" in p.isolates)
        if isolating and not _asks_dns(pod, selecting, servers, full):
            deaf.setdefault(isolating, []).extend(group)
    for refs, pods in deaf.items():
        names = ", ".join(str(pod.key) for pod in pods[:_SHOWN])
        more = f" and {len(pods) - _SHOWN} more" if len(pods) > _SHOWN else ""
        text = f"isolates egress of {names}{more} from cluster DNS: no rule accepts UDP 53"
        yield Finding("dns-isolated", refs[0], "spec.egress", text, tuple(map(str, refs[1:])))


def _asks_dns(
    pod: PodView, selecting: Sequence[Policy], servers: Sequence[PodView], world: World
) -> bool:
    for policy in selecting:
        for rule in policy.rules("egress"):
            # DNS may be a cache on the node, or a server outside: any peer will do.
            numbered = ports_of(rule, {})
            if rule.action == "Accept" and rule.ports and intervals.contains(numbered, _UDP_53):
                return True
    for server in servers:
        flow = Flow(Party(None, pod), Party(None, server), 17, 53)
        if judge_selected(Case("egress", flow, world), selecting).allowed:
            return True
    return False


_UDP_53: Final = ports.point(17, 53)


def _service_ports(
    policies: PolicySet, world: World, leads: Sequence[ServiceLead]
) -> Iterator[Finding]:
    """Rules with a Service's port where the pods behind it have another."""
    by_port: dict[tuple[int, int], list[ServiceLead]] = {}
    for lead in leads:
        if lead.port != lead.target:
            by_port.setdefault((lead.protocol, lead.port), []).append(lead)
    for policy in policies.policies:
        for direction in DIRECTIONS:
            for rule in policy.rules(direction):
                yield from _service_port(policy, rule, direction, world, by_port)


def _service_port(
    policy: Policy,
    rule: Rule,
    direction: Direction,
    world: World,
    by_port: Mapping[tuple[int, int], Sequence[ServiceLead]],
) -> Iterator[Finding]:
    peers = [policy.subject] if direction == "ingress" else list(rule.peers or ())
    meant = ports_of(rule, {})
    for number, port in enumerate(rule.ports or ()):
        if not isinstance(port, PortRange) or port.first != port.last:
            continue
        for lead in by_port.get((port.protocol, port.first), ()):
            pod = world.pods[lead.pod]
            concerned = any(isinstance(p, PodsPeer) and selects(p, pod, world) for p in peers)
            if concerned and not intervals.contains(meant, ports.point(lead.protocol, lead.target)):
                text = (
                    f"{port.first} is the port of Service {lead.service}; policies see the pod's "
                    f"own, {lead.target}"
                )
                yield Finding("service-port", rule.policy, f"{rule.path}.ports[{number}]", text)
                break
