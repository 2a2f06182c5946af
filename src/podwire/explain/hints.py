"""Who a cluster's manifests say will talk to whom: addresses in settings of containers. Pure.

    env, args, command, ConfigMaps -> texts -> names and ports -> Services -> pods and their ports

A text hints at a Service when it has the Service's name and port (`cart:7070`), its name in a URL,
a name that only cluster DNS has (`cart.shop.svc`), or is nothing but its name. The port is the
Service's; what a policy needs is the port of the pods behind it. Entries (Ingress, Gateway routes,
node ports, load balancers) are hints that somebody comes in.

The idea is np-guard's cluster-topology-analyzer's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any, Final, NamedTuple

from podwire.explain.reading import without_nulls
from podwire.explain.workloads import TEMPLATES
from podwire.objects.core import Service
from podwire.objects.documents import Document
from podwire.objects.meta import Key
from podwire.policy.model import PROTOCOLS, NamedPort, PortRange
from podwire.policy.world import PodView

_SCHEMES: Final = {
    "http": 80, "https": 443, "ws": 80, "wss": 443, "ftp": 21, "redis": 6379, "rediss": 6379,
    "amqp": 5672, "amqps": 5671, "mongodb": 27017, "mysql": 3306, "postgres": 5432,
    "postgresql": 5432, "nats": 4222, "ldap": 389, "ldaps": 636, "kafka": 9092, "mqtt": 1883,
}  # fmt: skip
"""The port a URL without one means (IANA's, as drivers take it)."""
_LABEL: Final = r"[a-z0-9](?:[-a-z0-9]*[a-z0-9])?"
_TOKEN: Final = re.compile(
    rf"(?:(?P<scheme>[a-z][a-z0-9+.-]*)://(?:[^\s/@]+@)?)?"
    rf"(?<![a-z0-9_.-])(?P<host>{_LABEL}(?:\.{_LABEL})*)\.?(?::(?P<port>\d{{1,5}}))?(?![a-z0-9_-])",
    re.IGNORECASE,
)
_CLUSTER_DOMAIN: Final = (".svc.cluster.local", ".svc")


class Text(NamedTuple):
    """A setting; `where` is its field in words: `env CART_ADDR`, `args`, `ConfigMap web url`."""

    where: str
    value: str


class Hint(NamedTuple):
    """Somebody is spoken to. `whole`: the text is the name and nothing else."""

    where: str
    scheme: str
    host: str
    port: int | None
    whole: bool


def hints_in(text: Text) -> Iterator[Hint]:
    """Everything in a text that may be a name of somebody to talk to."""
    stripped = text.value.strip()
    for found in _TOKEN.finditer(text.value):
        scheme, host, port = found["scheme"] or "", found["host"].lower(), found["port"]
        number = int(port) if port and 0 < int(port) < 65536 else None
        if port and number is None:
            continue
        whole = found[0] == stripped
        if scheme or number or whole or host.endswith(_CLUSTER_DOMAIN) or "." in host:
            yield Hint(text.where, scheme.lower(), host, number, whole)


# --- settings -----------------------------------------------------------------------------------


@dataclass
class Settings:
    """What containers are told, found by the workload's document."""

    namespace: str = "default"
    _maps: dict[Key, Mapping[str, str]] = field(default_factory=dict)

    @classmethod
    def of(cls, documents: Iterable[Document], namespace: str = "default") -> Settings:
        settings = cls(namespace)
        for document in documents:
            if (document.group, document.kind) == ("", "ConfigMap"):
                data = _maps(without_nulls(document.obj.get("data")))
                texts = {str(key): str(value) for key, value in data.items()}
                key = Key(document.namespace or namespace, document.name)
                settings._maps[key] = texts
        return settings

    def texts(self, document: Document) -> Iterator[Text]:
        """Of a workload or pod: environment, command line and the ConfigMaps it is given."""
        namespace = document.namespace or self.namespace
        spec = _maps(_inside(without_nulls(document.obj), _pod_path(document)).get("spec"))
        given: dict[str, None] = {}
        for container in (
            *_list(spec.get("initContainers")),
            *_list(spec.get("containers")),
        ):
            yield from self._container(container, namespace, given)
        for volume in _list(spec.get("volumes")):
            sources = [volume, *_list(_maps(volume.get("projected")).get("sources"))]
            given |= dict.fromkeys(
                str(name)
                for source in sources
                if (name := _maps(source.get("configMap")).get("name"))
            )
        for name in given:
            for key, value in self._maps.get(Key(namespace, name), {}).items():
                yield Text(f"ConfigMap {name} {key}", value)

    def _container(
        self, container: Mapping[str, Any], namespace: str, given: dict[str, None]
    ) -> Iterator[Text]:
        for word in ("command", "args"):
            values = container.get(word)
            for value in values if isinstance(values, list) else ():
                yield Text(word, str(value))
        for entry in _list(container.get("env")):
            setting = f"env {entry.get('name', '')}"
            reference = _maps(_maps(entry.get("valueFrom")).get("configMapKeyRef"))
            if "value" in entry:
                yield Text(setting, str(entry["value"]))
            elif reference:
                data = self._maps.get(Key(namespace, str(reference.get("name", ""))), {})
                key = str(reference.get("key", ""))
                if key in data:
                    yield Text(setting, data[key])
        for entry in _list(container.get("envFrom")):
            if name := _maps(entry.get("configMapRef")).get("name"):
                given[str(name)] = None


def _pod_path(document: Document) -> tuple[str, ...]:
    return TEMPLATES.get(document.kind, ())


def _inside(value: Any, path: Iterable[str]) -> Mapping[str, Any]:
    for name in path:
        value = _maps(value).get(name)
    return _maps(value)


def _maps(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Mapping[str, Any]]:
    """The maps of what should be a list of maps: files are not validated."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


# --- names --------------------------------------------------------------------------------------


class Spoken(NamedTuple):
    """What a hint means: a Service and its ports, an address, a name outside, or `problem`."""

    hint: Hint
    service: Service | None = None
    port: int | None = None
    outside: str = ""
    outside_port: int = 0
    problem: str = ""


def resolve(hint: Hint, namespace: str, services: Mapping[Key, Service]) -> Spoken | None:
    """None for a text that only looks like a name."""
    service = _find(hint.host, namespace, services)
    if service is not None and service.spec.type == "ExternalName":
        hint = hint._replace(host=service.spec.external_name.lower().rstrip("."))
        service = _find(hint.host, namespace, services)
    if service is not None and service.spec.type != "ExternalName":
        return _port_of(hint, service)
    port = hint.port or _SCHEMES.get(hint.scheme, 0)
    if _address(hint.host):
        # A bare address is mostly one to listen on; with a port it may be, too: 0.0.0.0:80.
        address = ip_address(hint.host)
        fits = port and not (address.is_unspecified or address.is_loopback)
        return Spoken(hint, outside=str(address), outside_port=port) if fits else None
    if hint.host == "localhost" or hint.host.endswith(".localhost"):
        return None
    if hint.host.endswith(_CLUSTER_DOMAIN) or ("." not in hint.host and hint.port):
        where = f"{hint.where} names {hint.host}" + (f":{hint.port}" if hint.port else "")
        return Spoken(hint, problem=f"{where}, and there is no such Service")
    if port and hint.host.rpartition(".")[2].isalpha() and "." in hint.host:
        return Spoken(hint, outside=hint.host, outside_port=port)
    return None


def _find(host: str, namespace: str, services: Mapping[Key, Service]) -> Service | None:
    """By a name cluster DNS would answer to the pod, or by a cluster IP."""
    if address := _address(host):
        return next((s for s in services.values() if address in _cluster_ips(s)), None)
    keys = _keys_of(host, namespace)
    return next((services[key] for key in keys if key in services), None)


def _cluster_ips(service: Service) -> set[str]:
    return {service.spec.cluster_ip, *service.spec.cluster_ips}


def _address(host: str) -> str:
    try:
        return str(ip_address(host))
    except ValueError:
        return ""


def _keys_of(host: str, namespace: str) -> tuple[Key, ...]:
    """The Services a name may mean: `cart`, `cart.shop`, `cart.shop.svc.cluster.local`, and the
    name of one pod of a headless Service (`db-0.db`, `db-0.db.shop.svc`)."""
    for suffix in _CLUSTER_DOMAIN:
        if host.endswith(suffix):
            name, _, space = host.removesuffix(suffix).rpartition(".")
            return (Key(space, name.rpartition(".")[2]),)
    name, _, rest = host.partition(".")
    if not rest:
        return (Key(namespace, name),)
    if "." in rest:
        service, _, space = rest.partition(".")
        return (Key(space, service),)
    return (Key(rest, name), Key(namespace, rest))


def _port_of(hint: Hint, service: Service) -> Spoken:
    """The port the hint names must be the Service's; of a headless one it is the pod's own."""
    spec = service.spec
    if hint.port is None:
        implied = _SCHEMES.get(hint.scheme)
        known = implied in {port.port for port in spec.ports}
        return Spoken(hint, service, implied if known else None)
    if any(port.port == hint.port for port in spec.ports):
        return Spoken(hint, service, hint.port)
    if spec.cluster_ip == "None":
        return Spoken(hint, service, hint.port)
    have = ", ".join(str(port.port) for port in spec.ports) or "none"
    return Spoken(
        hint,
        problem=f"{hint.where} names {hint.host}:{hint.port}, and Service {service.key} has no "
        f"such port (it has {have})",
    )


def spoken_to(
    texts: Iterable[Text], namespace: str, services: Mapping[Key, Service]
) -> list[Spoken]:
    """What the texts of one workload mean, each once."""
    found: dict[object, Spoken] = {}
    for text in texts:
        for hint in hints_in(text):
            spoken = resolve(hint, namespace, services)
            if spoken is not None:
                key = spoken.service.key if spoken.service is not None else None
                identity = (key, spoken.port, spoken.outside, spoken.outside_port, spoken.problem)
                found.setdefault(identity, spoken)
    return list(found.values())


def ports_behind(service: Service, port: int | None, pod: PodView) -> Iterator[PortRange]:
    """The pod's own ports behind one of the Service's, or behind all of them."""
    for own in service.spec.ports:
        if port is not None and own.port != port:
            continue
        target = own.target_port or own.port
        protocol = PROTOCOLS.get(own.protocol, PROTOCOLS["TCP"])
        if isinstance(target, str):
            yield from pod.resolve(NamedPort(target, protocol))
        else:
            yield PortRange(protocol, target, target)
