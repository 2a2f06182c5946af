"""What one node needs so that its pods reach every other pod and the outside: pure.

    Nodes (from the API) -> compile_node_network -> NodeNetwork -> plan_node_network -> requests

plain routes   podCIDR via nodeIP on the uplink; no overhead, needs nodes on one segment
vxlan          podCIDR via the peer's endpoint (its podCIDR's .0) on device vxlan.1, which knows
               every endpoint by permanent neighbour and fdb entries (RFC 7348, learning off)

An endpoint's MAC is derived from its node's address, so peers need not tell each other.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Network, ip_address, ip_network

from podwire.cni.config import VXLAN_OVERHEAD, Address, Network, NetworkConfig
from podwire.cni.links import BRIDGE, ROUTE_PROTOCOL, host_network, interface, mac_of
from podwire.kernel import hooks
from podwire.kernel.requests import (
    Add,
    AddLink,
    Bridge,
    Delete,
    Entry,
    Fdb,
    Link,
    Neighbour,
    Replace,
    Request,
    Route,
    SetLink,
    Vxlan,
)
from podwire.kernel.requests import Address as LinkAddress
from podwire.objects.core import Node

VXLAN_DEVICE = "vxlan.1"
VXLAN_VNI = 1
VXLAN_PORT = 8472
# kubenet_linux.go: the smallest usable MTU, and the fallback where no interface qualifies.
_MIN_MTU, _FALLBACK_MTU = 576, 1460
_KUBENET_NON_MASQUERADE = IPv4Network("10.0.0.0/8")
# kubenet's way to say "never masquerade".
_EVERYTHING = IPv4Network("0.0.0.0/0")


@dataclass(frozen=True)
class Peer:
    """A node as networking sees it."""

    name: str
    addresses: tuple[Address, ...]
    pod_cidrs: tuple[Network, ...]

    @staticmethod
    def of(node: Node) -> Peer:
        cidrs = node.spec.pod_cidrs or ([node.spec.pod_cidr] if node.spec.pod_cidr else [])
        return Peer(
            node.metadata.name,
            tuple(ip_address(ip) for ip in node.internal_ips),
            tuple(ip_network(cidr) for cidr in cidrs),
        )

    def address(self, version: int) -> Address | None:
        return next((a for a in self.addresses if a.version == version), None)


@dataclass(frozen=True)
class NodeNetwork:
    """The desired state of one node. `links` are made once, `entries` follow the cluster."""

    mtu: int
    links: tuple[Request, ...] = ()
    entries: frozenset[Entry] = frozenset()
    sysctls: tuple[tuple[str, str], ...] = ()
    nft: str = ""


def kubenet_mtu(links: Iterable[Link]) -> int:
    """kubenet's rule: the smallest MTU of at least 576 among up, non-loopback interfaces.

    podwire's own devices (veth ends, cbr0, vxlan) follow the result and so do not take part.
    """
    sizes = [
        link.mtu
        for link in links
        if link.up
        and link.mtu >= _MIN_MTU
        and link.name not in ("lo", BRIDGE, VXLAN_DEVICE)
        and not link.name.startswith("veth")
    ]
    return min(sizes, default=_FALLBACK_MTU)


def pod_mtu(config: NetworkConfig, uplink_mtu: int, underlay_version: int) -> int:
    """The MTU of pods: the uplink's, less what the overlay adds."""
    if config.mtu:
        return config.mtu
    return uplink_mtu - (VXLAN_OVERHEAD[underlay_version] if config.overlay == "vxlan" else 0)


def compile_node_network(
    node: Peer, peers: Iterable[Peer], config: NetworkConfig, uplink_mtu: int
) -> NodeNetwork:
    """The network of `node` given all nodes; peers without addresses or podCIDRs yet are left out.

    Without a podCIDR of its own the node has no pod network at all.
    """
    others = [p for p in peers if p.name != node.name and p.addresses and p.pod_cidrs]
    if not node.pod_cidrs or not node.addresses:
        return NodeNetwork(mtu=uplink_mtu)
    mtu = pod_mtu(config, uplink_mtu, node.addresses[0].version)
    links: list[Request] = []
    entries: set[Entry] = set()
    if config.mode == "kubenet":
        links += _bridge(node, config, mtu)
    if config.overlay == "vxlan":
        links += _vxlan_device(node, config, mtu)
        for peer in others:
            entries |= _vxlan_entries(node, peer)
    else:
        for peer in others:
            entries |= _plain_routes(peer, config.uplink)
    return NodeNetwork(
        mtu=mtu,
        links=tuple(links),
        entries=frozenset(entries),
        sysctls=_sysctls(config),
        nft=render_nft(node, others, config),
    )


def _plain_routes(peer: Peer, uplink: str) -> set[Entry]:
    return {
        Route(destination=cidr, via=gateway, device=uplink, protocol=ROUTE_PROTOCOL)
        for cidr in peer.pod_cidrs
        if (gateway := peer.address(cidr.version)) is not None
    }


def _vxlan_device(node: Peer, config: NetworkConfig, mtu: int) -> list[Request]:
    local = node.addresses[0]
    device = Vxlan(vni=VXLAN_VNI, port=VXLAN_PORT, local=local, device=config.uplink)
    return [
        AddLink(name=VXLAN_DEVICE, kind=device, mac=_endpoint_mac(node), mtu=mtu, exist_ok=True),
        SetLink(device=VXLAN_DEVICE, link_local=False),
        SetLink(device=VXLAN_DEVICE, up=True),
        *(
            Replace(LinkAddress(VXLAN_DEVICE, interface(cidr[0], cidr.max_prefixlen)))
            for cidr in node.pod_cidrs
        ),
    ]


def _endpoint_mac(node: Peer) -> str:
    """The MAC of a node's VXLAN endpoint; 0e rather than 0a keeps it apart from pods' MACs."""
    return "0e" + mac_of(node.addresses[0])[2:]


def _vxlan_entries(node: Peer, peer: Peer) -> set[Entry]:
    remote = peer.address(node.addresses[0].version)
    if remote is None:
        return set()
    mac = _endpoint_mac(peer)
    entries: set[Entry] = {Fdb(VXLAN_DEVICE, mac, remote)}
    for cidr in peer.pod_cidrs:
        endpoint = cidr[0]
        entries.add(Neighbour(VXLAN_DEVICE, endpoint, mac))
        entries.add(
            Route(
                destination=cidr,
                via=endpoint,
                device=VXLAN_DEVICE,
                onlink=True,
                protocol=ROUTE_PROTOCOL,
            )
        )
    return entries


def _bridge(node: Peer, config: NetworkConfig, mtu: int) -> list[Request]:
    """cbr0 with the gateway addresses; kubenet_linux.go leaves neighbour tables to ARP, we do not.

    `promisc` belongs to hairpin mode promiscuous-bridge.
    """
    return [
        AddLink(
            name=BRIDGE, kind=Bridge(), mac=mac_of(node.pod_cidrs[0][1]), mtu=mtu, exist_ok=True
        ),
        SetLink(device=BRIDGE, link_local=False),
        SetLink(
            device=BRIDGE, up=True, mtu=mtu, promisc=config.hairpin_mode == "promiscuous-bridge"
        ),
        *(
            Replace(LinkAddress(BRIDGE, interface(cidr[1], cidr.prefixlen)))
            for cidr in node.pod_cidrs
        ),
    ]


def _sysctls(config: NetworkConfig) -> tuple[tuple[str, str], ...]:
    """Forwarding, and no IPv6 chatter (DAD, MLD, link-local) on links that do not speak it."""
    values = [("net.ipv4.ip_forward", "1")]
    if 6 in config.families:
        values += [
            ("net.ipv6.conf.all.forwarding", "1"),
            ("net.ipv6.conf.default.accept_dad", "0"),
            # EUI-64 link-local addresses are not needed on veth ends: neighbours are permanent.
            ("net.ipv6.conf.default.addr_gen_mode", "1"),
        ]
    else:
        values.append(("net.ipv6.conf.default.disable_ipv6", "1"))
    if config.mode == "kubenet" and config.filter_bridged:
        names = {4: "bridge-nf-call-iptables", 6: "bridge-nf-call-ip6tables"}
        values += [(f"net.bridge.{names[family]}", "1") for family in config.families]
    return tuple(values)


# --- masquerade ---------------------------------------------------------------------------------


def render_nft(node: Peer, others: Iterable[Peer], config: NetworkConfig) -> str:
    """The node's nft text: masquerade of traffic to the outside, and kubenet's bridge rules.

    routed   what leaves from this node's pods to anything but pods and nodes is masqueraded
    kubenet  whatever leaves the node (also its own traffic) to anything but the non-masquerade
             CIDR is, as upstream's `! --dst-type LOCAL ! -d CIDR -j MASQUERADE`; so pods meet
             nodes outside 10.0.0.0/8 with their node's address
    """
    kubenet = config.mode == "kubenet"
    rules = _kubenet_rules(config) if kubenet else _routed_rules(node, others, config)
    hook = hooks.MASQUERADE
    lines = [
        f"table {hook.family} {hook.table} {{",
        f"\tchain {hook.chain} {{",
        f"\t\t{hook.render()}",
        *(f"\t\t{rule}" for rule in rules),
        "\t}",
        "}",
    ]
    if kubenet and config.hairpin_mode == "promiscuous-bridge":
        lines += _dedup_table(node)
    return "\n".join(lines) + "\n"


def _routed_rules(node: Peer, others: Iterable[Peer], config: NetworkConfig) -> list[str]:
    keep = config.non_masquerade_cidrs or config.cluster_cidrs
    nodes = sorted(
        {address for peer in (node, *others) for address in peer.addresses},
        key=lambda address: (address.version, address),
    )
    rules = []
    for cidr in node.pod_cidrs:
        word = "ip" if cidr.version == 4 else "ip6"
        spared = [str(c) for c in keep if c.version == cidr.version]
        spared += [str(host_network(a)) for a in nodes if a.version == cidr.version]
        rules.append(
            f"{word} saddr {cidr} {word} daddr != {{ {', '.join(spared)} }} masquerade fully-random"
        )
    return rules


def _kubenet_rules(config: NetworkConfig) -> list[str]:
    spared = config.non_masquerade_cidrs or (
        _KUBENET_NON_MASQUERADE,
        *(cidr for cidr in config.cluster_cidrs if cidr.version == 6),
    )
    if _EVERYTHING in spared:
        return []
    rules = []
    for version, word in ((4, "ip"), (6, "ip6")):
        cidrs = [str(cidr) for cidr in spared if cidr.version == version]
        if version in config.families and cidrs:
            rules.append(
                f"fib daddr type != local {word} daddr != {{ {', '.join(cidrs)} }} "
                "masquerade fully-random"
            )
    return rules


def _dedup_table(node: Peer) -> list[str]:
    """kubenet's KUBE-DEDUP: a promiscuous bridge delivers its own packets twice (k/k#28650)."""
    hook = hooks.KUBENET_DEDUP
    mac = mac_of(node.pod_cidrs[0][1])
    rules = []
    for cidr in node.pod_cidrs:
        word = "ip" if cidr.version == 4 else "ip6"
        head = f'ether saddr {mac} oifname "veth*" {word} saddr'
        rules += [f"{head} {cidr[1]} accept", f"{head} {cidr} drop"]
    return [
        f"table {hook.family} {hook.table} {{",
        f"\tchain {hook.chain} {{",
        f"\t\t{hook.render()}",
        *(f"\t\t{rule}" for rule in rules),
        "\t}",
        "}",
    ]


# --- plan -------------------------------------------------------------------------------------


def plan_node_network(desired: NodeNetwork, applied: NodeNetwork | None) -> list[Request]:
    """The requests that lead from `applied` (None: nothing yet) to `desired`.

    New entries come before old ones go, and a route is replaced in place, so pods that keep their
    way lose no packet. What a route leans on (its neighbour, its fdb entry) is in place before it.
    """
    before = applied.entries if applied is not None else frozenset()
    requests = list(desired.links) if applied is None or desired.links != applied.links else []
    fresh = desired.entries - before
    replaced = {_identity(entry) for entry in fresh}
    requests += [
        Replace(e) if not isinstance(e, Fdb) else Add(e, exist_ok=True)
        for e in sorted(fresh, key=_rank)
    ]
    gone = [e for e in before - desired.entries if _identity(e) not in replaced]
    requests += [Delete(e) for e in sorted(gone, key=_rank, reverse=True)]
    return requests


def _identity(entry: Entry) -> tuple[str, str]:
    """What the kernel replaces by: routes by destination, neighbours and fdb by address."""
    match entry:
        case Route():
            return "route", str(entry.destination)
        case Neighbour():
            return "neighbour", f"{entry.device} {entry.address}"
        case Fdb():
            return "fdb", f"{entry.mac} {entry.remote}"
    return type(entry).__name__, str(entry)


def _rank(entry: Entry) -> tuple[int, str]:
    order = (Fdb, Neighbour, Route)
    return next((i for i, kind in enumerate(order) if isinstance(entry, kind)), 9), str(entry)
