"""What happens to a packet that opens a connection: the meaning every back end is held to. Pure.

    Packet + Frontends + Domain -> evaluate -> Outcome

`podwire why` prints it, the compiled rulesets are tested against it, and so are real packets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from podwire.services.endpoints import Backend
from podwire.services.model import Frontend, FrontendKey, Network
from podwire.services.ranges import Ranges

Verdict: TypeAlias = Literal["dnat", "refuse", "drop", "pass"]


@dataclass(frozen=True)
class Packet:
    """The first packet of a connection; addresses are packed, `protocol` is the IP number.

    `from_node` tells that the node itself (or a pod in its host network) sends it.
    """

    src: bytes
    dst: bytes
    protocol: int
    dport: int
    sport: int = 0
    from_node: bool = False


@dataclass(frozen=True)
class Domain:
    """Address ranges all Services of a cluster share, as (first, last) pairs of packed addresses.

    `vips` are addresses that belong to Services alone: there, a port nobody serves is refused.
    `node_addresses` are the node's own: what is delivered there does not leave, and so keeps its
    source.
    """

    service_ranges: Ranges = ()
    cluster_ranges: Ranges = ()
    vips: frozenset[bytes] = frozenset()
    node_addresses: frozenset[bytes] = frozenset()


@dataclass(frozen=True)
class Outcome:
    """`backends` are what may be chosen; those in `masqueraded` see the node's address."""

    verdict: Verdict
    reason: str
    backends: frozenset[Backend] = frozenset()
    masqueraded: frozenset[Backend] = field(default=frozenset())
    frontend: Frontend | None = None


def within(ip: bytes, ranges: Ranges) -> bool:
    return any(len(ip) == len(first) and first <= ip <= last for first, last in ranges)


def in_cluster(source: bytes, domain: Domain) -> bool:
    """A pod or this node itself: not subject to externalTrafficPolicy."""
    return source in domain.node_addresses or within(source, domain.cluster_ranges)


def evaluate(packet: Packet, frontends: Mapping[FrontendKey, Frontend], domain: Domain) -> Outcome:
    frontend = frontends.get(FrontendKey(packet.dst, packet.protocol, packet.dport))
    if frontend is None:
        return _unserved(packet, domain)
    if frontend.ranges is not None and not within(packet.src, frontend.ranges):
        return Outcome("drop", "source not in loadBalancerSourceRanges", frontend=frontend)
    short_cut = frontend.internal is not None and (
        packet.from_node or in_cluster(packet.src, domain)
    )
    backends = frontend.internal if short_cut else frontend.backends
    if not backends:
        refused = short_cut or frontend.empty == "refuse"
        reason = "no endpoints" if refused else "no endpoints on this node (traffic policy Local)"
        return Outcome("refuse" if refused else "drop", reason, frontend=frontend)
    masquerades = _masquerade_rule(packet, frontend, domain)
    return Outcome(
        "dnat",
        "in the cluster: any endpoint" if short_cut else "",
        frozenset(backends),
        frozenset(b for b in backends if masquerades(b)),
        frontend,
    )


def _masquerade_rule(
    packet: Packet, frontend: Frontend, domain: Domain
) -> Callable[[Backend], bool]:
    """Whose address is hidden: everybody's behind an external address with policy Cluster, that of
    clients beyond the cluster at a cluster IP, the node's own, and a pod's that meets itself."""
    off_cluster = within(packet.dst, domain.service_ranges) and not within(
        packet.src, domain.cluster_ranges
    )
    if packet.from_node:
        return lambda _: True
    if frontend.masquerade or off_cluster:
        return lambda backend: backend.ip not in domain.node_addresses
    return lambda backend: backend.ip == packet.src and backend.local


def _unserved(packet: Packet, domain: Domain) -> Outcome:
    if packet.dst in domain.vips:
        return Outcome("refuse", "no Service port there")
    if within(packet.dst, domain.service_ranges):
        return Outcome("drop", "no Service has this address")
    return Outcome("pass", "not a Service address")


def address_ranges(networks: Iterable[Network]) -> Ranges:
    """Networks as (first, last) pairs."""
    return tuple((n[0].packed, n[-1].packed) for n in networks)
