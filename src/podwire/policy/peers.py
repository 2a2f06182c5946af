"""Which of the peers in use match whom: one bit per peer, so that equal masks mean equal treatment.

    peers in use -> PeerIndex -> mask of a pod's labels | of an address | of a node | of a name

Two pods (or addresses) with the same mask, and the same numbers for the named ports in use, are
one *group*: no policy tells them apart. There are far fewer groups than pods, however many labels
those have, because only selectors in use count. Pure; the index itself is changed in place, peer
by peer, and answers alike whatever the order of changes was (numbers apart).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from typing import Final, NamedTuple, TypeAlias, TypeVar

from podwire.policy.evaluate import matches_domain
from podwire.policy.intervals import Intervals, union
from podwire.policy.model import (
    Address,
    DomainPeer,
    NamedPort,
    NetworkPeer,
    NodesPeer,
    Peer,
    PodsPeer,
    PortRange,
)
from podwire.policy.selector import Selector
from podwire.policy.world import PodView

Mask: TypeAlias = int
Numbers: TypeAlias = tuple[tuple[NamedPort, tuple[PortRange, ...]], ...]
T = TypeVar("T")
_BITS: Final = {4: 32, 6: 128}


class Group(NamedTuple):
    """What its members share: the peers that match them and what named ports are with them."""

    mask: Mask = 0
    numbers: Numbers = ()


class AddressRange(NamedTuple):
    """Addresses `first` to `last`, as integers, that the same network peers match."""

    first: int
    last: int
    mask: Mask


class PeerIndex:
    """Peers are counted: `add` as often as `remove`. A number is used again after its last."""

    def __init__(self, peers: Iterable[Peer] = ()) -> None:
        self._numbers: dict[Peer, int] = {}
        self._counts: dict[Peer, int] = {}
        self._free: list[int] = []
        self._local: dict[str, _Selectors] = {}
        self._global: dict[Selector, _Selectors] = {}
        self._networks: dict[int, dict[NetworkPeer, Mask]] = {4: {}, 6: {}}
        self._cuts: dict[int, _Cuts] = {}
        self._nodes: dict[NodesPeer, Mask] = {}
        self._domains: dict[DomainPeer, Mask] = {}
        for peer in peers:
            self.add(peer)

    def add(self, peer: Peer) -> bool:
        """Whether it is new: then masks made before lack its bit."""
        self._counts[peer] = self._counts.get(peer, 0) + 1
        if self._counts[peer] > 1:
            return False
        number = self._free.pop() if self._free else len(self._numbers)
        self._numbers[peer] = number
        self._place(peer, 1 << number)
        return True

    def remove(self, peer: Peer) -> bool:
        """Whether that was the last: then masks made before have a bit that means nothing."""
        self._counts[peer] -= 1
        if self._counts[peer]:
            return False
        del self._counts[peer]
        self._free.append(self._numbers.pop(peer))
        self._place(peer, None)
        return True

    def bit(self, peer: Peer) -> Mask:
        """KeyError for a peer not in use."""
        return 1 << self._numbers[peer]

    def mask(self, peers: Iterable[Peer]) -> Mask:
        """Of a rule: it means whoever has one of these bits."""
        found = 0
        for peer in peers:
            found |= 1 << self._numbers[peer]
        return found

    def __iter__(self) -> Iterator[Peer]:
        return iter(self._numbers)

    def _place(self, peer: Peer, bit: Mask | None) -> None:
        match peer:
            case PodsPeer(namespaces=None):
                _set_selector(self._local, peer.namespace, peer.pods, bit)
            case PodsPeer(namespaces=namespaces) if namespaces is not None:
                _set_selector(self._global, namespaces, peer.pods, bit)
            case NetworkPeer():
                version = peer.network.version
                self._cuts.pop(version, None)
                _set(self._networks[version], peer, bit)
            case NodesPeer():
                _set(self._nodes, peer, bit)
            case DomainPeer():
                _set(self._domains, peer, bit)

    # --- who is matched ---

    def of_labels(
        self, namespace: str, namespace_labels: Mapping[str, str], labels: Mapping[str, str]
    ) -> Mask:
        """Pod peers only; hostNetwork pods are matched by none and must not be asked for."""
        local = self._local.get(namespace)
        found = local.of(labels) if local else 0
        for namespaces, selectors in self._global.items():
            if namespaces.matches(namespace_labels):
                found |= selectors.of(labels)
        return found

    def of_address(self, address: Address) -> Mask:
        """Network peers only."""
        return self._cut(address.version).at(int(address))

    def of_node(self, labels: Mapping[str, str]) -> Mask:
        return _join(bit for peer, bit in self._nodes.items() if peer.nodes.matches(labels))

    def of_name(self, name: str) -> Mask:
        return _join(bit for peer, bit in self._domains.items() if matches_domain(peer.name, name))

    def ranges(self, version: int) -> list[AddressRange]:
        """All addresses of the family that a network peer matches, cut where the mask changes."""
        return self._cut(version).ranges()

    def _cut(self, version: int) -> _Cuts:
        cuts = self._cuts.get(version)
        if cuts is None:
            cuts = self._cuts[version] = _Cuts(self._networks[version], _BITS[version])
        return cuts


def numbers_of(pod: PodView, names: Iterable[NamedPort]) -> Numbers:
    """What the named ports in use are on a pod; those it has not are left out."""
    resolved = ((name, pod.resolve(name)) for name in names)
    return tuple((name, ranges) for name, ranges in resolved if ranges)


class _Selectors:
    """Pod selectors with their bits, found by one label each where they name one."""

    def __init__(self) -> None:
        self._by_label: dict[tuple[str, str], dict[Selector, Mask]] = {}
        self._others: dict[Selector, Mask] = {}

    def __bool__(self) -> bool:
        return bool(self._by_label or self._others)

    def set(self, selector: Selector, bit: Mask | None) -> None:
        wanted = next((e for e in selector.expressions if e.operator == "In"), None)
        if wanted is None:
            _set(self._others, selector, bit)
            return
        for value in wanted.values:
            bucket = self._by_label.setdefault((wanted.key, value), {})
            _set(bucket, selector, bit)
            if not bucket:
                del self._by_label[wanted.key, value]

    def of(self, labels: Mapping[str, str]) -> Mask:
        found = _join(bit for s, bit in self._others.items() if s.matches(labels))
        for label in labels.items():
            for selector, bit in self._by_label.get(label, {}).items():
                if selector.matches(labels):
                    found |= bit
        return found


def _set_selector(table: dict[T, _Selectors], key: T, pods: Selector, bit: Mask | None) -> None:
    selectors = table.setdefault(key, _Selectors())
    selectors.set(pods, bit)
    if not selectors:
        del table[key]


class _Cuts:
    """Where, along all addresses of a family, the set of matching networks changes."""

    def __init__(self, networks: Mapping[NetworkPeer, Mask], bits: int) -> None:
        turns: dict[int, Mask] = {}
        for peer, bit in networks.items():
            # Entering or leaving a network turns its bit; a hole turns it back, and holes that lie
            # within another hole have been left out.
            for first, last in ((int(peer.network[0]), int(peer.network[-1])), *holes(peer)):
                turns[first] = turns.get(first, 0) ^ bit
                turns[last + 1] = turns.get(last + 1, 0) ^ bit
        self._end = 1 << bits
        self._starts, self._masks = [0], [0]
        mask = 0
        for start in sorted(turns):
            if turns[start] == 0:
                continue
            mask ^= turns[start]
            if start == 0:
                self._masks[0] = mask
            else:
                self._starts.append(start)
                self._masks.append(mask)

    def at(self, address: int) -> Mask:
        return self._masks[bisect_right(self._starts, address) - 1]

    def ranges(self) -> list[AddressRange]:
        ends = [*self._starts[1:], self._end]
        return [
            AddressRange(start, end - 1, mask)
            for start, end, mask in zip(self._starts, ends, self._masks, strict=True)
            if mask and start < end
        ]


def holes(peer: NetworkPeer) -> Intervals:
    return union((int(hole[0]), int(hole[-1])) for hole in peer.holes)


def _set(table: dict[T, Mask], key: T, bit: Mask | None) -> None:
    if bit is None:
        del table[key]
    else:
        table[key] = bit


def _join(bits: Iterable[Mask]) -> Mask:
    found = 0
    for bit in bits:
        found |= bit
    return found
