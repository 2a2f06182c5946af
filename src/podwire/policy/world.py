"""What policies speak of: namespaces, pods, nodes, addresses of names. A snapshot. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Final, NamedTuple, TypeAlias

from podwire.objects.core import Namespace, Node, Pod
from podwire.objects.meta import Key
from podwire.objects.policy import PeerPod
from podwire.policy.model import PROTOCOLS, Address, NamedPort, PortRange

NAME_LABEL: Final = "kubernetes.io/metadata.name"


class ContainerPort(NamedTuple):
    name: str
    protocol: int
    number: int


@dataclass(frozen=True, slots=True)
class PodView:
    """A pod as policies see it. `ips` is empty for pods of files and those without address yet.

    `ports` are the named container ports, of sidecars too, in the order of the manifest.
    """

    key: Key
    labels: Mapping[str, str] = field(default_factory=dict)
    ips: tuple[Address, ...] = ()
    node: str = ""
    ports: tuple[ContainerPort, ...] = ()
    host_network: bool = False

    def resolve(self, port: NamedPort) -> tuple[PortRange, ...]:
        """The numbers the name stands for on this pod (S9): name and protocol must agree."""
        return tuple(
            PortRange(own.protocol, own.number, own.number)
            for own in self.ports
            if own.name == port.name and port.protocol in (None, own.protocol)
        )


@dataclass(frozen=True, slots=True)
class NodeView:
    name: str
    labels: Mapping[str, str] = field(default_factory=dict)
    ips: tuple[Address, ...] = ()


@dataclass(frozen=True)
class World:
    """`namespaces` maps names to labels, `names` domain names to the addresses answered for them.

    Every namespace of a pod must be in `namespaces`; `make_world` sees to it.
    """

    namespaces: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    pods: Mapping[Key, PodView] = field(default_factory=dict)
    nodes: Mapping[str, NodeView] = field(default_factory=dict)
    names: Mapping[str, frozenset[Address]] = field(default_factory=dict)


Owner: TypeAlias = PodView | NodeView


def owners_of(world: World) -> dict[Address, Owner]:
    """Who has an address for itself: a pod, or a node (then for its hostNetwork pods too)."""
    live = LiveWorld()
    for node in world.nodes.values():
        live.set_node(node)
    for pod in world.pods.values():
        live.set_pod(pod)
    return live.owners


class LiveWorld:
    """A world that is changed in place, with who has each address kept beside it.

    Every change says whether it is one: most of what a watch tells of a pod is nothing to policies.
    """

    def __init__(self) -> None:
        self._namespaces: dict[str, Mapping[str, str]] = {}
        self._pods: dict[Key, PodView] = {}
        self._nodes: dict[str, NodeView] = {}
        self._existing: set[str] = set()
        self._pods_in: Counter[str] = Counter()
        self._claims: dict[Address, dict[Key | str, Owner]] = {}
        self.owners: dict[Address, Owner] = {}

    def view(self, names: Mapping[str, frozenset[Address]] | None = None) -> World:
        """As it is now and, since it shares what it is made of, as it will be."""
        return World(self._namespaces, self._pods, self._nodes, names or {})

    def set_namespace(self, name: str, labels: Mapping[str, str] | None) -> bool:
        """None: nothing is known of it any more; its pods may be, for a moment."""
        fresh = namespace_labels(name, labels or {})
        changed = self._namespaces.get(name) != fresh
        if labels is None:
            self._existing.discard(name)
        else:
            self._existing.add(name)
        self._namespaces[name] = fresh
        self._forget_namespace(name)
        return changed

    def _forget_namespace(self, name: str) -> None:
        if name not in self._existing and not self._pods_in[name]:
            del self._pods_in[name]
            self._namespaces.pop(name, None)

    def set_pod(self, pod: PodView) -> bool:
        self._namespaces.setdefault(pod.key.namespace, namespace_labels(pod.key.namespace, {}))
        old, self._pods[pod.key] = self._pods.get(pod.key), pod
        self._pods_in[pod.key.namespace] += old is None
        return self._change(pod.key, old, pod)

    def remove_pod(self, key: Key) -> bool:
        old = self._pods.pop(key, None)
        self._pods_in[key.namespace] -= old is not None
        self._forget_namespace(key.namespace)
        return self._change(key, old, None)

    def set_node(self, node: NodeView) -> bool:
        old, self._nodes[node.name] = self._nodes.get(node.name), node
        return self._change(node.name, old, node)

    def remove_node(self, name: str) -> bool:
        return self._change(name, self._nodes.pop(name, None), None)

    def _change(self, who: Key | str, old: Owner | None, new: Owner | None) -> bool:
        """Who came to an address last has it, though more is told of those before; when that one
        goes, it is the former's again. Pods go before nodes, as in `groups`."""
        kept = _addresses(new)
        for ip in _addresses(old):
            if ip not in kept:
                self._claims[ip].pop(who, None)
                self._settle(ip)
        for ip in kept:
            assert new is not None
            self._claims.setdefault(ip, {})[who] = new
            self._settle(ip)
        return old != new

    def _settle(self, ip: Address) -> None:
        claims = self._claims[ip]
        if not claims:
            del self._claims[ip]
            self.owners.pop(ip, None)
            return
        latest = [*reversed(claims.values())]
        self.owners[ip] = next((o for o in latest if isinstance(o, PodView)), latest[0])


def _addresses(owner: Owner | None) -> tuple[Address, ...]:
    """Its own: pods of the host's network have their node's."""
    if owner is None or (isinstance(owner, PodView) and owner.host_network):
        return ()
    return owner.ips


def make_world(
    pods: Iterable[PodView],
    namespaces: Mapping[str, Mapping[str, str]] | None = None,
    nodes: Iterable[NodeView] = (),
    names: Mapping[str, frozenset[Address]] | None = None,
) -> World:
    """Namespaces that are only named by their pods get the label every namespace has (S7)."""
    by_key = {pod.key: pod for pod in pods}
    labels = {name: namespace_labels(name, own) for name, own in (namespaces or {}).items()}
    for key in by_key:
        if key.namespace not in labels:
            labels[key.namespace] = namespace_labels(key.namespace, {})
    return World(labels, by_key, {node.name: node for node in nodes}, names or {})


def namespace_labels(name: str, labels: Mapping[str, str]) -> dict[str, str]:
    """With `kubernetes.io/metadata.name`, which the API server sets and files do not have."""
    return {**labels, NAME_LABEL: name}


def view_namespace(namespace: Namespace) -> tuple[str, dict[str, str]]:
    name = namespace.metadata.name
    return name, namespace_labels(name, namespace.metadata.labels)


def view_node(node: Node) -> NodeView:
    """All of `status.addresses` that are addresses: a name is none."""
    ips = tuple(dict.fromkeys(ip_address(text) for text in node.ips))
    return NodeView(node.metadata.name, node.metadata.labels, ips)


def view_pod(pod: Pod | PeerPod, ips: Iterable[str] | None = None) -> PodView | None:
    """None for a pod that has ended: it is neither peer nor subject, its address may be another's
    (S18). `ips` stand for the status where it is not written yet."""
    if pod.finished:
        return None
    status = pod.status
    if ips is None:
        ips = [entry.ip for entry in status.pod_ips] or [status.pod_ip]  # 1.15 wrote `podIP` only
    sidecars = [c for c in pod.spec.init_containers if c.restart_policy == "Always"]
    return PodView(
        key=pod.key,
        labels=pod.metadata.labels,
        ips=tuple(ip_address(text) for text in ips if text),
        node=pod.spec.node_name,
        ports=tuple(
            ContainerPort(port.name, PROTOCOLS[port.protocol], port.container_port)
            for container in [*pod.spec.containers, *sidecars]
            for port in container.ports
            if port.name and port.protocol in PROTOCOLS
        ),
        host_network=pod.spec.host_network,
    )
