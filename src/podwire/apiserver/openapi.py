"""OpenAPI documents as kubectl reads them: built when first asked for, then kept as bytes.

kubectl asks the v3 index, then the document of the group version it is about to write to:
`apply` wants merge keys and whether PATCH takes a strategic merge patch, `create` and `apply`
want to know that PATCH has a `fieldValidation` parameter, `explain` wants prose. Each document
carries only the definitions its kinds reach. kubectl 1.20 asks v2 instead and is content with
five bytes of it.
"""

from __future__ import annotations

import hashlib
import lzma
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import msgspec

from podwire.apiserver.patch import JSON_PATCH, MERGE_PATCH, STRATEGIC_PATCH
from podwire.apiserver.schema import OBJECT_META, kind_definitions, raw_definition

# SwaggerDoc{swagger: "2.0"}: all that kubectl 1.20's `apply` needs.
OPENAPI_V2 = b"\x0a\x032.0"
OPENAPI_V2_CONTENT_TYPE = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf"

APPLY_PATCH = "application/apply-patch+yaml"
_DELETE_OPTIONS = "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions"
_PATCH = "io.k8s.apimachinery.pkg.apis.meta.v1.Patch"
_GVK = "x-kubernetes-group-version-kind"
_SCHEMAS = "#/components/schemas/"


@dataclass(frozen=True)
class OpenApiResource:
    """One served resource; `schema` is a CRD's openAPIV3Schema, None for built-in kinds."""

    kind: str
    plural: str
    namespaced: bool
    verbs: tuple[str, ...]
    subresources: tuple[str, ...] = ()
    schema: dict[str, Any] | None = None


def openapi_v3_index(groups: Iterable[tuple[str, str, str]]) -> bytes:
    """The body of /openapi/v3 for (group, version, hash) triples; core's group is ""."""
    paths = {}
    for group, version, digest in groups:
        path = _prefix(group, version)
        paths[path] = {"serverRelativeURL": f"/openapi/v3/{path}?hash={digest}"}
    return msgspec.json.encode({"paths": paths})


def document_hash(document: bytes) -> str:
    """What the index puts behind `?hash=`: clients cache a document under it."""
    return hashlib.sha256(document).hexdigest()[:32].upper()


def openapi_v3_document(group: str, version: str, resources: Sequence[OpenApiResource]) -> bytes:
    """The body of /openapi/v3/apis/GROUP/VERSION; documents of built-in kinds are kept."""
    if all(resource.schema is None for resource in resources):
        return _kept(group, version, tuple(resources))
    return _document(group, version, resources)


@cache
def _kept(group: str, version: str, resources: tuple[OpenApiResource, ...]) -> bytes:
    return _document(group, version, resources)


def _document(group: str, version: str, resources: Sequence[OpenApiResource]) -> bytes:
    schemas: dict[str, Any] = {}
    paths: dict[str, Any] = {}
    for needed in (_DELETE_OPTIONS, _PATCH):
        _reach(needed, schemas)
    for resource in resources:
        name = _component(group, version, resource, schemas)
        paths.update(_paths(group, version, resource, name))
    document = {
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": "v1.33.0"},
        "paths": paths,
        "components": {"schemas": schemas},
    }
    return msgspec.json.encode(document)


def _prefix(group: str, version: str) -> str:
    return f"apis/{group}/{version}" if group else f"api/{version}"


# --- components ------------------------------------------------------------------------------


@cache
def _descriptions() -> Mapping[str, Mapping[str, str]]:
    data = files("podwire.apiserver") / "data" / "descriptions.json.xz"
    prose: dict[str, dict[str, str]] = msgspec.json.decode(lzma.decompress(data.read_bytes()))
    return prose


def _component(group: str, version: str, resource: OpenApiResource, schemas: dict[str, Any]) -> str:
    """Adds the resource's definition and all it refers to; returns its name."""
    gvk = (group, version, resource.kind)
    name = kind_definitions().get(gvk) if resource.schema is None else None
    if name is not None:
        _reach(name, schemas)
        list_name = kind_definitions().get((group, version, f"{resource.kind}List"))
        if list_name is not None:
            _reach(list_name, schemas)
        return name
    name = f"{'.'.join(reversed(group.split('.')))}.{version}.{resource.kind}"
    _reach(OBJECT_META, schemas)
    schemas[name] = _custom_component(gvk, resource.schema or {"type": "object"})
    return name


def _custom_component(gvk: tuple[str, str, str], document: dict[str, Any]) -> dict[str, Any]:
    root = dict(document)
    root.setdefault("type", "object")
    meta = _descriptions().get("io.k8s.api.core.v1.Pod", {})
    root["properties"] = {
        "apiVersion": {"type": "string", "description": meta.get("apiVersion", "")},
        "kind": {"type": "string", "description": meta.get("kind", "")},
        "metadata": {
            "allOf": [{"$ref": _SCHEMAS + OBJECT_META}],
            "description": meta.get("metadata", ""),
        },
        **{k: v for k, v in (document.get("properties") or {}).items() if k not in _TYPE_META},
    }
    root[_GVK] = [_gvk(*gvk)]
    return root


_TYPE_META = ("apiVersion", "kind", "metadata")


def _gvk(group: str, version: str, kind: str) -> dict[str, str]:
    return {"group": group, "kind": kind, "version": version}


def _reach(name: str, schemas: dict[str, Any]) -> None:
    """Adds a published definition and, through its references, all it needs."""
    pending = [name]
    while pending:
        name = pending.pop()
        if name in schemas:
            continue
        prose = _descriptions().get(name, {})
        node = _convert(raw_definition(name), pending, prose)
        if prose.get(""):
            node["description"] = prose[""]
        schemas[name] = node


def _convert(
    raw: Mapping[str, Any], pending: list[str], prose: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """OpenAPI 3.0 of a compiled definition: references in `allOf`, since they have siblings."""
    out: dict[str, Any] = {}
    for key, value in raw.items():
        match key:
            case "$ref":
                pending.append(value)
                out["allOf"] = [{"$ref": _SCHEMAS + value}]
            case "properties":
                out["properties"] = {}
                for name, child in value.items():
                    node = out["properties"][name] = _convert(child, pending)
                    if prose and name in prose:
                        node["description"] = prose[name]
            case "items" | "additionalProperties" if isinstance(value, dict):
                out[key] = _convert(value, pending)
            case "enum" | "oneOf":
                out |= _alternatives(key, value)
            case _:
                out[key] = value
    return out


def _alternatives(key: str, value: list[Any]) -> dict[str, Any]:
    if key == "enum":
        # Only apiVersion and kind have one, and there it would say what the GVK says.
        return {}
    plain = [
        {**row, "type": next(kind for kind in row["type"] if kind != "null")}
        if isinstance(row.get("type"), list)
        else row
        for row in value
    ]
    return {key: plain}


# --- paths -----------------------------------------------------------------------------------


def _paths(group: str, version: str, resource: OpenApiResource, name: str) -> dict[str, Any]:
    base = f"/{_prefix(group, version)}"
    scoped = f"{base}/namespaces/{{namespace}}" if resource.namespaced else base
    gvk = _gvk(group, version, resource.kind)
    schema = {"$ref": _SCHEMAS + name}
    custom = resource.schema is not None
    collection = _operations(
        resource.verbs, ("list", "create", "deletecollection"), gvk, schema, custom
    )
    single = _operations(resource.verbs, ("get", "update", "patch", "delete"), gvk, schema, custom)
    parameters = [_path_parameter("namespace")] if resource.namespaced else []
    named = [_path_parameter("name"), *parameters]
    item = f"{scoped}/{resource.plural}/{{name}}"
    paths: dict[str, Any] = {
        f"{scoped}/{resource.plural}": {**collection, "parameters": parameters},
        item: {**single, "parameters": named},
    }
    if resource.namespaced and "list" in resource.verbs:
        everywhere = _operations(("list",), ("list",), gvk, schema, custom)
        paths[f"{base}/{resource.plural}"] = everywhere
    if "status" in resource.subresources:
        verbs = ("get", "update", "patch")
        status = _operations(verbs, verbs, gvk, schema, custom)
        paths[f"{item}/status"] = {**status, "parameters": named}
    return paths


_METHODS = {
    "list": ("get", "list"),
    "create": ("post", "post"),
    "deletecollection": ("delete", "deletecollection"),
    "get": ("get", "get"),
    "update": ("put", "put"),
    "patch": ("patch", "patch"),
    "delete": ("delete", "delete"),
}
_QUERY = {
    "list": ("labelSelector", "fieldSelector", "limit", "continue", "resourceVersion", "watch"),
    "create": ("dryRun", "fieldManager", "fieldValidation"),
    "update": ("dryRun", "fieldManager", "fieldValidation"),
    "patch": ("dryRun", "fieldManager", "fieldValidation", "force"),
    "delete": ("dryRun", "gracePeriodSeconds", "propagationPolicy"),
    "deletecollection": ("dryRun", "labelSelector", "fieldSelector", "propagationPolicy"),
}
_QUERY_TYPES = {"limit": "integer", "watch": "boolean", "force": "boolean"}
_QUERY_TYPES["gracePeriodSeconds"] = "integer"


def _operations(
    verbs: Sequence[str],
    possible: Sequence[str],
    gvk: dict[str, str],
    schema: dict[str, str],
    custom: bool,
) -> dict[str, Any]:
    return {
        _METHODS[verb][0]: _operation(verb, gvk, schema, custom)
        for verb in possible
        if verb in verbs
    }


def _operation(
    verb: str, gvk: dict[str, str], schema: dict[str, str], custom: bool
) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "parameters": [
            {
                "name": name,
                "in": "query",
                "schema": {"type": _QUERY_TYPES.get(name, "string"), "uniqueItems": True},
            }
            for name in _QUERY.get(verb, ())
        ],
        "responses": {"200": {"description": "OK", "content": _json_content(schema)}},
        "x-kubernetes-action": _METHODS[verb][1],
        _GVK: gvk,
    }
    match verb:
        case "create" | "update":
            operation["requestBody"] = {"content": {"*/*": {"schema": schema}}, "required": True}
        case "patch":
            types = [APPLY_PATCH, JSON_PATCH, MERGE_PATCH]
            types += [] if custom else [STRATEGIC_PATCH]
            body = {"schema": {"$ref": _SCHEMAS + _PATCH}}
            operation["requestBody"] = {"content": dict.fromkeys(types, body), "required": True}
        case "delete" | "deletecollection":
            body = {"schema": {"$ref": _SCHEMAS + _DELETE_OPTIONS}}
            operation["requestBody"] = {"content": {"*/*": body}}
    return operation


def _json_content(schema: dict[str, str]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _path_parameter(name: str) -> dict[str, Any]:
    schema = {"type": "string", "uniqueItems": True}
    return {"name": name, "in": "path", "required": True, "schema": schema}
