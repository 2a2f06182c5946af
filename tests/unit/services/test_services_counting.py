"""Counters: kept over their elements, conntrack summed by frontend, all of it on one page."""

from __future__ import annotations

import dataclasses
import socket

import msgspec
import pytest
from service_worlds import compiled, make_service, make_slice

from podwire.kernel import flows
from podwire.kernel.flows import Flow
from podwire.kernel.nfcounters import Counted
from podwire.objects.meta import Key
from podwire.services import nftables as nf
from podwire.services.endpoints import Backend
from podwire.services.metrics import NodeNumbers, render_metrics
from podwire.services.model import Frontend, FrontendKey
from podwire.services.report import Counts, address_text, describe_service
from podwire.services.tally import Tally
from podwire.services.traffic import (
    MAX_KEYS,
    FlowCounts,
    Traffic,
    TrafficLog,
    sum_endpoints,
    sum_flows,
)
from podwire.telemetry.exposition import Histogram, Page, render_labels

VIP = FrontendKey(socket.inet_aton("10.96.0.1"), 6, 80)
BASE = nf.pack_key(VIP)
ONE, TWO = (Backend(socket.inet_aton(f"10.244.1.{n}"), 8080) for n in (2, 3))


def number(chain: str) -> bytes:
    return nf.pack_index(nf.chain_code(chain))


def served(packets: int) -> dict[bytes | tuple[bytes, bytes], Counted]:
    return {BASE: Counted(number("lb-2"), packets, 60 * packets)}


def unserved(packets: int) -> dict[bytes | tuple[bytes, bytes], Counted]:
    return {BASE: Counted(number(nf.REFUSE), packets, 60 * packets)}


def endpoint(
    index: int, backend: Backend, packets: int
) -> dict[bytes | tuple[bytes, bytes], Counted]:
    data = nf.pack_backend(backend)
    return {BASE + nf.pack_index(index): Counted(data, packets, 60 * packets)}


# --- tally --------------------------------------------------------------------------------------


def test_a_replaced_element_goes_on_counting() -> None:
    tally = Tally()
    tally.keep(nf.SERVICES, served(5))
    assert tally.totals({nf.SERVICES: served(2)}, {VIP})[VIP].accepted == 7


def test_connections_that_met_no_endpoint_are_apart() -> None:
    tally = Tally()
    tally.keep(nf.SERVICES, unserved(3))
    found = tally.totals({nf.SERVICES: served(2)}, {VIP})[VIP]
    assert (found.accepted, found.refused) == (2, 3)


def test_an_endpoint_keeps_its_count_wherever_it_stands() -> None:
    tally = Tally()
    tally.keep(nf.ENDPOINTS, endpoint(2, ONE, 4))
    live = {nf.ENDPOINTS: endpoint(0, ONE, 1) | endpoint(1, TWO, 9)}
    found = tally.totals(live, {VIP})[VIP].endpoints
    assert found == {(ONE.ip, ONE.port): 5, (TWO.ip, TWO.port): 9}


def test_what_goes_while_the_kernel_is_read_counts_once() -> None:
    tally = Tally()
    tally.begin()
    live = {nf.SERVICES: served(5)}  # read elsewhere, before ...
    tally.keep(nf.SERVICES, served(6))  # ... it was deleted
    assert tally.totals(live, {VIP})[VIP].accepted == 6
    assert tally.totals({nf.SERVICES: served(1)}, {VIP})[VIP].accepted == 7


def test_frontends_nobody_has_are_forgotten() -> None:
    tally = Tally()
    tally.keep(nf.SERVICES, served(5))
    assert tally.totals({}, set()) == {}
    assert tally.totals({}, {VIP})[VIP].accepted == 5
    tally.forget(VIP)
    assert tally.totals({}, {VIP}) == {}


# --- traffic ------------------------------------------------------------------------------------


def flow(*, status: int = flows.DST_NAT | flows.SEEN_REPLY, packets: int = 3) -> Flow:
    client, answer = socket.inet_aton("10.244.0.9"), ONE.ip
    return Flow(
        flows.Tuple(client, VIP.ip, 40000, 80, 6),
        flows.Tuple(answer, client, 8080, 40000, 6),
        status,
        counters=(packets, 100 * packets),
        reply_counters=(packets + 1, 1000),
    )


def test_translated_flows_count_for_what_was_asked_for() -> None:
    plain = msgspec.structs.replace(flow(status=0), reply=_answer(flow(), VIP.ip, VIP.port))
    found = sum_flows([flow(), flow(status=flows.DST_NAT), plain])
    assert found == {VIP: Traffic(2, 1, 6, 8, 600, 2000)}


def _answer(of: Flow, ip: bytes, port: int) -> flows.Tuple:
    return of.reply._replace(src=ip, sport=port)


def test_what_ipvs_translated_has_no_status() -> None:
    assert sum_flows([flow(status=flows.SEEN_REPLY)])[VIP].flows == 1
    ping = flow(status=0)
    ping = msgspec.structs.replace(
        ping,
        orig=ping.orig._replace(proto=1, dport=8 << 8),
        reply=ping.reply._replace(src=VIP.ip, sport=40000, dport=0, proto=1),
    )
    assert sum_flows([ping]) == {}


def test_flows_stand_for_connections_where_rules_do_not_count() -> None:
    counts = FlowCounts()
    to_two = msgspec.structs.replace(flow(), reply=_answer(flow(), TWO.ip, TWO.port))
    counts.end([flow(), to_two])
    told = counts.totals(sum_endpoints([flow()]), [VIP])[VIP]
    assert (told.accepted, told.refused) == (3, None)
    assert told.endpoints == {(ONE.ip, 8080): 2, (TWO.ip, 8080): 1}
    # One ends, and its event has not come yet.
    assert counts.totals({}, [VIP])[VIP] == told
    counts.end([flow()])
    assert counts.totals({}, [VIP])[VIP] == told
    assert counts.totals({}, []) == {}
    assert counts.totals({}, [VIP])[VIP] == Counts(0, None)


def test_ended_and_living_flows_are_one_number() -> None:
    log = TrafficLog()
    log.end([flow()])
    assert log.totals(sum_flows([flow()]), [VIP])[VIP].flows == 2


def test_a_flow_that_ends_between_two_looks_lets_no_counter_fall() -> None:
    log = TrafficLog()
    before = log.totals(sum_flows([flow()]), [VIP])[VIP]
    assert log.totals({}, [VIP])[VIP] == before
    log.end([flow()])
    assert log.totals({}, [VIP])[VIP] == before


def test_accounting_may_be_off() -> None:
    bare = msgspec.structs.replace(flow(), counters=None, reply_counters=None)
    assert sum_flows([bare])[VIP] == Traffic(flows=1)


def test_memory_is_bounded_and_losses_are_told() -> None:
    log = TrafficLog()
    many = [
        msgspec.structs.replace(
            flow(), orig=flow().orig._replace(dst=number.to_bytes(4, "big"), dport=1)
        )
        for number in range(MAX_KEYS + 3)
    ]
    log.end(many)
    assert log.lost == 3


# --- the page -----------------------------------------------------------------------------------


def test_labels_are_escaped() -> None:
    assert render_labels({"a": 'x"\\\n'}) == '{a="x\\"\\\\\\n"}'


def test_a_family_without_samples_is_left_out() -> None:
    page = Page()
    page.add("x", "gauge", "y", [])
    assert page.render() == ""


def test_histograms_are_cumulative() -> None:
    histogram = Histogram((0.001, 0.01))
    for value in (0.0005, 0.001, 0.005, 3.0):
        histogram.observe(value)
    page = Page()
    page.add_histogram("t", "text", histogram)
    assert page.render().splitlines()[2:] == [
        't_bucket{le="0.001"} 2',
        't_bucket{le="0.01"} 3',
        't_bucket{le="+Inf"} 4',
        "t_sum 3.006500",
        "t_count 4",
    ]
    assert histogram.quantile(0.5) == 0.001
    assert Histogram().quantile(0.99) == 0.0


def numbers() -> NodeNumbers:
    frontend = Frontend(VIP, Key("ns1", "web"), "http", "ClusterIP", (ONE, TWO))
    idle = FrontendKey(socket.inet_aton("10.96.0.2"), 6, 80)
    return NodeNumbers(
        {VIP: frontend, idle: Frontend(idle, Key("ns1", "idle"), "", "ClusterIP", (ONE,))},
        counts={VIP: Counts(7, 2, {(ONE.ip, ONE.port): 7})},
        traffic={VIP: Traffic(3, 1, 10, 20, 1000, 2000)},
        live_flows={VIP: 1},
        drops={"source-ranges": (4, 240)},
        sizes={"services": 2},
        deleted={"endpoint gone": 5},
        tracked=9,
        tracked_max=100,
        lost_flows=6,
        mended=1,
        revision=42,
        rtts_us={VIP: [100, 250, 4000]},
    )


@pytest.mark.parametrize(
    "line",
    [
        'podwire_service_connections_total{namespace="ns1",service="web"} 7',
        'podwire_service_refused_connections_total{namespace="ns1",service="web"} 2',
        'podwire_service_packets_total{namespace="ns1",service="web",direction="in"} 10',
        'podwire_service_bytes_total{namespace="ns1",service="web",direction="out"} 2000',
        'podwire_service_unanswered_connections_total{namespace="ns1",service="web"} 1',
        'podwire_service_open_connections{namespace="ns1",service="web"} 1',
        'podwire_service_dropped_packets_total{reason="source-ranges"} 4',
        'podwire_service_flows_deleted_total{reason="endpoint gone"} 5',
        'podwire_service_map_elements{map="services"} 2',
        'podwire_service_rtt_seconds{namespace="ns1",service="web",quantile="0.5"} 0.000250',
        'podwire_service_rtt_seconds{namespace="ns1",service="web",quantile="0.99"} 0.004000',
        "podwire_conntrack_entries 9",
        "podwire_conntrack_limit 100",
        "podwire_service_lost_flow_events_total 6",
        "podwire_service_programmed_revision 42",
        "podwire_service_mended_total 1",
    ],
)
def test_the_page_has(line: str) -> None:
    assert line in render_metrics(numbers()).splitlines()


def test_idle_services_and_endpoints_are_no_lines_unless_asked_for() -> None:
    assert "idle" not in render_metrics(numbers())
    assert "endpoint=" not in render_metrics(numbers())
    lines = render_metrics(numbers(), endpoints=True).splitlines()
    assert (
        'podwire_service_endpoint_connections_total{namespace="ns1",service="web",'
        'frontend="TCP 10.96.0.1:80",endpoint="10.244.1.2:8080"} 7'
    ) in lines


def test_flows_stand_for_connections_where_nobody_counts_them() -> None:
    page = render_metrics(dataclasses.replace(numbers(), counts={}, counted=False))
    assert 'podwire_service_connections_total{namespace="ns1",service="web"} 3' in page
    assert "refused_connections" not in page


def test_every_family_says_what_it_is() -> None:
    page = render_metrics(numbers(), endpoints=True)
    names = {line.split()[2] for line in page.splitlines() if line.startswith("# TYPE")}
    for line in page.splitlines():
        if not line.startswith("#"):
            name = line.partition("{")[0].partition(" ")[0]
            stem = name.removesuffix("_bucket").removesuffix("_sum").removesuffix("_count")
            assert stem in names or name in names


# --- reports ------------------------------------------------------------------------------------


def test_a_report_tells_endpoints_counts_and_who_has_the_address() -> None:
    service = make_service(sessionAffinity="ClientIP")
    piece = make_slice(
        {"ip": "10.244.1.2", "node": "node-1"},
        {"ip": "10.244.2.2", "node": "node-2"},
        weights={"10.244.2.2": 3},
    )
    counts = {VIP: Counts(5, 1, {(socket.inet_aton("10.244.2.2"), 8080): 5})}
    found = describe_service(
        "Service", 7, "", compiled(service, piece), counts, {VIP: "service ns1/older"}
    )
    (frontend,) = found.frontends
    assert [(e.address, e.local, e.weight, e.connections) for e in frontend.endpoints] == [
        ("10.244.1.2:8080", True, 1, 0),
        ("10.244.2.2:8080", False, 3, 5),
    ]
    assert (frontend.affinity_s, frontend.connections, frontend.refused) == (10800, 5, 1)
    assert frontend.owner == "service ns1/older"


@pytest.mark.parametrize("text", ["10.96.0.1", "fd00:96::1"])
def test_addresses_are_written_as_usual(text: str) -> None:
    version = socket.AF_INET6 if ":" in text else socket.AF_INET
    assert address_text(socket.inet_pton(version, text)) == text
