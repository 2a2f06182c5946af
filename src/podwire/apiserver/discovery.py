"""What is served: /api, /apis, aggregated discovery, /version and the OpenAPI documents.

Bodies are built when first asked for and kept until a custom kind comes or goes
(`Registry.generation`). Source: KEP-3352 (aggregated discovery), KEP-2896 (OpenAPI v3).
"""

from __future__ import annotations

import functools
import hashlib
import platform
from collections.abc import Callable

from podwire.apiserver.context import GIT_VERSION, Context
from podwire.apiserver.openapi import (
    OPENAPI_V2_CONTENT_TYPE,
    OpenApiResource,
    openapi_v3_document,
    openapi_v3_index,
)
from podwire.apiserver.openapi_v2 import openapi_v2_protobuf
from podwire.apiserver.registry import Registry, Resource
from podwire.apiserver.request import page_not_found
from podwire.apiserver.store import decode, encode
from podwire.errors import ApiError
from podwire.objects.meta import JsonObject

JSON = "application/json"
_SUBRESOURCE_KIND: dict[str, tuple[str, str, str]] = {
    "scale": ("autoscaling", "v1", "Scale"),
    "eviction": ("policy", "v1", "Eviction"),
    "binding": ("", "v1", "Binding"),
    "token": ("authentication.k8s.io", "v1", "TokenRequest"),
    "exec": ("", "v1", "PodExecOptions"),
    "attach": ("", "v1", "PodAttachOptions"),
    "portforward": ("", "v1", "PodPortForwardOptions"),
    "proxy": ("", "v1", "NodeProxyOptions"),
}
_SUBRESOURCE_VERBS: dict[str, tuple[str, ...]] = {
    "status": ("get", "patch", "update"),
    "scale": ("get", "patch", "update"),
    "approval": ("get", "patch", "update"),
    "ephemeralcontainers": ("get", "patch", "update"),
    "finalize": ("update",),
    "eviction": ("create",),
    "binding": ("create",),
    "token": ("create",),
    "log": ("get",),
    "exec": ("create", "get"),
    "attach": ("create", "get"),
    "portforward": ("create", "get"),
    "proxy": ("create", "delete", "get", "patch", "update"),
}


def version() -> JsonObject:
    major, minor, _ = GIT_VERSION.lstrip("v").split(".")
    return {
        "major": major,
        "minor": minor,
        "gitVersion": GIT_VERSION,
        "gitCommit": "",
        "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "",
        "compiler": "",
        "platform": f"linux/{'amd64' if platform.machine() == 'x86_64' else platform.machine()}",
    }


def _cached(ctx: Context, key: object, build: Callable[[], bytes]) -> bytes:
    found = ctx.cache.get(key)
    if found is None or found[0] != ctx.registry.generation:
        found = ctx.cache[key] = (ctx.registry.generation, build())
    return found[1]


# -- plain and aggregated discovery --------------------------------------------------------------


@functools.lru_cache(maxsize=64)
def aggregated_version(accept: str) -> str:
    """The apidiscovery.k8s.io version a client takes first; "" for plain documents."""
    for clause in accept.split(","):
        media, *rest = (part.strip() for part in clause.split(";"))
        options = dict(p.partition("=")[::2] for p in rest)
        if media != JSON and media not in ("*/*", "application/*"):
            continue
        if options.get("as") == "APIGroupDiscoveryList":
            if options.get("g") == "apidiscovery.k8s.io" and options.get("v") in ("v2", "v2beta1"):
                return options["v"]
            continue
        return ""
    return ""


def root(ctx: Context, legacy: bool, accept: str) -> tuple[bytes, str]:
    """The body and content type of /api (legacy) or /apis."""
    chosen = aggregated_version(accept)
    if chosen:
        body = _cached(
            ctx, ("aggregated", legacy, chosen), lambda: _aggregated(ctx.registry, legacy, chosen)
        )
        return body, f"{JSON};g=apidiscovery.k8s.io;v={chosen};as=APIGroupDiscoveryList"
    build = _api_versions if legacy else _group_list
    return _cached(ctx, ("plain", legacy), lambda: build(ctx.registry)), JSON


def _api_versions(registry: Registry) -> bytes:
    return encode(
        {
            "kind": "APIVersions",
            "versions": ["v1"],
            "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": ""}],
        }
    )


def _group_list(registry: Registry) -> bytes:
    groups = [_group(name, versions) for name, versions in registry.groups().items() if name]
    return encode({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})


def _group(name: str, versions: list[str]) -> JsonObject:
    entries = [{"groupVersion": f"{name}/{v}", "version": v} for v in versions]
    return {"name": name, "versions": entries, "preferredVersion": entries[0]}


def group(ctx: Context, name: str) -> bytes:
    versions = ctx.registry.groups().get(name)
    if versions is None:
        raise page_not_found()
    return encode({"kind": "APIGroup", "apiVersion": "v1", **_group(name, versions)})


def resources(ctx: Context, group_name: str, version_name: str) -> bytes:
    """The APIResourceList of one group version."""
    if not ctx.registry.has_group_version(group_name, version_name):
        raise page_not_found()
    return _cached(
        ctx,
        ("resources", group_name, version_name),
        lambda: _resource_list(ctx.registry, group_name, version_name),
    )


def _resource_list(registry: Registry, group_name: str, version_name: str) -> bytes:
    found: list[JsonObject] = []
    for resource in registry.in_version(group_name, version_name):
        found.append(_resource_entry(resource))
        found += [_subresource_entry(resource, sub) for sub in sorted(resource.subresources)]
    name = f"{group_name}/{version_name}" if group_name else version_name
    return encode(
        {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": name, "resources": found}
    )


def _resource_entry(resource: Resource) -> JsonObject:
    entry: JsonObject = {
        "name": resource.plural,
        "singularName": resource.singular,
        "namespaced": resource.namespaced,
        "kind": resource.kind,
        "verbs": list(resource.verbs),
    }
    if resource.short_names:
        entry["shortNames"] = list(resource.short_names)
    if resource.categories:
        entry["categories"] = list(resource.categories)
    if resource.stored:
        entry["storageVersionHash"] = _digest(resource.storage.encode())[:12]
    return entry


def _subresource_kind(resource: Resource, sub: str) -> tuple[str, str, str]:
    return _SUBRESOURCE_KIND.get(sub, (resource.group, resource.version, resource.kind))


def _subresource_entry(resource: Resource, sub: str) -> JsonObject:
    group_name, version_name, kind = _subresource_kind(resource, sub)
    entry: JsonObject = {
        "name": f"{resource.plural}/{sub}",
        "singularName": "",
        "namespaced": resource.namespaced,
        "kind": kind,
        "verbs": list(_SUBRESOURCE_VERBS[sub]),
    }
    if sub in _SUBRESOURCE_KIND and group_name:
        entry |= {"group": group_name, "version": version_name}
    return entry


def _aggregated(registry: Registry, legacy: bool, chosen: str) -> bytes:
    items = []
    for name, versions in registry.groups().items():
        if (name == "") is not legacy:
            continue
        items.append(
            {
                "metadata": {"name": name, "creationTimestamp": None},
                "versions": [
                    {
                        "version": each,
                        "resources": [
                            _aggregated_entry(r) for r in registry.in_version(name, each)
                        ],
                        "freshness": "Current",
                    }
                    for each in versions
                ],
            }
        )
    return encode(
        {
            "kind": "APIGroupDiscoveryList",
            "apiVersion": f"apidiscovery.k8s.io/{chosen}",
            "metadata": {},
            "items": items,
        }
    )


def _aggregated_entry(resource: Resource) -> JsonObject:
    entry: JsonObject = {
        "resource": resource.plural,
        "responseKind": _response_kind(resource.group, resource.version, resource.kind),
        "scope": "Namespaced" if resource.namespaced else "Cluster",
        "singularResource": resource.singular,
        "verbs": list(resource.verbs),
    }
    if resource.short_names:
        entry["shortNames"] = list(resource.short_names)
    if resource.categories:
        entry["categories"] = list(resource.categories)
    if resource.subresources:
        entry["subresources"] = [
            {
                "subresource": sub,
                "responseKind": _response_kind(*_subresource_kind(resource, sub)),
                "verbs": list(_SUBRESOURCE_VERBS[sub]),
            }
            for sub in sorted(resource.subresources)
        ]
    return entry


def _response_kind(group_name: str, version_name: str, kind: str) -> JsonObject:
    return {"group": group_name, "version": version_name, "kind": kind}


# -- OpenAPI -------------------------------------------------------------------------------------


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest().upper()


def openapi_index(ctx: Context) -> bytes:
    def build() -> bytes:
        rows = []
        for name, versions in ctx.registry.groups().items():
            for each in versions:
                served = [
                    (r.plural, r.verbs, r.subresources, r.openapi)
                    for r in ctx.registry.in_version(name, each)
                ]
                rows.append((name, each, _digest(encode([GIT_VERSION, served]))))
        return openapi_v3_index(rows)

    return _cached(ctx, "openapi", build)


def openapi_document(ctx: Context, path: str) -> bytes:
    """The document behind `/openapi/v3/` + `path` (`api/v1`, `apis/apps/v1`)."""
    parts = path.split("/")
    if parts == ["api", "v1"]:
        name, each = "", "v1"
    elif len(parts) == 3 and parts[0] == "apis":
        name, each = parts[1], parts[2]
    else:
        raise page_not_found()
    if not ctx.registry.has_group_version(name, each):
        raise page_not_found()

    def build() -> bytes:
        served = [
            OpenApiResource(r.kind, r.plural, r.namespaced, r.verbs, r.subresources, r.openapi)
            for r in ctx.registry.in_version(name, each)
        ]
        return openapi_v3_document(name, each, served)

    return _cached(ctx, ("openapi", name, each), build)


def _v2_protobuf(ctx: Context) -> bytes:
    paths = [
        f"apis/{name}/{each}" if name else f"api/{each}"
        for name, versions in ctx.registry.groups().items()
        for each in versions
    ]
    documents = (decode(openapi_document(ctx, path)) for path in paths)
    return openapi_v2_protobuf(documents, GIT_VERSION)


def openapi_v2(ctx: Context, accept: str) -> tuple[bytes, str]:
    """Protobuf for old kubectl; an empty JSON document for others; 406 for YAML and the like."""
    if "proto-openapi" in accept:
        return _cached(ctx, "openapi-v2", lambda: _v2_protobuf(ctx)), OPENAPI_V2_CONTENT_TYPE
    if accept and "json" not in accept and "*/*" not in accept:
        raise ApiError(
            "only application/json and protobuf are served here; use /openapi/v3",
            code=406,
            reason="NotAcceptable",
        )
    info = {"title": "Kubernetes", "version": GIT_VERSION}
    return encode({"swagger": "2.0", "info": info, "paths": {}, "definitions": {}}), JSON
