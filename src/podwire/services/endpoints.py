"""Which endpoints of a Service port may be used on a node: topology, traffic policies, termination.

Source: k/k pkg/proxy/topology.go (CategorizeEndpoints), KEP-1669 (terminating endpoints), KEP-2086
(internalTrafficPolicy), KEP-3015 and KEP-4444 (trafficDistribution: hints are written by the
EndpointSlice controller and honoured here).
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from podwire.objects.discovery import Endpoint, EndpointSlice

_PACKED_LENGTH = {4: 4, 6: 16}
_FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}


class Backend(NamedTuple):
    """Where a connection may go: `ip` is the packed address, `local` says on this very node."""

    ip: bytes
    port: int
    local: bool = False

    def __str__(self) -> str:
        if len(self.ip) == 4:
            return f"{socket.inet_ntoa(self.ip)}:{self.port}"
        return f"[{socket.inet_ntop(socket.AF_INET6, self.ip)}]:{self.port}"


class Candidate(NamedTuple):
    """An endpoint of one Service port before anything is chosen."""

    backend: Backend
    endpoint: Endpoint


@dataclass(frozen=True)
class Chosen:
    """The usable backends: `cluster` by policy Cluster, `local` by policy Local.

    `anywhere` tells whether the Service has a usable endpoint at all: without one connections are
    refused, while a policy that merely finds none here drops them. `serving` are all that answer,
    chosen or not: connections they have go on (k/k pkg/proxy/conntrack/cleanup.go). `local_ready`
    are the addresses health checks count.
    """

    cluster: tuple[Backend, ...] = ()
    local: tuple[Backend, ...] = ()
    serving: tuple[Backend, ...] = ()
    anywhere: bool = False
    local_ready: frozenset[bytes] = frozenset()
    topology: str = ""


@dataclass
class Unusable:
    """Endpoints no proxy may send to, in words; kept for Events and `why`."""

    reasons: list[str] = field(default_factory=list)


def parse_address(text: str, version: int) -> bytes | None:
    """The packed address, or None where it is not one of that family (or not canonical)."""
    try:
        return socket.inet_pton(_FAMILY[version], text)
    except (OSError, ValueError):
        return None


def _unroutable(ip: bytes) -> bool:
    """Loopback, link-local, multicast and unspecified addresses are nobody's endpoint.

    The API refuses them too (ValidateNonSpecialIP); a slice may come from an older store.
    """
    if len(ip) == 4:
        return ip[0] in (0, 127) or ip[0] >= 224 or ip[:2] == b"\xa9\xfe"
    return (
        ip[0] == 0xFF
        or (ip[0] == 0xFE and ip[1] & 0xC0 == 0x80)
        or ip[:15] == bytes(15)
        or ip[:12] == bytes(10) + b"\xff\xff"
    )


PortName = tuple[str, str]
"""(name, protocol): how Service ports and slice ports find each other."""


def list_candidates(
    slices: Iterable[EndpointSlice], version: int, node: str, unusable: Unusable
) -> dict[PortName, list[Candidate]]:
    """Every endpoint of the family by port, each address and port once.

    The same endpoint may stand in several slices while the controller moves it (KEP-752); the
    first slice by name wins, unless a later one says that it is local.
    """
    found: dict[PortName, dict[tuple[bytes, int], Candidate]] = {}
    address_type = f"IPv{version}"
    ordered = [s for s in slices if s.address_type == address_type]
    if len(ordered) > 1:
        ordered.sort(key=lambda s: s.metadata.name)
    for piece in ordered:
        ports = [p for p in piece.ports if p.port]
        groups = [(p.port or 0, found.setdefault((p.name, p.protocol), {})) for p in ports]
        for endpoint in piece.endpoints:
            if not endpoint.addresses:
                continue
            # Proxies use the first address only (discovery/v1 Endpoint.addresses).
            ip = parse_address(endpoint.addresses[0], version)
            if ip is None or _unroutable(ip):
                unusable.reasons.append(
                    f"endpointslice {piece.key}: {endpoint.addresses[0]}: cannot be an endpoint"
                )
                continue
            local = endpoint.node_name == node
            for number, group in groups:
                if local or (ip, number) not in group:
                    group[ip, number] = Candidate(Backend(ip, number, local), endpoint)
    return {name: list(group.values()) for name, group in found.items()}


def choose(
    candidates: Sequence[Candidate], *, node: str, zone: str, cluster: bool, local: bool
) -> Chosen:
    """CategorizeEndpoints: `cluster` and `local` say which policies the Service port uses."""
    if not candidates:
        return Chosen()
    ready = [c for c in candidates if c.endpoint.ready]
    # Only while nothing is ready may those be used that still serve while they end (KEP-1669).
    ending = [c for c in candidates if not c.endpoint.ready and _ends_serving(c.endpoint)]
    topology = ""
    in_cluster: list[Candidate] = []
    if cluster:
        allowed, topology = topology_filter(ready, node, zone)
        in_cluster = [c for c in ready if allowed(c.endpoint)] if topology else ready
        in_cluster = in_cluster or ending
    here: list[Candidate] = []
    local_ready = [c for c in ready if c.backend.local] if local else []
    if local:
        here = local_ready or [c for c in ending if c.backend.local]
    return Chosen(
        tuple([c.backend for c in in_cluster]),
        tuple([c.backend for c in here]),
        tuple([c.backend for c in candidates if c.endpoint.ready or c.endpoint.serving]),
        anywhere=bool(ready or ending),
        local_ready=frozenset([c.backend.ip for c in local_ready]),
        topology=topology,
    )


def _ends_serving(endpoint: Endpoint) -> bool:
    return endpoint.serving and endpoint.terminating


def topology_filter(
    ready: Sequence[Candidate], node: str, zone: str
) -> tuple[Callable[[Endpoint], bool], str]:
    """Which ready endpoints topology hints leave, and the mode in words ("" for all of them).

    Hints count only if every ready endpoint has one and at least one is meant for us: anything
    less would lose traffic (topologyModeFromHints). Node hints go before zone hints.
    """
    hints = [c.endpoint.hints for c in ready]
    if not hints or None in hints:
        return (lambda _: True), ""
    if all(h and h.for_nodes for h in hints) and any(_names_node(c.endpoint, node) for c in ready):
        return (lambda endpoint: _names_node(endpoint, node)), "PreferSameNode"
    if (
        zone
        and all(h and h.for_zones for h in hints)
        and any(_names_zone(c.endpoint, zone) for c in ready)
    ):
        return (lambda endpoint: _names_zone(endpoint, zone)), "PreferSameZone"
    return (lambda _: True), ""


def _names_node(endpoint: Endpoint, node: str) -> bool:
    return endpoint.hints is not None and any(h.name == node for h in endpoint.hints.for_nodes)


def _names_zone(endpoint: Endpoint, zone: str) -> bool:
    return endpoint.hints is not None and any(h.name == zone for h in endpoint.hints.for_zones)
