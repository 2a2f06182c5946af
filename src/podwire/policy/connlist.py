"""The connections of a `Reach`, folded by workload, in the field's common form. Pure.

    ns/web[Deployment] => ns/api[Deployment] : TCP 8080
    0.0.0.0-255.255.255.255[External] => ns/web[Deployment] : All Connections

That is np-guard's text, line for line: workloads for their pods, the outside as ranges of
addresses, ports 1 to 65535 of SCTP, TCP and UDP, nothing of a workload with itself. Where the pods
of a workload are not treated alike, the pods themselves are named: the difference is the news.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeAlias

from podwire.objects.meta import Key
from podwire.policy import intervals, ports
from podwire.policy.classviews import EXTERNAL, Outside, members
from podwire.policy.intervals import EMPTY, Intervals
from podwire.policy.model import LAST_PORT, PROTOCOL_NAMES, PROTOCOLS, PortRange
from podwire.policy.reach import Reach

ALL_CONNECTIONS: Final = "All Connections"
NO_CONNECTIONS: Final = "No Connections"
EVERY_PORT: Final = ports.of_ranges(PortRange(n, 1, LAST_PORT) for n in PROTOCOLS.values())
"""Port 0 is on no wire."""
_Ask: TypeAlias = Callable[[int], Intervals]


class Connection(NamedTuple):
    source: str
    destination: str
    ports: Intervals

    def __str__(self) -> str:
        return f"{self.source} => {self.destination} : {format_ports(self.ports)}"


@dataclass(frozen=True, slots=True)
class Actor:
    """A workload, or a pod without one: its pods' names by the group they belong to."""

    label: str
    pods: Mapping[int, Sequence[str]]


def make_actors(
    reach: Reach, workloads: Mapping[str, Sequence[Key]], names: Mapping[Key, str]
) -> list[Actor]:
    """`workloads` maps labels to pods, `names` says what a pod is called where they differ."""
    actors = []
    for label, keys in workloads.items():
        pods: dict[int, list[str]] = {}
        for key in keys:
            if key in reach.group_of:
                pods.setdefault(reach.group_of[key], []).append(names[key])
        if pods:
            actors.append(Actor(label, pods))
    return actors


def connections(reach: Reach, actors: Sequence[Actor]) -> Iterator[Connection]:
    """All that is allowed, in the order of the lines; made while they are read."""
    sources: list[Actor | Outside] = [*actors, *reach.outside("ingress")]
    destinations = _Destinations(reach, actors)
    for source in sorted(sources, key=lambda s: f"{_label(s)} => "):
        if isinstance(source, Outside):
            yield from destinations.from_outside(source)
        else:
            yield from destinations.of(source)


class _Destinations:
    """Everybody who can be reached, in the order of the lines."""

    def __init__(self, reach: Reach, actors: Sequence[Actor]) -> None:
        self._reach = reach
        everybody: list[Actor | Outside] = [*actors, *reach.outside("egress")]
        self._everybody = sorted(everybody, key=lambda d: f"{_label(d)} : ")
        self._actors = [d for d in self._everybody if isinstance(d, Actor)]

    def from_outside(self, source: Outside) -> Iterator[Connection]:
        label = _label(source)

        def ask(group: int) -> Intervals:
            return self._reach.from_outside(source, group)

        for destination in self._actors:
            found = {group: ask(group) for group in destination.pods}
            yield from _folded(label, destination, found)

    def of(self, source: Actor) -> Iterator[Connection]:
        tables = {group: self._table(group) for group in source.pods}
        for destination in self._everybody:
            if isinstance(destination, Outside):
                asked = {g: self._reach.to_outside(g, destination) for g in source.pods}
                yield from _unfolded(source, _label(destination), asked)
            elif destination is not source:
                yield from _pair(source, destination, tables)

    def _table(self, group: int) -> list[Intervals]:
        table = [EMPTY] * len(self._reach.groups)
        for found, bits in self._reach.row(group).items():
            if found:
                for number in members(bits):
                    table[number] = found
        return table


def _pair(
    source: Actor, destination: Actor, tables: Mapping[int, Sequence[Intervals]]
) -> Iterator[Connection]:
    first, *others = (tables[g][h] for g in source.pods for h in destination.pods)
    if all(other == first for other in others):
        if first:
            yield Connection(source.label, destination.label, first)
        return
    for group, names in source.pods.items():
        for name in names:
            found = {h: tables[group][h] for h in destination.pods}
            yield from _folded(name, destination, found)


def _folded(
    source: str, destination: Actor, found: Mapping[int, Intervals]
) -> Iterator[Connection]:
    first, *others = found.values()
    if all(other == first for other in others):
        if first:
            yield Connection(source, destination.label, first)
        return
    for group, names in destination.pods.items():
        if found[group]:
            yield from (Connection(source, name, found[group]) for name in names)


def _unfolded(
    source: Actor, destination: str, found: Mapping[int, Intervals]
) -> Iterator[Connection]:
    first, *others = found.values()
    if all(other == first for other in others):
        if first:
            yield Connection(source.label, destination, first)
        return
    for group, names in source.pods.items():
        if found[group]:
            yield from (Connection(name, destination, found[group]) for name in names)


def _label(party: Actor | Outside) -> str:
    return party.label if isinstance(party, Actor) else f"{party}{EXTERNAL}"


# --- text ---------------------------------------------------------------------------------------


def format_ports(found: Intervals) -> str:
    """`SCTP 9003,TCP 80,443,8000-8080`, or All Connections; what has no port has no word here."""
    wired = intervals.intersect(found, EVERY_PORT)
    if wired == EVERY_PORT:
        return ALL_CONNECTIONS
    spans: dict[str, list[str]] = {}
    for span in ports.to_ranges(wired):
        text = str(span.first) if span.first == span.last else f"{span.first}-{span.last}"
        spans.setdefault(PROTOCOL_NAMES[span.protocol], []).append(text)
    return ",".join(f"{name} {','.join(spans[name])}" for name in sorted(spans)) or NO_CONNECTIONS


def render_connlist(found: Iterable[Connection]) -> Iterator[str]:
    """One line each, without those that only ping."""
    words: dict[Intervals, str] = {}
    for source, destination, allowed in found:
        text = words.get(allowed)
        if text is None:
            text = words[allowed] = format_ports(allowed)
        if text != NO_CONNECTIONS:
            yield f"{source} => {destination} : {text}"
