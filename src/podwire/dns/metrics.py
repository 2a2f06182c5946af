"""What the DNS server counts, on Prometheus' page under CoreDNS's names.

One response is one increment in one dictionary, whose key is everything its lines are told apart
by, sizes and duration as bucket numbers; the page is summed up from it when asked for. The keys
are few: types nobody knows are one, sizes and durations are buckets.
Source: coredns plugin/metrics/README.md, plugin/pkg/proxy/metrics.go, plugin/cache/README.md.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, Literal

from podwire.dns.request import rcode_name, type_name

# CoreDNS's, and finer ones below: kept answers, which most are, would all be in its first.
DURATION_BUCKETS_S: Final = (
    0.000016, 0.000032, 0.000064, 0.000128,
    0.00025, 0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128,
    0.256, 0.512, 1.024, 2.048, 4.096, 8.192,
)  # fmt: skip
SIZE_BUCKETS: Final = (
    0, 100, 200, 300, 400, 511, 1023, 2047, 4095, 8291, 16000, 32000, 48000, 64000,
)  # fmt: skip
PROGRAMMING_BUCKETS_S: Final = tuple(0.001 * 2**power for power in range(20))
# plugin/metrics/vars: the types with a name of their own; all others are "other".
_NAMED_TYPES: Final = frozenset(
    (1, 2, 5, 6, 12, 15, 16, 28, 33, 43, 46, 47, 48, 50, 65, 251, 252, 255)
)
_OTHER: Final = 0
# CoreDNS's label for who is served differently tells the receive loop's lines from the chain's.
FAST_VIEW: Final = "fast"
_NAMES: Final = frozenset(type_name(qtype) for qtype in _NAMED_TYPES)
_BUCKET_OF_SIZE: Final = bytes(bisect_left(SIZE_BUCKETS, size) for size in range(65536))

Labels = Mapping[str, str]
Sample = tuple[str, tuple[tuple[str, str], ...]]
Kind = Literal["counter", "gauge", "histogram"]
Collected = tuple[str, Kind, Labels, float]
Key = tuple[str, str, int, int, bool, bool, bool, int, int, int]


class Site:
    """The counters of one server block, bound to its labels once."""

    __slots__ = ("_counts", "server", "zone")

    def __init__(self, counts: dict[Key, list[float]], server: str, zone: str) -> None:
        self._counts = counts
        self.server = server
        self.zone = zone

    def count(
        self,
        plugin: str,
        query: bytes,
        response: bytes,
        *,
        qtype: int,
        tcp: bool,
        v6: bool,
        dnssec: bool,
        seconds: float,
    ) -> None:
        """One response: about a microsecond."""
        key = (
            self.zone,
            plugin,
            qtype if qtype in _NAMED_TYPES else _OTHER,
            response[3] & 15,
            tcp,
            v6,
            dnssec,
            _BUCKET_OF_SIZE[len(query)],
            _BUCKET_OF_SIZE[len(response)],
            bisect_left(DURATION_BUCKETS_S, seconds),
        )
        row = self._counts.get(key)
        if row is None:
            row = self._counts[key] = [0.0, 0.0, 0.0, 0.0]
        row[0] += 1
        row[1] += len(query)
        row[2] += len(response)
        row[3] += seconds


def counted_type(qtype: int) -> str:
    return type_name(qtype) if qtype in _NAMED_TYPES else "other"


def counted(
    site: Site,
    counts: Mapping[tuple[str, str], Sequence[int]],
    taken: Mapping[tuple[str, str], int],
) -> Iterable[Collected]:
    """Fast answers by type and code, without those that a chain took and counted itself."""
    types: defaultdict[str, int] = defaultdict(int)
    codes: defaultdict[str, int] = defaultdict(int)
    for (kind, code), number in counts.items():
        types[kind if kind in _NAMES else "other"] += number[0]
        codes[code] += number[0]
    for (kind, code), less in taken.items():
        types[kind] -= less
        codes[code] -= less
    base = {"server": site.server, "view": FAST_VIEW, "zone": site.zone}
    for kind, value in sorted(types.items()):
        labels = {**base, "family": "", "proto": "", "type": kind}
        yield "coredns_dns_requests_total", "counter", labels, value
    for code, value in sorted(codes.items()):
        labels = {**base, "plugin": "kubernetes", "rcode": code}
        yield "coredns_dns_responses_total", "counter", labels, value


class Metrics:
    """All counters of one process; `server` is CoreDNS's label, `dns://:53`."""

    def __init__(self) -> None:
        self._responses: dict[str, dict[Key, list[float]]] = {}
        self._counters: defaultdict[Sample, float] = defaultdict(float)
        self._histograms: dict[Sample, Histogram] = {}
        # Asked when the page is made: for what is counted as plain numbers elsewhere.
        self.collectors: list[Callable[[], Iterable[Collected]]] = []

    def site(self, server: str, zone: str) -> Site:
        return Site(self._responses.setdefault(server, {}), server, zone)

    def add(self, name: str, amount: float = 1, **labels: str) -> None:
        self._counters[name, tuple(sorted(labels.items()))] += amount

    def observe(
        self,
        name: str,
        seconds: float,
        *,
        bounds: Sequence[float] = DURATION_BUCKETS_S,
        **labels: str,
    ) -> None:
        key = (name, tuple(sorted(labels.items())))
        histogram = self._histograms.get(key)
        if histogram is None:
            histogram = self._histograms[key] = Histogram(bounds)
        histogram.observe(seconds)

    def show(self, name: str, histogram: Histogram, **labels: str) -> None:
        """Have a histogram on the page that others fill."""
        self._histograms[name, tuple(sorted(labels.items()))] = histogram

    def programmed(self, kind: str, seconds: float) -> None:
        """From a change of endpoints to its answer; `kind` is cluster_ip, headless_with_selector
        or headless_without_selector (plugin/kubernetes/object/metrics.go)."""
        self.observe(
            "coredns_kubernetes_dns_programming_duration_seconds",
            seconds,
            bounds=PROGRAMMING_BUCKETS_S,
            service_kind=kind,
        )

    def render(self) -> str:
        page = _Page()
        for server, counts in sorted(self._responses.items()):
            _responses(page, server, counts)
        for (name, labels), value in self._counters.items():
            page.add(name, "counter", dict(labels), value)
        for collect in self.collectors:
            for name, kind, named, value in collect():
                page.add(name, kind, named, value)
        for (name, labels), histogram in self._histograms.items():
            page.add_histogram(name, dict(labels), histogram)
        return page.render()


class Histogram:
    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0.0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float, weight: int = 1) -> None:
        """`weight`: how many observations it stands for."""
        self.counts[bisect_left(self.bounds, value)] += weight
        self.sum += value * weight


def _responses(page: _Page, server: str, counts: Mapping[Key, list[float]]) -> None:
    sums: defaultdict[Sample, float] = defaultdict(float)
    durations: dict[tuple[str, int], Histogram] = {}
    sizes: dict[tuple[str, str, bool], Histogram] = {}
    for key, (number, size_in, size_out, seconds) in counts.items():
        zone, plugin, qtype, rcode, tcp, v6, dnssec, bucket_in, bucket_out, bucket_s = key
        base = {"server": server, "view": "", "zone": zone}
        shown = counted_type(qtype)
        proto = {"proto": "tcp" if tcp else "udp"}
        family = {"family": "2" if v6 else "1"}
        _sum(sums, "requests", base | proto | family | {"type": shown}, number)
        _sum(sums, "responses", base | {"rcode": rcode_name(rcode), "plugin": plugin}, number)
        if dnssec:
            _sum(sums, "do_requests", base, number)
        duration = durations.setdefault((zone, qtype), Histogram(DURATION_BUCKETS_S))
        duration.counts[bucket_s] += number
        duration.sum += seconds
        for what, bucket, size in (
            ("request", bucket_in, size_in),
            ("response", bucket_out, size_out),
        ):
            histogram = sizes.setdefault((what, zone, tcp), Histogram(SIZE_BUCKETS))
            histogram.counts[bucket] += number
            histogram.sum += size
    for (name, labels), value in sorted(sums.items()):
        page.add(f"coredns_dns_{name}_total", "counter", dict(labels), value)
    for (zone, qtype), histogram in sorted(durations.items()):
        shown = counted_type(qtype)
        named = {"server": server, "type": shown, "view": "", "zone": zone}
        page.add_histogram("coredns_dns_request_duration_seconds", named, histogram)
    for (what, zone, tcp), histogram in sorted(sizes.items()):
        named = {"proto": "tcp" if tcp else "udp", "server": server, "view": "", "zone": zone}
        page.add_histogram(f"coredns_dns_{what}_size_bytes", named, histogram)


def _sum(
    sums: defaultdict[Sample, float],
    name: str,
    labels: Labels,
    number: float,
) -> None:
    sums[name, tuple(sorted(labels.items()))] += number


class _Page:
    """Prometheus' text format 0.0.4; the samples of a family stand together."""

    def __init__(self) -> None:
        self._families: dict[str, tuple[Kind, list[str]]] = {}

    def add(self, name: str, kind: Kind, labels: Labels, value: float) -> None:
        self._lines(name, kind).append(f"{name}{_shown(labels)} {_number(value)}")

    def add_histogram(self, name: str, labels: Labels, histogram: Histogram) -> None:
        lines = self._lines(name, "histogram")
        reached = 0.0
        for bound, count in zip((*histogram.bounds, None), histogram.counts, strict=True):
            reached += count
            edge = "+Inf" if bound is None else f"{bound:g}"
            lines.append(f"{name}_bucket{_shown({**labels, 'le': edge})} {_number(reached)}")
        lines.append(f"{name}_sum{_shown(labels)} {_number(histogram.sum)}")
        lines.append(f"{name}_count{_shown(labels)} {_number(reached)}")

    def _lines(self, name: str, kind: Kind) -> list[str]:
        return self._families.setdefault(name, (kind, []))[1]

    def render(self) -> str:
        return "".join(self._rendered(sorted(self._families.items())))

    def _rendered(self, families: Iterable[tuple[str, tuple[Kind, list[str]]]]) -> Iterable[str]:
        for name, (kind, lines) in families:
            yield f"# HELP {name} {_HELP.get(name, name)}\n# TYPE {name} {kind}\n"
            yield "\n".join(lines) + "\n"


def _shown(labels: Labels) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{k}="{_escape(v)}"' for k, v in sorted(labels.items())) + "}"


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else f"{value:.9g}"


_HELP: Final = {
    "coredns_autopath_success_total": "Counter of requests that did autopath.",
    "coredns_cache_drops_total": "Responses excluded from the cache: their question is another.",
    "coredns_cache_entries": "The number of elements in the cache.",
    "coredns_cache_evictions_total": "The count of cache evictions.",
    "coredns_cache_hits_total": "The count of cache hits.",
    "coredns_cache_misses_total": "The count of cache misses.",
    "coredns_cache_prefetch_total": "Times the cache has prefetched a cached item.",
    "coredns_cache_requests_total": "The count of cache requests.",
    "coredns_cache_served_stale_total": "Requests served from stale cache entries.",
    "coredns_dns64_requests_translated_total": "Counter of DNS requests translated by dns64.",
    "coredns_dns_do_requests_total": "Counter of DNS requests with DO bit set per zone.",
    "coredns_dns_request_duration_seconds": "Histogram of the time each request took per zone.",
    "coredns_dns_request_size_bytes": "Size of the EDNS0 UDP buffer in bytes (64K for TCP).",
    "coredns_dns_requests_total": "Counter of DNS requests made per zone, protocol and family.",
    "coredns_dns_response_size_bytes": "Size of the returned response in bytes.",
    "coredns_dns_responses_total": "Counter of response status codes.",
    "coredns_forward_healthcheck_broken_total": "Times all upstreams were down at once.",
    "coredns_forward_max_concurrent_rejects_total": "Queries rejected: too many at a time.",
    "coredns_kubernetes_dns_programming_duration_seconds": (
        "From a change of endpoints to the answer that has it."
    ),
    "coredns_proxy_conn_cache_hits_total": "Connections reused per upstream and protocol.",
    "coredns_proxy_conn_cache_misses_total": "Connections opened per upstream and protocol.",
    "coredns_proxy_healthcheck_failures_total": "Failed health checks per upstream.",
    "coredns_proxy_request_duration_seconds": "Time each request to an upstream took.",
    "podwire_dns_cache_evicted_names_total": "Names whose cached answers a change has ended.",
    "podwire_dns_forward_in_flight": "Queries that wait for an upstream.",
}
