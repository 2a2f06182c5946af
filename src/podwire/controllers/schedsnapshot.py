"""The scheduler's picture of the cluster: per-node sums, mended pod by pod.

    add(pod, node) / remove(uid) ---> NodeInfo: requests, host ports, pods per owner
                                 \\-> Matches: per affinity term, matching pods per node

Counting "how many pods match this selector on that node" is what affinity and spreading ask again
and again, so each term asked for once is kept as a counter and mended with every pod. A decision
then costs in proportion to nodes, not to pods.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from podwire.controllers.views import Pod
from podwire.objects.core import Node, PodAffinityTerm, Taint
from podwire.objects.meta import LabelSelector
from podwire.objects.placement import HostPort, Resources, amounts, host_ports, pod_requests

_MAX_TERMS = 512


class Term(NamedTuple):
    """A label selector and the namespaces it looks in, as a hashable key."""

    selector: tuple[object, ...] | None
    namespaces: frozenset[str]
    namespace_selector: tuple[object, ...] | None


def _freeze(selector: LabelSelector | None) -> tuple[object, ...] | None:
    if selector is None:
        return None
    return (
        tuple(sorted((selector.match_labels or {}).items())),
        tuple((e.key, e.operator, tuple(e.values or ())) for e in selector.match_expressions or ()),
    )


@dataclass
class Matches:
    """A term with the number of matching pods per node."""

    selector: LabelSelector | None
    namespaces: frozenset[str]
    namespace_selector: LabelSelector | None
    per_node: Counter[str] = field(default_factory=Counter)

    def matches(self, pod: Pod, namespace_labels: Mapping[str, Mapping[str, str]]) -> bool:
        if self.selector is None:
            return False
        namespace = pod.metadata.namespace
        if namespace not in self.namespaces and not (
            self.namespace_selector is not None
            and self.namespace_selector.matches(namespace_labels.get(namespace, {}))
        ):
            return False
        return self.selector.matches(pod.metadata.labels)


@dataclass(slots=True)
class PodInfo:
    """What one bound (or assumed) pod takes from its node."""

    pod: Pod
    node: str
    requests: Resources
    ports: tuple[HostPort, ...]
    owner: str
    terminating: bool


@dataclass
class NodeInfo:
    """A node and the sums over its pods; `node` is None for one that pods name but nobody made."""

    name: str
    node: Node | None = None
    allocatable: Resources = field(default_factory=dict)
    taints: list[Taint] = field(default_factory=list)
    labels: Mapping[str, str] = field(default_factory=dict)
    used: Resources = field(default_factory=dict)
    pods: dict[str, PodInfo] = field(default_factory=dict)
    ports: Counter[HostPort] = field(default_factory=Counter)
    owners: Counter[str] = field(default_factory=Counter)

    def topology(self, key: str) -> str | None:
        return self.labels.get(key)

    def add(self, info: PodInfo) -> None:
        self.pods[info.pod.metadata.uid] = info
        for name, value in info.requests.items():
            self.used[name] = self.used.get(name, 0) + value
        self.ports.update(info.ports)
        if info.owner:
            self.owners[info.owner] += 1

    def remove(self, info: PodInfo) -> None:
        del self.pods[info.pod.metadata.uid]
        for name, value in info.requests.items():
            self.used[name] -= value
        self.ports.subtract(info.ports)
        if info.owner:
            self.owners[info.owner] -= 1


class Snapshot:
    """All nodes with their pods; changed only through its methods."""

    def __init__(self) -> None:
        self._nodes: dict[str, NodeInfo] = {}
        self.nodes: list[NodeInfo] = []
        """Nodes that exist, by name."""
        self.namespace_labels: dict[str, Mapping[str, str]] = {}
        self._pods: dict[str, PodInfo] = {}
        self._terms: dict[Term, Matches] = {}
        # Required anti-affinity of bound pods, which new pods must respect: (term, topology key).
        self._anti: dict[tuple[Term, str], Counter[str]] = {}
        self.zones: dict[str, list[NodeInfo]] = {}

    # --- nodes ---

    def set_node(self, node: Node) -> None:
        info = self._info(node.metadata.name)
        info.node = node
        info.allocatable = amounts(node.status.allocatable)
        info.taints = node.spec.taints
        info.labels = {"kubernetes.io/hostname": node.metadata.name, **node.metadata.labels}
        self._list()

    def remove_node(self, name: str) -> None:
        info = self._nodes.get(name)
        if info is not None:
            info.node = None
            if not info.pods:
                del self._nodes[name]
        self._list()

    def _info(self, name: str) -> NodeInfo:
        info = self._nodes.get(name)
        if info is None:
            info = self._nodes[name] = NodeInfo(name)
        return info

    def _list(self) -> None:
        self.nodes = sorted((n for n in self._nodes.values() if n.node), key=lambda n: n.name)
        self.zones = {}
        for info in self.nodes:
            self.zones.setdefault(info.labels.get(ZONE, ""), []).append(info)

    def topology_of(self, node: str, key: str) -> str | None:
        info = self._nodes.get(node)
        return info.labels.get(key) if info is not None else None

    # --- pods ---

    def add(self, pod: Pod, node: str) -> None:
        """Count `pod` on `node`; replaces what was known of the same pod."""
        uid = pod.metadata.uid
        known = self._pods.get(uid)
        if known is not None:
            same = known.pod.metadata.labels == pod.metadata.labels
            if known.node == node and same and known.terminating == pod.deleting:
                return
            self.remove(uid)
        controller = pod.metadata.controller
        info = PodInfo(
            pod,
            node,
            pod_requests(pod.spec),
            host_ports(pod.spec),
            controller.uid if controller else "",
            pod.deleting,
        )
        self._pods[uid] = info
        self._info(node).add(info)
        self._count(info, 1)

    def remove(self, uid: str) -> bool:
        info = self._pods.pop(uid, None)
        if info is None:
            return False
        node = self._nodes[info.node]
        node.remove(info)
        if node.node is None and not node.pods:
            del self._nodes[info.node]
        self._count(info, -1)
        return True

    def __contains__(self, uid: str) -> bool:
        return uid in self._pods

    def _count(self, info: PodInfo, by: int) -> None:
        if not info.terminating:
            for counted in self._terms.values():
                if counted.matches(info.pod, self.namespace_labels):
                    counted.per_node[info.node] += by
        for term in anti_affinity(info.pod):
            place = (self.term(info.pod, term), term.topology_key)
            self._anti.setdefault(place, Counter())[info.node] += by

    # --- terms ---

    def term(self, pod: Pod, term: PodAffinityTerm) -> Term:
        """The key of an affinity term as written in `pod`; its counter exists afterwards."""
        namespaces = frozenset(term.namespaces)
        if not namespaces and term.namespace_selector is None:
            namespaces = frozenset((pod.metadata.namespace,))
        return self._term(term.label_selector, namespaces, term.namespace_selector)

    def own_term(self, pod: Pod, selector: LabelSelector | None) -> Term:
        """The key of a selector over the pod's own namespace (topology spread)."""
        return self._term(selector, frozenset((pod.metadata.namespace,)), None)

    def _term(
        self,
        selector: LabelSelector | None,
        namespaces: frozenset[str],
        namespace_selector: LabelSelector | None,
    ) -> Term:
        key = Term(_freeze(selector), namespaces, _freeze(namespace_selector))
        if key not in self._terms:
            self._learn(key, Matches(selector, namespaces, namespace_selector))
        return key

    def _learn(self, key: Term, counted: Matches) -> None:
        if len(self._terms) >= _MAX_TERMS:
            used = {term for term, _ in self._anti}
            for old in [term for term in self._terms if term not in used][: _MAX_TERMS // 2]:
                del self._terms[old]
        for info in self._pods.values():
            if not info.terminating and counted.matches(info.pod, self.namespace_labels):
                counted.per_node[info.node] += 1
        self._terms[key] = counted

    def count(self, term: Term) -> Counter[str]:
        return self._terms[term].per_node

    def matches(self, term: Term, pod: Pod) -> bool:
        return self._terms[term].matches(pod, self.namespace_labels)

    def per_topology(self, counts: Mapping[str, int], key: str) -> Counter[str]:
        """Sums of a per-node counter by the nodes' value of a topology label."""
        sums: Counter[str] = Counter()
        for node, count in counts.items():
            value = self.topology_of(node, key) if count else None
            if value is not None:
                sums[value] += count
        return sums

    def forbidden_for(self, pod: Pod) -> list[tuple[str, Counter[str]]]:
        """(topology key, values) that the anti-affinity of bound pods closes to `pod`."""
        closed = []
        for (term, key), nodes in self._anti.items():
            if term in self._terms and self.matches(term, pod):
                values = self.per_topology(nodes, key)
                if values:
                    closed.append((key, values))
        return closed

    def set_namespace(self, name: str, labels: Mapping[str, str] | None) -> None:
        """Namespace labels decide what a namespaceSelector sees: such counters start anew."""
        if labels is None:
            self.namespace_labels.pop(name, None)
        elif self.namespace_labels.get(name) == labels:
            return
        else:
            self.namespace_labels[name] = labels
        for counted in self._terms.values():
            if counted.namespace_selector is not None:
                counted.per_node.clear()
                for info in self._pods.values():
                    if not info.terminating and counted.matches(info.pod, self.namespace_labels):
                        counted.per_node[info.node] += 1


ZONE = "topology.kubernetes.io/zone"


def anti_affinity(pod: Pod) -> list[PodAffinityTerm]:
    affinity = pod.spec.affinity
    if affinity is None or affinity.pod_anti_affinity is None:
        return []
    return affinity.pod_anti_affinity.required_during_scheduling_ignored_during_execution
