"""Golden signals of cluster DNS, read from the pages its pods serve (each by its node).

    pods k8s-app=kube-dns -> /metrics of each (CoreDNS's names) -> DnsStats (pure)

Latencies are the upper bounds of the histogram's buckets: no finer than the page tells.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Final

import aiohttp
import msgspec

from podwire.client import Api
from podwire.errors import ApiError
from podwire.objects import kinds
from podwire.objects.core import Pod
from podwire.objects.meta import View

_NAMESPACE: Final = "kube-system"
_SELECTOR: Final = "k8s-app=kube-dns"
_PORT: Final = 9153
_TIMEOUT_S: Final = 5.0
_SAMPLE: Final = re.compile(r"(?P<name>[a-zA-Z_:]\w*)(?:\{(?P<labels>.*)\})? (?P<value>\S+)")
_LABEL: Final = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
_FAILED: Final = frozenset({"SERVFAIL"})

Sample = tuple[str, Mapping[str, str], float]


class DnsStats(View):
    """Of one pod since it started. A latency is the bound of its bucket, None without queries."""

    pod: str
    queries: int = 0
    by_type: dict[str, int] = {}
    by_rcode: dict[str, int] = {}
    p50_ms: float | None = msgspec.field(default=None, name="p50Milliseconds")
    p99_ms: float | None = msgspec.field(default=None, name="p99Milliseconds")
    cache_hits: int = 0
    cache_misses: int = 0
    upstream_in_flight: int = 0
    error: str = ""

    @property
    def nxdomain(self) -> int:
        return self.by_rcode.get("NXDOMAIN", 0)

    @property
    def servfail(self) -> int:
        return sum(self.by_rcode.get(rcode, 0) for rcode in _FAILED)


def parse_page(text: str) -> Iterator[Sample]:
    """The samples of a page in Prometheus' text format."""
    for line in text.splitlines():
        match = _SAMPLE.match(line)
        if match is not None:
            labels = dict(_LABEL.findall(match["labels"] or ""))
            yield match["name"], labels, float(match["value"])


def summarise(pod: str, text: str) -> DnsStats:
    """Pure: what one page says."""
    types: Counter[str] = Counter()
    rcodes: Counter[str] = Counter()
    buckets: Counter[float] = Counter()
    sums: Counter[str] = Counter()
    for name, labels, value in parse_page(text):
        if name == "coredns_dns_requests_total":
            types[labels.get("type", "other")] += int(value)
        elif name == "coredns_dns_responses_total":
            rcodes[labels.get("rcode", "")] += int(value)
        elif name == "coredns_dns_request_duration_seconds_bucket":
            buckets[float(labels.get("le", "+Inf").replace("+Inf", "inf"))] += int(value)
        else:
            sums[name] += int(value)
    return DnsStats(
        pod=pod,
        queries=sum(types.values()),
        by_type=dict(types.most_common()),
        by_rcode=dict(rcodes.most_common()),
        p50_ms=quantile_ms(buckets, 0.5),
        p99_ms=quantile_ms(buckets, 0.99),
        cache_hits=sums["coredns_cache_hits_total"],
        cache_misses=sums["coredns_cache_misses_total"],
        upstream_in_flight=sums["podwire_dns_forward_in_flight"],
    )


def quantile_ms(buckets: Mapping[float, float], share: float) -> float | None:
    """The bound below which `share` of the observations lie; buckets are cumulative."""
    total = buckets.get(float("inf"), 0)
    if not total:
        return None
    return next(b * 1000 for b in sorted(buckets) if buckets[b] >= share * total)


async def read_stats(api: Api) -> list[DnsStats]:
    """Of every DNS pod; one that cannot be asked says so."""
    pods, _ = await api.list(kinds.POD, _NAMESPACE, label_selector=_SELECTOR)
    found = await asyncio.gather(*(_read(api, pod) for pod in pods if not pod.finished))
    return sorted(found, key=lambda each: each.pod)


async def _read(api: Api, pod: Pod) -> DnsStats:
    name = pod.metadata.name
    scraped = f"scrape/{_NAMESPACE}/{name}/{_PORT}"
    path = f"/api/v1/nodes/{pod.spec.node_name}/proxy/{scraped}"
    try:
        page = await api.request("GET", path, timeout_s=_TIMEOUT_S)
    except (ApiError, aiohttp.ClientError, OSError, TimeoutError) as error:
        return DnsStats(pod=name, error=str(error) or type(error).__name__)
    return summarise(name, page.decode(errors="replace"))
