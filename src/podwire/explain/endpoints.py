"""Who can talk: pods, nodes and the outside host of one snapshot, as the explainers see them."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

import msgspec

from podwire.objects.core import Namespace, Node, Pod

EndpointKind: TypeAlias = Literal["Pod", "Node", "Outside"]
OUTSIDE_NAME: Final = "outside"
_HASH_LABEL: Final = "pod-template-hash"


class Port(msgspec.Struct, frozen=True, order=True, omit_defaults=True):
    """`protocol` is TCP, UDP, SCTP or ICMP (then `number` is 0)."""

    number: int
    protocol: str = "TCP"
    name: str = ""

    def __str__(self) -> str:
        return self.protocol if self.protocol == "ICMP" else f"{self.protocol} {self.number}"


class Endpoint(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True, rename="camel"):
    """One talker. `owner` is its workload (`Deployment/web`), "" for a bare pod.

    `addresses` has the primary family first.
    """

    kind: EndpointKind
    name: str
    namespace: str = ""
    node: str = ""
    addresses: tuple[str, ...] = ()
    owner: str = ""
    labels: Mapping[str, str] = {}
    ports: tuple[Port, ...] = ()
    host_network: bool = False

    @property
    def key(self) -> str:
        """Unique within a reachability: `ns/pod`, `node/NAME` or `outside`."""
        if self.kind == "Pod":
            return f"{self.namespace}/{self.name}"
        return f"node/{self.name}" if self.kind == "Node" else self.name

    @property
    def owner_name(self) -> str:
        return self.owner.partition("/")[2] or self.name

    @property
    def group(self) -> str:
        """The row a large matrix shows it in, in np-guard's words: `ns/web[Deployment]`."""
        if self.kind != "Pod":
            return self.key
        kind, _, name = (self.owner or f"Pod/{self.name}").partition("/")
        return f"{self.namespace}/{name}[{kind}]"


@dataclass(frozen=True)
class Snapshot:
    """The objects a reachability is computed from, read at about one moment."""

    pods: Sequence[Pod]
    nodes: Sequence[Node] = ()
    namespaces: Sequence[Namespace] = ()
    outside: tuple[str, ...] = ("203.0.113.10", "2001:db8:113::10")
    outside_ports: tuple[Port, ...] = field(default=())


def list_endpoints(snapshot: Snapshot) -> tuple[list[Endpoint], dict[str, str]]:
    """All talkers sorted by key, and why the pods that are missing cannot talk."""
    endpoints: list[Endpoint] = []
    skipped: dict[str, str] = {}
    for pod in snapshot.pods:
        if reason := _why_silent(pod):
            skipped[str(pod.key)] = reason
        else:
            endpoints.append(_of_pod(pod))
    endpoints.sort(key=lambda e: (e.namespace, e.name))
    endpoints += [
        Endpoint(
            kind="Node",
            name=node.metadata.name,
            node=node.metadata.name,
            addresses=tuple(node.internal_ips),
            labels=node.metadata.labels,
        )
        for node in sorted(snapshot.nodes, key=lambda n: n.metadata.name)
    ]
    if snapshot.outside:
        endpoints.append(
            Endpoint(
                kind="Outside",
                name=OUTSIDE_NAME,
                addresses=snapshot.outside,
                ports=snapshot.outside_ports,
            )
        )
    return endpoints, skipped


def _why_silent(pod: Pod) -> str:
    if pod.finished:
        return f"has ended ({pod.status.phase})"
    if not pod.spec.node_name:
        return "is not scheduled"
    if not pod.status.pod_ip:
        return "has no address yet"
    return ""


def _of_pod(pod: Pod) -> Endpoint:
    addresses = [entry.ip for entry in pod.status.pod_ips] or [pod.status.pod_ip]
    return Endpoint(
        kind="Pod",
        name=pod.metadata.name,
        namespace=pod.metadata.namespace,
        node=pod.spec.node_name,
        addresses=tuple(addresses),
        owner=owner_of(pod),
        labels=pod.metadata.labels,
        ports=declared_ports(pod),
        host_network=pod.spec.host_network,
    )


def owner_of(pod: Pod) -> str:
    """`Kind/name` of the workload; a ReplicaSet of a Deployment counts as the Deployment.

    The Deployment's name is the ReplicaSet's without `-HASH`, the hash being the pod's label
    `pod-template-hash` (k/k:pkg/controller/deployment/sync.go).
    """
    controller = pod.metadata.controller
    if controller is None:
        return ""
    suffix = "-" + pod.metadata.labels.get(_HASH_LABEL, "")
    if controller.kind == "ReplicaSet" and len(suffix) > 1 and controller.name.endswith(suffix):
        return f"Deployment/{controller.name.removesuffix(suffix)}"
    return f"{controller.kind}/{controller.name}"


def declared_ports(pod: Pod) -> tuple[Port, ...]:
    """The containerPorts, without repetition; init containers with restartPolicy Always too."""
    sidecars = [c for c in pod.spec.init_containers if c.restart_policy == "Always"]
    seen = {
        (port.protocol, port.container_port): Port(port.container_port, port.protocol, port.name)
        for container in [*pod.spec.containers, *sidecars]
        for port in container.ports
    }
    return tuple(seen[key] for key in sorted(seen))


def common_addresses(source: Endpoint, destination: Endpoint) -> list[tuple[str, str]]:
    """(source, destination) addresses, one pair per family both have."""
    own = {ipaddress.ip_address(text).version: text for text in reversed(source.addresses)}
    pairs = []
    for text in destination.addresses:
        version = ipaddress.ip_address(text).version
        if version in own:
            pairs.append((own.pop(version), text))
    return pairs
