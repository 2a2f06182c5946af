"""Who is in a group: addresses, whose they are, and what no peer tells apart. Pure data.

pods of one template -> Kind ─┐
nodes                -> Node ─┼─▶ Host (one address) -> Group
domain names                 ─┘
"""

from __future__ import annotations

from typing import Final, NamedTuple, TypeAlias

from podwire.objects.meta import Key
from podwire.policy.model import Address
from podwire.policy.peers import Group as GroupKey
from podwire.policy.peers import Mask
from podwire.policy.world import ContainerPort, NodeView, PodView

NOBODY: Final = GroupKey()
KindKey: TypeAlias = tuple[str, tuple[tuple[str, str], ...], tuple[ContainerPort, ...]]


class Group:
    """Those whom the same peers match. `key` is what that means at the moment."""

    __slots__ = ("hosts", "key", "number", "ranges")

    def __init__(self, key: GroupKey, number: int) -> None:
        self.key = key
        self.number = number
        self.hosts: set[Host] = set()
        self.ranges = 0

    @property
    def alive(self) -> bool:
        return bool(self.hosts or self.ranges)


class Kind:
    """Pods that no peer can tell apart but by address."""

    __slots__ = ("hosts", "key", "labels", "mask", "numbers", "pods", "sample")

    def __init__(self, key: KindKey, sample: PodView) -> None:
        self.key = key
        self.sample = sample
        self.labels = sample.labels
        self.mask: Mask = 0
        self.numbers = NOBODY.numbers
        self.pods = 0
        self.hosts: set[Host] = set()


class Node:
    __slots__ = ("hosts", "mask", "view")

    def __init__(self, view: NodeView, mask: Mask) -> None:
        self.view = view
        self.mask = mask
        self.hosts: set[Host] = set()


class Host:
    """One address that is somebody's. `owners` in the order they came; pods go before nodes."""

    __slots__ = ("address", "address_mask", "group", "names", "owners", "packed", "sent")

    def __init__(self, address: Address, address_mask: Mask) -> None:
        self.address = address
        self.packed = address.packed
        self.address_mask = address_mask
        self.owners: dict[Key | str, Kind | Node] = {}
        self.names: set[str] = set()
        self.group: Group | None = None
        self.sent: int | None = None

    @property
    def owner(self) -> Kind | Node | None:
        found: Kind | Node | None = None
        for owner in self.owners.values():
            if isinstance(owner, Kind) or not isinstance(found, Kind):
                found = owner
        return found

    @property
    def wanted(self) -> int | None:
        """The number of its element; none where the networks say the same."""
        assert self.group is not None
        if not (self.owners or self.names) or self.group.key == (self.address_mask, ()):
            return None
        return self.group.number


class HostChange(NamedTuple):
    version: int
    address: bytes
    before: int | None
    after: int | None
