"""loadBalancerSourceRanges, as users write them: space-padded, overlapping, mixed families.

Source: k/k pkg/api/service/util.go (GetLoadBalancerSourceRanges), pkg/proxy/nftables/proxier.go.
"""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    collapse_addresses,
    ip_network,
)
from typing import Final

from podwire.objects.core import Service

ANNOTATION: Final = "service.beta.kubernetes.io/load-balancer-source-ranges"
Ranges = tuple[tuple[bytes, bytes], ...]


def source_ranges(
    service: Service,
    node_addresses: Sequence[IPv4Address | IPv6Address],
    vip: bytes,
    problems: list[str],
) -> Ranges | None:
    """The clients `vip` (packed) may have, as disjoint (first, last) pairs; None allows all.

    Where the node itself is allowed, so is the address: on balancers that put it on the node's
    interface, the node's own packets leave with it as their source.
    """
    texts = service.spec.load_balancer_source_ranges or (
        service.metadata.annotations.get(ANNOTATION, "").split(",")
    )
    texts = [text.strip() for text in texts if text.strip()]
    if not texts:
        return None
    networks = [n for n in _parse(texts, problems) if n.max_prefixlen == 8 * len(vip)]
    if any(address in network for network in networks for address in node_addresses):
        networks.append(IPv4Network(vip) if len(vip) == 4 else IPv6Network(vip))
    collapsed: list[IPv4Network | IPv6Network] = [
        *collapse_addresses(n for n in networks if isinstance(n, IPv4Network)),
        *collapse_addresses(n for n in networks if isinstance(n, IPv6Network)),
    ]
    return tuple((n[0].packed, n[-1].packed) for n in collapsed)


def _parse(texts: Sequence[str], problems: list[str]) -> list[IPv4Network | IPv6Network]:
    """The networks; what is none is said in `problems` and allows nobody."""
    networks: list[IPv4Network | IPv6Network] = []
    for text in texts:
        try:
            networks.append(ip_network(text, strict=False))
        except ValueError:
            problems.append(f"loadBalancerSourceRanges: {text!r} is not a CIDR")
    return networks
