"""Tables of Services, endpoints, Ingresses and network policies."""

from __future__ import annotations

from typing import Any

from podwire.apiserver.printers.columns import (
    AGE,
    NAME,
    NONE,
    UNKNOWN,
    UNSET,
    at,
    get,
    join,
    pairs,
    selector,
    spec,
)
from podwire.objects.meta import JsonObject

_SHOWN = 3
"""More endpoints than this are counted, not listed."""


def _load_balancer(obj: JsonObject) -> list[str]:
    entries = get(obj, "status", "loadBalancer", "ingress", default=())
    return [e.get("ip") or e.get("hostname", "") for e in entries]


def _external_ip(service: JsonObject) -> str:
    external: list[str] = get(service, "spec", "externalIPs", default=[])
    match get(service, "spec", "type", default="ClusterIP"):
        case "LoadBalancer":
            shown = sorted({ip for ip in _load_balancer(service) if ip})
            return join([*shown, *external], "<pending>")
        case "ExternalName":
            return str(get(service, "spec", "externalName", default=""))
    return join(external, NONE)


def _service_port(port: JsonObject) -> str:
    node = f":{port['nodePort']}" if port.get("nodePort") else ""
    return f"{port['port']}{node}/{port.get('protocol', 'TCP')}"


def _service_ports(service: JsonObject) -> str:
    return join(map(_service_port, get(service, "spec", "ports", default=())), NONE)


def _limited(items: list[str]) -> str:
    if len(items) > _SHOWN:
        return f"{','.join(items[:_SHOWN])} + {len(items) - _SHOWN} more..."
    return ",".join(items)


def _join_host_port(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _endpoints(obj: JsonObject) -> str:
    found: list[str] = []
    for subset in obj.get("subsets") or ():
        addresses = [a["ip"] for a in subset.get("addresses") or ()]
        ports = subset.get("ports") or ()
        if not ports:
            found += addresses
        for port in ports:
            found += [_join_host_port(address, port["port"]) for address in addresses]
    return _limited(found) or NONE


def _slice_ports(obj: JsonObject) -> str:
    ports = [str(p["port"]) if p.get("port") is not None else "*" for p in obj.get("ports") or ()]
    return _limited(ports) or UNSET


def _slice_endpoints(obj: JsonObject) -> str:
    found: list[str] = [a for e in obj.get("endpoints") or () for a in e.get("addresses") or ()]
    return _limited(found) or UNSET


def _hosts(ingress: JsonObject) -> str:
    hosts = [r["host"] for r in get(ingress, "spec", "rules", default=()) if r.get("host")]
    return _limited(hosts) or "*"


def _parameters(obj: JsonObject) -> str:
    ref: dict[str, Any] | None = get(obj, "spec", "parameters")
    if ref is None:
        return NONE
    group = f".{ref['apiGroup']}" if ref.get("apiGroup") else ""
    return f"{ref['kind']}{group}/{ref['name']}"


def _parent(obj: JsonObject) -> str:
    ref = get(obj, "spec", "parentRef", default={})
    group, namespace = ref.get("group", ""), ref.get("namespace", "")
    resource = f"{ref.get('resource', '')}.{group}" if group else ref.get("resource", "")
    return "/".join(part for part in (resource, namespace, ref.get("name", "")) if part)


TABLES = {
    ("", "Service"): spec(
        NAME,
        ("Type", at("spec", "type", default="ClusterIP")),
        ("Cluster-IP", lambda o: get(o, "spec", "clusterIP") or NONE),
        ("External-IP", _external_ip),
        ("Port(s)", _service_ports),
        AGE,
        ("Selector", lambda o: pairs(get(o, "spec", "selector")), "wide"),
    ),
    ("", "Endpoints"): spec(NAME, ("Endpoints", _endpoints), AGE),
    ("discovery.k8s.io", "EndpointSlice"): spec(
        NAME,
        ("AddressType", at("addressType")),
        ("Ports", _slice_ports),
        ("Endpoints", _slice_endpoints),
        AGE,
    ),
    ("networking.k8s.io", "Ingress"): spec(
        NAME,
        ("Class", at("spec", "ingressClassName", default=NONE)),
        ("Hosts", _hosts),
        ("Address", lambda o: join(_load_balancer(o))),
        ("Ports", lambda o: "80, 443" if get(o, "spec", "tls") else "80"),
        AGE,
    ),
    ("networking.k8s.io", "IngressClass"): spec(
        NAME,
        ("Controller", at("spec", "controller")),
        ("Parameters", _parameters),
        AGE,
    ),
    ("networking.k8s.io", "NetworkPolicy"): spec(
        NAME, ("Pod-Selector", lambda o: selector(get(o, "spec", "podSelector"))), AGE
    ),
    ("networking.k8s.io", "IPAddress"): spec(NAME, ("ParentRef", _parent)),
    ("networking.k8s.io", "ServiceCIDR"): spec(
        NAME, ("CIDRs", lambda o: join(get(o, "spec", "cidrs", default=()))), AGE
    ),
    ("coordination.k8s.io", "Lease"): spec(NAME, ("Holder", at("spec", "holderIdentity")), AGE),
    ("apiregistration.k8s.io", "APIService"): spec(
        NAME,
        ("Service", lambda o: "Local"),
        (
            "Available",
            lambda o: next(
                (
                    c["status"]
                    for c in get(o, "status", "conditions", default=())
                    if c["type"] == "Available"
                ),
                UNKNOWN,
            ),
        ),
        AGE,
    ),
}
