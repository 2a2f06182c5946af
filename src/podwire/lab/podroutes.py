"""Routes to the pods where the API server lives: what a cloud's route controller gives its masters.

    Nodes -> podCIDR via the node's address, on the lab's own bridge

Pods are masqueraded towards the lab's own host unless a flag says otherwise; then the API server's
answers need a way back to the pods themselves. The router has no such routes: a pod that leaves the
cluster as itself is on its own.
"""

from __future__ import annotations

import logging

from podwire.client import Api, Change, Informer
from podwire.cni.links import ROUTE_PROTOCOL
from podwire.cni.nodenet import Peer
from podwire.errors import KernelError
from podwire.kernel.requests import Delete, Replace, Route
from podwire.kernel.rtnl import Rtnl
from podwire.objects import kinds
from podwire.objects.core import Node

_LOG = logging.getLogger(__name__)


class PodRoutes:
    """Made in the lab's own namespace. Kept by difference; a new process replaces what is there."""

    def __init__(self, api: Api, device: str) -> None:
        self._nodes: Informer[Node] = Informer(api, kinds.NODE)
        self._device = device
        self._rtnl = Rtnl()

    async def run(self) -> None:
        """Follow the Nodes until cancelled."""
        self._nodes.on_change(self._changed)
        try:
            await self._nodes.run()
        finally:
            self._rtnl.close()

    def _changed(self, change: Change[Node]) -> None:
        before, after = self._routes(change.old), self._routes(change.new)
        if before == after:
            return
        try:
            self._rtnl.apply([Replace(route) for route in sorted(after - before, key=str)])
            kept = {route.destination for route in after}
            gone = [r for r in before - after if r.destination not in kept]
            self._rtnl.apply([Delete(route) for route in gone])
        except KernelError as error:
            _LOG.warning("node %s: no route to its pods: %s", change.key.name, error)

    def _routes(self, node: Node | None) -> frozenset[Route]:
        if node is None:
            return frozenset()
        peer = Peer.of(node)
        return frozenset(
            Route(destination=cidr, via=via, device=self._device, protocol=ROUTE_PROTOCOL)
            for cidr in peer.pod_cidrs
            if (via := peer.address(cidr.version)) is not None
        )
