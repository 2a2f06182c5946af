"""Whether full-size packets really get from node to node.

An overlay with a wrong MTU lets small packets through and swallows large ones, which people then
hunt for days. So once the network stands, every node pings every other one with a packet of the
pods' MTU and fragmentation forbidden; what is lost becomes an Event and a Node condition.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import logging

from podwire.agents.network import NodeNetworkAgent
from podwire.client import Api, Change, EventRecorder, PatchType
from podwire.cni.nodenet import Peer
from podwire.errors import ApiError
from podwire.explain.probes import Probe, ProbeRequest, ProbeResult, ProbeService
from podwire.objects import kinds
from podwire.objects.core import Node
from podwire.objects.meta import Key, format_time

_LOG = logging.getLogger(__name__)
CONDITION = "PathMTU"
# Peers appear together at the start of a lab: check them together.
_SETTLE_S = 0.5
_TIMEOUT_S = 1.0


class PathMtuCheck:
    """Checks peers as they appear; runs beside `NodeNetworkAgent`."""

    def __init__(
        self, api: Api, node_name: str, network: NodeNetworkAgent, probes: ProbeService
    ) -> None:
        self._api = api
        self._name = node_name
        self._network = network
        self._probes = probes
        self._events = EventRecorder(api, "podwire-agent", node_name)
        self._checked: set[Peer] = set()
        self._new = asyncio.Event()

    def _changed(self, change: Change[Node]) -> None:
        if change.new is not None and Peer.of(change.new) not in self._checked:
            self._new.set()

    async def run(self) -> None:
        await self._network.configured.wait()
        self._network.nodes.on_change(self._changed)
        while True:
            await self._new.wait()
            await asyncio.sleep(_SETTLE_S)
            self._new.clear()
            peers = [Peer.of(node) for node in self._network.nodes.objects.values()]
            fresh = [
                p
                for p in peers
                if p.name != self._name and p.pod_cidrs and p.addresses and p not in self._checked
            ]
            if fresh:
                await self._check(fresh)
                self._checked.update(fresh)

    async def _check(self, peers: list[Peer]) -> None:
        mtu = self._network.mtu
        overlay = self._network.config.overlay == "vxlan"
        questions = [
            # Through an overlay the peer's endpoint answers, otherwise the peer itself.
            Probe(
                address=str(peer.pod_cidrs[0][0] if overlay else peer.addresses[0]),
                protocol="icmp",
                size=mtu,
                timeout_s=_TIMEOUT_S,
            )
            for peer in peers
        ]
        response = await self._probes.run(ProbeRequest(probes=tuple(questions)))
        lost = [
            f"{peer.name}: {_why(result)}"
            for peer, result in zip(peers, response.results, strict=True)
            if result.verdict != "allowed"
        ]
        try:
            await self._report(mtu, lost)
        except ApiError as error:
            _LOG.warning("node %s: path MTU not reported: %s", self._name, error)

    async def _report(self, mtu: int, lost: list[str]) -> None:
        now = format_time(dt.datetime.now(dt.UTC))
        message = (
            f"packets of {mtu} bytes do not reach {'; '.join(lost)}"
            if lost
            else f"packets of {mtu} bytes reach every node unfragmented"
        )
        condition = {
            "type": CONDITION,
            "status": "False" if lost else "True",
            "reason": "PacketsLost" if lost else "Verified",
            "message": message,
            "lastHeartbeatTime": now,
            "lastTransitionTime": now,
        }
        await self._api.patch(
            kinds.NODE,
            self._name,
            {"status": {"conditions": [condition]}},
            subresource="status",
            patch_type=PatchType.STRATEGIC,
        )
        if lost:
            node = self._network.nodes.objects.get(Key("", self._name))
            if node is not None:
                await self._events.record(kinds.NODE, node, "Warning", "PathMTU", message)


def _why(result: ProbeResult) -> str:
    return f"{result.verdict} {result.detail}".strip()
