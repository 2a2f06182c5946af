"""ServiceCIDRs: finalizer and Ready when made, and no way out while a Service needs them.

    made:    finalizer networking.k8s.io/service-cidr-finalizer, then Ready=True: allocation begins
    deleted: the API server allocates from it no more; Ready=False (Terminating) while an address of
             a Service is covered by it alone, then the finalizer goes

Source: pkg/controller/servicecidrs (KEP-1880). Upstream waits 10 s before it lets go, since other
API servers may still allocate; here one server knows at once, so the addresses are listed anew
instead.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any

from podwire.client import Change, WorkQueue
from podwire.controllers.cluster import Cluster
from podwire.objects import kinds
from podwire.objects.discovery import IP_ALLOCATOR, IP_MANAGED_BY_LABEL, IpAddress, ServiceCidr
from podwire.objects.meta import JsonObject, Key, format_time

FINALIZER = "networking.k8s.io/service-cidr-finalizer"
_READY = "Kubernetes Service CIDR is ready"
_TERMINATING = (
    "There are still IPAddresses referencing the ServiceCIDR, please remove them or create a new "
    "ServiceCIDR"
)
Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network


def networks_of(cidr: ServiceCidr) -> list[Network]:
    return [ip_network(text) for text in cidr.spec.cidrs]


def covers(network: Network, address: Address) -> bool:
    """Whether the allocator could give this address out of the CIDR."""
    if address.version != network.version or address not in network:
        return False
    if address == network.network_address:
        return False
    return address.version == 6 or address != network.broadcast_address


def evaluate_release(
    leaving: ServiceCidr, others: Iterable[ServiceCidr], addresses: Iterable[IpAddress]
) -> bool:
    """Whether a deleted ServiceCIDR may go: others have every address of a Service in it.

    `others` that are being deleted themselves do not count; nor do addresses users made.
    """
    mine = networks_of(leaving)
    staying = [
        network
        for cidr in others
        if cidr.metadata.uid != leaving.metadata.uid and not cidr.deleting
        for network in networks_of(cidr)
    ]
    for each in addresses:
        if each.metadata.labels.get(IP_MANAGED_BY_LABEL) != IP_ALLOCATOR:
            continue
        address = ip_address(each.metadata.name)
        if any(covers(n, address) for n in mine) and not any(covers(n, address) for n in staying):
            return False
    return True


class ServiceCidrs:
    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._queue: WorkQueue[Key] = WorkQueue("service-cidr-controller", self._reconcile)
        self._served = cluster.resources.has(kinds.SERVICE_CIDR)
        if not self._served:
            return
        self._cidrs = cluster.informer(kinds.SERVICE_CIDR).objects
        cluster.informer(kinds.SERVICE_CIDR).on_change(self._changed)
        cluster.informer(kinds.IP_ADDRESS).on_change(self._address_changed)

    async def run(self) -> None:
        if self._served:
            await self._queue.run()

    def _changed(self, change: Change[ServiceCidr]) -> None:
        if change.new is not None:
            self._queue.add(change.key)
        self._look_again()

    def _address_changed(self, change: Change[IpAddress]) -> None:
        if change.new is None:
            self._look_again()

    def _look_again(self) -> None:
        """Another range or one address less may let those go that are being deleted."""
        for key, cidr in self._cidrs.items():
            if cidr.deleting:
                self._queue.add(key)

    async def _reconcile(self, key: Key) -> None:
        cidr = self._cidrs.get(key)
        if cidr is None:
            return
        if cidr.deleting:
            if FINALIZER in cidr.metadata.finalizers:
                await self._let_go(cidr)
            return
        if FINALIZER not in cidr.metadata.finalizers:
            await self._set_finalizers(cidr, [*cidr.metadata.finalizers, FINALIZER])
        await self._say(cidr, "True", "", _READY)

    async def _let_go(self, cidr: ServiceCidr) -> None:
        # Read anew: what was allocated before the deletion may not have been heard of yet.
        api = self._cluster.api
        addresses: Sequence[IpAddress] = (await api.list(kinds.IP_ADDRESS))[0]
        others: Sequence[ServiceCidr] = (await api.list(kinds.SERVICE_CIDR))[0]
        if evaluate_release(cidr, others, addresses):
            left = [name for name in cidr.metadata.finalizers if name != FINALIZER]
            await self._set_finalizers(cidr, left)
        else:
            await self._say(cidr, "False", "Terminating", _TERMINATING)

    async def _set_finalizers(self, cidr: ServiceCidr, finalizers: list[str]) -> None:
        body: dict[str, Any] = {"metadata": {"finalizers": finalizers}}
        await self._cluster.patch(kinds.SERVICE_CIDR, cidr, body, exact=True)

    async def _say(self, cidr: ServiceCidr, status: str, reason: str, message: str) -> None:
        """Write Ready unless it says so already."""
        if any(c.type == "Ready" and c.status == status for c in cidr.status.conditions):
            return
        ready: JsonObject = {
            "type": "Ready",
            "status": status,
            "reason": reason,
            "message": message,
            "lastTransitionTime": format_time(self._cluster.now()),
        }
        body = {"conditions": [ready]}
        await self._cluster.patch_status(kinds.SERVICE_CIDR, cidr, body)
