"""Neighbours believe announcements; proxy entries answer for addresses elsewhere."""

from __future__ import annotations

import errno
import socket
import subprocess
import time
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path
from typing import Any

import pytest

from podwire.errors import HostNamespaceError, KernelError
from podwire.kernel import announce, netns, sysctl
from podwire.kernel.effects import Effects, KernelEffects
from podwire.kernel.fake import FakeKernel
from podwire.kernel.requests import AddLink, Address, Proxy, Replace, Route, SetLink, Veth
from podwire.kernel.rtnl import Rtnl, loopback_up

MAC_A, MAC_B = "0a:58:00:00:00:01", "0a:58:00:00:00:02"
OLD = "0a:58:00:00:00:99"
LB, LB6 = ip_address("172.30.0.200"), ip_address("fd00:30::200")
DEADLINE_S = 10


def wire(far: int) -> None:
    """Link a, here, and link b in the namespace `far`: 172.30.0.1 and .2."""
    peer = Veth(peer="b", mac=MAC_B, netns=far, index=11)
    with Rtnl() as here, Rtnl.in_ns(far) as there:
        here.apply([loopback_up(), AddLink(name="a", index=10, mac=MAC_A, kind=peer)])
        for rtnl, device, host in ((here, "a", 1), (there, "b", 2)):
            rtnl.apply(
                [
                    SetLink(device=device, up=True),
                    Replace(Address(device, ip_interface(f"172.30.0.{host}/24"))),
                    Replace(Address(device, ip_interface(f"fd00:30::{host}/64"))),
                ]
            )


def ip(ns: int, *words: str) -> str:
    with netns.entered(ns):
        return subprocess.run(["ip", *words], capture_output=True, text=True, check=True).stdout


def wait_until_neighbour(ns: int, address: str, mac: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while mac not in ip(ns, "neigh", "show", address):
        assert time.monotonic() < deadline, ip(ns, "neigh", "show")


@pytest.mark.stays_on_host
def test_the_host_is_refused() -> None:
    with pytest.raises(HostNamespaceError):
        announce.announce("lo", [LB])


@pytest.mark.parametrize("address", [LB, LB6], ids=str)
def test_neighbours_take_the_new_owner(address: Any, scratch: Path) -> None:
    far = netns.create(scratch / "far")
    wire(far)
    ip(far, "neigh", "replace", str(address), "lladdr", OLD, "dev", "b", "nud", "stale")
    announce.announce("a", [address])
    wait_until_neighbour(far, str(address), MAC_A)
    announce.announce("a", [address], mac=OLD)
    wait_until_neighbour(far, str(address), OLD)


def test_the_frames_on_the_wire(scratch: Path) -> None:
    far = netns.create(scratch / "far")
    wire(far)
    every = 0x0003  # ETH_P_ALL
    with netns.socket_in(far, socket.AF_PACKET, socket.SOCK_RAW, socket.htons(every)) as tap:
        tap.bind(("b", every))
        tap.settimeout(5)
        announce.announce("a", [LB, LB6])
        mac = bytes.fromhex(MAC_A.replace(":", ""))
        wanted = [*announce.frames(LB, mac), *announce.frames(LB6, mac)]
        while wanted:
            frame = tap.recv(2000)
            if frame in wanted:
                wanted.remove(frame)


def test_a_proxy_answers_for_another_address(scratch: Path) -> None:
    far = netns.create(scratch / "far")
    wire(far)
    sysctl.write(
        {
            "net/ipv4/conf/all/forwarding": 1,
            "net/ipv6/conf/all/forwarding": 1,
            "net/ipv6/conf/a/proxy_ndp": 1,
            "net/ipv4/neigh/a/proxy_delay": 0,
            "net/ipv6/neigh/a/proxy_delay": 0,
        }
    )
    with Rtnl() as rtnl:
        rtnl.apply(
            [
                Replace(Proxy("a", LB)),
                Replace(Proxy("a", LB6)),
                Replace(Route(destination=ip_network("172.30.0.200/32"), device="lo")),
                Replace(Route(destination=ip_network("fd00:30::200/128"), device="lo")),
            ]
        )
        assert set(rtnl.proxies()) == {Proxy("a", LB), Proxy("a", LB6)}
        assert rtnl.neighbours() == []
    for family, address in ((socket.AF_INET, LB), (socket.AF_INET6, LB6)):
        with netns.socket_in(far, family, socket.SOCK_DGRAM) as sock:
            deadline = time.monotonic() + DEADLINE_S
            while MAC_A not in ip(far, "neigh", "show", str(address)):
                assert time.monotonic() < deadline, ip(far, "neigh", "show")
                sock.sendto(b"x", (str(address), 9))


def test_the_fake_agrees() -> None:
    pair = AddLink(name="a", index=10, mac=MAC_A, kind=Veth(peer="b", mac=MAC_B))

    def scenario(effects: Effects) -> list[str]:
        outcome = []
        with effects.rtnl() as rtnl:
            for step in ([], [pair], [SetLink(device="a", up=True), SetLink(device="b", up=True)]):
                rtnl.apply(step)
                try:
                    effects.announce("a", [LB, LB6])
                    outcome.append("announced")
                except KernelError as e:
                    outcome.append(f"{errno.errorcode[e.errno]} {e}")
        return outcome

    fake = FakeKernel()
    assert scenario(fake) == scenario(KernelEffects())
    assert fake.namespace().announced == [("a", LB), ("a", LB6)]
