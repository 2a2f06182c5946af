"""Who reaches whom, for all pods, ports and addresses at once. Pure.

    pods -> groups that no policy tells apart -> classes (who is selected by the same policies)
         -> per class, what each group may do with it -> per pair of groups, the ports

There are far fewer groups than pods, and far fewer classes than groups. A class looks at a peer
through the peers its own rules name, so it meets few different ones; sets of groups are bits of an
integer, so all destinations of a source with equal ports are found by one `&`.

The outside is cut into ranges of addresses that no ingress rule tells apart for sources, and no
egress rule for destinations. `evaluate` is the meaning; tests hold this against it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import NamedTuple

from podwire.objects.meta import Key
from podwire.policy import intervals, ports
from podwire.policy.classviews import (
    Bits,
    ClassView,
    GroupKey,
    Meaning,
    Outside,
    Seen,
    members,
)
from podwire.policy.evaluate import DEFAULT, PolicySet, Semantics
from podwire.policy.intervals import Intervals
from podwire.policy.model import (
    Direction,
    NamedPort,
    Policy,
    PortRange,
    Rule,
)
from podwire.policy.world import PodView, World


class Situation(NamedTuple):
    """Pods selected by `policies` meet peers that rules see alike; `meant` are a rule's ports then.

    `peers` is empty where only the outside is such a peer.
    """

    direction: Direction
    policies: tuple[Policy, ...]
    meant: Callable[[Rule], Intervals]
    subjects: Bits
    peers: Bits


class Reach:
    """The answer for one family of addresses; what it is asked for is computed then, and kept.

    Pods that have addresses but none of the family are not part of it; pods without any, as files
    have them, are, and no ipBlock matches them.
    """

    def __init__(
        self,
        world: World,
        policies: PolicySet,
        semantics: Semantics = DEFAULT,
        version: int = 4,
    ) -> None:
        self.world = world
        self.semantics = semantics
        self.version = version
        self._meaning = Meaning(world, policies, semantics, version)
        self.pods: tuple[PodView, ...] = tuple(
            pod
            for pod in world.pods.values()
            if not pod.ips or any(ip.version == version for ip in pod.ips)
        )
        keys: dict[GroupKey, int] = {}
        members: list[list[PodView]] = []
        self.group_of: dict[Key, int] = {}
        """The number of the group each pod belongs to."""
        for pod in self.pods:
            number = keys.setdefault(self._meaning.group_key(pod), len(members))
            if number == len(members):
                members.append([])
            members[number].append(pod)
            self.group_of[pod.key] = number
        self.groups: tuple[tuple[PodView, ...], ...] = tuple(map(tuple, members))
        """Pods that no policy tells apart."""
        self._keys = list(keys)
        self._rows: dict[int, dict[Intervals, Bits]] = {}

    # --- pods ---

    def row(self, source: int) -> Mapping[Intervals, Bits]:
        """Ports -> the groups that group `source` reaches at exactly these."""
        row = self._rows.get(source)
        if row is None:
            row = self._rows[source] = self._row(source)
        return row

    def ports(self, source: int, destination: int) -> Intervals:
        """What pods of one group may open to (other) pods of another."""
        if self._own_node(self._keys[source], self._keys[destination]):
            return ports.ALL
        return intervals.intersect(
            self._egress[source].allowed(self._keys[destination].seen),
            self._ingress[destination].allowed(self._keys[source].seen),
        )

    def between(self, source: Key, destination: Key) -> Intervals:
        if source == destination:
            return ports.ALL
        return self.ports(self.group_of[source], self.group_of[destination])

    def _row(self, source: int) -> dict[Intervals, Bits]:
        incoming = dict(self._usual_incoming)
        for usual, found, bits in self._unusual_incoming[source]:
            incoming[usual] &= ~bits
            incoming[found] = incoming.get(found, 0) | bits
        row: dict[Intervals, Bits] = {}
        for out, reached in self._parts(self._egress[source]).items():
            for into, bits in incoming.items():
                if both := reached & bits:
                    common = intervals.intersect(out, into)
                    row[common] = row.get(common, 0) | both
        return self._with_own_node(self._keys[source], row)

    def _with_own_node(self, key: GroupKey, row: dict[Intervals, Bits]) -> dict[Intervals, Bits]:
        near = self._same_node.get((key.node, not key.is_node), 0) if key.node else 0
        if key.is_node:
            near |= self._same_node.get((key.node, True), 0)
        if not near:
            return row
        rest = {found: bits & ~near for found, bits in row.items() if bits & ~near}
        rest[ports.ALL] = rest.get(ports.ALL, 0) | near
        return rest

    def _own_node(self, one: GroupKey, other: GroupKey) -> bool:
        return bool(one.node) and one.node == other.node and (one.is_node or other.is_node)

    @cached_property
    def _same_node(self) -> dict[tuple[str, bool], Bits]:
        found: dict[tuple[str, bool], Bits] = {}
        for number, key in enumerate(self._keys):
            if key.node:
                place = (key.node, key.is_node)
                found[place] = found.get(place, 0) | 1 << number
        return found

    @cached_property
    def _egress(self) -> list[ClassView]:
        return [self._meaning.view("egress", key.selecting) for key in self._keys]

    @cached_property
    def _ingress(self) -> list[ClassView]:
        return [
            self._meaning.view("ingress", key.selecting, key.seen.numbers) for key in self._keys
        ]

    @cached_property
    def _ingress_members(self) -> dict[ClassView, Bits]:
        found: dict[ClassView, Bits] = {}
        for number, view in enumerate(self._ingress):
            found[view] = found.get(view, 0) | 1 << number
        return found

    @cached_property
    def _usual_incoming(self) -> dict[Intervals, Bits]:
        """What most sources may open, by the groups they may open it to."""
        found: dict[Intervals, Bits] = {}
        for view, bits in self._ingress_members.items():
            usual = _usual(self._parts(view))
            found[usual] = found.get(usual, 0) | bits
        return found

    @cached_property
    def _unusual_incoming(self) -> list[list[tuple[Intervals, Intervals, Bits]]]:
        """Per source: where it is not like most, what most may, what it may, the groups."""
        unusual: list[list[tuple[Intervals, Intervals, Bits]]] = [[] for _ in self._keys]
        for view, bits in self._ingress_members.items():
            parts = self._parts(view)
            usual = _usual(parts)
            for found, sources in parts.items():
                if found != usual:
                    for source in members(sources):
                        unusual[source].append((usual, found, bits))
        return unusual

    def _parts(self, view: ClassView) -> dict[Intervals, Bits]:
        """All groups, by the ports that are open between the class and them in its direction.

        Groups are split by one peer after the other that the class names: they are few, so this
        takes far less than asking for each group.
        """
        if view.parts is None:
            view.parts = {}
            for seen, bits in self._seen_by(view).items():
                found = view.allowed(seen)
                view.parts[found] = view.parts.get(found, 0) | bits
        return view.parts

    def _seen_by(self, view: ClassView) -> dict[Seen, Bits]:
        parts = {Seen(): self._everybody}
        for bit in members(view.relevant):
            parts = _split(parts, self._matched.get(bit, 0), Seen(1 << bit))
        for entry, bits in self._numbered.items():
            if entry[0] in view.names:
                parts = _split(parts, bits, Seen(0, (entry,)))
        return parts

    # --- what rules do ---

    def situations(self, direction: Direction) -> Iterator[Situation]:
        """Every class with every kind of peer it meets, the outside too."""
        views: dict[ClassView, Bits] = {}
        for number, view in enumerate(self._ingress if direction == "ingress" else self._egress):
            views[view] = views.get(view, 0) | 1 << number
        outside = {seen.mask: seen for seen in self._outside(direction).values()}
        for view, subjects in views.items():
            met = dict(self._seen_by(view))
            for seen in outside.values():
                met.setdefault(Seen(seen.mask & view.relevant), 0)
            for seen, peers in met.items():
                yield Situation(direction, view.policies, view.meaning_of(seen), subjects, peers)

    @cached_property
    def _everybody(self) -> Bits:
        return (1 << len(self._keys)) - 1

    @cached_property
    def _matched(self) -> dict[int, Bits]:
        """Groups by the number of a peer that matches them."""
        found: dict[int, Bits] = {}
        for number, key in enumerate(self._keys):
            for bit in members(key.seen.mask):
                found[bit] = found.get(bit, 0) | 1 << number
        return found

    @cached_property
    def _numbered(self) -> dict[tuple[NamedPort, tuple[PortRange, ...]], Bits]:
        """Groups by what a named port is with them."""
        found: dict[tuple[NamedPort, tuple[PortRange, ...]], Bits] = {}
        for number, key in enumerate(self._keys):
            for entry in key.seen.numbers:
                found[entry] = found.get(entry, 0) | 1 << number
        return found

    # --- outside ---

    def outside(self, direction: Direction) -> list[Outside]:
        """All addresses, cut where a rule of the direction makes a difference."""
        return list(self._outside(direction))

    def from_outside(self, source: Outside, destination: int) -> Intervals:
        return self._ingress[destination].allowed(self._outside("ingress")[source])

    def to_outside(self, source: int, destination: Outside) -> Intervals:
        return self._egress[source].allowed(self._outside("egress")[destination])

    def _outside(self, direction: Direction) -> dict[Outside, Seen]:
        found = self._cuts.get(direction)
        if found is None:
            found = self._cuts[direction] = self._meaning.outside(direction)
        return found

    @cached_property
    def _cuts(self) -> dict[Direction, dict[Outside, Seen]]:
        return {}


def _usual(parts: Mapping[Intervals, Bits]) -> Intervals:
    return max(parts, key=lambda found: parts[found].bit_count())


def _split(parts: Mapping[Seen, Bits], inside: Bits, more: Seen) -> dict[Seen, Bits]:
    """Each part in two: those of `inside`, of whom more is seen, and the rest."""
    found: dict[Seen, Bits] = {}
    for seen, bits in parts.items():
        if rest := bits & ~inside:
            found[seen] = rest
        if both := bits & inside:
            found[Seen(seen.mask | more.mask, seen.numbers + more.numbers)] = both
    return found
