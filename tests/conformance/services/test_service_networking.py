"""[sig-network] Networking Granular Checks, Endpoints, EndpointSlice, Dual stack, HostPort and
Service CIDRs, under upstream's names (k/k test/e2e/network/), real packets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from serviceslab import (
    NODE_IPS,
    NODES,
    PORTS,
    PROXIES,
    UDP_PORTS,
    Case,
    World,
    pod_body,
    service_world,
)

from podwire.client import Api, PatchType
from podwire.errors import NotFoundError
from podwire.kernel import features
from podwire.objects import kinds

BOTH = [*PORTS, *UDP_PORTS]
NAMES = ("web-1", "web-2", "web-3")
UDP_ONLY = [{"name": "udp", "port": 80, "targetPort": 8081, "protocol": "UDP"}]


@pytest.fixture(scope="module", params=PROXIES)
def world(request: pytest.FixtureRequest, tools: Any) -> Iterator[World]:
    yield from service_world(request.param, "net", tools)


@pytest.fixture
def t(world: World) -> Iterator[Case]:
    with world.test() as case:
        yield case


# --- Granular Checks ----------------------------------------------------------------------------

PROTOCOLS = [("http", "http", 80), ("udp", "udp", 90)]


@pytest.mark.parametrize(("name", "protocol", "port"), PROTOCOLS, ids=["http", "udp"])
@pytest.mark.parametrize("source", ["client-1", "node-1", "web-1"])
def test_function(t: Case, source: str, name: str, protocol: str, port: int) -> None:
    """should function for pod-Service / node-Service / endpoint-Service: http, udp"""
    t.pods(*NAMES)
    service = t.service(type="NodePort", ports=BOTH)
    node_port = {p.name: p.node_port for p in service.spec.ports}[name]
    t.reached(source, service.spec.cluster_ip, port, NAMES, protocol=protocol)
    for address in NODE_IPS.values():
        t.reached(source, address, node_port, NAMES, protocol=protocol)


def test_multiple_services_one_selector(t: Case) -> None:
    """should function for multiple endpoint-Services with same selector"""
    t.pods(*NAMES)
    for name in ("first", "second"):
        vip = t.service(name, ports=BOTH).spec.cluster_ip
        t.reached("web-2", vip, 80, NAMES)
        t.reached("web-2", vip, 90, NAMES, protocol="udp")
    t.delete(kinds.SERVICE, "first")
    t.reached("web-2", vip, 80, NAMES)


@pytest.mark.parametrize(("name", "protocol", "port"), PROTOCOLS, ids=["http", "udp"])
def test_update_endpoints(t: Case, name: str, protocol: str, port: int) -> None:
    """should update endpoints: http, udp"""
    t.pods(*NAMES)
    vip = t.service(ports=BOTH).spec.cluster_ip
    t.reached("client-1", vip, port, NAMES, protocol=protocol)
    t.delete(kinds.POD, NAMES[0])
    t.reached("client-1", vip, port, NAMES[1:], protocol=protocol)


@pytest.mark.parametrize(("name", "protocol", "port"), PROTOCOLS, ids=["http", "udp"])
def test_update_node_port(t: Case, name: str, protocol: str, port: int) -> None:
    """should update nodePort: http, udp [Slow]"""
    t.pods("web-1")
    service = t.service(type="NodePort", ports=BOTH)
    node_port = {p.name: p.node_port for p in service.spec.ports}[name]
    t.reached("outside", NODE_IPS["node-2"], node_port, {"web-1"}, protocol=protocol)
    t.change(type="ClusterIP")
    t.verdict("outside", NODE_IPS["node-2"], node_port, "refused", protocol=protocol)


def test_large_requests(t: Case) -> None:
    """should support basic nodePort: udp functionality; should function for large requests:
    http, udp"""
    t.pods("web-1", nodes=["node-2"])
    vip = t.service(ports=BOTH).spec.cluster_ip
    t.verdict("client-1", vip, 80, "allowed", path="/echo?msg=" + "a" * 4000)
    t.verdict("client-1", vip, 90, "allowed", protocol="udp", payload="echo " + "a" * 4000)


def test_host_network_endpoints(t: Case) -> None:
    """should function for service endpoints using hostNetwork"""
    ports = [{"name": "http", "containerPort": 18080}]
    t.pods(*NAMES, hostNetwork=True, ports=ports)
    vip = t.service(ports=[{"name": "http", "port": 80, "targetPort": 18080}]).spec.cluster_ip
    for source in ("client-1", "node-2"):
        t.reached(source, vip, 80, NAMES)


@pytest.mark.parametrize("kind", ["intra-pod", "node-pod"])
def test_intra_and_node_pod(t: Case, kind: str) -> None:
    """should function for intra-pod communication: http, udp [Conformance];
    should function for node-pod communication: http, udp [Conformance]"""
    t.pods(*NAMES)
    for name in NAMES:
        for source in ("client-1", "web-1") if kind == "intra-pod" else NODES:
            t.reached(source, t.pod(name).status.pod_ip, 8080, {name})
            t.reached(source, t.pod(name).status.pod_ip, 8081, {name}, protocol="udp")


# --- Endpoints ----------------------------------------------------------------------------------


def test_endpoints_life_cycle(t: Case) -> None:
    """Endpoints should test the lifecycle of an Endpoint [Conformance]"""
    label, selector = {"test-endpoint-static": "true"}, "test-endpoint-static=true"
    port = {"name": "http", "port": 80, "protocol": "TCP"}
    subset = {"addresses": [{"ip": "10.0.0.24"}], "ports": [port]}
    body = {"metadata": {"name": "testservice", "labels": label}, "subsets": [subset]}

    async def watched(api: Api, version: str) -> list[str]:
        """The kinds of events so far, up to the deletion."""
        seen: list[str] = []
        follow = api.watch_lines(
            kinds.ENDPOINTS, version, namespace=t.namespace, label_selector=selector
        )
        async for lines in follow:
            seen += [json.loads(line)["type"] for line in lines if line]
            if "DELETED" in seen:
                break
        return [what for what in seen if what != "BOOKMARK"]

    async def play(api: Api) -> None:
        _, version = await api.list(kinds.ENDPOINTS, label_selector=selector)
        made = await api.create(kinds.ENDPOINTS, body, t.namespace)
        everywhere, _ = await api.list(kinds.ENDPOINTS, label_selector=selector)
        assert [(e.metadata.namespace, e.metadata.name) for e in everywhere] == [
            (t.namespace, "testservice")
        ]
        raw = await api.get_raw(kinds.ENDPOINTS, "testservice", t.namespace)
        raw["metadata"]["labels"]["test-service"] = "updated"
        await api.replace(kinds.ENDPOINTS, raw)
        got = await api.get(kinds.ENDPOINTS, "testservice", t.namespace)
        assert got.metadata.labels["test-service"] == "updated"
        patch = {
            "metadata": {"labels": {"test-service": "patched"}},
            "subsets": [
                {
                    "addresses": [{"ip": "10.0.0.25"}],
                    "ports": [{"name": "http-test", "port": 8080}],
                }
            ],
        }
        patched = await api.patch(
            kinds.ENDPOINTS, "testservice", patch, t.namespace, patch_type=PatchType.STRATEGIC
        )
        assert int(patched.metadata.resource_version) > int(made.metadata.resource_version)
        got = await api.get(kinds.ENDPOINTS, "testservice", t.namespace)
        assert got.metadata.labels == label | {"test-service": "patched"}
        (subset,) = got.subsets
        assert [a.ip for a in subset.addresses] == ["10.0.0.25"]
        assert [(p.name, p.port) for p in subset.ports] == [("http-test", 8080)]
        path = kinds.ENDPOINTS.path(t.namespace)
        await api.request("DELETE", path, query={"labelSelector": selector})
        with pytest.raises(NotFoundError):
            await api.get(kinds.ENDPOINTS, "testservice", t.namespace)
        async with asyncio.timeout(10):
            assert await watched(api, version) == ["ADDED", "MODIFIED", "MODIFIED", "DELETED"]

    t.lab.call(play)


# --- EndpointSlices -----------------------------------------------------------------------------


def custom_slice(t: Case, name: str, address_type: str = "IPv4", **parts: Any) -> None:
    metadata = {"name": name, "labels": {"kubernetes.io/service-name": "web"}}
    t.create(kinds.ENDPOINT_SLICE, {"metadata": metadata, "addressType": address_type, **parts})


def test_slices_of_a_service(t: Case) -> None:
    """EndpointSlice should create Endpoints and EndpointSlices for Pods matching a Service;
    should create and delete ... for a Service with a selector specified [Conformance]"""
    t.service(ports=BOTH)
    t.pods(*NAMES)
    ips = {t.pod(name).status.pod_ip for name in NAMES}

    def listed() -> set[str]:
        return {e.addresses[0] for piece in t.slices() for e in piece.endpoints if e.ready}

    t.tools.wait(lambda: listed() == ips)

    def legacy() -> set[str]:
        found = t.get(kinds.ENDPOINTS, "web")
        return {a.ip for subset in found.subsets for a in subset.addresses}

    t.tools.wait(lambda: legacy() == ips)
    t.delete(kinds.SERVICE, "web")
    t.tools.wait(lambda: not t.slices())


def test_multiple_endpoint_ips(t: Case) -> None:
    """EndpointSlice should support a Service with multiple endpoint IPs specified in multiple
    EndpointSlices; ... with multiple ports specified in multiple EndpointSlices"""
    vip = t.service(selector=None, ports=[*PORTS, {"name": "two", "port": 81}]).spec.cluster_ip
    t.pods(*NAMES[:2])
    for number, name in enumerate(NAMES[:2]):
        ports = [{"name": "http", "port": 8080, "protocol": "TCP"}]
        if number:
            ports.append({"name": "two", "port": 8080, "protocol": "TCP"})
        endpoints = [{"addresses": [t.pod(name).status.pod_ip]}]
        custom_slice(t, f"custom-{number}", endpoints=endpoints, ports=ports)
    t.reached("client-1", vip, 80, NAMES[:2])
    t.reached("client-1", vip, 81, NAMES[1:2])


def test_mirroring(t: Case) -> None:
    """EndpointSliceMirroring should mirror a custom Endpoints resource through create update and
    delete [Conformance]; should mirror ... with multiple subsets and same IP address"""
    vip = t.service(selector=None).spec.cluster_ip
    t.pods(*NAMES[:2])

    def subset(name: str, port: int = 8080, port_name: str = "http") -> dict[str, Any]:
        ports = [{"name": port_name, "port": port}]
        return {"addresses": [{"ip": t.pod(name).status.pod_ip}], "ports": ports}

    body = {"metadata": {"name": "web"}, "subsets": [subset("web-1"), subset("web-1", 1, "other")]}
    t.create(kinds.ENDPOINTS, body)
    t.reached("client-1", vip, 80, {"web-1"})
    t.patch(kinds.ENDPOINTS, "web", {"subsets": [subset("web-2")]})
    t.reached("client-1", vip, 80, {"web-2"})
    t.delete(kinds.ENDPOINTS, "web")
    t.verdict("client-1", vip, 80, ("refused", "rejected"))


def test_bad_slices_do_not_matter(t: Case) -> None:
    """Loopback and foreign addresses are refused by the API or left out; duplicates count once."""
    vip = t.service(selector=None).spec.cluster_ip
    t.pods("web-1")
    ports = [{"name": "http", "port": 8080, "protocol": "TCP"}]
    good = [{"addresses": [t.pod("web-1").status.pod_ip]}]
    custom_slice(t, "one", endpoints=good, ports=ports)
    custom_slice(t, "two", endpoints=good, ports=ports)
    custom_slice(t, "six", "IPv6", endpoints=[{"addresses": ["fd00:244::77"]}], ports=ports)
    custom_slice(t, "fqdn", "FQDN", endpoints=[{"addresses": ["db.example.com"]}], ports=ports)
    t.reached("client-1", vip, 80, {"web-1"})
    assert t.peers("client-1", vip, 80, times=20) == {"web-1"}


# --- Dual stack, HostPort, Service CIDRs ----------------------------------------------------------


@pytest.mark.parametrize(
    ("families", "policy"),
    [
        (["IPv4"], "SingleStack"),
        (["IPv6"], "SingleStack"),
        (["IPv4", "IPv6"], "RequireDualStack"),
        (["IPv6", "IPv4"], "PreferDualStack"),
    ],
    ids=["ipv4", "ipv6", "ipv4,v6", "ipv6,v4"],
)
def test_cluster_ips_by_family(t: Case, families: list[str], policy: str) -> None:
    """Dual stack should create service with ipv4 / ipv6 / ipv4,v6 / ipv6,v4 cluster ip; ... a
    single stack service with cluster ip from primary service range; pods reach it on both"""
    service = t.service(ipFamilies=families, ipFamilyPolicy=policy, ports=BOTH)
    vips = service.spec.cluster_ips
    assert [("IPv6" if ":" in vip else "IPv4") for vip in vips] == families
    t.pods(*NAMES[:2])
    for source in ("client-1", "client-3", "node-2"):
        for vip in vips:
            t.reached(source, vip, 80, NAMES[:2])
            t.reached(source, vip, 90, NAMES[:2], protocol="udp")


@pytest.mark.parametrize(("name", "protocol", "port"), PROTOCOLS, ids=["http", "udp"])
def test_secondary_family(t: Case, name: str, protocol: str, port: int) -> None:
    """[Feature:IPv6DualStack] Granular Checks: Services Secondary IP Family: pod-Service,
    node-Service, endpoint-Service, nodePort, client IP based session affinity"""
    spec = {"ipFamilyPolicy": "RequireDualStack", "type": "NodePort", "ports": BOTH}
    service = t.service(**spec)
    t.pods(*NAMES)
    node_port = {p.name: p.node_port for p in service.spec.ports}[name]
    vip6 = service.spec.cluster_ips[1]
    for source in ("client-1", "node-1", "web-1"):
        t.reached(source, vip6, port, NAMES, protocol=protocol)
    t.reached("outside", "fd00:30::3", node_port, NAMES, protocol=protocol)
    sticky = t.service("sticky", sessionAffinity="ClientIP", **spec).spec.cluster_ips[1]
    t.tools.wait(lambda: len(t.peers("client-2", sticky, port, protocol=protocol)) == 1)


def test_host_port(t: Case) -> None:
    """HostPort validates that there is no conflict between pods with same hostPort but different
    hostIP and protocol [Conformance]"""
    number = 24323

    def host_pod(name: str, ip: str, protocol: str) -> None:
        port = {"containerPort": 8080, "hostPort": number, "hostIP": ip, "protocol": protocol}
        t.pods(name, nodes=["node-2"], ports=[port], labels={"app": name})

    host_pod("tcp4", NODE_IPS["node-2"], "TCP")
    host_pod("udp4", NODE_IPS["node-2"], "UDP")
    host_pod("tcp6", "fd00:30::3", "TCP")
    for source in ("client-1", "node-1", "outside"):
        t.reached(source, NODE_IPS["node-2"], number, {"tcp4"})
        t.reached(source, NODE_IPS["node-2"], number, {"udp4"}, protocol="udp")
        t.reached(source, "fd00:30::3", number, {"tcp6"})


def test_service_cidrs(t: Case) -> None:
    """Service CIDRs should create Services and serve on different Service CIDRs"""
    name = f"extra-{t.namespace}"
    t.pods(*NAMES[:2])
    t.world.create(
        kinds.SERVICE_CIDR, {"metadata": {"name": name}, "spec": {"cidrs": ["10.99.0.0/24"]}}, ""
    )

    def made() -> Any:
        return t.service("extra", clusterIP="10.99.0.50")

    service = t.tools.wait(made)
    assert service.spec.cluster_ip == "10.99.0.50"
    for source in ("client-1", "client-3", "node-2"):
        t.reached(source, "10.99.0.50", 80, NAMES[:2])
    # The new range is one: addresses nobody has are dropped there, and off-cluster clients are
    # masqueraded, so that answers come back the same way.
    t.verdict("client-1", "10.99.0.51", 80, ("dropped", "refused", "rejected"))
    t.delete(kinds.SERVICE, "extra")
    t.lab.call(lambda api: api.delete(kinds.SERVICE_CIDR, name))


def test_sctp_service(t: Case) -> None:
    """should allow creating a basic SCTP service with pod and endpoints"""
    ports = [{"name": "sctp", "port": 5060, "targetPort": 5060, "protocol": "SCTP"}]
    service = t.service(type="NodePort", ports=ports)
    assert service.spec.ports[0].protocol == "SCTP"
    container = [{"name": "sctp", "containerPort": 5060, "protocol": "SCTP"}]
    t.create(kinds.POD, pod_body("web-1", "node-1", ports=container))
    t.tools.wait(lambda: any(piece.endpoints for piece in t.slices()))
    assert {p.protocol for piece in t.slices() for p in piece.ports} == {"SCTP"}
    if "sctp" in json.dumps(features.probe().missing()).lower():
        pytest.skip("no SCTP sockets in this kernel; packets: tests/kernel/services")
