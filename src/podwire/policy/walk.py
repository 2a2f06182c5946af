"""A packet's walk over what the kernel was sent: rule by rule, look-up by look-up. Pure.

    Plans (the very text nft is given, the very bytes netlink carries) ─▶ Tables ─ packet ─▶ Walk

It knows nothing of policies: only what each nft expression means and what the kernel refuses. So it
can disagree with `evaluate`, and a disagreement is a bug in one of them.
"""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Final, TypeAlias

from podwire.kernel.nfpack import DROP, RETURN, Change, Data, Goto, Jump, Key, pack_u32

SYN: Final = frozenset({"syn"})
INIT: Final = 1
"""SCTP's first chunk, RFC 9260 section 3.2."""
_FIELDS: Final = {
    "ip saddr": 4,
    "ip daddr": 4,
    "ip6 saddr": 16,
    "ip6 daddr": 16,
    "meta priority": 4,
    "meta l4proto": 1,
    "th dport": 2,
}


class RefusedError(Exception):
    """What the kernel would not do."""


@dataclass(frozen=True)
class Packet:
    """As it meets the forward hook. `src` and `dst` are packed; `port` where there is one."""

    src: bytes
    dst: bytes
    protocol: int
    port: int = 0
    iif: str = "eth0"
    flags: frozenset[str] = SYN
    chunk: int = INIT
    icmp_type: str = "echo-request"
    known: bool = False
    """Conntrack has seen it before: established or related."""


@dataclass(frozen=True)
class Walk:
    """`outcomes` are the numbers of outcomes met, by the names of their maps; `counted` the named
    counters; `path` every rule that matched, as `chain: rule`."""

    allowed: bool
    outcomes: tuple[tuple[str, int], ...] = ()
    counted: tuple[str, ...] = ()
    path: tuple[str, ...] = ()


@dataclass
class _Set:
    """A set or map as declared: `widths` of its key's fields in bytes."""

    widths: tuple[int, ...]
    interval: bool
    verdicts: bool
    elements: dict[Key, Data] = field(default_factory=dict)

    def find(self, key: bytes) -> tuple[bool, Data]:
        if not self.interval:
            return key in self.elements, self.elements.get(key)
        for span, data in self.elements.items():
            first, last = span if isinstance(span, tuple) else (span, span)
            if all(
                a <= b <= c for a, b, c in zip(*map(self._cut, (first, key, last)), strict=True)
            ):
                return True, data
        return False, None

    def _cut(self, key: bytes) -> list[bytes]:
        found, at = [], 0
        for width in self.widths:
            found.append(key[at : at + width])
            at += width + (-width % 4)
        return found

    def add(self, key: Key, data: Data) -> None:
        if self.elements.get(key, data) != data:
            raise RefusedError(f"{key!r} is there with other data")
        if self.interval and key not in self.elements:
            self._check_overlap(key)
        self.elements[key] = data

    def _check_overlap(self, key: Key) -> None:
        first, last = map(self._cut, key if isinstance(key, tuple) else (key, key))
        for other in self.elements:
            low, high = map(self._cut, other if isinstance(other, tuple) else (other, other))
            if all(a <= d and c <= b for a, b, c, d in zip(first, last, low, high, strict=True)):
                raise RefusedError(f"{key!r} overlaps {other!r}")

    def delete(self, key: Key) -> None:
        if key not in self.elements:
            raise RefusedError(f"{key!r} is not there")
        del self.elements[key]


@dataclass
class _Table:
    sets: dict[str, _Set] = field(default_factory=dict)
    chains: dict[str, list[str]] = field(default_factory=dict)
    counters: set[str] = field(default_factory=set)
    hooks: dict[str, str] = field(default_factory=dict)


@dataclass
class _State:
    packet: Packet
    version: int
    priority: int = 7
    """What anybody may have left there."""
    outcomes: list[tuple[str, int]] = field(default_factory=list)
    counted: list[str] = field(default_factory=list)
    path: list[str] = field(default_factory=list)


class _VerdictError(Exception):
    """Accept or drop: the walk is over."""

    def __init__(self, allowed: bool) -> None:
        super().__init__(str(allowed))
        self.allowed = allowed


class _ReturnError(Exception):
    """Back to the rule after the last jump."""


class _MismatchError(Exception):
    """The rest of this rule does not apply."""


class Tables:
    """One table per family as it stands in the kernel."""

    def __init__(self) -> None:
        self._tables: dict[str, _Table] = {}

    # --- what the kernel is told ------------------------------------------------------------------

    def apply_text(self, text: str) -> None:
        """One transaction of the words `nftables` uses."""
        for line in text.splitlines():
            verb, noun, family, _, *rest = line.split(maxsplit=5)
            if noun == "table":
                self._tables.setdefault(family, _Table())
                continue
            table = self._tables[family]
            name, body = rest[0], rest[1] if len(rest) > 1 else ""
            try:
                self._commands()[verb, noun](table, name, body)
            except RefusedError as error:
                raise RefusedError(f"{line}: {error}") from error

    def _commands(self) -> dict[tuple[str, str], Callable[[_Table, str, str], None]]:
        return {
            ("add", "chain"): self._add_chain,
            ("add", "rule"): self._add_rule,
            ("add", "set"): self._add_set,
            ("add", "map"): self._add_set,
            ("add", "counter"): lambda table, name, _: table.counters.add(name),
            ("flush", "chain"): lambda table, name, _: table.chains[name].clear(),
            ("delete", "chain"): self._delete_chain,
            ("delete", "set"): self._delete_set,
            ("delete", "map"): self._delete_set,
            ("delete", "counter"): lambda table, name, _: table.counters.remove(name),
        }

    @staticmethod
    def _add_chain(table: _Table, name: str, body: str) -> None:
        table.chains.setdefault(name, [])
        if body:
            table.hooks[name] = body

    @staticmethod
    def _add_rule(table: _Table, name: str, body: str) -> None:
        for word in re.findall(r"@(?!th,)(\S+)", body):
            if word not in table.sets:
                raise RefusedError(f"no set {word}")
        for word in re.findall(r"(?:jump|goto) (\S+)", body):
            if word not in table.chains:
                raise RefusedError(f"no chain {word}")
        table.chains[name].append(body)

    @staticmethod
    def _add_set(table: _Table, name: str, body: str) -> None:
        if name in table.sets:
            return
        declared = re.fullmatch(r"\{ typeof ([^;:]+?)(?: : ([^;]+))?;(.*)\}", body)
        assert declared, body
        widths = tuple(_FIELDS[part] for part in declared[1].split(" . "))
        table.sets[name] = _Set(widths, "interval" in declared[3], declared[2] == "verdict")

    @staticmethod
    def _delete_chain(table: _Table, name: str, body: str) -> None:
        if _users(table, f" {name}"):
            raise RefusedError("in use")
        del table.chains[name]

    @staticmethod
    def _delete_set(table: _Table, name: str, body: str) -> None:
        if any(f"@{name}" in rule.split() for rules in table.chains.values() for rule in rules):
            raise RefusedError("in use")
        del table.sets[name]

    def apply_elements(self, changes: Iterable[Change]) -> None:
        for change in changes:
            table = self._tables[change.family]
            target = table.sets[change.set]
            try:
                if change.flush:
                    target.elements.clear()
                for key in change.delete:
                    target.delete(key)
                for key, data in change.add:
                    if isinstance(data, Goto | Jump) and data.chain not in table.chains:
                        raise RefusedError(f"no chain {data.chain}")
                    target.add(key, data)
            except RefusedError as error:
                raise RefusedError(f"{change}: {error}") from error

    def copy(self) -> Tables:
        """What happens to one does not happen to the other."""
        other = Tables()
        for family, table in self._tables.items():
            other._tables[family] = _Table(
                {n: replace(each, elements=dict(each.elements)) for n, each in table.sets.items()},
                {name: list(rules) for name, rules in table.chains.items()},
                set(table.counters),
                dict(table.hooks),
            )
        return other

    def elements(self, family: str, name: str) -> dict[Key, Data]:
        return dict(self._tables[family].sets[name].elements)

    def names(self, family: str) -> tuple[list[str], list[str]]:
        """(chains, sets) by their full names."""
        table = self._tables[family]
        return list(table.chains), list(table.sets)

    # --- a packet ---------------------------------------------------------------------------------

    def walk(self, packet: Packet, tick: Callable[[], None] = lambda: None) -> Walk:
        """Through all base chains of the packet's family; `tick` is called before every look-up,
        where the kernel may commit something."""
        version = 4 if len(packet.src) == 4 else 6
        table = self._tables.get("ip" if version == 4 else "ip6", _Table())
        state = _State(packet, version)
        allowed = True
        try:
            for chain in table.hooks:
                _Walker(table, state, tick).chain(chain)
        except _VerdictError as verdict:
            allowed = verdict.allowed
        return Walk(allowed, tuple(state.outcomes), tuple(state.counted), tuple(state.path))


def _users(table: _Table, ending: str) -> bool:
    return any(rule.endswith(ending) for rules in table.chains.values() for rule in rules) or any(
        isinstance(data, Goto | Jump) and f" {data.chain}" == ending
        for each in table.sets.values()
        if each.verdicts
        for data in each.elements.values()
    )


_Found: TypeAlias = "re.Match[str]"


class _Walker:
    """One packet in one table."""

    def __init__(self, table: _Table, state: _State, tick: Callable[[], None]) -> None:
        self._table = table
        self._state = state
        self._tick = tick
        self._acts = self._meanings()

    def chain(self, name: str) -> None:
        """A base chain, or a chain that is jumped to: what returns comes back here."""
        try:
            self._rules(name)
        except _ReturnError:
            return

    def _rules(self, name: str) -> None:
        for rule in tuple(self._table.chains[name]):
            try:
                self._rule(name, rule)
            except _MismatchError:
                continue

    def _rule(self, chain: str, rule: str) -> None:
        so_far = len(self._state.path)
        self._state.path.append(f"{chain}: {rule}")
        try:
            for which, found in _parse(rule):
                self._acts[which](found)
        except _MismatchError:
            del self._state.path[so_far:]
            raise

    def _meanings(self) -> tuple[Callable[[_Found], None], ...]:
        """In the order of `_PATTERNS`."""
        return (
            self._known,
            self._icmp,
            self._interface,
            self._flags,
            self._chunk,
            self._set_zero,
            self._set_bits,
            self._set_from_map,
            self._vmap,
            self._not_zero,
            self._not_in,
            self._is_in,
            lambda found: self._state.counted.append(found[1]),
            lambda found: None,
            lambda found: self.chain(found[1]),
            self._goto,
            lambda found: _end(True),
            lambda found: _end(False),
            lambda found: _return(),
        )

    # --- what expressions mean --------------------------------------------------------------------

    def _known(self, found: _Found) -> None:
        _require(self._state.packet.known)

    def _icmp(self, found: _Found) -> None:
        packet = self._state.packet
        _require(packet.protocol == 58 and packet.icmp_type in found[1].split(", "))

    def _interface(self, found: _Found) -> None:
        pattern, name = found[1], self._state.packet.iif
        matches = name.startswith(pattern[:-1]) if pattern.endswith("*") else name == pattern
        _require(matches)

    def _flags(self, found: _Found) -> None:
        packet = self._state.packet
        _require(packet.protocol == 6)
        _require(packet.flags & set(found[1].split(" | ")) != {found[2]})

    def _chunk(self, found: _Found) -> None:
        packet = self._state.packet
        _require(packet.protocol == 132 and packet.chunk != int(found[1]))

    def _set_zero(self, found: _Found) -> None:
        self._state.priority = 0

    def _set_bits(self, found: _Found) -> None:
        value = int(found[2], 16)
        priority = self._state.priority
        self._state.priority = priority & value if found[1] == "&" else priority | value

    def _set_from_map(self, found: _Found) -> None:
        there, data = self._look_up(found[1], found[2])
        _require(there)
        assert isinstance(data, bytes)
        self._state.priority = int.from_bytes(data, _HOST_ORDER)

    def _vmap(self, found: _Found) -> None:
        there, data = self._look_up(found[1], found[2])
        _require(there)
        if found[1] == "meta priority":
            self._state.outcomes.append((found[2], self._state.priority))
        if isinstance(data, Jump):
            self.chain(data.chain)
        elif isinstance(data, Goto):
            self._rules(data.chain)
            _return()
        elif data == DROP:
            _end(False)
        else:
            assert data == RETURN
            _return()

    def _not_zero(self, found: _Found) -> None:
        _require(self._state.priority != 0)

    def _not_in(self, found: _Found) -> None:
        _require(not self._look_up(found[1], found[2])[0])

    def _is_in(self, found: _Found) -> None:
        _require(self._look_up(found[1], found[2])[0])

    def _goto(self, found: _Found) -> None:
        self._rules(found[1])
        _return()

    def _look_up(self, expression: str, name: str) -> tuple[bool, Data]:
        self._tick()
        parts = expression.split(" . ")
        each = self._table.sets[name]
        assert tuple(_FIELDS[part] for part in parts) == each.widths, (expression, name)
        return each.find(b"".join(self._value(part, each.interval) for part in parts))

    def _value(self, part: str, interval: bool) -> bytes:
        """For sets of intervals nft puts numbers of the machine's order in network order."""
        state, packet = self._state, self._state.packet
        if part == "meta priority":
            return state.priority.to_bytes(4, "big") if interval else pack_u32(state.priority)
        if part == "meta l4proto":
            return bytes([packet.protocol, 0, 0, 0])
        if part == "th dport":
            return packet.port.to_bytes(2, "big") + b"\0\0"
        family, which = part.split()
        assert family == ("ip" if state.version == 4 else "ip6")
        return packet.src if which == "saddr" else packet.dst


_HOST_ORDER: Final = sys.byteorder
_EXPRESSION: Final = r"((?:ip6? [sd]addr|meta priority|meta l4proto|th dport)(?: \. \S+ \S+)*)"
_PATTERNS: Final = tuple(
    re.compile(text)
    for text in (
        r"ct state established,related",
        r"icmpv6 type \{ ([^}]+?) \}",
        r'iifname "(\S+)"',
        r"tcp flags & \(([^)]+)\) != (\S+)",
        r"meta l4proto sctp @th,96,8 != (\d+)",
        r"meta priority set 0(?= |$)",
        r"meta priority set meta priority ([&|]) 0x([0-9a-f]+)",
        rf"meta priority set {_EXPRESSION} map @(\S+)",
        rf"{_EXPRESSION} vmap @(\S+)",
        r"meta priority != 0",
        rf"{_EXPRESSION} != @(\S+)",
        rf"{_EXPRESSION} @(\S+)",
        r'counter name "(\S+)"',
        r'limit rate \S+ burst \d+ packets log prefix "[^"]*" group \d+',
        r"jump (\S+)",
        r"goto (\S+)",
        r"accept",
        r"drop",
        r"return",
    )
)


@functools.cache
def _parse(rule: str) -> tuple[tuple[int, _Found], ...]:
    """Its expressions from left to right, by their place in `_PATTERNS`."""
    parsed, rest = [], rule
    while rest:
        matches = ((i, pattern.match(rest)) for i, pattern in enumerate(_PATTERNS))
        which, found = next(((i, m) for i, m in matches if m), (-1, None))
        assert found is not None, f"{rest!r}: no meaning is known for this"
        parsed.append((which, found))
        rest = rest[found.end() :].lstrip()
    return tuple(parsed)


def _require(condition: bool) -> None:
    if not condition:
        raise _MismatchError


def _end(allowed: bool) -> None:
    raise _VerdictError(allowed)


def _return() -> None:
    raise _ReturnError
