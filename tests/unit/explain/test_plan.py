"""The planner against the clouds' published figures, and against random requests."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podwire.errors import AddressError, UsageError
from podwire.explain.plan import (
    INSTANCES,
    AddressPlan,
    PlanRequest,
    clouds,
    parse_plan,
    plan_addresses,
    plan_rows,
    render_plan,
)
from podwire.explain.plan.carve import find_block, parse_cidr


def net(*texts: str) -> tuple[Any, ...]:
    return tuple(ip_network(text) for text in texts)


def limit(plan: AddressPlan, name: str) -> int:
    return next(lim.capacity for lim in plan.limits if lim.name == name)


@pytest.mark.parametrize(
    ("max_pods", "prefix"), [(8, 28), (9, 27), (16, 27), (32, 26), (64, 25), (110, 24), (256, 23)]
)
def test_gke_ranges_per_node(max_pods: int, prefix: int) -> None:
    assert clouds.gke_pod_prefix(max_pods) == prefix


@pytest.mark.parametrize(
    ("instance", "mode", "pods"),
    [
        ("t3.micro", "secondary-ip", 4),
        ("t3.small", "secondary-ip", 11),
        ("t3.medium", "secondary-ip", 17),
        ("m5.large", "secondary-ip", 29),
        ("m5.xlarge", "secondary-ip", 58),
        ("m5.24xlarge", "secondary-ip", 250),
        ("m5.large", "prefix", 110),
        ("t3.small", "prefix", 110),
        ("m5.24xlarge", "prefix", 250),
        ("m5.large", "custom", 20),
    ],
)
def test_eks_pods_per_node(instance: str, mode: str, pods: int) -> None:
    assert clouds.eks_max_pods(INSTANCES[instance], mode) == pods


@pytest.mark.parametrize(
    ("prefix", "pods", "nodes"), [(24, 30, 8), (16, 30, 2113), (24, 110, 2), (27, 30, 0)]
)
def test_aks_node_subnet(prefix: int, pods: int, nodes: int) -> None:
    assert clouds.aks_node_subnet_nodes(prefix, pods) == nodes


def test_aks_kubenet_of_a_24_holds_251_nodes_and_27610_pods() -> None:
    plan = plan_addresses(
        PlanRequest(cloud="aks", mode="kubenet", nodes=251, node_cidrs=net("10.0.0.0/24"))
    )
    assert (plan.capacity.nodes, plan.capacity.pods) == (251, 27_610)
    assert plan.first_limit == "IPv4 node addresses"
    assert plan.headroom_percent == 0
    assert plan.feasible


def test_aks_node_subnet_of_a_24_holds_8_nodes_and_240_pods() -> None:
    request = PlanRequest(
        cloud="aks", mode="node-subnet", nodes=9, pods_per_node=30, node_cidrs=net("10.0.0.0/24")
    )
    plan = plan_addresses(request)
    assert (plan.capacity.nodes, plan.capacity.pods) == (8, 240)
    assert not plan.feasible
    assert any("IPv4 node addresses: 9 does not fit (8" in text for text in plan.warnings)
    assert plan.families[0].pods == ""


def test_the_default_cluster_is_kubernetes_own() -> None:
    plan = plan_addresses(PlanRequest(families=(4, 6)))
    four, six = plan.families
    assert (four.nodes, four.pods, four.services) == (
        "172.30.0.0/24",
        "10.244.0.0/16",
        "10.96.0.0/16",
    )
    assert (six.nodes, six.pods, six.services) == ("fd00:30::/64", "fd00:244::/56", "fd00:96::/112")
    assert (four.node_prefix, six.node_prefix) == (24, 64)
    assert limit(plan, "IPv4 node CIDRs") == 256
    assert limit(plan, "IPv4 addresses per node") == 256
    assert limit(plan, "IPv4 services") == 65_534
    assert plan.overlaps == ()
    assert plan.feasible


def test_kubenet_keeps_three_addresses_of_a_node() -> None:
    plan = plan_addresses(PlanRequest(cloud="kubenet"))
    assert limit(plan, "IPv4 addresses per node") == 253
    assert plan.reuse_gap_s == pytest.approx((253 - 110) * 60)


def test_gke_32_pods_per_node_fit_four_times_the_nodes() -> None:
    wide = plan_addresses(PlanRequest(cloud="gke", pod_cidrs=net("10.4.0.0/16")))
    slim = plan_addresses(PlanRequest(cloud="gke", pods_per_node=32, pod_cidrs=net("10.4.0.0/16")))
    assert (limit(wide, "IPv4 node CIDRs"), limit(slim, "IPv4 node CIDRs")) == (256, 1024)
    assert any("four times" in text for text in wide.warnings)
    assert not any("four times" in text for text in slim.warnings)


@pytest.mark.parametrize(
    ("overlay", "families", "mtu"),
    [
        ("none", (4,), 1500),
        ("ipip", (4,), 1480),
        ("vxlan", (4, 6), 1450),
        ("vxlan", (6, 4), 1430),
        ("wireguard", (4,), 1440),
        ("wireguard", (6,), 1420),
    ],
)
def test_mtu(overlay: Any, families: Any, mtu: int) -> None:
    assert plan_addresses(PlanRequest(overlay=overlay, families=families)).mtu == mtu


@pytest.mark.parametrize(
    ("role", "cidr", "cloud", "fatal", "owner"),
    [
        ("pod_cidrs", "172.17.0.0/16", "none", False, "Docker"),
        ("pod_cidrs", "172.30.0.0/15", "none", True, "lab"),
        ("pod_cidrs", "172.31.0.0/16", "aks", True, "AKS"),
        ("service_cidrs", "100.64.0.0/16", "none", False, "6598"),
        ("service_cidrs", "169.254.8.0/24", "none", True, "link-local"),
        ("service_cidrs", "192.0.2.0/24", "none", True, "5737"),
        ("pod_cidrs", "203.0.113.0/24", "none", True, "outside"),
        ("pod_cidrs", "10.96.0.0/12", "none", True, "to be avoided"),
    ],
)
def test_overlaps_are_named(role: str, cidr: str, cloud: Any, fatal: bool, owner: str) -> None:
    request = PlanRequest(cloud=cloud, avoid=net("10.100.0.0/16"), **{role: net(cidr)})
    plan = plan_addresses(request)
    found = [o for o in plan.overlaps if owner in o.owner]
    assert found, plan.overlaps
    assert any(o.fatal == fatal for o in found)
    if fatal:
        assert not plan.feasible
    assert any("choose another block" in text for text in plan.warnings)


def test_networks_to_avoid_move_the_choice() -> None:
    plan = plan_addresses(PlanRequest(avoid=net("10.0.0.0/8", "172.30.0.0/16")))
    assert not plan.overlaps
    assert not any(ip_network("10.0.0.0/8").overlaps(c) for c in plan.cidrs("pods"))


def test_a_cluster_cidr_too_small_shrinks_the_shares_then_reports() -> None:
    fits = plan_addresses(PlanRequest(nodes=8, pods_per_node=60, pod_cidrs=net("10.1.0.0/22")))
    assert fits.families[0].node_prefix == 25
    assert fits.feasible
    full = plan_addresses(PlanRequest(nodes=9, pods_per_node=110, pod_cidrs=net("10.1.0.0/22")))
    assert not full.feasible
    assert full.first_limit == "IPv4 node CIDRs"
    assert any("take a larger pods' CIDR" in text for text in full.warnings)


@pytest.mark.parametrize(
    "request_",
    [
        {"nodes": 0},
        {"cloud": "eks"},
        {"cloud": "aks", "mode": "prefix"},
        {"families": ()},
        {"families": (4, 4)},
        {"cloud": "gke", "families": (6,)},
        {"pod_cidrs": net("10.0.0.0/16", "10.1.0.0/16")},
        {"churn_per_s": 0.0},
        {"node_prefix": 31},
    ],
)
def test_nonsense_is_refused(request_: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="plan"):
        plan_addresses(PlanRequest(**request_))


def test_cidrs_are_read_with_a_hint() -> None:
    with pytest.raises(AddressError, match=r"did you mean 10\.0\.0\.0/8"):
        parse_cidr("10.1.0.0/8")
    with pytest.raises(AddressError, match="none left"):
        find_block(4, 8, net("10.0.0.0/8", "172.16.0.0/12"), smallest=9)


@pytest.mark.parametrize("form", ["json", "yaml"])
def test_documents_are_read_back(form: Any) -> None:
    plan = plan_addresses(PlanRequest(families=(6, 4), overlay="vxlan"))
    text = render_plan(plan, form)
    assert parse_plan(text) == plan
    assert "apiVersion" in text
    assert dict(plan_rows(plan))["MTU of pods"] == "1430"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("AddressPlan", "Other"), "kind is not"),
        (("v1alpha1", "v9"), "apiVersion"),
        (("10.96.0.0/16", "10.244.0.0/20"), "overlaps"),
        (("10.96.0.0/16", "10.96.0.0/160"), "CIDR"),
        (('"nodePrefix": 24', '"nodePrefix": 12'), "/12 per node"),
        (('"mtu": 1500', '"mtu": "big"'), "mtu"),
        (("{", "{{["), "neither"),
    ],
)
def test_edited_documents_are_checked(change: tuple[str, str], message: str) -> None:
    text = render_plan(plan_addresses(PlanRequest())).replace(*change)
    with pytest.raises((UsageError, AddressError), match=message):
        parse_plan(text)


requests = st.builds(
    PlanRequest,
    nodes=st.integers(1, 6000),
    surge_nodes=st.integers(0, 50),
    pods_per_node=st.integers(1, 500),
    services=st.integers(0, 200_000),
    families=st.sampled_from([(4,), (6,), (4, 6), (6, 4)]),
    cloud=st.sampled_from(["none", "kubenet"]),
    overlay=st.sampled_from(["none", "vxlan"]),
    avoid=st.lists(
        st.tuples(st.integers(0, 255), st.integers(8, 20)).map(
            lambda t: ip_network(f"10.{t[0]}.0.0/{t[1]}", strict=False)
        ),
        max_size=6,
    ).map(tuple),
) | st.builds(
    PlanRequest,
    nodes=st.integers(1, 3000),
    pods_per_node=st.integers(1, 300),
    services=st.integers(0, 20_000),
    cloud=st.sampled_from(["gke", "eks", "aks"]),
    instance=st.sampled_from(sorted(INSTANCES)).map(INSTANCES.__getitem__),
)


@given(requests)
def test_plans_never_overlap_and_hold_what_was_asked_or_say_so(request: PlanRequest) -> None:
    try:
        plan = plan_addresses(request)
    except AddressError:
        return  # no free block of that size
    blocks = [block for family in plan.families for block in family.blocks.values()]
    for number, left in enumerate(blocks):
        for right in [*blocks[number + 1 :], *request.avoid]:
            assert left.version != right.version or not left.overlaps(right)
    assert not any(overlap.fatal for overlap in plan.overlaps)
    walls = [lim for lim in plan.limits if not lim.soft]
    fits = (
        plan.capacity.nodes >= request.wanted_nodes
        and plan.capacity.pods_per_node >= request.pods_per_node
        and plan.capacity.services >= request.services
    )
    assert fits == (not any(lim.exceeded for lim in walls)) == plan.feasible
    assert parse_plan(render_plan(plan)) == plan
    first = next(lim for lim in plan.limits if lim.name == plan.first_limit)
    assert all(
        first.capacity * max(1, lim.needed) <= lim.capacity * max(1, first.needed)
        for lim in plan.limits
    )
