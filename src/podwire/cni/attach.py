"""Attaching pods to a node's network for real: leases, namespaces and kernel batches.

    ADD     lease -> namespace with pin -> veth and node half (one batch) -> pod half (one batch)
    DEL     namespace gone, node half gone with it, lease released; every step on its own, so one
            that fails never keeps an address (containerd#12130)

All of it runs on one thread that never leaves the node's namespace except inside `creating`.
"""

from __future__ import annotations

import itertools
import logging
import os
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from podwire.cni import links
from podwire.cni.config import Address, Network, NetworkConfig
from podwire.cni.ipam import Lease, LeaseStore
from podwire.cni.podnetwork import Attachment, PodAddresses
from podwire.errors import AddressError, KernelError
from podwire.kernel import netns
from podwire.kernel.requests import Delete, DeleteLink, Neighbour, Request
from podwire.kernel.rtnl import Rtnl

_LOG = logging.getLogger(__name__)

# How long an ADD waits for the node's podCIDR, as kubelet waits for its network plugin.
_CONFIGURE_TIMEOUT_S = 30.0
# Interface indices of pods' veths start here, clear of whatever the node had before.
_FIRST_INDEX = 1000


@dataclass(frozen=True)
class NodeLinks:
    """What the wiring of a pod needs to know of its node."""

    mtu: int
    addresses: tuple[Address, ...]
    bridge: links.BridgePorts | None = None


@dataclass
class KernelPodNetwork:
    """The `PodNetwork` of one node; built in the node's namespace, used from one thread.

    `configure` may be called from any thread once the node's podCIDRs are known and its links
    made; until then `add` waits.
    """

    config: NetworkConfig
    leases: LeaseStore
    pins: Path
    _rtnl: Rtnl | None = None
    _node: NodeLinks | None = None
    _index: itertools.count[int] = field(default_factory=lambda: itertools.count(_FIRST_INDEX))
    _configured: threading.Event = field(default_factory=threading.Event)
    _bridge_pods: dict[str, _BridgePod] = field(default_factory=dict)

    def configure(self, pod_cidrs: Sequence[Network], node: NodeLinks) -> None:
        self.leases.configure(pod_cidrs)
        self._node = node
        self._configured.set()

    def _open(self) -> Rtnl:
        if self._rtnl is None:
            self._rtnl = Rtnl()
            used = [link.index for link in self._rtnl.links().values()]
            self._index = itertools.count(max([_FIRST_INDEX, *used]) + 1)
        return self._rtnl

    def add(self, attachment: Attachment) -> PodAddresses:
        node = self._wait_configured(attachment)
        standing = self.check(attachment)
        if standing is not None:
            return standing
        owner = f"{attachment.namespace}/{attachment.name}"
        # What a crash left half-made under this id must not be mistaken for a whole.
        self._unwire(attachment.sandbox_id, attachment.netns)
        lease = self.leases.lease(attachment.sandbox_id, owner)
        try:
            self._wire(attachment, lease, node)
        except BaseException:
            self._unwire(attachment.sandbox_id, attachment.netns)
            self.leases.release(attachment.sandbox_id)
            raise
        return PodAddresses(lease.addresses, node.mtu)

    def _wait_configured(self, attachment: Attachment) -> NodeLinks:
        if not self._configured.wait(_CONFIGURE_TIMEOUT_S) or self._node is None:
            raise AddressError(
                f"pod {attachment.namespace}/{attachment.name}: the node has no podCIDR yet; "
                "`kubectl describe node` tells whether one could be allocated"
            )
        return self._node

    def _wire(self, attachment: Attachment, lease: Lease, node: NodeLinks) -> None:
        rtnl = self._open()
        link = links.PodLink(
            attachment.sandbox_id, lease.addresses, node.mtu, next(self._index), node.addresses
        )
        pod: Rtnl | None = None
        with netns.creating(attachment.netns) as fd:
            # Written from inside: /proc/sys/net shows the calling thread's namespace.
            _write_sysctls(pod_sysctls(address.version for address in lease.addresses))
            pod = Rtnl()
        try:
            if node.bridge is None:
                rtnl.apply(links.routed_node_requests(link, fd))
                pod.apply(links.routed_pod_requests(link))
            else:
                self._wire_bridge(rtnl, pod, link, node.bridge, fd)
            # A veth end without its carrier noticed has a noop queue that drops; asking for the
            # link makes the kernel notice now (linkwatch_sync_dev in rtnl_getlink, Linux 6.8).
            pod.index(links.POD_INTERFACE)
            rtnl.index(link.host_interface)
            if node.bridge is None:
                pod.close()
        finally:
            os.close(fd)

    def _wire_bridge(
        self, rtnl: Rtnl, pod: Rtnl, link: links.PodLink, bridge: links.BridgePorts, fd: int
    ) -> None:
        peers = self._peers_on_bridge(link.sandbox_id)
        rtnl.apply(links.kubenet_node_requests(link, bridge, fd))
        pod.apply(
            links.kubenet_pod_requests(link, bridge, [peer.addresses for peer in peers.values()])
        )
        told = links.neighbour_requests(link.addresses)
        for sandbox, peer in list(peers.items()):
            self._tell(sandbox, peer, told)
        self._bridge_pods[link.sandbox_id] = _BridgePod(link.addresses, pod)

    def _peers_on_bridge(self, but: str) -> dict[str, _BridgePod]:
        """The pods on cbr0; after a restart their sockets are opened anew from their pins."""
        for lease in self.leases.all():
            if lease.sandbox in self._bridge_pods or lease.sandbox == but:
                continue
            try:
                fd = netns.open_pin(self.pins / lease.sandbox)
            except KernelError:
                continue
            try:
                self._bridge_pods[lease.sandbox] = _BridgePod(lease.addresses, Rtnl.in_ns(fd))
            finally:
                os.close(fd)
        return self._bridge_pods

    def _tell(self, sandbox: str, peer: _BridgePod, requests: Iterable[Request]) -> None:
        try:
            peer.rtnl.apply(requests)
        except KernelError as error:
            _LOG.warning("sandbox %s: cannot update its neighbours: %s", sandbox, error)

    def delete(self, sandbox_id: str) -> None:
        lease = self.leases.get(sandbox_id)
        try:
            self._unwire(sandbox_id, self.pins / sandbox_id)
            if lease is not None:
                self._forget_on_bridge(sandbox_id, lease)
        finally:
            self.leases.release(sandbox_id)

    def _forget_on_bridge(self, sandbox_id: str, lease: Lease) -> None:
        node = self._node
        if node is None or node.bridge is None:
            return
        gone = self._bridge_pods.pop(sandbox_id, None)
        if gone is not None:
            gone.rtnl.close()
        mac = links.mac_of(lease.addresses[0])
        self._open().apply([Delete(Neighbour(node.bridge.index, a, mac)) for a in lease.addresses])
        told = [Delete(request.entry) for request in links.neighbour_requests(lease.addresses)]
        for sandbox, peer in list(self._bridge_pods.items()):
            self._tell(sandbox, peer, told)

    def _unwire(self, sandbox_id: str, pin: Path) -> None:
        """Remove the veth (its routes and neighbours go with it) and the pin; both may be gone."""
        if not pin.exists() and self.leases.get(sandbox_id) is None:
            return
        try:
            self._open().apply([DeleteLink(links.host_interface(sandbox_id), missing_ok=True)])
        finally:
            netns.delete(pin)

    def check(self, attachment: Attachment) -> PodAddresses | None:
        lease = self.leases.get(attachment.sandbox_id)
        if lease is None or self._node is None or not attachment.netns.exists():
            return None
        try:
            os.close(netns.open_pin(attachment.netns))
            self._open().index(links.host_interface(attachment.sandbox_id))
        except KernelError:
            return None
        return PodAddresses(lease.addresses, self._node.mtu)

    def sweep(self, valid: set[str]) -> list[str]:
        # Pins of all nodes of a lab share a folder: only those with a lease here are ours.
        leased = {lease.sandbox for lease in self.leases.all()}
        stale = sorted(leased - valid)
        for sandbox in stale:
            try:
                self.delete(sandbox)
            except KernelError as error:
                _LOG.warning("sandbox %s: left behind, will be swept again: %s", sandbox, error)
        return stale


@dataclass
class _BridgePod:
    addresses: tuple[Address, ...]
    rtnl: Rtnl


def pod_sysctls(families: Iterable[int]) -> tuple[tuple[str, str], ...]:
    """A pod with IPv6 never waits for DAD (k/k#54651) and asks no router.

    Its router solicitation would leave a neighbour entry on the node, one per pod, and those count
    machine-wide. One without IPv6 needs none of these.
    """
    if 6 in set(families):
        return (
            ("net/ipv6/conf/default/accept_ra", "0"),
            ("net/ipv6/conf/default/accept_dad", "0"),
            ("net/ipv6/conf/default/dad_transmits", "0"),
        )
    return ()


def _write_sysctls(values: Iterable[tuple[str, str]]) -> None:
    for name, value in values:
        try:
            Path("/proc/sys", name).write_text(value)
        except FileNotFoundError:
            continue  # a kernel without IPv6 has nothing to switch off
