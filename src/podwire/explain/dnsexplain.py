"""Why a name resolves as it does in one pod: every step of the search, each with its reason. Pure.

    resolv.conf -> names tried -> what was answered -> why (from Services, slices, Namespaces)

The answers come from the wire, the reasons from the objects; where they contradict each other the
step says so, because one of the two is then wrong.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Final

from podwire.explain.dnssearch import candidates, parse_resolver
from podwire.explain.dnswire import DnsExchange, DnsResponse
from podwire.objects.core import Namespace, Service
from podwire.objects.discovery import Endpoint, EndpointSlice
from podwire.objects.meta import Key, View

API_VERSION: Final = "podwire.dev/v1alpha1"
_SHOWN: Final = 4


class DnsStep(View):
    """One query. `why` is empty for names the objects say nothing about; `wasted`: the search list
    made it, and it found nothing."""

    name: str
    type: str
    server: str = ""
    rcode: str = ""
    records: list[str] = []
    why: str = ""
    wasted: bool = False
    contradicts: bool = False
    took_ms: float = 0.0
    tries: int = 1
    tcp: bool = False
    error: str = ""


class DnsExplanation(View):
    api_version: str = API_VERSION
    kind: str = "DnsExplanation"
    pod: str = ""
    name: str = ""
    nameservers: list[str] = []
    searches: list[str] = []
    ndots: int = 1
    hosts: str = ""
    steps: list[DnsStep] = []
    resolved: list[str] = []
    wasted: int = 0
    summary: str = ""


@dataclass(frozen=True)
class DnsWorld:
    """What the cluster's names mean. `slices` are by their Service."""

    services: Mapping[Key, Service] = field(default_factory=dict)
    slices: Mapping[Key, tuple[EndpointSlice, ...]] = field(default_factory=dict)
    namespaces: frozenset[str] = frozenset()
    domain: str = "cluster.local"


def make_world(
    services: Iterable[Service],
    slices: Iterable[EndpointSlice],
    namespaces: Iterable[Namespace],
    domain: str = "cluster.local",
) -> DnsWorld:
    by_service: dict[Key, tuple[EndpointSlice, ...]] = {}
    for each in slices:
        key = Key(each.metadata.namespace, each.service_name)
        by_service[key] = (*by_service.get(key, ()), each)
    return DnsWorld(
        {service.key: service for service in services},
        by_service,
        frozenset(namespace.metadata.name for namespace in namespaces),
        domain,
    )


def explain_dns(pod: str, name: str, response: DnsResponse, world: DnsWorld) -> DnsExplanation:
    """The whole answer of `podwire dns explain`."""
    resolver = parse_resolver(response.resolv_conf)
    found = {exchange.name for exchange in response.exchanges if exchange.found}
    steps = [_step(exchange, found, world) for exchange in response.exchanges]
    resolved = [line for exchange in response.exchanges for line in exchange.records]
    wasted = sum(step.wasted for step in steps)
    return DnsExplanation(
        pod=pod,
        name=name,
        nameservers=list(resolver.nameservers),
        searches=list(resolver.searches),
        ndots=resolver.ndots,
        hosts=response.hosts,
        steps=steps,
        resolved=resolved,
        wasted=wasted,
        summary=_summary(name, response, resolved, wasted, len(candidates(resolver, name))),
    )


def _step(exchange: DnsExchange, found: set[str], world: DnsWorld) -> DnsStep:
    why, exists = reason(exchange.name, exchange.type, world)
    contradicts = (
        exists is not None and not exchange.error and exists != (exchange.rcode == "NOERROR")
    )
    return DnsStep(
        name=exchange.name,
        type=exchange.type,
        server=exchange.server,
        rcode=_shown_rcode(exchange),
        records=list(exchange.records),
        why=why,
        wasted=bool(found) and exchange.name not in found,
        contradicts=contradicts,
        took_ms=exchange.took_ms,
        tries=exchange.tries,
        tcp=exchange.tcp,
        error=exchange.error,
    )


def _shown_rcode(exchange: DnsExchange) -> str:
    empty = exchange.rcode == "NOERROR" and not exchange.records
    return "NODATA" if empty else exchange.rcode


def _summary(name: str, response: DnsResponse, resolved: list[str], wasted: int, tried: int) -> str:
    if response.hosts:
        return f"{name}: from /etc/hosts, before any name server: {response.hosts}"
    if resolved:
        if not wasted:
            return f"{name}: resolves with its first query"
        return (
            f"{name}: resolves after {wasted} wasted {'query' if wasted == 1 else 'queries'}; "
            "a final dot, or a lower ndots in dnsConfig, saves them"
        )
    # What was not even asked for is no lack of an answer.
    errors = [
        exchange.error for exchange in response.exchanges if exchange.tries and exchange.error
    ]
    if errors:
        return f"{name}: no answer: {errors[0]}"
    return f"{name}: does not resolve; {tried} {'name was' if tried == 1 else 'names were'} tried"


# --- reasons ---------------------------------------------------------------------------------


def reason(name: str, rdtype: str, world: DnsWorld) -> tuple[str, bool | None]:
    """Why, in words, and whether the name exists; None where the objects do not tell."""
    bare = name.rstrip(".").lower()
    if bare.endswith((".in-addr.arpa", ".ip6.arpa")):
        return _reverse(bare, world)
    domain = world.domain.lower()
    if bare != domain and not bare.endswith(f".{domain}"):
        return "not a name of the cluster: the upstream was asked", None
    labels = bare.removesuffix(domain).rstrip(".").split(".")
    if labels in ([""], ["svc"], ["pod"], ["dns-version"], ["dns"], ["ns", "dns"]):
        return "a name of the zone itself", True
    *rest, kind = labels
    if kind == "svc":
        return _below_svc(rest, rdtype, world)
    if kind == "pod":
        return "pod records depend on the server's `pods` option", None
    return f"{kind!r} is neither `svc` nor `pod`: nothing in the zone has this name", False


def _below_svc(labels: list[str], rdtype: str, world: DnsWorld) -> tuple[str, bool | None]:
    *rest, namespace = labels
    if namespace not in world.namespaces:
        return f"there is no namespace {namespace}", False
    if not rest:
        return f"namespace {namespace}: names have a Service before it", True
    *above, name = rest
    key = Key(namespace, name)
    service = world.services.get(key)
    if service is None:
        hint = _elsewhere(name, namespace, world)
        return f"namespace {namespace} has no Service {name}{hint}", False
    if service.spec.type == "ExternalName":
        if above:
            return f"Service {key} is an ExternalName: nothing is below it", False
        return f"Service {key} is an alias of {service.spec.external_name}", None
    if above:
        return _within(service, above, world)
    if service.spec.headless:
        return _headless(service, rdtype, world)
    return _clustered(service, rdtype), True


def _elsewhere(name: str, namespace: str, world: DnsWorld) -> str:
    others = sorted(k.namespace for k in world.services if k.name == name)
    others = [other for other in others if other != namespace]
    return f" (namespace {', '.join(others[:_SHOWN])} has)" if others else ""


def _clustered(service: Service, rdtype: str) -> str:
    addresses = service.spec.cluster_ips or [service.spec.cluster_ip]
    version = {"A": 4, "AAAA": 6}.get(rdtype)
    if version is not None and all(ip_address(ip).version != version for ip in addresses):
        return f"Service {service.key} has no IPv{version} address, only {', '.join(addresses)}"
    return f"Service {service.key}, cluster IP {', '.join(addresses)}"


def _endpoints(service: Service, world: DnsWorld) -> list[Endpoint]:
    slices = world.slices.get(service.key, ())
    return [endpoint for each in slices for endpoint in each.endpoints]


def _answering(service: Service, world: DnsWorld) -> list[Endpoint]:
    # publishNotReadyAddresses is in the slices already: they say ready.
    return [endpoint for endpoint in _endpoints(service, world) if endpoint.ready]


def _headless(service: Service, rdtype: str, world: DnsWorld) -> tuple[str, bool | None]:
    every, ready = _endpoints(service, world), _answering(service, world)
    what = f"Service {service.key} is headless"
    if not every:
        return f"{what} and has no endpoints", False
    if not ready:
        return f"{what} and none of its {len(every)} endpoints is ready", False
    addresses = [address for endpoint in ready for address in endpoint.addresses]
    more = f" and {len(addresses) - _SHOWN} more" if len(addresses) > _SHOWN else ""
    version = {"A": 4, "AAAA": 6}.get(rdtype)
    if version is not None and all(ip_address(a).version != version for a in addresses):
        return f"{what}; its endpoints have no IPv{version} address", True
    return f"{what}: ready endpoints {', '.join(addresses[:_SHOWN])}{more}", True


def _within(service: Service, labels: list[str], world: DnsWorld) -> tuple[str, bool | None]:
    """Below a Service: `_port._protocol`, or an endpoint's name."""
    text = ".".join(labels)
    if len(labels) == 2 and all(label.startswith("_") for label in labels):
        port, protocol = (label.removeprefix("_") for label in labels)
        named = [p for p in service.spec.ports if p.name == port]
        if any(p.protocol.lower() == protocol for p in named):
            return f"port {port} of Service {service.key}", None
        known = ", ".join(f"_{p.name}._{p.protocol.lower()}" for p in service.spec.ports if p.name)
        return (
            f"Service {service.key} has no port {text}; it has {known or 'no named ports'}",
            False,
        )
    if any(p.name and f"_{p.protocol.lower()}" == text for p in service.spec.ports):
        return f"above the names of ports of Service {service.key}", True
    if len(labels) != 1:
        return f"nothing is that far below Service {service.key}", False
    ready = _answering(service, world)
    if any(endpoint.hostname == text for endpoint in ready):
        return f"endpoint {text} of Service {service.key}", True
    if any(endpoint.hostname == text for endpoint in _endpoints(service, world)):
        return f"endpoint {text} of Service {service.key} is not ready", False
    dashed = {a.replace(".", "-").replace(":", "-") for e in ready for a in e.addresses}
    if text in dashed:
        return f"an endpoint's address of Service {service.key}", None
    return f"Service {service.key} has no endpoint with the host name {text}", False


def _reverse(name: str, world: DnsWorld) -> tuple[str, bool | None]:
    address = _address_of(name)
    for key, service in world.services.items():
        if address in (service.spec.cluster_ips or [service.spec.cluster_ip]):
            return f"{address} is the cluster IP of Service {key}", True
        if any(address in endpoint.addresses for endpoint in _endpoints(service, world)):
            return f"{address} is an endpoint of Service {key}", None
    return f"no Service has the address {address or name}: the upstream was asked", None


def _address_of(name: str) -> str:
    """The address a reverse name spells, or ""."""
    labels = name.split(".")[:-2][::-1]
    text = ".".join(labels)
    if name.endswith(".ip6.arpa"):
        digits = "".join(labels)
        text = ":".join(digits[i : i + 4] for i in range(0, len(digits), 4))
    try:
        return str(ip_address(text))
    except ValueError:
        return ""
