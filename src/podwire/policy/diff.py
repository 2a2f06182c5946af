"""Two lists of connections compared: what is added, removed, changed. Pure.

The outside is cut differently before and after, since policies cut it; both are cut at every edge
of either first, and neighbours that changed alike are put together again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Literal, NamedTuple, TypeAlias

from podwire.policy import intervals
from podwire.policy.classviews import EXTERNAL, Outside, parse_outside
from podwire.policy.connlist import EVERY_PORT, Connection
from podwire.policy.intervals import EMPTY, Intervals

Kind: TypeAlias = Literal["added", "removed", "changed"]


class Change(NamedTuple):
    """What `source` may open to `destination`, before and after."""

    source: str
    destination: str
    old: Intervals
    new: Intervals

    @property
    def kind(self) -> Kind:
        if not self.old:
            return "added"
        return "changed" if self.new else "removed"

    @property
    def opened(self) -> Intervals:
        return intervals.subtract(self.new, self.old)

    @property
    def closed(self) -> Intervals:
        return intervals.subtract(self.old, self.new)


def diff_connections(old: Iterable[Connection], new: Iterable[Connection]) -> list[Change]:
    """In the order of source and destination; connections without ports do not count."""
    before, after = _Table(old), _Table(new)
    changes = [
        Change(source, destination, before.pairs.get(pair, EMPTY), after.pairs.get(pair, EMPTY))
        for pair in {**before.pairs, **after.pairs}
        for source, destination in [pair]
    ]
    for key in {**before.outside, **after.outside}:
        for span, was, is_ in _recut(before.outside.get(key, []), after.outside.get(key, [])):
            label = f"{span}{EXTERNAL}"
            ends = (label, key.actor) if key.incoming else (key.actor, label)
            changes.append(Change(*ends, was, is_))
    return sorted(change for change in changes if change.old != change.new)


class _Side(NamedTuple):
    """One actor's connections with the outside."""

    actor: str
    incoming: bool


_Span: TypeAlias = tuple[Outside, Intervals]


class _Table:
    """Connections by their ends; those with the outside as spans of addresses."""

    def __init__(self, connections: Iterable[Connection]) -> None:
        self.pairs: dict[tuple[str, str], Intervals] = {}
        self.outside: dict[_Side, list[_Span]] = {}
        for source, destination, ports in connections:
            wired = intervals.intersect(ports, EVERY_PORT)
            if not wired:
                continue
            if (span := parse_outside(source)) is not None:
                side = _Side(destination, incoming=True)
            elif (span := parse_outside(destination)) is not None:
                side = _Side(source, incoming=False)
            else:
                self.pairs[source, destination] = wired
                continue
            self.outside.setdefault(side, []).append((span, wired))


def _recut(
    old: Sequence[_Span], new: Sequence[_Span]
) -> Iterator[tuple[Outside, Intervals, Intervals]]:
    """All addresses of either, where both are constant; longest spans possible."""
    versions = {span.version for span, _ in (*old, *new)}
    for version in sorted(versions):
        held: tuple[Outside, Intervals, Intervals] | None = None
        for first, last in _pieces(version, [span for span, _ in (*old, *new)]):
            was, is_ = _at(old, version, first), _at(new, version, first)
            joins = held is not None and held[0].last + 1 == first and held[1:] == (was, is_)
            if held is not None and joins:
                held = (Outside(version, held[0].first, last), was, is_)
                continue
            if held is not None:
                yield held
            held = (Outside(version, first, last), was, is_)
        if held is not None:
            yield held


def _pieces(version: int, spans: Sequence[Outside]) -> Iterator[tuple[int, int]]:
    edges = sorted({edge for s in spans if s.version == version for edge in (s.first, s.last + 1)})
    for first, after in pairwise(edges):
        yield first, after - 1


def _at(spans: Sequence[_Span], version: int, address: int) -> Intervals:
    return next(
        (p for s, p in spans if s.version == version and s.first <= address <= s.last), EMPTY
    )
