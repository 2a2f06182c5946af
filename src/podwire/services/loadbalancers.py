"""Which Services have a load balancer of ours, and what users may ask of it. Pure.

The controller that gives addresses and the agents that announce them agree here.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address
from typing import Final

from podwire.objects.core import Node, Service
from podwire.services.pools import Address, Pools, Scope

CLASS: Final = "podwire.dev/l2"
FINALIZER: Final = "service.kubernetes.io/load-balancer-cleanup"
"""On a Service while it has a load balancer (KEP-980)."""

SCOPE_ANNOTATION: Final = "networking.podwire.dev/load-balancer"
ADDRESSES_ANNOTATION: Final = "networking.podwire.dev/load-balancer-ips"
SHARING_ANNOTATION: Final = "networking.podwire.dev/allow-shared-ip"

_EXCLUDED: Final = "node.kubernetes.io/exclude-from-external-load-balancers"
_LEAVING: Final = "ToBeDeletedByClusterAutoscaler"


def is_ours(service: Service) -> bool:
    """Whether its type and class ask for a load balancer of this cluster's (KEP-1959)."""
    spec = service.spec
    return spec.type == "LoadBalancer" and spec.load_balancer_class in (None, "", CLASS)


def wants(service: Service) -> bool:
    """Whether it is to have one: a Service that is being deleted is not."""
    return is_ours(service) and not service.deleting


def scope_of(service: Service) -> Scope:
    """The pool its annotation names; "" and "external" are the same."""
    text = service.metadata.annotations.get(SCOPE_ANNOTATION, "")
    return "internal" if text.strip().lower() == "internal" else "external"


def addresses_of(service: Service) -> list[Address]:
    """The addresses in its status that nodes serve."""
    found: list[Address] = []
    for ingress in service.status.load_balancer.ingress:
        # ipMode Proxy is what another implementation wrote: no node has that address (KEP-1860).
        if ingress.ip and ingress.ip_mode != "Proxy":
            try:
                found.append(ip_address(ingress.ip))
            except ValueError:
                continue
    return found


def vips_of(service: Service, pools: Pools) -> list[Address]:
    """The addresses nodes have to announce for it."""
    if not is_ours(service):
        return []
    return [address for address in addresses_of(service) if address in pools]


def carries_load_balancers(node: Node) -> bool:
    """Whether users let balanced traffic enter at the node.

    Source: k/k cloud-provider controllers/service (nodeIncludedPredicate, nodeUntaintedPredicate).
    """
    if _EXCLUDED in node.metadata.labels or node.deleting:
        return False
    return all(taint.key != _LEAVING for taint in node.spec.taints)


def families_of(service: Service) -> list[int]:
    """IP versions, the primary first."""
    if service.spec.ip_families:
        return [6 if family == "IPv6" else 4 for family in service.spec.ip_families]
    return _versions(service.spec.cluster_ips or [service.spec.cluster_ip])


def _versions(texts: Iterable[str]) -> list[int]:
    return [6 if ":" in text else 4 for text in texts if text and text != "None"]
