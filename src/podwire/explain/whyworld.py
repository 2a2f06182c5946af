"""Who asks for what: the words of `podwire why SRC DST[:PORT]`, found in a snapshot. Pure.

SRC: NS/POD, NS/WORKLOAD, node/NAME, outside
DST: svc/[NS/]NAME[:PORT], ADDRESS[:PORT], node/NAME:PORT, [NS/]POD[:PORT]
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Final, Literal

from podwire.errors import NotFoundError, UsageError
from podwire.explain.endpoints import (
    OUTSIDE_NAME,
    Endpoint,
    Snapshot,
    declared_ports,
    list_endpoints,
)
from podwire.explain.selectors import select
from podwire.explain.staticworld import StaticWorld
from podwire.objects.core import Node, Pod, Service, ServicePort
from podwire.objects.discovery import EndpointSlice
from podwire.objects.meta import Key
from podwire.services.model import Address, Network, NodeView
from podwire.services.report import NodeReport

Protocol = Literal["tcp", "udp", "sctp"]
_ZONE: Final = "topology.kubernetes.io/zone"
_V6: Final = re.compile(r"^\[(?P<address>[^]]+)\](?::(?P<port>\w+))?$")


@dataclass(frozen=True)
class World:
    """What an explanation is made from. `reports` holds words for nodes that cannot be asked.

    `static` are the policies with what they speak of, `enforcing` the nodes that enforce them.
    """

    snapshot: Snapshot
    services: Sequence[Service] = ()
    slices: Sequence[EndpointSlice] = ()
    reports: Mapping[str, NodeReport | str] = field(default_factory=dict)
    static: StaticWorld | None = None
    enforcing: frozenset[str] = frozenset()

    @property
    def nodes(self) -> Sequence[Node]:
        return self.snapshot.nodes

    def service(self, key: Key) -> Service | None:
        return next((s for s in self.services if s.key == key), None)

    def slices_of(self, key: Key) -> list[EndpointSlice]:
        return [
            piece
            for piece in self.slices
            if piece.service_name == key.name and piece.metadata.namespace == key.namespace
        ]

    def pod_at(self, address: str) -> Pod | None:
        """The pod that has the address for itself."""
        return next(
            (
                pod
                for pod in self.snapshot.pods
                if not pod.finished
                and not pod.spec.host_network
                and any(entry.ip == address for entry in pod.status.pod_ips)
            ),
            None,
        )

    def view(self, node: str) -> NodeView:
        """The node as its agent compiles for it."""
        found = next((n for n in self.nodes if n.metadata.name == node), None)
        report = self.reports.get(node)
        return NodeView(
            node,
            found.metadata.labels.get(_ZONE, "") if found else "",
            tuple(ip_address(text) for text in found.internal_ips) if found else (),
            isinstance(report, NodeReport) and report.external_ips,
            tuple((ip_address(a).packed, ip_address(b).packed) for a, b in report.pools)
            if isinstance(report, NodeReport)
            else (),
        )

    def ranges(self, node: str) -> tuple[tuple[Network, ...], tuple[Network, ...]]:
        """(service, cluster) ranges as the node has them; pods' from the Nodes where it is mute."""
        report = self.reports.get(node)
        if isinstance(report, NodeReport):
            return (
                tuple(map(ip_network, report.service_cidrs)),
                tuple(map(ip_network, report.cluster_cidrs)),
            )
        pods = [ip_network(cidr) for n in self.nodes for cidr in n.spec.pod_cidrs]
        return (), tuple(pods)


@dataclass(frozen=True)
class Destination:
    """Where the packet goes. `how` says what made `address` of what was written."""

    text: str
    address: Address
    port: int
    protocol: Protocol
    how: str
    service: Key | None = None
    pod: Key | None = None


class Unanswerable(UsageError):  # noqa: N818 - the explanation is the answer, not an accident
    """What was asked has no packet: the words say why, and are the explanation."""

    exit_code = 1


def find_source(world: World, text: str) -> Endpoint:
    """The talker; of a workload its first pod."""
    endpoints, skipped = list_endpoints(world.snapshot)
    wanted = text if "/" in text or text == "outside" else f"default/{text}"
    if wanted in skipped:
        raise Unanswerable(f"pod {wanted}: {skipped[wanted]}, so it sends nothing")
    found = select(endpoints, [wanted])
    return next((e for e in found if e.key == wanted), found[0])


def find_destination(
    world: World, source: Endpoint, text: str, protocol: Protocol | None
) -> Destination:
    """What the words mean, in a family the source has."""
    if text.startswith(("svc/", "service/")):
        return _service(world, source, text, protocol)
    if found := _V6.match(text):
        return _address(world, text, found["address"], found["port"] or "", protocol)
    try:
        return _address(world, text, str(ip_address(text)), "", protocol)
    except ValueError:
        pass
    host, _, port = text.partition(":")
    if host.startswith("node/"):
        return _node(world, source, text, host.removeprefix("node/"), port, protocol)
    try:
        return _address(world, text, str(ip_address(host)), port, protocol)
    except ValueError:
        return _pod(world, source, text, host, port, protocol)


def _versions(source: Endpoint) -> list[int]:
    return [ip_address(text).version for text in source.addresses]


def _service(world: World, source: Endpoint, text: str, protocol: Protocol | None) -> Destination:
    where, _, wanted = text.partition("/")[2].partition(":")
    namespace, _, name = where.rpartition("/")
    key = Key(namespace or source.namespace or "default", name)
    service = world.service(key)
    if service is None:
        others = sorted(str(s.key) for s in world.services if s.metadata.name == name)
        hint = f"; there is {', '.join(others)}" if others else ""
        raise NotFoundError(f'services "{name}" not found in namespace {key.namespace}{hint}')
    spec = service.spec
    if spec.type == "ExternalName":
        raise Unanswerable(
            f"service {key}: an ExternalName is an alias in DNS for {spec.external_name}; "
            "no packet meets the Service"
        )
    if spec.headless:
        raise Unanswerable(
            f"service {key}: is headless: its name leads to the pods themselves; ask for a pod"
        )
    port = _service_port(service, wanted, protocol)
    address, how = _service_address(service, source, port)
    word = _protocol(port.protocol.lower())
    return Destination(text, address, port.port, word, how, service=key)


def _service_address(service: Service, source: Endpoint, port: ServicePort) -> tuple[Address, str]:
    """The one the source would use, and why that one."""
    spec, key = service.spec, service.key
    versions = _versions(source)

    def first(addresses: Iterable[str]) -> Address | None:
        fitting = (found for found in map(ip_address, addresses) if found.version in versions)
        return next(fitting, None)

    if source.key == OUTSIDE_NAME:
        given = first(i.ip for i in service.status.load_balancer.ingress if i.ip)
        if given is not None:
            return given, f"service {key} has the load balancer address {given}"
        ports = f"node/NAME:{port.node_port}" if port.node_port else "none: it has no node port"
        raise Unanswerable(
            f"service {key}: its cluster IP is for pods and nodes; from outside ask for {ports}"
        )
    address = first(filter(None, spec.cluster_ips or [spec.cluster_ip]))
    if address is None:
        raise Unanswerable(f"service {key}: has no cluster IP of a family {source.key} has")
    return address, f"{key.name}.{key.namespace}.svc is the cluster IP {address}"


def _service_port(service: Service, wanted: str, protocol: Protocol | None) -> ServicePort:
    ports = [
        p
        for p in service.spec.ports
        if (not wanted or wanted in (p.name, str(p.port)))
        and (protocol is None or p.protocol.lower() == protocol)
    ]
    if not ports:
        there = ", ".join(f"{p.name or '-'} {p.port}/{p.protocol}" for p in service.spec.ports)
        if wanted.isdigit():
            # Worth a packet: the address is the Service's, the port is nobody's.
            return ServicePort(port=int(wanted), protocol=(protocol or "tcp").upper())
        raise UsageError(f"service {service.key}: has no port {wanted or protocol}; it has {there}")
    return ports[0]


def _protocol(text: str) -> Protocol:
    if text in ("tcp", "udp", "sctp"):
        return text  # type: ignore[return-value]
    raise UsageError(f"protocol {text!r} is none of tcp, udp, sctp")


def _number(text: str, port: str) -> int:
    if not port.isdigit() or not 0 < int(port) < 65536:
        raise UsageError(f"{text!r}: needs a port between 1 and 65535, as in {text}:80")
    return int(port)


def _address(
    world: World, text: str, address: str, port: str, protocol: Protocol | None
) -> Destination:
    number = _number(text, port)
    owner, how = _owner_of(world, address, number)
    pod = world.pod_at(address)
    return Destination(
        text,
        ip_address(address),
        number,
        protocol or _protocol_at(world, owner, number),
        how or (f"the address of pod {pod.key}" if pod else "an address"),
        service=owner,
        pod=pod.key if pod else None,
    )


def _protocol_at(world: World, owner: Key | None, port: int) -> Protocol:
    """That of the Service's port, where it is known; else TCP."""
    service = world.service(owner) if owner else None
    for each in service.spec.ports if service else ():
        if port in (each.port, each.node_port):
            return _protocol(each.protocol.lower())
    return "tcp"


def is_among(address: str, texts: Iterable[str]) -> bool:
    """Whether the address, in its usual form, is one of those the API has, in whatever form."""
    for text in texts:
        with contextlib.suppress(ValueError):
            if text == address or str(ip_address(text)) == address:
                return True
    return False


def _owner_of(world: World, address: str, port: int) -> tuple[Key | None, str]:
    """The Service people mean by the address; which one has it, the claims decide."""
    for service in sorted(world.services, key=lambda s: s.metadata.creation_timestamp or ""):
        spec = service.spec
        if is_among(address, spec.cluster_ips or [spec.cluster_ip]):
            return service.key, f"the cluster IP of service {service.key}"
        balanced = (i.ip for i in service.status.load_balancer.ingress)
        if is_among(address, balanced) and any(p.port == port for p in spec.ports):
            return service.key, f"the load balancer address of service {service.key}"
        if is_among(address, spec.external_ips) and any(p.port == port for p in spec.ports):
            return service.key, f"an external IP of service {service.key}"
    if any(address in node.internal_ips for node in world.nodes):
        name = next(n.metadata.name for n in world.nodes if address in n.internal_ips)
        for service in world.services:
            if any(p.node_port == port for p in service.spec.ports):
                return service.key, f"a node port of service {service.key} on node {name}"
        return None, f"the address of node {name}"
    return None, ""


def _node(
    world: World,
    source: Endpoint,
    text: str,
    name: str,
    port: str,
    protocol: Protocol | None,
) -> Destination:
    node = next((n for n in world.nodes if n.metadata.name == name), None)
    if node is None:
        raise NotFoundError(f'nodes "{name}" not found')
    versions = _versions(source)
    address = next((a for a in node.internal_ips if ip_address(a).version in versions), None)
    if address is None:
        raise Unanswerable(f"node {name}: has no address of a family {source.key} has")
    return _address(world, text, address, port, protocol)


_FORMS: Final = "ask for svc/NS/NAME, NS/POD, NS/WORKLOAD, node/NAME or an address, with :PORT"


def _pod_of(world: World, workload: Key) -> Pod | None:
    """Its first one."""
    endpoints, _ = list_endpoints(world.snapshot)
    try:
        first = select(endpoints, [str(workload)])[0]
    except UsageError:
        return None
    return next((p for p in world.snapshot.pods if str(p.key) == first.key), None)


def _pod(
    world: World,
    source: Endpoint,
    text: str,
    where: str,
    port: str,
    protocol: Protocol | None,
) -> Destination:
    namespace, _, name = where.rpartition("/")
    key = Key(namespace or source.namespace or "default", name)
    pod = next((p for p in world.snapshot.pods if p.key == key), None) or _pod_of(world, key)
    if pod is None:
        service = world.service(key)
        hint = f"the Service is svc/{key}" if service else _FORMS
        raise NotFoundError(f'pods "{name}" not found in namespace {key.namespace}; {hint}')
    key = pod.key
    versions = _versions(source)
    address = next((e.ip for e in pod.status.pod_ips if ip_address(e.ip).version in versions), None)
    if address is None:
        raise Unanswerable(f"pod {key}: has no address of a family {source.key} has")
    ports = declared_ports(pod)
    named = next((p for p in ports if port and p.name == port), None)
    chosen = named or (ports[0] if not port and ports else None)
    number = chosen.number if chosen else _number(text, port)
    word = protocol or (_protocol(chosen.protocol.lower()) if chosen else "tcp")
    how = f"the address of pod {key}"
    return Destination(text, ip_address(address), number, word, how, pod=key)
