"""CoreDNS's own cases for its kubernetes plugin, as rows in zone-file syntax, under their names.

Worlds and rows are those of plugin/kubernetes handler_test.go, handler_case_test.go,
handler_pod_*_test.go, handler_ignore_emptyservice_test.go, kubernetes_apex_test.go, ns_test.go and
reverse_test.go. Where this server says more than CoreDNS pins, the row's name says so.
"""

from __future__ import annotations

from typing import NamedTuple

import dns.flags
import dns.rcode
import pytest
from dns_worlds import (
    World,
    cluster_ip,
    endpoint,
    expected,
    external,
    headless,
    pod,
    rows,
    slice_of,
)

from podwire.dns.index import PodMode, ZoneOptions
from podwire.dns.views import Port

SOA = (
    "cluster.local. 5 IN SOA ns.dns.cluster.local. hostmaster.cluster.local. "
    "SERIAL 7200 1800 86400 5"
)
OK, NX = "NOERROR", "NXDOMAIN"


class Row(NamedTuple):
    question: str
    rcode: str = OK
    answer: str = ""
    authority: str = ""
    additional: str = ""


def nodata(question: str, soa: str = SOA) -> Row:
    return Row(question, OK, authority=soa)


def nxdomain(question: str, soa: str = SOA) -> Row:
    return Row(question, NX, authority=soa)


def check(world: World, row: Row) -> None:
    name, rtype = row.question.split()
    message = world.ask(name, rtype)
    assert dns.rcode.to_text(message.rcode()) == row.rcode
    assert rows(message.answer) == expected(row.answer)
    assert rows(message.authority) == expected(row.authority)
    assert rows(message.additional) == expected(row.additional)
    assert message.flags & dns.flags.AA
    assert message.question[0].name.to_text().rstrip(".") == name.rstrip(".")


UDP_DNS = Port(name="dns", protocol="UDP", port=53)


def serve_world(options: ZoneOptions | None = None) -> World:
    return World(
        namespaces=("testns", "kube-system", "podns", "svcns"),
        services=(
            cluster_ip("kube-system", "kubedns", "10.0.0.10", ports=(UDP_DNS,)),
            cluster_ip("testns", "svc1", "10.0.0.1"),
            cluster_ip("testns", "svcempty", "10.0.0.1"),
            cluster_ip("testns", "svc6", "1234:abcd::1"),
            cluster_ip("testns", "svc-dual-stack", "10.0.0.3", "10::3"),
            cluster_ip("unexposedns", "svc1", "10.0.0.2"),
            headless("testns", "hdls1"),
            headless("testns", "hdlsprtls"),
            external("testns", "external", "ext.interwebs.test"),
            external("testns", "external-to-service", "svc1.testns.svc.cluster.local."),
        ),
        slices=(
            slice_of("kube-system", "kubedns", endpoint("172.0.0.100"), ports=(UDP_DNS,)),
            slice_of("testns", "svc1", endpoint("172.0.0.1", host="ep1a")),
            slice_of("testns", "svcempty"),
            slice_of(
                "testns",
                "hdls1",
                endpoint("172.0.0.2"),
                endpoint("172.0.0.3"),
                endpoint("172.0.0.4", host="dup-name"),
                endpoint("172.0.0.5", host="dup-name"),
                endpoint("172.0.0.6", ready=False),
            ),
            slice_of(
                "testns",
                "hdls1",
                endpoint("5678:abcd::1"),
                endpoint("5678:abcd::2"),
                suffix="v6",
                family="IPv6",
            ),
            slice_of("testns", "hdlsprtls", endpoint("172.0.0.20"), ports=()),
        ),
        pods=(pod("podns", "foo", "10.240.0.1"),),
        options=options or ZoneOptions(),
    )


HDLS = "hdls1.testns.svc.cluster.local."
HDLS_SRV = "\n".join(
    f"_http._tcp.{HDLS} 5 IN SRV 0 16 80 {host}.{HDLS}"
    for host in ("172-0-0-2", "172-0-0-3", "5678-abcd--1", "5678-abcd--2", "dup-name")
)
HDLS_GLUE = """
172-0-0-2.hdls1.testns.svc.cluster.local.    5 IN A 172.0.0.2
172-0-0-3.hdls1.testns.svc.cluster.local.    5 IN A 172.0.0.3
5678-abcd--1.hdls1.testns.svc.cluster.local. 5 IN AAAA 5678:abcd::1
5678-abcd--2.hdls1.testns.svc.cluster.local. 5 IN AAAA 5678:abcd::2
dup-name.hdls1.testns.svc.cluster.local.     5 IN A 172.0.0.4
dup-name.hdls1.testns.svc.cluster.local.     5 IN A 172.0.0.5
"""
HDLS_A = "\n".join(f"hdls1.testns.svc.cluster.local. 5 IN A 172.0.0.{n}" for n in (2, 3, 4, 5))


def _service_srv(name: str, owner: str, weight: int, *addresses: str) -> Row:
    zone = "testns.svc.cluster.local."
    return Row(
        f"{owner}.{zone} SRV",
        answer=f"{owner}.{zone} 5 IN SRV 0 {weight} 80 {name}.{zone}",
        additional="\n".join(
            f"{name}.{zone} 5 IN {'AAAA' if ':' in ip else 'A'} {ip}" for ip in addresses
        ),
    )


SERVE_DNS = {
    "A Service": Row(
        "svc1.testns.svc.cluster.local. A",
        answer="svc1.testns.svc.cluster.local. 5 IN A 10.0.0.1",
    ),
    "A Service without endpoints": Row(
        "svcempty.testns.svc.cluster.local. A",
        answer="svcempty.testns.svc.cluster.local. 5 IN A 10.0.0.1",
    ),
    "SRV of the bare name": _service_srv("svc1", "svc1", 100, "10.0.0.1"),
    "SRV of the bare name, empty": _service_srv("svcempty", "svcempty", 100, "10.0.0.1"),
    "SRV of the bare name, IPv6": _service_srv("svc6", "svc6", 100, "1234:abcd::1"),
    "SRV Service": _service_srv("svc1", "_http._tcp.svc1", 100, "10.0.0.1"),
    "SRV Service, empty": _service_srv("svcempty", "_http._tcp.svcempty", 100, "10.0.0.1"),
    "SRV Service, IPv6": _service_srv("svc6", "_http._tcp.svc6", 100, "1234:abcd::1"),
    "A Service (Headless)": Row("hdls1.testns.svc.cluster.local. A", answer=HDLS_A),
    "A Service (Headless and Portless)": Row(
        "hdlsprtls.testns.svc.cluster.local. A",
        answer="hdlsprtls.testns.svc.cluster.local. 5 IN A 172.0.0.20",
    ),
    "An Endpoint with no port": Row(
        "172-0-0-20.hdlsprtls.testns.svc.cluster.local. A",
        answer="172-0-0-20.hdlsprtls.testns.svc.cluster.local. 5 IN A 172.0.0.20",
    ),
    "An Endpoint ip": Row(
        "172-0-0-2.hdls1.testns.svc.cluster.local. A",
        answer="172-0-0-2.hdls1.testns.svc.cluster.local. 5 IN A 172.0.0.2",
    ),
    "An Endpoint by name": Row(
        "dup-name.hdls1.testns.svc.cluster.local. A",
        answer="""
        dup-name.hdls1.testns.svc.cluster.local. 5 IN A 172.0.0.4
        dup-name.hdls1.testns.svc.cluster.local. 5 IN A 172.0.0.5
        """,
    ),
    "SRV Service (Headless)": Row(
        "_http._tcp.hdls1.testns.svc.cluster.local. SRV", answer=HDLS_SRV, additional=HDLS_GLUE
    ),
    "AAAA": Row(
        "5678-abcd--2.hdls1.testns.svc.cluster.local AAAA",
        answer="5678-abcd--2.hdls1.testns.svc.cluster.local. 5 IN AAAA 5678:abcd::2",
    ),
    "CNAME External": Row(
        "external.testns.svc.cluster.local. CNAME",
        answer="external.testns.svc.cluster.local. 5 IN CNAME ext.interwebs.test.",
    ),
    "CNAME External To Internal Service": Row(
        "external-to-service.testns.svc.cluster.local A",
        answer="""
        external-to-service.testns.svc.cluster.local. 5 IN CNAME svc1.testns.svc.cluster.local.
        svc1.testns.svc.cluster.local. 5 IN A 10.0.0.1
        """,
    ),
    "AAAA Service (with an existing A record)": nodata("svc1.testns.svc.cluster.local. AAAA"),
    "AAAA Service (non-existing service)": nxdomain("svc0.testns.svc.cluster.local. AAAA"),
    "A Service (non-existing service)": nxdomain("svc0.testns.svc.cluster.local. A"),
    "A Service (non-existing namespace)": nxdomain("svc0.svc-nons.svc.cluster.local. A"),
    "A Service in a namespace not exposed": nxdomain("svc1.unexposedns.svc.cluster.local. A"),
    "TXT Schema": Row(
        "dns-version.cluster.local. TXT",
        answer='dns-version.cluster.local. 28800 IN TXT "1.1.0"',
    ),
    "A of TXT Schema, more than pinned": nodata("dns-version.cluster.local. A"),
    "TXT of a Service": nodata("svc1.testns.svc.cluster.local. TXT"),
    "TXT of no Service": nxdomain("svc0.svc-nons.svc.cluster.local. TXT"),
    "A Service (Headless) does not exist": nxdomain(
        "bogusendpoint.hdls1.testns.svc.cluster.local. A"
    ),
    "A Service does not exist": nxdomain("bogusendpoint.svc0.testns.svc.cluster.local. A"),
    "an unready endpoint": nxdomain("172-0-0-6.hdls1.testns.svc.cluster.local. A"),
    "SRV of a port that is not": nxdomain("_https._tcp.svc1.testns.svc.cluster.local. SRV"),
    "SRV of another protocol": nxdomain("_http._udp.svc1.testns.svc.cluster.local. SRV"),
    "SRV without underscores, more than pinned": nxdomain(
        "http.tcp.svc1.testns.svc.cluster.local. SRV"
    ),
    "A of a port's name, more than pinned": nodata("_http._tcp.svc1.testns.svc.cluster.local. A"),
    "SRV of a portless Service": nodata("hdlsprtls.testns.svc.cluster.local. SRV"),
    "AAAA Service": Row(
        "svc6.testns.svc.cluster.local. AAAA",
        answer="svc6.testns.svc.cluster.local. 5 IN AAAA 1234:abcd::1",
    ),
    "AAAA Service (Headless)": Row(
        "hdls1.testns.svc.cluster.local. AAAA",
        answer="""
        hdls1.testns.svc.cluster.local. 5 IN AAAA 5678:abcd::1
        hdls1.testns.svc.cluster.local. 5 IN AAAA 5678:abcd::2
        """,
    ),
    "AAAA Endpoint": Row(
        "5678-abcd--1.hdls1.testns.svc.cluster.local. AAAA",
        answer="5678-abcd--1.hdls1.testns.svc.cluster.local. 5 IN AAAA 5678:abcd::1",
    ),
    "an endpoint of a Service with a cluster IP": Row(
        "ep1a.svc1.testns.svc.cluster.local. A",
        answer="ep1a.svc1.testns.svc.cluster.local. 5 IN A 172.0.0.1",
    ),
    "svc": nodata("svc.cluster.local. A"),
    "pod": nodata("pod.cluster.local. A"),
    "namespace": nodata("testns.svc.cluster.local. A"),
    "above the names of ports, more than pinned": nodata("_tcp.svc1.testns.svc.cluster.local. A"),
    "above those of a headless Service": nodata("_tcp.hdls1.testns.svc.cluster.local. A"),
    "above no port": nxdomain("_udp.svc1.testns.svc.cluster.local. A"),
    "above the server's name, more than pinned": nodata("dns.cluster.local. A"),
    "NS query for svc": nodata("svc.cluster.local. NS"),
    "NS query for a namespace": nodata("testns.svc.cluster.local. NS"),
    "NS query for no name of the zone": nxdomain("foo.cluster.local. NS"),
    "NS query for no namespace": nxdomain("foo.svc.cluster.local. NS"),
    "Dual Stack A": Row(
        "svc-dual-stack.testns.svc.cluster.local. A",
        answer="svc-dual-stack.testns.svc.cluster.local. 5 IN A 10.0.0.3",
    ),
    "Dual Stack AAAA": Row(
        "svc-dual-stack.testns.svc.cluster.local. AAAA",
        answer="svc-dual-stack.testns.svc.cluster.local. 5 IN AAAA 10::3",
    ),
    "Dual Stack SRV": _service_srv("svc-dual-stack", "svc-dual-stack", 50, "10.0.0.3", "10::3"),
    "SOA of a Service": nodata("svc1.testns.svc.cluster.local. SOA"),
    "below an external Service": nxdomain("endpoint.external.testns.svc.cluster.local. CNAME"),
    "SRV below an external Service": nxdomain("_http._tcp.external.testns.svc.cluster.local. SRV"),
    "too deep": nxdomain("a._http._tcp.svc1.testns.svc.cluster.local. SRV"),
    "ANY of an alias, more than pinned": Row(
        "external-to-service.testns.svc.cluster.local. ANY",
        answer="external-to-service.testns.svc.cluster.local. 5 IN CNAME "
        "svc1.testns.svc.cluster.local.",
    ),
    "ANY of an alias that leads outside": Row(
        "external.testns.svc.cluster.local. ANY",
        answer="external.testns.svc.cluster.local. 5 IN CNAME ext.interwebs.test.",
    ),
    "ANY of a Service": nodata("svc1.testns.svc.cluster.local. ANY"),
}


@pytest.mark.parametrize("name", SERVE_DNS)
def test_serve_dns(name: str) -> None:
    check(serve_world(), SERVE_DNS[name])


NAMESPACE_DNS = {
    "exposed and there": SERVE_DNS["A Service"],
    "not there": nxdomain("svc1.nsnoexist.svc.cluster.local. A"),
}


@pytest.mark.parametrize("name", NAMESPACE_DNS)
def test_serve_namespace_dns(name: str) -> None:
    check(serve_world(), NAMESPACE_DNS[name])


def test_namespaces_exposes_only_those_listed() -> None:
    world = serve_world(ZoneOptions(namespaces=frozenset({"podns"})))
    check(world, nxdomain("svc1.testns.svc.cluster.local. A"))
    check(world, nxdomain("testns.svc.cluster.local. A"))
    check(world, nodata("podns.svc.cluster.local. A"))
    check(world, Row("1.0.0.10.in-addr.arpa. PTR", NX, authority=reverse_soa("in-addr.arpa.")))


def reverse_soa(zone: str) -> str:
    return f"{zone} 5 IN SOA ns.dns.{zone} hostmaster.{zone} SERIAL 7200 1800 86400 5"


def test_not_synced_serve_dns() -> None:
    world = serve_world()
    world.answers.synced = False
    check(world, Row("svc0.testns.svc.cluster.local. A", "SERVFAIL", authority=SOA))
    check(world, Row("svc1.testns.svc.cluster.local. A", "SERVFAIL", authority=SOA))


_CASED_SOA = SOA.replace("cluster.local.", "ClUsTeR.lOcAl.")
_CASED_SRV = "_HtTp._TcP.sVc1.TeStNs.SvC.cLuStEr.LoCaL."
PRESERVE_CASE = {
    "Negative response": nxdomain("not-a-service.testns.svc.ClUsTeR.lOcAl. A", _CASED_SOA),
    "A Service": Row(
        "SvC1.TeStNs.SvC.cLuStEr.LoCaL. A",
        answer="SvC1.TeStNs.SvC.cLuStEr.LoCaL. 5 IN A 10.0.0.1",
    ),
    "SRV Service": Row(
        f"{_CASED_SRV} SRV",
        answer=f"{_CASED_SRV} 5 IN SRV 0 100 80 svc1.testns.svc.cLuStEr.LoCaL.",
        # An owner is compressed into a pointer to the question, and takes all of its spelling.
        additional="sVc1.TeStNs.SvC.cLuStEr.LoCaL. 5 IN A 10.0.0.1",
    ),
    "SOA": Row("Cluster.local. SOA", answer=SOA.replace("cluster.local.", "Cluster.local.")),
}


@pytest.mark.parametrize("name", PRESERVE_CASE)
def test_preserve_case(name: str) -> None:
    check(serve_world(), PRESERVE_CASE[name])


EMPTY_SERVICE = {
    "A Service": nxdomain("svcempty.testns.svc.cluster.local. A"),
    "CNAME to external": SERVE_DNS["CNAME External"],
    "one with endpoints": SERVE_DNS["A Service"],
}


@pytest.mark.parametrize("name", EMPTY_SERVICE)
def test_serve_dns_empty_service(name: str) -> None:
    check(serve_world(ZoneOptions(ignore_empty_service=True)), EMPTY_SERVICE[name])


MODE_DISABLED = {
    "a pod": nxdomain("10-240-0-1.podns.pod.cluster.local. A"),
    "an endpoint": nxdomain("172-0-0-2.podns.pod.cluster.local. A"),
    "a namespace": nxdomain("podns.pod.cluster.local. A"),
}
MODE_INSECURE = {
    "a pod": Row(
        "10-240-0-1.podns.pod.cluster.local. A",
        answer="10-240-0-1.podns.pod.cluster.local. 5 IN A 10.240.0.1",
    ),
    "no pod": Row(
        "172-0-0-2.podns.pod.cluster.local. A",
        answer="172-0-0-2.podns.pod.cluster.local. 5 IN A 172.0.0.2",
    ),
    "IPv6": Row(
        "fd00--1.podns.pod.cluster.local. AAAA",
        answer="fd00--1.podns.pod.cluster.local. 5 IN AAAA fd00::1",
    ),
    "the other family": nodata("10-240-0-1.podns.pod.cluster.local. AAAA"),
    "no address": nxdomain("blah.podns.pod.cluster.local. A"),
    "no address, AAAA": nxdomain("blah.podns.pod.cluster.local. AAAA"),
    "no address, HINFO": nxdomain("blah.podns.pod.cluster.local. HINFO"),
    "no namespace": nxdomain("blah.pod-nons.pod.cluster.local. A"),
    "an address in no namespace": nxdomain("10-240-0-1.pod-nons.pod.cluster.local. A"),
    "a namespace": nodata("podns.pod.cluster.local. A"),
}
MODE_VERIFIED = {
    "a pod": MODE_INSECURE["a pod"],
    "a namespace": nodata("podns.pod.cluster.local. A"),
    "a namespace of Services": nodata("svcns.svc.cluster.local. A"),
    "no namespace": nxdomain("pod-nons.pod.cluster.local. A"),
    "no pod": nxdomain("172-0-0-2.podns.pod.cluster.local. A"),
    "in another namespace": nxdomain("10-240-0-1.testns.pod.cluster.local. A"),
}


@pytest.mark.parametrize("name", MODE_DISABLED)
def test_serve_dns_mode_disabled(name: str) -> None:
    check(serve_world(), MODE_DISABLED[name])


@pytest.mark.parametrize("name", MODE_INSECURE)
def test_serve_dns_mode_insecure(name: str) -> None:
    check(serve_world(ZoneOptions(pods=PodMode.INSECURE)), MODE_INSECURE[name])


@pytest.mark.parametrize("name", MODE_VERIFIED)
def test_serve_dns_mode_verified(name: str) -> None:
    check(serve_world(ZoneOptions(pods=PodMode.VERIFIED)), MODE_VERIFIED[name])


def test_a_pods_address_has_one_spelling_where_it_is_verified() -> None:
    """As CoreDNS compares it, as text; another would outlive the pod, which is told of as one."""
    this = pod("podns", "six", "fd00::1")
    world = World(namespaces=("podns",), pods=(this,), options=ZoneOptions(pods=PodMode.VERIFIED))
    name, other = "fd00--1.podns.pod.cluster.local.", "fd00-0-0-0-0-0-0-1.podns.pod.cluster.local."
    check(world, Row(f"{name} AAAA", answer=f"{name} 5 IN AAAA fd00::1"))
    check(world, nxdomain(f"{other} AAAA"))
    world.answers.evict(world.index.set_pod(this.key, this, None))
    for each in (name, other):
        check(world, nxdomain(f"{each} AAAA"))


APEX = {
    "SOA": Row("cluster.local. SOA", answer=SOA),
    "HINFO": nodata("cluster.local. HINFO"),
    "NS": Row(
        "cluster.local. NS",
        answer="cluster.local. 5 IN NS ns.dns.cluster.local.",
        additional="ns.dns.cluster.local. 5 IN A 127.0.0.1",
    ),
    "A": nodata("cluster.local. A"),
    "AAAA": nodata("cluster.local. AAAA"),
    "SRV": nodata("cluster.local. SRV"),
    "the server": Row("ns.dns.cluster.local. A", answer="ns.dns.cluster.local. 5 IN A 127.0.0.1"),
}


@pytest.mark.parametrize("name", APEX)
def test_serve_dns_apex(name: str) -> None:
    check(serve_world(), APEX[name])


def test_ns_addrs() -> None:
    own = endpoint("10.244.0.20")
    world = World(
        namespaces=("kube-system",),
        services=(
            cluster_ip("kube-system", "dns-service", "10.0.0.111"),
            headless("kube-system", "hdls-dns-service"),
            cluster_ip("kube-system", "dns6-service", "10::111"),
        ),
        slices=[
            slice_of("kube-system", name, own)
            for name in ("dns-service", "hdls-dns-service", "dns6-service")
        ],
        options=ZoneOptions(local_addresses=("10.244.0.20",)),
    )
    names = {
        "dns-service": "A 10.0.0.111",
        "10-244-0-20.hdls-dns-service": "A 10.244.0.20",
        "dns6-service": "AAAA 10::111",
    }
    zone = "kube-system.svc.cluster.local."
    check(
        world,
        Row(
            "cluster.local. NS",
            answer="\n".join(f"cluster.local. 5 IN NS {name}.{zone}" for name in names),
            additional="\n".join(f"{n}.{zone} 5 IN {data}" for n, data in names.items()),
        ),
    )


_IP6_ZONE = "0." * 16 + "d.c.b.a.4.3.2.1.ip6.arpa."
_IP6_NAME = "1." + "0." * 23 + "d.c.b.a.4.3.2.1.ip6.arpa."


def reverse_world() -> World:
    double = endpoint("10.0.0.99", host="double-ep")
    return World(
        namespaces=("testns",),
        services=(
            cluster_ip("testns", "svc1", "192.168.1.100"),
            cluster_ip("testns", "svc2", "192.168.1.101"),
        ),
        slices=(
            slice_of("testns", "svc1", endpoint("10.0.0.100", host="ep1a"), double),
            slice_of(
                "testns",
                "svc1",
                endpoint("1234:abcd::1", host="ep1b"),
                suffix="slice2",
                family="IPv6",
            ),
            slice_of("testns", "svc1", endpoint("10.0.0.100", host="ep1a"), suffix="ccccc"),
            slice_of("testns", "svc2", double),
        ),
        options=ZoneOptions(
            zones=("cluster.local", "0.10.in-addr.arpa", "168.192.in-addr.arpa", _IP6_ZONE)
        ),
    )


_REVERSE_SOA = reverse_soa("0.10.in-addr.arpa.")
REVERSE = {
    "an endpoint, twice in skewed slices": Row(
        "100.0.0.10.in-addr.arpa. PTR",
        answer="100.0.0.10.in-addr.arpa. 5 IN PTR ep1a.svc1.testns.svc.cluster.local.",
    ),
    "a Service": Row(
        "100.1.168.192.in-addr.arpa. PTR",
        answer="100.1.168.192.in-addr.arpa. 5 IN PTR svc1.testns.svc.cluster.local.",
    ),
    "an IPv6 endpoint": Row(
        f"{_IP6_NAME} PTR",
        answer=f"{_IP6_NAME} 5 IN PTR ep1b.svc1.testns.svc.cluster.local.",
    ),
    "no such address": nxdomain("101.0.0.10.in-addr.arpa. PTR", _REVERSE_SOA),
    "no name of the zone": nxdomain("example.org.cluster.local. PTR"),
    "PTR of a Service's name": nodata("svc1.testns.svc.cluster.local. PTR"),
    "a Service's name in the reverse zone": nxdomain(
        "svc1.testns.svc.0.10.in-addr.arpa. A", _REVERSE_SOA
    ),
    "a reverse name in the zone": nxdomain("100.0.0.10.cluster.local. PTR"),
    "two Services select the pod": Row(
        "99.0.0.10.in-addr.arpa. PTR",
        answer="""
        99.0.0.10.in-addr.arpa. 5 IN PTR double-ep.svc1.testns.svc.cluster.local.
        99.0.0.10.in-addr.arpa. 5 IN PTR double-ep.svc2.testns.svc.cluster.local.
        """,
    ),
    "another type of a reverse name, more than pinned": nodata(
        "100.0.0.10.in-addr.arpa. A", _REVERSE_SOA
    ),
    "apex of a reverse zone": Row("0.10.in-addr.arpa. SOA", answer=_REVERSE_SOA),
}


@pytest.mark.parametrize("name", REVERSE)
def test_reverse(name: str) -> None:
    check(reverse_world(), REVERSE[name])


def test_kubernetes_axfr_is_refused() -> None:
    for rtype in ("AXFR", "IXFR"):
        message = serve_world().ask("cluster.local.", rtype)
        assert message.rcode() == dns.rcode.REFUSED


def test_kubernetes_endpoint_pod_names() -> None:
    world = World(
        namespaces=("testns",),
        services=(headless("testns", "web"),),
        slices=(
            slice_of(
                "testns",
                "web",
                endpoint("10.0.0.1", pod="web-0"),
                endpoint("10.0.0.2", pod="web-1", host="named"),
                endpoint("10.0.0.3", pod="x" * 64),
                endpoint("10.0.0.4"),
            ),
        ),
        options=ZoneOptions(endpoint_pod_names=True),
    )
    zone = "web.testns.svc.cluster.local."
    for host, ip in {"web-0": 1, "named": 2, "10-0-0-3": 3, "10-0-0-4": 4}.items():
        check(world, Row(f"{host}.{zone} A", answer=f"{host}.{zone} 5 IN A 10.0.0.{ip}"))
    for host in ("10-0-0-1", "web-1", "x" * 63):
        check(world, nxdomain(f"{host}.{zone} A"))


def test_noendpoints() -> None:
    world = serve_world(ZoneOptions(endpoints=False))
    check(world, SERVE_DNS["A Service"])
    check(world, nxdomain("hdls1.testns.svc.cluster.local. A"))
    check(world, nxdomain("172-0-0-2.hdls1.testns.svc.cluster.local. A"))


def test_ttl() -> None:
    world = serve_world(ZoneOptions(ttl_s=3600))
    (answer,) = world.ask("svc1.testns.svc.cluster.local.").answer
    (soa,) = world.ask("svc0.testns.svc.cluster.local.").authority
    assert (answer.ttl, soa.ttl, soa[0].minimum) == (3600, 300, 3600)


def test_an_ipv6_endpoint_that_ends_in_colons_has_a_name() -> None:
    world = World(
        namespaces=("testns",),
        services=(headless("testns", "web"),),
        slices=(slice_of("testns", "web", endpoint("fd00::"), family="IPv6"),),
    )
    name = "fd00--0.web.testns.svc.cluster.local."
    check(world, Row(f"{name} AAAA", answer=f"{name} 5 IN AAAA fd00::"))
    check(
        world,
        Row(
            "0." * 28 + "0.0.d.f.ip6.arpa. PTR",
            answer="0." * 28 + f"0.0.d.f.ip6.arpa. 5 IN PTR {name}",
        ),
    )
