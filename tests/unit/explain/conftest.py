"""A shop of three tiers on two nodes, as typed objects."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from podwire.explain.endpoints import Port, Snapshot
from podwire.objects.core import Node, Pod


def make_pod(
    name: str,
    ip: str | tuple[str, ...],
    *,
    namespace: str = "shop",
    node: str = "node-1",
    ports: tuple[tuple[int, str], ...] = (),
    owner: tuple[str, str] | None = None,
    labels: dict[str, str] | None = None,
    **spec: Any,
) -> Pod:
    ips = (ip,) if isinstance(ip, str) else ip
    metadata: dict[str, Any] = {"name": name, "namespace": namespace, "labels": labels or {}}
    if owner:
        metadata["ownerReferences"] = [{"kind": owner[0], "name": owner[1], "controller": True}]
    container = {
        "name": "c",
        "ports": [{"containerPort": number, "protocol": protocol} for number, protocol in ports],
    }
    return msgspec.convert(
        {
            "metadata": metadata,
            "spec": {"nodeName": node, "containers": [container], **spec},
            "status": {
                "phase": "Running",
                "podIP": ips[0] if ips else "",
                "podIPs": [{"ip": text} for text in ips if text],
            },
        },
        type=Pod,
    )


def make_node(name: str, *ips: str) -> Node:
    addresses = [{"type": "InternalIP", "address": ip} for ip in ips]
    return msgspec.convert(
        {"metadata": {"name": name}, "status": {"addresses": addresses}}, type=Node
    )


@pytest.fixture
def shop() -> Snapshot:
    web = {"app": "web", "pod-template-hash": "7d9f"}
    return Snapshot(
        pods=[
            make_pod("web-7d9f-a", "10.244.0.2", owner=("ReplicaSet", "web-7d9f"), labels=web),
            make_pod(
                "web-7d9f-b",
                "10.244.1.2",
                node="node-2",
                owner=("ReplicaSet", "web-7d9f"),
                labels=web,
            ),
            make_pod(
                "api-0",
                "10.244.0.3",
                owner=("StatefulSet", "api"),
                labels={"app": "api"},
                ports=((8080, "TCP"), (53, "UDP")),
            ),
            make_pod(
                "db",
                "10.244.1.4",
                namespace="data",
                node="node-2",
                ports=((5432, "TCP"),),
                labels={"app.kubernetes.io/name": "db"},
            ),
            make_pod("late", ""),
        ],
        nodes=[make_node("node-1", "172.30.0.2"), make_node("node-2", "172.30.0.3")],
        outside_ports=(Port(80),),
    )
