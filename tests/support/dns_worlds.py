"""What the tests of cluster DNS share: objects in a line each, a world of them, questions to it."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype

from podwire.dns.answers import Answers
from podwire.dns.index import Changes, Index, ZoneOptions
from podwire.dns.records import Zone
from podwire.dns.seam import Client
from podwire.dns.views import (
    SERVICE_NAME_LABEL,
    Conditions,
    Endpoint,
    Namespace,
    Pod,
    PodIp,
    PodStatus,
    Port,
    Service,
    ServiceSpec,
    Slice,
    Target,
)
from podwire.objects.meta import ObjectMeta

UDP = Client("10.244.0.9", 40000, False)
TCP = Client("10.244.0.9", 40000, True)
HTTP = Port(name="http", protocol="TCP", port=80)
_VERSIONS = itertools.count(1000)


def meta(name: str, namespace: str = "", labels: dict[str, str] | None = None) -> ObjectMeta:
    return ObjectMeta(
        name=name,
        namespace=namespace,
        labels=labels or {},
        resource_version=str(next(_VERSIONS)),
    )


def cluster_ip(
    namespace: str,
    name: str,
    *addresses: str,
    ports: Sequence[Port] = (HTTP,),
    labels: dict[str, str] | None = None,
) -> Service:
    spec = ServiceSpec(cluster_ip=addresses[0], cluster_ips=addresses, ports=tuple(ports))
    return Service(metadata=meta(name, namespace, labels), spec=spec)


def headless(namespace: str, name: str, ports: Sequence[Port] = ()) -> Service:
    return cluster_ip(namespace, name, "None", ports=ports)


def external(namespace: str, name: str, target: str) -> Service:
    spec = ServiceSpec(type="ExternalName", external_name=target, ports=(HTTP,))
    return Service(metadata=meta(name, namespace), spec=spec)


def endpoint(
    *addresses: str, host: str | None = None, ready: bool | None = True, pod: str = ""
) -> Endpoint:
    return Endpoint(
        addresses=addresses,
        hostname=host,
        conditions=Conditions(ready=ready),
        target_ref=Target(name=pod) if pod else None,
    )


def slice_of(
    namespace: str,
    service: str,
    *endpoints: Endpoint,
    ports: Sequence[Port] = (HTTP,),
    suffix: str = "abcde",
    family: str = "IPv4",
) -> Slice:
    labels = {SERVICE_NAME_LABEL: service}
    return Slice(
        metadata=meta(f"{service}-{suffix}", namespace, labels),
        address_type=family,
        endpoints=endpoints,
        ports=tuple(ports),
    )


def pod(namespace: str, name: str, *addresses: str, phase: str = "Running") -> Pod:
    status = PodStatus(
        phase=phase, pod_ip=addresses[0], pod_ips=tuple(PodIp(ip=ip) for ip in addresses)
    )
    return Pod(metadata=meta(name, namespace), status=status)


@dataclass
class World:
    """Objects, and the answers made of them one change at a time."""

    namespaces: Iterable[str] = ()
    services: Iterable[Service] = ()
    slices: Iterable[Slice] = ()
    pods: Iterable[Pod] = ()
    options: ZoneOptions = field(default_factory=ZoneOptions)
    rotate: bool = False

    def __post_init__(self) -> None:
        self.index = Index(self.options)
        self.answers = Answers(Zone(self.index), rotate=self.rotate)
        for name in self.namespaces:
            self.set_namespace(name)
        for service in self.services:
            self.set_service(service)
        for item in self.slices:
            self.set_slice(item)
        for item in self.pods:
            self._told(self.index.set_pod(item.key, None, item))
        self.answers.mark_synced()

    def _told(self, changes: Changes) -> Changes:
        self.answers.evict(changes)
        return changes

    def set_namespace(self, name: str, labels: dict[str, str] | None = None) -> Changes:
        item = Namespace(metadata=meta(name, labels=labels))
        return self._told(self.index.set_namespace(item.key, item))

    def remove_namespace(self, name: str) -> Changes:
        return self._told(self.index.set_namespace(Namespace(metadata=meta(name)).key, None))

    def set_service(self, service: Service) -> Changes:
        return self._told(self.index.set_service(service.key, service))

    def remove_service(self, service: Service) -> Changes:
        return self._told(self.index.set_service(service.key, None))

    def set_slice(self, item: Slice) -> Changes:
        return self._told(self.index.set_slice(item.key, item))

    def remove_slice(self, item: Slice) -> Changes:
        return self._told(self.index.set_slice(item.key, None))

    def ask(self, name: str, rtype: str = "A", *, tcp: bool = True) -> dns.message.Message:
        """The response, by TCP unless told: cut short only where a test wants it."""
        query = dns.message.make_query(name, rtype, use_edns=False)
        response = self.answers.answer(query.to_wire(), TCP if tcp else UDP)
        assert response, f"{name} {rtype}: {response!r}"
        message = dns.message.from_wire(response)
        assert message.id == query.id
        assert message.flags & dns.flags.QR
        return message


def rows(section: Iterable[dns.rrset.RRset], serial: str = "SERIAL") -> list[str]:
    """A section's records as lines of a zone file, sorted; the SOA's serial reads SERIAL."""
    lines = []
    for rrset in section:
        for rdata in rrset:
            text = rdata.to_text()
            if rdata.rdtype == dns.rdatatype.SOA:
                words = text.split()
                words[2] = serial
                text = " ".join(words)
            kind = dns.rdatatype.to_text(rdata.rdtype)
            lines.append(f"{rrset.name} {rrset.ttl} IN {kind} {text}")
    return sorted(lines)


def expected(text: str) -> list[str]:
    """Lines of a zone file, one record each, spacing free."""
    return sorted(" ".join(line.split()) for line in text.strip().splitlines() if line.strip())
