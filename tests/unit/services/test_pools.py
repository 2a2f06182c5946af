"""Ranges as users write them, and the frontends of addresses out of them."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from service_worlds import make_service, make_slice

from podwire.errors import AddressError
from podwire.lab.spec import LabSpec, NodeSpec, check
from podwire.services.model import NodeView, compile_service
from podwire.services.pools import AddressRange, make_pools, parse_range


@pytest.mark.parametrize(
    ("text", "first", "last"),
    [
        ("172.30.0.200-172.30.0.250", "172.30.0.200", "172.30.0.250"),
        (" 10.0.0.1 - 10.0.0.2 ", "10.0.0.1", "10.0.0.2"),
        ("192.0.2.0/28", "192.0.2.0", "192.0.2.15"),
        ("fd00:30::200-fd00:30::250", "fd00:30::200", "fd00:30::250"),
        ("192.0.2.7", "192.0.2.7", "192.0.2.7"),
    ],
)
def test_ranges(text: str, first: str, last: str) -> None:
    found = parse_range(text)
    assert found == AddressRange(ip_address(first), ip_address(last))
    assert len(found) == len(list(found)) == sum(n.num_addresses for n in found.networks())
    assert ip_address(first) in found
    assert ip_address(last) in found
    assert ip_address(first) - 1 not in found


@pytest.mark.parametrize("text", ["", "x", "10.0.0.2-10.0.0.1", "10.0.0.1-fd00::1", "10.0.0.1/8"])
def test_no_ranges(text: str) -> None:
    with pytest.raises(AddressError, match="address range"):
        parse_range(text)


def test_pools() -> None:
    pools = make_pools(["10.0.0.1-10.0.0.9", "fd00::/124"], ["10.0.1.0/30"])
    assert pools.scope_of(ip_address("10.0.0.5")) == "external"
    assert pools.scope_of(ip_address("10.0.1.3")) == "internal"
    assert pools.scope_of(ip_address("10.0.2.1")) is None
    assert ip_address("fd00::f") in pools
    assert pools.of("internal", 6) == []
    with pytest.raises(AddressError, match="overlaps"):
        make_pools(["10.0.0.0/24"], ["10.0.0.9"])


def lab(nodes: int = 1, **fields: object) -> LabSpec:
    specs = tuple(NodeSpec(f"node-{n}", n + 1) for n in range(1, nodes + 1))
    return LabSpec(nodes=specs, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "external", "internal"),
    [
        ({}, ["172.30.0.200-172.30.0.250"], ["172.30.0.190-172.30.0.199"]),
        (
            {"ip_family": "dual"},
            ["172.30.0.200-172.30.0.250", "fd00:30::200-fd00:30::250"],
            ["172.30.0.190-172.30.0.199", "fd00:30::190-fd00:30::199"],
        ),
        ({"node_cidrs": ("10.9.0.0/26",)}, ["10.9.0.50-10.9.0.61"], ["10.9.0.47-10.9.0.49"]),
        ({"node_cidrs": ("10.9.0.0/28",)}, [], []),
        (
            {"node_cidrs": ("10.9.0.0/16",)},
            ["10.9.0.200-10.9.0.250"],
            ["10.9.0.190-10.9.0.199"],
        ),
        (
            {"load_balancer_pools": ("172.30.0.100/30",)},
            ["172.30.0.100-172.30.0.103"],
            ["172.30.0.190-172.30.0.199"],
        ),
    ],
)
def test_pools_of_a_lab(
    fields: dict[str, object], external: list[str], internal: list[str]
) -> None:
    spec = lab(**fields)
    check(spec)
    pools = spec.pools()
    assert [str(r) for r in pools.external] == external
    assert [str(r) for r in pools.internal] == internal


@pytest.mark.parametrize(
    ("pool", "says"),
    [
        ("10.0.0.0/24", "not in the node network 172.30.0.0/24"),
        ("172.30.0.2-172.30.0.9", "holds the address of node node-1"),
        ("172.30.0.1", "holds the address of the API server"),
        ("172.30.0.250-172.30.0.254", "holds the address of the router"),
        ("172.30.0.195-172.30.0.205", "overlaps"),
    ],
)
def test_impossible_pools(pool: str, says: str) -> None:
    with pytest.raises(AddressError, match=says):
        check(lab(load_balancer_pools=(pool,)))


def test_an_address_of_our_pools_belongs_to_its_services_alone() -> None:
    view = NodeView("node-1", pools=make_pools(["172.30.0.200-172.30.0.250"], []).packed())
    service = make_service(
        type="LoadBalancer",
        ingress=[
            {"ip": "172.30.0.200", "ipMode": "VIP"},
            {"ip": "198.51.100.7", "ipMode": "VIP"},
        ],
    )
    compiled = compile_service(service, [make_slice({"ip": "10.244.1.2"})], view)
    exclusive = {str(f.key): f.exclusive for f in compiled.frontends}
    assert exclusive == {
        "TCP 10.96.0.1:80": True,
        "TCP 172.30.0.200:80": True,
        "TCP 198.51.100.7:80": False,
    }
