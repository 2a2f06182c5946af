"""DELETE and DELETECOLLECTION: preconditions, grace, finalizers, and who goes first.

    delete -> preconditions -> grace (pods) -> finalizers (propagation policy) -> marked or removed

Source: apiserver pkg/registry/rest/delete.go, pkg/registry/generic/registry/store.go,
pkg/registry/core/pod/strategy.go of Kubernetes 1.33.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping

import msgspec

from podwire.apiserver import admission
from podwire.apiserver.admission import Attributes
from podwire.apiserver.body import parse_body
from podwire.apiserver.context import Context
from podwire.apiserver.pipeline import (
    Written,
    conflict,
    get_or_404,
    may_vanish,
    put_deleting,
    remove,
)
from podwire.apiserver.registry import Resource
from podwire.apiserver.representation import read_object
from podwire.apiserver.request import Request, Target, User
from podwire.errors import BadRequestError
from podwire.objects.meta import JsonObject, View, format_time, parse_time

ORPHAN, FOREGROUND = "orphan", "foregroundDeletion"
_POLICIES = {"Orphan": ORPHAN, "Foreground": FOREGROUND, "Background": ""}
DEFAULT_GRACE_S = 30


class Preconditions(View):
    uid: str | None = None
    resource_version: str | None = None


class DeleteOptions(View):
    """meta/v1 DeleteOptions."""

    api_version: str = ""
    kind: str = ""
    grace_period_seconds: int | None = None
    preconditions: Preconditions | None = None
    orphan_dependents: bool | None = None
    propagation_policy: str | None = None
    dry_run: list[str] | None = None

    @property
    def policy(self) -> str | None:
        """The finalizer to wait for, "" for none, None where nothing was asked."""
        if self.propagation_policy is not None:
            if self.propagation_policy not in _POLICIES:
                raise BadRequestError(
                    f'propagationPolicy: Unsupported value: "{self.propagation_policy}": supported '
                    'values: "Foreground", "Background", "Orphan"'
                )
            return _POLICIES[self.propagation_policy]
        if self.orphan_dependents is not None:
            return ORPHAN if self.orphan_dependents else ""
        return None


def parse_delete_options(request: Request) -> DeleteOptions:
    """From the body, else from the query. Raises BadRequestError."""
    if request.body:
        raw, _ = parse_body(request.body, request.content_type)
    else:
        raw = _from_query(request.query)
    return convert_options(raw)


def convert_options(raw: object) -> DeleteOptions:
    try:
        return msgspec.convert(raw, DeleteOptions)
    except msgspec.ValidationError as error:
        raise BadRequestError(f"DeleteOptions cannot be read: {error}") from error


def _from_query(query: Mapping[str, str]) -> JsonObject:
    raw: JsonObject = {}
    if grace := query.get("gracePeriodSeconds"):
        if not grace.lstrip("-").isdigit():
            raise BadRequestError(f'Invalid value: "{grace}": gracePeriodSeconds must be a number')
        raw["gracePeriodSeconds"] = int(grace)
    if policy := query.get("propagationPolicy"):
        raw["propagationPolicy"] = policy
    if orphan := query.get("orphanDependents"):
        raw["orphanDependents"] = orphan.lower() in ("1", "true")
    return raw


def is_dry(request: Request, options: DeleteOptions) -> bool:
    return request.dry_run or bool(options.dry_run)


def delete(
    ctx: Context, target: Target, options: DeleteOptions, user: User, *, dry_run: bool
) -> Written:
    """Mark or remove one object."""
    resource = target.resource
    record = get_or_404(ctx, target)
    obj = read_object(resource, record)
    attributes = Attributes(
        "DELETE", resource, target.namespace, target.name, "", None, obj, user, dry_run
    )
    admission.mutate(ctx, attributes)
    admission.check(ctx, attributes)
    _check_preconditions(resource, obj, options)
    before = dict(obj["metadata"])
    grace = _grace(resource, obj, options)
    if options.grace_period_seconds is None and "deletionTimestamp" in before:
        # Whoever asks for no grace period leaves the one that runs; 0 where nothing waits any more.
        grace = max(grace, before.get("deletionGracePeriodSeconds", 0))
    _mark_finalizers(obj, options.policy)
    if not _mark_deleting(resource, obj, grace):
        if obj["metadata"].get("finalizers") != before.get("finalizers"):
            return put_deleting(ctx, resource, obj, record, dry_run=dry_run)
        _refuse_again(resource, target.name, obj)
        return Written(record)
    if may_vanish(resource, obj):
        return remove(ctx, resource, obj, dry_run=dry_run)
    return put_deleting(ctx, resource, obj, record, dry_run=dry_run)


def _check_preconditions(resource: Resource, obj: JsonObject, options: DeleteOptions) -> None:
    wanted, meta = options.preconditions, obj["metadata"]
    if wanted is None:
        return
    for name, value, actual in (
        ("UID", wanted.uid, meta.get("uid")),
        ("ResourceVersion", wanted.resource_version, meta["resourceVersion"]),
    ):
        if value is not None and value != actual:
            why = f"the {name} in the precondition ({value}) does not match the {name} in record "
            why += f"({actual}). The object might have been deleted and then recreated"
            raise conflict(resource, meta["name"], why)


def _grace(resource: Resource, obj: JsonObject, options: DeleteOptions) -> int:
    """Seconds a pod's containers have to stop; 0 for every other kind."""
    if resource.storage != "pods":
        return 0
    spec, status = obj["spec"], obj.get("status") or {}
    grace = options.grace_period_seconds
    if grace is None:
        grace = spec.get("terminationGracePeriodSeconds", DEFAULT_GRACE_S)
    if grace < 0:
        grace = 1
    if not spec.get("nodeName") or status.get("phase") in ("Succeeded", "Failed"):
        return 0
    return int(grace)


def _mark_finalizers(obj: JsonObject, policy: str | None) -> None:
    if policy is None:
        return
    meta = obj["metadata"]
    finalizers = [f for f in meta.get("finalizers") or () if f not in (ORPHAN, FOREGROUND)]
    if policy:
        finalizers.append(policy)
    if finalizers:
        meta["finalizers"] = finalizers
    else:
        meta.pop("finalizers", None)


def _mark_deleting(resource: Resource, obj: JsonObject, grace: int) -> bool:
    """Set the deletion mark, or shorten the grace it has; False where nothing changes."""
    meta = obj["metadata"]
    if "deletionTimestamp" in meta:
        left = meta.get("deletionGracePeriodSeconds", 0)
        if grace >= left and not (grace == 0 and may_vanish(resource, obj)):
            return False
        began = parse_time(meta["deletionTimestamp"]) - dt.timedelta(seconds=left)
    else:
        began = dt.datetime.now(dt.UTC)
    meta["deletionTimestamp"] = format_time(began + dt.timedelta(seconds=grace))
    meta["deletionGracePeriodSeconds"] = grace
    if resource.storage == "namespaces":
        obj["status"] = (obj.get("status") or {}) | {"phase": "Terminating"}
    return True


def _refuse_again(resource: Resource, name: str, obj: JsonObject) -> None:
    if resource.storage == "namespaces" and (obj.get("spec") or {}).get("finalizers"):
        raise conflict(
            resource,
            name,
            "The system is ensuring all content is removed from this namespace.  Upon completion, "
            "this namespace will automatically be purged by the system.",
        )
