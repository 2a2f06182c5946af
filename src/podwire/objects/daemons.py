"""Which nodes a DaemonSet's pods belong on. Source: pkg/controller/daemon (NodeShouldRunDaemonPod).

Pure; the controller acts by it, and whoever waits for a DaemonSet counts by it: its status says
nothing yet of a node that has just come.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import msgspec

from podwire.objects.apps import DaemonSet
from podwire.objects.core import Node, PodSpec, Toleration
from podwire.objects.meta import JsonObject
from podwire.objects.placement import Placed, node_affinity_fits, untolerated

_NODE_TAINTS = "node.kubernetes.io"
_TOLERATED = (
    ("not-ready", "NoExecute"),
    ("unreachable", "NoExecute"),
    ("disk-pressure", "NoSchedule"),
    ("memory-pressure", "NoSchedule"),
    ("pid-pressure", "NoSchedule"),
    ("unschedulable", "NoSchedule"),
)


class Daemon(Placed, Protocol):
    @property
    def node_name(self) -> str: ...
    @property
    def tolerations(self) -> Sequence[Toleration]: ...


def daemon_template(template: Mapping[str, Any]) -> JsonObject:
    """The pod template with the tolerations every daemon pod gets."""
    spec = dict(template.get("spec") or {})
    tolerated = list(_TOLERATED)
    if spec.get("hostNetwork"):
        tolerated.append(("network-unavailable", "NoSchedule"))
    extra = [
        {"key": f"{_NODE_TAINTS}/{key}", "operator": "Exists", "effect": effect}
        for key, effect in tolerated
    ]
    have = spec.get("tolerations") or []
    spec["tolerations"] = [*have, *(t for t in extra if t not in have)]
    return {**template, "spec": spec}


def suits(spec: Daemon, node: Node) -> tuple[bool, bool]:
    """(a pod should run there, one that is there may stay)."""
    name = node.metadata.name
    labels: Mapping[str, str] = {"kubernetes.io/hostname": name, **node.metadata.labels}
    if spec.node_name not in ("", name) or not node_affinity_fits(spec, labels, name):
        return False, False
    taints = node.spec.taints
    stays = untolerated(taints, spec.tolerations, ("NoExecute",)) is None
    runs = stays and untolerated(taints, spec.tolerations, ("NoSchedule",)) is None
    return runs, stays


def count_suitable(daemons: DaemonSet, nodes: Iterable[Node]) -> int:
    """How many of the nodes should run one of its pods."""
    spec = msgspec.convert(daemon_template(daemons.spec.template)["spec"], PodSpec)
    return sum(suits(spec, node)[0] for node in nodes)
