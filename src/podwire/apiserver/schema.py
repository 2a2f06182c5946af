"""Structural schemas: what a kind's fields are, for built-in kinds and CRD documents alike.

Built-in kinds come from the compiled table in `data/` (see `tools/compile_schemas.py`): the table
is read once, about 3 ms, and the nodes of a kind are built when the kind is first asked for.
A CRD's `openAPIV3Schema` becomes the same nodes, so that decoding, pruning, defaults, merging and
validation know one form only. Nodes may be recursive (JSONSchemaProps) and are shared: never
change one after it is built.
"""

from __future__ import annotations

import copy
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.resources import files
from typing import Any

import msgspec

OBJECT_META = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"
_META = "io.k8s.apimachinery.pkg.apis.meta.v1."
_CRD = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1."

# Go types that write themselves: what the published definitions say of them is not enough.
_SPECIAL: Mapping[str, Mapping[str, Any]] = {
    "io.k8s.apimachinery.pkg.api.resource.Quantity": {"type": "string", "format": "quantity"},
    "io.k8s.apimachinery.pkg.util.intstr.IntOrString": {"int_or_string": True},
    _META + "Time": {"type": "string", "format": "date-time"},
    _META + "MicroTime": {"type": "string", "format": "micro-time"},
    _META + "FieldsV1": {"type": "object", "preserve_unknown": True},
    "io.k8s.apimachinery.pkg.runtime.RawExtension": {"type": "object", "preserve_unknown": True},
    _CRD + "JSON": {"preserve_unknown": True},
    _CRD + "JSONSchemaPropsOrArray": {"preserve_unknown": True},
    _CRD + "JSONSchemaPropsOrBool": {"preserve_unknown": True},
    _CRD + "JSONSchemaPropsOrStringArray": {"preserve_unknown": True},
}


@dataclass(slots=True, eq=False)
class Schema:
    """One node: a type with its fields, and what Kubernetes says about merging, defaults, limits.

    `type` is a JSON type, or "" where any value goes (`preserve_unknown`) or where an integer or
    a string does (`int_or_string`). `format` narrows it: int32, int64, double, byte, date-time,
    micro-time, quantity, or a CRD's own. `definition` is the published name of a built-in type.
    """

    type: str = ""
    format: str = ""
    definition: str = ""
    properties: dict[str, Schema] = field(default_factory=dict)
    items: Schema | None = None
    additional: Schema | None = None
    required: tuple[str, ...] = ()
    enum: tuple[Any, ...] = ()
    default: Any = None
    has_default: bool = False
    nullable: bool = False
    list_type: str = ""
    list_map_keys: tuple[str, ...] = ()
    map_type: str = ""
    patch_strategy: tuple[str, ...] = ()
    patch_merge_key: str = ""
    preserve_unknown: bool = False
    embedded_resource: bool = False
    int_or_string: bool = False
    custom: bool = False
    """Whether this came from a CRD: unknown fields are pruned, types are for validation."""
    limits: Mapping[str, Any] = field(default_factory=dict)
    """A CRD's value rules under their JSON Schema names (`minimum`, `pattern`, `oneOf`, ...)."""
    compiled: Callable[[Any], Any] | None = field(default=None, repr=False)
    """The decoder `decode.py` built for this node."""

    @property
    def go_name(self) -> str:
        """The Go type's name as decoding errors say it: `DeploymentSpec`."""
        return self.definition.rpartition(".")[2]

    @property
    def is_map(self) -> bool:
        return self.additional is not None and not self.properties


@cache
def _table() -> dict[str, dict[str, Any]]:
    data = files("podwire.apiserver") / "data" / "structure.json.zlib"
    table = msgspec.json.decode(zlib.decompress(data.read_bytes()))
    definitions: dict[str, dict[str, Any]] = table["definitions"]
    return definitions


@cache
def kind_definitions() -> dict[tuple[str, str, str], str]:
    """The published definition's name of every built-in (group, version, kind)."""
    return {
        (gvk["group"], gvk["version"], gvk["kind"]): name
        for name, node in _table().items()
        for gvk in node.get("x-kubernetes-group-version-kind", ())
    }


def raw_definition(name: str) -> dict[str, Any]:
    """A definition as compiled (JSON Schema without prose); shared, not to be changed."""
    return _table()[name]


def builtin_kinds() -> frozenset[tuple[str, str, str]]:
    """Every built-in (group, version, kind), lists included."""
    return frozenset(kind_definitions())


def builtin(group: str, version: str, kind: str) -> Schema | None:
    """The schema of a built-in kind; None where Kubernetes has no such kind. Cached."""
    name = kind_definitions().get((group, version, kind))
    return None if name is None else definition(name)


_built: dict[str, Schema] = {}


def definition(name: str) -> Schema:
    """The schema of a published definition, e.g. `io.k8s.api.core.v1.PodSpec`. Cached."""
    found = _built.get(name)
    if found is not None:
        return found
    if name in _SPECIAL:
        node = Schema(definition=name, **_SPECIAL[name])
        _built[name] = node
        return node
    raw = _table()[name]
    node = _scalars(raw, name)
    _built[name] = node  # before the fields: a type may contain itself
    _fill(node, raw)
    return node


def _scalars(raw: dict[str, Any], name: str = "") -> Schema:
    strategy = raw.get("x-kubernetes-patch-strategy")
    return Schema(
        type=raw.get("type", ""),
        format=raw.get("format", ""),
        definition=name,
        required=tuple(raw.get("required", ())),
        default=raw.get("default"),
        has_default="default" in raw,
        list_type=raw.get("x-kubernetes-list-type", ""),
        list_map_keys=tuple(raw.get("x-kubernetes-list-map-keys", ())),
        map_type=raw.get("x-kubernetes-map-type", ""),
        patch_strategy=tuple(strategy.split(",")) if strategy else (),
        patch_merge_key=raw.get("x-kubernetes-patch-merge-key", ""),
        preserve_unknown=bool(raw.get("x-kubernetes-preserve-unknown-fields")),
        embedded_resource=bool(raw.get("x-kubernetes-embedded-resource")),
        int_or_string=bool(raw.get("x-kubernetes-int-or-string")),
    )


def _fill(node: Schema, raw: dict[str, Any]) -> None:
    for key, child in raw.get("properties", {}).items():
        node.properties[key] = _child(child)
    if "items" in raw:
        node.items = _child(raw["items"])
    if isinstance(raw.get("additionalProperties"), dict):
        node.additional = _child(raw["additionalProperties"])
    if node.type == "object" and not node.properties and node.additional is None:
        node.preserve_unknown = node.preserve_unknown or not node.definition


def _child(raw: dict[str, Any]) -> Schema:
    ref = raw.get("$ref")
    if ref is None:
        node = _scalars(raw)
        _fill(node, raw)
        return node
    target = definition(ref)
    if raw.keys() == {"$ref"}:
        return target
    own = _scalars(raw)
    # The fields' dict is shared on purpose: the target may still be being filled.
    return replace(
        target,
        default=own.default,
        has_default=own.has_default,
        map_type=own.map_type or target.map_type,
        patch_strategy=own.patch_strategy,
        patch_merge_key=own.patch_merge_key,
    )


# --- custom resources ------------------------------------------------------------------------

_LIMITS = (
    *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
    *("minLength", "maxLength", "pattern", "minItems", "maxItems", "uniqueItems"),
    *("minProperties", "maxProperties", "allOf", "anyOf", "oneOf", "not"),
    "x-kubernetes-validations",
)


def schema_from_crd(document: dict[str, Any]) -> Schema:
    """The schema for a CRD version's `openAPIV3Schema`; `{}` accepts (and prunes) like Kubernetes.

    apiVersion, kind and metadata are added at the root. The document's structural rules are
    checked by `validation.crd.structural_errors`, not here.
    """
    root = custom_node(document)
    root.type = root.type or "object"
    _add_type_meta(root)
    return root


def custom_node(raw: dict[str, Any]) -> Schema:
    """One node of a CRD's schema, without what is added at the root."""
    items = raw.get("items")
    additional = raw.get("additionalProperties")
    node = Schema(
        type=raw.get("type", ""),
        format=raw.get("format", ""),
        properties={key: custom_node(child) for key, child in raw.get("properties", {}).items()},
        items=custom_node(items) if isinstance(items, dict) else None,
        required=tuple(raw.get("required", ())),
        enum=tuple(raw.get("enum", ())),
        default=raw.get("default"),
        has_default="default" in raw,
        nullable=bool(raw.get("nullable")),
        list_type=raw.get("x-kubernetes-list-type", ""),
        list_map_keys=tuple(raw.get("x-kubernetes-list-map-keys", ())),
        map_type=raw.get("x-kubernetes-map-type", ""),
        preserve_unknown=bool(raw.get("x-kubernetes-preserve-unknown-fields")),
        embedded_resource=bool(raw.get("x-kubernetes-embedded-resource")),
        int_or_string=bool(raw.get("x-kubernetes-int-or-string")),
        custom=True,
        limits={key: raw[key] for key in _LIMITS if key in raw},
    )
    if isinstance(additional, dict):
        node.additional = custom_node(additional)
    elif additional is True:
        node.additional = Schema(preserve_unknown=True, custom=True)
    if node.embedded_resource:
        _add_type_meta(node)
    return node


def _add_type_meta(node: Schema) -> None:
    text = Schema(type="string", custom=True)
    node.properties.setdefault("apiVersion", text)
    node.properties.setdefault("kind", text)
    node.properties["metadata"] = definition(OBJECT_META)


# --- pruning and defaults ----------------------------------------------------------------------


def prune(obj: dict[str, Any], schema: Schema) -> list[str]:
    """Remove unknown fields in place; returns their paths (`spec.foo[0].bar`)."""
    removed: list[str] = []
    _prune(obj, schema, "", removed)
    return removed


def _prune(value: Any, schema: Schema, path: str, removed: list[str]) -> None:
    if isinstance(value, list):
        if schema.items is not None:
            for index, item in enumerate(value):
                _prune(item, schema.items, f"{path}[{index}]", removed)
        return
    if not isinstance(value, dict):
        return
    for key in list(value):
        below = f"{path}.{key}" if path else key
        child = schema.properties.get(key) or schema.additional
        if child is not None:
            _prune(value[key], child, below, removed)
        elif not schema.preserve_unknown:
            del value[key]
            removed.append(below)


def apply_schema_defaults(obj: Any, schema: Schema) -> None:
    """Set a CRD's defaults in place; a null field that may not be null counts as left out."""
    if isinstance(obj, list):
        if schema.items is not None:
            for item in obj:
                apply_schema_defaults(item, schema.items)
        return
    if not isinstance(obj, dict):
        return
    for key, child in schema.properties.items():
        if not child.custom:
            continue
        if key in obj and obj[key] is None and not child.nullable:
            del obj[key]
        if child.has_default and key not in obj:
            obj[key] = copy.deepcopy(child.default)
        if key in obj:
            apply_schema_defaults(obj[key], child)
    if schema.additional is not None:
        for key, value in obj.items():
            if key not in schema.properties:
                apply_schema_defaults(value, schema.additional)
