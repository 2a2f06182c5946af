"""Custom resources: rules of the CRD document, and of values under its schema.

Source: apiextensions-apiserver pkg/apis/apiextensions/validation, pkg/apiserver/validation (whose
texts come from go-openapi). CEL rules (`x-kubernetes-validations`): `crdrules`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
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
    too_long,
    too_many,
    type_invalid,
)
from podwire.apiserver.schema import Schema, custom_node
from podwire.apiserver.validation.meta import Raw, each, immutable, invalid_each

_SCOPES = ("Cluster", "Namespaced")


def validate_crd(obj: Raw, old: Raw | None = None) -> list[FieldError]:
    spec, name = obj.get("spec") or {}, (obj.get("metadata") or {}).get("name") or ""
    out: list[FieldError] = []
    group, kinds = spec.get("group") or "", spec.get("names") or {}
    wanted = f"{kinds.get('plural', '')}.{group}"
    if name != wanted:
        text = 'must be spec.names.plural+"."+spec.group'
        out.append(invalid_value("metadata.name", name, text))
    if not group:
        out.append(required("spec.group"))
    elif "." not in group:
        text = "should be a domain with at least one dot"
        out.append(invalid_value("spec.group", group, text))
    else:
        out += invalid_each("spec.group", group, names.is_dns_subdomain(group))
    if spec.get("scope") not in _SCOPES:
        out.append(not_supported("spec.scope", spec.get("scope") or "", _SCOPES))
    out += _versions(spec) + _names(kinds)
    if old is not None:
        before = old.get("spec") or {}
        out += immutable("spec.group", group, before.get("group"))
        out += immutable("spec.scope", spec.get("scope"), before.get("scope"))
    return out


def _names(kinds: Raw) -> list[FieldError]:
    out: list[FieldError] = []
    for key in ("plural", "singular", "kind", "listKind"):
        value = kinds.get(key) or ""
        if not value:
            out.append(required(f"spec.names.{key}"))
        else:
            out += invalid_each(f"spec.names.{key}", value, names.is_dns_1035_label(value.lower()))
    return out


def _versions(spec: Raw) -> list[FieldError]:
    out: list[FieldError] = []
    versions = spec.get("versions") or []
    stored = sum(bool(version.get("storage")) for version in versions)
    if stored != 1:
        text = "must have exactly one version marked as storage version"
        shown = GoValue(go_value(versions))
        out.append(invalid_value("spec.versions", shown, text))
    seen: set[str] = set()
    for at, version in each(spec, "versions", "spec"):
        name = version.get("name") or ""
        out += invalid_each(f"{at}.name", name, names.is_dns_1035_label(name))
        if name in seen:
            out.append(duplicate(f"{at}.name", name))
        seen.add(name)
        document = (version.get("schema") or {}).get("openAPIV3Schema")
        path = f"{at}.schema.openAPIV3Schema"
        if not isinstance(document, dict):
            out.append(required(path, "schemas are required"))
        else:
            out += structural_errors(document, path)
    return out


def structural_errors(document: Raw, path: str) -> list[FieldError]:
    """Where a CRD's schema is not structural: every field typed, no rules in the wrong place."""
    out: list[FieldError] = []
    if document.get("type") != "object":
        if document.get("type"):
            text = "must be object at the root"
            out.append(invalid_value(f"{path}.type", document["type"], text))
        else:
            out.append(required(f"{path}.type", "must not be empty at the root"))
    _structural(document, path, out)
    return out


def _structural(node: Raw, path: str, out: list[FieldError]) -> None:
    if "properties" in node and node.get("additionalProperties") not in (None, False):
        text = "additionalProperties and properties are mutual exclusive"
        out.append(forbidden(f"{path}.additionalProperties", text))
    if node.get("uniqueItems"):
        text = "uniqueItems cannot be set to true since the runtime complexity becomes quadratic"
        out.append(forbidden(f"{path}.uniqueItems", text))
    if node.get("type") == "array" and not isinstance(node.get("items"), dict):
        out.append(required(f"{path}.items", "must be specified"))
    children = [
        (child, f"{path}.properties[{key}]", "must not be empty for specified object fields")
        for key, child in (node.get("properties") or {}).items()
    ]
    for key, text in (
        ("items", "must not be empty for specified array items"),
        ("additionalProperties", "must not be empty for specified object fields"),
    ):
        if isinstance(node.get(key), dict):
            children.append((node[key], f"{path}.{key}", text))
    for child, at, text in children:
        untyped = child.get("x-kubernetes-int-or-string") or child.get(
            "x-kubernetes-preserve-unknown-fields"
        )
        if not child.get("type") and not untyped:
            out.append(required(f"{at}.type", text))
        _structural(child, at, out)


# --- values ----------------------------------------------------------------------------------


def validate_value(value: Any, schema: Schema, path: str = "") -> list[FieldError]:
    """What a custom resource's value breaks of its schema."""
    out: list[FieldError] = []
    _value(value, schema, path, out)
    return out


def _value(value: Any, schema: Schema, path: str, out: list[FieldError]) -> None:
    if not schema.custom:
        return
    if value is None and schema.nullable:
        return
    problem = _type_problem(value, schema, path)
    if problem is not None:
        out.append(problem)
        return
    if schema.enum and value not in schema.enum:
        supported = [each if isinstance(each, str) else json.dumps(each) for each in schema.enum]
        out.append(not_supported(path, value, supported))
    if schema.limits:
        _limits(value, schema.limits, path, out)
    if isinstance(value, dict):
        _object(value, schema, path, out)
    elif isinstance(value, list):
        _array(value, schema, path, out)


def _object(value: Raw, schema: Schema, path: str, out: list[FieldError]) -> None:
    out += [
        required(f"{path}.{key}" if path else key) for key in schema.required if key not in value
    ]
    for key, item in value.items():
        child = schema.properties.get(key)
        if child is not None:
            _value(item, child, f"{path}.{key}" if path else key, out)
        elif schema.additional is not None:
            _value(item, schema.additional, f"{path}.{key}" if path else key, out)


def _array(value: list[Any], schema: Schema, path: str, out: list[FieldError]) -> None:
    if schema.items is not None:
        for index, item in enumerate(value):
            _value(item, schema.items, f"{path}[{index}]", out)
    seen: set[str] = set()
    for index, item in enumerate(value):
        if schema.list_type == "set":
            identity: Any = item
        elif schema.list_type == "map" and isinstance(item, dict):
            identity = {key: item.get(key) for key in schema.list_map_keys if key in item}
        else:
            continue
        text = json.dumps(identity, sort_keys=True)
        if text in seen:
            out.append(duplicate(f"{path}[{index}]", _go_identity(identity)))
        seen.add(text)


def _go_identity(identity: Any) -> Any:
    if not isinstance(identity, dict):
        return identity
    pairs = ", ".join(f"{go_value(key)}:{go_value(identity[key])}" for key in sorted(identity))
    return GoValue(f"map[string]interface {{}}{{{pairs}}}")


_TYPES: Mapping[str, Callable[[Any], bool]] = {
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "boolean": lambda value: isinstance(value, bool),
    "integer": lambda value: (
        not isinstance(value, bool)
        and (isinstance(value, int) or (isinstance(value, float) and value.is_integer()))
    ),
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
}


def _type_problem(value: Any, schema: Schema, path: str) -> FieldError | None:
    if schema.int_or_string:
        if _TYPES["string"](value) or _TYPES["integer"](value):
            return None
        wanted = "integer,string"
    elif not schema.type or _TYPES[schema.type](value):
        return None
    else:
        wanted = schema.type
    kind = _json_type(value)
    text = f'{path} in body must be of type {wanted}: "{kind}"'
    return type_invalid(path, kind, text)


def _json_type(value: Any) -> str:
    if value is None:
        return "null"
    order = ("boolean", "integer", "number", "string", "array", "object")
    return next(name for name in order if _TYPES[name](value))


@lru_cache(maxsize=512)
def _pattern(text: str) -> re.Pattern[str] | None:
    try:
        return re.compile(text.replace(r"\z", r"\Z"))
    except re.error:
        return None


def _limits(value: Any, limits: Mapping[str, Any], path: str, out: list[FieldError]) -> None:
    if isinstance(value, str):
        _text_limits(value, limits, path, out)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        _number_limits(value, limits, path, out)
    elif isinstance(value, list | dict):
        low, high = ("minItems", "maxItems") if isinstance(value, list) else _PROPERTIES
        noun = "items" if isinstance(value, list) else "properties"
        if len(value) < limits.get(low, 0):
            text = f"{path} in body should have at least {limits[low]} {noun}"
            out.append(invalid_value(path, len(value), text))
        if high in limits and len(value) > limits[high]:
            out.append(too_many(path, len(value), limits[high]))
    _combined(value, limits, path, out)


_PROPERTIES = ("minProperties", "maxProperties")


def _text_limits(value: str, limits: Mapping[str, Any], path: str, out: list[FieldError]) -> None:
    if "maxLength" in limits and len(value) > limits["maxLength"]:
        out.append(too_long(path, limits["maxLength"]))
    if len(value) < limits.get("minLength", 0):
        text = f"{path} in body should be at least {limits['minLength']} chars long"
        out.append(invalid_value(path, value, text))
    pattern = limits.get("pattern")
    compiled = _pattern(pattern) if pattern else None
    if compiled is not None and not compiled.search(value):
        text = f"{path} in body should match '{pattern}'"
        out.append(invalid_value(path, value, text))


def _number_limits(
    value: float, limits: Mapping[str, Any], path: str, out: list[FieldError]
) -> None:
    low, high, step = limits.get("minimum"), limits.get("maximum"), limits.get("multipleOf")
    if low is not None:
        exclusive = bool(limits.get("exclusiveMinimum"))
        if value < low or (exclusive and value == low):
            word = "greater than" if exclusive else "greater than or equal to"
            out.append(invalid_value(path, value, f"{path} in body should be {word} {low}"))
    if high is not None:
        exclusive = bool(limits.get("exclusiveMaximum"))
        if value > high or (exclusive and value == high):
            word = "less than" if exclusive else "less than or equal to"
            out.append(invalid_value(path, value, f"{path} in body should be {word} {high}"))
    if step and value % step:
        text = f"{path} in body should be a multiple of {step}"
        out.append(invalid_value(path, value, text))


def _combined(value: Any, limits: Mapping[str, Any], path: str, out: list[FieldError]) -> None:
    """allOf, anyOf, oneOf and not: value rules only, as structural schemas allow."""
    for raw in limits.get("allOf", ()):
        out += _alternative(value, raw, path)
    matches = [not _alternative(value, raw, path) for raw in limits.get("anyOf", ())]
    if matches and not any(matches):
        text = f"{path} in body must validate at least one schema (anyOf)"
        out.append(invalid_value(path, value, text))
    matches = [not _alternative(value, raw, path) for raw in limits.get("oneOf", ())]
    if matches and sum(matches) != 1:
        found = (
            "Found none valid" if not any(matches) else f"Found {sum(matches)} valid alternatives"
        )
        text = f'"{path}" must validate one and only one schema (oneOf). {found}'
        out.append(invalid_value(path, value, text))
    if "not" in limits and not _alternative(value, limits["not"], path):
        text = f"{path} in body must not validate the schema (not)"
        out.append(invalid_value(path, value, text))


def _alternative(value: Any, raw: Raw, path: str) -> list[FieldError]:
    return validate_value(value, custom_node(raw), path)
