"""Rules of Endpoints and EndpointSlices.

Whatever an object has may stay: errors about subsets or endpoints that an update leaves alone are
not raised. Source: pkg/apis/core/validation (ValidateEndpoints), pkg/apis/discovery/validation.
"""

from __future__ import annotations

from podwire.apiserver import names
from podwire.apiserver.fields import (
    FieldError,
    duplicate,
    invalid_value,
    not_supported,
    required,
    too_many,
)
from podwire.apiserver.ipsyntax import (
    family_of,
    validate_endpoint_ip,
    validate_ip,
    validate_legacy_ip,
)
from podwire.apiserver.validation.meta import Raw, each, immutable, invalid_each
from podwire.apiserver.validation.pod import PROTOCOLS

ADDRESS_TYPES = ("FQDN", "IPv4", "IPv6")
MAX_ENDPOINTS, MAX_PORTS, MAX_ADDRESSES, MAX_HINTS = 1000, 20000, 100, 8


def validate_endpoints(obj: Raw, old: Raw | None = None) -> list[FieldError]:
    out: list[FieldError] = []
    for at, subset in each(obj, "subsets", ""):
        if not subset.get("addresses") and not subset.get("notReadyAddresses"):
            out.append(required(at, "must specify `addresses` or `notReadyAddresses`"))
        for key in ("addresses", "notReadyAddresses"):
            for below, address in each(subset, key, at):
                out += _subset_address(address, below)
        for below, port in each(subset, "ports", at):
            out += _subset_port(port, below, len(subset["ports"]) > 1)
    unchanged = old is not None and (old.get("subsets") or []) == (obj.get("subsets") or [])
    return [] if unchanged else out


def _subset_address(address: Raw, path: str) -> list[FieldError]:
    ip, host, node = address.get("ip") or "", address.get("hostname"), address.get("nodeName")
    out = validate_legacy_ip(f"{path}.ip", ip)
    if host:
        out += invalid_each(f"{path}.hostname", host, names.is_dns_label(host))
    if node is not None:
        out += invalid_each(f"{path}.nodeName", node, names.is_dns_subdomain(node))
    return out + validate_endpoint_ip(f"{path}.ip", ip)


def _subset_port(port: Raw, path: str, named: bool) -> list[FieldError]:
    out: list[FieldError] = []
    name, number = port.get("name") or "", port.get("port") or 0
    if named and not name:
        out.append(required(f"{path}.name"))
    elif name:
        out += invalid_each(f"{path}.name", name, names.is_dns_label(name))
    out += invalid_each(f"{path}.port", number, names.is_port_number(number))
    return out + _protocols(port, path)


def _protocols(port: Raw, path: str) -> list[FieldError]:
    out: list[FieldError] = []
    protocol, app = port.get("protocol") or "", port.get("appProtocol")
    if not protocol:
        out.append(required(f"{path}.protocol"))
    elif protocol not in PROTOCOLS:
        out.append(not_supported(f"{path}.protocol", protocol, PROTOCOLS))
    if app is not None:
        out += invalid_each(f"{path}.appProtocol", app, names.is_qualified_name(app))
    return out


# -- endpoint slices -----------------------------------------------------------------------------


def validate_endpoint_slice(obj: Raw, old: Raw | None = None) -> list[FieldError]:
    out: list[FieldError] = []
    kind = obj.get("addressType") or ""
    if not kind:
        out.append(required("addressType"))
    elif kind not in ADDRESS_TYPES:
        out.append(not_supported("addressType", kind, ADDRESS_TYPES))
    out += _slice_ports(obj)
    unchanged = old is not None and (old.get("endpoints") or []) == (obj.get("endpoints") or [])
    if not unchanged:
        out += _slice_endpoints(obj, kind)
    if old is not None:
        out += immutable("addressType", kind, old.get("addressType"))
    return out


def _slice_ports(obj: Raw) -> list[FieldError]:
    """Numbers are not looked at: none means any."""
    count = len(obj.get("ports") or ())
    if count > MAX_PORTS:
        return [too_many("ports", count, MAX_PORTS)]
    out: list[FieldError] = []
    seen: set[str] = set()
    for at, port in each(obj, "ports", ""):
        name = port.get("name") or ""
        if name:
            out += invalid_each(f"{at}.name", name, names.is_dns_label(name))
        if name in seen:
            out.append(duplicate(f"{at}.name", name))
        seen.add(name)
        out += _protocols(port, at)
    return out


def _slice_endpoints(obj: Raw, kind: str) -> list[FieldError]:
    count = len(obj.get("endpoints") or ())
    if count > MAX_ENDPOINTS:
        return [too_many("endpoints", count, MAX_ENDPOINTS)]
    out: list[FieldError] = []
    for at, endpoint in each(obj, "endpoints", ""):
        addresses = endpoint.get("addresses") or []
        if not addresses:
            out.append(required(f"{at}.addresses", "must contain at least 1 address"))
        elif len(addresses) > MAX_ADDRESSES:
            out.append(too_many(f"{at}.addresses", len(addresses), MAX_ADDRESSES))
        for index, address in enumerate(addresses):
            out += _slice_address(address, f"{at}.addresses", index, kind)
        out += _placement(endpoint, at)
    return out


def _slice_address(text: str, path: str, index: int, kind: str) -> list[FieldError]:
    at = f"{path}[{index}]"
    if kind == "FQDN":
        return _full_name(text, at)
    if kind not in ("IPv4", "IPv6"):
        return []
    # IPv6 slices are younger than the lenient forms and have never accepted them.
    out = validate_legacy_ip(at, text) if kind == "IPv4" else validate_ip(at, text)
    if out:
        return out
    if family_of(text) != kind:
        out.append(invalid_value(path, text, f"must be an {kind} address"))
    return out + validate_endpoint_ip(at, text)


def _full_name(text: str, path: str) -> list[FieldError]:
    if not text:
        return [required(path)]
    name = text.removesuffix(".")
    if problems := names.is_dns_subdomain(name):
        return [invalid_value(path, name, ",".join(problems))]
    if "." not in name:
        why = "should be a domain with at least two segments separated by dots"
        return [invalid_value(path, name, why)]
    return [
        invalid_value(path, label, ",".join(problems))
        for label in name.split(".")
        if (problems := names.is_dns_label(label))
    ]


def _placement(endpoint: Raw, path: str) -> list[FieldError]:
    """Node, host name and hints (KEP-2433, KEP-3015)."""
    out: list[FieldError] = []
    node, host, hints = endpoint.get("nodeName"), endpoint.get("hostname"), endpoint.get("hints")
    if node is not None:
        out += invalid_each(f"{path}.nodeName", node, names.is_dns_subdomain(node))
    if host is not None:
        out += invalid_each(f"{path}.hostname", host, names.is_dns_label(host))
    for key, rule in (("forZones", names.is_label_value), ("forNodes", names.is_dns_subdomain)):
        at = f"{path}.hints.{key}"
        rows = (hints or {}).get(key) or ()
        if len(rows) > MAX_HINTS:
            return [*out, too_many(at, len(rows), MAX_HINTS)]
        seen: set[str] = set()
        for index, row in enumerate(rows):
            name = row.get("name") or ""
            if name in seen:
                out.append(duplicate(f"{at}[{index}].name", name))
            seen.add(name)
            out += invalid_each(f"{at}[{index}].name", name, rule(name))
    return out
