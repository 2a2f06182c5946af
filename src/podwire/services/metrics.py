"""The agent's page for Prometheus: the golden signals of Services, and how programming goes. Pure.

    traffic      connections, packets, bytes per Service
    errors       connections that met no endpoint, drops by reason, flows without an answer
    latency      from an event of the API to the kernel; round trips of clients on this node
    saturation   conntrack table and map sizes beside their limits

One Service is one label set, whatever the number of its addresses, so a page has about seven lines
per Service that was ever used; endpoints are listed only when asked for.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from podwire.objects.meta import Key
from podwire.services.model import Frontend, FrontendKey
from podwire.services.report import NO_COUNTS, Counts
from podwire.services.traffic import Traffic
from podwire.telemetry.exposition import Histogram, Labels, Page

_PREFIX = "podwire_service"


@dataclass(frozen=True)
class NodeNumbers:
    """What a node knows; `frontends` are those in force.

    `counted` is False where the back end counts no connections: then `counts` are conntrack's
    flows, those that met no endpoint are unknown.
    """

    frontends: Mapping[FrontendKey, Frontend]
    counts: Mapping[FrontendKey, Counts] = field(default_factory=dict)
    traffic: Mapping[FrontendKey, Traffic] = field(default_factory=dict)
    live_flows: Mapping[FrontendKey, int] = field(default_factory=dict)
    drops: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)
    deleted: Mapping[str, int] = field(default_factory=dict)
    tracked: int = 0
    tracked_max: int = 0
    lost_flows: int = 0
    mended: int = 0
    refused: int = 0
    revision: int = 0
    latency: Histogram = field(default_factory=Histogram)
    counted: bool = True
    rtts_us: Mapping[FrontendKey, Sequence[int]] = field(default_factory=dict)


@dataclass
class _Sums:
    accepted: int = 0
    refused: int = 0
    live: int = 0
    endpoints: int = 0
    traffic: Traffic = field(default_factory=Traffic)


def render_metrics(numbers: NodeNumbers, *, endpoints: bool = False) -> str:
    """The page; `endpoints` adds a line per endpoint and Service port."""
    page = Page()
    sums = dict(_sum_up(numbers))
    _traffic(page, sums)
    _errors(page, sums, numbers)
    page.add_histogram(
        "podwire_service_programming_duration_seconds",
        "From an event of a Service or its EndpointSlices to the kernel.",
        numbers.latency,
    )
    _round_trips(page, numbers)
    _saturation(page, numbers)
    if endpoints:
        page.add(
            f"{_PREFIX}_endpoint_connections_total",
            "counter",
            "Connections this node sent to an endpoint.",
            _per_endpoint(numbers),
        )
    return page.render()


def _sum_up(numbers: NodeNumbers) -> Iterator[tuple[Key, _Sums]]:
    """By Service; pods' hostPorts go by the pod."""
    sums: dict[Key, _Sums] = defaultdict(_Sums)
    for key, frontend in numbers.frontends.items():
        row = sums[frontend.service]
        counts = numbers.counts.get(key, NO_COUNTS)
        traffic = numbers.traffic.get(key, Traffic())
        row.accepted += counts.accepted if numbers.counted else traffic.flows
        row.refused += counts.refused or 0
        row.live += numbers.live_flows.get(key, 0)
        row.endpoints = max(row.endpoints, len(frontend.internal or frontend.backends))
        row.traffic += traffic
    return iter(sorted(sums.items()))


def _labels(key: Key, **more: str) -> Labels:
    return {"namespace": key.namespace, "service": key.name, **more}


def _used(sums: Mapping[Key, _Sums]) -> Iterable[tuple[Key, _Sums]]:
    """Services that somebody asked for: 10,000 idle ones are no lines."""
    return [
        (key, row) for key, row in sums.items() if row.accepted or row.refused or row.traffic.flows
    ]


def _traffic(page: Page, sums: Mapping[Key, _Sums]) -> None:
    used = _used(sums)
    page.add(
        f"{_PREFIX}_connections_total",
        "counter",
        "Connections this node sent to an endpoint.",
        ((_labels(key), row.accepted) for key, row in used),
    )
    for what in ("packets", "bytes"):
        page.add(
            f"{_PREFIX}_{what}_total",
            "counter",
            f"Conntrack's {what} of connections this node translated.",
            (
                (_labels(key, direction=way), getattr(row.traffic, f"{what}_{way}"))
                for key, row in used
                for way in ("in", "out")
            ),
        )
    page.add(
        f"{_PREFIX}_open_connections",
        "gauge",
        "Entries of the conntrack table this node translated.",
        ((_labels(key), row.live) for key, row in used),
    )


def _errors(page: Page, sums: Mapping[Key, _Sums], numbers: NodeNumbers) -> None:
    used = _used(sums)
    page.add(
        f"{_PREFIX}_refused_connections_total",
        "counter",
        "Packets that would have opened a connection and met no endpoint.",
        ((_labels(key), row.refused) for key, row in used if numbers.counted),
    )
    page.add(
        f"{_PREFIX}_unanswered_connections_total",
        "counter",
        "Connections whose endpoint has not answered (yet, or never).",
        ((_labels(key), row.traffic.unreplied) for key, row in used),
    )
    page.add(
        f"{_PREFIX}_dropped_packets_total",
        "counter",
        "Packets dropped or refused by reason, of all Services.",
        (({"reason": name}, packets) for name, (packets, _) in sorted(numbers.drops.items())),
    )
    page.add(
        f"{_PREFIX}_flows_deleted_total",
        "counter",
        "UDP conntrack entries deleted because they led where no new one would.",
        (({"reason": name}, count) for name, count in sorted(numbers.deleted.items())),
    )
    page.add(
        f"{_PREFIX}_lost_flow_events_total",
        "counter",
        "Ended connections whose packets and bytes were not counted.",
        [({}, numbers.lost_flows)],
    )


def _round_trips(page: Page, numbers: NodeNumbers) -> None:
    """Open connections only: one that came and went between two scrapes was never seen."""
    by_service: dict[Key, list[int]] = defaultdict(list)
    for key, rtts in numbers.rtts_us.items():
        if key in numbers.frontends:
            by_service[numbers.frontends[key].service] += rtts
    found = [(key, sorted(rtts)) for key, rtts in sorted(by_service.items())]
    page.add(
        f"{_PREFIX}_rtt_seconds",
        "gauge",
        "Smallest round trip of pods' open connections through the Service (tcp_info min_rtt).",
        (
            (_labels(key, quantile=f"{q:g}"), rtts[min(len(rtts) - 1, int(q * len(rtts)))] / 1e6)
            for key, rtts in found
            for q in (0.5, 0.99)
        ),
    )


def _saturation(page: Page, numbers: NodeNumbers) -> None:
    page.add(
        f"{_PREFIX}_map_elements",
        "gauge",
        "Elements of the maps that balance.",
        (({"map": name}, size) for name, size in sorted(numbers.sizes.items())),
    )
    for name, text, value in (
        ("podwire_conntrack_entries", "Tracked connections.", numbers.tracked),
        ("podwire_conntrack_limit", "How many may be tracked.", numbers.tracked_max),
        (f"{_PREFIX}_programmed_revision", "Changes up to it are in force.", numbers.revision),
        (f"{_PREFIX}_refused_owners", "Services whose newest state failed.", numbers.refused),
    ):
        page.add(name, "gauge", text, [({}, value)])
    page.add(
        f"{_PREFIX}_mended_total",
        "counter",
        "Times the kernel's state was compared and repaired.",
        [({}, numbers.mended)],
    )


def _per_endpoint(numbers: NodeNumbers) -> Iterator[tuple[Labels, float]]:
    for key, frontend in numbers.frontends.items():
        counts = numbers.counts.get(key, NO_COUNTS).endpoints
        for backend in dict.fromkeys((*frontend.backends, *(frontend.internal or ()))):
            labels = _labels(frontend.service, frontend=str(key), endpoint=str(backend))
            yield labels, counts.get((backend.ip, backend.port), 0)
