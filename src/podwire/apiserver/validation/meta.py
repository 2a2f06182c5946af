"""Rules of metadata, labels and selectors: the part every kind shares.

Source: apimachinery pkg/api/validation/objectmeta.go, pkg/apis/meta/v1/validation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from podwire.apiserver import names
from podwire.apiserver.fields import (
    FieldError,
    GoValue,
    forbidden,
    go_value,
    invalid_value,
    not_supported,
    required,
    too_long,
)

Raw = dict[str, Any]
NameRule = Callable[[str], list[str]]

PROTOCOLS = ("SCTP", "TCP", "UDP")
IMMUTABLE = "field is immutable"
NEGATIVE = "must be greater than or equal to 0"
_MAX_ANNOTATIONS = 256 * 1024
_STANDARD_FINALIZERS = frozenset({"kubernetes", "orphan", "foregroundDeletion"})


def path_segment(name: str) -> list[str]:
    """RBAC names: anything that can be one segment of a URL path."""
    if name in (".", ".."):
        return [f"may not be '{name}'"]
    return [f"may not contain '{char}'" for char in "/%" if char in name]


def each(obj: Raw | None, key: str, path: str) -> Iterator[tuple[str, Raw]]:
    """(path, object) of every object in the list under `key`."""
    for index, item in enumerate((obj or {}).get(key) or ()):
        if isinstance(item, dict):
            yield f"{path}.{key}[{index}]" if path else f"{key}[{index}]", item


def invalid_each(field: str, value: Any, problems: list[str]) -> list[FieldError]:
    return [invalid_value(field, value, problem) for problem in problems]


def immutable(field: str, new: Any, old: Any, shown: Any = None) -> list[FieldError]:
    """One error unless equal; absent and empty mean the same."""
    if (new or None) == (old or None):
        return []
    return [invalid_value(field, new if shown is None else shown, IMMUTABLE)]


def non_negative(obj: Raw, path: str, *keys: str) -> list[FieldError]:
    return [
        invalid_value(f"{path}.{key}", obj[key], NEGATIVE)
        for key in keys
        if (obj.get(key) or 0) < 0
    ]


def check_enum(
    obj: Raw, path: str, key: str, supported: tuple[str, ...], *, needed: bool = True
) -> list[FieldError]:
    value = obj.get(key) or ""
    if not value:
        return [required(f"{path}.{key}")] if needed else []
    return [] if value in supported else [not_supported(f"{path}.{key}", value, supported)]


def validate_port_or_name(port: Any, path: str) -> list[FieldError]:
    """An IntOrString port: a number, or the name of a container port."""
    if isinstance(port, str):
        return invalid_each(path, port, names.is_port_name(port))
    return invalid_each(path, port, names.is_port_number(port))


def validate_meta(
    metadata: Raw,
    rule: NameRule,
    namespaced: bool | None = None,
    *,
    core: bool = True,
) -> list[FieldError]:
    """Metadata of an object to create; `namespaced` None leaves the namespace unchecked.

    `core` is for the kinds of Kubernetes' own API groups, whose finalizers must be qualified.
    """
    out: list[FieldError] = []
    prefix, name = metadata.get("generateName") or "", metadata.get("name") or ""
    if prefix:
        # Characters will follow, so a trailing dash is fine.
        masked = prefix[:-1] + "a" if prefix.endswith("-") and len(prefix) > 1 else prefix
        out += invalid_each("metadata.generateName", prefix, rule(masked))
    if name:
        out += invalid_each("metadata.name", name, rule(name))
    elif not prefix:
        out.append(required("metadata.name", "name or generateName is required"))
    namespace = metadata.get("namespace") or ""
    if namespaced is False and namespace:
        out.append(forbidden("metadata.namespace", "not allowed on this type"))
    elif namespace:
        out += invalid_each("metadata.namespace", namespace, names.is_dns_label(namespace))
    out += validate_labels(metadata.get("labels"), "metadata.labels")
    out += validate_annotations(metadata.get("annotations"), "metadata.annotations")
    out += _owners(metadata)
    return out + _finalizers(metadata, core=core)


def validate_labels(labels: Mapping[str, str] | None, path: str) -> list[FieldError]:
    out: list[FieldError] = []
    for key, value in (labels or {}).items():
        out += invalid_each(path, key, names.is_qualified_name(key))
        out += invalid_each(path, value, names.is_label_value(value))
    return out


def validate_annotations(annotations: Mapping[str, str] | None, path: str) -> list[FieldError]:
    out: list[FieldError] = []
    size = 0
    for key, value in (annotations or {}).items():
        out += invalid_each(path, key, names.is_qualified_name(key.lower()))
        size += len(key.encode()) + len(value.encode())
    if size > _MAX_ANNOTATIONS:
        out.append(too_long(path, _MAX_ANNOTATIONS))
    return out


def _owners(metadata: Raw) -> list[FieldError]:
    out: list[FieldError] = []
    controller = ""
    path = "metadata.ownerReferences"
    for index, owner in enumerate(metadata.get("ownerReferences") or ()):
        at = f"{path}[{index}]"
        if not owner.get("apiVersion"):
            out.append(invalid_value(f"{at}.apiVersion", "", "version must not be empty"))
        for key in ("kind", "name", "uid"):
            if not owner.get(key):
                out.append(invalid_value(f"{at}.{key}", "", "must not be empty"))
        if owner.get("controller"):
            if controller:
                text = (
                    'Only one reference can have Controller set to true. Found "true" in '
                    f"references for {controller} and {owner.get('name', '')}"
                )
                out.append(
                    invalid_value(path, GoValue(go_value(metadata["ownerReferences"])), text)
                )
            controller = owner.get("name", "")
    return out


def _finalizers(metadata: Raw, *, core: bool) -> list[FieldError]:
    out: list[FieldError] = []
    finalizers = metadata.get("finalizers") or []
    for index, name in enumerate(finalizers):
        problems = names.is_qualified_name(name)
        if core and not problems and "/" not in name and name not in _STANDARD_FINALIZERS:
            problems = ["name is neither a standard finalizer name nor is it fully qualified"]
        out += invalid_each(f"metadata.finalizers[{index}]", name, problems)
    if {"orphan", "foregroundDeletion"} <= set(finalizers):
        text = 'finalizers "orphan" and "foregroundDeletion" cannot be both set'
        out.append(invalid_value("metadata.finalizers", finalizers, text))
    return out


def validate_meta_update(new: Raw, old: Raw, *, core: bool = True) -> list[FieldError]:
    """Metadata of an object to replace another; `core` as in `validate_meta`."""
    out: list[FieldError] = []
    for key in ("name", "namespace", "uid", "creationTimestamp"):
        out += immutable(f"metadata.{key}", new.get(key), old.get(key))
    if (new.get("generation") or 0) < (old.get("generation") or 0):
        text = "must not be decremented"
        out.append(invalid_value("metadata.generation", new.get("generation") or 0, text))
    added = sorted(set(new.get("finalizers") or ()) - set(old.get("finalizers") or ()))
    if old.get("deletionTimestamp") and added:
        shown = "[]string{" + ", ".join(map(go_value, added)) + "}"
        text = (
            "no new finalizers can be added if the object is being deleted, found new "
            f"finalizers {shown}"
        )
        out.append(forbidden("metadata.finalizers", text))
    out += validate_labels(new.get("labels"), "metadata.labels")
    out += validate_annotations(new.get("annotations"), "metadata.annotations")
    return out + _owners(new) + _finalizers(new, core=core)


def validate_selector(selector: Raw | None, path: str) -> list[FieldError]:
    """meta/v1 LabelSelector."""
    out: list[FieldError] = []
    if not selector:
        return out
    out += validate_labels(selector.get("matchLabels"), f"{path}.matchLabels")
    for at, row in each(selector, "matchExpressions", path):
        operator, values = row.get("operator", ""), row.get("values")
        if operator in ("In", "NotIn"):
            if not values:
                text = "must be specified when `operator` is 'In' or 'NotIn'"
                out.append(required(f"{at}.values", text))
        elif operator in ("Exists", "DoesNotExist"):
            if values:
                text = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'"
                out.append(forbidden(f"{at}.values", text))
        else:
            out.append(invalid_value(f"{at}.operator", operator, "not a valid selector operator"))
        out += invalid_each(
            f"{at}.key", row.get("key", ""), names.is_qualified_name(row.get("key", ""))
        )
        for index, value in enumerate(values or ()):
            out += invalid_each(f"{at}.values[{index}]", value, names.is_label_value(value))
    return out


def selector_matches(selector: Raw, labels: Mapping[str, str]) -> bool:
    """Whether a well-formed label selector selects these labels."""
    for key, value in (selector.get("matchLabels") or {}).items():
        if labels.get(key) != value:
            return False
    for row in selector.get("matchExpressions") or ():
        value, values = labels.get(row.get("key", "")), row.get("values") or ()
        found = {
            "In": value is not None and value in values,
            "NotIn": value is None or value not in values,
            "Exists": value is not None,
            "DoesNotExist": value is None,
        }
        if not found.get(row.get("operator", ""), False):
            return False
    return True


def empty_selector(selector: Raw) -> bool:
    return not selector.get("matchLabels") and not selector.get("matchExpressions")
