"""The way of every write, stage by stage; what is added later is added as a row or a stage here.

    authn -> authz -> decode -> default -> mutate -> validate -> store -> watch
    authn.py server.py decode.py defaults.py admission.py validation/ store.py watch.py

`create` and `update` take an object in the version the client speaks and return the stored record.
Between reading the latest version and staging the new one nothing awaits, so two writes never
interleave and a conflict can only come from a resourceVersion the client itself sent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from podwire.apiserver import admission, strategy
from podwire.apiserver.admission import Attributes
from podwire.apiserver.context import Context
from podwire.apiserver.decode import decode, decode_object
from podwire.apiserver.defaults import apply_defaults
from podwire.apiserver.fields import GoValue, invalid_value
from podwire.apiserver.registry import Resource
from podwire.apiserver.representation import read_object, with_type
from podwire.apiserver.request import Request, Target, User, not_found
from podwire.apiserver.service_allocation import release, reserve
from podwire.apiserver.service_warnings import write_warnings
from podwire.apiserver.store import Record, encode
from podwire.apiserver.validation import FieldError, invalid, validate_create, validate_update
from podwire.errors import (
    AlreadyExistsError,
    ApiError,
    BadRequestError,
    ConflictError,
)
from podwire.objects.meta import JsonObject, Key

GENERATE_ATTEMPTS = 8
CHANGED = (
    "the object has been modified; please apply your changes to the latest version and try again"
)


@dataclass(frozen=True)
class Written:
    """The outcome of a write: the record to show (not stored when dry), and warnings."""

    record: Record
    created: bool = False
    deleted: bool = False
    warnings: tuple[str, ...] = ()


def authorize(ctx: Context, request: Request) -> None:
    """Everything that is authenticated is allowed; RBAC takes this stage's place."""


# -- decode ------------------------------------------------------------------------------------


def decode_body(request: Request, resource: Resource) -> tuple[JsonObject, list[str]]:
    """The object in a body and warnings. Raises BadRequestError, and ApiError 415."""
    obj, warnings = decode(
        request.body,
        request.content_type,
        resource.schema,
        group=resource.group,
        version=resource.version,
        kind=resource.kind,
        field_validation=request.field_validation,
    )
    _ensure_metadata(obj)
    return obj, warnings


def decode_patched(
    request: Request, resource: Resource, obj: JsonObject
) -> tuple[JsonObject, list[str]]:
    """The same for what a patch made."""
    decoded, warnings = decode_object(
        obj,
        resource.schema,
        group=resource.group,
        version=resource.version,
        kind=resource.kind,
        field_validation=request.field_validation,
    )
    _ensure_metadata(decoded)
    return decoded, warnings


def _ensure_metadata(obj: JsonObject) -> None:
    if obj.get("metadata") is None:
        obj["metadata"] = {}


def _check_namespace(obj: JsonObject, target: Target) -> None:
    namespace = obj["metadata"].get("namespace") or ""
    if target.resource.namespaced and namespace not in ("", target.namespace):
        raise BadRequestError(
            f"the namespace of the provided object does not match the namespace sent on the "
            f"request ({namespace} does not match {target.namespace})"
        )


# -- create ------------------------------------------------------------------------------------


def create(ctx: Context, target: Target, obj: JsonObject, user: User, *, dry_run: bool) -> Written:
    """Stages default to store for a new object."""
    resource = target.resource
    _check_namespace(obj, target)
    meta = obj["metadata"]
    if meta.get("resourceVersion"):
        raise BadRequestError("resourceVersion should not be set on objects to be created")
    _name(ctx, target, obj)
    apply_defaults(resource.group, resource.kind, obj, resource.schema)
    strategy.begin_create(resource, obj, target.namespace)
    attributes = Attributes(
        "CREATE", resource, target.namespace, meta["name"], "", obj, None, user, dry_run
    )
    admission.mutate(ctx, attributes)
    with reserve(ctx, resource, obj, None) as claim:
        _raise_invalid(resource, obj, validate_create(resource.kind, obj, resource.schema))
        admission.check(ctx, attributes)
        if ctx.latest(resource, target.namespace, meta["name"]) is not None:
            raise _exists(resource, meta["name"])
        if claim is not None and not dry_run:
            claim.stage()
        warnings = write_warnings(resource.storage, obj)
        record = _put(ctx, resource, obj, None, dry_run=dry_run)
        return Written(record, created=True, warnings=warnings)


def _name(ctx: Context, target: Target, obj: JsonObject) -> None:
    """metadata.name from generateName where absent; a few attempts to find a free one."""
    meta, resource = obj["metadata"], target.resource
    if meta.get("name"):
        return
    base = meta.get("generateName")
    if not base:
        why = "Required value: name or generateName is required"
        error = FieldError("FieldValueRequired", "metadata.name", why)
        raise invalid(resource.kind, resource.group, "", [error])
    for _ in range(GENERATE_ATTEMPTS):
        meta["name"] = strategy.generated_name(base)
        if ctx.latest(resource, target.namespace, meta["name"]) is None:
            return
    raise _exists(resource, meta["name"])


def _exists(resource: Resource, name: str) -> AlreadyExistsError:
    return AlreadyExistsError(
        f'{resource.qualified} "{name}" already exists',
        details={"name": name, "kind": resource.plural}
        | ({"group": resource.group} if resource.group else {}),
    )


def _raise_invalid(resource: Resource, obj: JsonObject, errors: list[FieldError]) -> None:
    if errors:
        raise invalid(resource.kind, resource.group, obj["metadata"].get("name", ""), errors)


def _put(
    ctx: Context, resource: Resource, obj: JsonObject, old: Record | None, *, dry_run: bool
) -> Record:
    stored = with_type(resource.write(obj) if resource.write else obj)
    if not dry_run:
        return ctx.store.stage_put(ctx.table(resource), stored)
    rv = old.rv if old is not None else 0
    if old is None:
        stored["metadata"].pop("resourceVersion", None)
    return Record(0, rv, encode(stored), stored, resource.brief)


# -- update ------------------------------------------------------------------------------------

Change = Callable[[JsonObject], JsonObject]
"""The object as it is, in the client's version, to what it should become."""


def update(ctx: Context, target: Target, change: Change, user: User, *, dry_run: bool) -> Written:
    """Stages default to store for an object that exists."""
    resource = target.resource
    record = ctx.latest(resource, target.namespace, target.name)
    if record is None:
        raise not_found(resource, target.name)
    old = read_object(resource, record)
    new = change(read_object(resource, record))
    _check_identity(resource, target, new, old)
    apply_defaults(resource.group, resource.kind, new, resource.schema)
    strategy.begin_update(resource, new, old, target.subresource)
    attributes = Attributes(
        "UPDATE",
        resource,
        target.namespace,
        target.name,
        target.subresource,
        new,
        old,
        user,
        dry_run,
    )
    admission.mutate(ctx, attributes)
    with reserve(ctx, resource, new, old, target.subresource) as claim:
        errors = validate_update(
            resource.kind,
            new,
            old,
            resource.schema,
            subresource=target.subresource,
        )
        _raise_invalid(resource, new, errors)
        admission.check(ctx, attributes)
        warnings = () if target.subresource else write_warnings(resource.storage, new)
        if strategy.same(new, old):
            return Written(record, warnings=warnings)
        strategy.count_generation(resource, new, old)
        if not may_vanish(resource, new):
            if claim is not None and not dry_run:
                claim.stage()
            stored = _put(ctx, resource, new, record, dry_run=dry_run)
            return Written(stored, warnings=warnings)
    return remove(ctx, resource, new, dry_run=dry_run)


def _check_identity(resource: Resource, target: Target, new: JsonObject, old: JsonObject) -> None:
    meta, old_meta = new["metadata"], old["metadata"]
    name = meta.get("name")
    if not name:
        meta["name"] = target.name
    elif name != target.name:
        raise BadRequestError(
            f"the name of the object ({name}) does not match the name on the URL ({target.name})"
        )
    _check_namespace(new, target)
    uid = meta.get("uid")
    if uid and uid != old_meta.get("uid"):
        raise conflict(
            resource,
            target.name,
            f"Precondition failed: UID in precondition: {uid}, "
            f"UID in object meta: {old_meta.get('uid')}",
        )
    version = meta.get("resourceVersion")
    if version in (None, "", "0") and not strategy.may_update_blindly(resource):
        at, text = "metadata.resourceVersion", "must be specified for an update"
        error = invalid_value(at, GoValue("0x0"), text)
        raise invalid(resource.kind, resource.group, target.name, [error])
    if version and version not in ("0", old_meta["resourceVersion"]):
        raise conflict(resource, target.name, CHANGED)
    meta["resourceVersion"] = old_meta["resourceVersion"]


def conflict(resource: Resource, name: str, why: str) -> ConflictError:
    return ConflictError(
        f'Operation cannot be fulfilled on {resource.qualified} "{name}": {why}',
        details={"name": name, "kind": resource.plural}
        | ({"group": resource.group} if resource.group else {}),
    )


# -- removal -----------------------------------------------------------------------------------


def may_vanish(resource: Resource, obj: JsonObject) -> bool:
    """Whether a deleting object has nothing left that holds it."""
    meta = obj["metadata"]
    if not meta.get("deletionTimestamp") or meta.get("finalizers"):
        return False
    if resource.storage == "namespaces" and (obj.get("spec") or {}).get("finalizers"):
        return False
    return not meta.get("deletionGracePeriodSeconds")


def remove(ctx: Context, resource: Resource, obj: JsonObject, *, dry_run: bool) -> Written:
    """Take an object out of the store; `obj` is its last state."""
    stored = with_type(resource.write(obj) if resource.write else obj)
    if not dry_run:
        if resource.storage == "services":
            _release_service(ctx, stored)
        record = ctx.store.stage_delete(ctx.table(resource), stored)
        if record is not None:
            return Written(record, deleted=True)
    rv = int(stored["metadata"].get("resourceVersion") or 0)
    return Written(Record(0, rv, encode(stored), stored, resource.brief), deleted=True)


def _release_service(ctx: Context, obj: JsonObject) -> None:
    """Of what is stored: an update that lets a Service go may have changed it, too."""
    table = ctx.builtin_table("", "v1", "services")
    key = Key(obj["metadata"]["namespace"], obj["metadata"]["name"])
    record = ctx.store.latest(table, key)
    if record is not None:
        release(ctx, record.object())


def put_deleting(
    ctx: Context, resource: Resource, obj: JsonObject, record: Record, *, dry_run: bool
) -> Written:
    """Store an object that is marked as deleting but held."""
    if "generation" in obj["metadata"]:
        obj["metadata"]["generation"] += 1
    return Written(_put(ctx, resource, obj, record, dry_run=dry_run))


def get_or_404(ctx: Context, target: Target) -> Record:
    record = ctx.store.latest(ctx.table(target.resource), Key(target.namespace, target.name))
    if record is None:
        raise not_found(target.resource, target.name)
    return record


def unsupported_media(content_type: str, accepted: tuple[str, ...]) -> ApiError:
    return ApiError(
        "the body of the request was in an unknown format - accepted media types include: "
        + ", ".join(accepted)
        + (f" (got {content_type})" if content_type else ""),
        code=415,
        reason="UnsupportedMediaType",
    )
