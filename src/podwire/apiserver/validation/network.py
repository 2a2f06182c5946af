"""Rules of Ingress, IngressClass and NetworkPolicy.

Source: pkg/apis/networking/validation.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from podwire.apiserver import names
from podwire.apiserver.fields import (
    FieldError,
    GoValue,
    forbidden,
    go_strings,
    invalid_value,
    not_supported,
    required,
)
from podwire.apiserver.ipsyntax import Network, parse_cidr, validate_legacy_cidr
from podwire.apiserver.validation.meta import (
    Raw,
    each,
    immutable,
    invalid_each,
    validate_port_or_name,
    validate_selector,
)

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

# Upstream names these in its own order, not sorted.
_POLICY_PROTOCOLS = ("TCP", "UDP", "SCTP")
_POLICY_TYPES = ("Ingress", "Egress")
_DIRECTIONS = (("ingress", "from"), ("egress", "to"))


def validate_network_policy(obj: Raw, old: Raw | None = None) -> list[FieldError]:
    spec = obj.get("spec") or {}
    kept = frozenset(text for _, text in policy_cidrs(old)) if old is not None else frozenset()
    out = validate_selector(spec.get("podSelector"), "spec.podSelector")
    for direction, peers in _DIRECTIONS:
        for at, rule in each(spec, direction, "spec"):
            for below, port in each(rule, "ports", at):
                out += _policy_port(port, below)
            for below, peer in each(rule, peers, at):
                out += _policy_peer(peer, below, kept)
    types = spec.get("policyTypes") or []
    if len(types) > len(_POLICY_TYPES):
        text = "may not specify more than two policyTypes"
        shown = go_strings(types, "networking.PolicyType")
        return [*out, invalid_value("spec.policyTypes", shown, text)]
    for index, kind in enumerate(types):
        if kind not in _POLICY_TYPES:
            out.append(not_supported(f"spec.policyTypes[{index}]", kind, _POLICY_TYPES))
    return out


def policy_cidrs(policy: Raw) -> Iterator[tuple[str, str]]:
    """(path, text) of every CIDR of a NetworkPolicy, `except` included."""
    for direction, peers in _DIRECTIONS:
        for at, rule in each(policy.get("spec") or {}, direction, "spec"):
            for below, peer in each(rule, peers, at):
                block = peer.get("ipBlock")
                if block is not None:
                    yield f"{below}.ipBlock.cidr", block.get("cidr") or ""
                    for index, text in enumerate(block.get("except") or ()):
                        yield f"{below}.ipBlock.except[{index}]", text


def _policy_port(port: Raw, path: str) -> list[FieldError]:
    out: list[FieldError] = []
    protocol, number, end = port.get("protocol"), port.get("port"), port.get("endPort")
    if protocol is not None and protocol not in _POLICY_PROTOCOLS:
        out.append(not_supported(f"{path}.protocol", protocol, _POLICY_PROTOCOLS))
    if number is None:
        if end is not None:
            text = "may not be specified when `port` is not specified"
            out.append(invalid_value(f"{path}.endPort", end, text))
    elif isinstance(number, str):
        if end is not None:
            text = "may not be specified when `port` is non-numeric"
            out.append(invalid_value(f"{path}.endPort", end, text))
        out += validate_port_or_name(number, f"{path}.port")
    else:
        out += validate_port_or_name(number, f"{path}.port")
        if end is not None and end < number:
            text = "must be greater than or equal to `port`"
            out.append(invalid_value(f"{path}.endPort", end, text))
        if end is not None:
            out += invalid_each(f"{path}.endPort", end, names.is_port_number(end))
    return out


def _policy_peer(peer: Raw, path: str, kept: Collection[str]) -> list[FieldError]:
    out: list[FieldError] = []
    count = sum(
        peer.get(key) is not None for key in ("podSelector", "namespaceSelector", "ipBlock")
    )
    for key in ("podSelector", "namespaceSelector"):
        out += validate_selector(peer.get(key), f"{path}.{key}")
    block = peer.get("ipBlock")
    if block is not None:
        out += _ip_block(block, f"{path}.ipBlock", kept)
    if count == 0:
        out.append(required(path, "must specify a peer"))
    elif count > 1 and block is not None:
        out.append(forbidden(path, "may not specify both ipBlock and another peer"))
    return out


def _ip_block(block: Raw, path: str, kept: Collection[str]) -> list[FieldError]:
    """`kept` are the CIDRs of the stored policy: which of them are new cannot be told by their
    place, so each may come back as it was.

    Bits beyond the prefix length earn a warning only: the field's own files have them.
    """
    cidr = block.get("cidr") or ""
    if not cidr:
        return [required(f"{path}.cidr")]
    out = validate_legacy_cidr(f"{path}.cidr", cidr, kept, host_bits=True)
    parsed = parse_cidr(cidr)
    if parsed is None:
        return out
    for index, text in enumerate(block.get("except") or ()):
        at = f"{path}.except[{index}]"
        out += validate_legacy_cidr(at, text, kept, host_bits=True)
        hole = parse_cidr(text)
        if hole is not None and not _strictly_within(hole[1], parsed[1]):
            out.append(invalid_value(at, text, "must be a strict subset of `cidr`"))
    return out


def _strictly_within(hole: Network, network: Network) -> bool:
    return (
        hole.version == network.version
        and hole.prefixlen > network.prefixlen
        and hole.network_address in network
    )
