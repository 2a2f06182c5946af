"""[sig-network] Services: traffic policies, endpoints that end, health check node ports, and
[sig-network] Traffic Distribution, under upstream's names (k/k test/e2e/network/service.go,
traffic_distribution.go)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from outsideclient import run_in
from serviceslab import (
    ENDING,
    NODE_IPS,
    OUTSIDE_IP,
    PORTS,
    PROXIES,
    REFUSED,
    UDP_PORTS,
    Case,
    World,
    pod_body,
    service_world,
)

from podwire.client import PatchType
from podwire.objects import kinds

_MERGE = PatchType.MERGE


@pytest.fixture(scope="module", params=PROXIES)
def world(request: pytest.FixtureRequest, tools: Any) -> Iterator[World]:
    yield from service_world(request.param, "pol", tools)


@pytest.fixture
def t(world: World) -> Iterator[Case]:
    with world.test() as case:
        yield case


# --- internalTrafficPolicy ----------------------------------------------------------------------


@pytest.mark.parametrize("host_network", [False, True], ids=["Pod", "Pod (hostNetwork: true)"])
def test_internal_local(t: Case, host_network: bool) -> None:
    """should respect internalTrafficPolicy=Local Pod to Pod / Pod (hostNetwork: true) to Pod /
    Pod and Node, to Pod (hostNetwork: true)"""
    ports = [{"name": "http", "containerPort": 18080}] if host_network else None
    options: dict[str, Any] = {"hostNetwork": True, "ports": ports} if host_network else {}
    target = 18080 if host_network else 8080
    t.pods("web-1", nodes=["node-1"], **options)
    vip = t.service(
        internalTrafficPolicy="Local", ports=[{**PORTS[0], "targetPort": target}]
    ).spec.cluster_ip
    for source in ("client-1", "node-1"):
        t.reached(source, vip, 80, {"web-1"})
    for source in ("client-2", "node-2"):
        t.verdict(source, vip, 80, "dropped")
    t.pods("web-2", nodes=["node-2"], **options)
    t.reached("client-1", vip, 80, {"web-1"})
    t.reached("client-2", vip, 80, {"web-2"})
    t.change(internalTrafficPolicy="Cluster")
    t.reached("client-3", vip, 80, {"web-1", "web-2"})


# --- terminating endpoints ----------------------------------------------------------------------


def test_terminating_internal_cluster(t: Case) -> None:
    """should fallback to terminating endpoints when there are no ready endpoints with
    internalTrafficPolicy=Cluster"""
    t.pods("web-1", "web-2", **ENDING)
    vip = t.service().spec.cluster_ip
    t.begin_to_end("web-1")
    t.reached("client-3", vip, 80, {"web-2"})
    t.begin_to_end("web-2")
    t.reached("client-3", vip, 80, {"web-1", "web-2"})
    t.reached("node-1", vip, 80, {"web-1", "web-2"})


def test_terminating_internal_local(t: Case) -> None:
    """should fallback to local terminating endpoints when there are no ready endpoints with
    internalTrafficPolicy=Local"""
    t.pods("web-1", "web-2", **ENDING)
    vip = t.service(internalTrafficPolicy="Local").spec.cluster_ip
    t.reached("client-1", vip, 80, {"web-1"})
    t.begin_to_end("web-1")
    t.reached("client-1", vip, 80, {"web-1"})
    t.reached("client-2", vip, 80, {"web-2"})
    t.verdict("client-3", vip, 80, "dropped")


def test_terminating_external_cluster(t: Case) -> None:
    """should fallback to terminating endpoints when there are no ready endpoints with
    externallTrafficPolicy=Cluster"""
    t.pods("web-1", "web-2", **ENDING)
    number = t.service(type="NodePort").spec.ports[0].node_port
    t.begin_to_end("web-1")
    t.reached("outside", NODE_IPS["node-3"], number, {"web-2"})
    t.begin_to_end("web-2")
    for node in NODE_IPS.values():
        t.reached("outside", node, number, {"web-1", "web-2"})


def test_terminating_external_local(t: Case) -> None:
    """should fallback to local terminating endpoints when there are no ready endpoints with
    externalTrafficPolicy=Local"""
    t.pods("web-1", "web-2", **ENDING)
    service = t.service(type="NodePort", externalTrafficPolicy="Local")
    number = service.spec.ports[0].node_port
    t.begin_to_end("web-1")
    t.reached("outside", NODE_IPS["node-1"], number, {"web-1"})
    t.reached("outside", NODE_IPS["node-2"], number, {"web-2"})
    t.verdict("outside", NODE_IPS["node-3"], number, "dropped")
    # A client in the cluster is not subject to the policy: only ready endpoints.
    t.reached("client-1", NODE_IPS["node-1"], number, {"web-2"})


@pytest.mark.parametrize("publish", [True, False])
def test_terminating_and_unready(t: Case, publish: bool) -> None:
    """should be able to connect / should not be able to connect to terminating and unready
    endpoints if PublishNotReadyAddresses is true / false"""
    unready = {
        **ENDING,
        "annotations": {"standin.podwire.dev/http-status": "503"},
        "container": {
            **ENDING["container"],
            "readinessProbe": {"httpGet": {"path": "/readyz", "port": 8080}, "periodSeconds": 1},
        },
    }
    t.create(kinds.POD, pod_body("web-1", "node-2", **unready))
    service = t.service(type="NodePort", publishNotReadyAddresses=publish)
    t.tools.wait(lambda: t.pod("web-1").status.pod_ip)
    t.begin_to_end("web-1")
    vip, number = service.spec.cluster_ip, service.spec.ports[0].node_port
    for source, address, port in (
        ("client-1", vip, 80),
        ("client-2", vip, 80),
        ("outside", NODE_IPS["node-1"], number),
    ):
        if publish:
            t.verdict(source, address, port, "allowed")
        else:
            t.verdict(source, address, port, REFUSED)


# --- externalTrafficPolicy ----------------------------------------------------------------------


def test_external_local_node_port(t: Case) -> None:
    """should support externalTrafficPolicy=Local for type=NodePort"""
    t.pods("web-2", nodes=["node-2"])
    service = t.service(type="NodePort", externalTrafficPolicy="Local", ports=[*PORTS, *UDP_PORTS])
    http, udp = (port.node_port for port in service.spec.ports)
    t.reached("outside", NODE_IPS["node-2"], http, {"web-2"})
    assert t.seen_as("outside", NODE_IPS["node-2"], http) == OUTSIDE_IP
    assert t.seen_as("outside", NODE_IPS["node-2"], udp, protocol="udp") == OUTSIDE_IP
    t.verdict("outside", NODE_IPS["node-1"], http, "dropped")
    own = t.lab.pod("client-1", "clients").ip
    for source, node in (("client-1", "node-1"), ("client-1", "node-2"), ("client-3", "node-3")):
        t.reached(source, NODE_IPS[node], http, {"web-2"})
    assert t.seen_as("client-1", NODE_IPS["node-1"], http) == own
    t.reached("node-3", NODE_IPS["node-3"], http, {"web-2"})


def status_of(t: Case, node: str, port: int) -> tuple[int, dict[str, Any]]:
    """What a balancer gets from a health check node port, asked from beyond the cluster."""
    command = ("curl", "-s", "-m", "2", "-w", "\n%{http_code}", f"http://{NODE_IPS[node]}:{port}/")
    body, _, code = run_in(t.lab, "outside", *command).rpartition("\n")
    return int(code), json.loads(body)


def balanced(t: Case, **spec: Any) -> Any:
    return t.service(
        type="LoadBalancer",
        loadBalancerClass="example.com/nobody",
        externalTrafficPolicy="Local",
        **spec,
    )


def test_health_check_node_port(t: Case) -> None:
    """should implement NodePort and HealthCheckNodePort correctly when ExternalTrafficPolicy
    changes"""
    t.pods("web-2", nodes=["node-2"])
    service = balanced(t)
    number, check = service.spec.ports[0].node_port, service.spec.health_check_node_port
    t.tools.wait(lambda: status_of(t, "node-2", check)[0] == 200)
    t.tools.wait(lambda: status_of(t, "node-1", check)[0] == 503)
    assert status_of(t, "node-2", check)[1] == {
        "service": {"namespace": t.namespace, "name": "web"},
        "localEndpoints": 1,
        "serviceProxyHealthy": True,
    }
    t.reached("outside", NODE_IPS["node-2"], number, {"web-2"})
    t.verdict("outside", NODE_IPS["node-1"], number, "dropped")
    t.change(externalTrafficPolicy="Cluster", healthCheckNodePort=0)
    t.reached("outside", NODE_IPS["node-1"], number, {"web-2"})
    assert t.seen_as("outside", NODE_IPS["node-1"], number) != OUTSIDE_IP
    t.verdict("outside", NODE_IPS["node-2"], check, "refused", protocol="tcp")
    t.change(externalTrafficPolicy="Local")
    again = t.get(kinds.SERVICE, "web").spec.health_check_node_port
    t.tools.wait(lambda: status_of(t, "node-2", again)[0] == 200)
    t.verdict("outside", NODE_IPS["node-1"], number, "dropped")


def test_health_check_of_terminating_endpoints(t: Case) -> None:
    """should fail health check node port if there are only terminating endpoints"""
    t.pods("web-2", nodes=["node-2"], **ENDING)
    service = balanced(t)
    number, check = service.spec.ports[0].node_port, service.spec.health_check_node_port
    t.tools.wait(lambda: status_of(t, "node-2", check)[0] == 200)
    t.begin_to_end("web-2")
    t.tools.wait(lambda: status_of(t, "node-2", check)[0] == 503)
    assert status_of(t, "node-2", check)[1]["localEndpoints"] == 0
    t.reached("outside", NODE_IPS["node-2"], number, {"web-2"})


def test_the_proxys_health(t: Case) -> None:
    """KEP-3836: /healthz fails on a node about to be deleted, /livez does not."""

    def code(path: str) -> int:
        url = f"http://{NODE_IPS['node-3']}:10256{path}"
        command = ("curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", url)
        return int(run_in(t.lab, "outside", *command))

    def taint(taints: list[dict[str, str]] | None) -> None:
        body = {"spec": {"taints": taints}}
        t.lab.call(lambda api: api.patch(kinds.NODE, "node-3", body, patch_type=_MERGE))

    assert (code("/healthz"), code("/livez")) == (200, 200)
    taint([{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}])
    try:
        t.tools.wait(lambda: code("/healthz") == 503)
        assert code("/livez") == 200
    finally:
        taint(None)
    t.tools.wait(lambda: code("/healthz") == 200)


# --- traffic distribution -----------------------------------------------------------------------

# node-1 and node-2 are in zone-a, node-3 is in zone-b.


@pytest.mark.parametrize("mode", ["PreferClose", "PreferSameZone"])
def test_same_zone(t: Case, mode: str) -> None:
    """Traffic Distribution should route traffic to an endpoint in the same zone when using
    PreferClose / PreferSameZone"""
    t.pods("web-2", "web-3", nodes=["node-2", "node-3"])
    vip = t.service(trafficDistribution=mode).spec.cluster_ip
    t.reached("client-1", vip, 80, {"web-2"})
    t.reached("client-2", vip, 80, {"web-2"})
    t.reached("client-3", vip, 80, {"web-3"})


def test_same_node(t: Case) -> None:
    """Traffic Distribution should route traffic to an endpoint on the same node or fall back to
    same zone when using PreferSameNode"""
    t.pods("web-2", "web-3", nodes=["node-2", "node-3"])
    vip = t.service(trafficDistribution="PreferSameNode").spec.cluster_ip
    t.reached("client-2", vip, 80, {"web-2"})
    t.reached("client-3", vip, 80, {"web-3"})
    t.reached("client-1", vip, 80, {"web-2"})
    # ... and when the endpoint becomes unavailable, to the others.
    t.delete(kinds.POD, "web-3")
    t.reached("client-3", vip, 80, {"web-2"})


def test_topology_hints(t: Case) -> None:
    """Topology Hints should distribute endpoints evenly"""
    names = [f"web-{n}" for n in range(1, 7)]
    t.pods(*names)
    t.service(annotations={"service.kubernetes.io/topology-mode": "Auto"})

    def hinted() -> bool:
        endpoints = [e for piece in t.slices() for e in piece.endpoints]
        return len(endpoints) == 6 and all(e.hints and e.hints.for_zones for e in endpoints)

    t.tools.wait(hinted)
    vip = t.get(kinds.SERVICE, "web").spec.cluster_ip
    zones = {
        e.target_ref.name: e.hints.for_zones[0].name
        for piece in t.slices()
        for e in piece.endpoints
        if e.hints and e.target_ref
    }
    for zone, client in (("zone-a", "client-1"), ("zone-b", "client-3")):
        t.reached(client, vip, 80, {name for name, z in zones.items() if z == zone})
