"""How many addresses a node takes, by cloud and mode.

Every function is one published formula; tests hold them against the published figures.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from podwire.errors import UsageError

Cloud: TypeAlias = Literal["none", "kubenet", "gke", "eks", "aks"]

MODES: Final[dict[Cloud, tuple[str, ...]]] = {
    "none": ("routed",),
    "kubenet": ("kubenet",),
    "gke": ("vpc-native",),
    "eks": ("secondary-ip", "prefix", "custom", "custom-prefix"),
    "aks": ("overlay", "kubenet", "node-subnet", "static-block"),
}

# kubernetes/community:sig-scalability/configs-and-limits/thresholds.md
TESTED_NODES: Final = 5000
TESTED_PODS: Final = 150_000
TESTED_SERVICES: Final = 10_000
DEFAULT_MAX_PODS: Final = 110
# kubelet accepts more; 250 is what clouds support at most.
AKS_MAX_PODS: Final = 250
AKS_UDR_ROUTES: Final = 400
GKE_MAX_PODS: Final = 256
# k/k:pkg/controller/nodeipam/ipam/cidrset: "node CIDR size is too big" beyond.
MAX_IPV6_SUBNET_BITS: Final = 16
# k/k:pkg/controlplane: the widest Service range accepted is 20 bits.
MAX_SERVICE_BITS: Final = 20
PREFIX_ADDRESSES: Final = 16
# AWS and Azure keep five addresses of every subnet.
CLOUD_RESERVED: Final = 5


@dataclass(frozen=True)
class Instance:
    """What an EC2 instance type allows (AWS: "IP addresses per network interface")."""

    enis: int
    ips_per_eni: int
    vcpus: int = 2


_SIZES: Final[dict[str, Instance]] = {
    "large": Instance(3, 10, 2),
    "xlarge": Instance(4, 15, 4),
    "2xlarge": Instance(4, 15, 8),
    "4xlarge": Instance(8, 30, 16),
    "8xlarge": Instance(8, 30, 32),
    "12xlarge": Instance(8, 30, 48),
    "16xlarge": Instance(15, 50, 64),
    "24xlarge": Instance(15, 50, 96),
}
INSTANCES: Final[dict[str, Instance]] = {
    "t3.nano": Instance(2, 2, 2),
    "t3.micro": Instance(2, 2, 2),
    "t3.small": Instance(3, 4, 2),
    "t3.medium": Instance(3, 6, 2),
    "t3.large": Instance(3, 12, 2),
    "t3.xlarge": Instance(4, 15, 4),
    "t3.2xlarge": Instance(4, 15, 8),
    "c5.9xlarge": Instance(8, 30, 36),
    "c5.18xlarge": Instance(15, 50, 72),
    **{f"{f}.{size}": i for f in ("m5", "m6i", "r5", "r6i") for size, i in _SIZES.items()},
    **{f"c5.{size}": _SIZES[size] for size in ("large", "xlarge", "2xlarge", "4xlarge")},
}


def find_instance(name: str) -> Instance:
    try:
        return INSTANCES[name]
    except KeyError:
        raise UsageError(
            f"instance type {name!r}: not in podwire's table ({', '.join(sorted(INSTANCES))}); "
            "give its number of network interfaces and addresses per interface"
        ) from None


def bits_for(count: int) -> int:
    """The bits that number `count` things."""
    return max(0, math.ceil(math.log2(count))) if count > 1 else 0


def host_local_addresses(prefix: int) -> int:
    """2^(32-m) - 3: network, gateway and broadcast are not for pods.

    Source: containernetworking/plugins:plugins/ipam/host-local/backend/allocator.
    """
    return max(0, (1 << (32 - prefix)) - 3)


def routed_addresses(prefix: int) -> int:
    """All of them: the gateway is a link-local address and no segment has a broadcast."""
    return 1 << (32 - prefix)


def gke_pod_prefix(max_pods: int) -> int:
    """32 - ceil(log2(2 * maxPods)): 110 -> /24, 64 -> /25, 32 -> /26, 16 -> /27, 8 -> /28.

    Source: Google Cloud, "Configure maximum Pods per node".
    """
    return 32 - bits_for(2 * max(1, max_pods))


def eks_max_pods(instance: Instance, mode: str) -> int:
    """ENI * (IPs - 1) + 2, sixteen addresses per slot with prefixes, one ENI less when custom.

    Capped at 110 up to 30 vCPUs, at 250 above.
    Source: awslabs/amazon-eks-ami:templates/al2/runtime/max-pods-calculator.sh.
    """
    enis = instance.enis - 1 if mode.startswith("custom") else instance.enis
    per_slot = PREFIX_ADDRESSES if mode.endswith("prefix") else 1
    uncapped = enis * (instance.ips_per_eni - 1) * per_slot + 2
    return min(uncapped, 110 if instance.vcpus <= 30 else 250)


def eks_addresses_per_node(instance: Instance, mode: str, pods: int) -> int:
    """Addresses a busy node takes from the subnet of its pods.

    Secondary addresses: every ENI's, all warm. Prefixes: the pods' /28s, one warm, and each ENI's
    own address. Source: aws/amazon-vpc-cni-k8s:docs/eni-and-ip-target.md.
    """
    enis = instance.enis - 1 if mode.startswith("custom") else instance.enis
    if mode.endswith("prefix"):
        return (math.ceil(pods / PREFIX_ADDRESSES) + 1) * PREFIX_ADDRESSES + enis
    return enis * instance.ips_per_eni


def cloud_usable(prefix: int) -> int:
    """2^(32-m) - 5 (AWS and Azure subnets)."""
    return max(0, (1 << (32 - prefix)) - CLOUD_RESERVED)


def aks_node_subnet_nodes(prefix: int, max_pods: int) -> int:
    """floor(usable / (1 + maxPods)): a node and its pods come from one subnet; /24, 30 -> 8.

    Source: Microsoft Learn, "Plan IP addressing for your cluster".
    """
    return cloud_usable(prefix) // (1 + max_pods)


def aks_static_block_addresses(max_pods: int) -> int:
    """ceil(maxPods / 16) blocks of /28 per node (Azure CNI with static block allocation)."""
    return math.ceil(max_pods / PREFIX_ADDRESSES) * PREFIX_ADDRESSES


OVERHEAD: Final[dict[str, dict[int, int]]] = {
    "none": {4: 0, 6: 0},
    "ipip": {4: 20, 6: 40},
    "vxlan": {4: 50, 6: 70},
    "wireguard": {4: 60, 6: 80},
}
"""Bytes of encapsulation by the family of the underlay (RFC 2003, RFC 7348, WireGuard)."""
