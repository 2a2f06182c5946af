"""Node IPAM: every Node gets its `podCIDRs` out of the cluster CIDRs, one per family.

Allocation is next-fit, so that a range is not given out again right after its node was deleted.
Source: pkg/controller/nodeipam/ipam (RangeAllocator).
"""

from __future__ import annotations

import ipaddress
import logging
from ipaddress import IPv4Network, IPv6Network

from podwire.client import Change, WorkQueue
from podwire.controllers.cluster import Cluster
from podwire.errors import ExhaustedError
from podwire.objects import kinds
from podwire.objects.core import Node
from podwire.objects.meta import Key

_LOG = logging.getLogger(__name__)
_COMPONENT = "cidrAllocator"
Network = IPv4Network | IPv6Network


class CidrSet:
    """The node-sized ranges of one cluster CIDR; used ones as a bitmap in one integer."""

    def __init__(self, cluster: Network, node_mask: int) -> None:
        if not cluster.prefixlen <= node_mask <= cluster.max_prefixlen:
            raise ValueError(f"cluster CIDR {cluster}: node mask /{node_mask} does not fit in it")
        self.cluster = cluster
        self._mask = node_mask
        self._shift = cluster.max_prefixlen - node_mask
        self._size = 1 << (node_mask - cluster.prefixlen)
        self._used: set[int] = set()
        self._next = 0

    def allocate(self) -> Network:
        """The next free range after the last one given out."""
        if len(self._used) >= self._size:
            raise ExhaustedError(
                f"cluster CIDR {self.cluster}: all {self._size} node ranges are in use; "
                "use a larger cluster CIDR or a longer node mask"
            )
        while self._next in self._used:
            self._next = (self._next + 1) % self._size
        index = self._next
        self._used.add(index)
        self._next = (index + 1) % self._size
        return self._range(index)

    def occupy(self, network: Network) -> None:
        """Mark every range that overlaps `network`; ones outside are somebody else's affair."""
        indexes = self._indexes(network)
        self._used.update(indexes)
        if indexes:
            self._next = max(self._next, (indexes[-1] + 1) % self._size)

    def release(self, network: Network) -> None:
        self._used.difference_update(self._indexes(network))

    def _indexes(self, network: Network) -> range:
        if network.version != self.cluster.version or not network.overlaps(self.cluster):
            return range(0)
        base = int(self.cluster.network_address)
        first = max(0, (int(network.network_address) - base) >> self._shift)
        last = min(self._size - 1, (int(network.broadcast_address) - base) >> self._shift)
        return range(first, last + 1)

    def _range(self, index: int) -> Network:
        address = int(self.cluster.network_address) + (index << self._shift)
        if self.cluster.version == 4:
            return IPv4Network((address, self._mask))
        return IPv6Network((address, self._mask))


def node_cidrs(node: Node) -> list[Network]:
    """The ranges a node has; texts that are none are left out."""
    found = []
    for text in node.spec.pod_cidrs or ([node.spec.pod_cidr] if node.spec.pod_cidr else []):
        try:
            found.append(ipaddress.ip_network(text, strict=False))
        except ValueError:
            _LOG.warning("node %s: podCIDR %r is not a CIDR", node.metadata.name, text)
    return found


class NodeIpam:
    def __init__(self, cluster: Cluster) -> None:
        config = cluster.config
        self._cluster = cluster
        self._sets = [CidrSet(c, config.node_masks[c.version]) for c in config.cluster_cidrs]
        # Allocated but perhaps not shown by the cache yet.
        self._given: dict[str, list[Network]] = {}
        self._waiting: set[Key] = set()
        # One worker: two nodes must never be given the same range.
        self._queue: WorkQueue[Key] = WorkQueue(_COMPONENT, self._reconcile, workers=1)
        self._nodes = cluster.informer(kinds.NODE).objects
        cluster.informer(kinds.NODE).on_change(self._changed)

    async def run(self) -> None:
        await self._queue.run()

    def _changed(self, change: Change[Node]) -> None:
        old = node_cidrs(change.old) if change.old else []
        new = node_cidrs(change.new) if change.new else []
        name = change.key.name
        for network in new:
            if network not in old:
                self._each("occupy", network)
        if change.new is None:
            given = self._given.pop(name, [])
            for network in {*old, *given}:
                self._each("release", network)
            self._waiting.discard(change.key)
            for key in self._waiting:
                self._queue.add(key)
        elif not new and (change.old is None or change.key not in self._waiting):
            self._queue.add(change.key)

    def _each(self, verb: str, network: Network) -> None:
        for cidrs in self._sets:
            (cidrs.occupy if verb == "occupy" else cidrs.release)(network)

    async def _reconcile(self, key: Key) -> None:
        node = self._nodes.get(key)
        if node is None or node_cidrs(node) or not self._sets:
            return
        given = self._given.get(key.name)
        if given is None:
            try:
                given = self._allocate()
            except ExhaustedError:
                self._waiting.add(key)
                text = f"Node {key.name} status is now: CIDRNotAvailable"
                self._cluster.events.say(
                    _COMPONENT, kinds.NODE, node, "Normal", "CIDRNotAvailable", text
                )
                return
            self._given[key.name] = given
        self._waiting.discard(key)
        texts = [str(network) for network in given]
        spec = {"podCIDR": texts[0], "podCIDRs": texts}
        await self._cluster.patch(kinds.NODE, node, {"spec": spec})

    def _allocate(self) -> list[Network]:
        taken: list[tuple[CidrSet, Network]] = []
        try:
            for cidrs in self._sets:
                taken.append((cidrs, cidrs.allocate()))
        except ExhaustedError:
            for cidrs, network in taken:
                cidrs.release(network)
            raise
        return [network for _, network in taken]
