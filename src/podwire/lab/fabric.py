"""The wires of a lab: one segment for the nodes, a router, and a host outside. Pure, then applied.

    lab netns                node-1 netns        router netns              outside netns
    podwire0 172.30.0.1/24   eth0 172.30.0.2     eth0 172.30.0.254         eth0 203.0.113.10
       |--- n2 ---------------'                  eth1 203.0.113.1 -----------'
       '--- router ------------------------------'

The nodes' default route is the router, so "outside" is what lies beyond it; a lab has no other way
out. MACs are derived from addresses, so captures read the same every time.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from podwire.cni.config import Address, Network
from podwire.cni.links import default_network, interface, mac_of
from podwire.kernel import netns, sysctl
from podwire.kernel.requests import (
    Add,
    AddLink,
    Bridge,
    Delete,
    DeleteLink,
    Neighbour,
    Replace,
    Request,
    Route,
    SetLink,
    Veth,
)
from podwire.kernel.requests import Address as LinkAddress
from podwire.kernel.rtnl import Rtnl
from podwire.lab.spec import (
    API_HOST_NUMBER,
    OUTSIDE,
    OUTSIDE_NETWORKS,
    ROUTER,
    LabSpec,
    NodeSpec,
)

BRIDGE = "podwire0"
UPLINK = "eth0"


def port_name(node: NodeSpec) -> str:
    """The node's port on the lab's bridge, named by the node's number."""
    return f"n{node.number}"


def bridge_requests(spec: LabSpec) -> list[Request]:
    addresses = spec.host_addresses(API_HOST_NUMBER)
    return [
        SetLink(device="lo", up=True),
        AddLink(name=BRIDGE, kind=Bridge(), mac=mac_of(addresses[0])),
        SetLink(device=BRIDGE, link_local=False),
        SetLink(device=BRIDGE, up=True),
        *_addresses(BRIDGE, addresses, spec.node_networks()),
        *_default_routes(spec.host_addresses(spec.router_number), BRIDGE),
    ]


def _addresses(
    device: str, addresses: Iterable[Address], networks: dict[int, Network]
) -> list[Request]:
    return [
        Add(LinkAddress(device, interface(address, networks[address.version].prefixlen)))
        for address in addresses
    ]


def _default_routes(gateways: Iterable[Address], device: str) -> list[Request]:
    return [
        Add(Route(destination=default_network(gw.version), via=gw, device=device))
        for gw in gateways
    ]


def port_requests(port: str, peer: str, mac: str, target: int) -> list[Request]:
    """A veth from the bridge into the namespace `target`."""
    return [
        AddLink(name=port, kind=Veth(peer=peer, mac=mac, netns=target), master=BRIDGE),
        SetLink(device=port, link_local=False),
        SetLink(device=port, up=True),
    ]


def host_requests(spec: LabSpec, node: NodeSpec) -> list[Request]:
    """A node, seen from inside: addresses on eth0 and the default route."""
    return [
        SetLink(device="lo", up=True),
        SetLink(device=UPLINK, up=True),
        *_addresses(UPLINK, spec.node_addresses(node), spec.node_networks()),
        *_default_routes(spec.host_addresses(spec.router_number), UPLINK),
    ]


def router_requests(spec: LabSpec, outside: int) -> list[Request]:
    inner = tuple(OUTSIDE_NETWORKS[family][1] for family in spec.families)
    return [
        SetLink(device="lo", up=True),
        SetLink(device=UPLINK, up=True),
        *_addresses(UPLINK, spec.host_addresses(spec.router_number), spec.node_networks()),
        AddLink(
            name="eth1",
            kind=Veth(peer=UPLINK, mac=mac_of(spec.outside_addresses[0]), netns=outside),
            mac=mac_of(inner[0]),
        ),
        SetLink(device="eth1", up=True),
        *_addresses("eth1", inner, OUTSIDE_NETWORKS),
        # Internal load balancers are for the segment: nothing from beyond is led to them.
        *(
            Add(Route(destination=network, type="blackhole"))
            for pool in spec.pools().internal
            for network in pool.networks()
        ),
    ]


def outside_requests(spec: LabSpec) -> list[Request]:
    gateways = tuple(OUTSIDE_NETWORKS[family][1] for family in spec.families)
    return [
        SetLink(device="lo", up=True),
        SetLink(device=UPLINK, up=True),
        *_addresses(UPLINK, spec.outside_addresses, OUTSIDE_NETWORKS),
        *_default_routes(gateways, UPLINK),
    ]


def neighbour_requests(device: str, hosts: Iterable[tuple[Address, ...]]) -> list[Request]:
    """Permanent entries for other hosts of the node network.

    Ordinary entries count machine-wide (gc_thresh3 is 1,024 for all namespaces together): whoever
    fills the table elsewhere would cut our nodes off from each other.
    """
    return [
        Replace(Neighbour(device, address, mac_of(addresses[0])))
        for addresses in hosts
        for address in addresses
    ]


class Fabric:
    """The applied wires; lives in the holder, in the lab's own namespaces."""

    def __init__(self, spec: LabSpec, pins: Path) -> None:
        self._pins = pins
        self._families = spec.families
        sysctl.write(self._sysctls())
        self._rtnl = Rtnl()
        self._hosts: dict[str, tuple[Address, ...]] = {}

    def _sysctls(self, *, forward: bool = False) -> dict[str, str | int]:
        """Of one namespace: no address detection delays, and no IPv6 where the lab has none."""
        values: dict[str, str | int] = {}
        if 6 in self._families:
            values["net.ipv6.conf.default.accept_dad"] = 0
            values["net.ipv6.conf.default.accept_ra"] = 0
        else:
            values["net.ipv6.conf.default.disable_ipv6"] = 1
        if forward:
            values["net.ipv4.ip_forward"] = 1
            if 6 in self._families:
                values["net.ipv6.conf.all.forwarding"] = 1
        return values

    def build(self, spec: LabSpec) -> None:
        self._rtnl.apply(bridge_requests(spec))
        self._hosts = {
            BRIDGE: spec.host_addresses(API_HOST_NUMBER),
            ROUTER: spec.host_addresses(spec.router_number),
        }
        self._rtnl.apply(neighbour_requests(BRIDGE, [self._hosts[ROUTER]]))
        with self._namespace(OUTSIDE) as outside:
            with self._namespace(ROUTER, forward=True) as router:
                mac = mac_of(spec.host_addresses(spec.router_number)[0])
                self._rtnl.apply(port_requests(ROUTER, UPLINK, mac, router))
                self._inside(router, router_requests(spec, outside))
                self._inside(router, neighbour_requests(UPLINK, [self._hosts[BRIDGE]]))
            self._inside(outside, outside_requests(spec))
        for node in spec.nodes:
            self.add_node(spec, node)

    def add_node(self, spec: LabSpec, node: NodeSpec) -> None:
        addresses = spec.node_addresses(node)
        with self._namespace(node.name) as fd:
            self._rtnl.apply(port_requests(port_name(node), UPLINK, mac_of(addresses[0]), fd))
            self._inside(fd, host_requests(spec, node))
            self._inside(fd, neighbour_requests(UPLINK, self._hosts.values()))
        self._tell_hosts(neighbour_requests(UPLINK, [addresses]))
        self._rtnl.apply(neighbour_requests(BRIDGE, [addresses]))
        self._hosts[node.name] = addresses

    def _tell_hosts(self, requests: list[Request]) -> None:
        """The same requests in every host of the segment but the lab's own namespace."""
        for name in self._hosts:
            if name != BRIDGE:
                fd = netns.open_pin(self._pins / name)
                try:
                    self._inside(fd, requests)
                finally:
                    os.close(fd)

    def remove_node(self, node: NodeSpec) -> None:
        self._rtnl.apply([DeleteLink(port_name(node), missing_ok=True)])
        addresses = self._hosts.pop(node.name, ())
        gone = [Delete(Neighbour(UPLINK, address, mac_of(addresses[0]))) for address in addresses]
        self._tell_hosts(list(gone))
        netns.delete(self._pins / node.name)

    @contextlib.contextmanager
    def _namespace(self, name: str, *, forward: bool = False) -> Iterator[int]:
        with netns.creating(self._pins / name) as fd:
            sysctl.write(self._sysctls(forward=forward))
        try:
            yield fd
        finally:
            os.close(fd)

    @staticmethod
    def _inside(fd: int, requests: list[Request]) -> None:
        with Rtnl.in_ns(fd) as rtnl:
            rtnl.apply(requests)
