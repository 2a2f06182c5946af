"""Packets and bytes of Services, from connection tracking. Pure.

    live flows (a dump, when asked) + ended flows (DESTROY events, as they come) -> Traffic
                                                                                 -> Counts

A flow belongs to the frontend its client asked for: the original destination. It is counted on the
node that translated it, which is the node the client's packets meet first. Counting needs
nf_conntrack_acct; flows made before it was on have no counters and count as flows only.

Where the back end's own rules do not count, or lose their counts whenever they are written anew,
flows stand for connections too: `FlowCounts`. What was refused made no flow, so nobody knows it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

from podwire.kernel.flows import Flow
from podwire.services.model import FrontendKey
from podwire.services.report import Counts

MAX_KEYS: Final = 50_000
"""Frontends whose ended flows are remembered; past it new ones are counted as lost."""


@dataclass
class Traffic:
    """`packets` and `bytes` are (to the Service, from the Service); `unreplied` never had one."""

    flows: int = 0
    unreplied: int = 0
    packets_in: int = 0
    packets_out: int = 0
    bytes_in: int = 0
    bytes_out: int = 0

    def add(self, flow: Flow) -> None:
        self.flows += 1
        self.unreplied += not flow.seen_reply
        if flow.counters is not None:
            self.packets_in += flow.counters[0]
            self.bytes_in += flow.counters[1]
        if flow.reply_counters is not None:
            self.packets_out += flow.reply_counters[0]
            self.bytes_out += flow.reply_counters[1]

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(
            self.flows + other.flows,
            self.unreplied + other.unreplied,
            self.packets_in + other.packets_in,
            self.packets_out + other.packets_out,
            self.bytes_in + other.bytes_in,
            self.bytes_out + other.bytes_out,
        )

    def at_least(self, other: Traffic) -> Traffic:
        """The larger of each: counters do not fall, even while a flow ends between two looks."""
        return Traffic(
            *(max(getattr(self, n), getattr(other, n)) for n in self.__dataclass_fields__)
        )


def sum_flows(
    flows: Iterable[Flow], into: dict[FrontendKey, Traffic] | None = None
) -> dict[FrontendKey, Traffic]:
    """Translated flows by what their clients asked for."""
    found: dict[FrontendKey, Traffic] = {} if into is None else into
    for flow in flows:
        if flow.redirected:
            key = FrontendKey(flow.orig.dst, flow.orig.proto, flow.orig.dport)
            row = found.get(key)
            if row is None:
                row = found[key] = Traffic()
            row.add(flow)
    return found


class TrafficLog:
    """Ended flows by frontend, and the totals told last."""

    def __init__(self) -> None:
        self._ended: dict[FrontendKey, Traffic] = {}
        self._told: dict[FrontendKey, Traffic] = {}
        self.lost = 0

    def end(self, flows: Iterable[Flow]) -> None:
        for key, traffic in sum_flows(flows).items():
            if key not in self._ended and len(self._ended) >= MAX_KEYS:
                self.lost += traffic.flows
                continue
            self._ended[key] = self._ended.get(key, Traffic()) + traffic

    def totals(
        self, live: Mapping[FrontendKey, Traffic], wanted: Iterable[FrontendKey]
    ) -> dict[FrontendKey, Traffic]:
        """Everything of the `wanted` frontends since they stood; others are forgotten."""
        found: dict[FrontendKey, Traffic] = {}
        ended: dict[FrontendKey, Traffic] = {}
        for key in wanted:
            if key in self._ended:
                ended[key] = self._ended[key]
            if key in ended or key in live or key in self._told:
                now = ended.get(key, Traffic()) + live.get(key, Traffic())
                found[key] = now.at_least(self._told.get(key, Traffic()))
        self._ended, self._told = ended, found
        return found


Endpoints: TypeAlias = dict[FrontendKey, Counter[tuple[bytes, int]]]
"""Flows by who was asked, and who answers."""


def sum_endpoints(flows: Iterable[Flow], into: Endpoints | None = None) -> Endpoints:
    found: Endpoints = {} if into is None else into
    for flow in flows:
        if flow.redirected:
            key = FrontendKey(flow.orig.dst, flow.orig.proto, flow.orig.dport)
            found.setdefault(key, Counter())[flow.reply.src, flow.reply.sport] += 1
    return found


class FlowCounts:
    """Connections by frontend and endpoint since the agent began to listen."""

    def __init__(self) -> None:
        self._ended: Endpoints = {}
        self._told: Endpoints = {}

    def end(self, flows: Iterable[Flow]) -> None:
        for key, endpoints in sum_endpoints(flows).items():
            if key in self._ended or len(self._ended) < MAX_KEYS:
                self._ended.setdefault(key, Counter()).update(endpoints)

    def totals(self, live: Endpoints, wanted: Iterable[FrontendKey]) -> dict[FrontendKey, Counts]:
        """All of the `wanted` frontends; others are forgotten. Counts do not fall."""
        nothing: Counter[tuple[bytes, int]] = Counter()
        ended: Endpoints = {}
        told: Endpoints = {}
        for key in wanted:
            if key in self._ended:
                ended[key] = self._ended[key]
            now = ended.get(key, nothing) + live.get(key, nothing)
            told[key] = now | self._told.get(key, nothing)
        self._ended, self._told = ended, told
        return {key: Counts(each.total(), None, each) for key, each in told.items()}
