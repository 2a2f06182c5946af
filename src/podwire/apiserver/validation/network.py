"""Rules of Ingress, IngressClass and NetworkPolicy.

Source: pkg/apis/networking/validation.
"""

from __future__ import annotations

import ipaddress
from typing import Any

from podwire.apiserver import names
from podwire.apiserver.fields import (
    FieldError,
    GoValue,
    forbidden,
    invalid_value,
    not_supported,
    required,
)
from podwire.apiserver.validation.meta import (
    Raw,
    each,
    immutable,
    invalid_each,
    validate_selector,
)
from podwire.apiserver.validation.pod import PROTOCOLS, validate_port_or_name

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
