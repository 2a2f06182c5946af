"""Ways into a cluster that objects promise: Ingress, Route, Gateway API routes. Pure.

    Ingress rule -> Service and port -> pods and their own ports: what a controller asks for

The controller itself is not in the files. It is taken for a pod of a namespace that no selector
names: policies that let every pod in let it in, others do not. What policies leave of an entry is
listed as `{ingress-controller} => ns/web[Deployment] : TCP 8080`, as np-guard does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from podwire.explain.reading import without_nulls
from podwire.explain.workloads import Talker
from podwire.objects.core import Service
from podwire.objects.documents import Document
from podwire.objects.meta import Key
from podwire.policy.model import PROTOCOLS, NamedPort, PortRange
from podwire.policy.world import PodView

CONTROLLER: Final = "{ingress-controller}"
CONTROLLER_POD: Final = PodView(Key("ingress-controller-ns", "ingress-controller"))
ROUTES: Final = frozenset({"HTTPRoute", "GRPCRoute", "TLSRoute", "TCPRoute", "UDPRoute"})
KINDS: Final = frozenset({"Ingress", "Route"}) | ROUTES


@dataclass(frozen=True, slots=True)
class Entry:
    """`port` is the Service's, by number or name; None means all of its ports of `protocol`."""

    source: str
    service: Key
    port: int | str | None = None
    protocol: str = "TCP"
    origin: str = ""


def read_entries(document: Document, namespace: str = "default") -> list[Entry]:
    """One per backend that is a Service; what else a route may lead to is not a pod."""
    own = document.namespace or namespace
    spec = without_nulls(document.obj.get("spec") or {})
    reader = {"Ingress": _ingress, "Route": _route}.get(document.kind, _gateway_route)
    source = f"{document.kind} {own}/{document.name}"
    protocol = "UDP" if document.kind == "UDPRoute" else "TCP"
    return [
        Entry(source, Key(other or own, name), port, protocol, document.origin)
        for other, name, port in reader(spec)
        if name
    ]


def _maps(value: Any) -> Iterator[Mapping[str, Any]]:
    """The maps in what should be a list of maps: files are not validated."""
    yield from (item for item in value or () if isinstance(item, dict))


def _ingress(spec: Mapping[str, Any]) -> Iterator[tuple[str, str, int | str | None]]:
    backends = [spec.get("defaultBackend") or {}]
    for rule in _maps(spec.get("rules")):
        backends += [p.get("backend") or {} for p in _maps((rule.get("http") or {}).get("paths"))]
    for backend in backends:
        service = backend.get("service") or {}
        port = service.get("port") or {}
        yield "", service.get("name", ""), port.get("name") or port.get("number")


def _route(spec: Mapping[str, Any]) -> Iterator[tuple[str, str, int | str | None]]:
    """OpenShift's: `port.targetPort` names a port of the Service or is a pod's number."""
    port = (spec.get("port") or {}).get("targetPort")
    for backend in [spec.get("to") or {}, *_maps(spec.get("alternateBackends"))]:
        if backend.get("kind", "Service") == "Service":
            yield "", backend.get("name", ""), port


def _gateway_route(spec: Mapping[str, Any]) -> Iterator[tuple[str, str, int | str | None]]:
    """Only of routes that hang on a Gateway; those of Services are a mesh's."""
    parents = [parent.get("kind", "Gateway") for parent in _maps(spec.get("parentRefs"))]
    if "Gateway" not in parents:
        return
    for rule in _maps(spec.get("rules")):
        for backend in _maps(rule.get("backendRefs")):
            if backend.get("kind", "Service") == "Service":
                yield backend.get("namespace", ""), backend.get("name", ""), backend.get("port")


# --- what they lead to --------------------------------------------------------------------------


def promised(
    entries: Iterable[Entry], services: Mapping[Key, Service], talkers: Sequence[Talker]
) -> dict[Key, set[PortRange]]:
    """Pods, by their key, and the ports that entries lead to."""
    found: dict[Key, set[PortRange]] = {}
    for entry in entries:
        service = services.get(entry.service)
        if service is None or not service.spec.selector:
            continue
        for talker in talkers:
            if selected_by(service, talker.view):
                ports = target_ports(service, entry, talker.view)
                found.setdefault(talker.view.key, set()).update(ports)
    return found


def selected_by(service: Service, pod: PodView) -> bool:
    """Services of files have no namespace written where they mean the default one; see the key."""
    selector = service.spec.selector
    return (
        bool(selector)
        and service.metadata.namespace == pod.key.namespace
        and all(pod.labels.get(key) == value for key, value in selector.items())
    )


def target_ports(service: Service, entry: Entry, pod: PodView) -> Iterator[PortRange]:
    """What the pod's ports are behind the Service's port, which has a number or a name."""
    for port in service.spec.ports:
        if entry.port not in (None, "", port.name, port.port, port.target_port):
            continue
        if port.protocol != entry.protocol:
            continue
        target = port.target_port or port.port
        protocol = PROTOCOLS.get(port.protocol, 0)
        if isinstance(target, str):
            yield from pod.resolve(NamedPort(target, protocol))
        else:
            yield PortRange(protocol, target, target)
