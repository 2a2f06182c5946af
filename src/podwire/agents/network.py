"""The node's network, kept: Nodes come in, routes, overlay and masquerade come out.

    Node informer -> Peer set -> compile_node_network -> plan_node_network -> Rtnl, nft, sysctl
                                                     -> Node condition NetworkUnavailable=False

Nothing is listed from the kernel after the start: what was applied is remembered, and a change
sends only its difference. When somebody else changes our nftables tables (`nft flush ruleset`), the
kernel tells, and they are made anew. At the start the routes that carry podwire's protocol number
and are no longer wanted are removed, so an agent that was away mends what changed meanwhile.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
from collections.abc import Collection, Mapping
from dataclasses import replace

from podwire.client import Api, Change, Informer, PatchType
from podwire.cni.attach import KernelPodNetwork, NodeLinks
from podwire.cni.config import NetworkConfig
from podwire.cni.links import BRIDGE, ROUTE_PROTOCOL, BridgePorts, mac_of
from podwire.cni.nodenet import (
    VXLAN_DEVICE,
    NodeNetwork,
    Peer,
    compile_node_network,
    kubenet_mtu,
    plan_node_network,
)
from podwire.errors import ApiError, KernelError
from podwire.kernel import hooks, nft, sysctl
from podwire.kernel.nfmonitor import NfMonitor
from podwire.kernel.requests import Delete, Route
from podwire.kernel.rtnl import Rtnl
from podwire.objects import kinds
from podwire.objects.core import Node
from podwire.objects.meta import Key, format_time

_LOG = logging.getLogger(__name__)
# Node changes within this time are one transaction.
_SETTLE_S = 0.005
_RETRY_S = 1.0
_TABLES = (hooks.MASQUERADE.table, hooks.KUBENET_DEDUP.table)


class NodeNetworkAgent:
    """One node's. `configured` is set once pods can be attached."""

    def __init__(
        self, api: Api, node_name: str, config: NetworkConfig, pod_network: KernelPodNetwork
    ) -> None:
        self._api = api
        self._name = node_name
        self.config = config
        self._pod_network = pod_network
        self.nodes: Informer[Node] = Informer(api, kinds.NODE)
        self._dirty = asyncio.Event()
        self._rtnl = Rtnl()
        self._applied: NodeNetwork | None = None
        self._peers: dict[Key, Peer] = {}
        self._mtu_of_uplink = 0
        self._reported = False
        self._monitor = NfMonitor(lambda _family, table: table in _TABLES)
        self._programmed: frozenset[str] = frozenset()
        self._reprogrammed = asyncio.Condition()
        self.configured = asyncio.Event()

    @property
    def mtu(self) -> int:
        """The MTU of pods; 0 before the network stands."""
        return self._applied.mtu if self._applied is not None else 0

    def _changed(self, change: Change[Node]) -> None:
        """Only what networking reads counts: heartbeats must not cost a compile."""
        before = self._peers.get(change.key)
        after = Peer.of(change.new) if change.new is not None else None
        if before != after:
            if after is None:
                self._peers.pop(change.key, None)
            else:
                self._peers[change.key] = after
            self._dirty.set()

    def _foreign(self) -> None:
        """Somebody else changed our tables."""
        found = self._monitor.read()
        if found and self._applied is not None:
            _LOG.warning("network tables changed by others, mending: %.200s", found[0])
            self._applied = replace(self._applied, nft="")
            self._dirty.set()

    async def run(self) -> None:
        """Follow the Nodes until cancelled."""
        loop = asyncio.get_running_loop()
        loop.add_reader(self._monitor.fileno(), self._foreign)
        try:
            await self._follow()
        finally:
            loop.remove_reader(self._monitor.fileno())
            self._monitor.close()

    async def _follow(self) -> None:
        self.nodes.on_change(self._changed)
        async with asyncio.TaskGroup() as group:
            group.create_task(self.nodes.run())
            await self.nodes.synced.wait()
            while True:
                await self._dirty.wait()
                await asyncio.sleep(_SETTLE_S)
                self._dirty.clear()
                try:
                    await self._reconcile()
                except (KernelError, ApiError) as error:
                    _LOG.warning("node %s: network not programmed: %s", self._name, error)
                    asyncio.get_running_loop().call_later(_RETRY_S, self._dirty.set)

    async def _reconcile(self) -> None:
        node = self._peers.get(Key("", self._name))
        # The podCIDR may be there before the addresses: either without the other is no network.
        if node is None or not node.pod_cidrs or not node.addresses:
            return
        peers = list(self._peers.values())
        desired = compile_node_network(node, peers, self.config, self._uplink_mtu())
        if desired != self._applied:
            self._apply(desired)
        if not self.configured.is_set():
            self._pod_network.configure(node.pod_cidrs, self._node_links(node, desired))
            self.configured.set()
        async with self._reprogrammed:
            self._programmed = frozenset(
                peer.name for peer in peers if peer.pod_cidrs and peer.addresses
            )
            self._reprogrammed.notify_all()
        await self._report()

    async def wait_routes(self, nodes: Collection[str]) -> None:
        """Return when the routes to all of these nodes stand (those that have pods at all)."""
        async with self._reprogrammed:
            await self._reprogrammed.wait_for(lambda: self._programmed.issuperset(nodes))

    def _uplink_mtu(self) -> int:
        if self._applied is not None:
            return self._mtu_of_uplink
        links = self._rtnl.links()
        if self.config.mode == "kubenet":
            self._mtu_of_uplink = kubenet_mtu(links.values())
        else:
            self._mtu_of_uplink = links[self.config.uplink].mtu
        return self._mtu_of_uplink

    def _apply(self, desired: NodeNetwork) -> None:
        if self._applied is None or desired.sysctls != self._applied.sysctls:
            sysctl.write(dict(desired.sysctls))
        requests = plan_node_network(desired, self._applied)
        if self._applied is None:
            requests += self._stale_routes(desired)
        self._rtnl.apply(requests)
        if self._applied is None or desired.nft != self._applied.nft:
            nft.apply(_replace_tables(desired.nft))
            if not nft.in_process():
                self._monitor.read()  # the nft program's changes look like anybody's
        self._applied = desired

    def _stale_routes(self, desired: NodeNetwork) -> list[Delete]:
        """What an earlier agent left that nobody wants; pods' host routes (veth) are not ours."""
        wanted = {e.destination for e in desired.entries if isinstance(e, Route)}
        return [
            Delete(route)
            for route in self._rtnl.routes()
            if route.protocol == ROUTE_PROTOCOL
            and route.device in (self.config.uplink, VXLAN_DEVICE)
            and route.destination not in wanted
        ]

    def _node_links(self, node: Peer, network: NodeNetwork) -> NodeLinks:
        if self.config.mode != "kubenet":
            return NodeLinks(network.mtu, node.addresses)
        bridge = BridgePorts(
            node.pod_cidrs,
            mac_of(node.pod_cidrs[0][1]),
            self._rtnl.index(BRIDGE),
            self.config.hairpin_mode,
        )
        return NodeLinks(network.mtu, node.addresses, bridge)

    async def _report(self) -> None:
        """Tell that routes stand, as a cloud's route controller does (once)."""
        if self._reported:
            return
        now = format_time(dt.datetime.now(dt.UTC))
        condition: Mapping[str, str] = {
            "type": "NetworkUnavailable",
            "status": "False",
            "reason": "RouteCreated",
            "message": f"podwire programmed the {self.config.mode} pod network",
            "lastHeartbeatTime": now,
            "lastTransitionTime": now,
        }
        patch = {"status": {"conditions": [condition]}}
        await self._api.patch(
            kinds.NODE, self._name, patch, subresource="status", patch_type=PatchType.STRATEGIC
        )
        self._reported = True


def _replace_tables(text: str) -> str:
    """Our tables anew, in one transaction: `table` before `delete` makes an absent one no error."""
    heads = [
        f"{hook.family} {hook.table}"
        for hook in (hooks.MASQUERADE, hooks.KUBENET_DEDUP)
        if f"table {hook.family} {hook.table} " in text
    ]
    return "".join(f"table {head}\ndelete table {head}\n" for head in heads) + text
