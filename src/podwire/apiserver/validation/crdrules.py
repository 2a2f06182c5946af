"""`x-kubernetes-validations` of CRDs: the CEL rules podwire knows, each by its very text.

There is no CEL here. A rule whose text is in `_RULES` is checked by the function beside it, in any
CRD that states it, the user's own copy included; every other rule is kept and not evaluated.
Source: apiextensions-apiserver pkg/apiserver/schema/cel/validation.go (what is shown of a value),
pkg/registry/customresource/strategy.go (no rules for objects whose schema is broken).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any, Final

from podwire.apiserver.fields import FieldError, invalid_value
from podwire.apiserver.schema import Schema

_BLOCKING: Final = frozenset(
    {
        "FieldValueNotSupported",
        "FieldValueRequired",
        "FieldValueTooLong",
        "FieldValueTooMany",
        "FieldValueDuplicate",
        "FieldValueTypeInvalid",
    }
)
_NOT_CHECKED: Final = (
    "some validation rules were not checked because the object was invalid; "
    "correct the existing errors to complete validation"
)
_ROOT: Final = "<nil>"
"""How Go shows a path of no elements."""


def validate_rules(
    value: Any, schema: Schema, schema_errors: Iterable[FieldError] = ()
) -> list[FieldError]:
    """What a custom resource breaks of the rules known here.

    `schema_errors`: what it breaks of its schema; some kinds of them leave the rules unasked.
    """
    if not _has_rules(schema):
        return []
    if any(error.reason in _BLOCKING for error in schema_errors):
        return [invalid_value(_ROOT, None, _NOT_CHECKED)]
    out: list[FieldError] = []
    _walk(value, schema, "", out)
    return out


@lru_cache(maxsize=256)
def _has_rules(schema: Schema) -> bool:
    below = [*schema.properties.values(), schema.items, schema.additional]
    return bool(_stated(schema)) or any(
        _has_rules(child) for child in below if child is not None and child.custom
    )


def _stated(schema: Schema) -> list[Mapping[str, Any]]:
    rules: list[Mapping[str, Any]] = schema.limits.get("x-kubernetes-validations") or []
    return [rule for rule in rules if _normal(rule.get("rule", "")) in _RULES]


def _walk(value: Any, schema: Schema, path: str, out: list[FieldError]) -> None:
    if not schema.custom or value is None:
        return
    for rule in _stated(schema):
        if not _RULES[_normal(rule["rule"])](value):
            text = rule.get("message") or f"failed rule: {rule['rule']}"
            out.append(invalid_value(path or _ROOT, schema.type, text))
    if isinstance(value, dict):
        for key, item in value.items():
            child = schema.properties.get(key) or schema.additional
            if child is not None:
                _walk(item, child, f"{path}.{key}" if path else key, out)
    elif isinstance(value, list) and schema.items is not None:
        for index, item in enumerate(value):
            _walk(item, schema.items, f"{path}[{index}]", out)


def _normal(rule: str) -> str:
    """Without line breaks and indentation, which differ from one rendering to the next."""
    return " ".join(rule.split())


# --- the rules ---------------------------------------------------------------------------------


def _is_cidr(text: str) -> bool:
    """As Go's netip.ParsePrefix: no leading zeros, zone or IPv4 within IPv6; host bits may be."""
    host, slash, length = text.partition("/")
    if not slash or "%" in text or (":" in host and "." in host):
        return False
    if not (length.isascii() and length.isdigit()) or length != str(int(length)):
        return False
    try:
        ipaddress.ip_interface(text)
    except ValueError:
        return False
    return True


def _is_masked_cidr(text: str) -> bool:
    if not _is_cidr(text):
        return False
    interface = ipaddress.ip_interface(text)
    return interface.ip == interface.network.network_address


def _no_names_outside(ports: str, named: str, *outside: str) -> Callable[[Mapping[str, Any]], bool]:
    """A named port is a pod's: peers that are no pods have none."""

    def check(rule: Mapping[str, Any]) -> bool:
        peers, stated = rule.get("to") or (), rule.get(ports) or ()
        return not (
            any(key in peer for peer in peers for key in outside)
            and any(named in port for port in stated)
        )

    return check


def _outside(*peers: str) -> str:
    return " || ".join(f"has(peer.{peer})" for peer in peers)


def _named_ports_rule(ports: str, item: str, named: str, *peers: str) -> str:
    return (
        f"!(self.to.exists(peer, {_outside(*peers)}) && has(self.{ports}) && "
        f"self.{ports}.exists({item}, has({item}.{named})))"
    )


_NODES: Final = ("networks", "nodes")
_NAMES: Final = (*_NODES, "domainNames")
_RULES: Final[Mapping[str, Callable[[Any], bool]]] = {
    # policy.networking.k8s.io, v1alpha2 and later
    "self.start < self.end": lambda ports: ports["start"] < ports["end"],
    "isCIDR(self)": _is_cidr,
    "isCIDR(self) && cidr(self) == cidr(self).masked()": _is_masked_cidr,
    _named_ports_rule("protocols", "protocol", "destinationNamedPort", *_NAMES): _no_names_outside(
        "protocols", "destinationNamedPort", *_NAMES
    ),
    # policy.networking.k8s.io, v1alpha1
    "self.metadata.name == 'default'": lambda obj: obj["metadata"].get("name") == "default",
    "self.contains(':') != self.contains('.')": lambda text: (":" in text) != ("." in text),
    _named_ports_rule("ports", "port", "namedPort", *_NODES): _no_names_outside(
        "ports", "namedPort", *_NODES
    ),
    _named_ports_rule("ports", "port", "namedPort", *_NAMES): _no_names_outside(
        "ports", "namedPort", *_NAMES
    ),
}
