"""Which verdicts depend on the network plugin: a cluster's policies under several profiles. Pure.

    StaticWorld + profiles ─┬─ honour ──────▶ what of each policy a plugin reads otherwise
                            ├─ Reach twice ─▶ pairs of pods, pods and outsiders, with other ports
                            │                 open than by default
                            └─ hairpins ────▶ pods that meet themselves through a Service

The default is podwire's own reading, which is Kubernetes' where Kubernetes says anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from ipaddress import IPv4Address, IPv6Address
from typing import Final, Literal, NamedTuple, TypeAlias

import msgspec

from podwire.explain.entries import selected_by
from podwire.explain.hints import ports_behind
from podwire.explain.staticworld import StaticWorld
from podwire.policy import intervals
from podwire.policy.classviews import Outside
from podwire.policy.connlist import format_ports
from podwire.policy.evaluate import Decision, Flow, Party, PolicySet, Semantics, evaluate
from podwire.policy.flowdocument import API_VERSION
from podwire.policy.intervals import Intervals
from podwire.policy.model import DIRECTIONS, PROTOCOL_NAMES, Direction, PortRange
from podwire.policy.ports import to_ranges
from podwire.policy.profiles import (
    DEFAULT_PROFILE,
    QUESTIONS,
    Profile,
    Question,
    honour,
)
from podwire.policy.reach import Reach
from podwire.policy.world import PodView

_SHOWN: Final = 3
_ICMP: Final = 1
_ITSELF: Final = "itself through a Service"
_MEANINGS: Final[tuple[tuple[Question, str], ...]] = (
    ("ipBlock and pods", "ipblock_matches_pods"),
    ("ipBlock and nodes", "ipblock_matches_nodes"),
    ("Baseline", "baseline_per_direction"),
    ("hairpin", "hairpin_judged"),
)
"""Which field of `Semantics` answers which question."""


Change: TypeAlias = Literal["closed", "opened"]


class RuleFinding(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel"):
    """A part of a policy the plugin reads otherwise; `maybe`: it depends on more than the files."""

    plugin: str
    object: str
    path: str
    title: str
    question: str
    place: str = ""
    maybe: bool = False
    source: str = ""


class PairFinding(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel"):
    """Connections that are allowed by default and denied there (`closed`), or the other way.

    `rule` is what decides, in words, with file and line where known.
    """

    plugin: str
    change: Change
    sources: tuple[str, ...]
    destinations: tuple[str, ...]
    ports: str
    rule: str
    question: str = ""
    source: str = ""


class Otherwise(msgspec.Struct, frozen=True, rename="camel"):
    """A cell of a profile that is not podwire's."""

    plugin: str
    question: str
    says: str
    default: str
    source: str


class PluginReport(msgspec.Struct, frozen=True, rename="camel"):
    plugins: tuple[str, ...]
    rules: tuple[RuleFinding, ...] = ()
    pairs: tuple[PairFinding, ...] = ()
    otherwise: tuple[Otherwise, ...] = ()
    api_version: str = API_VERSION
    kind: str = "PluginReport"

    @property
    def depends(self) -> bool:
        """Whether a verdict is known to be another one."""
        return bool(self.pairs) or any(not finding.maybe for finding in self.rules)


def compare_plugins(
    static: StaticWorld, profiles: Sequence[Profile], version: int = 4
) -> PluginReport:
    rules: list[RuleFinding] = []
    pairs: list[PairFinding] = []
    for profile in profiles:
        comparison = _Comparison.of(static, profile, version)
        rules += comparison.rules()
        pairs += comparison.pairs()
        pairs += comparison.outside()
        pairs += comparison.hairpins()
    return PluginReport(
        tuple(profile.name for profile in profiles),
        tuple(rules),
        tuple(pairs),
        tuple(_otherwise(profiles)),
    )


def _otherwise(profiles: Iterable[Profile]) -> Iterator[Otherwise]:
    for profile in profiles:
        for question, cell in profile.cells.items():
            default = DEFAULT_PROFILE.cells[question]
            if cell.says != default.says:
                words = QUESTIONS[question]
                yield Otherwise(profile.name, words, cell.says, default.says, cell.source)


@dataclass(frozen=True)
class _Comparison:
    """A cluster under podwire's reading and under one plugin's."""

    static: StaticWorld
    profile: Profile
    before: Reach
    after: Reach
    ours: PolicySet
    theirs: PolicySet

    @classmethod
    def of(cls, static: StaticWorld, profile: Profile, version: int) -> _Comparison:
        ours = static.policy_set
        theirs = PolicySet(honour(ours.policies, profile)[0])
        return cls(
            static,
            profile,
            Reach(static.world, ours, version=version),
            Reach(static.world, theirs, profile.semantics, version),
            ours,
            theirs,
        )

    # --- rules ---

    def rules(self) -> Iterator[RuleFinding]:
        for found in honour(self.ours.policies, self.profile)[1]:
            yield RuleFinding(
                self.profile.name,
                str(found.policy),
                found.path,
                found.text,
                QUESTIONS[found.question],
                self.static.origins.of(found.policy, found.path),
                found.only_maybe,
                self.profile.cells[found.question].source,
            )

    # --- pairs ---

    @cached_property
    def _classes(self) -> dict[tuple[int, int], list[PodView]]:
        """Pods that neither reading tells apart, by their groups in both."""
        found: dict[tuple[int, int], list[PodView]] = {}
        for pod in self.before.pods:
            place = self.before.group_of[pod.key], self.after.group_of[pod.key]
            found.setdefault(place, []).append(pod)
        return found

    def pairs(self) -> Iterator[PairFinding]:
        for source, some in self._classes.items():
            for destination, others in self._classes.items():
                if source == destination and len(some) < 2:
                    continue
                old = self.before.ports(source[0], destination[0])
                new = self.after.ports(source[1], destination[1])
                yield from self._pair(some, others, old, new)

    def _pair(
        self, some: Sequence[PodView], others: Sequence[PodView], old: Intervals, new: Intervals
    ) -> Iterator[PairFinding]:
        one = some[0]
        other = next(pod for pod in others if pod.key != one.key)
        for change, part in _changes(old, new):
            flow = _flow(self._party(one), self._party(other), part)
            ends = self._all_names(some), self._all_names(others)
            yield self._finding(change, *ends, format_ports(part), flow)

    def _all_names(self, pods: Sequence[PodView]) -> tuple[str, ...]:
        return tuple(sorted({self._name(pod) for pod in pods}))

    # --- outsiders ---

    def outside(self) -> Iterator[PairFinding]:
        for direction in DIRECTIONS:
            segments = _segments(self.before.outside(direction), self.after.outside(direction))
            for place, pods in self._classes.items():
                found: dict[tuple[Change, Intervals], list[Segment]] = {}
                for segment in segments:
                    old = _open(self.before, direction, segment.before, place[0])
                    new = _open(self.after, direction, segment.after, place[1])
                    for changed in _changes(old, new):
                        found.setdefault(changed, []).append(segment)
                for (change, part), where in found.items():
                    yield self._outsiders(direction, change, part, where, pods)

    def _outsiders(
        self,
        direction: Direction,
        change: Change,
        part: Intervals,
        where: Sequence[Segment],
        pods: Sequence[PodView],
    ) -> PairFinding:
        version = self.before.version
        far = Party((IPv4Address if version == 4 else IPv6Address)(where[0].first))
        near = self._party(pods[0])
        joined = intervals.union((segment.first, segment.last) for segment in where)
        outside = tuple(f"{Outside(version, *each)}[External]" for each in joined)
        inside = self._all_names(pods)
        if direction == "ingress":
            flow = _flow(far, near, part)
            return self._finding(change, outside, inside, format_ports(part), flow)
        return self._finding(change, inside, outside, format_ports(part), _flow(near, far, part))

    def _finding(
        self,
        change: Change,
        sources: tuple[str, ...],
        destinations: tuple[str, ...],
        ports: str,
        flow: Flow,
    ) -> PairFinding:
        """What decides is the rule that allows: of the reading that does."""
        ours, theirs = self._decide(flow)
        question = self._question(flow, theirs.allowed)
        return PairFinding(
            self.profile.name,
            change,
            sources,
            destinations,
            ports,
            self._tell(ours, theirs),
            QUESTIONS[question] if question else "",
            self.profile.cells[question].source if question else "",
        )

    def _decide(self, flow: Flow) -> tuple[Decision, Decision]:
        world = self.static.world
        return (
            evaluate(flow, self.ours, world),
            evaluate(flow, self.theirs, world, self.profile.semantics),
        )

    def _question(self, flow: Flow, allowed: bool) -> Question | None:
        """Which single choice is enough for the plugin's verdict; None: what it cannot enforce."""
        for question, name in _MEANINGS:
            value = getattr(self.profile.semantics, name)
            one = replace(Semantics(), **{name: value})
            if one != Semantics():
                found = evaluate(flow, self.ours, self.static.world, one)
                if found.allowed == allowed:
                    return question
        return None

    def _tell(self, ours: Decision, theirs: Decision) -> str:
        """The direction that differs, and what it rests on."""
        directions = ((ours.egress, theirs.egress), (ours.ingress, theirs.ingress))
        for mine, other in directions:
            if mine.allowed != other.allowed:
                allowing, denying = (mine, other) if mine.allowed else (other, mine)
                rule = allowing.rule or denying.rule
                if rule is not None:
                    return self.static.origins.tell(rule)
                where = self.static.origins
                return "; ".join(
                    f"{ref} ({place})" if (place := where.of(ref)) else str(ref)
                    for ref in allowing.isolating or denying.isolating
                )
        return ""

    def _party(self, pod: PodView) -> Party:
        world = self.static.world
        node = world.nodes.get(pod.node) if pod.host_network else None
        ip = next((ip for ip in pod.ips if ip.version == self.before.version), None)
        return Party(ip, pod, node)

    def _name(self, pod: PodView) -> str:
        return self._names.get(pod.key, str(pod.key))

    @cached_property
    def _names(self) -> dict[object, str]:
        return {talker.view.key: str(talker.owner) for talker in self.static.talkers}

    # --- a pod and itself ---

    def hairpins(self) -> Iterator[PairFinding]:
        for service in self.static.services.values():
            for talker in self.static.talkers:
                if not selected_by(service, talker.view):
                    continue
                for port in dict.fromkeys(ports_behind(service, None, talker.view)):
                    party = self._party(talker.view)
                    flow = Flow(party, party, port.protocol, port.first, hairpin=True)
                    ours, theirs = self._decide(flow)
                    if ours.allowed != theirs.allowed:
                        yield self._finding(
                            "closed" if ours.allowed else "opened",
                            (str(talker.owner),),
                            (_ITSELF,),
                            f"{PROTOCOL_NAMES[port.protocol]} {port.first}",
                            flow,
                        )


class Segment(NamedTuple):
    """Addresses that are one range in both readings, and which range that is in each."""

    first: int
    last: int
    before: Outside
    after: Outside


def _segments(before: Sequence[Outside], after: Sequence[Outside]) -> list[Segment]:
    """Both cover all addresses, in order."""
    found: list[Segment] = []
    i = j = 0
    while i < len(before) and j < len(after):
        first = max(before[i].first, after[j].first)
        last = min(before[i].last, after[j].last)
        found.append(Segment(first, last, before[i], after[j]))
        i, j = i + (before[i].last == last), j + (after[j].last == last)
    return found


def _open(reach: Reach, direction: Direction, outside: Outside, group: int) -> Intervals:
    if direction == "ingress":
        return reach.from_outside(outside, group)
    return reach.to_outside(group, outside)


def _changes(old: Intervals, new: Intervals) -> list[tuple[Change, Intervals]]:
    closed: tuple[Change, Intervals] = ("closed", intervals.subtract(old, new))
    opened: tuple[Change, Intervals] = ("opened", intervals.subtract(new, old))
    return [each for each in (closed, opened) if each[1]]


def _flow(source: Party, destination: Party, part: Intervals) -> Flow:
    """One of the connections in question."""
    found: PortRange | None = next(iter(to_ranges(part)), None)
    if found is None:
        return Flow(source, destination, _ICMP)
    return Flow(source, destination, found.protocol, max(found.first, 1))


# --- words --------------------------------------------------------------------------------------


def lines(report: PluginReport) -> Iterator[str]:
    """What breaks first, plugin by plugin; then what is different beside verdicts."""
    for plugin in report.plugins:
        said = [
            *(_rule_line(f) for f in report.rules if f.plugin == plugin and not f.maybe),
            *map(_pair_line, _folded(f for f in report.pairs if f.plugin == plugin)),
            *(_rule_line(f) for f in report.rules if f.plugin == plugin and f.maybe),
        ]
        if not said:
            yield f"{plugin}: reads these policies as podwire does"
        yield from dict.fromkeys(f"{plugin}: {line}" for line in said)


def _rule_line(finding: RuleFinding) -> str:
    path = f" {finding.path}" if finding.path else ""
    place = f" ({finding.place})" if finding.place else ""
    word = "perhaps: " if finding.maybe else ""
    return f"{word}{finding.object}{path}{place}: {finding.title} [{finding.source}]"


def _pair_line(finding: PairFinding) -> str:
    verdict = "denied, here allowed" if finding.change == "closed" else "allowed, here denied"
    why = f" ({finding.question}? [{finding.source}])" if finding.question else ""
    rule = f": {finding.rule}" if finding.rule else ""
    ends = f"{_some(finding.sources)} => {_some(finding.destinations)}"
    ports = f" : {finding.ports}" if finding.ports else ""
    return f"{ends}{ports} {verdict}{rule}{why}"


def _folded(findings: Iterable[PairFinding]) -> Iterator[PairFinding]:
    """Pods that meet themselves are one line: what decides is the same for all of them."""
    alone: dict[tuple[str, str], list[PairFinding]] = {}
    for finding in findings:
        if finding.destinations == (_ITSELF,):
            alone.setdefault((finding.change, finding.question), []).append(finding)
        else:
            yield finding
    for group in alone.values():
        names = tuple(dict.fromkeys(name for finding in group for name in finding.sources))
        same = len(group) == 1
        yield msgspec.structs.replace(
            group[0],
            sources=names,
            ports=group[0].ports if same else "",
            rule=group[0].rule if same else "",
        )


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
