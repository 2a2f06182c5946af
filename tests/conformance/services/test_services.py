"""[sig-network] Services under upstream's names (k/k test/e2e/network/service.go), real packets."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
from outsideclient import entering
from serviceslab import (
    NODE_IPS,
    NODES,
    PORTS,
    PROXIES,
    REFUSED,
    UDP_PORTS,
    Case,
    World,
    pod_body,
    service_world,
)

from podwire.errors import ApiError
from podwire.lab import Lab
from podwire.objects import kinds

THREE = ("web-1", "web-2", "web-3")


@pytest.fixture(scope="module", params=PROXIES)
def world(request: pytest.FixtureRequest, tools: Any) -> Iterator[World]:
    yield from service_world(request.param, "svc", tools)


@pytest.fixture
def t(world: World) -> Iterator[Case]:
    with world.test() as case:
        yield case


# --- endpoints and ports ------------------------------------------------------------------------


def test_master_service(t: Case) -> None:
    """should provide secure master service [Conformance]"""
    service = t.lab.call(lambda api: api.get(kinds.SERVICE, "kubernetes", "default"))
    assert [(p.name, p.port) for p in service.spec.ports] == [("https", 443)]
    for source in ("client-1", "client-3", "node-2"):
        t.verdict(source, service.spec.cluster_ip, 443, "allowed", protocol="tcp")


def test_basic_endpoint(t: Case) -> None:
    """should serve a basic endpoint from pods [Conformance]"""
    vip = t.service().spec.cluster_ip
    t.verdict("client-1", vip, 80, REFUSED)
    t.pods("web-1")
    t.reached("client-1", vip, 80, {"web-1"})
    t.pods("web-2", nodes=["node-2"])
    for source in ("client-1", "client-2", "client-3", "node-1", "outside"):
        if source != "outside":
            t.reached(source, vip, 80, {"web-1", "web-2"})
    t.delete(kinds.POD, "web-1")
    t.reached("client-1", vip, 80, {"web-2"})
    t.delete(kinds.POD, "web-2")
    t.verdict("client-1", vip, 80, REFUSED)


def test_multiport(t: Case) -> None:
    """should serve multiport endpoints from pods [Conformance]"""
    ports = [
        {"name": "p1", "port": 80, "targetPort": "first"},
        {"name": "p2", "port": 81, "targetPort": "second"},
    ]
    vip = t.service(ports=ports).spec.cluster_ip
    both = [{"name": "first", "containerPort": 100}, {"name": "second", "containerPort": 101}]
    t.pods("web-1", ports=both[:1])
    t.pods("web-2", nodes=["node-2"], ports=both[1:])
    t.reached("client-3", vip, 80, {"web-1"})
    t.reached("client-3", vip, 81, {"web-2"})
    t.delete(kinds.POD, "web-1")
    t.verdict("client-3", vip, 80, REFUSED)
    t.reached("client-3", vip, 81, {"web-2"})


def test_same_port_different_protocols(t: Case) -> None:
    """should serve endpoints on same port and different protocols [Conformance]"""
    ports = [
        {"name": "tcp", "port": 80, "targetPort": 8080},
        {"name": "udp", "port": 80, "targetPort": 8081, "protocol": "UDP"},
    ]
    vip = t.service(ports=ports).spec.cluster_ip
    t.pods("web-1")
    t.reached("client-2", vip, 80, {"web-1"})
    t.reached("client-2", vip, 80, {"web-1"}, protocol="udp")
    t.change(ports=ports[1:])
    t.port_closed("client-2", vip, 80)
    t.reached("client-2", vip, 80, {"web-1"}, protocol="udp")


def test_source_ip_kept(t: Case) -> None:
    """should preserve source pod IP for traffic thru service cluster IP"""
    vip = t.service().spec.cluster_ip
    t.pods("web-1")
    t.reached("client-2", vip, 80, {"web-1"})
    for source in ("client-1", "client-2"):
        own = t.lab.pod(source, "clients").ip
        assert t.seen_as(source, vip, 80) == own


def test_hairpin(t: Case) -> None:
    """should allow pods to hairpin back to themselves through services"""
    vip = t.service(ports=[*PORTS, *UDP_PORTS]).spec.cluster_ip
    t.pods("web-1")
    t.reached("web-1", vip, 80, {"web-1"})
    t.reached("web-1", vip, 90, {"web-1"}, protocol="udp")


def test_up_and_down(t: Case) -> None:
    """should be able to up and down services"""
    t.pods(*THREE)
    vips = {name: t.service(name).spec.cluster_ip for name in ("up-1", "up-2")}
    for vip in vips.values():
        t.reached("client-1", vip, 80, THREE)
    t.delete(kinds.SERVICE, "up-1")
    t.verdict("client-1", vips["up-1"], 80, "dropped")
    t.reached("client-1", vips["up-2"], 80, THREE)
    third = t.service("up-3").spec.cluster_ip
    assert third not in vips.values()
    t.reached("client-1", third, 80, THREE)
    t.reached("client-1", vips["up-2"], 80, THREE)


def test_recreated(t: Case) -> None:
    """should work after the service has been recreated"""
    t.pods("web-1")
    vip = t.service().spec.cluster_ip
    t.reached("client-1", vip, 80, {"web-1"})
    t.delete(kinds.SERVICE, "web")
    t.verdict("client-1", vip, 80, "dropped")
    assert t.service(clusterIP=vip).spec.cluster_ip == vip
    t.reached("client-1", vip, 80, {"web-1"})


def test_ports_added_and_deleted(t: Case) -> None:
    """should be updated after adding or deleting ports"""
    t.pods("web-1")
    vip = t.service().spec.cluster_ip
    t.reached("client-1", vip, 80, {"web-1"})
    more = {"name": "more", "port": 1234, "targetPort": 8080}
    t.change(ports=[*PORTS, more])
    for port in (80, 1234):
        t.reached("client-1", vip, port, {"web-1"})
    t.change(ports=[more])
    t.port_closed("client-1", vip, 80)
    t.reached("client-1", vip, 1234, {"web-1"})


def test_no_endpoints(t: Case) -> None:
    """should be rejected when no endpoints exist"""
    service = t.service(type="NodePort", ports=[*PORTS, *UDP_PORTS])
    vip, (http, udp) = service.spec.cluster_ip, service.spec.ports
    for source in ("client-1", "node-2"):
        t.verdict(source, vip, 80, REFUSED)
        t.verdict(source, vip, 90, REFUSED, protocol="udp", timeout_s=0.5)
    t.verdict("outside", NODE_IPS["node-1"], http.node_port, REFUSED)
    t.verdict("outside", NODE_IPS["node-3"], udp.node_port, REFUSED, protocol="udp")


def test_rejected_for_evicted_pods(t: Case) -> None:
    """should be rejected for evicted pods (no endpoints exist)"""
    vip = t.service().spec.cluster_ip
    t.pods("web-1")
    t.reached("client-2", vip, 80, {"web-1"})
    eviction = {
        "apiVersion": "policy/v1",
        "kind": "Eviction",
        "metadata": {"name": "web-1", "namespace": t.namespace},
    }
    path = f"/api/v1/namespaces/{t.namespace}/pods/web-1/eviction"
    body = json.dumps(eviction).encode()
    t.lab.call(lambda api: api.request("POST", path, body=body))
    t.verdict("client-2", vip, 80, REFUSED)


def test_find_across_namespaces_and_collection(t: Case) -> None:
    """should find a service from listing all namespaces [Conformance];
    should delete a collection of services [Conformance]"""
    t.service("one", labels={"group": "a"})
    t.service("two", labels={"group": "a"})
    t.service("three", labels={"group": "b"})
    everywhere, _ = t.lab.call(lambda api: api.list(kinds.SERVICE))
    assert {s.metadata.name for s in everywhere if s.metadata.namespace == t.namespace} == {
        "one",
        "two",
        "three",
    }
    path = kinds.SERVICE.path(t.namespace)
    t.lab.call(lambda api: api.request("DELETE", path, query={"labelSelector": "group=a"}))
    left, _ = t.lab.call(lambda api: api.list(kinds.SERVICE, t.namespace))
    assert [s.metadata.name for s in left] == ["three"]


def test_status_life_cycle(t: Case) -> None:
    """should complete a service status lifecycle [Conformance]"""
    t.service()
    condition = {
        "type": "Checked",
        "status": "True",
        "reason": "E2E",
        "message": "set by the test",
        "lastTransitionTime": "2024-01-01T00:00:00Z",
    }
    changed = t.patch(
        kinds.SERVICE, "web", {"status": {"conditions": [condition]}}, subresource="status"
    )
    assert [c.type for c in changed.status.conditions] == ["Checked"]
    t.patch(kinds.SERVICE, "web", {"metadata": {"labels": {"a": "b"}}})
    assert [c.type for c in t.get(kinds.SERVICE, "web").status.conditions] == ["Checked"]


# --- types and node ports -----------------------------------------------------------------------


def test_node_port(t: Case) -> None:
    """should be able to create a functioning NodePort service [Conformance]"""
    t.pods(*THREE[:2])
    service = t.service(type="NodePort", ports=[*PORTS, *UDP_PORTS])
    http, udp = (port.node_port for port in service.spec.ports)
    for address in NODE_IPS.values():
        for source in ("outside", "client-1", "node-2"):
            t.reached(source, address, http, THREE[:2])
            t.reached(source, address, udp, THREE[:2], protocol="udp")
    t.reached("client-1", service.spec.cluster_ip, 80, THREE[:2])


def test_from_external_name(t: Case) -> None:
    """should be able to change the type from ExternalName to ClusterIP [Conformance];
    ... from ExternalName to NodePort [Conformance]"""
    t.pods("web-1")
    for kind in ("ClusterIP", "NodePort"):
        name = kind.lower()
        t.service(name, type="ExternalName", externalName="example.com", selector=None, ports=None)
        spec = {"type": kind, "externalName": None, "selector": {"app": "web"}, "ports": PORTS}
        service = t.change(name, **spec)
        t.reached("client-2", service.spec.cluster_ip, 80, {"web-1"})
        if kind == "NodePort":
            t.reached("outside", NODE_IPS["node-2"], service.spec.ports[0].node_port, {"web-1"})


@pytest.mark.parametrize("kind", ["ClusterIP", "NodePort"])
def test_to_external_name(t: Case, kind: str) -> None:
    """should be able to change the type from ClusterIP to ExternalName [Conformance];
    ... from NodePort to ExternalName [Conformance]"""
    t.pods("web-1")
    service = t.service(type=kind)
    vip, node_port = service.spec.cluster_ip, service.spec.ports[0].node_port
    t.reached("client-1", vip, 80, {"web-1"})
    external = {"type": "ExternalName", "externalName": "example.com", "clusterIP": None}
    changed = t.change(**external, clusterIPs=None)
    assert changed.spec.cluster_ip == ""
    t.verdict("client-1", vip, 80, "dropped")
    if node_port:
        t.verdict("outside", NODE_IPS["node-1"], node_port, "refused")


def test_node_port_both_protocols(t: Case) -> None:
    """should be able to update service type to NodePort listening on same port number but
    different protocols"""
    t.pods("web-1")
    ports = [
        {"name": "tcp", "port": 80, "targetPort": 8080},
        {"name": "udp", "port": 80, "targetPort": 8081, "protocol": "UDP"},
    ]
    t.service(ports=ports[:1])
    number = 31080
    changed = t.change(type="NodePort", ports=[{**port, "nodePort": number} for port in ports])
    assert {p.node_port for p in changed.spec.ports} == {number}
    t.reached("outside", NODE_IPS["node-2"], number, {"web-1"})
    t.reached("outside", NODE_IPS["node-2"], number, {"web-1"}, protocol="udp")
    t.change(type="ClusterIP", ports=[{**port, "nodePort": None} for port in ports])
    t.verdict("outside", NODE_IPS["node-2"], number, "refused")


def test_node_port_collision_range_release(t: Case) -> None:
    """should prevent NodePort collisions; should check NodePort out-of-range;
    should release NodePorts on delete"""
    number = t.service("first", type="NodePort").spec.ports[0].node_port
    taken = [{**PORTS[0], "nodePort": number}]
    with pytest.raises(ApiError, match="provided port is already allocated"):
        t.service("second", type="NodePort", ports=taken)
    with pytest.raises(ApiError, match="The range of valid ports is 30000-32767"):
        t.service("third", type="NodePort", ports=[{**PORTS[0], "nodePort": 20000}])
    with pytest.raises(ApiError, match="The range of valid ports is 30000-32767"):
        t.change("first", ports=[{**PORTS[0], "nodePort": 40000}])
    t.delete(kinds.SERVICE, "first")
    assert t.service("fourth", type="NodePort", ports=taken).spec.ports[0].node_port == number


# --- session affinity ---------------------------------------------------------------------------


def kept(t: Case, source: str, address: str, port: int) -> bool:
    return len(t.peers(source, address, port, times=8)) == 1


@pytest.mark.parametrize("kind", ["ClusterIP", "NodePort"])
def test_session_affinity(t: Case, kind: str) -> None:
    """should have session affinity work for service with type clusterIP / for NodePort service
    [Conformance]; should be able to switch session affinity for both [Conformance]"""
    t.pods(*THREE)
    service = t.service(type=kind, sessionAffinity="ClientIP")
    source = "client-1" if kind == "ClusterIP" else "outside"
    address = service.spec.cluster_ip if kind == "ClusterIP" else NODE_IPS["node-2"]
    port = 80 if kind == "ClusterIP" else service.spec.ports[0].node_port
    t.tools.wait(lambda: kept(t, source, address, port))
    assert kept(t, source, address, port)
    t.change(sessionAffinity="None", sessionAffinityConfig=None)
    t.reached(source, address, port, THREE)
    t.change(sessionAffinity="ClientIP")
    t.tools.wait(lambda: kept(t, source, address, port))
    assert kept(t, source, address, port)
    # The endpoint of the client goes: it gets another, and keeps that.
    (mine,) = t.peers(source, address, port, times=2)
    t.delete(kinds.POD, mine)
    t.tools.wait(lambda: mine not in t.peers(source, address, port, times=2))
    assert kept(t, source, address, port)


@pytest.mark.parametrize("kind", ["ClusterIP", "NodePort"])
def test_session_affinity_timeout(t: Case, kind: str) -> None:
    """should have session affinity timeout work for service with type clusterIP;
    ... for NodePort service"""
    t.pods(*THREE)
    config = {"clientIP": {"timeoutSeconds": 1}}
    service = t.service(type=kind, sessionAffinity="ClientIP", sessionAffinityConfig=config)
    source = "client-1" if kind == "ClusterIP" else "outside"
    address = service.spec.cluster_ip if kind == "ClusterIP" else NODE_IPS["node-2"]
    port = 80 if kind == "ClusterIP" else service.spec.ports[0].node_port
    t.tools.wait(lambda: kept(t, source, address, port))
    # A client that asks all the time is never forgotten; one that was silent so long is.
    seen: set[str] = set()
    first = set(t.peers(source, address, port, times=1))
    asked = time.monotonic()

    def another() -> bool:
        nonlocal asked
        if time.monotonic() - asked > 1.1:
            seen.update(t.peers(source, address, port, times=1))
            asked = time.monotonic()
        # IPVS forgets a client after its connections only, two minutes after the last has closed.
        return seen == first if t.lab.spec.service_proxy == "ipvs" else len(seen) > 1

    t.tools.wait(another)


# --- who serves ---------------------------------------------------------------------------------


def test_unready_endpoints(t: Case) -> None:
    """should create endpoints for unready pods"""
    unready = {
        "annotations": {"standin.podwire.dev/http-status": "503"},
        "container": {"readinessProbe": {"httpGet": {"path": "/readyz", "port": 8080}}},
    }
    t.create(kinds.POD, pod_body("web-1", "node-2", **unready))
    tolerant = t.service("tolerant", publishNotReadyAddresses=True).spec.cluster_ip
    strict = t.service("strict").spec.cluster_ip
    t.reached("client-1", tolerant, 80, {"web-1"})
    t.verdict("client-1", strict, 80, REFUSED)


@pytest.mark.parametrize(
    "label",
    [
        {"service.kubernetes.io/service-proxy-name": "foo-bar"},
        {"service.kubernetes.io/headless": ""},
    ],
    ids=["service-proxy-name", "headless"],
)
def test_other_proxies_services(t: Case, label: dict[str, str]) -> None:
    """should implement service.kubernetes.io/service-proxy-name;
    should implement service.kubernetes.io/headless"""
    t.pods(*THREE)
    ours = t.service("ours").spec.cluster_ip
    theirs = t.service("theirs", labels=label).spec.cluster_ip
    t.reached("client-1", ours, 80, THREE)
    t.verdict("client-1", theirs, 80, "dropped")
    t.patch(kinds.SERVICE, "ours", {"metadata": {"labels": label}})
    t.verdict("client-1", ours, 80, "dropped")
    t.patch(kinds.SERVICE, "ours", {"metadata": {"labels": dict.fromkeys(label)}})
    t.reached("client-1", ours, 80, THREE)


def test_external_ip(t: Case) -> None:
    """should be possible to connect to a service via ExternalIP when the external IP is not
    assigned to a node (off unless asked for: CVE-2020-8554, KEP-5707)"""
    t.pods("web-1")
    t.service(externalIPs=["203.0.113.250"])

    def told() -> str:
        events, _ = t.lab.call(lambda api: api.list(kinds.EVENT, t.namespace))
        return "".join(e.message for e in events if e.reason == "ServiceProblem")

    assert "externalIPs are not served" in t.tools.wait(told)


@pytest.mark.parametrize("named", [False, True], ids=["ports", "named ports"])
def test_restartable_init_containers(t: Case, named: bool) -> None:
    """should be able to connect to the (named) ports exposed by restartable init containers"""
    sidecar = {
        "name": "sidecar",
        "image": "example.com/side:1",
        "restartPolicy": "Always",
        "ports": [{"name": "side", "containerPort": 9090}],
    }
    t.pods("web-1", initContainers=[sidecar])
    target = "side" if named else 9090
    ports = [{"name": "http", "port": 80, "targetPort": target}]
    vip = t.service(ports=ports).spec.cluster_ip
    t.reached("client-2", vip, 80, {"web-1"})


_OUTSIDE_SERVER = """
import http.server, sys
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
    def log_message(self, *_): pass
server = http.server.HTTPServer(("", int(sys.argv[1])), Answer)
print("ready", flush=True)
server.serve_forever()
"""


@contextlib.contextmanager
def serving_outside(lab: Lab, port: int) -> Iterator[None]:
    """An HTTP server on the host beyond the cluster."""
    command = [*entering(lab, "outside"), sys.executable, "-c", _OUTSIDE_SERVER, str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline()
            yield
        finally:
            process.kill()


def test_selectorless_outside_first_then_inside(t: Case) -> None:
    """A database outside of the cluster first, inside it later: clients are told nothing."""
    ports = [{"name": "db", "port": 5432, "targetPort": 8080}]
    vip = t.service("db", selector=None, ports=ports).spec.cluster_ip
    endpoints = {
        "metadata": {"name": "db"},
        "subsets": [
            {"addresses": [{"ip": "203.0.113.10"}], "ports": [{"name": "db", "port": 8080}]}
        ],
    }
    t.create(kinds.ENDPOINTS, endpoints)
    with serving_outside(t.lab, 8080):
        for source in ("client-1", "node-3"):
            t.verdict(source, vip, 5432, "allowed")
    t.pods("db-0", labels={"app": "db"})
    t.change("db", selector={"app": "db"})
    t.reached("client-1", vip, 5432, {"db-0"})
    t.reached("node-3", vip, 5432, {"db-0"})


# --- restarts -----------------------------------------------------------------------------------


def test_after_restarting_the_proxy(t: Case) -> None:
    """should work after restarting kube-proxy [Disruptive]"""
    t.pods(*THREE)
    first = t.service("first").spec.cluster_ip
    t.reached("client-1", first, 80, THREE)
    before = t.tools.pids(t.lab)
    os.kill(before["agent-node-1"], signal.SIGKILL)
    # node-1 has no agent to ask from; what it forwards for others goes on all the same.
    number = t.service("second", type="NodePort").spec.ports[0].node_port
    t.reached("client-2", first, 80, THREE)
    t.tools.wait(lambda: t.tools.pids(t.lab)["agent-node-1"] not in (0, before["agent-node-1"]))
    t.reached("client-1", first, 80, THREE)
    t.reached("client-2", NODE_IPS["node-1"], number, THREE)


def test_after_restarting_the_api_server(t: Case) -> None:
    """should work after restarting apiserver [Disruptive]"""
    t.pods(*THREE)
    first = t.service("first").spec.cluster_ip
    t.reached("client-1", first, 80, THREE)
    os.kill(t.tools.pids(t.lab)["apiserver"], signal.SIGKILL)
    t.tools.wait(lambda: t.service("second"))
    second = t.get(kinds.SERVICE, "second").spec.cluster_ip
    for source in ("client-1", "client-3"):
        t.reached(source, first, 80, THREE)
        t.reached(source, second, 80, THREE)


def test_nodes_are_all_there(t: Case) -> None:
    assert [node.name for node in t.lab.spec.nodes] == list(NODES)
