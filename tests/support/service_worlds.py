"""Small Services, slices and whole random worlds of them, for every test of this room."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Any

import msgspec
from hypothesis import strategies as st

from podwire.objects.core import Service
from podwire.objects.discovery import EndpointSlice
from podwire.services.evaluate import Domain, Packet, address_ranges
from podwire.services.model import CompiledService, NodeView, compile_service

# The address plan of the lab: node-1 is "here", node-2 and node-3 are elsewhere.
NODE = NodeView(
    "node-1",
    "zone-a",
    (ip_address("172.30.0.2"), ip_address("fd00:30::2")),
    external_ips=True,
)
SERVICE_CIDRS = (ip_network("10.96.0.0/16"), ip_network("fd00:96::/112"))
CLUSTER_CIDRS = (ip_network("10.244.0.0/16"), ip_network("fd00:244::/56"))


def make_service(name: str = "web", namespace: str = "ns1", **spec: Any) -> Service:
    """A ClusterIP Service 10.96.0.1:80 -> http unless `spec` says otherwise (camelCase)."""
    annotations = spec.pop("annotations", {})
    labels = spec.pop("labels", {})
    ingress = spec.pop("ingress", [])
    spec.setdefault("clusterIP", "10.96.0.1")
    spec.setdefault("clusterIPs", [spec["clusterIP"]])
    spec.setdefault("ports", [{"name": "http", "port": 80, "targetPort": 8080}])
    return msgspec.convert(
        {
            "metadata": {
                "name": name,
                "namespace": namespace,
                "annotations": annotations,
                "labels": labels,
            },
            "spec": spec,
            "status": {"loadBalancer": {"ingress": ingress}},
        },
        Service,
    )


def make_slice(
    *endpoints: dict[str, Any],
    name: str = "web-1",
    namespace: str = "ns1",
    ports: Iterable[dict[str, Any]] = ({"name": "http", "port": 8080},),
    weights: dict[str, int] | None = None,
) -> EndpointSlice:
    """Endpoints as `{"ip": "10.244.1.2", "node": "node-1", "ready": False, ...}`."""
    whole = []
    for entry in endpoints:
        hints = {
            key: [{"name": n} for n in entry[word]]
            for key, word in (("forZones", "zones"), ("forNodes", "nodes"))
            if word in entry
        }
        whole.append(
            {
                "addresses": [entry["ip"]],
                "nodeName": entry.get("node"),
                "conditions": {
                    key: entry[key] for key in ("ready", "serving", "terminating") if key in entry
                },
            }
            | ({"hints": hints} if hints else {})
        )
    version = 6 if endpoints and ":" in endpoints[0]["ip"] else 4
    annotations = {"networking.podwire.dev/weights": json.dumps(weights)} if weights else {}
    return msgspec.convert(
        {
            "metadata": {"name": name, "namespace": namespace, "annotations": annotations},
            "addressType": f"IPv{version}",
            "endpoints": whole,
            "ports": [{"protocol": "TCP", **port} for port in ports],
        },
        EndpointSlice,
    )


def compiled(service: Service, *slices: EndpointSlice, node: NodeView = NODE) -> CompiledService:
    return compile_service(service, slices, node)


def domain_of(vips: frozenset[bytes]) -> Domain:
    own = frozenset(address.packed for address in NODE.addresses)
    return Domain(address_ranges(SERVICE_CIDRS), address_ranges(CLUSTER_CIDRS), vips, own)


# --- random worlds ------------------------------------------------------------------------------


@dataclass(frozen=True)
class World:
    """Services with their slices, and packets that have to do with them."""

    services: tuple[tuple[Service, tuple[EndpointSlice, ...]], ...]
    packets: tuple[Packet, ...]


_NODES = ("node-1", "node-2", "node-3")
_FLAGS = st.sampled_from([None, True, False])
_PORTS = ({"name": "http", "port": 8080}, {"name": "dns", "port": 5353, "protocol": "UDP"})


@st.composite
def _endpoint(draw: Any, version: int) -> dict[str, Any]:
    number = draw(st.integers(2, 9))
    node = draw(st.sampled_from(_NODES))
    index = _NODES.index(node) + 1
    ip = f"10.244.{index}.{number}" if version == 4 else f"fd00:244:0:{index}::{number}"
    flags = {key: draw(_FLAGS) for key in ("ready", "serving", "terminating")}
    entry: dict[str, Any] = {"ip": ip, "node": node}
    entry |= {key: value for key, value in flags.items() if value is not None}
    if draw(st.booleans()):
        entry["zones"] = [draw(st.sampled_from(["zone-a", "zone-b"]))]
    if draw(st.booleans()):
        entry["nodes"] = [draw(st.sampled_from(_NODES))]
    return entry


@st.composite
def _service(draw: Any, number: int, version: int) -> tuple[Service, tuple[EndpointSlice, ...]]:
    kind = draw(st.sampled_from(["ClusterIP", "NodePort", "LoadBalancer"]))
    ip = f"10.96.0.{number}" if version == 4 else f"fd00:96::{number:x}"
    ports = [{"name": "http", "port": 80}, {"name": "dns", "port": 53, "protocol": "UDP"}]
    spec: dict[str, Any] = {"type": kind, "clusterIP": ip}
    spec["internalTrafficPolicy"] = draw(st.sampled_from(["Cluster", "Local"]))
    if draw(st.integers(0, 2)) == 0:
        spec["sessionAffinity"] = "ClientIP"
        timeout = {"timeoutSeconds": draw(st.sampled_from([60, 10800]))}
        spec["sessionAffinityConfig"] = {"clientIP": timeout}
    if kind != "ClusterIP":
        spec["externalTrafficPolicy"] = draw(st.sampled_from(["Cluster", "Local"]))
        for index, port in enumerate(ports):
            port["nodePort"] = 30000 + number * 2 + index
    if kind == "LoadBalancer":
        # Two Services may claim one address and port: the lower rank has it.
        share = draw(st.sampled_from([number, 200]))
        address = f"172.30.0.{share}" if version == 4 else f"fd00:30::{share:x}"
        spec["ingress"] = [{"ip": address, "ipMode": draw(st.sampled_from(["VIP", "Proxy"]))}]
        ranges = ["203.0.113.0/25", "203.0.113.0/24", "10.244.0.0/16", "fd00:244::/56"]
        spec["loadBalancerSourceRanges"] = draw(st.lists(st.sampled_from(ranges), max_size=2))
    spec["ports"] = ports
    balancing = draw(st.sampled_from(["random", "random", "maglev", "maglev-source"]))
    spec["annotations"] = {"networking.podwire.dev/balancing": balancing}
    pieces = []
    for piece in range(draw(st.integers(0, 2))):
        endpoints = draw(st.lists(_endpoint(version), max_size=5))
        weights = {e["ip"]: draw(st.integers(1, 4)) for e in endpoints if draw(st.booleans())}
        pieces.append(make_slice(*endpoints, name=f"piece-{piece}", ports=_PORTS, weights=weights))
    return make_service(f"svc-{number}", **spec), tuple(pieces)


@st.composite
def worlds(draw: Any) -> World:
    services = []
    for number in range(1, draw(st.integers(1, 5)) + 1):
        services.append(draw(_service(number, draw(st.sampled_from([4, 6])))))
    packets = draw(st.lists(_packet(), min_size=1, max_size=8))
    return World(tuple(services), tuple(packets))


_DESTINATIONS = {
    4: [f"10.96.0.{n}" for n in range(1, 7)]
    + ["172.30.0.2", "172.30.0.3", "203.0.113.10"]
    + [f"172.30.0.{n}" for n in (1, 2, 3, 4, 5, 200)],
    6: [f"fd00:96::{n}" for n in range(1, 7)]
    + ["fd00:30::2", "fd00:30::3", "2001:db8:113::10"]
    + [f"fd00:30::{n:x}" for n in (1, 2, 3, 4, 5, 200)],
}
_SOURCES = {
    4: ["10.244.1.2", "10.244.1.3", "10.244.2.2", "203.0.113.10", "203.0.113.200", "172.30.0.3"],
    6: ["fd00:244:0:1::2", "fd00:244:0:2::3", "2001:db8:113::10", "fd00:30::3"],
}


@st.composite
def _packet(draw: Any) -> Packet:
    version = draw(st.sampled_from([4, 6]))
    from_node = draw(st.integers(0, 3)) == 0
    source = {4: "172.30.0.2", 6: "fd00:30::2"}[version]
    if not from_node:
        source = draw(st.sampled_from(_SOURCES[version]))
    protocol, port = draw(st.sampled_from([(6, 80), (17, 53), (6, 53), (6, 30002), (17, 30003)]))
    if draw(st.integers(0, 2)) == 0:
        protocol, port = draw(st.sampled_from([6, 17])), 30000 + draw(st.integers(2, 13))
    return Packet(
        ip_address(source).packed,
        ip_address(draw(st.sampled_from(_DESTINATIONS[version]))).packed,
        protocol,
        port,
        from_node=from_node,
    )
