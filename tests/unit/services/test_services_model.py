"""What compiling makes of slices nobody should write, and what health checks count."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

import msgspec
import pytest
from service_worlds import compiled, domain_of, make_service, make_slice

from podwire.kernel.flows import DST_NAT, Flow, Tuple
from podwire.objects.core import Pod
from podwire.services.endpoints import Backend
from podwire.services.flows import stale_flows
from podwire.services.hostports import compile_host_ports
from podwire.services.model import WEIGHTS_ANNOTATION, Frontend, NodeView

HERE, ALSO_HERE = {"ip": "10.244.1.2", "node": "node-1"}, {"ip": "10.244.1.3", "node": "node-1"}


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"a":' * 50_000,
        "[]",
        "7",
        '{"10.244.1.2": 0}',
        '{"10.244.1.2": 1001}',
        '{"10.244.1.2": "2"}',
        '{"10.244.1.2": true}',
        '{"x": 2}',
        '{"10.244.1.2": 1e400}',
        "\ud800",
    ],
)
def test_weights_that_are_none_are_told_and_cost_nothing(text: str) -> None:
    """The annotation is written by whoever may write slices: it must not end the agent."""
    piece = make_slice(HERE)
    piece.metadata.annotations[WEIGHTS_ANNOTATION] = text
    found = compiled(make_service(), piece)
    assert [str(b) for b in found.frontends[0].backends] == ["10.244.1.2:8080"]
    assert found.frontends[0].weights is None
    assert [WEIGHTS_ANNOTATION in problem for problem in found.problems] == [True]


def test_health_checks_count_addresses_whatever_their_ports() -> None:
    """A targetPort by name is another one in each pod: two slices, two endpoints here."""
    ports = [{"name": "a", "port": 80}, {"name": "b", "port": 81}]
    service = make_service(
        type="LoadBalancer", externalTrafficPolicy="Local", healthCheckNodePort=30099, ports=ports
    )
    one = make_slice(HERE, ports=[{"name": "a", "port": 8080}, {"name": "b", "port": 8081}])
    two = make_slice(ALSO_HERE, name="web-2", ports=[{"name": "a", "port": 9090}])
    far = make_slice({"ip": "10.244.2.2", "node": "node-2"}, name="web-3")
    ending = {**ALSO_HERE, "ip": "10.244.1.4", "ready": False, "serving": True, "terminating": True}
    check = compiled(service, one, two, far, make_slice(ending, name="web-4")).health_check
    assert check is not None
    assert check.local_ready == 2
    only_b = make_slice(ALSO_HERE, name="web-2", ports=[{"name": "b", "port": 9090}])
    only_a = make_slice(HERE, ports=[{"name": "a", "port": 8080}])
    check = compiled(service, only_a, only_b).health_check
    assert check is not None
    assert check.local_ready == 2


class Watched:
    """A frontend that counts how often its endpoints are walked."""

    internal, lasting = None, ()

    def __init__(self, frontend: Frontend) -> None:
        self._backends = frontend.backends
        self.walks = 0

    @property
    def backends(self) -> tuple[Backend, ...]:
        self.walks += 1
        return self._backends


def test_endpoints_are_walked_once_however_many_flows_they_have() -> None:
    port = {"name": "dns", "port": 53, "protocol": "UDP"}
    piece = make_slice(HERE, ALSO_HERE, ports=[{**port, "port": 5353}])
    (frontend,) = compiled(make_service(ports=[port]), piece).frontends
    watched: Any = Watched(frontend)
    vip, client = ip_address("10.96.0.1").packed, ip_address("10.244.9.9").packed
    flows = [
        Flow(Tuple(client, vip, n, 53, 17), Tuple(b.ip, client, b.port, n, 17), DST_NAT)
        for n in range(1000)
        for b in frontend.backends
    ]
    lookup = {frontend.key: watched}.get
    assert list(stale_flows(flows, lookup, domain_of(frozenset()))) == []
    assert watched.walks == 1


@pytest.mark.parametrize(
    ("host_ip", "versions"),
    [("", {4, 6}), ("0.0.0.0", {4}), ("::", {6}), ("172.30.0.2", {4}), ("fd00:30::2", {6})],
)
def test_a_host_port_for_every_address_is_of_its_own_family(
    host_ip: str, versions: set[int]
) -> None:
    pod = msgspec.convert(
        {
            "metadata": {"name": "web", "namespace": "ns1"},
            "spec": {
                "containers": [
                    {
                        "name": "c",
                        "ports": [{"containerPort": 8080, "hostPort": 8088, "hostIP": host_ip}],
                    }
                ]
            },
            "status": {"podIPs": [{"ip": "10.244.1.2"}, {"ip": "fd00:244:0:1::2"}]},
        },
        Pod,
    )
    node = NodeView("node-1", "", (ip_address("172.30.0.2"), ip_address("fd00:30::2")))
    found = compile_host_ports(pod, node)
    assert {4 if len(f.key.ip) == 4 else 6 for f in found} == versions
