"""Connections of a node's pods: those a change denies are cut, those that are opened are noted.

    FlowCutter   commit -> connection tracking, as a whole -> judged -> entries deleted
    FlowNotes    `log group` -> NfLog -> FlowLog: the document of `/policies/flows`

Both judge by `Verdicts`, the meaning itself, and not by what was compiled from it.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Callable, Iterable
from typing import Final, Protocol

from podwire.errors import KernelError
from podwire.kernel.conntrack import Conntrack
from podwire.kernel.copied import CopiedPacket
from podwire.kernel.flows import Flow
from podwire.kernel.nflog import NfLog
from podwire.policy.flowlog import FlowLog, Seen
from podwire.policy.nftables import POLICY_LOG
from podwire.policy.observing import is_denied, is_passed
from podwire.policy.verdicts import Verdicts

_LOG = logging.getLogger(__name__)
_FAMILIES: Final = {4: socket.AF_INET, 6: socket.AF_INET6}
_ICMP: Final = frozenset({socket.IPPROTO_ICMP, socket.IPPROTO_ICMPV6})
_PORTED: Final = frozenset({6, 17, 132})
# Changes that come together are one look at the table.
_GATHER_S: Final = 0.01
# Looking takes a fifth of the time at most, however long the table and fast the changes.
_REST: Final = 4.0
# Flows judged before the loop runs again: about 10 ms.
_PORTION: Final = 300


class Denials:
    """Which connections this node would not let be opened, by one state of the world. Pure.

    An entry is judged as its first packet was: between DNAT and SNAT, from the original source to
    where answers come from. What the other end's node denies is that node's to cut.
    """

    def __init__(self, verdicts: Verdicts, node: str) -> None:
        self._verdicts = verdicts
        self._node = node
        self._known: dict[tuple[bytes, bytes, int, int], bool] = {}

    def denies(self, flow: Flow) -> bool:
        protocol = flow.orig.proto
        port = flow.reply.sport if protocol in _PORTED else 0
        asked = (flow.orig.src, flow.reply.src, protocol, port)
        denied = self._known.get(asked)
        if denied is None:
            denied = self._known[asked] = self._judge(asked)
        return denied

    def _judge(self, asked: tuple[bytes, bytes, int, int]) -> bool:
        ends = [self._verdicts.party(ip).pod for ip in asked[:2]]
        here = [pod is not None and pod.node == self._node for pod in ends]
        if not any(here):
            return False
        decision = self._verdicts.between(*asked)
        judgements = (decision.egress, decision.ingress)
        return any(own and not j.allowed for own, j in zip(here, judgements, strict=True))


class FlowCutter:
    """`run` it; `request` has it look. `verdicts` gives the state to judge by, which is another one
    after `changed`."""

    def __init__(
        self, node: str, families: Iterable[int], verdicts: Callable[[], Verdicts]
    ) -> None:
        self._node = node
        self._families = tuple(families)
        self._verdicts = verdicts
        self._requested = asyncio.Event()
        self._waiting: list[Callable[[], None]] = []
        self._denials: Denials | None = None
        self.cut = 0

    def changed(self) -> None:
        """Policies or whom they speak of are others now."""
        self._denials = None

    def request(self, done: Callable[[], None] | None = None) -> None:
        """`done` is called after what is denied now is cut."""
        if done is not None:
            self._waiting.append(done)
        self._requested.set()

    async def run(self) -> None:
        took = 0.0
        with Conntrack() as conntrack:
            while True:
                await self._requested.wait()
                await asyncio.sleep(max(_GATHER_S, took * _REST))
                self._requested.clear()
                waiting, self._waiting = self._waiting, []
                began = time.monotonic()
                try:
                    await self._cut(conntrack)
                except KernelError as error:
                    _LOG.warning("policies: denied connections go on: %s", error)
                took = time.monotonic() - began
                for done in waiting:
                    done()

    async def _cut(self, conntrack: Conntrack) -> None:
        for version in self._families:
            # Reading a long table takes a while; nothing else uses this socket.
            flows = await asyncio.to_thread(conntrack.dump, _FAMILIES[version])
            for start in range(0, len(flows), _PORTION):
                denied = self._denied(flows[start : start + _PORTION])
                if denied:
                    self.cut += conntrack.delete_many(denied)
                await asyncio.sleep(0)

    def _denied(self, flows: Iterable[Flow]) -> list[Flow]:
        """By the state of one moment. Policies of before and labels of now would be a state that
        never was, and could deny what all states allowed; so what is denied is cut at once, too."""
        if self._denials is None:
            self._denials = Denials(self._verdicts(), self._node)
        return [flow for flow in flows if self._denials.denies(flow)]


class Judges(Protocol):
    """Who knows what policies say now."""

    def verdicts(self) -> Verdicts: ...

    def staged_verdicts(self) -> Verdicts | None: ...


class FlowNotes:
    """The node's flow log: what was denied always, what passed while an `Observer` is told to."""

    def __init__(self, node: str, judges: Judges) -> None:
        self._judges = judges
        self._reader: NfLog | None = None
        self._stale = True
        self.log = FlowLog(node)
        self.since = time.time()

    def open(self) -> None:
        self._reader = NfLog(POLICY_LOG)
        asyncio.get_running_loop().add_reader(self._reader.fileno(), self._read)

    @property
    def lost(self) -> int:
        return self._reader.lost if self._reader is not None else 0

    def changed(self) -> None:
        """Policies or whom they speak of are others now."""
        self._stale = True

    def _read(self) -> None:
        assert self._reader is not None
        try:
            packets = self._reader.read()
        except KernelError as error:
            _LOG.warning("policies: flow log: %s", error)
            return
        if packets and self._stale:
            self.log.know(self._judges.verdicts(), self._judges.staged_verdicts())
            self._stale = False
        now = time.time()
        for packet in packets:
            passed = is_passed(packet.prefix)
            if passed or is_denied(packet.prefix):
                self.log.add(_seen(packet, passed), now)

    def close(self) -> None:
        if self._reader is not None:
            asyncio.get_running_loop().remove_reader(self._reader.fileno())
            self._reader.close()
            self._reader = None


def _seen(packet: CopiedPacket, passed: bool) -> Seen:
    port = 0 if packet.protocol in _ICMP else packet.dport
    return Seen(packet.src, packet.dst, packet.protocol, port, passed)
