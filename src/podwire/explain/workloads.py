"""Who would talk, read from manifests: workloads and pods, folded by owner. Pure.

    Deployment, StatefulSet, ... -> its pod template -> one PodView with the template's labels
    Pod                          -> a PodView; pods of one controller are one workload

A workload of which pods are there too is known by its pods: they are what policies meet.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple

from podwire.explain.endpoints import Port
from podwire.explain.reading import (
    check_address,
    check_port,
    check_protocol,
    convert,
    refuse,
)
from podwire.objects.documents import Document
from podwire.objects.meta import Key, ObjectMeta, OwnerReference
from podwire.objects.policy import PeerPod
from podwire.policy.world import PodView, view_pod

TEMPLATES: Final[Mapping[str, tuple[str, ...]]] = {
    "Deployment": ("spec", "template"),
    "StatefulSet": ("spec", "template"),
    "DaemonSet": ("spec", "template"),
    "ReplicaSet": ("spec", "template"),
    "ReplicationController": ("spec", "template"),
    "Job": ("spec", "template"),
    "CronJob": ("spec", "jobTemplate", "spec", "template"),
}
"""Where each workload kind keeps the pod it makes."""


class Owner(NamedTuple):
    namespace: str
    kind: str
    name: str

    def __str__(self) -> str:
        """In np-guard's words: `ns/web[Deployment]`."""
        return f"{self.namespace}/{self.name}[{self.kind}]"


@dataclass(frozen=True, slots=True)
class Talker:
    """A pod, or what a template makes, as policies see it; `ports` are the declared ones."""

    view: PodView
    owner: Owner
    ports: tuple[Port, ...] = ()
    origin: str = ""

    @property
    def real(self) -> bool:
        """A pod of its own, not what a template will make."""
        return "[" not in self.view.key.name

    def __str__(self) -> str:
        """As it is called where its owner's pods are not alike."""
        return f"{self.view.key}[Pod]" if self.real else str(self.owner)


@dataclass
class Gathered:
    """Workloads while documents are read."""

    namespace: str = "default"
    _templates: list[Talker] = field(default_factory=list)
    _pods: list[Talker] = field(default_factory=list)
    _owners: dict[Owner, Owner | None] = field(default_factory=dict)
    """Workloads that were read, with who made them."""

    def add(self, document: Document) -> None:
        """Raises `UsageError` for what has no readable pod."""
        metadata = convert(document, document.obj.get("metadata") or {}, ObjectMeta, "metadata")
        own = Owner(metadata.namespace or self.namespace, document.kind, metadata.name)
        controller = _controller(own, metadata.controller)
        if document.kind == "Pod":
            pod = convert(document, document.obj, PeerPod)
            _check(document, pod, "")
            self._add_pod(document, pod, own, controller)
            return
        self._owners[own] = controller
        path = TEMPLATES[document.kind]
        found = _inside(document, path)
        if found is None:
            refuse(document, ".".join(path), "Required value")
        template = convert(document, found, PeerPod, ".".join(path))
        _check(document, template, ".".join(path) + ".")
        made = _view(template, Key(own.namespace, f"{own.name}[{own.kind}]"))
        if made is not None:
            self._templates.append(Talker(made, own, declared(template), document.origin))

    def _add_pod(
        self, document: Document, pod: PeerPod, own: Owner, controller: Owner | None
    ) -> None:
        # One that an API server is to name gets a name like it.
        name = pod.metadata.name or f"{pod.metadata.generate_name}x{len(self._pods)}"
        view = _view(pod, Key(own.namespace, name))
        if view is not None:
            owner = controller or Owner(own.namespace, "Pod", name)
            self._pods.append(Talker(view, owner, declared(pod), document.origin))

    def talkers(self) -> list[Talker]:
        """Pods under the uppermost of their owners that is here, or the one that made them; then
        templates without pods."""
        pods = [Talker(pod.view, self._top(pod.owner), pod.ports, pod.origin) for pod in self._pods]
        present = {pod.owner for pod in pods}
        return pods + [
            template
            for template in self._templates
            if template.owner not in present and self._top(template.owner) == template.owner
        ]

    def _top(self, owner: Owner) -> Owner:
        seen = {owner}
        above = self._owners.get(owner)
        while above is not None and above in self._owners and above not in seen:
            seen.add(above)
            owner, above = above, self._owners[above]
        return owner


def _controller(own: Owner, reference: OwnerReference | None) -> Owner | None:
    """Static pods belong to their Node, which is no workload."""
    if reference is None or reference.kind == "Node":
        return None
    return Owner(own.namespace, reference.kind or "Pod", reference.name)


def _check(document: Document, pod: PeerPod, path: str) -> None:
    """What the pod's ports and addresses are read from, where `path` leads to it."""
    spec = pod.spec
    for word, containers in (
        ("containers", spec.containers),
        ("initContainers", spec.init_containers),
    ):
        for i, container in enumerate(containers):
            for j, port in enumerate(container.ports):
                where = f"{path}spec.{word}[{i}].ports[{j}]"
                check_port(document, f"{where}.containerPort", port.container_port)
                check_protocol(document, f"{where}.protocol", port.protocol)
    for i, entry in enumerate(pod.status.pod_ips):
        if entry.ip:
            check_address(document, f"{path}status.podIPs[{i}].ip", entry.ip)
    if pod.status.pod_ip:
        check_address(document, f"{path}status.podIP", pod.status.pod_ip)


def _view(pod: PeerPod, key: Key) -> PodView | None:
    view = view_pod(pod)
    return None if view is None else replace(view, key=key)


def declared(pod: PeerPod) -> tuple[Port, ...]:
    """The containerPorts, without repetition; init containers with restartPolicy Always too."""
    sidecars = [c for c in pod.spec.init_containers if c.restart_policy == "Always"]
    seen = {
        (port.protocol, port.container_port): Port(port.container_port, port.protocol, port.name)
        for container in [*pod.spec.containers, *sidecars]
        for port in container.ports
    }
    return tuple(seen[key] for key in sorted(seen))


def _inside(document: Document, path: Iterable[str]) -> Any:
    value: Any = document.obj
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value
