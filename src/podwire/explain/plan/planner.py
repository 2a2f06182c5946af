"""From a request to an `AddressPlan`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from podwire.errors import AddressError, UsageError
from podwire.explain.plan import clouds
from podwire.explain.plan.carve import AKS, COMMON, LAB, Network, Reserved, find_block, overlap
from podwire.explain.plan.clouds import MODES, Cloud, Instance
from podwire.explain.plan.document import AddressPlan, Capacity, FamilyPlan, Limit, Overlap

Family: TypeAlias = Literal[4, 6]
Overlay: TypeAlias = Literal["none", "ipip", "vxlan", "wireguard"]

_IPV6_NODE_PREFIX: Final = 64
_IPV6_SERVICE_PREFIX: Final = 112
# Of the lab's 172.30.0.0/24: the API server, the router, load balancers .190-.250, the ends.
_LAB_NODES: Final = 188
_DEFAULTS: Final[dict[tuple[int, str], str]] = {
    (4, "nodes"): "10.0.0.0",
    (4, "pods"): "10.244.0.0",
    (4, "services"): "10.96.0.0",
    (6, "nodes"): "fd00:30::",
    (6, "pods"): "fd00:244::",
    (6, "services"): "fd00:96::",
}


@dataclass(frozen=True)
class PlanRequest:
    """What the cluster must hold.

    `peak_nodes` 0 means `nodes`; `surge_nodes` come on top during upgrades. `mode` "" is the
    cloud's default, see `clouds.MODES`. CIDRs that are given are kept and judged, the others
    chosen. `node_prefix` fixes the share of pods' addresses per node (IPv4), 0 lets us choose.
    `avoid` are the VPC's, VPN's and peers' networks. `churn_per_s` is pods replaced per second on
    one node.
    """

    nodes: int = 3
    peak_nodes: int = 0
    surge_nodes: int = 0
    pods_per_node: int = clouds.DEFAULT_MAX_PODS
    services: int = 100
    families: tuple[Family, ...] = (4,)
    cloud: Cloud = "none"
    mode: str = ""
    overlay: Overlay = "none"
    node_cidrs: tuple[Network, ...] = ()
    pod_cidrs: tuple[Network, ...] = ()
    service_cidrs: tuple[Network, ...] = ()
    avoid: tuple[Network, ...] = ()
    node_prefix: int = 0
    instance: Instance | None = None
    underlay_mtu: int = 1500
    churn_per_s: float = 1 / 60

    @property
    def wanted_nodes(self) -> int:
        return max(self.nodes, self.peak_nodes) + self.surge_nodes

    @property
    def effective_mode(self) -> str:
        return self.mode or MODES[self.cloud][0]

    @property
    def pods_in_node_network(self) -> bool:
        return (self.cloud, self.effective_mode) in {
            ("eks", "secondary-ip"),
            ("eks", "prefix"),
            ("aks", "node-subnet"),
        }


def plan_addresses(request: PlanRequest) -> AddressPlan:
    """Choose what is not given and judge the whole.

    Limits that are hit are reported, not raised. Raises `UsageError` for a request that means
    nothing and `AddressError` when no free block of the needed size exists.
    """
    _check(request)
    families = tuple(_plan_family(request, family) for family in request.families)
    limits = tuple(limit for family in families for limit in _family_limits(request, family))
    limits += tuple(_cluster_limits(request))
    limits = tuple(dict.fromkeys(limits))
    first = min(limits, key=lambda limit: limit.capacity / max(1, limit.needed))
    capacity = _capacity(request, families, limits)
    overlaps = tuple(_overlaps(request, families))
    return AddressPlan(
        cloud=request.cloud,
        mode=request.effective_mode,
        families=families,
        capacity=capacity,
        limits=limits,
        first_limit=first.name,
        headroom_percent=first.headroom_percent,
        overlaps=overlaps,
        reuse_gap_s=_reuse_gap_s(request, families),
        mtu=_mtu(request),
        warnings=tuple(_warnings(request, families, limits, overlaps)),
    )


def _check(request: PlanRequest) -> None:
    for name in ("nodes", "pods_per_node"):
        if getattr(request, name) < 1:
            raise UsageError(f"plan: {name} is {getattr(request, name)}; at least 1 is needed")
    if min(request.services, request.surge_nodes, request.peak_nodes) < 0:
        raise UsageError("plan: services, surge_nodes and peak_nodes cannot be negative")
    if request.churn_per_s <= 0:
        raise UsageError("plan: churn_per_s must be above 0")
    if not request.families or len(set(request.families)) != len(request.families):
        raise UsageError("plan: families must be (4,), (6,), (4, 6) or (6, 4)")
    if request.effective_mode not in MODES[request.cloud]:
        modes = ", ".join(MODES[request.cloud])
        raise UsageError(f"plan: {request.cloud} has no mode {request.mode!r}; it has {modes}")
    if request.cloud == "eks" and request.instance is None:
        raise UsageError("plan: EKS needs an instance type, e.g. m5.large")
    if request.cloud in ("eks", "aks", "gke") and 6 in request.families:
        raise UsageError(f"plan: IPv6 on {request.cloud.upper()} is assigned by the cloud; plan 4")
    for given in (request.node_cidrs, request.pod_cidrs, request.service_cidrs):
        versions = [cidr.version for cidr in given]
        if len(set(versions)) != len(versions) or not set(versions) <= set(request.families):
            raise UsageError("plan: give at most one CIDR of each planned family and role")
    if request.node_prefix and not 8 <= request.node_prefix <= 30:
        raise UsageError(f"plan: /{request.node_prefix} per node is not within /8-/30")


# --- blocks -------------------------------------------------------------------------------------


def _plan_family(request: PlanRequest, family: Family) -> FamilyPlan:
    given = {
        role: next((cidr for cidr in cidrs if cidr.version == family), None)
        for role, cidrs in (
            ("nodes", request.node_cidrs),
            ("pods", request.pod_cidrs),
            ("services", request.service_cidrs),
        )
    }
    node_prefix = _node_prefix(request, family, given["pods"])
    taken = [reserved.cidr for reserved in _reserved(request)]
    taken += [*request.avoid, *(cidr for cidr in given.values() if cidr is not None)]
    chosen: dict[str, Network] = {}
    for role in ("nodes", "services", "pods"):
        if role == "pods" and request.pods_in_node_network:
            continue
        cidr = given[role] or _choose(request, family, role, node_prefix, taken)
        chosen[role] = cidr
        taken.append(cidr)
    return FamilyPlan(
        family=family,
        nodes=str(chosen["nodes"]),
        pods=str(chosen["pods"]) if "pods" in chosen else "",
        services=str(chosen["services"]),
        node_prefix=node_prefix if _has_node_cidrs(request) else _whole(chosen.get("pods")),
        addresses_per_node=_addresses_per_node(request, family, node_prefix),
    )


def _whole(cidr: Network | None) -> int:
    """Nodes without a share of their own take from the whole block."""
    return cidr.prefixlen if cidr else 0


def _choose(
    request: PlanRequest, family: Family, role: str, node_prefix: int, taken: Sequence[Network]
) -> Network:
    if role == "nodes" and request.cloud in ("none", "kubenet"):
        lab = next(r.cidr for r in LAB if r.cidr.version == family)
        clash = any(overlap(lab, other) for other in (*request.avoid, *_given(request)))
        if request.wanted_nodes <= _LAB_NODES and not clash:
            return lab
    least = _least_prefix(request, family, role, node_prefix)
    if family == 6:
        usual = {"nodes": 64, "pods": 56, "services": _IPV6_SERVICE_PREFIX}[role]
    else:
        usual = {"nodes": 24, "pods": 16, "services": 16}[role]
    if least < 0:
        raise AddressError(f"{role}: the request needs more than all of IPv{family}")
    return find_block(family, min(usual, least), taken, _DEFAULTS[family, role], least)


def _given(request: PlanRequest) -> tuple[Network, ...]:
    return (*request.node_cidrs, *request.pod_cidrs, *request.service_cidrs)


def _least_prefix(request: PlanRequest, family: Family, role: str, node_prefix: int) -> int:
    """The longest prefix that holds the request."""
    nodes = request.wanted_nodes
    if role == "services":
        bits = max(3, clouds.bits_for(request.services + 2))
        return (128 if family == 6 else 32) - min(bits, clouds.MAX_SERVICE_BITS)
    if role == "pods" and _has_node_cidrs(request):
        bits = clouds.bits_for(nodes)
        return node_prefix - (min(bits, clouds.MAX_IPV6_SUBNET_BITS) if family == 6 else bits)
    if family == 6:
        return 64
    if role == "pods":
        needed = nodes * _addresses_per_node(request, family, node_prefix)
    elif request.pods_in_node_network:
        needed = nodes * _subnet_addresses_per_node(request)
    else:
        needed = nodes
    return 32 - clouds.bits_for(needed + clouds.CLOUD_RESERVED)


def _has_node_cidrs(request: PlanRequest) -> bool:
    """Whether every node has its own share of the pods' block (`spec.podCIDR`)."""
    return request.cloud in ("none", "kubenet", "gke") or (
        request.cloud == "aks" and request.effective_mode in ("kubenet", "overlay")
    )


def _node_prefix(request: PlanRequest, family: Family, pods: Network | None) -> int:
    """The share of one node: /24 by habit, longer only where the given block is too small."""
    if family == 6:
        return _IPV6_NODE_PREFIX
    if request.node_prefix:
        return request.node_prefix
    if request.cloud == "gke":
        return clouds.gke_pod_prefix(min(request.pods_per_node, clouds.GKE_MAX_PODS))
    if request.cloud == "aks":
        return 24  # fixed by Azure for kubenet and overlay
    least = next(
        (p for p in range(30, 7, -1) if _per_prefix(request, p) >= request.pods_per_node), 8
    )
    prefix = min(24, least)
    if pods is not None:
        fitting = pods.prefixlen + clouds.bits_for(request.wanted_nodes)
        prefix = min(max(prefix, fitting), least)
    return max(prefix, pods.prefixlen if pods else 0)


def _per_prefix(request: PlanRequest, prefix: int) -> int:
    routed = request.cloud == "none"
    return clouds.routed_addresses(prefix) if routed else clouds.host_local_addresses(prefix)


def _addresses_per_node(request: PlanRequest, family: Family, node_prefix: int) -> int:
    if family == 6:
        return 2**63 - 1  # JSON numbers end there; nobody counts a /64
    if request.cloud == "gke":
        return clouds.routed_addresses(node_prefix)
    if request.cloud == "eks":
        return _subnet_addresses_per_node(request)
    if request.cloud == "aks" and request.effective_mode == "static-block":
        return clouds.aks_static_block_addresses(request.pods_per_node)
    if request.pods_in_node_network:
        return request.pods_per_node
    return _per_prefix(request, node_prefix)


def _subnet_addresses_per_node(request: PlanRequest) -> int:
    """What a node takes from the cloud's subnet, pods included."""
    if request.cloud == "eks" and request.instance is not None:
        return clouds.eks_addresses_per_node(
            request.instance, request.effective_mode, request.pods_per_node
        )
    return 1 + request.pods_per_node


# --- limits -------------------------------------------------------------------------------------


def _family_limits(request: PlanRequest, family: FamilyPlan) -> Iterator[Limit]:
    name, nodes = f"IPv{family.family}", request.wanted_nodes
    blocks = family.blocks
    if _has_node_cidrs(request):
        share = max(0, family.node_prefix - blocks["pods"].prefixlen)
        if family.family == 6 and share > clouds.MAX_IPV6_SUBNET_BITS:
            yield Limit(
                name="IPv6 bits of node CIDRs",
                capacity=clouds.MAX_IPV6_SUBNET_BITS,
                needed=share,
                source="k/k nodeipam cidrset: node CIDR size is too big",
            )
        yield Limit(
            name=f"{name} node CIDRs",
            capacity=2**share,
            needed=nodes,
            source=f"2^({family.node_prefix} - {blocks['pods'].prefixlen}), k/k nodeipam cidrset",
        )
    elif "pods" in blocks:
        per_node = max(1, family.addresses_per_node)
        yield Limit(
            name=f"{name} pod subnet",
            capacity=clouds.cloud_usable(blocks["pods"].prefixlen) // per_node,
            needed=nodes,
            source=f"(2^(32 - {blocks['pods'].prefixlen}) - 5) / {per_node} addresses per node",
        )
    yield Limit(
        name=f"{name} node addresses",
        capacity=_node_addresses(request, blocks["nodes"]),
        needed=nodes,
        source=f"usable addresses of {blocks['nodes']}",
    )
    if family.family == 4:
        yield Limit(
            name=f"{name} addresses per node",
            capacity=_pods_by_addresses(request, family),
            needed=request.pods_per_node,
            source=_density_source(request, family),
        )
    yield Limit(
        name=f"{name} services",
        capacity=_service_addresses(blocks["services"]),
        needed=request.services,
        source=f"2^bits - 2 of {blocks['services']}",
    )


def _node_addresses(request: PlanRequest, cidr: Network) -> int:
    if any(cidr == reserved.cidr for reserved in LAB):
        return _LAB_NODES
    if cidr.version == 6:
        return int(min(2**31, cidr.num_addresses))
    if request.pods_in_node_network:
        return clouds.cloud_usable(cidr.prefixlen) // _subnet_addresses_per_node(request)
    if request.cloud in ("eks", "aks", "gke"):
        # Google keeps four addresses of a subnet, the others five.
        return max(0, clouds.cloud_usable(cidr.prefixlen) + (request.cloud == "gke"))
    return int(max(0, cidr.num_addresses - 3))


def _pods_by_addresses(request: PlanRequest, family: FamilyPlan) -> int:
    if request.cloud == "gke":
        # Half of the range: an address must not come back at once.
        return min(clouds.GKE_MAX_PODS, 1 << (31 - family.node_prefix))
    if request.cloud == "eks" and request.instance is not None:
        return clouds.eks_max_pods(request.instance, request.effective_mode)
    if request.cloud == "aks":
        return clouds.AKS_MAX_PODS
    return family.addresses_per_node


def _density_source(request: PlanRequest, family: FamilyPlan) -> str:
    return {
        "none": f"2^(32 - {family.node_prefix}), routed pods",
        "kubenet": f"2^(32 - {family.node_prefix}) - 3, host-local",
        "gke": "half of the node's range, at most 256 (Google Cloud)",
        "eks": "amazon-eks-ami max-pods-calculator.sh",
        "aks": "250 pods per node (Microsoft Learn)",
    }[request.cloud]


def _service_addresses(cidr: Network) -> int:
    return int(max(0, cidr.num_addresses - 2))


def _cluster_limits(request: PlanRequest) -> Iterator[Limit]:
    nodes, thresholds = request.wanted_nodes, "sig-scalability thresholds.md"
    if request.cloud == "aks" and request.effective_mode == "kubenet":
        yield Limit(
            name="AKS routes of a route table",
            capacity=clouds.AKS_UDR_ROUTES,
            needed=nodes,
            source="Azure limits: 400 user-defined routes",
        )
    for name, capacity, needed in (
        ("tested pods per node", clouds.DEFAULT_MAX_PODS, request.pods_per_node),
        ("tested nodes", clouds.TESTED_NODES, nodes),
        ("tested pods", clouds.TESTED_PODS, nodes * request.pods_per_node),
        ("tested services", clouds.TESTED_SERVICES, request.services),
    ):
        yield Limit(name=name, capacity=capacity, needed=needed, source=thresholds, soft=True)


_NODE_LIMITS: Final = ("node CIDRs", "pod subnet", "node addresses", "AKS routes of a route table")


def _capacity(
    request: PlanRequest, families: Sequence[FamilyPlan], limits: Sequence[Limit]
) -> Capacity:
    nodes = min(limit.capacity for limit in limits if limit.name.endswith(_NODE_LIMITS))
    density = [lim.capacity for lim in limits if lim.name.endswith("addresses per node")]
    # A node runs what it was asked to run, or less; more is not planned.
    per_node = min([*density, request.pods_per_node])
    services = min(_service_addresses(family.blocks["services"]) for family in families)
    return Capacity(nodes=nodes, pods_per_node=per_node, pods=nodes * per_node, services=services)


# --- judgement ----------------------------------------------------------------------------------


def _reserved(request: PlanRequest) -> tuple[Reserved, ...]:
    return (*LAB, *COMMON, *(AKS if request.cloud == "aks" else ()))


def _overlaps(request: PlanRequest, families: Sequence[FamilyPlan]) -> Iterator[Overlap]:
    planned = [(role, cidr) for f in families for role, cidr in f.blocks.items()]
    others = [*_reserved(request), *(Reserved(c, "to be avoided", True) for c in request.avoid)]
    for number, (role, cidr) in enumerate(planned):
        for other in others:
            own = role == "nodes" and other in LAB and cidr == other.cidr
            if overlap(cidr, other.cidr) and not own and not _is_lab(role, cidr, other):
                yield _overlap(role, cidr, other)
        for other_role, other_cidr in planned[number + 1 :]:
            if overlap(cidr, other_cidr):
                yield _overlap(role, cidr, Reserved(other_cidr, f"the plan's {other_role}", True))


def _is_lab(role: str, cidr: Network, other: Reserved) -> bool:
    """The lab's nodes lie in Docker's space, but in a network of their own."""
    return role == "nodes" and any(cidr == lab.cidr for lab in LAB) and other not in AKS


def _overlap(role: str, cidr: Network, other: Reserved) -> Overlap:
    return Overlap(
        cidr=str(cidr), role=role, other=str(other.cidr), owner=other.owner, fatal=other.fatal
    )


def _reuse_gap_s(request: PlanRequest, families: Sequence[FamilyPlan]) -> float:
    """(capacity - live) / churn: how long an address rests before it is given out again.

    host-local and GKE's factor two exist to lengthen it: peers with stale caches must not reach
    the next pod.
    """
    spare = min(f.addresses_per_node for f in families) - request.pods_per_node
    return float(min(max(0, spare) / request.churn_per_s, 10 * 365 * 86400))


def _mtu(request: PlanRequest) -> int:
    """The underlay's less the encapsulation, by the underlay's (the primary) family."""
    return request.underlay_mtu - clouds.OVERHEAD[request.overlay][request.families[0]]


def _warnings(
    request: PlanRequest,
    families: Sequence[FamilyPlan],
    limits: Sequence[Limit],
    overlaps: Sequence[Overlap],
) -> Iterator[str]:
    for limit in limits:
        if limit.exceeded:
            kind = "is larger than what Kubernetes tests" if limit.soft else "does not fit"
            yield (
                f"{limit.name}: {limit.needed:,} {kind} ({limit.capacity:,}, {limit.source}); "
                f"{_advice(limit)}"
            )
    for found in overlaps:
        what = "does not work" if found.fatal else "breaks where both are used on one machine"
        yield (
            f"{found.role} {found.cidr} overlaps {found.other} ({found.owner}): {what}; "
            "choose another block"
        )
    if request.cloud == "gke" and request.pods_per_node > 32:
        yield (
            "GKE: most nodes run 30 pods or fewer and burn a /24 each; 32 pods per node take a /26 "
            "and fit four times the nodes"
        )
    if request.cloud == "eks" and request.effective_mode.endswith("prefix"):
        yield "EKS prefixes must be free /28s: reserve a subnet CIDR block for them in advance"
    if request.cloud == "aks" and not request.surge_nodes:
        yield "AKS upgrades add a node: plan with surge_nodes of at least 1"
    if _mtu(request) < 1280:
        yield f"MTU {_mtu(request)} is below IPv6's minimum of 1280 (RFC 8200)"
    if _reuse_gap_s(request, families) < 60:
        yield "addresses are reused within a minute: give each node a larger share of addresses"


def _advice(limit: Limit) -> str:
    if limit.soft:
        return "measure before relying on it"
    if limit.name.endswith("node CIDRs"):
        return "take a larger pods' CIDR or a smaller share per node"
    if limit.name.endswith("addresses per node"):
        return "run fewer pods per node, or give nodes more addresses"
    if limit.name.endswith("services"):
        return "take a larger services' CIDR (it cannot be changed later without pain)"
    if limit.name.startswith("AKS routes"):
        return "use the overlay mode"
    return "take a larger CIDR for the nodes or their pods"
