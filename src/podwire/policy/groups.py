"""Every address that policies here can tell apart, in as few groups as they tell apart. Pure.

    pods, nodes, names ─▶ Host ─┐
    peers in use (classes) ─────┼─▶ Partition ─▶ groups; address -> number, range -> number
    networks of peers ──────────┘

A group's number is what the kernel's maps hold, so it stays wherever that is possible: a new peer
*refines* the partition, and only the smaller part of a group that falls apart is numbered anew; a
peer that goes makes it *coarser*, and the smaller of two groups that become one moves. What a
number means to policies that were there before never changes, see `nodepolicies`.

Pods of one template are one `Kind`: labels are looked at once for all of them.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import TypeAlias, TypeVar

from podwire.objects.meta import Key
from podwire.policy.evaluate import matches_domain
from podwire.policy.members import NOBODY, Group, Host, HostChange, Kind, KindKey, Node
from podwire.policy.model import (
    Address,
    DomainPeer,
    NamedPort,
    NetworkPeer,
    NodesPeer,
    Peer,
    PodsPeer,
)
from podwire.policy.nftables import MAX_GROUP
from podwire.policy.numbers import Numbers
from podwire.policy.peers import Group as GroupKey
from podwire.policy.peers import Mask, PeerIndex, numbers_of
from podwire.policy.world import NodeView, PodView, namespace_labels

Range: TypeAlias = tuple[bytes, bytes]
T = TypeVar("T")


class Partition:
    """Who is in which group. Changes of the world act at once, `take_*` tells what they did."""

    def __init__(self) -> None:
        self.index = PeerIndex()
        self._named: Counter[NamedPort] = Counter()
        self._hosts: dict[bytes, Host] = {}
        self._kinds: dict[KindKey, Kind] = {}
        self._by_namespace: defaultdict[str, set[Kind]] = defaultdict(set)
        self._by_label: defaultdict[tuple[str, str], set[Kind]] = defaultdict(set)
        self._pods: dict[Key, tuple[Kind, tuple[Address, ...]]] = {}
        self._nodes: dict[str, Node] = {}
        self._namespaces: dict[str, Mapping[str, str]] = {}
        self._names: dict[str, tuple[Mask, frozenset[Address]]] = {}
        self.nobody = Group(NOBODY, 0)
        self._groups: dict[GroupKey, Group] = {NOBODY: self.nobody}
        self._numbers = Numbers(1, MAX_GROUP, "groups of peers")
        self._dirty: set[Host] = set()
        self._ranges: dict[int, list[tuple[Range, Group]]] = {4: [], 6: []}
        self._sent_ranges: dict[int, dict[Range, int]] = {4: {}, 6: {}}
        self._fresh: list[Group] = []
        self._merged: list[int] = []
        self._left: set[Group] = set()
        """Somebody left them since the last sweep, or nobody has come yet."""
        self._moved_ranges: set[int] = set()

    # --- the world --------------------------------------------------------------------------------

    def set_namespace(self, name: str, labels: Mapping[str, str] | None) -> None:
        """None: it is gone, or nothing is known of it."""
        if labels is None:
            self._namespaces.pop(name, None)
        else:
            self._namespaces[name] = namespace_labels(name, labels)
        for kind in self._by_namespace.get(name, ()):
            mask = self._mask_of(kind)
            if mask != kind.mask:
                kind.mask = mask
                for host in kind.hosts:
                    self._place(host)

    def labels_of(self, namespace: str) -> Mapping[str, str]:
        found = self._namespaces.get(namespace)
        return namespace_labels(namespace, {}) if found is None else found

    def set_pod(self, key: Key, pod: PodView | None) -> None:
        """None: it is gone or has ended. Pods of the host's network are their node."""
        before = self._pods.get(key)
        kind: Kind | None = None
        addresses: tuple[Address, ...] = ()
        if pod is None or pod.host_network or not pod.ips:
            self._pods.pop(key, None)
        else:
            kind, addresses = self._kind(pod), pod.ips
            kind.pods += 1
            self._pods[key] = kind, addresses
        old_addresses = before[1] if before else ()
        for address in old_addresses:
            if address not in addresses:
                self._own(address, key, None)
        for address in addresses:
            self._own(address, key, kind)
        if before:
            before[0].pods -= 1
            if not before[0].pods:
                self._forget_kind(before[0])

    def _kind(self, pod: PodView) -> Kind:
        key = (pod.key.namespace, tuple(sorted(pod.labels.items())), pod.ports)
        kind = self._kinds.get(key)
        if kind is None:
            kind = self._kinds[key] = Kind(key, pod)
            self._by_namespace[pod.key.namespace].add(kind)
            for label in key[1]:
                self._by_label[label].add(kind)
            kind.mask = self._mask_of(kind)
            kind.numbers = numbers_of(pod, self._names_in_use()) if pod.ports else ()
        return kind

    def _mask_of(self, kind: Kind) -> Mask:
        namespace = kind.key[0]
        return self.index.of_labels(namespace, self.labels_of(namespace), kind.labels)

    def _forget_kind(self, kind: Kind) -> None:
        del self._kinds[kind.key]
        _discard(self._by_namespace, kind.key[0], kind)
        for label in kind.key[1]:
            _discard(self._by_label, label, kind)

    def set_node(self, name: str, view: NodeView | None) -> None:
        before = self._nodes.pop(name, None)
        addresses = view.ips if view else ()
        node = None
        if view is not None:
            node = self._nodes[name] = Node(view, self.index.of_node(view.labels))
        for address in before.view.ips if before else ():
            if address not in addresses:
                self._own(address, name, None)
        for address in addresses:
            self._own(address, name, node)

    def set_names(self, names: Mapping[str, frozenset[Address]]) -> None:
        """All names with their addresses."""
        for name in self._names.keys() - names.keys():
            self._set_name(name, frozenset())
        for name, addresses in names.items():
            self._set_name(name, addresses)

    def _set_name(self, name: str, addresses: frozenset[Address]) -> None:
        mask, before = self._names.get(name, (self.index.of_name(name), frozenset()))
        if addresses:
            self._names[name] = mask, addresses
        else:
            self._names.pop(name, None)
        for address in before - addresses:
            host = self._hosts[address.packed]
            host.names.discard(name)
            self._place(host)
        for address in addresses - before:
            host = self._host(address)
            host.names.add(name)
            self._place(host)

    def _host(self, address: Address) -> Host:
        host = self._hosts.get(address.packed)
        if host is None:
            host = Host(address, self.index.of_address(address))
            self._hosts[host.packed] = host
        return host

    def _own(self, address: Address, key: Key | str, owner: Kind | Node | None) -> None:
        host = self._host(address)
        former = host.owner
        if owner is None:
            host.owners.pop(key, None)
        else:
            host.owners[key] = owner
        now = host.owner
        if former is not now:
            if former is not None:
                former.hosts.discard(host)
            if now is not None:
                now.hosts.add(host)
        self._place(host)

    # --- groups -----------------------------------------------------------------------------------

    def _key_of(self, host: Host) -> GroupKey:
        owner = host.owner
        mask = host.address_mask | (owner.mask if owner is not None else 0)
        for name in host.names:
            mask |= self._names[name][0]
        return GroupKey(mask, owner.numbers if isinstance(owner, Kind) else ())

    def _place(self, host: Host) -> None:
        key = self._key_of(host)
        self._dirty.add(host)
        if host.group is None or host.group.key != key:
            self._move(host, self._group(key))

    def _move(self, host: Host, group: Group) -> None:
        if host.group is not None:
            self._leave(host)
        host.group = group
        group.hosts.add(host)
        self._dirty.add(host)

    def _leave(self, host: Host) -> None:
        assert host.group is not None
        host.group.hosts.discard(host)
        self._left.add(host.group)

    def _group(self, key: GroupKey) -> Group:
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = Group(key, self._numbers.take())
            self._fresh.append(group)
            self._left.add(group)
        return group

    def groups(self) -> Iterator[Group]:
        """All but `nobody`."""
        return (group for group in self._groups.values() if group is not self.nobody)

    def take_fresh(self) -> list[Group]:
        """Those that have come since the last call."""
        fresh, self._fresh = self._fresh, []
        return fresh

    def sweep(self) -> list[int]:
        """Forget groups without members; the numbers of all that are gone."""
        dead = [
            group
            for group in self._left
            if not group.alive and group is not self.nobody and self._groups.get(group.key) is group
        ]
        self._left.clear()
        for group in dead:
            del self._groups[group.key]
        numbers = [*self._merged, *(group.number for group in dead)]
        self._merged = []
        self._numbers.give_back(numbers)
        return numbers

    def settle(self) -> None:
        """No packet can have read a number of what has been swept."""
        self._numbers.settle()

    # --- peers come -------------------------------------------------------------------------------

    def refine(self, peers: Iterable[Peer], named: Iterable[NamedPort]) -> None:
        """Each is counted: what comes for the first time may divide groups."""
        new = [peer for peer in peers if self.index.add(peer)]
        new_names = [port for port in named if self._count_name(port)]
        touched: set[Host] = set()
        versions: set[int] = set()
        for peer in new:
            if isinstance(peer, NetworkPeer):
                versions.add(peer.network.version)
            else:
                touched |= self._match(peer)
        if versions:
            touched |= self._match_networks([p for p in new if isinstance(p, NetworkPeer)])
        if new_names:
            touched |= self._renumber_kinds()
        pieces: dict[GroupKey, Counter[GroupKey]] = defaultdict(Counter)
        if versions:
            bits = ~self.index.mask(p for p in new if isinstance(p, NetworkPeer))
            for version in (4, 6):
                for each in self.index.ranges(version):
                    pieces[GroupKey(each.mask & bits)][GroupKey(each.mask)] += 1
        self._divide(touched, pieces)
        self._place_ranges()

    def _count_name(self, port: NamedPort) -> bool:
        self._named[port] += 1
        return self._named[port] == 1

    def _names_in_use(self) -> list[NamedPort]:
        return sorted(self._named, key=lambda port: (port.name, port.protocol or 0))

    def _match(self, peer: Peer) -> set[Host]:
        """Add the bit of a new peer wherever it matches."""
        bit = self.index.bit(peer)
        touched: set[Host] = set()
        match peer:
            case PodsPeer():
                for kind in self._candidates(peer):
                    if self._selects(peer, kind):
                        kind.mask |= bit
                        touched |= kind.hosts
            case NodesPeer():
                for node in self._nodes.values():
                    if peer.nodes.matches(node.view.labels):
                        node.mask |= bit
                        touched |= node.hosts
            case DomainPeer():
                for name, (mask, addresses) in self._names.items():
                    if matches_domain(peer.name, name):
                        self._names[name] = mask | bit, addresses
                        touched |= {self._hosts[address.packed] for address in addresses}
        return touched

    def _candidates(self, peer: PodsPeer) -> Collection[Kind]:
        wanted = next((e for e in peer.pods.expressions if e.operator == "In"), None)
        if wanted is not None:
            found: set[Kind] = set()
            for value in wanted.values:
                found |= self._by_label.get((wanted.key, value), set())
            return found
        if peer.namespaces is None:
            return self._by_namespace.get(peer.namespace, ())
        return [
            kind
            for namespace, kinds in self._by_namespace.items()
            if peer.namespaces.matches(self.labels_of(namespace))
            for kind in kinds
        ]

    def _selects(self, peer: PodsPeer, kind: Kind) -> bool:
        namespace = kind.key[0]
        if peer.namespaces is None:
            if peer.namespace != namespace:
                return False
        elif not peer.namespaces.matches(self.labels_of(namespace)):
            return False
        return peer.pods.matches(kind.labels)

    def _match_networks(self, peers: list[NetworkPeer]) -> set[Host]:
        touched: set[Host] = set()
        for version in {peer.network.version for peer in peers}:
            mine = [peer.network for peer in peers if peer.network.version == version]
            first = min(network.network_address for network in mine).packed
            last = max(network.broadcast_address for network in mine).packed
            length = len(first)
            for packed, host in self._hosts.items():
                if len(packed) == length and first <= packed <= last:
                    mask = self.index.of_address(host.address)
                    if mask != host.address_mask:
                        host.address_mask = mask
                        touched.add(host)
        return touched

    def _renumber_kinds(self) -> set[Host]:
        names = self._names_in_use()
        touched: set[Host] = set()
        for kind in self._kinds.values():
            if kind.sample.ports and (found := numbers_of(kind.sample, names)) != kind.numbers:
                kind.numbers = found
                touched |= kind.hosts
        return touched

    def _divide(
        self, touched: Iterable[Host], pieces: Mapping[GroupKey, Mapping[GroupKey, int]]
    ) -> None:
        """Hosts and ranges to what they are now; the largest part keeps the group's number."""
        self._dirty.update(touched)
        parts: dict[Group, dict[GroupKey, list[Host]]] = {}
        for host in touched:
            key, group = self._key_of(host), host.group
            assert group is not None
            if group.key != key:
                parts.setdefault(group, {}).setdefault(key, []).append(host)
        for key, into in pieces.items():
            old = self._groups.get(key)
            if old is not None:
                for new in into:
                    if new != key:
                        parts.setdefault(old, {}).setdefault(new, [])
        for group, into_parts in parts.items():
            self._divide_group(group, into_parts, pieces.get(group.key, {}))

    def _divide_group(
        self, group: Group, parts: Mapping[GroupKey, list[Host]], pieces: Mapping[GroupKey, int]
    ) -> None:
        old = group.key
        moved = sum(map(len, parts.values()))
        staying = len(group.hosts) - moved + pieces.get(old, 0 if pieces else group.ranges)
        heir = max(parts, key=lambda key: len(parts[key]) + pieces.get(key, 0))
        if group is self.nobody or len(parts[heir]) + pieces.get(heir, 0) <= staying:
            for key, hosts in parts.items():
                for host in hosts:
                    self._move(host, self._group(key))
            return
        behind = group.hosts.difference(*(hosts for hosts in parts.values()))
        del self._groups[old]
        group.key = heir
        self._groups[heir] = group
        for host in behind:
            self._move(host, self._group(old))
        for key, hosts in parts.items():
            if key != heir:
                for host in hosts:
                    self._move(host, self._group(key))

    def _place_ranges(self) -> None:
        for version, former in self._ranges.items():
            for _, group in former:
                group.ranges -= 1
                self._left.add(group)
            self._moved_ranges.add(version)
            size = 4 if version == 4 else 16
            self._ranges[version] = [
                (
                    (each.first.to_bytes(size, "big"), each.last.to_bytes(size, "big")),
                    self._group(GroupKey(each.mask)),
                )
                for each in self.index.ranges(version)
            ]
            for _, group in self._ranges[version]:
                group.ranges += 1

    # --- peers go ---------------------------------------------------------------------------------

    def coarsen(self, peers: Iterable[Peer], named: Iterable[NamedPort]) -> None:
        """The reverse: what nobody names any more tells nobody apart."""
        gone = 0
        for peer in peers:
            bit = self.index.bit(peer)
            if self.index.remove(peer):
                gone |= bit
        unnamed = False
        for port in named:
            self._named[port] -= 1
            if not self._named[port]:
                del self._named[port]
                unnamed = True
        if not gone and not unnamed:
            return
        self._clear(gone, unnamed)
        self._unite(gone)
        self._place_ranges()

    def _clear(self, gone: Mask, unnamed: bool) -> None:
        for kind in self._kinds.values():
            if kind.mask & gone:
                kind.mask &= ~gone
        for node in self._nodes.values():
            node.mask &= ~gone
        for name, (mask, addresses) in self._names.items():
            if mask & gone:
                self._names[name] = mask & ~gone, addresses
        if unnamed:
            self._renumber_kinds()

    def _unite(self, gone: Mask) -> None:
        heirs: dict[GroupKey, list[Group]] = {}
        for group in self._groups.values():
            mask, numbers = group.key
            kept = tuple(pair for pair in numbers if pair[0] in self._named)
            if mask & gone or len(kept) != len(numbers):
                heirs.setdefault(GroupKey(mask & ~gone, kept), []).append(group)
        for groups in heirs.values():
            for group in groups:
                del self._groups[group.key]
                for host in group.hosts:
                    host.address_mask &= ~gone
                self._dirty |= group.hosts
        for key, groups in heirs.items():
            same = self._groups.get(key)
            whole = [*groups, same] if same is not None else groups
            heir = self.nobody if same is self.nobody else max(whole, key=_size)
            heir.key = key
            self._groups[key] = heir
            for group in whole:
                if group is not heir:
                    self._merged.append(group.number)
                    for host in list(group.hosts):
                        self._move(host, heir)

    # --- what the kernel's maps hold --------------------------------------------------------------

    def take_hosts(self) -> list[HostChange]:
        """Elements of the host map that differ from when they were last asked for."""
        changes = []
        for host in self._dirty:
            wanted = host.wanted
            if wanted != host.sent:
                changes.append(HostChange(host.address.version, host.packed, host.sent, wanted))
                host.sent = wanted
            if not host.owners and not host.names:
                self._leave(host)
                del self._hosts[host.packed]
        self._dirty.clear()
        return changes

    def take_ranges(self, version: int) -> tuple[list[Range], list[tuple[Range, int]]]:
        """Ranges to delete and to add since they were last asked for."""
        if version not in self._moved_ranges:
            return [], []
        self._moved_ranges.discard(version)
        now = {key: group.number for key, group in self._ranges[version]}
        before = self._sent_ranges[version]
        self._sent_ranges[version] = now
        gone = [key for key, number in before.items() if now.get(key) != number]
        new = [(key, number) for key, number in now.items() if before.get(key) != number]
        return gone, new

    def hosts(self) -> Iterator[tuple[int, bytes, int]]:
        """All elements of the host map, as last taken."""
        for host in self._hosts.values():
            if host.sent is not None:
                yield host.address.version, host.packed, host.sent

    def ranges(self, version: int) -> Mapping[Range, int]:
        """All elements of the range map, as last taken."""
        return self._sent_ranges[version]


def _size(group: Group) -> int:
    return len(group.hosts) + group.ranges


def _discard(table: dict[T, set[Kind]], key: T, kind: Kind) -> None:
    table[key].discard(kind)
    if not table[key]:
        del table[key]
