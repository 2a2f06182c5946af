"""The wiring of one pod as kernel requests: pure.

routed   pod eth0 IP/32, default route to a gateway that exists only as a permanent neighbour entry
         (169.254.1.1, fe80::1); on the node one host route and one permanent neighbour per pod.
kubenet  pod eth0 IP/24 on bridge cbr0, default route to the bridge's own .1; permanent neighbours
         between the pod and everything else on the bridge.

    pod netns                         node netns
    eth0 10.244.1.5/32  <---veth--->  vethXXXXXXXX   10.244.1.5 dev vethXXXXXXXX
    default via 169.254.1.1           (forwarding)   neigh 10.244.1.5 permanent

Permanent entries are not an optimisation: ordinary ones count machine-wide against gc_thresh3
(1,024, not settable in a namespace), and a few hundred pods would lose each other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
)

from podwire.cni.config import Address, HairpinMode, Network
from podwire.kernel.requests import (
    Add,
    AddLink,
    Neighbour,
    Replace,
    Request,
    Route,
    SetLink,
    SetPort,
    Veth,
)
from podwire.kernel.requests import Address as LinkAddress

POD_INTERFACE = "eth0"
BRIDGE = "cbr0"
ROUTED_INTERFACES = "veth*"
"""The node's ends of routed pods, see `host_interface`."""
# What podwire's routes carry as rtm_protocol, so that an agent knows its own after a restart.
ROUTE_PROTOCOL = 112
GATEWAY: dict[int, Address] = {4: IPv4Address("169.254.1.1"), 6: IPv6Address("fe80::1")}
# The node's end of every routed veth; never on a shared segment, so one MAC serves them all.
ROUTED_HOST_MAC = "ee:ee:ee:ee:ee:ee"
# lo is 1; a fixed index spares the pod's batch a look-up by name.
_LO, _POD_INDEX = 1, 10


def host_interface(sandbox_id: str) -> str:
    """The node's end of a pod's veth: `veth` and 8 hex digits of the sandbox (IFNAMSIZ is 16)."""
    return "veth" + hashlib.sha1(sandbox_id.encode(), usedforsecurity=False).hexdigest()[:8]


def mac_of(address: Address) -> str:
    """A locally administered MAC: 0a:58 and the address's last four bytes, as kubenet does."""
    return "0a:58:" + ":".join(f"{byte:02x}" for byte in address.packed[-4:])


def host_network(address: Address) -> Network:
    return IPv4Network(address) if isinstance(address, IPv4Address) else IPv6Network(address)


def interface(address: Address, prefix: int) -> IPv4Interface | IPv6Interface:
    if isinstance(address, IPv4Address):
        return IPv4Interface((address, prefix))
    return IPv6Interface((address, prefix))


def default_network(version: int) -> Network:
    return IPv4Network("0.0.0.0/0") if version == 4 else IPv6Network("::/0")


@dataclass(frozen=True)
class PodLink:
    """What is needed to wire one pod. `index` is the node end's interface index, unique there."""

    sandbox_id: str
    addresses: tuple[Address, ...]
    mtu: int
    index: int
    node_addresses: tuple[Address, ...] = ()

    @property
    def host_interface(self) -> str:
        return host_interface(self.sandbox_id)

    @property
    def mac(self) -> str:
        return mac_of(self.addresses[0])

    @property
    def has_ipv6(self) -> bool:
        return any(address.version == 6 for address in self.addresses)


def _veth(link: PodLink, host_mac: str | None, netns: int, master: str | None) -> AddLink:
    far = Veth(
        peer=POD_INTERFACE,
        mac=link.mac,
        mtu=link.mtu,
        netns=netns,
        index=_POD_INDEX,
    )
    return AddLink(
        name=link.host_interface,
        kind=far,
        index=link.index,
        mac=host_mac,
        mtu=link.mtu,
        up=True,
        master=master,
    )


def routed_node_requests(link: PodLink, netns: int) -> list[Request]:
    """The node's half; also creates the pair, so it goes first."""
    requests: list[Request] = [_veth(link, ROUTED_HOST_MAC, netns, None)]
    sources = {address.version: address for address in reversed(link.node_addresses)}
    for address in link.addresses:
        requests += [
            Replace(
                Route(
                    destination=host_network(address),
                    device=link.index,
                    source=sources.get(address.version),
                    protocol=ROUTE_PROTOCOL,
                )
            ),
            Replace(Neighbour(link.index, address, link.mac)),
        ]
    return requests


def _links_up(link: PodLink) -> list[Request]:
    requests: list[Request] = [SetLink(device=_LO, up=True)]
    if not link.has_ipv6:
        # No fe80::, hence no DAD and no MLD. Not by the disable_ipv6 sysctl: a look-up below
        # /proc/sys/net walks one entry per namespace (they hash alike), and writing it spins on the
        # RTNL lock (addrconf_disable_ipv6): pods would cost more the more there are.
        requests.append(SetLink(device=_POD_INDEX, link_local=False))
    return [*requests, SetLink(device=_POD_INDEX, up=True)]


def routed_pod_requests(link: PodLink) -> list[Request]:
    requests: list[Request] = _links_up(link)
    for address in link.addresses:
        gateway = GATEWAY[address.version]
        requests += [
            Add(LinkAddress(_POD_INDEX, interface(address, address.max_prefixlen))),
            Add(
                Route(
                    destination=default_network(address.version),
                    via=gateway,
                    device=_POD_INDEX,
                    onlink=True,
                )
            ),
            Add(Neighbour(_POD_INDEX, gateway, ROUTED_HOST_MAC)),
        ]
    return requests


@dataclass(frozen=True)
class BridgePorts:
    """cbr0 as a pod sees it: its pod CIDRs, MAC and index, and how pods reach themselves."""

    cidrs: tuple[Network, ...]
    mac: str
    index: int
    hairpin_mode: HairpinMode

    def gateway(self, version: int) -> Address:
        return next(cidr[1] for cidr in self.cidrs if cidr.version == version)

    def prefix(self, version: int) -> int:
        return next(cidr.prefixlen for cidr in self.cidrs if cidr.version == version)


def kubenet_node_requests(link: PodLink, bridge: BridgePorts, netns: int) -> list[Request]:
    requests: list[Request] = [_veth(link, None, netns, BRIDGE)]
    if bridge.hairpin_mode == "hairpin-veth":
        requests.append(SetPort(device=link.index, hairpin=True))
    requests += [Replace(Neighbour(bridge.index, address, link.mac)) for address in link.addresses]
    return requests


def kubenet_pod_requests(
    link: PodLink, bridge: BridgePorts, neighbours: Iterable[Sequence[Address]]
) -> list[Request]:
    """The pod's half; `neighbours` are the addresses of the pods on the bridge already."""
    requests: list[Request] = _links_up(link)
    for address in link.addresses:
        gateway = bridge.gateway(address.version)
        requests += [
            Add(LinkAddress(_POD_INDEX, interface(address, bridge.prefix(address.version)))),
            Add(
                Route(
                    destination=default_network(address.version),
                    via=gateway,
                    device=_POD_INDEX,
                )
            ),
            Add(Neighbour(_POD_INDEX, gateway, bridge.mac)),
        ]
    for addresses in neighbours:
        requests += neighbour_requests(addresses)
    return requests


def neighbour_requests(addresses: Sequence[Address]) -> list[Replace]:
    """What every pod on a bridge is told about another one."""
    mac = mac_of(addresses[0])
    return [Replace(Neighbour(_POD_INDEX, address, mac)) for address in addresses]
