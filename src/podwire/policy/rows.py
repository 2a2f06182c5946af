"""What the policies that select a pod say of one peer, for all ports at once. Pure.

    policies in order + (rule -> the ports it means for this peer) -> Row: the line of ports cut
    into intervals, each with its outcome

A row is what `evaluate` would answer for every port, made in one go: the compiled ruleset has a
chain per row, and `reach` reads its connections from it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, TypeAlias

from podwire.policy import intervals, ports
from podwire.policy.evaluate import DEFAULT, Reason, Semantics
from podwire.policy.intervals import Intervals
from podwire.policy.model import Direction, Policy, PolicyRef, Rule, Tier


class Outcome(NamedTuple):
    """The part of a `Judgement` that does not depend on who asks."""

    allowed: bool
    reason: Reason
    rule: Rule | None = None
    isolating: tuple[PolicyRef, ...] = ()


class Atom(NamedTuple):
    """Connections `first` to `last` of the line, see `ports`."""

    first: int
    last: int
    outcome: Outcome


Row: TypeAlias = tuple[Atom, ...]
"""Sorted, gapless from 0 to `ports.OTHER`; neighbours differ in their outcome."""

NO_POLICY: Final[Row] = (Atom(0, ports.OTHER, Outcome(True, "no policy")),)


def judge_ports(
    direction: Direction,
    selecting: Sequence[Policy],
    meant: Callable[[Rule], Intervals],
    semantics: Semantics = DEFAULT,
) -> Row:
    """`selecting` in order; `meant` gives nothing for a rule whose peers are others."""
    if not any(policy.concerns(direction) for policy in selecting):
        return NO_POLICY
    line = _Line(direction, meant)
    line.ask_in_order([p for p in selecting if p.tier is Tier.ADMIN])
    ordinary = [p for p in selecting if p.tier is Tier.NETWORK_POLICY]
    isolating = tuple(p.ref for p in ordinary if direction in p.isolates)
    if isolating:
        line.ask_for_any(ordinary, isolating)
        line.decide(line.open, Outcome(False, "isolated", None, isolating))
    elif semantics.baseline_per_direction or not ordinary:
        line.ask_in_order([p for p in selecting if p.tier is Tier.BASELINE])
    line.decide(line.open, Outcome(True, "no rule"))
    return line.row()


class _Line:
    """The line of ports while it is being cut; `open` is what nobody decided yet."""

    def __init__(self, direction: Direction, meant: Callable[[Rule], Intervals]) -> None:
        self._direction = direction
        self._meant = meant
        self._atoms: list[Atom] = []
        self.open: Intervals = ports.ALL

    def decide(self, part: Intervals, outcome: Outcome) -> None:
        self._atoms += [Atom(first, last, outcome) for first, last in part]
        self.open = intervals.subtract(self.open, part)

    def ask_in_order(self, policies: Sequence[Policy]) -> None:
        """First match wins; what a rule passes is out of this tier and stays open."""
        passed: Intervals = intervals.EMPTY
        for rule in self._rules(policies):
            part = intervals.intersect(intervals.subtract(self.open, passed), self._meant(rule))
            if rule.action == "Pass":
                passed = intervals.union(passed, part)
            elif part:
                self.decide(part, Outcome(rule.action == "Accept", "rule", rule))

    def ask_for_any(self, policies: Sequence[Policy], isolating: tuple[PolicyRef, ...]) -> None:
        for rule in self._rules(policies):
            if part := intervals.intersect(self.open, self._meant(rule)):
                self.decide(part, Outcome(True, "rule", rule, isolating))

    def _rules(self, policies: Sequence[Policy]) -> list[Rule]:
        return [rule for policy in policies for rule in policy.rules(self._direction)]

    def row(self) -> Row:
        row: list[Atom] = []
        for atom in sorted(self._atoms, key=lambda a: a.first):
            if row and row[-1].outcome == atom.outcome:
                row[-1] = Atom(row[-1].first, atom.last, atom.outcome)
            else:
                row.append(atom)
        return tuple(row)


def allowed(row: Row) -> Intervals:
    return intervals.union((a.first, a.last) for a in row if a.outcome.allowed)


def outcome_at(row: Row, point: int) -> Outcome:
    return next(a.outcome for a in row if a.first <= point <= a.last)
