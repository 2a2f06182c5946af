"""How a cluster's pod network is laid out; the same for every node, given at `podwire up`."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Literal

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
Mode = Literal["routed", "kubenet"]
Overlay = Literal["none", "vxlan"]
HairpinMode = Literal["hairpin-veth", "promiscuous-bridge", "none"]

# Encapsulation overhead in bytes: outer IP + UDP + VXLAN + inner Ethernet (RFC 7348 section 5).
VXLAN_OVERHEAD = {4: 50, 6: 70}


@dataclass(frozen=True)
class NetworkConfig:
    """`cluster_cidrs` has one network per family, the first family is the primary one.

    `non_masquerade_cidrs` are destinations pods reach with their own address; everything else is
    masqueraded when it leaves the node (kubenet's flag; the default is the cluster CIDRs for
    routed and kubenet's 10.0.0.0/8 for kubenet). `mtu` 0 means: derive from the node's uplink.
    `filter_bridged`: what a bridge switches meets the hooks of what is routed, as policies want it.
    """

    mode: Mode = "routed"
    overlay: Overlay = "none"
    cluster_cidrs: tuple[Network, ...] = (IPv4Network("10.244.0.0/16"),)
    non_masquerade_cidrs: tuple[Network, ...] = ()
    hairpin_mode: HairpinMode = "hairpin-veth"
    mtu: int = 0
    uplink: str = "eth0"
    filter_bridged: bool = False

    @property
    def families(self) -> tuple[int, ...]:
        return tuple(cidr.version for cidr in self.cluster_cidrs)
