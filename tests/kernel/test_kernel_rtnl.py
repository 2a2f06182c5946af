"""Requests reach the kernel and read back as they were asked for."""

from __future__ import annotations

import errno
import os
import socket
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path

import pytest

from podwire.errors import HostNamespaceError, KernelError
from podwire.kernel import netns
from podwire.kernel.requests import (
    Add,
    AddLink,
    Address,
    Bridge,
    Delete,
    DeleteLink,
    Fdb,
    Hop,
    Ifb,
    Neighbour,
    Replace,
    Route,
    Rule,
    SetLink,
    SetPort,
    Veth,
    Vxlan,
)
from podwire.kernel.rtnl import Rtnl, loopback_up

MAC_A, MAC_B = "0a:58:00:00:00:01", "0a:58:00:00:00:02"
PAIR = AddLink(name="a", index=10, mac=MAC_A, mtu=1400, kind=Veth(peer="b", mac=MAC_B, index=11))


@pytest.mark.stays_on_host
def test_the_host_is_refused() -> None:
    with pytest.raises(HostNamespaceError):
        Rtnl()


def test_veth_pair_in_one_batch() -> None:
    with Rtnl() as rtnl:
        rtnl.apply(
            [loopback_up(), PAIR, SetLink(device="a", up=True), SetLink(device="b", up=True)]
        )
        links = rtnl.links()
    assert links["lo"].up
    a, b = links["a"], links["b"]
    assert (a.index, a.mac, a.mtu, a.kind, a.up, a.carrier) == (10, MAC_A, 1400, "veth", True, True)
    assert (b.index, b.mac, b.peer_index) == (11, MAC_B, 10)


def test_pod_is_wired_with_one_batch_inside_and_one_outside(scratch: Path) -> None:
    gateway, pod_ip = ip_address("169.254.1.1"), ip_address("10.244.0.7")
    node_ns = netns.current()
    inside = [
        loopback_up(),
        AddLink(
            name="eth0",
            index=2,
            mac=MAC_A,
            up=True,
            kind=Veth(peer="pod7", mac=MAC_B, netns=node_ns, index=77),
        ),
        Replace(Address("eth0", ip_interface("10.244.0.7/32"))),
        Replace(Neighbour("eth0", gateway, MAC_B)),
        Replace(
            Route(destination=ip_network("0.0.0.0/0"), via=gateway, device="eth0", onlink=True)
        ),
    ]
    with Rtnl() as node:
        with netns.creating(scratch / "pod7") as fd, Rtnl() as pod:
            pod.apply(inside)
        node.apply(
            [
                loopback_up(),
                AddLink(name="node0", kind=Bridge(), up=True),
                Replace(Address("node0", ip_interface("172.30.0.2/24"))),
                SetLink(device=77, up=True),
                Replace(Route(destination=ip_network("10.244.0.7/32"), device=77)),
                Replace(Neighbour(77, pod_ip, MAC_A)),
            ]
        )
        assert node.neighbours() == [Neighbour("pod7", pod_ip, MAC_A)]
    # A real packet: the pod answers with a refusal, which only arrives if both ways are wired.
    client = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    with client:
        client.settimeout(2)
        with pytest.raises(ConnectionRefusedError):
            client.connect(("10.244.0.7", 80))
    server = netns.socket_in(fd)
    with server, socket.socket() as client:
        server.bind(("10.244.0.7", 80))
        server.listen()
        client.settimeout(2)
        client.connect(("10.244.0.7", 80))
    os.close(fd)
    netns.delete(scratch / "pod7")
    with Rtnl() as node:
        node.apply([DeleteLink("pod7")])
        assert "pod7" not in node.links()


def test_bridge_port_options() -> None:
    with Rtnl() as rtnl:
        rtnl.apply(
            [
                AddLink(name="br0", kind=Bridge(ageing_s=10), mac=MAC_A, up=True),
                PAIR,
                SetLink(device="a", master="br0", up=True, alias="pod shop/web-0", promisc=True),
                SetPort(device="a", hairpin=True, isolated=True, learning=False),
            ]
        )
        a = rtnl.links()["a"]
        assert (a.master, a.hairpin, a.isolated, a.alias) == ("br0", True, True, "pod shop/web-0")
        assert a.promisc
        rtnl.apply([SetLink(device="a", master=0, promisc=False)])
        assert rtnl.links()["a"].master is None
    assert Path("/sys/class/net").exists()


def test_routes_of_every_shape_read_back() -> None:
    hops = (
        Hop(ip_address("172.30.0.3"), "a", 1),
        Hop(ip_address("172.30.0.4"), "a", 3),
    )
    routes = [
        Route(destination=ip_network("10.1.0.0/24"), via=ip_address("172.30.0.9"), device="a"),
        Route(destination=ip_network("10.2.0.0/24"), device="a", metric=5, mtu=1300),
        Route(
            destination=ip_network("10.3.0.0/24"),
            via=ip_address("192.0.2.1"),
            device="a",
            onlink=True,
            source=ip_address("172.30.0.2"),
        ),
        Route(destination=ip_network("10.4.0.0/24"), hops=hops),
        Route(destination=ip_network("10.5.0.0/24"), type="blackhole"),
        Route(destination=ip_network("10.6.0.0/24"), type="unreachable", table=1000),
        Route(destination=ip_network("10.7.0.0/24"), via=ip_address("fe80::1"), device="a"),
        Route(destination=ip_network("fd00:1::/64"), via=ip_address("fd00:30::9"), device="a"),
        Route(destination=ip_network("::/0"), via=ip_address("fe80::1"), device="a", onlink=True),
    ]
    with Rtnl() as rtnl:
        rtnl.apply(
            [
                loopback_up(),
                PAIR,
                SetLink(device="b", up=True),
                SetLink(device="a", link_local=False),
                SetLink(device="a", up=True),
                Replace(Address("a", ip_interface("172.30.0.2/24"))),
                Replace(Address("a", ip_interface("fd00:30::2/64"))),
                *map(Replace, routes),
                *map(Replace, routes),
            ]
        )
        found = {(r.destination, r.table): r for r in rtnl.routes(table=None)}
        for route in routes:
            got = found[route.destination, route.table]
            assert (got.via, got.hops, got.type, got.onlink, got.source, got.mtu) == (
                route.via,
                route.hops,
                route.type,
                route.onlink,
                route.source,
                route.mtu,
            ), route
        assert Address("a", ip_interface("fd00:30::2/64")) in rtnl.addresses()
        rtnl.apply([*map(Delete, routes), *map(Delete, routes)])
        left = {r.destination for r in rtnl.routes(table=None)}
        assert not left & {r.destination for r in routes}


def test_address_flags_and_deletion() -> None:
    quiet = Address("a", ip_interface("10.9.0.1/24"), prefix_route=False)
    with Rtnl() as rtnl:
        rtnl.apply([PAIR, SetLink(device="a", up=True), Replace(quiet), Replace(quiet)])
        assert quiet in rtnl.addresses()
        assert not rtnl.routes()
        rtnl.apply([Delete(quiet), Delete(quiet)])
        assert quiet not in rtnl.addresses()
        with pytest.raises(KernelError) as caught:
            rtnl.apply([Delete(quiet, missing_ok=False)])
        assert caught.value.errno == errno.EADDRNOTAVAIL


def test_rules() -> None:
    rules = [
        Rule(priority=100, table=1000, source=ip_network("10.244.0.0/16")),
        Rule(priority=101, table=1001, mark=0x10, mask=0xF0, input_device="a"),
        Rule(priority=102, table=1002, family=6),
    ]
    with Rtnl() as rtnl:
        rtnl.apply([*map(Replace, rules), *map(Replace, rules)])
        assert [r for r in rtnl.rules() if 99 < r.priority < 200] == rules
        with pytest.raises(KernelError):
            rtnl.apply([Add(rules[0])])
        rtnl.apply([*map(Delete, rules), *map(Delete, rules)])
        assert not [r for r in rtnl.rules() if 99 < r.priority < 200]


def test_vxlan_and_its_fdb() -> None:
    flood = "00:00:00:00:00:00"
    entries = [
        Fdb("vx0", flood, ip_address("172.30.0.3")),
        Fdb("vx0", flood, ip_address("172.30.0.4")),
        Fdb("vx0", MAC_B, ip_address("172.30.0.4")),
    ]
    with Rtnl() as rtnl:
        rtnl.apply(
            [
                PAIR,
                AddLink(
                    name="vx0",
                    kind=Vxlan(vni=7, local=ip_address("172.30.0.2"), device="a"),
                    mac=MAC_A,
                    mtu=1350,
                    up=True,
                ),
                *(Add(e) for e in entries[:2]),
                Replace(entries[2]),
                AddLink(name="ifb0", kind=Ifb()),
            ]
        )
        assert sorted(map(str, rtnl.fdb())) == sorted(map(str, entries))
        assert rtnl.links()["vx0"].kind == "vxlan"
        rtnl.apply([Delete(entries[0]), Delete(entries[0])])
        assert len(rtnl.fdb()) == 2


def test_the_error_names_the_request_and_keeps_the_rest() -> None:
    with Rtnl() as rtnl:
        with pytest.raises(KernelError) as caught:
            rtnl.apply(
                [
                    Replace(Route(destination=ip_network("10.0.0.0/8"), via=ip_address("1.2.3.4"))),
                    PAIR,
                ]
            )
        assert "route replace 10.0.0.0/8 via 1.2.3.4" in str(caught.value)
        assert "Nexthop has invalid gateway" in str(caught.value)
        assert caught.value.errno == errno.ENETUNREACH
        assert "a" in rtnl.links()
        with pytest.raises(KernelError) as caught:
            rtnl.apply([PAIR])
        assert caught.value.errno == errno.EEXIST
        rtnl.apply([AddLink(name="a", kind=PAIR.kind, exist_ok=True)])
        with pytest.raises(KernelError) as caught:
            rtnl.apply([SetLink(device="nowhere", up=True)])
        assert caught.value.errno == errno.ENODEV
        rtnl.apply([DeleteLink("nowhere"), Delete(Address("nowhere", ip_interface("1.1.1.1/32")))])


def test_thousands_of_requests_in_one_list() -> None:
    routes = [
        Route(destination=ip_network((0x0A000000 + (n << 8), 24)), type="blackhole")
        for n in range(3000)
    ]
    with Rtnl() as rtnl:
        rtnl.apply([loopback_up(), *map(Replace, routes)])
        assert len(rtnl.routes()) == 3000
        rtnl.apply(map(Delete, routes))
        assert rtnl.routes() == []


def test_renamed_and_moved_links_are_found_by_their_new_name(scratch: Path) -> None:
    fd = netns.create(scratch / "other")
    with Rtnl() as rtnl, Rtnl.in_ns(fd) as other:
        rtnl.apply([PAIR, SetLink(device="a", name="c"), SetLink(device="c", up=True)])
        assert rtnl.index("c") == 10
        rtnl.apply([SetLink(device="b", netns=fd)])
        other.apply([SetLink(device="b", up=True)])
        assert other.links()["b"].carrier
        assert "b" not in rtnl.links()
