"""What a Service means on one node: its frontends. Pure.

    Service + its EndpointSlices + the node -> compile_service -> Frontend per address and port

A frontend is one (address, protocol, port) that clients connect to, whatever made it one: a
cluster IP, a node port, a load balancer's address, an external IP or a pod's hostPort. It says
which backends a new connection may get, who is masqueraded and what happens where there is none.
Every back end (nftables, iptables, ipvs) is a rendering of frontends, and `evaluate` is their
meaning.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Annotated, Final, Literal, NamedTuple, TypeAlias

import msgspec

from podwire.objects.core import Service, ServicePort
from podwire.objects.discovery import EndpointSlice
from podwire.objects.meta import Key
from podwire.services.endpoints import (
    Backend,
    Candidate,
    Chosen,
    PortName,
    Unusable,
    choose,
    list_candidates,
    parse_address,
)
from podwire.services.ranges import source_ranges

Address: TypeAlias = IPv4Address | IPv6Address
Network: TypeAlias = IPv4Network | IPv6Network
Role: TypeAlias = Literal["ClusterIP", "NodePort", "LoadBalancer", "ExternalIP", "HostPort"]
Balancing: TypeAlias = Literal["random", "maglev", "maglev-source"]

PROTOCOLS: Final = {"TCP": 6, "UDP": 17, "SCTP": 132}
PROTOCOL_NAMES: Final = {number: name for name, number in PROTOCOLS.items()}

PROXY_NAME_LABEL: Final = "service.kubernetes.io/service-proxy-name"
HEADLESS_LABEL: Final = "service.kubernetes.io/headless"
SCHEDULER_ANNOTATION: Final = "networking.podwire.dev/ipvs-scheduler"
SCHEDULERS: Final = ("rr", "wrr", "lc", "wlc", "sh", "dh", "mh", "sed", "nq")
BALANCING_ANNOTATION: Final = "networking.podwire.dev/balancing"
WEIGHTS_ANNOTATION: Final = "networking.podwire.dev/weights"
DEFAULT_AFFINITY_S: Final = 10800
_Weight: TypeAlias = Annotated[int, msgspec.Meta(ge=1, le=1000)]


class FrontendKey(NamedTuple):
    """`ip` is packed; `protocol` is the IP protocol number."""

    ip: bytes
    protocol: int
    port: int

    def __str__(self) -> str:
        return f"{PROTOCOL_NAMES[self.protocol]} {Backend(self.ip, self.port)}"


@dataclass(frozen=True, slots=True)
class Frontend:
    """One address, protocol and port of a Service, on one node.

    `backends`     what a new connection may get; `empty` says what happens when there is none
    `internal`     what clients in the cluster get instead (None: the same): an external address
                   with externalTrafficPolicy Local is for them as good as the cluster IP
    `lasting`      what keeps UDP flows it has though no new one may get it: endpoints that end but
                   serve, and those that policy or topology leave out (TCP needs no cleaning)
    `masquerade`   every client's address is hidden, so that answers come back through this node
    `affinity_s`   a client keeps its backend until it was idle that long (0: no affinity)
    `ranges`       client addresses allowed, as disjoint (first, last) pairs; None allows all
    `weights`      by packed backend address; absent means 1
    `exclusive`    the address is a Service's alone: its other ports refuse connections
    `scheduler`    what IPVS is to choose by, where the Service says so; "" leaves it to `balancing`
    """

    key: FrontendKey
    service: Key
    port_name: str
    role: Role
    backends: tuple[Backend, ...] = ()
    internal: tuple[Backend, ...] | None = None
    lasting: tuple[Backend, ...] = ()
    masquerade: bool = False
    empty: Literal["refuse", "drop"] = "refuse"
    affinity_s: int = 0
    balancing: Balancing = "random"
    ranges: tuple[tuple[bytes, bytes], ...] | None = None
    weights: Mapping[bytes, int] | None = None
    exclusive: bool = False
    scheduler: str = ""


@dataclass(frozen=True)
class HealthCheck:
    """A healthCheckNodePort: load balancers ask there whether this node has endpoints. They are
    counted by address, whichever ports they have (LocalReadyEndpoints), in the larger family."""

    port: int
    local_ready: int


@dataclass(frozen=True)
class NodeView:
    """What Services need to know of the node they are compiled for.

    `addresses` serve node ports. `pools` are (first, last) pairs of packed load balancer addresses
    that belong to Services alone. `external_ips` off ignores spec.externalIPs, which let anybody
    who may write a Service take over an address (CVE-2020-8554; KEP-5707 turns them off).
    """

    name: str
    zone: str = ""
    addresses: tuple[Address, ...] = ()
    external_ips: bool = False
    pools: tuple[tuple[bytes, bytes], ...] = ()

    def owns(self, ip: bytes) -> bool:
        """Whether the address is out of our own pools: no host will ever have it."""
        return any(len(ip) == len(first) and first <= ip <= last for first, last in self.pools)


@dataclass(frozen=True)
class CompiledService:
    """One Service on one node. `problems` are in words, for Events and `why`."""

    key: Key
    frontends: tuple[Frontend, ...] = ()
    health_check: HealthCheck | None = None
    problems: tuple[str, ...] = ()


@dataclass
class _Building:
    service: Service
    node: NodeView
    frontends: list[Frontend] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    local_ready: dict[int, set[bytes]] = field(default_factory=lambda: {4: set(), 6: set()})


def ignored(service: Service) -> str:
    """Why no proxy of ours serves the Service at all; "" when one does."""
    labels = service.metadata.labels
    if PROXY_NAME_LABEL in labels:
        return f"served by another proxy ({labels[PROXY_NAME_LABEL]})"
    if HEADLESS_LABEL in labels or service.spec.headless:
        return "headless: its name leads to the pods themselves"
    if service.spec.type == "ExternalName":
        return "an ExternalName is a DNS alias"
    if not service.spec.cluster_ips and not service.spec.cluster_ip:
        return "has no cluster IP"
    return ""


def compile_service(
    service: Service, slices: Sequence[EndpointSlice], node: NodeView
) -> CompiledService:
    """The frontends of `service` on `node`; same input, same output, in the same order."""
    if ignored(service):
        return CompiledService(service.key)
    building = _Building(service, node)
    unusable = Unusable()
    weights = parse_weights(slices, building.problems)
    for text in service.spec.cluster_ips or [service.spec.cluster_ip]:
        version = 6 if ":" in text else 4
        ip = parse_address(text, version)
        if ip is None:
            building.problems.append(f"clusterIP {text}: is not an address")
            continue
        candidates = list_candidates(slices, version, node.name, unusable)
        for port in service.spec.ports:
            if port.protocol in PROTOCOLS:
                _compile_port(building, port, ip, version, candidates, weights)
            else:
                building.problems.append(f"port {port.name or port.port}: protocol {port.protocol}")
    building.problems += unusable.reasons
    number = service.spec.health_check_node_port
    health = HealthCheck(number, max(map(len, building.local_ready.values()))) if number else None
    return CompiledService(
        service.key, tuple(building.frontends), health, tuple(dict.fromkeys(building.problems))
    )


def _compile_port(
    building: _Building,
    port: ServicePort,
    cluster_ip: bytes,
    version: int,
    candidates: Mapping[PortName, list[Candidate]],
    weights: Mapping[bytes, int] | None,
) -> None:
    service, node = building.service, building.node
    spec = service.spec
    protocol = PROTOCOLS[port.protocol]
    external = _external_frontends(building, port, protocol, version)
    internal_local = spec.internal_traffic_policy == "Local"
    external_local = bool(external) and spec.external_traffic_policy == "Local"
    found = candidates.get((port.name, port.protocol), ())
    cluster = not internal_local or bool(external)
    local = internal_local or external_local or bool(spec.health_check_node_port)
    chosen = choose(found, node=node.name, zone=node.zone, cluster=cluster, local=local)
    building.local_ready[version] |= chosen.local_ready
    affinity = _affinity_s(service)
    balancing = _balancing(building)
    scheduler = _scheduler(building)
    inside = chosen.local if internal_local else chosen.cluster
    outside = chosen.local if external_local else chosen.cluster
    building.frontends.append(
        Frontend(
            FrontendKey(cluster_ip, protocol, port.port),
            service.key,
            port.name,
            "ClusterIP",
            inside,
            lasting=_lasting(protocol, chosen, inside),
            empty="drop" if internal_local and chosen.anywhere else "refuse",
            affinity_s=affinity,
            balancing=balancing,
            weights=weights,
            exclusive=True,
            scheduler=scheduler,
        )
    )
    for key, role, ranges in external:
        building.frontends.append(
            Frontend(
                key,
                service.key,
                port.name,
                role,
                outside,
                lasting=_lasting(protocol, chosen, outside),
                internal=chosen.cluster if external_local else None,
                masquerade=not external_local,
                empty="drop" if external_local and chosen.anywhere else "refuse",
                affinity_s=affinity,
                balancing=balancing,
                ranges=ranges,
                weights=weights,
                exclusive=role == "LoadBalancer" and node.owns(key.ip),
                scheduler=scheduler,
            )
        )


def _lasting(protocol: int, chosen: Chosen, backends: tuple[Backend, ...]) -> tuple[Backend, ...]:
    if protocol != PROTOCOLS["UDP"] or len(chosen.serving) == len(backends):
        return ()
    known = set(backends)
    return tuple([backend for backend in chosen.serving if backend not in known])


_External = tuple[FrontendKey, Role, tuple[tuple[bytes, bytes], ...] | None]


def _external_frontends(
    building: _Building, port: ServicePort, protocol: int, version: int
) -> list[_External]:
    """The addresses through which clients beyond the cluster come in."""
    spec, node = building.service.spec, building.node
    found: list[_External] = []
    if node.external_ips:
        for text in spec.external_ips:
            ip = parse_address(text, version)
            if ip is not None:
                found.append((FrontendKey(ip, protocol, port.port), "ExternalIP", None))
    elif spec.external_ips:
        building.problems.append(
            "externalIPs are not served: they let whoever may write a Service take over an "
            "address (CVE-2020-8554)"
        )
    if spec.type == "LoadBalancer":
        for ingress in building.service.status.load_balancer.ingress:
            # ipMode Proxy: the balancer must see the packet, so it is not ours (KEP-1860).
            ip = parse_address(ingress.ip, version) if ingress.ip else None
            if ip is not None and ingress.ip_mode != "Proxy":
                ranges = source_ranges(building.service, node.addresses, ip, building.problems)
                found.append((FrontendKey(ip, protocol, port.port), "LoadBalancer", ranges))
    if spec.type in ("NodePort", "LoadBalancer") and port.node_port:
        found += [
            (FrontendKey(address.packed, protocol, port.node_port), "NodePort", None)
            for address in node.addresses
            if address.version == version
        ]
    return found


def _affinity_s(service: Service) -> int:
    if service.spec.session_affinity != "ClientIP":
        return 0
    config = service.spec.session_affinity_config
    timeout = config.client_ip.timeout_seconds if config and config.client_ip else None
    return timeout or DEFAULT_AFFINITY_S


def _balancing(building: _Building) -> Balancing:
    text = building.service.metadata.annotations.get(BALANCING_ANNOTATION, "random")
    if text == "maglev":
        return "maglev"
    if text == "maglev-source":
        return "maglev-source"
    if text != "random":
        building.problems.append(
            f"annotation {BALANCING_ANNOTATION}: {text!r} is none of random, maglev, maglev-source"
        )
    return "random"


def _scheduler(building: _Building) -> str:
    text = building.service.metadata.annotations.get(SCHEDULER_ANNOTATION, "")
    if text and text not in SCHEDULERS:
        building.problems.append(
            f"annotation {SCHEDULER_ANNOTATION}: {text!r} is none of {', '.join(SCHEDULERS)}"
        )
        return ""
    return text


def parse_weights(
    slices: Iterable[EndpointSlice], problems: list[str]
) -> Mapping[bytes, int] | None:
    """Weights by packed address, from the slices' annotation; None where nobody has one."""
    weights: dict[bytes, int] = {}
    for piece in slices:
        text = piece.metadata.annotations.get(WEIGHTS_ANNOTATION)
        if not text:
            continue
        try:
            for address, weight in msgspec.json.decode(text, type=dict[str, _Weight]).items():
                family = socket.AF_INET6 if ":" in address else socket.AF_INET
                weights[socket.inet_pton(family, address)] = weight
        except (msgspec.MsgspecError, ValueError, OSError) as error:
            problems.append(f"endpointslice {piece.key}: {WEIGHTS_ANNOTATION}: {error}")
    return weights or None
