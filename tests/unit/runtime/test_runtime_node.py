"""What a node says of itself, merged into what others said of it."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path

from podwire.apiserver.patch import apply_strategic_patch
from podwire.apiserver.schema import Schema, builtin
from podwire.objects.meta import JsonObject
from podwire.runtime.config import KubeletConfig
from podwire.runtime.node import render_node_status, status_patch

NOW = "2026-01-01T00:00:00Z"


def config_of(*ips: str) -> KubeletConfig:
    return KubeletConfig(
        node_name="node-1",
        node_ips=tuple(ip_address(ip) for ip in ips),
        node_dir=Path("/nowhere"),
        pins_dir=Path("/nowhere"),
        images_dir=Path("/nowhere"),
        boot_id="boot",
    )


def node_schema() -> Schema:
    schema = builtin("", "v1", "Node")
    assert schema is not None
    return schema


def test_both_addresses_of_a_dual_stack_node_survive_its_status_patch() -> None:
    """Two addresses have the type InternalIP, which is the list's merge key (k/k#79391)."""
    node: JsonObject = {"status": {"addresses": [{"type": "InternalIP", "address": "172.30.0.9"}]}}
    status = render_node_status(config_of("172.30.0.2", "fd00:30::2"), "podwire://", NOW)
    for _ in range(2):
        node = apply_strategic_patch(node, status_patch(status), node_schema())
    assert node["status"]["addresses"] == [
        {"type": "InternalIP", "address": "172.30.0.2"},
        {"type": "InternalIP", "address": "fd00:30::2"},
        {"type": "Hostname", "address": "node-1"},
    ]


def test_conditions_of_others_survive_its_status_patch() -> None:
    before = {"status": {"conditions": [{"type": "PathMTU", "status": "True"}]}}
    status = render_node_status(config_of("172.30.0.2"), "podwire://", NOW)
    node = apply_strategic_patch(before, status_patch(status), node_schema())
    kinds_of = {condition["type"] for condition in node["status"]["conditions"]}
    assert kinds_of == {"PathMTU", "Ready", "MemoryPressure", "DiskPressure", "PIDPressure"}
