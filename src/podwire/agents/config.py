"""What a node's agents are told when they start."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from podwire.services.model import Network
from podwire.services.pools import NO_POOLS, Pools

ServiceProxy: TypeAlias = Literal["nftables", "iptables", "ipvs"]


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
