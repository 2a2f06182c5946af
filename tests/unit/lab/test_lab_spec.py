"""What a lab may be, and every sentence that refuses one."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import Any

import msgspec
import pytest

from podwire.errors import AddressError, UsageError
from podwire.lab import spec as specs
from podwire.lab.spec import LabSpec, NodeSpec, PublishSpec


def lab(nodes: int = 3, **fields: Any) -> LabSpec:
    return LabSpec(name="t", nodes=specs.make_nodes(nodes, ()), **fields)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"ip_family": "ipv6"},
        {"ip_family": "dual"},
        {"network": "kubenet", "overlay": "vxlan"},
        {"nodes": 188},
        {"pod_cidrs": ("10.244.0.0/22",)},
        {"pod_cidrs": ("10.244.0.0/28",), "node_mask": 30},
        {"mtu": 1500},
        {"mtu": 576},
        {"mtu": 1450, "overlay": "vxlan"},
        {"mtu": 1280, "ip_family": "dual"},
        {"service_cidrs": ("10.96.0.0/28",)},
    ],
)
def test_possible(fields: dict[str, Any]) -> None:
    specs.check(lab(**fields))


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"pod_cidrs": ("10.244.0.0/25",)}, "smaller than the /24 every node needs"),
        ({"pod_cidrs": ("10.244.0.0/23",)}, "too small for 3 nodes, holds 2 of /24"),
        ({"pod_cidrs": ("x",)}, "pod CIDR 'x': 'x' does not appear to be an IPv4 or IPv6 network"),
        ({"pod_cidrs": ("10.244.0.1/16",)}, "has host bits set"),
        ({"pod_cidrs": ("fd00::/56",)}, "IPv6, but the lab's family is IPv4; see --ip-family"),
        ({"node_mask": 31}, "node mask /31: no room for a pod on a node"),
        (
            {"ip_family": "ipv6", "pod_cidrs": ("fd00:244::/40",)},
            "node CIDR size is too big: /64 minus /40 is more than 16",
        ),
        ({"service_cidrs": ("10.96.0.0/29",)}, "too small, at least 16 addresses are needed"),
        ({"node_cidrs": ("192.168.0.0/29",), "nodes": 6}, "the API server and the router"),
        ({"pod_cidrs": ("10.96.0.0/14",)}, "overlaps the service CIDR 10.96.0.0/16"),
        ({"pod_cidrs": ("172.30.0.0/16",)}, "overlaps the node network 172.30.0.0/24"),
        ({"pod_cidrs": ("203.0.0.0/16",)}, "overlaps the outside network 203.0.113.0/24"),
        ({"service_cidrs": ("172.30.0.0/26",)}, "overlaps the node network"),
    ],
)
def test_impossible_addresses(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(AddressError) as refused:
        specs.check(lab(**fields))
    assert says in str(refused.value)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"mtu": 575}, "between 576 and 1500"),
        ({"mtu": 1501}, "between 576 and 1500"),
        ({"mtu": 1451, "overlay": "vxlan"}, "with vxlan have an MTU between 576 and 1450"),
        ({"mtu": 1279, "ip_family": "ipv6"}, "between 1280 and 1500"),
    ],
)
def test_impossible_mtu(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError) as refused:
        specs.check(lab(**fields))
    assert says in str(refused.value)


def test_names() -> None:
    with pytest.raises(UsageError, match="lab name"):
        specs.check(LabSpec(name="No"))
    twins = (NodeSpec("a", 2), NodeSpec("a", 3))
    with pytest.raises(UsageError, match="two nodes have one name"):
        specs.check(LabSpec(name="t", nodes=twins))


@pytest.mark.parametrize("count", [0, -1, 189])
def test_node_counts(count: int) -> None:
    with pytest.raises(UsageError, match="a lab has between 1 and 188 nodes"):
        specs.make_nodes(count, ())


def test_nodes_are_dealt_to_zones() -> None:
    nodes = specs.make_nodes(3, ("a", "b"))
    assert [(n.name, n.number, n.zone) for n in nodes] == [
        ("node-1", 2, "a"),
        ("node-2", 3, "b"),
        ("node-3", 4, "a"),
    ]


def test_next_node_takes_the_lowest_free_number() -> None:
    spec = lab(3)
    gap = msgspec.structs.replace(spec, nodes=(spec.nodes[0], spec.nodes[2]))
    assert specs.next_node(gap, "", "") == NodeSpec("node-2", 3, "zone-1")
    assert specs.next_node(gap, "big", "z") == NodeSpec("big", 3, "z")
    with pytest.raises(UsageError, match="node node-3: exists already"):
        specs.next_node(gap, "node-3", "")
    with pytest.raises(UsageError, match="already has 188 nodes"):
        specs.next_node(lab(188), "", "")


@pytest.mark.parametrize("name", ["Bad_Name", "a.b", "-a", "a" * 33, "outside", "router"])
def test_nodes_that_could_never_register_are_refused(name: str) -> None:
    """Such a node would be built, and every later `up` would wait for it in vain."""
    with pytest.raises(UsageError, match="node name"):
        specs.next_node(lab(1), name, "")
    with pytest.raises(UsageError, match="node name"):
        specs.check(LabSpec(name="t", nodes=(NodeSpec(name, 2),)))


@pytest.mark.parametrize("zone", ["a!", "-a", "a" * 64])
def test_zones_are_label_values(zone: str) -> None:
    with pytest.raises(UsageError, match="becomes a label"):
        specs.next_node(lab(1), "", zone)
    with pytest.raises(UsageError, match="becomes a label"):
        specs.check(LabSpec(name="t", nodes=specs.make_nodes(1, (zone,))))


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"max_pods": 0}, "--max-pods 0: a node holds at least one pod"),
        ({"non_masquerade_cidrs": ("x",)}, "--non-masquerade-cidr x: 'x' does not appear"),
    ],
)
def test_what_agents_would_choke_on_is_refused(fields: dict[str, Any], says: str) -> None:
    with pytest.raises((UsageError, AddressError)) as refused:
        specs.check(lab(**fields))
    assert says in str(refused.value)


def test_extend_nodes() -> None:
    spec = lab(2)
    assert specs.extend_nodes(spec, 2, ()) == spec.nodes
    assert [n.name for n in specs.extend_nodes(spec, 4, ())] == [f"node-{i}" for i in range(1, 5)]
    with pytest.raises(UsageError, match="has 2 nodes; remove one"):
        specs.extend_nodes(spec, 1, ())


def test_addresses() -> None:
    spec = lab(ip_family="dual")
    node = spec.nodes[0]
    assert spec.node_addresses(node) == (ip_address("172.30.0.2"), ip_address("fd00:30::2"))
    assert spec.api_address == ip_address("172.30.0.1")
    assert spec.router_number == 254
    assert spec.cluster_dns == (ip_address("10.96.0.10"), ip_address("fd00:96::a"))
    assert spec.pod_networks() == (ip_network("10.244.0.0/16"), ip_network("fd00:244::/56"))
    assert lab(node_cidrs=("192.168.1.0/28",)).router_number == 14
    assert lab(node_mask=26).node_masks() == {4: 26, 6: 64}
    assert lab(ip_family="ipv6", node_mask=72).node_masks() == {4: 24, 6: 72}


def test_outside_is_where_the_documents_say() -> None:
    """2001:db8:113::10, not the tenth address of that network."""
    for family, address in specs.OUTSIDE_ADDRESSES.items():
        assert address in specs.OUTSIDE_NETWORKS[family]
        assert str(address).endswith("10")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("8080:web:80", PublishSpec("127.0.0.1", 8080, "web:80")),
        ("0:svc/shop/web:http", PublishSpec("127.0.0.1", 0, "svc/shop/web:http")),
        ("127.0.0.2:1:a/b:2", PublishSpec("127.0.0.2", 1, "a/b:2")),
        ("[::1]:1:a/b:2", PublishSpec("::1", 1, "a/b:2")),
    ],
)
def test_publish(text: str, wanted: PublishSpec) -> None:
    assert specs.parse_publish(text) == wanted


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("web:80", "expected [HOST:]PORT:TARGET"),
        ("80:web", "expected [HOST:]PORT:TARGET"),
        ("", "expected [HOST:]PORT:TARGET"),
        ("70000:web:80", "port 70000 is not between 0 and 65535"),
        ("0.0.0.0:80:web:80", "0.0.0.0 is not a loopback address; labs stay on the host"),
        ("10.0.0.1:80:web:80", "is not a loopback address"),
        ("999.1.1.1:80:web:80", "999.1.1.1"),
    ],
)
def test_publish_refused(text: str, says: str) -> None:
    with pytest.raises(UsageError) as refused:
        specs.parse_publish(text)
    assert says in str(refused.value)


def test_spec_survives_its_file() -> None:
    spec = lab(ip_family="dual", publish=(PublishSpec("127.0.0.1", 1, "a:2"),))
    assert msgspec.json.decode(msgspec.json.encode(spec), type=LabSpec) == spec
