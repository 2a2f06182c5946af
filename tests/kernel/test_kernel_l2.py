"""What an announcing node has in its kernel, and what the next agent finds there."""

from __future__ import annotations

import asyncio
import socket
import subprocess
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_interface
from pathlib import Path

import pytest

from podwire.agents.heartbeats import HeartbeatSocket
from podwire.agents.l2 import L2Kernel, plan_kernel, route_of
from podwire.errors import KernelError
from podwire.kernel import netns, sysctl
from podwire.kernel.requests import AddLink, Address, Delete, Proxy, Replace, SetLink, Veth
from podwire.kernel.rtnl import Rtnl, loopback_up

VIPS = [ip_address(text) for text in ("172.30.0.200", "172.30.0.201", "fd00:30::200")]


def uplink(far: int) -> None:
    """eth0 here is 172.30.0.2, eth0 in `far` is 172.30.0.254."""
    peer = Veth(peer="eth0", netns=far)
    with Rtnl() as here, Rtnl.in_ns(far) as there:
        here.apply([loopback_up(), AddLink(name="eth0", kind=peer)])
        for rtnl, host in ((here, "2"), (there, "254")):
            addresses = (f"172.30.0.{host}/24", f"fd00:30::{host}/64")
            rtnl.apply(
                [
                    SetLink(device="eth0", up=True),
                    *(Replace(Address("eth0", ip_interface(text))) for text in addresses),
                ]
            )
    sysctl.write({"net.ipv4.ip_forward": 1, "net.ipv6.conf.all.forwarding": 1})


def test_order() -> None:
    one, two = VIPS[:2]
    assert plan_kernel("eth0", frozenset({one}), frozenset({two})) == [
        Delete(Proxy("eth0", one)),
        Delete(route_of(one)),
        Replace(route_of(two)),
        Replace(Proxy("eth0", two)),
    ]
    assert plan_kernel("eth0", frozenset({one}), frozenset({one})) == []


def test_an_address_that_is_delivered_everywhere_is_on_the_uplink() -> None:
    """IPVS has it on every node; who answers is whose uplink has it too."""
    one, two = VIPS[:2]
    assert plan_kernel("eth0", frozenset({one}), frozenset({two}), delivered=True) == [
        Delete(Address("eth0", ip_interface("172.30.0.200"))),
        Delete(Proxy("eth0", one)),
        Delete(route_of(one)),
        Replace(route_of(two)),
        Replace(Proxy("eth0", two)),
        Replace(Address("eth0", ip_interface("172.30.0.201"))),
    ]


def test_taken_over_as_it_was_left(scratch: Path) -> None:
    uplink(netns.create(scratch / "far"))
    first = L2Kernel("eth0", (4, 6))
    assert first.read() == frozenset()
    first.change(frozenset(), frozenset(VIPS))
    first.close()
    second = L2Kernel("eth0", (4, 6))
    assert second.read() == frozenset(VIPS)
    with Rtnl() as rtnl:
        # Killed in between: the route is there first and goes last, so it tells.
        rtnl.apply([Delete(Proxy("eth0", VIPS[0]))])
        assert second.read() == frozenset(VIPS)
        second.change(frozenset(VIPS), frozenset())
        assert rtnl.proxies() == []
    assert second.read() == frozenset()
    second.close()


def test_answers_at_once(scratch: Path) -> None:
    """A router's first packet finds the address within milliseconds, not after a random delay."""
    far = netns.create(scratch / "far")
    uplink(far)
    kernel = L2Kernel("eth0", (4, 6))
    kernel.change(frozenset(), frozenset(VIPS))
    kernel.announce(VIPS)
    for version, vip in ((socket.AF_INET, VIPS[1]), (socket.AF_INET6, VIPS[2])):
        with netns.socket_in(far, version, socket.SOCK_STREAM) as sock:
            sock.settimeout(0.3)
            # Forwarded to nobody: only the neighbour's answer matters.
            sock.connect_ex((str(vip), 9))
        with netns.entered(far):
            shown = subprocess.run(
                ["ip", "neigh", "show", str(vip)], capture_output=True, text=True, check=True
            ).stdout
        assert "lladdr" in shown
    kernel.close()


PEERS = {"node-2": ip_address("172.30.0.254"), "node-3": ip_address("fd00:30::254")}


def listening(own: str, peers: dict[str, IPv4Address | IPv6Address]) -> HeartbeatSocket:
    wire = HeartbeatSocket(lambda _: None, lambda _: None)
    try:
        wire.set_peers(ip_address(own), peers)
    except KernelError:
        wire.close()
        raise
    return wire


@pytest.mark.parametrize("own", ["172.30.0.2", "fd00:30::2"])
def test_heartbeats_are_heard_before_the_address_is_there(scratch: Path, own: str) -> None:
    async def body() -> None:
        # An IPv6 address is tentative for a second; a node that heard nobody took everything.
        listening(own, PEERS).close()

    asyncio.run(body())


@pytest.mark.parametrize("own", ["172.30.0.2", "fd00:30::2"])
def test_a_port_in_use_is_an_error_where_there_are_others(scratch: Path, own: str) -> None:
    async def body() -> None:
        first = listening(own, PEERS)
        with pytest.raises(KernelError, match="in use"):
            listening(own, PEERS)
        listening(own, {}).close()
        first.close()
        listening(own, PEERS).close()

    asyncio.run(body())
