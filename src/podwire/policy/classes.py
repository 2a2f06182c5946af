"""What the policies that select a pod say of each group, as numbers the kernel can look up. Pure.

    policies of a pod + direction ─▶ Class ─ a group's key ─▶ Row ─▶ elements of four maps

A row's ports are laid in layers, the narrow before the wide: single ports, ranges, whole protocols,
the rest. What a layer says, those behind it need not, so few rows need ranges at all (deleting one
costs the kernel time proportional to all of them; a hash map's elements cost nothing).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeAlias

from podwire.kernel.nfpack import Key as ElementKey
from podwire.kernel.nfpack import pack_u32
from podwire.policy import intervals, ports
from podwire.policy import nftables as nf
from podwire.policy.evaluate import Judgement, Reason
from podwire.policy.intervals import Intervals
from podwire.policy.model import Direction, NamedPort, Peer, Policy, PolicyRef, PortRange, Rule
from podwire.policy.nftables import Number
from podwire.policy.numbers import Numbers
from podwire.policy.peers import Group as GroupKey
from podwire.policy.peers import Mask, PeerIndex
from podwire.policy.peers import Numbers as NamedNumbers
from podwire.policy.rows import Outcome as RowOutcome
from podwire.policy.rows import Row, judge_ports

_MAX_ROW: Final = (1 << 32) - 1
_FEW_PORTS: Final = 16
"""A range of at most so many ports is as many elements of the hash map."""
_PROTOCOLS: Final = (6, 17, 132)


class Outcome(NamedTuple):
    """Why a connection passed or not; what is counted. It outlives the policy's generations.

    `policy` and `rule_index` name the rule, `isolating` only who isolates where no rule did.
    """

    direction: Direction
    allowed: bool
    reason: Reason
    policy: PolicyRef | None = None
    rule_index: int = -1
    isolating: tuple[PolicyRef, ...] = ()

    @staticmethod
    def of(direction: Direction, found: RowOutcome | Judgement) -> Outcome:
        """The same of a row and of what `evaluate` says."""
        rule = found.rule
        return Outcome(
            direction,
            found.allowed,
            found.reason,
            rule.policy if rule else None,
            rule.index if rule else -1,
            found.isolating if found.reason == "isolated" else (),
        )


# --- classes ------------------------------------------------------------------------------------


class ClassKey(NamedTuple):
    """Pods with the same key are treated alike in this direction.

    `policies` are serial numbers, in the order of the policies; `named` what the named ports of
    the rules are on the pod, which matters for ingress.
    """

    direction: Direction
    policies: tuple[int, ...]
    named: NamedNumbers


class _Term(NamedTuple):
    """A rule in the words of masks. `mask` None: everybody."""

    mask: Mask | None
    ports: Intervals
    named: tuple[NamedPort, ...]


class Class:
    """Rows are made when a group is first met, once for all groups it treats alike."""

    def __init__(self, number: Number, key: ClassKey, policies: Sequence[Policy]) -> None:
        self.number = number
        self.key = key
        self.users = 0
        self._policies = policies
        self._terms: dict[int, _Term] = {}
        self._union: Mask = 0
        self._rows: dict[GroupKey, Number] = {}
        egress = key.direction == "egress"
        self.named = named_ports(policies, "egress") if egress else []
        """Ports that have to be known of every peer."""
        self._named = frozenset(self.named)

    @property
    def peers(self) -> list[Peer]:
        """Of all its rules, each as often as it is named."""
        rules = rules_of(self._policies, self.key.direction)
        return [peer for rule in rules for peer in rule.peers or ()]

    def learn(self, index: PeerIndex) -> None:
        """Its peers are in the index now, for as long as the class is there."""
        for rule in rules_of(self._policies, self.key.direction):
            term = self._term(rule, index)
            self._terms[id(rule)] = term
            self._union |= term.mask or 0

    def _term(self, rule: Rule, index: PeerIndex) -> _Term:
        mask = None if rule.peers is None else index.mask(rule.peers)
        if rule.ports is None:
            return _Term(mask, ports.ALL, ())
        fixed = [port for port in rule.ports if isinstance(port, PortRange)]
        named = tuple(port for port in rule.ports if isinstance(port, NamedPort))
        if self.key.direction == "ingress":
            here = dict(self.key.named)
            fixed += [each for port in named for each in here.get(port, ())]
            named = ()
        return _Term(mask, ports.of_ranges(fixed), named)

    def row(self, group: GroupKey, table: RowTable) -> Number:
        """The number of the row for a group."""
        mask = group.mask & self._union
        named = group.numbers
        if named:
            named = tuple(pair for pair in named if pair[0] in self._named)
        known = GroupKey(mask, named)
        number = self._rows.get(known)
        if number is None:
            number = self._rows[known] = table.number_of(self._judge(known), self.key.direction)
        return number

    def _judge(self, group: GroupKey) -> Row:
        here = dict(group.numbers)

        def meant(rule: Rule) -> Intervals:
            term = self._terms[id(rule)]
            if term.mask is not None and not term.mask & group.mask:
                return intervals.EMPTY
            found = [each for port in term.named for each in here.get(port, ())]
            return intervals.union(term.ports, ports.of_ranges(found)) if found else term.ports

        return judge_ports(self.key.direction, self._policies, meant)

    def forget(self, rows: Collection[Number]) -> None:
        """These are nobody's any more: they are made anew when they are needed again."""
        for key in [key for key, number in self._rows.items() if number in rows]:
            del self._rows[key]


def rules_of(policies: Sequence[Policy], direction: Direction) -> list[Rule]:
    return [rule for policy in policies for rule in policy.rules(direction)]


def named_ports(policies: Sequence[Policy], direction: Direction) -> list[NamedPort]:
    """In an order of their own, each once."""
    found = {
        port
        for rule in rules_of(policies, direction)
        for port in rule.ports or ()
        if isinstance(port, NamedPort)
    }
    return sorted(found, key=lambda port: (port.name, port.protocol or 0))


# --- rows ---------------------------------------------------------------------------------------

RowElements: TypeAlias = tuple[tuple[str, ElementKey, Number], ...]
"""(map, key, outcome) of all its elements."""


@dataclass
class Layers:
    """A row's outcomes by number: where the lines of protocols differ from the rest."""

    rest: Number
    protocols: dict[int, Number]
    ports: dict[tuple[int, int], Number]
    ranges: dict[tuple[int, int, int], Number]

    def content(self) -> tuple[object, ...]:
        return (
            self.rest,
            tuple(self.protocols.items()),
            tuple(self.ports.items()),
            tuple(self.ranges.items()),
        )

    def outcomes(self) -> set[Number]:
        layers = (self.protocols, self.ports, self.ranges)
        return {self.rest}.union(*(layer.values() for layer in layers))

    def elements(self, row: Number) -> RowElements:
        found: list[tuple[str, ElementKey, Number]] = [(nf.RESTS, pack_u32(row), self.rest)]
        for protocol, outcome in self.protocols.items():
            found.append((nf.PROTOCOLS, nf.pack_protocol_key(row, protocol), outcome))
        for (protocol, port), outcome in self.ports.items():
            found.append((nf.PORTS, nf.pack_port_key(row, protocol, port), outcome))
        for (protocol, first, last), outcome in self.ranges.items():
            key = (nf.pack_range_key(row, protocol, first), nf.pack_range_key(row, protocol, last))
            found.append((nf.RANGES, key, outcome))
        return tuple(found)


def lay(atoms: Sequence[tuple[int, int, Number]]) -> Layers:
    """Atoms of the whole line, see `ports`, in as few elements as do."""
    rest = next(outcome for first, last, outcome in atoms if last == ports.OTHER)
    layers = Layers(rest, {}, {}, {})
    for i, protocol in enumerate(_PROTOCOLS):
        base, end = i << 16, (i << 16) + 65535
        part = [
            (max(first, base) - base, min(last, end) - base, outcome)
            for first, last, outcome in atoms
            if first <= end and last >= base
        ]
        usual = _cheapest(part, rest)
        if usual != rest:
            layers.protocols[protocol] = usual
        for first, last, outcome in part:
            if outcome == usual:
                continue
            if last - first < _FEW_PORTS:
                layers.ports |= {(protocol, port): outcome for port in range(first, last + 1)}
            else:
                layers.ranges[protocol, first, last] = outcome
    return layers


def _cheapest(part: Sequence[tuple[int, int, Number]], rest: Number) -> Number:
    """The outcome for the whole protocol that leaves the fewest elements; ranges are dear."""
    costs: defaultdict[Number, int] = defaultdict(int)
    for first, last, outcome in part:
        width = last - first + 1
        costs[outcome] += width if width <= _FEW_PORTS else 100
    whole = sum(costs.values())
    return min(
        sorted({rest, *costs}, key=lambda outcome: outcome != rest),
        key=lambda outcome: whole - costs.get(outcome, 0) + (outcome != rest),
    )


class _Shared(NamedTuple):
    content: tuple[object, ...]
    layers: Layers


class RowTable:
    """Rows by content, and outcomes. Rows are counted by look-ups that lead to them."""

    def __init__(self) -> None:
        self._rows: dict[Number, _Shared] = {}
        self._by_content: dict[tuple[object, ...], Number] = {}
        self._row_numbers = Numbers(1, _MAX_ROW, "rows")
        self._outcomes: dict[Outcome, Number] = {}
        self._by_number: dict[Number, Outcome] = {}
        self._outcome_numbers = Numbers(1, _MAX_ROW, "outcomes")
        self._users: dict[Number, int] = {}
        self._idle: set[Number] = set()
        self._rows_of: Counter[Number] = Counter()
        self._fresh_rows: list[Number] = []
        self._fresh_outcomes: list[Number] = []

    def number_of(self, row: Row, direction: Direction) -> Number:
        atoms = [
            (atom.first, atom.last, self._outcome(Outcome.of(direction, atom.outcome)))
            for atom in row
        ]
        layers = lay(atoms)
        content = layers.content()
        number = self._by_content.get(content)
        if number is None:
            number = self._by_content[content] = self._row_numbers.take()
            self._rows[number] = _Shared(content, layers)
            self._users[number] = 0
            self._idle.add(number)
            for outcome in layers.outcomes():
                self._rows_of[outcome] += 1
            self._fresh_rows.append(number)
        return number

    def _outcome(self, outcome: Outcome) -> Number:
        number = self._outcomes.get(outcome)
        if number is None:
            number = self._outcomes[outcome] = self._outcome_numbers.take()
            self._by_number[number] = outcome
            self._fresh_outcomes.append(number)
        return number

    def outcome(self, number: Number) -> Outcome | None:
        return self._by_number.get(number)

    def outcomes(self) -> dict[Number, Outcome]:
        return dict(self._by_number)

    def elements(self, row: Number) -> RowElements:
        return self._rows[row].layers.elements(row)

    def rows(self) -> list[Number]:
        return list(self._rows)

    def take_fresh(self) -> tuple[list[Number], list[Number]]:
        """(rows, outcomes) that have come since the last call."""
        found = self._fresh_rows, self._fresh_outcomes
        self._fresh_rows, self._fresh_outcomes = [], []
        return found

    def use(self, row: Number, users: int) -> None:
        """So many more (or less) look-ups lead to the row."""
        self._users[row] += users
        if self._users[row] <= 0:
            self._idle.add(row)

    def sweep(self) -> tuple[list[tuple[Number, RowElements]], dict[Number, Outcome]]:
        """Forget rows without users, and outcomes no row has: (rows, outcomes) that are gone."""
        gone = sorted(number for number in self._idle if self._users[number] <= 0)
        self._idle.clear()
        elements = [(number, self.elements(number)) for number in gone]
        dead: dict[Number, Outcome] = {}
        for number in gone:
            del self._users[number]
            shared = self._rows.pop(number)
            del self._by_content[shared.content]
            for outcome in shared.layers.outcomes():
                self._rows_of[outcome] -= 1
                if not self._rows_of[outcome]:
                    del self._rows_of[outcome]
                    dead[outcome] = self._by_number.pop(outcome)
                    del self._outcomes[dead[outcome]]
        self._row_numbers.give_back(gone)
        self._outcome_numbers.give_back(dead)
        return elements, dead

    def settle(self) -> None:
        self._row_numbers.settle()
        self._outcome_numbers.settle()
