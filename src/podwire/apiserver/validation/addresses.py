"""Rules of ServiceCIDR and IPAddress (KEP-1880).

Source: pkg/apis/networking/validation.
"""

from __future__ import annotations

from podwire.apiserver import names
from podwire.apiserver.fields import FieldError, GoValue, go_strings, invalid_value, required
from podwire.apiserver.ipsyntax import parse_cidr, validate_cidr
from podwire.apiserver.validation.meta import IMMUTABLE, Raw, invalid_each, path_segment

_CIDRS = "spec.cidrs"


def validate_ip_address(obj: Raw, old: Raw | None = None) -> list[FieldError]:
    parent = (obj.get("spec") or {}).get("parentRef")
    if old is not None:
        before = (old.get("spec") or {}).get("parentRef")
        if parent == before:
            return []
        return [invalid_value("spec.parentRef", _go_parent(parent), IMMUTABLE)]
    if parent is None:
        return [required("spec.parentRef")]
    at = "spec.parentRef"
    out: list[FieldError] = []
    if group := parent.get("group"):
        out += invalid_each(f"{at}.group", group, names.is_dns_subdomain(group))
    for key in ("resource", "name"):
        value = parent.get(key) or ""
        if not value:
            out.append(required(f"{at}.{key}"))
        out += invalid_each(f"{at}.{key}", value, path_segment(value))
    if namespace := parent.get("namespace"):
        out += invalid_each(f"{at}.namespace", namespace, path_segment(namespace))
    return out


def _go_parent(parent: Raw | None) -> GoValue:
    if parent is None:
        return GoValue('"null"')
    keys = (("Group", "group"), ("Resource", "resource"), ("Namespace", "namespace"))
    shown = [f'{go}:"{parent.get(key) or ""}"' for go, key in (*keys, ("Name", "name"))]
    return GoValue(f"networking.ParentReference{{{', '.join(shown)}}}")


def validate_service_cidr(obj: Raw, old: Raw | None = None) -> list[FieldError]:
    cidrs: list[str] = (obj.get("spec") or {}).get("cidrs") or []
    if old is None:
        return _cidrs(cidrs)
    before: list[str] = (old.get("spec") or {}).get("cidrs") or []
    if len(cidrs) == len(before):
        return [
            invalid_value(f"{_CIDRS}[{index}]", cidrs[index], IMMUTABLE)
            for index, text in enumerate(before)
            if text != cidrs[index]
        ]
    if (len(before), len(cidrs)) != (1, 2):
        return [invalid_value(_CIDRS, go_strings(cidrs), IMMUTABLE)]
    # A second family may be added: how a cluster becomes dual-stack.
    out: list[FieldError] = []
    if cidrs[0] != before[0]:
        out.append(invalid_value(f"{_CIDRS}[0]", cidrs[0], IMMUTABLE))
    return out + _cidrs(cidrs)


def _cidrs(cidrs: list[str]) -> list[FieldError]:
    if not cidrs:
        return [required(_CIDRS, "at least one CIDR required")]
    if len(cidrs) > 2:
        shown = GoValue(f"networking.ServiceCIDRSpec{{CIDRs:{go_strings(cidrs)}}}")
        return [invalid_value(_CIDRS, shown, "may only hold up to 2 values")]
    out: list[FieldError] = []
    for index, text in enumerate(cidrs):
        out += validate_cidr(f"{_CIDRS}[{index}]", text)
    parsed = [parse_cidr(text) for text in cidrs]
    versions = [found[1].version for found in parsed if found is not None]
    if len(versions) == 2 and versions[0] == versions[1]:
        text = (
            "may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and "
            "2001:db8::/64"
        )
        out.append(invalid_value(_CIDRS, go_strings(cidrs), text))
    return out
