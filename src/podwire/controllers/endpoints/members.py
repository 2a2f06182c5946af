"""One pod as a member of one Service: its endpoint in each address family, its ports, its weight.

Source: k8s.io/endpointslice utils.go (podToEndpoint, getEndpointPorts, FindPort) and
util/controller_utils.go (ShouldPodBeInEndpoints, ShouldSetHostname).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address

from podwire.controllers.endpoints.hints import distribution_hints
from podwire.controllers.views import Container, Pod
from podwire.objects.core import Node, ObjectReference, Service, ServicePort
from podwire.objects.discovery import Endpoint, EndpointConditions, SlicePort
from podwire.objects.meta import Key

ZONE_LABEL = "topology.kubernetes.io/zone"
WEIGHT_ANNOTATION = "networking.podwire.dev/weight"
MAX_WEIGHT = 1000

PortKey = tuple[tuple[str, str, int, str], ...]
"""Ports as what identifies a set of slices: their order does not matter."""


@dataclass(frozen=True, slots=True)
class Member:
    """`endpoints` by address type; `weight` is None where the pod names none."""

    key: Key
    ports: Sequence[SlicePort]
    port_key: PortKey
    endpoints: Mapping[str, Endpoint]
    weight: int | None = None


def members_of(
    service: Service, pods: Iterable[Pod], nodes: Mapping[Key, Node]
) -> Iterable[Member]:
    """The pods that belong into the Service's slices, as members."""
    for pod in pods:
        member = compile_member(service, pod, nodes.get(Key("", pod.spec.node_name)))
        if member is not None:
            yield member


def compile_member(service: Service, pod: Pod, node: Node | None) -> Member | None:
    """None for a pod that is no endpoint: finished, without an address, or on a Node that is gone
    (then only `publishNotReadyAddresses` lists it)."""
    if not in_endpoints(pod, terminating=True):
        return None
    if node is None and not service.spec.publish_not_ready_addresses:
        return None
    ports = ports_of(service, pod)
    by_family: dict[str, list[str]] = {}
    for entry in pod.status.pod_ips:
        address = ip_address(entry.ip)
        by_family.setdefault(f"IPv{address.version}", []).append(str(address))
    endpoints = {
        family: _endpoint(service, pod, node, addresses) for family, addresses in by_family.items()
    }
    return Member(pod.key, ports, port_key(ports), endpoints, weight_of(pod)[0])


def in_endpoints(pod: Pod, *, terminating: bool) -> bool:
    """Whether the pod belongs into endpoints at all; with deleted pods or without."""
    return not pod.finished and bool(pod.status.pod_ips) and (terminating or not pod.deleting)


def _endpoint(service: Service, pod: Pod, node: Node | None, addresses: list[str]) -> Endpoint:
    meta = pod.metadata
    serving = pod.ready
    # A terminating pod is never `ready`, whatever its probe says, so that consumers that know
    # nothing of `terminating` leave it out (KEP-1672).
    ready = service.spec.publish_not_ready_addresses or (serving and not pod.deleting)
    zone = node.metadata.labels.get(ZONE_LABEL) if node is not None else None
    node_name = pod.spec.node_name or None
    return Endpoint(
        addresses=addresses,
        conditions=EndpointConditions(ready=ready, serving=serving, terminating=pod.deleting),
        hostname=hostname_of(service, pod) or None,
        node_name=node_name,
        zone=zone or None,
        hints=distribution_hints(service, zone or None, node_name) if ready else None,
        target_ref=ObjectReference(
            kind="Pod", namespace=meta.namespace, name=meta.name, uid=meta.uid
        ),
    )


def hostname_of(service: Service, pod: Pod) -> str:
    """The endpoint's name in DNS: only in the Service that the pod is a subdomain of."""
    return pod.spec.hostname if pod.spec.subdomain == service.metadata.name else ""


# --- ports ---


def ports_of(service: Service, pod: Pod) -> list[SlicePort]:
    """The Service's ports as this pod serves them; a port it does not have is left out."""
    resolved = ((port, find_port(pod, port)) for port in service.spec.ports)
    return [
        SlicePort(
            name=port.name,
            protocol=port.protocol,
            port=number,
            app_protocol=port.app_protocol or None,
        )
        for port, number in resolved
        if number is not None
    ]


def find_port(pod: Pod, port: ServicePort) -> int | None:
    """A named targetPort is looked up in containers, then in sidecars (KEP-753)."""
    target = port.target_port
    if not isinstance(target, str):
        return target or port.port
    sidecars = (c for c in pod.spec.init_containers if c.restart_policy == "Always")
    for containers in (pod.spec.containers, sidecars):
        number = _named_port(containers, target, port.protocol)
        if number is not None:
            return number
    return None


def _named_port(containers: Iterable[Container], name: str, protocol: str) -> int | None:
    for container in containers:
        for port in container.ports:
            if port.name == name and port.protocol == protocol:
                return port.container_port
    return None


def port_key(ports: Iterable[SlicePort]) -> PortKey:
    return tuple(sorted((p.name, p.protocol, p.port or 0, p.app_protocol or "") for p in ports))


# --- weights ---


def weight_of(pod: Pod) -> tuple[int | None, str]:
    """The pod's weight and, for an annotation that is none, what is wrong with it."""
    text = pod.metadata.annotations.get(WEIGHT_ANNOTATION)
    if text is None:
        return None, ""
    if text.isascii() and text.isdigit() and 1 <= int(text) <= MAX_WEIGHT:
        return int(text), ""
    return None, (
        f"Ignoring annotation {WEIGHT_ANNOTATION}: {text!r} is not a whole number "
        f"from 1 to {MAX_WEIGHT}"
    )
