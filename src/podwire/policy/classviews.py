"""How pods look at their peers through the rules that select them: what `reach` is made of. Pure.

    policies -> Meaning -> per pod a GroupKey, per class a ClassView -> ports, by what is seen

A class is who is selected by the same policies. It sees of a peer only what its own rules name: the
peers among them that match, and the numbers of named ports. So it meets few different peers,
however many pods there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final, NamedTuple, TypeAlias

from podwire.policy import ports
from podwire.policy.evaluate import PolicySet, Semantics
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


class GroupKey(NamedTuple):
    """`node` tells pods apart that may always talk to their own node's hostNetwork pods."""

    selecting: tuple[int, ...]
    seen: Seen
    node: str
    is_node: bool


class ClassView:
    """How the pods of a class look at their peers: through the peers and names their rules use."""

    def __init__(
        self, meaning: Meaning, direction: Direction, policies: tuple[Policy, ...], own: Numbers
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


class Meaning:
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
        self._views: dict[tuple[Direction, tuple[int, ...], Numbers], ClassView] = {}
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

    def view(
        self, direction: Direction, selecting: tuple[int, ...], own: Numbers = ()
    ) -> ClassView:
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
            found = self._views[key] = ClassView(self, direction, policies, own)
        return found

    # --- who is matched ---

    def group_key(self, pod: PodView) -> GroupKey:
        ip = next((ip for ip in pod.ips if ip.version == self._version), None)
        by_address = (
            self.semantics.ipblock_matches_nodes
            if pod.host_network
            else self.semantics.ipblock_matches_pods
        )
        mask = self._of_address(ip) if by_address else 0
        mask |= self._domains.get(ip, 0) if ip is not None else 0
        node = pod.node if pod.node in self._host_nodes else ""
        if pod.host_network:
            # Its node, which has no named ports.
            host = self.world.nodes.get(pod.node)
            mask |= self._index.of_node(host.labels) if host is not None else 0
            return GroupKey((), Seen(mask), node, is_node=True)
        numbers = numbers_of(pod, self._names)
        labels = _Labels(pod.key.namespace, frozenset(pod.labels.items()))
        known = self._labels.get(labels)
        if known is None:
            known = self._labels[labels] = self._of_labels(pod)
        return GroupKey(known[1], Seen(mask | known[0], numbers), node, is_node=False)

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


def members(bits: Bits) -> Iterator[int]:
    """The numbers in a set of groups, ascending."""
    while bits:
        low = bits & -bits
        yield low.bit_length() - 1
        bits ^= low
