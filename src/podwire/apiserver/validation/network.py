"""Rules of Service, Endpoints, EndpointSlice, Ingress, IngressClass and NetworkPolicy.

Source: pkg/apis/core/validation (ValidateService), pkg/apis/networking/validation,
pkg/apis/discovery/validation.
"""

from __future__ import annotations

import ipaddress
from typing import Any

from podwire.apiserver import names
from podwire.apiserver.fields import (
    FieldError,
    GoValue,
    duplicate,
    forbidden,
    go_value,
    invalid_value,
    not_supported,
    required,
    too_many,
)
from podwire.apiserver.validation.meta import (
    Raw,
    each,
    immutable,
    invalid_each,
    validate_labels,
    validate_selector,
)
from podwire.apiserver.validation.pod import PROTOCOLS, validate_port_or_name

SERVICE_TYPES = ("ClusterIP", "ExternalName", "LoadBalancer", "NodePort")
NODE_PORTS = range(30000, 32768)
_FAMILIES = ("IPv4", "IPv6")
_FAMILY_POLICIES = ("PreferDualStack", "RequireDualStack", "SingleStack")
_TRAFFIC = ("Cluster", "Local")


def validate_service(obj: Raw, old: Raw | None = None) -> list[FieldError]:
    spec = obj.get("spec") or {}
    kind, headless = spec.get("type") or "", spec.get("clusterIP") == "None"
    out: list[FieldError] = []
    if not spec.get("ports") and not headless and kind != "ExternalName":
        out.append(required("spec.ports"))
    out += _service_type(spec, kind, headless)
    out += _service_ports(spec, kind)
    out += validate_labels(spec.get("selector"), "spec.selector")
    out += _affinity(spec)
    out += _cluster_ips(spec, kind)
    for index, address in enumerate(spec.get("externalIPs") or ()):
        out += invalid_each(f"spec.externalIPs[{index}]", address, names.is_ip(address))
    out += _traffic(spec, kind)
    for index, cidr in enumerate(spec.get("loadBalancerSourceRanges") or ()):
        at = f"spec.loadBalancerSourceRanges[{index}]"
        out += invalid_each(at, cidr, names.is_cidr(cidr.strip()))
    if old is not None:
        out += _service_update(spec, old.get("spec") or {})
    return out


def _service_type(spec: Raw, kind: str, headless: bool) -> list[FieldError]:
    if not kind:
        return [required("spec.type")]
    if kind not in SERVICE_TYPES:
        return [not_supported("spec.type", kind, SERVICE_TYPES)]
    if kind in ("LoadBalancer", "NodePort") and headless:
        text = f"may not be set to 'None' for {kind} services"
        return [invalid_value("spec.clusterIPs[0]", "None", text)]
    if kind != "ExternalName":
        return []
    out: list[FieldError] = []
    if spec.get("clusterIP") or spec.get("clusterIPs"):
        out.append(forbidden("spec.clusterIPs", "may not be set for ExternalName services"))
    external = (spec.get("externalName") or "").removesuffix(".")
    if not external:
        out.append(required("spec.externalName"))
        return out
    return out + invalid_each("spec.externalName", external, names.is_dns_subdomain(external))


def _service_ports(spec: Raw, kind: str) -> list[FieldError]:
    out: list[FieldError] = []
    ports = spec.get("ports") or ()
    seen_names: set[str] = set()
    seen: set[tuple[str, int]] = set()
    node_ports: set[tuple[str, int]] = set()
    for at, port in each(spec, "ports", "spec"):
        name, number = port.get("name") or "", port.get("port") or 0
        protocol = port.get("protocol") or ""
        if not name and len(ports) > 1:
            out.append(required(f"{at}.name"))
        elif name:
            out += invalid_each(f"{at}.name", name, names.is_dns_label(name))
            if name in seen_names:
                out.append(duplicate(f"{at}.name", name))
            seen_names.add(name)
        out += invalid_each(f"{at}.port", number, names.is_port_number(number))
        if not protocol:
            out.append(required(f"{at}.protocol"))
        elif protocol not in PROTOCOLS:
            out.append(not_supported(f"{at}.protocol", protocol, PROTOCOLS))
        out += validate_port_or_name(port.get("targetPort", 0), f"{at}.targetPort")
        out += _node_port(port, at, kind, node_ports)
        if (protocol, number) in seen:
            out.append(duplicate(at, _go_port(protocol, number)))
        seen.add((protocol, number))
        app = port.get("appProtocol")
        if app:
            out += invalid_each(f"{at}.appProtocol", app, names.is_qualified_name(app))
    return out


def _go_port(protocol: str, number: int) -> GoValue:
    return GoValue(
        f'core.ServicePort{{Name:"", Protocol:{go_value(protocol)}, AppProtocol:(*string)(nil), '
        f'Port:{number}, TargetPort:intstr.IntOrString{{Type:0, IntVal:0, StrVal:""}}, NodePort:0}}'
    )


def _node_port(port: Raw, path: str, kind: str, taken: set[tuple[str, int]]) -> list[FieldError]:
    number = port.get("nodePort") or 0
    if not number:
        return []
    at = f"{path}.nodePort"
    if kind in ("ClusterIP", "ExternalName"):
        return [forbidden(at, f"may not be used when `type` is '{kind}'")]
    if number not in NODE_PORTS:
        text = (
            "provided port is not in the valid range. The range of valid ports is "
            f"{NODE_PORTS.start}-{NODE_PORTS.stop - 1}"
        )
        return [invalid_value(at, number, text)]
    key = (port.get("protocol") or "", number)
    if key in taken:
        return [duplicate(at, number)]
    taken.add(key)
    return []


def _affinity(spec: Raw) -> list[FieldError]:
    affinity = spec.get("sessionAffinity") or ""
    if not affinity:
        return [required("spec.sessionAffinity")]
    if affinity not in ("ClientIP", "None"):
        return [not_supported("spec.sessionAffinity", affinity, ("ClientIP", "None"))]
    at = "spec.sessionAffinityConfig"
    config = spec.get("sessionAffinityConfig")
    if affinity == "None":
        if not config:
            return []
        text = "must not be set when session affinity is None"
        return [forbidden(at, text)]
    timeout = ((config or {}).get("clientIP") or {}).get("timeoutSeconds")
    if timeout is None:
        text = "when session affinity type is ClientIP"
        return [required(f"{at}.clientIP.timeoutSeconds", text)]
    if not 0 < timeout <= 86400:
        text = "must be greater than 0 and less than 86400"
        return [invalid_value(f"{at}.clientIP.timeoutSeconds", timeout, text)]
    return []


def _cluster_ips(spec: Raw, kind: str) -> list[FieldError]:
    out: list[FieldError] = []
    addresses = spec.get("clusterIPs") or ([spec["clusterIP"]] if spec.get("clusterIP") else [])
    if kind == "ExternalName":
        return out
    first = spec.get("clusterIP") or ""
    if first and spec.get("clusterIPs") and spec["clusterIPs"][0] != first:
        text = "first value must match `clusterIP`"
        out.append(invalid_value("spec.clusterIPs", spec["clusterIPs"], text))
    for index, address in enumerate(addresses):
        if address == "None":
            if len(addresses) > 1:
                text = "clusterIPs with value 'None' must have one entry"
                out.append(invalid_value("spec.clusterIPs", addresses, text))
        else:
            out += invalid_each(f"spec.clusterIPs[{index}]", address, names.is_ip(address))
    if len(addresses) > 2:
        text = "may only hold up to 2 values"
        out.append(invalid_value("spec.clusterIPs", addresses, text))
    for index, family in enumerate(spec.get("ipFamilies") or ()):
        if family not in _FAMILIES:
            out.append(not_supported(f"spec.ipFamilies[{index}]", family, _FAMILIES))
    policy = spec.get("ipFamilyPolicy")
    if policy is not None and policy not in _FAMILY_POLICIES:
        out.append(not_supported("spec.ipFamilyPolicy", policy, _FAMILY_POLICIES))
    return out


def _traffic(spec: Raw, kind: str) -> list[FieldError]:
    out: list[FieldError] = []
    external, internal = spec.get("externalTrafficPolicy"), spec.get("internalTrafficPolicy")
    exposed = kind in ("NodePort", "LoadBalancer") or (
        kind == "ClusterIP" and spec.get("externalIPs")
    )
    at = "spec.externalTrafficPolicy"
    if external:
        if external not in _TRAFFIC:
            out.append(not_supported(at, external, _TRAFFIC))
        elif not exposed:
            text = "may only be set for externally-accessible services"
            out.append(invalid_value(at, external, text))
    if internal and internal not in _TRAFFIC:
        out.append(not_supported("spec.internalTrafficPolicy", internal, _TRAFFIC))
    return out


def _service_update(new: Raw, old: Raw) -> list[FieldError]:
    fresh, before = new.get("clusterIPs") or [], old.get("clusterIPs") or []
    plain = ("ClusterIP", "NodePort", "LoadBalancer")
    if new.get("type") not in plain or old.get("type") not in plain or not before:
        return []
    if fresh and fresh[0] != before[0]:
        shown = "[]string{" + ", ".join(map(go_value, fresh)) + "}"
        text = "may not change once set"
        return [invalid_value("spec.clusterIPs[0]", GoValue(shown), text)]
    return []


# --- endpoints -------------------------------------------------------------------------------


def validate_endpoints(obj: Raw, old: Raw | None = None) -> list[FieldError]:
    out: list[FieldError] = []
    for at, subset in each(obj, "subsets", ""):
        if not subset.get("addresses") and not subset.get("notReadyAddresses"):
            out.append(required(at, "must specify `addresses` or `notReadyAddresses`"))
        for key in ("addresses", "notReadyAddresses"):
            for below, address in each(subset, key, at):
                ip = address.get("ip") or ""
                out += invalid_each(f"{below}.ip", ip, names.is_ip(ip))
        for below, port in each(subset, "ports", at):
            out += _endpoint_port(port, below, len(subset["ports"]) > 1)
    return out


def _endpoint_port(port: Raw, path: str, named: bool) -> list[FieldError]:
    out: list[FieldError] = []
    name, number = port.get("name") or "", port.get("port") or 0
    if named and not name:
        out.append(required(f"{path}.name"))
    elif name:
        out += invalid_each(f"{path}.name", name, names.is_dns_label(name))
    out += invalid_each(f"{path}.port", number, names.is_port_number(number))
    if port.get("protocol") not in PROTOCOLS:
        out.append(not_supported(f"{path}.protocol", port.get("protocol") or "", PROTOCOLS))
    return out


def validate_endpoint_slice(obj: Raw, old: Raw | None = None) -> list[FieldError]:
    out: list[FieldError] = []
    kind = obj.get("addressType") or ""
    if not kind:
        out.append(required("addressType"))
    elif kind not in ("FQDN", "IPv4", "IPv6"):
        out.append(not_supported("addressType", kind, ("FQDN", "IPv4", "IPv6")))
    count = len(obj.get("endpoints") or ())
    if count > 1000:
        out.append(too_many("endpoints", count, 1000))
    for at, endpoint in each(obj, "endpoints", ""):
        out += _endpoint(endpoint, at, kind)
    seen: set[str] = set()
    for at, port in each(obj, "ports", ""):
        name = port.get("name") or ""
        if name in seen:
            out.append(duplicate(f"{at}.name", name))
        seen.add(name)
        if name:
            out += invalid_each(f"{at}.name", name, names.is_dns_label(name))
        if port.get("port") is not None:
            out += invalid_each(f"{at}.port", port["port"], names.is_port_number(port["port"]))
        if port.get("protocol") not in PROTOCOLS:
            out.append(not_supported(f"{at}.protocol", port.get("protocol") or "", PROTOCOLS))
    if old is not None:
        out += immutable("addressType", obj.get("addressType"), old.get("addressType"))
    return out


def _endpoint(endpoint: Raw, path: str, kind: str) -> list[FieldError]:
    out: list[FieldError] = []
    addresses = endpoint.get("addresses") or []
    if not addresses:
        out.append(required(f"{path}.addresses", "must contain at least 1 address"))
    if len(addresses) > 100:
        out.append(too_many(f"{path}.addresses", len(addresses), 100))
    for index, address in enumerate(addresses):
        out += _address(address, f"{path}.addresses[{index}]", kind)
    return out


def _address(address: str, path: str, kind: str) -> list[FieldError]:
    if kind == "FQDN":
        return invalid_each(path, address, names.is_dns_subdomain(address))
    problems = names.is_ip(address)
    if problems:
        return invalid_each(path, address, problems)
    version = f"IPv{ipaddress.ip_address(address).version}"
    if kind in _FAMILIES and version != kind:
        return [invalid_value(path, address, f"must be an {kind} address")]
    return []


# --- ingress ---------------------------------------------------------------------------------

_PATH_TYPES = ("Exact", "ImplementationSpecific", "Prefix")


def validate_ingress(obj: Raw, old: Raw | None = None) -> list[FieldError]:
    spec = obj.get("spec") or {}
    out: list[FieldError] = []
    default, rules = spec.get("defaultBackend"), spec.get("rules")
    if not rules and default is None:
        text = "either `defaultBackend` or `rules` must be specified"
        out.append(invalid_value("spec", GoValue("[]networking.IngressRule(nil)"), text))
    for at, rule in each(spec, "rules", "spec"):
        out += _ingress_rule(rule, at)
    for at, tls in each(spec, "tls", "spec"):
        for index, host in enumerate(tls.get("hosts") or ()):
            out += _host(host, f"{at}.hosts[{index}]")
    if default is not None:
        out += _backend(default, "spec.defaultBackend")
    name = spec.get("ingressClassName")
    if name is not None:
        out += invalid_each("spec.ingressClassName", name, names.is_dns_subdomain(name))
    return out


def _host(host: str, path: str) -> list[FieldError]:
    if not names.is_ip(host):
        return [invalid_value(path, host, "must be a DNS name, not an IP address")]
    rule = names.is_wildcard_subdomain if "*" in host else names.is_dns_subdomain
    return invalid_each(path, host, rule(host))


def _ingress_rule(rule: Raw, path: str) -> list[FieldError]:
    out = _host(rule["host"], f"{path}.host") if rule.get("host") else []
    http = rule.get("http")
    if not isinstance(http, dict):
        return out
    if not http.get("paths"):
        out.append(required(f"{path}.http.paths"))
    for at, row in each(http, "paths", f"{path}.http"):
        kind, value = row.get("pathType") or "", row.get("path") or ""
        if not kind:
            out.append(required(f"{at}.pathType", "pathType must be specified"))
        elif kind not in _PATH_TYPES:
            out.append(not_supported(f"{at}.pathType", kind, _PATH_TYPES))
        elif (kind != "ImplementationSpecific" or value) and not value.startswith("/"):
            out.append(invalid_value(f"{at}.path", value, "must be an absolute path"))
        elif kind != "ImplementationSpecific":
            out += [
                invalid_value(f"{at}.path", value, f"must not contain '{bad}'")
                for bad in ("//", "/./", "/../", "%2f", "%2F")
                if bad in value
            ]
        out += _backend(row.get("backend") or {}, f"{at}.backend")
    return out


def _backend(backend: Raw, path: str) -> list[FieldError]:
    service, resource = backend.get("service"), backend.get("resource")
    if service is None and resource is None:
        return [required(path, "resource or service backend is required")]
    if service is None:
        return []
    if resource is not None:
        text = "cannot set both resource and service backends"
        return [invalid_value(path, "", text)]
    at = f"{path}.service"
    name = service.get("name") or ""
    out: list[FieldError] = []
    if not name:
        out.append(required(f"{at}.name"))
    else:
        out += invalid_each(f"{at}.name", name, names.is_dns_1035_label(name))
    port = service.get("port") or {}
    if port.get("name") and port.get("number"):
        out.append(invalid_value(at, "", "cannot set both port name & port number"))
    elif port.get("name"):
        out += invalid_each(f"{at}.port.name", port["name"], names.is_port_name(port["name"]))
    elif port.get("number"):
        number = port["number"]
        out += invalid_each(f"{at}.port.number", number, names.is_port_number(number))
    else:
        out.append(required(at, "port name or number is required"))
    return out


def validate_ingress_class(obj: Raw, old: Raw | None = None) -> list[FieldError]:
    controller = (obj.get("spec") or {}).get("controller") or ""
    if not controller:
        return [required("spec.controller")]
    out: list[FieldError] = []
    if len(controller) > 250:
        out.append(
            invalid_value("spec.controller", controller, "must be no more than 250 characters")
        )
    if "/" not in controller:
        text = 'must be a domain-prefixed path (such as "acme.io/foo")'
        out.append(invalid_value("spec.controller", controller, text))
    if old is not None:
        out += immutable("spec.controller", controller, (old.get("spec") or {}).get("controller"))
    return out


# --- network policies ------------------------------------------------------------------------


def validate_network_policy(obj: Raw, old: Raw | None = None) -> list[FieldError]:
    spec = obj.get("spec") or {}
    out = validate_selector(spec.get("podSelector"), "spec.podSelector")
    for direction, peers in (("ingress", "from"), ("egress", "to")):
        for at, rule in each(spec, direction, "spec"):
            for below, port in each(rule, "ports", at):
                out += _policy_port(port, below)
            for below, peer in each(rule, peers, at):
                out += _policy_peer(peer, below)
    types = spec.get("policyTypes") or []
    if len(types) > 2:
        text = "may not specify more than two policyTypes"
        return [*out, invalid_value("spec.policyTypes", types, text)]
    for index, kind in enumerate(types):
        if kind not in ("Ingress", "Egress"):
            out.append(not_supported(f"spec.policyTypes[{index}]", kind, ("Egress", "Ingress")))
    return out


def _policy_port(port: Raw, path: str) -> list[FieldError]:
    out: list[FieldError] = []
    protocol, number, end = port.get("protocol"), port.get("port"), port.get("endPort")
    if protocol is not None and protocol not in PROTOCOLS:
        out.append(not_supported(f"{path}.protocol", protocol, PROTOCOLS))
    if number is not None:
        out += validate_port_or_name(number, f"{path}.port")
        if isinstance(number, str) and end is not None:
            text = "may not be specified when `port` is non-numeric"
            out.append(invalid_value(f"{path}.endPort", end, text))
        elif end is not None:
            if end < number:
                text = "must be greater than or equal to `port`"
                out.append(invalid_value(f"{path}.endPort", end, text))
            out += invalid_each(f"{path}.endPort", end, names.is_port_number(end))
    elif end is not None:
        text = "may not be specified when `port` is not specified"
        out.append(invalid_value(f"{path}.endPort", end, text))
    return out


def _policy_peer(peer: Raw, path: str) -> list[FieldError]:
    out: list[FieldError] = []
    count = sum(
        peer.get(key) is not None for key in ("podSelector", "namespaceSelector", "ipBlock")
    )
    for key in ("podSelector", "namespaceSelector"):
        out += validate_selector(peer.get(key), f"{path}.{key}")
    block = peer.get("ipBlock")
    if block is not None:
        out += _ip_block(block, f"{path}.ipBlock")
    if count == 0:
        out.append(required(path, "must specify a peer"))
    elif count > 1 and block is not None:
        out.append(forbidden(path, "may not specify both ipBlock and another peer"))
    return out


def _ip_block(block: Raw, path: str) -> list[FieldError]:
    cidr: Any = block.get("cidr") or ""
    if not cidr:
        return [required(f"{path}.cidr")]
    problems = names.is_cidr(cidr)
    if problems:
        return invalid_each(f"{path}.cidr", cidr, problems)
    network = ipaddress.ip_network(cidr, strict=False)
    out: list[FieldError] = []
    for index, text in enumerate(block.get("except") or ()):
        at = f"{path}.except[{index}]"
        problems = names.is_cidr(text)
        if problems:
            out += invalid_each(at, text, problems)
            continue
        hole = ipaddress.ip_network(text, strict=False)
        if (
            hole.version != network.version
            or hole.prefixlen <= network.prefixlen
            or not hole.subnet_of(network)  # type: ignore[arg-type]
        ):
            out.append(invalid_value(at, text, "must be a strict subset of `cidr`"))
    return out
