"""The fake and the kernel do the same: each scenario runs on both and the states are compared.

A scenario ends in any number of namespaces; compared are links, addresses, routes, rules,
neighbours, fdb, and the errno of every step that failed. Left out is what the fake does not claim:
link-local addresses, the table "local", random MACs, carrier and numbers the kernel chose.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path
from typing import Any

import pytest

from podwire.errors import KernelError
from podwire.kernel.effects import Effects, KernelEffects, RouteNetlink
from podwire.kernel.fake import FakeKernel
from podwire.kernel.requests import (
    TABLE_LOCAL,
    Add,
    AddLink,
    Address,
    Bridge,
    Delete,
    DeleteLink,
    Fdb,
    Hop,
    Neighbour,
    Proxy,
    Replace,
    Request,
    Route,
    Rule,
    SetLink,
    SetPort,
    Veth,
    Vxlan,
)

MAC_A, MAC_B, MAC_C = (f"0a:58:00:00:00:0{n}" for n in (1, 2, 3))
PAIR = AddLink(name="a", index=10, mac=MAC_A, kind=Veth(peer="b", mac=MAC_B, index=11))
UP = (SetLink(device="a", up=True), SetLink(device="b", up=True))
ADDRESS = Address("a", ip_interface("172.30.0.2/24"))
ROUTE = Route(destination=ip_network("10.1.0.0/24"), via=ip_address("172.30.0.9"))
LO = SetLink(device=1, up=True)

ONE_NAMESPACE: dict[str, list[Request]] = {
    "loopback": [LO],
    "addresses": [LO, PAIR, Replace(ADDRESS), *UP],
    "veth": [PAIR, *UP, PAIR, AddLink(name="a", kind=Bridge(), exist_ok=True)],
    "index taken": [PAIR, AddLink(name="c", index=10, kind=Bridge())],
    "addresses before up": [PAIR, Replace(ADDRESS), *UP],
    "addresses after up": [PAIR, *UP, Replace(ADDRESS), Replace(ADDRESS), Add(ADDRESS)],
    "host address": [PAIR, *UP, Replace(Address("a", ip_interface("10.0.0.1/32")))],
    "no prefix route": [
        PAIR,
        *UP,
        Replace(Address("a", ip_interface("10.0.0.1/24"), prefix_route=False)),
    ],
    "address deleted": [PAIR, *UP, Replace(ADDRESS), Delete(ADDRESS), Delete(ADDRESS, False)],
    "v6 address": [PAIR, *UP, Replace(Address("a", ip_interface("fd00:30::2/64")))],
    "v6 host address": [PAIR, *UP, Replace(Address("a", ip_interface("fd00:30::2/128")))],
    "routes": [PAIR, *UP, Replace(ADDRESS), Replace(ROUTE), Replace(ROUTE), Add(ROUTE)],
    "route unreachable": [PAIR, *UP, Replace(ROUTE)],
    "onlink before any address": [
        PAIR,
        *UP,
        Replace(
            Route(
                destination=ip_network("10.2.0.0/24"),
                via=ip_address("169.254.1.1"),
                device="a",
                onlink=True,
            )
        ),
    ],
    "route onlink": [
        LO,
        PAIR,
        *UP,
        Replace(
            Route(
                destination=ip_network("0.0.0.0/0"),
                via=ip_address("169.254.1.1"),
                device="a",
                onlink=True,
            )
        ),
    ],
    "v6 route onlink": [
        PAIR,
        *UP,
        Replace(Address("a", ip_interface("fd00:1::/128"))),
        Replace(
            Route(
                destination=ip_network("fd00:2::/64"),
                via=ip_address("fd00:2::"),
                device="a",
                onlink=True,
            )
        ),
    ],
    "route to a link that is down": [
        PAIR,
        Replace(Route(destination=ip_network("10.1.0.0/24"), device="a")),
    ],
    "route to a device": [
        PAIR,
        *UP,
        Replace(Route(destination=ip_network("10.1.0.1/32"), device="a")),
        Replace(Route(destination=ip_network("fd00:1::1/128"), device="a")),
    ],
    "metrics and tables": [
        PAIR,
        *UP,
        Replace(Route(destination=ip_network("10.1.0.0/24"), device="a", metric=7)),
        Replace(Route(destination=ip_network("10.1.0.0/24"), device="a", metric=8)),
        Replace(Route(destination=ip_network("10.1.0.0/24"), device="a", table=1000)),
    ],
    "multipath": [
        PAIR,
        *UP,
        Replace(ADDRESS),
        Replace(
            Route(
                destination=ip_network("10.4.0.0/24"),
                hops=(
                    Hop(ip_address("172.30.0.3"), "a", 1),
                    Hop(ip_address("172.30.0.4"), "a", 3),
                ),
            )
        ),
    ],
    "blackhole": [Replace(Route(destination=ip_network("10.5.0.0/24"), type="blackhole"))],
    "route deleted": [
        PAIR,
        *UP,
        Replace(ADDRESS),
        Replace(ROUTE),
        Delete(ROUTE),
        Delete(ROUTE, missing_ok=False),
    ],
    "down takes routes": [
        PAIR,
        *UP,
        Replace(ADDRESS),
        Replace(Address("a", ip_interface("fd00:30::2/64"))),
        Replace(ROUTE),
        SetLink(device="a", up=False),
    ],
    "down and up": [
        PAIR,
        *UP,
        Replace(ADDRESS),
        Replace(ROUTE),
        SetLink(device="a", up=False),
        SetLink(device="a", up=True),
    ],
    "link deleted": [PAIR, *UP, Replace(ADDRESS), Replace(ROUTE), DeleteLink("b")],
    "missing link": [DeleteLink("x"), DeleteLink("x", False), SetLink(device="x", up=True)],
    "missing device": [
        Replace(Address("x", ADDRESS.address)),
        Delete(Neighbour("x", ip_address("10.0.0.1"), MAC_A)),
    ],
    "renamed": [PAIR, SetLink(device="a", name="c", mtu=1400), SetLink(device="c", up=True)],
    "properties": [PAIR, SetLink(device="a", mac=MAC_C, mtu=1400, alias="x y", promisc=True)],
    "neighbours": [
        PAIR,
        *UP,
        Replace(Neighbour("a", ip_address("10.0.0.1"), MAC_B)),
        Replace(Neighbour("a", ip_address("10.0.0.1"), MAC_C)),
        Replace(Neighbour("a", ip_address("fd00::1"), MAC_C)),
        Add(Neighbour("a", ip_address("fd00::1"), MAC_C)),
        Replace(Neighbour("a", ip_address("10.0.0.2"), MAC_C)),
        Delete(Neighbour("a", ip_address("10.0.0.2"), MAC_C)),
        Delete(Neighbour("a", ip_address("10.0.0.2"), MAC_C), False),
    ],
    "proxies": [
        PAIR,
        Replace(Proxy("a", ip_address("10.0.0.1"))),
        *UP,
        Add(Proxy("a", ip_address("10.0.0.1"))),
        Replace(Proxy("a", ip_address("10.0.0.2"))),
        Add(Proxy("a", ip_address("fd00::1"))),
        Add(Proxy("b", ip_address("fd00::1"))),
        Delete(Proxy("a", ip_address("10.0.0.2"))),
        Delete(Proxy("a", ip_address("10.0.0.2"))),
        Delete(Proxy("a", ip_address("10.0.0.2")), False),
        Replace(Proxy("x", ip_address("10.0.0.2"))),
    ],
    "proxies go down with their link": [
        PAIR,
        *UP,
        Replace(Proxy("a", ip_address("10.0.0.1"))),
        Replace(Proxy("b", ip_address("fd00::1"))),
        SetLink(device="b", up=False),
        DeleteLink("a"),
    ],
    "rules": [
        Replace(Rule(priority=100, table=1000, source=ip_network("10.244.0.0/16"))),
        Replace(Rule(priority=100, table=1000, source=ip_network("10.244.0.0/16"))),
        Add(Rule(priority=100, table=1000, source=ip_network("10.244.0.0/16"))),
        Add(Rule(priority=90, table=1000, mark=4, mask=4)),
        Delete(Rule(priority=90, table=1000, mark=4, mask=4)),
        Delete(Rule(priority=90, table=1000, mark=4, mask=4), False),
    ],
    "bridge": [
        AddLink(name="br0", kind=Bridge(), mac=MAC_C, up=True),
        PAIR,
        SetPort(device="a", hairpin=True),
        SetLink(device="a", master="br0"),
        SetPort(device="a", hairpin=True, isolated=True),
    ],
    "bridge left": [
        AddLink(name="br0", kind=Bridge(), mac=MAC_C, up=True),
        PAIR,
        SetLink(device="a", master="br0"),
        SetPort(device="a", hairpin=True, isolated=True),
        SetLink(device="a", master=0),
    ],
    "bridge deleted": [
        AddLink(name="br0", kind=Bridge(), mac=MAC_C, up=True),
        AddLink(name="p", kind=Veth(peer="q", mac=MAC_B), mac=MAC_A, master="br0"),
        DeleteLink("br0"),
    ],
    "vxlan": [
        AddLink(name="vx0", kind=Vxlan(vni=7, local=ip_address("10.0.0.1")), mac=MAC_A, mtu=1450),
        Add(Fdb("vx0", "00:00:00:00:00:00", ip_address("172.30.0.3"))),
        Add(Fdb("vx0", "00:00:00:00:00:00", ip_address("172.30.0.4"))),
        Replace(Fdb("vx0", MAC_B, ip_address("172.30.0.4"))),
        Replace(Fdb("vx0", MAC_B, ip_address("172.30.0.3"))),
        Delete(Fdb("vx0", "00:00:00:00:00:00", ip_address("172.30.0.3"))),
        Delete(Fdb("vx0", MAC_C, ip_address("172.30.0.3")), False),
    ],
}


def state(rtnl: RouteNetlink) -> dict[str, Any]:
    """What both claim to know, in a form that can be compared."""
    links = {
        name: (
            link.kind,
            link.mac,
            link.mtu,
            link.up,
            link.master,
            link.alias,
            link.promisc,
            link.hairpin,
            link.isolated,
        )
        for name, link in rtnl.links().items()
    }
    return {
        "links": links,
        "addresses": sorted(
            str(a) + str(a.prefix_route) for a in rtnl.addresses() if not a.address.is_link_local
        ),
        "routes": sorted(
            f"{r} {r.scope} {r.protocol} {r.mtu}"
            for r in rtnl.routes(None)
            if r.table != TABLE_LOCAL and not r.destination.is_link_local
        ),
        "rules": sorted(map(str, rtnl.rules())),
        "neighbours": sorted(map(str, rtnl.neighbours())),
        "proxies": sorted(map(str, rtnl.proxies())),
        "fdb": sorted(map(str, rtnl.fdb())),
    }


def one_by_one(rtnl: RouteNetlink, requests: list[Request]) -> list[str]:
    """Apply each alone and note the errno of those that fail."""
    failed = []
    for request in requests:
        try:
            rtnl.apply([request])
        except KernelError as e:
            failed.append(f"{request}: {errno.errorcode[e.errno]}")
    return failed


def both(scenario: Callable[[Effects], Any]) -> None:
    """Run on the fake, on the kernel, and compare."""
    pretended = scenario(FakeKernel())
    assert pretended == scenario(KernelEffects())


@pytest.mark.parametrize("name", ONE_NAMESPACE)
def test_one_namespace(name: str) -> None:
    def scenario(effects: Effects) -> Any:
        with effects.rtnl() as rtnl:
            return one_by_one(rtnl, ONE_NAMESPACE[name]), state(rtnl)

    both(scenario)


def test_pod_in_its_own_namespace(scratch: Path) -> None:
    gateway = ip_address("169.254.1.1")

    def scenario(effects: Effects) -> Any:
        pin = scratch / "pod"
        node_ns = effects.current()
        peer = Veth(peer="pod1", mac=MAC_B, netns=node_ns, index=70)
        with effects.creating(pin) as fd, effects.rtnl() as pod:
            pod.apply(
                [
                    LO,
                    AddLink(name="eth0", index=2, mac=MAC_A, up=True, kind=peer),
                    Replace(Address(2, ip_interface("10.244.0.7/32"))),
                    Replace(Neighbour(2, gateway, MAC_B)),
                    Replace(
                        Route(
                            destination=ip_network("0.0.0.0/0"),
                            via=gateway,
                            device=2,
                            onlink=True,
                        )
                    ),
                ]
            )
            inside = state(pod)
        with effects.rtnl() as node:
            node.apply(
                [
                    SetLink(device=70, up=True),
                    Replace(Route(destination=ip_network("10.244.0.7/32"), device=70)),
                    Replace(Neighbour(70, ip_address("10.244.0.7"), MAC_A)),
                ]
            )
            outside = state(node)
            node.apply([DeleteLink("pod1")])
            after = state(node)
        with effects.rtnl(fd) as pod:
            emptied = state(pod)
        effects.close(fd)
        effects.close(node_ns)
        effects.delete_pin(pin)
        effects.delete_pin(pin)
        with pytest.raises(KernelError) as caught:
            effects.open_pin(pin)
        return inside, outside, after, emptied, caught.value.errno

    both(scenario)


def test_moved_link(scratch: Path) -> None:
    def scenario(effects: Effects) -> Any:
        with effects.creating(scratch / "moved") as fd:
            pass
        with effects.rtnl() as here, effects.rtnl(fd) as there:
            failed = one_by_one(here, [PAIR, *UP, Replace(ADDRESS), SetLink(device="a", netns=fd)])
            result = failed, state(here), state(there), there.index("a")
        effects.close(fd)
        effects.delete_pin(scratch / "moved")
        return result

    both(scenario)


TRANSACTIONS = {
    "add twice": "add table ip podwire-x\nadd table ip podwire-x\n",
    "block": "table ip podwire-x {\n  chain c {\n    tcp dport 80 accept\n  }\n}\n",
    "delete": "add table inet podwire-x; delete table inet podwire-x",
    "delete missing": "delete table ip podwire-nope\n",
    "rule without table": "add rule ip podwire-nope c accept\n",
    "all or nothing": "add table ip podwire-x\nadd chain ip podwire-nope c\n",
    "create existing": "add table ip podwire-x\ncreate table ip podwire-x\n",
    "elements": (
        "table ip podwire-x {\n  set s { type ipv4_addr; }\n}\n"
        "add element ip podwire-x s { 10.0.0.1, 10.0.0.2 }\n"
    ),
    "comment": "# nothing\nadd table ip podwire-x # more\n",
}


@pytest.mark.parametrize("name", TRANSACTIONS)
def test_nft_transactions(name: str) -> None:
    def scenario(effects: Effects) -> Any:
        failed = 0
        try:
            effects.nft(TRANSACTIONS[name])
        except KernelError as e:
            failed = e.errno
        present = []
        for family in ("ip", "inet"):
            try:
                effects.list_table(family, "podwire-x")
            except KernelError as e:
                present.append(e.errno)
            else:
                present.append(0)
        return failed, present

    both(scenario)


def test_sysctls() -> None:
    def scenario(effects: Effects) -> Any:
        before = effects.read_sysctl("net.ipv4.ip_forward")
        effects.write_sysctls({"net.ipv4.ip_forward": 1})
        with pytest.raises(KernelError):
            effects.write_sysctls({"kernel.hostname": "x"})
        return before, effects.read_sysctl("net/ipv4/ip_forward")

    both(scenario)
