"""What this node's kernel counted for Services: read when somebody asks, in a thread of its own.

    maps' elements, named counters, conntrack table -> one Reading
    DESTROY events, as they come                    -> TrafficLog

Back ends without elements have their connections counted by conntrack: `services.traffic`.

A reading of 10,000 Services takes about 0.1 s of another thread, so programming does not wait; one
that is younger than `_FRESH_S` is given again. Ended flows are read in portions with pauses, so
that 100,000 of them a second cost a bounded share of the processor: what the socket's buffer
cannot hold meanwhile is lost and counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from podwire.agents.nftablesbackend import NftablesBackend
from podwire.agents.servicekernel import ServiceBackend
from podwire.errors import KernelError
from podwire.kernel import conntrack, flows, netns, sysctl
from podwire.kernel.conntrack import Conntrack, ConntrackEvents
from podwire.kernel.nfcounters import Counted, NfCounters
from podwire.kernel.nfpack import Key
from podwire.kernel.sockdiag import SockDiag, TcpSocket
from podwire.services import nftables as nf
from podwire.services.claims import Claims
from podwire.services.model import FrontendKey
from podwire.services.report import Counts
from podwire.services.tally import COUNTING
from podwire.services.traffic import (
    Endpoints,
    FlowCounts,
    Traffic,
    TrafficLog,
    sum_endpoints,
    sum_flows,
)

T = TypeVar("T")
_LOG = logging.getLogger(__name__)
_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
_FRESH_S = 1.0
_EVENT_BUFFER = 4 << 20
_PORTION = 2000
# Entering a pod and asking takes about 0.1 ms.
_MAX_PODS = 500
_PAUSE_S = 0.05


@dataclass(frozen=True)
class Reading:
    """One look. `drops` is (packets, bytes) by reason, `sizes` elements by map name."""

    counts: dict[FrontendKey, Counts] = field(default_factory=dict)
    traffic: dict[FrontendKey, Traffic] = field(default_factory=dict)
    drops: dict[str, tuple[int, int]] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    tracked: int = 0
    tracked_max: int = 0
    rtts_us: dict[FrontendKey, list[int]] = field(default_factory=dict)
    live_flows: dict[FrontendKey, int] = field(default_factory=dict)


@dataclass(frozen=True)
class _Raw:
    """What the thread brings back."""

    elements: dict[str, dict[Key, Counted]]
    drops: dict[str, tuple[int, int]]
    live: dict[FrontendKey, Traffic]
    endpoints: Endpoints
    tracked: int
    tracked_max: int
    rtts_us: dict[FrontendKey, list[int]]


class ServiceCounters:
    """Made in the node's network namespace; `start` switches on accounting and listens."""

    def __init__(
        self,
        families: Iterable[int],
        claims: Claims,
        backend: ServiceBackend,
        pins: Callable[[], Sequence[Path]] = tuple,
    ) -> None:
        """`pins` are where this node's pods are, whose clients' round trips are read."""
        self._families = tuple(families)
        self._pins = pins
        self._claims = claims
        self._backend = backend
        self._tally = backend.tally if isinstance(backend, NftablesBackend) else None
        self._counters = NfCounters()
        self._conntrack = Conntrack()
        self._events: ConntrackEvents | None = None
        self._log = TrafficLog()
        self._flow_counts = FlowCounts() if self._tally is None else None
        # The kernel chooses, where it can.
        ipvs = backend.name == "ipvs"
        self._match = flows.Match() if ipvs else flows.Match(status=flows.DST_NAT)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="counters")
        self._lock = asyncio.Lock()
        self._last: dict[bool, tuple[float, Reading]] = {}
        self._pause: asyncio.TimerHandle | None = None

    @property
    def lost_flows(self) -> int:
        """Ended flows whose packets nobody counted."""
        return self._log.lost + (self._events.lost if self._events is not None else 0)

    # --- ended flows ------------------------------------------------------------------------------

    def start(self) -> None:
        """Without accounting or events there are no packets and bytes, and everything else is."""
        try:
            sysctl.write({conntrack.ACCT: 1})
            self._events = ConntrackEvents(("destroy",), _EVENT_BUFFER)
        except KernelError as error:
            _LOG.warning("services: no packets and bytes of connections: %s", error)
            return
        asyncio.get_running_loop().add_reader(self._events.fileno(), self._ended)

    def _ended(self) -> None:
        """A portion, then silence for a moment: events wait in the socket."""
        if self._events is None:
            return
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._events.fileno())
        with contextlib.suppress(KernelError):
            ended = [event.flow for event in self._events.read(_PORTION)]
            self._log.end(ended)
            if self._flow_counts is not None:
                self._flow_counts.end(ended)
        self._pause = loop.call_later(_PAUSE_S, self._listen)

    def _listen(self) -> None:
        if self._events is not None:
            asyncio.get_running_loop().add_reader(self._events.fileno(), self._ended)

    # --- reading ----------------------------------------------------------------------------------

    async def read(self, *, endpoints: bool = False) -> Reading:
        """What was counted, of single endpoints only on demand: 100,000 of them take 0.6 s.

        Readers at the same time share one look.
        """
        async with self._lock:
            read_at, last = self._last.get(endpoints, (float("-inf"), Reading()))
            if time.monotonic() - read_at < _FRESH_S:
                return last
            names = COUNTING if endpoints else (nf.SERVICES,)
            try:
                pins = self._pins()[:_MAX_PODS]
                raw = await self._in_thread(lambda: self._look(names, pins))
            except KernelError as error:
                _LOG.warning("services: counters not read: %s", error)
                return last
            reading = self._combine(raw)
            self._last[endpoints] = time.monotonic(), reading
            return reading

    async def read_frontends(self, keys: Iterable[FrontendKey]) -> dict[FrontendKey, Counts]:
        """Counts of these frontends and their endpoints alone: as cheap as they are few."""
        tally, backend = self._tally, self._backend
        wanted = set(keys)
        if tally is None or not isinstance(backend, NftablesBackend):
            counts = (await self.read()).counts
            return {key: counts[key] for key in wanted if key in counts}
        places: dict[tuple[int, str], list[Key]] = {}
        for key in wanted:
            for name, elements in backend.ruleset.elements_of(key).items():
                if name in COUNTING:
                    places.setdefault((4 if len(key.ip) == 4 else 6, name), []).extend(elements)
        async with self._lock:
            try:
                live = await self._in_thread(lambda: self._read_places(places))
            except KernelError as error:
                _LOG.warning("services: counters not read: %s", error)
                live = {}
            return tally.totals(live, wanted)

    async def _in_thread(self, look: Callable[[], T]) -> T:
        if self._tally is not None:
            self._tally.begin()
        return await asyncio.get_running_loop().run_in_executor(self._thread, look)

    def _read_places(
        self, places: Mapping[tuple[int, str], list[Key]]
    ) -> dict[str, dict[Key, Counted]]:
        found: dict[str, dict[Key, Counted]] = {name: {} for name in COUNTING}
        for (version, name), keys in places.items():
            family = nf.FAMILY_NAMES[version]
            found[name] |= self._counters.read(family, nf.TABLE, name, keys)
        return found

    def _look(self, names: Iterable[str], pins: Sequence[Path]) -> _Raw:
        elements: dict[str, dict[Key, Counted]] = {name: {} for name in names}
        drops: dict[str, tuple[int, int]] = {}
        live: dict[FrontendKey, Traffic] = {}
        endpoints: Endpoints = {}
        for version in self._families:
            family = nf.FAMILY_NAMES[version]
            if self._tally is not None:
                for name, found in elements.items():
                    found |= self._counters.read_all(family, nf.TABLE, name)
                for name, (packets, octets) in self._counters.named(family, nf.TABLE).items():
                    before = drops.get(name, (0, 0))
                    drops[name] = before[0] + packets, before[1] + octets
            found_flows = list(self._conntrack.dump(_FAMILIES[version], self._match))
            sum_flows(found_flows, live)
            if self._flow_counts is not None:
                sum_endpoints(found_flows, endpoints)
        tracked, limit = self._conntrack.count(), self._conntrack.maximum()
        return _Raw(elements, drops, live, endpoints, tracked, limit, self._round_trips(pins))

    def _round_trips(self, pins: Sequence[Path]) -> dict[FrontendKey, list[int]]:
        """Of every established connection of the pods, by what it asked for."""
        found: dict[FrontendKey, list[int]] = {}
        for pin in pins:
            # A pod may be gone by now.
            with contextlib.suppress(KernelError, OSError):
                for each in _sockets_of(pin, self._families):
                    if each.min_rtt_us is not None:
                        key = FrontendKey(each.dst, socket.IPPROTO_TCP, each.dport)
                        found.setdefault(key, []).append(each.min_rtt_us)
        return found

    def _combine(self, raw: _Raw) -> Reading:
        frontends = self._claims.frontends
        backend = self._backend
        counts: dict[FrontendKey, Counts] = {}
        if self._tally is not None:
            counts = self._tally.totals(raw.elements, frontends)
        elif self._flow_counts is not None:
            counts = self._flow_counts.totals(raw.endpoints, frontends)
        return Reading(
            counts,
            self._log.totals(raw.live, frontends),
            raw.drops,
            backend.ruleset.sizes() if isinstance(backend, NftablesBackend) else {},
            raw.tracked,
            raw.tracked_max,
            {key: sorted(rtts) for key, rtts in raw.rtts_us.items() if key in frontends},
            {key: traffic.flows for key, traffic in raw.live.items() if key in frontends},
        )

    def close(self) -> None:
        if self._pause is not None:
            self._pause.cancel()
        self._thread.shutdown(wait=True, cancel_futures=True)
        if self._events is not None:
            with contextlib.suppress(RuntimeError):
                asyncio.get_running_loop().remove_reader(self._events.fileno())
            self._events.close()
        self._counters.close()
        self._conntrack.close()


def _sockets_of(pin: Path, families: Iterable[int]) -> list[TcpSocket]:
    descriptor = netns.open_pin(pin)
    try:
        with SockDiag.in_ns(descriptor) as diag:
            return [s for version in families for s in diag.established(_FAMILIES[version])]
    finally:
        os.close(descriptor)
