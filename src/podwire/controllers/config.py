"""What the controllers must be told: address ranges, the cluster's CA, and how long things take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, ip_network

from podwire.services.pools import NO_POOLS, Pools

Network = IPv4Network | IPv6Network


@dataclass(frozen=True)
class ControllerConfig:
    """`cluster_cidrs`: one per family, the first is a node's `podCIDR`. Durations in seconds."""

    cluster_cidrs: tuple[Network, ...] = (ip_network("10.244.0.0/16"),)
    node_masks: Mapping[int, int] = field(default_factory=lambda: {4: 24, 6: 64})
    """Prefix length of one node's range, by IP version."""
    service_cidrs: tuple[Network, ...] = (ip_network("10.96.0.0/16"),)
    load_balancer_pools: Pools = NO_POOLS
    """What Services of type LoadBalancer are given addresses from."""
    cluster_domain: str = "cluster.local"
    ca_text: str = ""
    """PEM; written to `kube-root-ca.crt` in every namespace when not empty."""
    node_grace_s: float = 6.0
    """A node whose lease was not renewed for this long is unreachable."""
    settle_s: float = 0.02
    """Pod changes within this time are one pass of a workload controller."""
    endpoint_batch_s: float = 0.005
    """Changes of a Service's pods within this time are one write of its EndpointSlices."""
    endpoints_delay_s: float = 0.05
    """How long core/v1 Endpoints, which only people still read, may lag behind the slices."""
    foreign_delay_s: float = 0.1
    """A slice somebody else changed is looked at after this long: two writers that do not agree
    write ten times a second, not as fast as they can."""
    programmed_services: int = 1000
    """Clusters with more Services than this get no `Programmed` conditions on them (0: never)."""
    programmed_policies: int = 1000
    """The same for the cluster's policies."""
    event_quiet_s: float = 1.0
    """Normal events are written once nothing new was said for this long."""
    terminated_pods: int = 12500
    """Finished pods kept before the oldest are collected (--terminated-pod-gc-threshold)."""
    write_limit: int = 64
    """Pod creations, deletions and bindings in flight, each."""
