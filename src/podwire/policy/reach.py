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

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final, NamedTuple, TypeAlias

from podwire.objects.meta import Key
from podwire.policy import intervals, ports
from podwire.policy.evaluate import DEFAULT, PolicySet, Semantics
from podwire.policy.intervals import EMPTY, Intervals
from podwire.policy.model import (
    Address,
    Direction,
    NamedPort,
    NetworkPeer,
    Peer,
    Policy,
    PortRange,
    Rule,
)
from podwire.policy.peers import AddressRange, Mask, Numbers, PeerIndex, numbers_of
from podwire.policy.rows import allowed, judge_ports
from podwire.policy.world import PodView, World

Bits: TypeAlias = int
"""A set of groups, by number."""
EXTERNAL: Final = "[External]"
_LAST: Final = {4: (1 << 32) - 1, 6: (1 << 128) - 1}


class Outside(NamedTuple):
    """Addresses `first` to `last` beyond the pods, that the rules of one direction treat alike."""

    version: int
    first: int
    last: int

    def __str__(self) -> str:
        make = IPv4Address if self.version == 4 else IPv6Address
        return f"{make(self.first)}-{make(self.last)}"


def parse_outside(label: str) -> Outside | None:
    """`10.0.0.0-10.255.255.255[External]`, as connections name it; None for another label."""
    if not label.endswith(EXTERNAL):
        return None
    first, _, last = label.removesuffix(EXTERNAL).partition("-")
    low = ip_address(first)
    return Outside(low.version, int(low), int(ip_address(last)))


class Seen(NamedTuple):
    """What rules see of a peer."""

    mask: Mask = 0
    numbers: Numbers = ()


class Situation(NamedTuple):
    """Pods selected by `policies` meet peers that rules see alike; `meant` are a rule's ports then.

    `peers` is empty where only the outside is such a peer.
    """

    direction: Direction
    policies: tuple[Policy, ...]
    meant: Callable[[Rule], Intervals]
    subjects: Bits
    peers: Bits


class _GroupKey(NamedTuple):
    """`node` tells pods apart that may always talk to their own node's hostNetwork pods."""

    selecting: tuple[int, ...]
    seen: Seen
    node: str
    is_node: bool


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
        self._meaning = _Meaning(world, policies, semantics, version)
        self.pods: tuple[PodView, ...] = tuple(
            pod
            for pod in world.pods.values()
            if not pod.ips or any(ip.version == version for ip in pod.ips)
        )
        keys: dict[_GroupKey, int] = {}
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

    def _with_own_node(self, key: _GroupKey, row: dict[Intervals, Bits]) -> dict[Intervals, Bits]:
        near = self._same_node.get((key.node, not key.is_node), 0) if key.node else 0
        if key.is_node:
            near |= self._same_node.get((key.node, True), 0)
        if not near:
            return row
        rest = {found: bits & ~near for found, bits in row.items() if bits & ~near}
        rest[ports.ALL] = rest.get(ports.ALL, 0) | near
        return rest

    def _own_node(self, one: _GroupKey, other: _GroupKey) -> bool:
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
    def _egress(self) -> list[_View]:
        return [self._meaning.view("egress", key.selecting) for key in self._keys]

    @cached_property
    def _ingress(self) -> list[_View]:
        return [
            self._meaning.view("ingress", key.selecting, key.seen.numbers) for key in self._keys
        ]

    @cached_property
    def _ingress_members(self) -> dict[_View, Bits]:
        found: dict[_View, Bits] = {}
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

    def _parts(self, view: _View) -> dict[Intervals, Bits]:
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

    def _seen_by(self, view: _View) -> dict[Seen, Bits]:
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
        views: dict[_View, Bits] = {}
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


def members(bits: Bits) -> Iterator[int]:
    """The numbers in a set of groups, ascending."""
    while bits:
        low = bits & -bits
        yield low.bit_length() - 1
        bits ^= low


# --- what rules mean ----------------------------------------------------------------------------


class _View:
    """How the pods of a class look at their peers: through the peers and names their rules use."""

    def __init__(
        self, meaning: _Meaning, direction: Direction, policies: tuple[Policy, ...], own: Numbers
    ) -> None:
        self._meaning = meaning
        self._direction = direction
        self.policies = policies
        self._own = own
        rules = [rule for policy in policies for rule in policy.rules(direction)]
        self.relevant: Mask = 0
        for rule in rules:
            self.relevant |= meaning.bits(rule)
        # Of ingress the ports are the subject's own: part of the class.
        self.names = frozenset(_names(rules)) if direction == "egress" else frozenset()
        self._known: dict[Seen, Intervals] = {}
        self.parts: dict[Intervals, Bits] | None = None

    def allowed(self, seen: Seen) -> Intervals:
        """The ports open between a pod of the class and a peer, as far as this direction goes."""
        numbers = seen.numbers
        if numbers:
            numbers = tuple(entry for entry in numbers if entry[0] in self.names)
        key = Seen(seen.mask & self.relevant, numbers)
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = self._judge(key)
        return found

    def meaning_of(self, seen: Seen) -> Callable[[Rule], Intervals]:
        """What a rule means for such a peer."""
        numbers = dict(seen.numbers if self._direction == "egress" else self._own)

        def meant(rule: Rule) -> Intervals:
            if rule.peers is not None and not self._meaning.bits(rule) & seen.mask:
                return EMPTY
            return ports_of(rule, numbers)

        return meant

    def _judge(self, seen: Seen) -> Intervals:
        meant, semantics = self.meaning_of(seen), self._meaning.semantics
        row = judge_ports(self._direction, self.policies, meant, semantics)
        return self._meaning.intern(allowed(row))


def ports_of(rule: Rule, numbers: Mapping[NamedPort, tuple[PortRange, ...]]) -> Intervals:
    """The connections a rule means, where `numbers` are the destination's named ports."""
    if rule.ports is None:
        return ports.ALL
    ranges: list[PortRange] = []
    for port in rule.ports:
        ranges += numbers.get(port, ()) if isinstance(port, NamedPort) else (port,)
    return ports.of_ranges(ranges)


def _names(rules: Iterable[Rule]) -> Iterator[NamedPort]:
    for rule in rules:
        yield from (port for port in rule.ports or () if isinstance(port, NamedPort))


@dataclass(frozen=True)
class _Labels:
    """A pod as selectors see it."""

    namespace: str
    labels: frozenset[tuple[str, str]]


class _Meaning:
    """Policies and their peers, indexed once."""

    def __init__(
        self, world: World, policies: PolicySet, semantics: Semantics, version: int
    ) -> None:
        self.world = world
        self.semantics = semantics
        self._version = version
        self._policies = policies.policies
        self._rules = {
            direction: [rule for policy in self._policies for rule in policy.rules(direction)]
            for direction in ("ingress", "egress")
        }
        rules = [*self._rules["ingress"], *self._rules["egress"]]
        self._index = PeerIndex(peer for rule in rules for peer in rule.peers or ())
        self._bits: dict[int, Mask] = {
            id(rule): self._index.mask(rule.peers or ()) for rule in rules
        }
        self._names = tuple(dict.fromkeys(_names(rules)))
        self._subjects = PeerIndex(policy.subject for policy in self._policies)
        self._by_subject: dict[int, list[int]] = {}
        for number, policy in enumerate(self._policies):
            bit = self._subjects.bit(policy.subject).bit_length() - 1
            self._by_subject.setdefault(bit, []).append(number)
        self._views: dict[tuple[Direction, tuple[int, ...], Numbers], _View] = {}
        self._labels: dict[_Labels, tuple[Mask, tuple[int, ...]]] = {}
        self._interned: dict[Intervals, Intervals] = {}
        self._domains = {
            address: self._index.of_name(name)
            for name, addresses in world.names.items()
            for address in addresses
        }
        self._host_nodes = {
            pod.node for pod in world.pods.values() if pod.host_network and pod.node in world.nodes
        }

    def bits(self, rule: Rule) -> Mask:
        return self._bits[id(rule)]

    def intern(self, found: Intervals) -> Intervals:
        return self._interned.setdefault(found, found)

    def view(self, direction: Direction, selecting: tuple[int, ...], own: Numbers = ()) -> _View:
        """Shared by all classes that differ in nothing this direction looks at."""
        chosen = tuple(
            number
            for number in selecting
            if not self.semantics.baseline_per_direction
            or self._policies[number].concerns(direction)
        )
        if own:
            names = set(_names(rule for n in chosen for rule in self._policies[n].rules(direction)))
            own = tuple(entry for entry in own if entry[0] in names)
        key = (direction, chosen, own)
        found = self._views.get(key)
        if found is None:
            policies = tuple(self._policies[number] for number in chosen)
            found = self._views[key] = _View(self, direction, policies, own)
        return found

    # --- who is matched ---

    def group_key(self, pod: PodView) -> _GroupKey:
        ip = next((ip for ip in pod.ips if ip.version == self._version), None)
        by_address = (
            self.semantics.ipblock_matches_nodes
            if pod.host_network
            else self.semantics.ipblock_matches_pods
        )
        mask = self._of_address(ip) if by_address else 0
        mask |= self._domains.get(ip, 0) if ip is not None else 0
        node = pod.node if pod.node in self._host_nodes else ""
        numbers = numbers_of(pod, self._names)
        if pod.host_network:
            host = self.world.nodes.get(pod.node)
            mask |= self._index.of_node(host.labels) if host is not None else 0
            return _GroupKey((), Seen(mask, numbers), node, is_node=True)
        labels = _Labels(pod.key.namespace, frozenset(pod.labels.items()))
        known = self._labels.get(labels)
        if known is None:
            known = self._labels[labels] = self._of_labels(pod)
        return _GroupKey(known[1], Seen(mask | known[0], numbers), node, is_node=False)

    def _of_labels(self, pod: PodView) -> tuple[Mask, tuple[int, ...]]:
        place = pod.key.namespace, self.world.namespaces[pod.key.namespace], pod.labels
        chosen = self._subjects.of_labels(*place)
        numbers = sorted(n for bit in members(chosen) for n in self._by_subject[bit])
        return self._index.of_labels(*place), tuple(numbers)

    def _of_address(self, ip: Address | None) -> Mask:
        return 0 if ip is None else self._index.of_address(ip)

    def outside(self, direction: Direction) -> dict[Outside, Seen]:
        """Ranges are cut by this direction's networks alone: others would tell nothing new."""
        networks: list[Peer] = [
            peer
            for rule in self._rules[direction]
            for peer in rule.peers or ()
            if isinstance(peer, NetworkPeer) and peer.network.version == self._version
        ]
        ranges = PeerIndex(networks).ranges(self._version)
        found: dict[Outside, Seen] = {}
        for first, last in self._around_names(direction, _without_gaps(ranges, self._version)):
            address = IPv4Address(first) if self._version == 4 else IPv6Address(first)
            mask = self._index.of_address(address) | self._domains.get(address, 0)
            found[Outside(self._version, first, last)] = Seen(mask)
        return found

    def _around_names(
        self, direction: Direction, ranges: Iterable[tuple[int, int]]
    ) -> Iterator[tuple[int, int]]:
        """Addresses that a name stands for are ranges of their own."""
        if direction == "ingress":
            yield from ranges
            return
        alone = sorted(
            int(address)
            for address, mask in self._domains.items()
            if mask and address.version == self._version
        )
        for first, last in ranges:
            for point in alone:
                if first <= point <= last:
                    if first < point:
                        yield first, point - 1
                    yield point, point
                    first = point + 1
            if first <= last:
                yield first, last


def _without_gaps(ranges: Iterable[AddressRange], version: int) -> Iterator[tuple[int, int]]:
    """The ranges and what lies between them: everybody."""
    at = 0
    for found in ranges:
        if at < found.first:
            yield at, found.first - 1
        yield found.first, found.last
        at = found.last + 1
    if at <= _LAST[version]:
        yield at, _LAST[version]
