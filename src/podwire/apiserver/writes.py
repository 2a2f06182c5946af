"""POST, PUT, PATCH, DELETE of objects: from the request to the answer, after the commit."""

from __future__ import annotations

from dataclasses import dataclass

from podwire.apiserver import deletion, pipeline
from podwire.apiserver.context import Context
from podwire.apiserver.negotiation import Format
from podwire.apiserver.patch import JSON_PATCH, MERGE_PATCH, STRATEGIC_PATCH, apply_patch
from podwire.apiserver.pipeline import Written, unsupported_media
from podwire.apiserver.registry import Resource
from podwire.apiserver.representation import many, one
from podwire.apiserver.request import Request, Target
from podwire.apiserver.selection import parse_selection
from podwire.apiserver.store import Record, encode
from podwire.errors import ApiError, NotFoundError
from podwire.objects.meta import JsonObject

APPLY_PATCH = "application/apply-patch+yaml"
_RETURN_DELETED = frozenset(
    {
        "pods",
        "namespaces",
        "services",
        "serviceaccounts",
        "persistentvolumes",
        "persistentvolumeclaims",
        "podtemplates",
        "resourcequotas",
        "policy/podsecuritypolicies",
        "storage.k8s.io/storageclasses",
        "storage.k8s.io/csinodes",
        "storage.k8s.io/volumeattachments",
    }
)
"""Kinds whose DELETE answers with the object rather than with a Status."""


@dataclass(frozen=True)
class Answer:
    """What a write sends back."""

    body: bytes
    code: int = 200
    warnings: tuple[str, ...] = ()


async def create(ctx: Context, request: Request, form: Format) -> Answer:
    resource = request.resource
    obj, warnings = pipeline.decode_body(request, resource)
    written = pipeline.create(ctx, request.target, obj, request.user, dry_run=request.dry_run)
    await ctx.store.committed()
    return Answer(one(resource, written.record, form), 201, (*warnings, *written.warnings))


async def update(ctx: Context, request: Request, form: Format) -> Answer:
    resource = request.resource
    obj, warnings = pipeline.decode_body(request, resource)
    written = pipeline.update(
        ctx, request.target, lambda _: obj, request.user, dry_run=request.dry_run
    )
    await ctx.store.committed()
    return Answer(one(resource, written.record, form), 200, (*warnings, *written.warnings))


def accepted_patches(resource: Resource) -> tuple[str, ...]:
    if resource.is_custom:
        return (JSON_PATCH, MERGE_PATCH)
    return (JSON_PATCH, MERGE_PATCH, STRATEGIC_PATCH)


async def patch(ctx: Context, request: Request, form: Format) -> Answer:
    resource, kind = request.resource, request.content_type
    if kind not in accepted_patches(resource):
        raise unsupported_media(kind, accepted_patches(resource))
    warnings: list[str] = []

    def change(current: JsonObject) -> JsonObject:
        patched = apply_patch(kind, current, request.body, resource.schema)
        if request.target.subresource == "status":
            patched = _status_part(patched, current)
        decoded, found = pipeline.decode_patched(request, resource, patched)
        warnings.extend(found)
        return decoded

    written = pipeline.update(ctx, request.target, change, request.user, dry_run=request.dry_run)
    await ctx.store.committed()
    return Answer(one(resource, written.record, form), 200, (*warnings, *written.warnings))


def _status_part(patched: JsonObject, current: JsonObject) -> JsonObject:
    """Without what the patch left alone: the strategy takes it from the stored object anyway."""
    return {
        key: value
        for key, value in patched.items()
        if key in _ALWAYS_DECODED or value is not current.get(key)
    }


_ALWAYS_DECODED = frozenset({"apiVersion", "kind", "metadata", "status"})


async def delete(ctx: Context, request: Request, form: Format) -> Answer:
    options = deletion.parse_delete_options(request)
    dry_run = deletion.is_dry(request, options)
    written = deletion.delete(ctx, request.target, options, request.user, dry_run=dry_run)
    await ctx.store.committed()
    return Answer(_deleted(request.target, written, form))


def _deleted(target: Target, written: Written, form: Format) -> bytes:
    resource = target.resource
    if not written.deleted or resource.storage in _RETURN_DELETED:
        return one(resource, written.record, form)
    details: JsonObject = {"name": target.name}
    if resource.group:
        details["group"] = resource.group
    details |= {"kind": resource.plural, "uid": written.record.uid}
    return encode(success(details))


def success(details: JsonObject | None = None) -> JsonObject:
    status: JsonObject = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}
    return status | ({"details": details} if details else {})


async def delete_collection(ctx: Context, request: Request, form: Format) -> Answer:
    """Everything selected, one by one, in one commit; answers with the list of what it was."""
    options = deletion.parse_delete_options(request)
    dry_run = deletion.is_dry(request, options)
    resource, target = request.resource, request.target
    selection = parse_selection(target, request.query)
    table = ctx.table(resource)
    records: list[Record] = []
    for record in selection.current(table):
        each = Target(resource, record.key.namespace, record.key.name)
        try:
            written = deletion.delete(ctx, each, options, request.user, dry_run=dry_run)
        except NotFoundError:
            continue
        except ApiError as error:
            if error.code != 409:
                raise
            continue
        records.append(written.record)
    await ctx.store.committed()
    meta = {"resourceVersion": str(ctx.store.rv)}
    return Answer(many(resource, records, form, meta))


__all__ = [
    "Answer",
    "create",
    "delete",
    "delete_collection",
    "patch",
    "success",
    "update",
]
