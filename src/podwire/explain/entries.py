"""Ways into a cluster that objects promise: Ingress, Route, Gateway API routes. Pure.

    Ingress rule -> Service and port -> pods and their own ports: what a controller asks for

The controller itself is not in the files. It is taken for a pod of a namespace that no selector
names: policies that let every pod in let it in, others do not. What policies leave of an entry is
listed as `{ingress-controller} => ns/web[Deployment] : TCP 8080`, as np-guard does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from msgspec import field

from podwire.explain.reading import convert, name_of
from podwire.explain.workloads import Talker
from podwire.objects.core import Service, ServicePort
from podwire.objects.documents import Document
from podwire.objects.meta import Key, View
from podwire.policy.model import PROTOCOLS, NamedPort, PortRange
from podwire.policy.world import PodView

CONTROLLER: Final = "{ingress-controller}"
CONTROLLER_POD: Final = PodView(Key("ingress-controller-ns", "ingress-controller"))
ROUTES: Final = frozenset({"HTTPRoute", "GRPCRoute", "TLSRoute", "TCPRoute", "UDPRoute"})
KINDS: Final = frozenset({"Ingress", "Route"}) | ROUTES


@dataclass(frozen=True, slots=True)
class Entry:
    """`port` is the Service's, by number or name; None means all of its ports of `protocol`.

    Controllers take a pod's own port too, which the Service leads to; with `own_first` that is
    what a number means where it is both.
    """

    source: str
    service: Key
    port: int | str | None = None
    protocol: str = "TCP"
    origin: str = ""
    own_first: bool = False


class _Backend(NamedTuple):
    namespace: str
    service: str
    port: int | str | None


# --- what is read of each kind ------------------------------------------------------------------


class _ServicePortRef(View):
    name: str = ""
    number: int = 0


class _ServiceRef(View):
    name: str = ""
    port: _ServicePortRef = _ServicePortRef()


class _IngressBackend(View):
    """`service_name` is v1beta1's, which no API server has served since 1.22."""

    service: _ServiceRef | None = None
    service_name: str = ""


class _IngressPath(View):
    backend: _IngressBackend = _IngressBackend()


class _IngressHttp(View):
    paths: list[_IngressPath] = []


class _IngressRule(View):
    http: _IngressHttp = _IngressHttp()


class _IngressSpec(View):
    default_backend: _IngressBackend | None = None
    backend: _IngressBackend | None = None
    rules: list[_IngressRule] = []


class _RouteTarget(View):
    kind: str = "Service"
    name: str = ""


class _RoutePort(View):
    target_port: int | str | None = None


class _RouteSpec(View):
    to: _RouteTarget = _RouteTarget()
    alternate_backends: list[_RouteTarget] = []
    port: _RoutePort = _RoutePort()


class _ParentRef(View):
    kind: str = "Gateway"


class _BackendRef(View):
    kind: str = "Service"
    namespace: str = ""
    name: str = ""
    port: int | None = None


class _GatewayRule(View):
    backend_refs: list[_BackendRef] = field(default_factory=list, name="backendRefs")


class _GatewaySpec(View):
    parent_refs: list[_ParentRef] = field(default_factory=list, name="parentRefs")
    rules: list[_GatewayRule] = []


def read_entries(document: Document, namespace: str, warnings: list[str]) -> list[Entry]:
    """One per backend that is a Service; what else a route may lead to is not a pod.

    Raises `UsageError` for what cannot be read.
    """
    own = document.namespace or namespace
    reader = {"Ingress": _ingress, "Route": _route}.get(document.kind, _gateway_route)
    return [
        Entry(
            f"{document.kind} {own}/{document.name}",
            Key(found.namespace or own, found.service),
            found.port,
            "UDP" if document.kind == "UDPRoute" else "TCP",
            document.origin,
            own_first=document.kind == "Route",
        )
        for found in reader(document, warnings)
        if found.service
    ]


def _spec(document: Document) -> Any:
    return document.obj.get("spec") or {}


def _ingress(document: Document, warnings: list[str]) -> Iterator[_Backend]:
    spec = convert(document, _spec(document), _IngressSpec, "spec")
    backends = [b for b in (spec.default_backend, spec.backend) if b is not None]
    backends += [path.backend for rule in spec.rules for path in rule.http.paths]
    for backend in backends:
        if backend.service is not None:
            port = backend.service.port
            yield _Backend("", backend.service.name, port.name or port.number or None)
        elif backend.service_name:
            warnings.append(
                f"{document.origin}: {name_of(document)}: its backend {backend.service_name} is "
                "written as in v1beta1, which no API server takes; it leads nowhere here"
            )


def _route(document: Document, warnings: list[str]) -> Iterator[_Backend]:
    """OpenShift's: `port.targetPort` names a port of the Service or is a pod's number."""
    spec = convert(document, _spec(document), _RouteSpec, "spec")
    for target in (spec.to, *spec.alternate_backends):
        if target.kind in ("", "Service"):
            yield _Backend("", target.name, spec.port.target_port or None)


def _gateway_route(document: Document, warnings: list[str]) -> Iterator[_Backend]:
    """Only of routes that hang on a Gateway; those of Services are a mesh's."""
    spec = convert(document, _spec(document), _GatewaySpec, "spec")
    if not any(parent.kind == "Gateway" for parent in spec.parent_refs):
        return
    for rule in spec.rules:
        for backend in rule.backend_refs:
            if backend.kind == "Service":
                yield _Backend(backend.namespace, backend.name, backend.port)


# --- what they lead to --------------------------------------------------------------------------


def promised(
    entries: Iterable[Entry], services: Mapping[Key, Service], talkers: Sequence[Talker]
) -> dict[Key, set[PortRange]]:
    """Pods, by their key, and the ports that entries lead to: none that lead to no port of it."""
    found: dict[Key, set[PortRange]] = {}
    behind = _Behind(services, talkers)
    for entry in dict.fromkeys(entries):
        for pod, ports in behind.of(entry):
            if ports:
                found.setdefault(pod.key, set()).update(ports)
    return found


def lead_nowhere(
    entries: Iterable[Entry], services: Mapping[Key, Service], talkers: Sequence[Talker]
) -> Iterator[str]:
    """Warnings: backends of which nothing is listed, and why."""
    behind = _Behind(services, talkers)
    for entry in dict.fromkeys(entries):
        service = services.get(entry.service)
        told = f"{entry.origin}: {entry.source}: leads to Service {entry.service}"
        if service is None:
            yield f"{told}, which is not among these objects"
        elif not service.spec.selector:
            yield f"{told}, which has no selector: what is behind it is not known"
        elif not _asked(service, entry):
            yield f"{told}, which has no {entry.protocol} port {entry.port or ''}".rstrip()
        elif not behind.pods(entry.service):
            yield f"{told}, whose selector matches no pod"
        elif not any(ports for _, ports in behind.of(entry)):
            yield f"{told}, whose targetPort is a name that no pod behind it has"


class _Behind:
    """Who is behind Services, looked up once for each."""

    def __init__(self, services: Mapping[Key, Service], talkers: Sequence[Talker]) -> None:
        self._services = services
        self._near: dict[str, list[PodView]] = {}
        for talker in talkers:
            self._near.setdefault(talker.view.key.namespace, []).append(talker.view)
        self._pods: dict[Key, list[PodView]] = {}

    def pods(self, key: Key) -> list[PodView]:
        if key not in self._pods:
            service = self._services.get(key)
            near = self._near.get(key.namespace, []) if service is not None else []
            self._pods[key] = [pod for pod in near if service and selected_by(service, pod)]
        return self._pods[key]

    def of(self, entry: Entry) -> Iterator[tuple[PodView, list[PortRange]]]:
        """Pods an entry leads to, with the ports of each that it means."""
        for pod in self.pods(entry.service):
            yield pod, list(target_ports(self._services[entry.service], entry, pod))


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
    for port in _asked(service, entry):
        target = port.target_port or port.port
        protocol = PROTOCOLS[port.protocol]
        if isinstance(target, str):
            yield from pod.resolve(NamedPort(target, protocol))
        else:
            yield PortRange(protocol, target, target)


def _asked(service: Service, entry: Entry) -> list[ServicePort]:
    """The Service's ports an entry means."""
    ports = [port for port in service.spec.ports if port.protocol == entry.protocol]
    if entry.port in (None, ""):
        return ports
    by_service = [port for port in ports if entry.port in (port.name, port.port)]
    by_pod = [port for port in ports if entry.port == port.target_port]
    return (by_pod or by_service) if entry.own_first else (by_service or by_pod)
