"""What a lab is to be: the answer to `podwire up`'s flags, kept in `lab.json`.

Checked as a whole before anything is built, so that a CIDR too small or overlapping is a sentence
on the terminal and not a broken network.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)
from typing import Literal

import msgspec

from podwire.agents.config import (
    BgpConfig,
    DeniedFlows,
    NetworkPolicyMode,
    PolicyConfig,
    ServiceConfig,
    ServiceProxy,
)
from podwire.cni.config import (
    VXLAN_OVERHEAD,
    Address,
    HairpinMode,
    Mode,
    Network,
    NetworkConfig,
    Overlay,
)
from podwire.cni.links import BRIDGE, ROUTED_INTERFACES
from podwire.errors import AddressError, UsageError
from podwire.lab.paths import check_name, is_name
from podwire.services.pools import Pools, make_pools

IpFamily = Literal["ipv4", "ipv6", "dual"]
Announcing = Literal["l2", "bgp"]
ProbeDelays = Literal["standin", "manifest"]
Dns = Literal["podwire", "none"]

DEFAULT_NAME = "podwire"
# The address plan of design documents, tests and examples; one per lab, labs are isolated.
NODE_NETWORKS: dict[int, Network] = {
    4: IPv4Network("172.30.0.0/24"),
    6: IPv6Network("fd00:30::/64"),
}
OUTSIDE_NETWORKS: dict[int, Network] = {
    4: IPv4Network("203.0.113.0/24"),
    6: IPv6Network("2001:db8:113::/64"),
}
POD_NETWORKS: dict[int, Network] = {
    4: IPv4Network("10.244.0.0/16"),
    6: IPv6Network("fd00:244::/56"),
}
SERVICE_NETWORKS: dict[int, Network] = {
    4: IPv4Network("10.96.0.0/16"),
    6: IPv6Network("fd00:96::/112"),
}
NODE_MASKS = {4: 24, 6: 64}
# Written with the digits 10 in either family: ...:10 is not the tenth address of an IPv6 network.
OUTSIDE_ADDRESSES: dict[int, Address] = {
    4: IPv4Address("203.0.113.10"),
    6: IPv6Address("2001:db8:113::10"),
}
# Hosts of the fabric that are no nodes, and so no node's name.
ROUTER, OUTSIDE = "router", "outside"
_LABEL_VALUE = re.compile(r"([a-zA-Z0-9]([-a-zA-Z0-9_.]{0,61}[a-zA-Z0-9])?)?")
API_HOST_NUMBER = 1
# The router is .254, or the last address of a smaller node network.
_ROUTER_HOST_NUMBER = 254
API_PORT = 6443
# Where a node's own cache answers its pods: what everybody's node-local-dns uses, and the same
# digits in IPv6.
NODE_LOCAL_DNS: dict[int, Address] = {
    4: IPv4Address("169.254.20.10"),
    6: IPv6Address("fd00:169:254:20::10"),
}
# Of 256 addresses of a node network: nodes end where the load balancers' begin. In an IPv6 network
# the same digits are hexadecimal (fd00:30::200 to ::250).
_INTERNAL_NUMBERS = (190, 199)
_EXTERNAL_NUMBERS = (200, 250)
_POOL_UNIT = 256
# A node network smaller than this has no room for load balancers.
_POOL_LEAST = 64
MAX_NODES = 188
# VNI-wide limit of upstream's cidrset: node mask minus cluster mask.
_MAX_IPV6_MASK_DIFF = 16
# The kernel's default for veth, of which the nodes' segment is made.
_SEGMENT_MTU = 1500


class NodeSpec(msgspec.Struct, frozen=True):
    """`number` makes the node's address (172.30.0.NUMBER) and never changes."""

    name: str
    number: int
    zone: str = ""


class PublishSpec(msgspec.Struct, frozen=True):
    """A port of the host relayed into the lab: `127.0.0.1:8080` -> `shop/web:80`."""

    host: str
    port: int
    target: str


class LabSpec(msgspec.Struct, frozen=True, kw_only=True):
    name: str = DEFAULT_NAME
    nodes: tuple[NodeSpec, ...] = ()
    network: Mode = "routed"
    overlay: Overlay = "none"
    hairpin_mode: HairpinMode = "hairpin-veth"
    ip_family: IpFamily = "ipv4"
    service_proxy: ServiceProxy = "nftables"
    network_policy: NetworkPolicyMode = "enforce"
    denied_flows: DeniedFlows = "cut"
    mtu: int = 0
    pod_cidrs: tuple[str, ...] = ()
    service_cidrs: tuple[str, ...] = ()
    node_cidrs: tuple[str, ...] = ()
    node_mask: int = 0
    non_masquerade_cidrs: tuple[str, ...] = ()
    load_balancer_pools: tuple[str, ...] = ()
    internal_load_balancer_pools: tuple[str, ...] = ()
    load_balancer: Announcing = "l2"
    publish: tuple[PublishSpec, ...] = ()
    probe_delays: ProbeDelays = "standin"
    dns: Dns = "podwire"
    node_local_dns: bool = False
    outside_zone: str = ""
    max_pods: int = 1000
    state_dir: str = ""

    @property
    def families(self) -> tuple[int, ...]:
        return {"ipv4": (4,), "ipv6": (6,), "dual": (4, 6)}[self.ip_family]

    def pod_networks(self) -> tuple[Network, ...]:
        return _networks(self.pod_cidrs, POD_NETWORKS, self.families, "pod CIDR")

    def service_networks(self) -> tuple[Network, ...]:
        return _networks(self.service_cidrs, SERVICE_NETWORKS, self.families, "service CIDR")

    def node_networks(self) -> dict[int, Network]:
        """The nodes' segment, by family."""
        chosen = _networks(self.node_cidrs, NODE_NETWORKS, self.families, "node CIDR")
        return {network.version: network for network in chosen}

    @property
    def router_number(self) -> int:
        return min(
            _ROUTER_HOST_NUMBER, *(n.num_addresses - 2 for n in self.node_networks().values())
        )

    def node_masks(self) -> dict[int, int]:
        masks = dict(NODE_MASKS)
        if self.node_mask:
            masks[self.families[0]] = self.node_mask
        return masks

    def network_config(self) -> NetworkConfig:
        return NetworkConfig(
            mode=self.network,
            overlay=self.overlay,
            cluster_cidrs=self.pod_networks(),
            non_masquerade_cidrs=tuple(ip_network(c) for c in self.non_masquerade_cidrs),
            hairpin_mode=self.hairpin_mode,
            mtu=self.mtu,
            filter_bridged=self.network_policy == "enforce",
        )

    def service_config(self) -> ServiceConfig:
        return ServiceConfig(
            families=self.families,
            cluster_cidrs=self.pod_networks(),
            service_cidrs=self.service_networks(),
            backend=self.service_proxy,
            pools=self.pools(),
            bgp=self.bgp_config() if self.load_balancer == "bgp" else None,
        )

    def policy_config(self) -> PolicyConfig:
        guarded = BRIDGE if self.network == "kubenet" else ROUTED_INTERFACES
        return PolicyConfig(self.network_policy, self.families, self.denied_flows, guarded)

    def bgp_config(self) -> BgpConfig:
        """The lab's router is every node's peer."""
        return BgpConfig(self.host_addresses(self.router_number))

    def pools(self) -> Pools:
        """Load balancer addresses; of each pool, ranges given replace the defaults."""
        networks = self.node_networks().values()
        external = self.load_balancer_pools or tuple(
            text for n in networks for text in _pool(n, _EXTERNAL_NUMBERS)
        )
        internal = self.internal_load_balancer_pools or tuple(
            text for n in networks for text in _pool(n, _INTERNAL_NUMBERS)
        )
        return make_pools(external, internal)

    def node_addresses(self, node: NodeSpec) -> tuple[Address, ...]:
        return self.host_addresses(node.number)

    def host_addresses(self, number: int) -> tuple[Address, ...]:
        """Addresses on the node network, of a node, the API server (1) or the router."""
        networks = self.node_networks()
        return tuple(networks[family][number] for family in self.families)

    @property
    def api_address(self) -> Address:
        return self.host_addresses(API_HOST_NUMBER)[0]

    @property
    def cluster_dns(self) -> tuple[Address, ...]:
        return tuple(network[10] for network in self.service_networks())

    @property
    def outside_addresses(self) -> tuple[Address, ...]:
        """Of the host beyond the router, which is also everybody's name server for other names."""
        return tuple(OUTSIDE_ADDRESSES[family] for family in self.families)

    @property
    def pod_dns(self) -> tuple[Address, ...]:
        """The name servers of pods: the node's own cache where there is one."""
        if self.node_local_dns:
            return tuple(NODE_LOCAL_DNS[family] for family in self.families)
        return self.cluster_dns

    def node(self, name: str) -> NodeSpec | None:
        return next((node for node in self.nodes if node.name == name), None)


def _networks(
    given: tuple[str, ...], defaults: dict[int, Network], families: tuple[int, ...], what: str
) -> tuple[Network, ...]:
    chosen = dict(defaults)
    for text in given:
        try:
            network = ip_network(text)
        except ValueError as error:
            raise AddressError(f"{what} {text!r}: {error}") from error
        if network.version not in families:
            raise AddressError(
                f"{what} {text}: IPv{network.version}, but the lab's family is "
                f"{'/'.join(f'IPv{f}' for f in families)}; see --ip-family"
            )
        chosen[network.version] = network
    return tuple(chosen[family] for family in families)


def _pool(network: Network, numbers: tuple[int, int]) -> tuple[str, ...]:
    """The numbers' range in a node network; a smaller network has it in proportion."""
    size = network.num_addresses
    if size < _POOL_LEAST:
        return ()
    first, last = numbers
    if size < _POOL_UNIT:
        first, last = first * size // _POOL_UNIT, (last + 1) * size // _POOL_UNIT - 1
        last = min(last, size - 3)  # before the router and the broadcast address
    elif network.version == 6 and size > 0x1000:
        first, last = int(str(first), 16), int(str(last), 16)
    return (f"{network[first]}-{network[last]}",)


def make_nodes(count: int, zones: tuple[str, ...]) -> tuple[NodeSpec, ...]:
    """`node-1` ... `node-N`, dealt to the zones in turn."""
    if not 1 <= count <= MAX_NODES:
        raise UsageError(f"--nodes {count}: a lab has between 1 and {MAX_NODES} nodes")
    names = itertools.cycle(zones or ("zone-1",))
    return tuple(
        NodeSpec(f"node-{i}", i + API_HOST_NUMBER, zone)
        for i, zone in zip(range(1, count + 1), names, strict=False)
    )


def extend_nodes(spec: LabSpec, count: int, zones: tuple[str, ...]) -> tuple[NodeSpec, ...]:
    """The lab's nodes, and new ones up to `count`; fewer is refused, because nodes hold pods."""
    if count < len(spec.nodes):
        raise UsageError(
            f"lab {spec.name}: has {len(spec.nodes)} nodes; "
            "remove one with `kubectl delete node` or `podwire node remove`"
        )
    if not spec.nodes:
        return make_nodes(count, zones)
    nodes = spec
    while len(nodes.nodes) < count:
        zone = zones[len(nodes.nodes) % len(zones)] if zones else ""
        nodes = msgspec.structs.replace(nodes, nodes=(*nodes.nodes, next_node(nodes, "", zone)))
    return nodes.nodes


def next_node(spec: LabSpec, name: str, zone: str) -> NodeSpec:
    """A node to add: the lowest free number, and a name derived from it unless given."""
    if spec.node(name) is not None:
        raise UsageError(f"node {name}: exists already in lab {spec.name}")
    used = {node.number for node in spec.nodes}
    free = next((n for n in range(2, MAX_NODES + 2) if n not in used), None)
    if free is None:
        raise UsageError(f"lab {spec.name}: already has {MAX_NODES} nodes")
    node = NodeSpec(name or f"node-{free - API_HOST_NUMBER}", free, zone or "zone-1")
    _check_node(node)
    return node


def parse_publish(text: str) -> PublishSpec:
    """`[HOST:]PORT:TARGET` with TARGET `[NAMESPACE/]POD:PORT` or `svc/[NAMESPACE/]NAME:PORT`."""
    match = re.fullmatch(
        r"(?:(?P<host>[\d.]+|\[[\da-fA-F:]+\]):)?(?P<port>\d+):(?P<target>.+:\w+)", text
    )
    if match is None:
        raise UsageError(
            f"--publish {text}: expected [HOST:]PORT:TARGET, e.g. 8080:shop/web:80 "
            "or 8080:svc/shop/web:80"
        )
    host = (match["host"] or "127.0.0.1").strip("[]")
    port = int(match["port"])
    if not 0 <= port <= 65535:
        raise UsageError(f"--publish {text}: port {port} is not between 0 and 65535")
    try:
        loopback = ip_address(host).is_loopback
    except ValueError as error:
        raise UsageError(f"--publish {text}: {error}") from error
    if not loopback:
        raise UsageError(
            f"--publish {text}: {host} is not a loopback address; labs stay on the host"
        )
    return PublishSpec(host, port, match["target"])


def check(spec: LabSpec) -> None:
    """Raise `UsageError` or `AddressError` for a lab that cannot be."""
    check_name(spec.name)
    names = [node.name for node in spec.nodes]
    if len(set(names)) != len(names):
        raise UsageError(f"lab {spec.name}: two nodes have one name")
    for node in spec.nodes:
        _check_node(node)
    if spec.max_pods < 1:
        raise UsageError(f"--max-pods {spec.max_pods}: a node holds at least one pod")
    for text in spec.non_masquerade_cidrs:
        try:
            ip_network(text)
        except ValueError as error:
            raise AddressError(f"--non-masquerade-cidr {text}: {error}") from error
    _check_sizes(spec)
    _check_overlaps(spec)
    _check_mtu(spec)


def _check_node(node: NodeSpec) -> None:
    """A name the API server refuses would leave a machine whose agent can never register."""
    if not is_name(node.name):
        raise UsageError(
            f"node name {node.name!r}: up to 32 of a-z, 0-9 and '-', "
            "not starting or ending with '-'"
        )
    if node.name in (ROUTER, OUTSIDE):
        raise UsageError(f"node name {node.name!r}: is a host of the lab's own")
    if not _LABEL_VALUE.fullmatch(node.zone):
        raise UsageError(
            f"zone {node.zone!r}: becomes a label; up to 63 letters, digits, '-', '_' and '.', "
            "starting and ending with a letter or digit"
        )


def _check_mtu(spec: LabSpec) -> None:
    """What an IP stack must take at least, and what the nodes' segment can carry at most."""
    least = 1280 if 6 in spec.families else 576
    overhead = VXLAN_OVERHEAD[spec.families[0]] if spec.overlay == "vxlan" else 0
    most = _SEGMENT_MTU - overhead
    if spec.mtu and not least <= spec.mtu <= most:
        raise UsageError(
            f"--mtu {spec.mtu}: pods of this {spec.ip_family} lab"
            f"{' with vxlan' if overhead else ''} have an MTU between {least} and {most}"
        )


def _check_sizes(spec: LabSpec) -> None:
    for network in spec.pod_networks():
        mask = spec.node_masks()[network.version]
        if mask > network.max_prefixlen - 2:
            raise AddressError(f"node mask /{mask}: no room for a pod on a node")
        if mask < network.prefixlen:
            raise AddressError(
                f"pod CIDR {network}: smaller than the /{mask} every node needs; "
                f"give a wider --pod-cidr or a longer --node-mask"
            )
        if network.version == 6 and mask - network.prefixlen > _MAX_IPV6_MASK_DIFF:
            raise AddressError(
                f"pod CIDR {network}: node CIDR size is too big: /{mask} minus "
                f"/{network.prefixlen} is more than {_MAX_IPV6_MASK_DIFF}"
            )
        room = 2 ** (mask - network.prefixlen)
        if room < len(spec.nodes):
            raise AddressError(
                f"pod CIDR {network}: too small for {len(spec.nodes)} nodes, "
                f"holds {room} of /{mask}"
            )
    last = max((node.number for node in spec.nodes), default=0)
    if last >= spec.router_number:
        raise AddressError(
            f"node CIDR {', '.join(map(str, spec.node_networks().values()))}: "
            f"too small for {len(spec.nodes)} nodes, the API server and the router"
        )
    _check_pools(spec)
    for network in spec.service_networks():
        if network.num_addresses < 16:
            raise AddressError(
                f"service CIDR {network}: too small, at least 16 addresses are needed"
            )


def _check_pools(spec: LabSpec) -> None:
    """Pools lie in the node network, where alone they can be announced, and hold no host of it."""
    pools = spec.pools()
    networks = spec.node_networks()
    hosts = [
        *((f"node {node.name}", spec.node_addresses(node)) for node in spec.nodes),
        ("the API server", spec.host_addresses(API_HOST_NUMBER)),
        ("the router", spec.host_addresses(spec.router_number)),
    ]
    for pool in (*pools.external, *pools.internal):
        network = networks.get(pool.version)
        if network is None or pool.first not in network or pool.last not in network:
            raise AddressError(
                f"load balancer pool {pool}: not in the node network "
                f"{', '.join(map(str, networks.values()))}"
            )
        for name, addresses in hosts:
            if any(address in pool for address in addresses):
                raise AddressError(f"load balancer pool {pool}: holds the address of {name}")


def _check_overlaps(spec: LabSpec) -> None:
    for (left, what), (right, other) in itertools.combinations(_named_networks(spec), 2):
        if left.version == right.version and left.overlaps(right):
            raise AddressError(f"{what} {left} overlaps the {other} {right}")


def _named_networks(spec: LabSpec) -> Iterator[tuple[Network, str]]:
    for network in spec.pod_networks():
        yield network, "pod CIDR"
    for network in spec.service_networks():
        yield network, "service CIDR"
    for family in spec.families:
        yield spec.node_networks()[family], "node network"
        yield OUTSIDE_NETWORKS[family], "outside network"
