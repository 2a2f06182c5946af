"""Golden signals out of a page of CoreDNS's metrics."""

from __future__ import annotations

from podwire.explain.dnsstats import parse_page, quantile_ms, summarise

PAGE = """\
# HELP coredns_dns_requests_total Counter of DNS requests.
# TYPE coredns_dns_requests_total counter
coredns_dns_requests_total{family="1",proto="udp",server="dns://:53",type="A",zone="."} 90
coredns_dns_requests_total{family="1",proto="tcp",server="dns://:53",type="A",zone="."} 5
coredns_dns_requests_total{family="1",proto="udp",server="dns://:53",type="SRV",zone="."} 5
coredns_dns_responses_total{plugin="",rcode="NOERROR",server="dns://:53",zone="."} 90
coredns_dns_responses_total{plugin="",rcode="NXDOMAIN",server="dns://:53",zone="."} 8
coredns_dns_responses_total{plugin="",rcode="SERVFAIL",server="dns://:53",zone="."} 2
coredns_dns_request_duration_seconds_bucket{server="dns://:53",type="A",le="0.00025"} 60
coredns_dns_request_duration_seconds_bucket{server="dns://:53",type="A",le="0.001"} 94
coredns_dns_request_duration_seconds_bucket{server="dns://:53",type="A",le="+Inf"} 95
coredns_dns_request_duration_seconds_bucket{server="dns://:53",type="SRV",le="0.00025"} 5
coredns_dns_request_duration_seconds_bucket{server="dns://:53",type="SRV",le="0.001"} 5
coredns_dns_request_duration_seconds_bucket{server="dns://:53",type="SRV",le="+Inf"} 5
coredns_cache_hits_total{type="success"} 3
coredns_cache_hits_total{type="denial"} 4
coredns_cache_misses_total 6
podwire_dns_forward_in_flight{to="."} 3
"""


def test_a_page_is_summed_up() -> None:
    found = summarise("coredns-1", PAGE)
    assert (found.queries, found.by_type) == (100, {"A": 95, "SRV": 5})
    assert (found.nxdomain, found.servfail) == (8, 2)
    assert (found.p50_ms, found.p99_ms) == (0.25, 1.0)
    assert (found.cache_hits, found.cache_misses) == (7, 6)
    assert found.upstream_in_flight == 3


def test_a_page_without_queries_has_no_latency() -> None:
    found = summarise("coredns-1", "")
    assert (found.queries, found.p50_ms, found.error) == (0, None, "")


def test_labels_may_hold_anything() -> None:
    (sample,) = parse_page('m{a="x\\"y,}",b=""} 1e3')
    assert sample == ("m", {"a": 'x\\"y,}', "b": ""}, 1000.0)


def test_a_quantile_beyond_every_bucket_is_infinite() -> None:
    assert quantile_ms({0.1: 1, float("inf"): 2}, 0.99) == float("inf")
