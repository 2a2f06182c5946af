"""`dns explain`: the search list as resolvers walk it, reasons from objects, and the sum."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from podwire.explain.dnsexplain import DnsWorld, explain_dns, make_world, reason
from podwire.explain.dnssearch import Resolver, candidates, find_in_hosts, parse_resolver
from podwire.explain.dnswire import DnsExchange, DnsResponse
from podwire.objects.core import Namespace, Service
from podwire.objects.discovery import EndpointSlice

CONF = """\
search shop.svc.cluster.local svc.cluster.local cluster.local
nameserver 10.96.0.10
options ndots:5
"""


@pytest.mark.parametrize(
    ("conf", "name", "expected"),
    [
        (CONF, "web", ["web.shop.svc.cluster.local.", "web.svc.cluster.local.",
                       "web.cluster.local.", "web."]),
        (CONF, "web.", ["web."]),
        (CONF, "a.b.c.d.e.f", ["a.b.c.d.e.f.", "a.b.c.d.e.f.shop.svc.cluster.local.",
                               "a.b.c.d.e.f.svc.cluster.local.", "a.b.c.d.e.f.cluster.local."]),
        ("search a.b\n", "x.y", ["x.y.", "x.y.a.b."]),
        ("search a.b\n", "x", ["x.a.b.", "x."]),
        ("search .\noptions ndots:2", "x.y", ["x.y."]),
        ("", "x", ["x."]),
        ("search a.b\noptions ndots:99", "x" + ".y" * 14, [f"x{'.y' * 14}.a.b.", f"x{'.y' * 14}."]),
        ("search a.b\noptions ndots:99", "x" + ".y" * 15, [f"x{'.y' * 15}.", f"x{'.y' * 15}.a.b."]),
    ],
)  # fmt: skip
def test_the_search_list_is_walked_as_glibc_does(conf: str, name: str, expected: list[str]) -> None:
    assert list(candidates(parse_resolver(conf), name)) == expected


def test_a_resolv_conf_is_read_with_its_limits() -> None:
    conf = (
        "".join(f"nameserver 10.0.0.{n}\n" for n in range(1, 5)) + "options timeout:2 attempts:3\n"
    )
    found = parse_resolver(
        conf + "search x.\nsearch y z.\noptions ndots:x rotate\nsortlist 1.1.1.1\n"
    )
    assert found == Resolver(("10.0.0.1", "10.0.0.2", "10.0.0.3"), ("y", "z"), 1, 2.0, 3)


def test_a_hosts_file_comes_first() -> None:
    hosts = "# c\n127.0.0.1 localhost\n10.0.0.5\tdb.data.shop.svc.cluster.local\tdb # me\n"
    assert find_in_hosts(hosts, "DB.") == "10.0.0.5\tdb.data.shop.svc.cluster.local\tdb # me"
    assert find_in_hosts(hosts, "me") == ""


def service(name: str, namespace: str = "shop", **spec: Any) -> Service:
    return msgspec.convert(
        {"metadata": {"name": name, "namespace": namespace}, "spec": spec}, Service
    )


def slice_of(name: str, *endpoints: dict[str, Any]) -> EndpointSlice:
    metadata = {
        "name": f"{name}-1",
        "namespace": "shop",
        "labels": {"kubernetes.io/service-name": name},
    }
    return msgspec.convert({"metadata": metadata, "endpoints": list(endpoints)}, EndpointSlice)


def endpoint(address: str, *, ready: bool = True, hostname: str = "") -> dict[str, Any]:
    return {
        "addresses": [address],
        "conditions": {"ready": ready},
        "hostname": hostname or None,
    }


HEADLESS = {"clusterIP": "None", "clusterIPs": ["None"], "selector": {"a": "b"}}
PORTS = [{"name": "http", "port": 80, "protocol": "TCP"}]
WORLD = make_world(
    [
        service("web", clusterIP="10.96.0.80", clusterIPs=["10.96.0.80"], ports=PORTS),
        service("web", "other", clusterIP="10.96.0.81", clusterIPs=["10.96.0.81"]),
        service("db", **HEADLESS),
        service("sick", **HEADLESS),
        service("empty", **HEADLESS),
        service("ext", type="ExternalName", externalName="example.com"),
    ],
    [
        slice_of("db", endpoint("10.244.0.5", hostname="db-0"), endpoint("10.244.0.6")),
        slice_of("sick", endpoint("10.244.0.7", ready=False, hostname="sick-0")),
    ],
    [
        msgspec.convert({"metadata": {"name": name}}, Namespace)
        for name in ("shop", "other", "default")
    ],
)


@pytest.mark.parametrize(
    ("name", "rdtype", "why", "exists"),
    [
        ("web.shop.svc.cluster.local.", "A", "Service shop/web, cluster IP 10.96.0.80", True),
        ("WEB.Shop.svc.cluster.local.", "A", "Service shop/web, cluster IP 10.96.0.80", True),
        (
            "web.shop.svc.cluster.local.",
            "AAAA",
            "Service shop/web has no IPv6 address, only 10.96.0.80",
            True,
        ),
        (
            "web.default.svc.cluster.local.",
            "A",
            "namespace default has no Service web (namespace other, shop has)",
            False,
        ),
        ("nil.shop.svc.cluster.local.", "A", "namespace shop has no Service nil", False),
        ("web.svc.cluster.local.", "A", "there is no namespace web", False),
        ("shop.svc.cluster.local.", "A", "namespace shop: names have a Service before it", True),
        ("svc.cluster.local.", "A", "a name of the zone itself", True),
        ("ns.dns.cluster.local.", "A", "a name of the zone itself", True),
        ("_tcp.web.shop.svc.cluster.local.", "A",
         "above the names of ports of Service shop/web", True),
        ("_udp.web.shop.svc.cluster.local.", "A",
         "Service shop/web has no endpoint with the host name _udp", False),
        ("web.cluster.local.", "A",
         "'web' is neither `svc` nor `pod`: nothing in the zone has this name", False),
        ("db.shop.svc.cluster.local.", "A",
         "Service shop/db is headless: ready endpoints 10.244.0.5, 10.244.0.6", True),
        ("db.shop.svc.cluster.local.", "AAAA",
         "Service shop/db is headless; its endpoints have no IPv6 address", True),
        ("db-0.db.shop.svc.cluster.local.", "A", "endpoint db-0 of Service shop/db", True),
        ("db-9.db.shop.svc.cluster.local.", "A",
         "Service shop/db has no endpoint with the host name db-9", False),
        ("sick.shop.svc.cluster.local.", "A",
         "Service shop/sick is headless and none of its 1 endpoints is ready", False),
        ("sick-0.sick.shop.svc.cluster.local.", "A",
         "endpoint sick-0 of Service shop/sick is not ready", False),
        ("empty.shop.svc.cluster.local.", "A",
         "Service shop/empty is headless and has no endpoints", False),
        ("ext.shop.svc.cluster.local.", "A", "Service shop/ext is an alias of example.com", None),
        ("x.ext.shop.svc.cluster.local.", "A",
         "Service shop/ext is an ExternalName: nothing is below it", False),
        ("_http._tcp.web.shop.svc.cluster.local.", "SRV", "port http of Service shop/web", None),
        ("_http._udp.web.shop.svc.cluster.local.", "SRV",
         "Service shop/web has no port _http._udp; it has _http._tcp", False),
        ("80.0.96.10.in-addr.arpa.", "PTR",
         "10.96.0.80 is the cluster IP of Service shop/web", True),
        ("5.0.244.10.in-addr.arpa.", "PTR", "10.244.0.5 is an endpoint of Service shop/db", None),
        ("9.9.9.9.in-addr.arpa.", "PTR",
         "no Service has the address 9.9.9.9: the upstream was asked", None),
        ("example.com.", "A", "not a name of the cluster: the upstream was asked", None),
    ],
)  # fmt: skip
def test_reasons_come_from_the_objects(
    name: str, rdtype: str, why: str, exists: bool | None
) -> None:
    assert reason(name, rdtype, WORLD) == (why, exists)


def exchange(name: str, rcode: str, *records: str) -> DnsExchange:
    return DnsExchange(name, "A", "10.96.0.10", rcode, records)


def test_wasted_queries_are_counted() -> None:
    record = "example.com. 60 IN A 203.0.113.10"
    response = DnsResponse(
        CONF,
        exchanges=(
            exchange("example.com.shop.svc.cluster.local.", "NXDOMAIN"),
            exchange("example.com.svc.cluster.local.", "NXDOMAIN"),
            exchange("example.com.cluster.local.", "NXDOMAIN"),
            exchange("example.com.", "NOERROR", record),
        ),
    )
    found = explain_dns("shop/web-0", "example.com", response, WORLD)
    assert [step.wasted for step in found.steps] == [True, True, True, False]
    assert (found.wasted, found.resolved, found.ndots) == (3, [record], 5)
    assert found.summary.startswith("example.com: resolves after 3 wasted queries; a final dot")


def test_nothing_found_is_no_waste_and_says_how_many_names_were_tried() -> None:
    response = DnsResponse(CONF, exchanges=(exchange("nil.shop.svc.cluster.local.", "NXDOMAIN"),))
    found = explain_dns("shop/web-0", "nil", response, WORLD)
    assert (found.wasted, found.resolved) == (0, [])
    assert found.summary == "nil: does not resolve; 4 names were tried"


def test_a_server_that_contradicts_the_objects_is_told() -> None:
    response = DnsResponse(CONF, exchanges=(exchange("web.shop.svc.cluster.local.", "NXDOMAIN"),))
    (step,) = explain_dns("shop/web-0", "web", response, WORLD).steps
    assert step.contradicts


def test_a_silent_server_contradicts_nothing() -> None:
    silent = DnsExchange("web.shop.svc.cluster.local.", "A", error="10.96.0.10: no answer")
    found = explain_dns("p/p", "web", DnsResponse(CONF, exchanges=(silent,)), WORLD)
    assert not found.steps[0].contradicts
    assert found.summary == "web: no answer: 10.96.0.10: no answer"


def test_a_name_that_cannot_be_asked_for_is_no_silence() -> None:
    illegal = DnsExchange("long.shop.svc.cluster.local.", "A", error="> 255 octets", tries=0)
    response = DnsResponse(CONF, exchanges=(illegal, exchange("long.", "NXDOMAIN")))
    found = explain_dns("p/p", "long", response, WORLD)
    assert found.summary == "long: does not resolve; 4 names were tried"
    assert found.steps[0].error == "> 255 octets"


def test_no_data_is_shown_as_such() -> None:
    response = DnsResponse(CONF, exchanges=(exchange("svc.cluster.local.", "NOERROR"),))
    assert explain_dns("p/p", "svc.cluster.local.", response, DnsWorld()).steps[0].rcode == "NODATA"
