"""Services and slices in numbers, for the Service benchmarks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, ip_address, ip_network
from typing import Any

import msgspec

from podwire.objects.core import Service
from podwire.objects.discovery import EndpointSlice
from podwire.services.model import NodeView

NODE = NodeView("node-0", "zone-0", (ip_address("172.30.0.2"),))
SERVICE_CIDR = ip_network("10.96.0.0/12")
CLUSTER_CIDR = ip_network("10.128.0.0/10")
_NODES = 100
_PER_SLICE = 100


@dataclass(frozen=True)
class Size:
    services: int
    endpoints: int

    def __str__(self) -> str:
        return f"{self.services}x{self.endpoints}"


def cluster_ip(number: int) -> str:
    return str(IPv4Address("10.96.1.0") + number)


def endpoint_ip(number: int) -> str:
    return str(IPv4Address("10.128.0.1") + number)


def raw_service(number: int, namespace: str = "bench") -> dict[str, Any]:
    return {
        "metadata": {"name": f"s{number}", "namespace": namespace},
        "spec": {
            "clusterIP": cluster_ip(number),
            "clusterIPs": [cluster_ip(number)],
            "ports": [{"name": "http", "port": 80, "targetPort": 8080, "protocol": "TCP"}],
        },
    }


def raw_slices(number: int, endpoints: int, namespace: str = "bench") -> Iterator[dict[str, Any]]:
    """The Service's endpoints, 100 in a slice, spread over 100 nodes."""
    first = number * endpoints
    for start in range(0, endpoints, _PER_SLICE):
        chosen = range(first + start, first + min(start + _PER_SLICE, endpoints))
        yield {
            "metadata": {
                "name": f"s{number}-{start // _PER_SLICE}",
                "namespace": namespace,
                "labels": {"kubernetes.io/service-name": f"s{number}"},
            },
            "addressType": "IPv4",
            "endpoints": [
                {
                    "addresses": [endpoint_ip(k)],
                    "nodeName": f"node-{k % _NODES}",
                    "conditions": {"ready": True, "serving": True, "terminating": False},
                }
                for k in chosen
            ],
            "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        }


def snapshot(size: Size) -> list[tuple[Service, list[EndpointSlice]]]:
    """What an informer holds: decoded views."""
    return [
        (
            msgspec.convert(raw_service(n), Service),
            [msgspec.convert(s, EndpointSlice) for s in raw_slices(n, size.endpoints)],
        )
        for n in range(size.services)
    ]
