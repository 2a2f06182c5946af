"""The wiring of pods and nodes as text, and plans held against each other on the fake kernel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from podwire.cni import links, nodenet
from podwire.cni.config import NetworkConfig
from podwire.cni.nodenet import NodeNetwork, Peer, compile_node_network, plan_node_network
from podwire.kernel.fake import FakeKernel
from podwire.kernel.requests import Add, AddLink, Bridge, Request, Route, SetLink, Veth
from podwire.kernel.requests import Address as LinkAddress

Golden = Callable[[str, str], None]
FAMILIES = {"ipv4": (4,), "ipv6": (6,), "dual": (4, 6)}
CIDRS = {4: ip_network("10.244.0.0/16"), 6: ip_network("fd00:244::/56")}
POD = {4: ip_address("10.244.1.5"), 6: ip_address("fd00:244:0:1::5")}
OTHER = {4: ip_address("10.244.1.4"), 6: ip_address("fd00:244:0:1::4")}
NODE_CIDRS = {4: ip_network("10.244.1.0/24"), 6: ip_network("fd00:244:0:1::/64")}


def text(requests: Sequence[Request]) -> str:
    return "".join(f"{request}\n" for request in requests)


def peer(number: int, families: Sequence[int]) -> Peer:
    addresses = {4: f"172.30.0.{number + 1}", 6: f"fd00:30::{number + 1:x}"}
    cidrs = {4: f"10.244.{number}.0/24", 6: f"fd00:244:0:{number:x}::/64"}
    return Peer(
        f"node-{number}",
        tuple(ip_address(addresses[f]) for f in families),
        tuple(ip_network(cidrs[f]) for f in families),
    )


def config(families: Sequence[int], **fields: Any) -> NetworkConfig:
    return NetworkConfig(cluster_cidrs=tuple(CIDRS[f] for f in families), **fields)


@pytest.mark.parametrize("family", FAMILIES)
def test_routed_pod(family: str, golden: Golden) -> None:
    link = links.PodLink(
        "sandbox-1",
        tuple(POD[f] for f in FAMILIES[family]),
        1500,
        1001,
        peer(1, FAMILIES[family]).addresses,
    )
    node = text(links.routed_node_requests(link, 7))
    pod = text(links.routed_pod_requests(link))
    golden(f"links/routed-{family}.txt", f"# node\n{node}# pod\n{pod}")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("hairpin", ["hairpin-veth", "none"])
def test_kubenet_pod(family: str, hairpin: Any, golden: Golden) -> None:
    families = FAMILIES[family]
    cidrs = tuple(NODE_CIDRS[f] for f in families)
    bridge = links.BridgePorts(cidrs, links.mac_of(cidrs[0][1]), 3, hairpin)
    link = links.PodLink("sandbox-1", tuple(POD[f] for f in families), 1450, 1001)
    node = text(links.kubenet_node_requests(link, bridge, 7))
    pod = text(links.kubenet_pod_requests(link, bridge, [tuple(OTHER[f] for f in families)]))
    golden(f"links/kubenet-{hairpin}-{family}.txt", f"# node\n{node}# pod\n{pod}")


NODES: dict[str, dict[str, Any]] = {
    "routed": {},
    "routed-vxlan": {"overlay": "vxlan"},
    "routed-non-masquerade": {"non_masquerade_cidrs": (ip_network("10.0.0.0/8"),)},
    "kubenet": {"mode": "kubenet"},
    "kubenet-vxlan": {"mode": "kubenet", "overlay": "vxlan"},
    "kubenet-promiscuous": {"mode": "kubenet", "hairpin_mode": "promiscuous-bridge"},
    "kubenet-no-masquerade": {
        "mode": "kubenet",
        "non_masquerade_cidrs": (ip_network("0.0.0.0/0"),),
    },
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("mode", NODES)
def test_node(mode: str, family: str, golden: Golden) -> None:
    families = FAMILIES[family]
    peers = [peer(n, families) for n in (1, 2, 3)]
    network = compile_node_network(peers[0], peers, config(families, **NODES[mode]), 1500)
    sysctls = "".join(f"sysctl {key}={value}\n" for key, value in network.sysctls)
    plan = text(plan_node_network(network, None))
    golden(f"nodenet/{mode}-{family}.txt", f"# mtu {network.mtu}\n{sysctls}{plan}{network.nft}")


def test_a_node_without_address_or_cidr_has_no_network() -> None:
    whole = peer(1, (4,))
    for half in (Peer("node-1", (), whole.pod_cidrs), Peer("node-1", whole.addresses, ())):
        assert compile_node_network(half, [peer(2, (4,))], config((4,)), 1500) == NodeNetwork(1500)
        beside = compile_node_network(peer(2, (4,)), [half], config((4,)), 1500)
        assert beside.entries == frozenset()


def test_same_input_same_output() -> None:
    peers = [peer(n, (4, 6)) for n in range(1, 9)]
    first = compile_node_network(peers[0], peers, config((4, 6)), 1500)
    assert compile_node_network(peers[0], peers[::-1], config((4, 6)), 1500) == first


def test_kubenet_mtu_is_the_smallest_that_counts() -> None:
    from podwire.kernel.requests import Link

    def link(name: str, mtu: int, up: bool = True) -> Link:
        return Link(index=1, name=name, kind="", mac="", mtu=mtu, up=up, carrier=up)

    found = [link("lo", 600), link("eth0", 1500), link("eth1", 1400), link("eth2", 1300, False)]
    found += [link("tiny", 500), link("veth1", 900), link("cbr0", 901), link("vxlan.1", 902)]
    assert nodenet.kubenet_mtu(found) == 1400
    assert nodenet.kubenet_mtu([link("lo", 65536)]) == 1460


def test_routes_are_replaced_in_place() -> None:
    """A node that came back with another address: its route never goes away meanwhile."""
    me, before = peer(1, (4,)), peer(2, (4,))
    after = Peer(before.name, (ip_address("172.30.0.77"),), before.pod_cidrs)
    old = compile_node_network(me, [before], config((4,)), 1500)
    new = compile_node_network(me, [after], config((4,)), 1500)
    assert text(plan_node_network(new, old)).splitlines() == [
        "route replace 10.244.2.0/24 via 172.30.0.77 dev eth0"
    ]
    assert plan_node_network(new, new) == []


# --- random worlds ------------------------------------------------------------------------------


def uplink(families: Sequence[int]) -> list[Request]:
    """A node as the lab's fabric makes it: eth0 up, addressed, with a default route."""
    me = peer(1, families)
    networks = {4: 24, 6: 64}
    requests: list[Request] = [
        SetLink(device="lo", up=True),
        AddLink(name="bridge", kind=Bridge(), mac="02:00:00:00:00:01", up=True),
        AddLink(
            name="eth0",
            kind=Veth(peer="far", mac="02:00:00:00:00:02"),
            mac="02:00:00:00:00:03",
            mtu=1500,
        ),
        SetLink(device="far", up=True),
        SetLink(device="eth0", up=True),
    ]
    for address in me.addresses:
        prefix = networks[address.version]
        requests.append(Add(LinkAddress("eth0", links.interface(address, prefix))))
    return requests


def state(kernel: FakeKernel) -> tuple[Any, ...]:
    found = kernel.namespace()
    return (
        {link.name: (link.kind, link.mac, link.mtu, link.up) for link in found.links.values()},
        sorted(map(str, found.addresses)),
        {key: str(route) for key, route in found.routes.items()},
        {key: str(entry) for key, entry in found.neighbours.items()},
        sorted(map(str, found.fdb)),
    )


@settings(deadline=None, max_examples=60)
@given(
    family=st.sampled_from(list(FAMILIES)),
    mode=st.sampled_from(["routed", "kubenet"]),
    overlay=st.sampled_from(["none", "vxlan"]),
    worlds=st.lists(
        st.dictionaries(st.integers(2, 6), st.integers(0, 2), max_size=5), min_size=1, max_size=5
    ),
)
def test_step_by_step_is_as_from_scratch(
    family: str, mode: Any, overlay: Any, worlds: list[dict[int, int]]
) -> None:
    """Whatever nodes came, went or moved on the way, the kernel ends as if only the last were."""
    families = FAMILIES[family]
    cluster = config(families, mode=mode, overlay=overlay)
    me = peer(1, families)

    def network(world: dict[int, int]) -> NodeNetwork:
        peers = []
        for number, moved in world.items():
            # A node keeps its podCIDR and has another address after each move.
            addresses = peer(number + 20 * moved, families).addresses
            peers.append(Peer(f"node-{number}", addresses, peer(number, families).pod_cidrs))
        return compile_node_network(me, peers, cluster, 1500)

    stepwise, scratch = FakeKernel(), FakeKernel()
    for kernel in (stepwise, scratch):
        with kernel.rtnl() as rtnl:
            rtnl.apply(uplink(families))
    applied: NodeNetwork | None = None
    for world in worlds:
        desired = network(world)
        with stepwise.rtnl() as rtnl:
            rtnl.apply(plan_node_network(desired, applied))
        applied = desired
    with scratch.rtnl() as rtnl:
        rtnl.apply(plan_node_network(network(worlds[-1]), None))
    assert state(stepwise) == state(scratch)
    ours = [r for r in stepwise.namespace().routes.values() if r.protocol == links.ROUTE_PROTOCOL]
    assert len(ours) == len(worlds[-1]) * len(families)
    assert all(isinstance(route, Route) for route in ours)
