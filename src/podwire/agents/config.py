"""What a node's agents are told when they start."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from podwire.services.model import Network
from podwire.services.pools import NO_POOLS, Address, Pools

ServiceProxy: TypeAlias = Literal["nftables", "iptables", "ipvs"]
NetworkPolicyMode: TypeAlias = Literal["enforce", "none"]
DeniedFlows: TypeAlias = Literal["cut", "keep"]


@dataclass(frozen=True)
class BgpConfig:
    """The routers nodes speak BGP to, one address per family."""

    peers: tuple[Address, ...]
    local_as: int = 64512
    peer_as: int = 64513
    hold_time_s: int = 3
    """The least BGP knows (RFC 4271 section 4.2): a dead machine's routes are gone after it."""


@dataclass(frozen=True)
class ServiceConfig:
    """How a node serves Services; the same for every node of a cluster."""

    families: tuple[int, ...] = (4,)
    cluster_cidrs: tuple[Network, ...] = ()
    service_cidrs: tuple[Network, ...] = ()
    backend: ServiceProxy = "nftables"
    external_ips: bool = False
    pools: Pools = NO_POOLS
    """Load balancer addresses that the nodes announce."""
    bgp: BgpConfig | None = None
    """How they do so; without it, by ARP and neighbour discovery."""


@dataclass(frozen=True)
class PolicyConfig:
    """How a node enforces policies; the same for every node of a cluster.

    `guarded` names the interfaces behind which only admitted pods may be (nft's pattern, `veth*`):
    any other source there is dropped. "" where somebody else wires pods.
    """

    mode: NetworkPolicyMode = "enforce"
    families: tuple[int, ...] = (4,)
    denied_flows: DeniedFlows = "cut"
    guarded: str = ""
