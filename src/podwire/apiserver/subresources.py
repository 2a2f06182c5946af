"""Subresources that are writes of their own: scale, binding, eviction, finalize, token, containers.

`status` needs nothing here: it is an update whose strategy keeps everything else.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from podwire.apiserver import deletion, pipeline
from podwire.apiserver.body import parse_body
from podwire.apiserver.context import Context
from podwire.apiserver.decode import decode
from podwire.apiserver.negotiation import Format
from podwire.apiserver.patch import JSON_PATCH, MERGE_PATCH, STRATEGIC_PATCH, apply_patch
from podwire.apiserver.pipeline import conflict, get_or_404, unsupported_media
from podwire.apiserver.printers.columns import get, selector
from podwire.apiserver.registry import Resource, ScalePaths
from podwire.apiserver.representation import one, read_object
from podwire.apiserver.request import Request, Target, User, method_not_allowed, not_found
from podwire.apiserver.schema import builtin
from podwire.apiserver.store import Record, encode
from podwire.apiserver.strategy import now_text
from podwire.apiserver.writes import Answer, success
from podwire.errors import ApiError, BadRequestError, Cause, ForbiddenError, NotFoundError
from podwire.objects.meta import JsonObject, Key, LabelSelector, format_time

Handler = Callable[[Context, Request, Format], Awaitable[Answer]]
_PATCHES = (JSON_PATCH, MERGE_PATCH, STRATEGIC_PATCH)
MIN_TOKEN_S, DEFAULT_TOKEN_S, MAX_TOKEN_S = 600, 3600, 1 << 32


def _decode_as(
    request: Request, group: str, version: str, kind: str
) -> tuple[JsonObject, list[str]]:
    schema = builtin(group, version, kind)
    if schema is None:
        raise ApiError(f"{kind}: no schema for {group}/{version}")
    return decode(
        request.body,
        request.content_type,
        schema,
        group=group,
        version=version,
        kind=kind,
        field_validation=request.field_validation,
    )


# -- scale -------------------------------------------------------------------------------------


def scale_of(resource: Resource, obj: JsonObject) -> JsonObject:
    """The autoscaling/v1 Scale of a workload or a custom object."""
    paths = resource.scale or ScalePaths()
    meta = obj["metadata"]
    kept = ("name", "namespace", "uid", "resourceVersion", "creationTimestamp")
    status: JsonObject = {"replicas": get(obj, *paths.status, default=0)}
    if text := _scale_selector(resource, obj, paths):
        status["selector"] = text
    return {
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": {key: meta[key] for key in kept if key in meta},
        "spec": {"replicas": get(obj, *paths.spec, default=0)},
        "status": status,
    }


def _scale_selector(resource: Resource, obj: JsonObject, paths: ScalePaths) -> str:
    if resource.is_custom:
        return str(get(obj, *paths.selector, default="")) if paths.selector else ""
    raw = get(obj, "spec", "selector")
    if raw is None:
        return ""
    if resource.kind == "ReplicationController":
        raw = {"matchLabels": raw}
    return selector(raw, empty="")


async def scale(ctx: Context, request: Request, form: Format) -> Answer:
    resource, target = request.resource, request.target
    if request.verb == "get":
        record = ctx.table(resource).records.get(Key(target.namespace, target.name))
        if record is None:
            raise not_found(resource, target.name)
        return Answer(encode(scale_of(resource, read_object(resource, record))))
    paths = resource.scale or ScalePaths()

    def change(current: JsonObject) -> JsonObject:
        wanted = _wanted_scale(request, scale_of(resource, current))
        meta = wanted.get("metadata") or {}
        if "resourceVersion" in meta:
            current["metadata"]["resourceVersion"] = meta["resourceVersion"]
        if meta.get("uid"):
            current["metadata"]["uid"] = meta["uid"]
        _set(current, paths.spec, get(wanted, "spec", "replicas", default=0))
        return current

    whole = Target(resource, target.namespace, target.name)
    written = pipeline.update(ctx, whole, change, request.user, dry_run=request.dry_run)
    await ctx.store.committed()
    return Answer(encode(scale_of(resource, read_object(resource, written.record))))


def _wanted_scale(request: Request, current: JsonObject) -> JsonObject:
    if request.verb == "update":
        return _decode_as(request, "autoscaling", "v1", "Scale")[0]
    if request.content_type not in _PATCHES:
        raise unsupported_media(request.content_type, _PATCHES)
    schema = builtin("autoscaling", "v1", "Scale")
    return apply_patch(request.content_type, current, request.body, schema)


def _set(obj: JsonObject, path: tuple[str, ...], value: Any) -> None:
    for part in path[:-1]:
        obj = obj.setdefault(part, {})
    obj[path[-1]] = value


# -- pods --------------------------------------------------------------------------------------


async def binding(ctx: Context, request: Request, form: Format) -> Answer:
    """Assign a pod to a node: what schedulers do."""
    body, _ = _decode_as(request, "", "v1", "Binding")
    name = request.target.name or get(body, "metadata", "name", default="")
    node = get(body, "target", "name", default="")
    pods = ctx.registry.find("", "v1", "pods")
    assert pods is not None
    if not node:
        raise BadRequestError(f'Binding "{name}" is invalid: target.name: Required value')

    def change(pod: JsonObject) -> JsonObject:
        if "deletionTimestamp" in pod["metadata"]:
            raise conflict(pods, name, f"pod {name} is being deleted, cannot be assigned to a host")
        if current := pod["spec"].get("nodeName"):
            raise conflict(pods, name, f'pod {name} is already assigned to node "{current}"')
        pod["spec"]["nodeName"] = node
        annotations = get(body, "metadata", "annotations", default={})
        if annotations:
            meta = pod["metadata"]
            meta["annotations"] = (meta.get("annotations") or {}) | annotations
        _set_scheduled(pod)
        return pod

    target = Target(pods, request.target.namespace, name, "binding")
    pipeline.update(ctx, target, change, request.user, dry_run=request.dry_run)
    await ctx.store.committed()
    return Answer(encode(success()), 201)


def _set_scheduled(pod: JsonObject) -> None:
    status = pod.setdefault("status", {})
    others = [c for c in status.get("conditions") or () if c["type"] != "PodScheduled"]
    scheduled = {
        "type": "PodScheduled",
        "status": "True",
        "lastProbeTime": None,
        "lastTransitionTime": now_text(),
    }
    status["conditions"] = [*others, scheduled]


async def eviction(ctx: Context, request: Request, form: Format) -> Answer:
    """Delete a pod unless a PodDisruptionBudget forbids it (429)."""
    body, _ = parse_body(request.body, request.content_type)
    raw = body if isinstance(body, dict) else {}
    options = deletion.convert_options(raw.get("deleteOptions") or {})
    target = Target(request.resource, request.target.namespace, request.target.name)
    pod = read_object(request.resource, get_or_404(ctx, target))
    dry_run = deletion.is_dry(request, options)
    if get(pod, "status", "phase") not in ("Succeeded", "Failed", "Pending"):
        _spend_budget(ctx, pod, request.user, dry_run=dry_run)
    deletion.delete(ctx, target, options, request.user, dry_run=dry_run)
    await ctx.store.committed()
    return Answer(encode(success()), 201)


def _spend_budget(ctx: Context, pod: JsonObject, user: User, *, dry_run: bool) -> None:
    budgets = ctx.registry.find("policy", "v1", "poddisruptionbudgets")
    assert budgets is not None
    meta = pod["metadata"]
    matching = [
        record
        for record in ctx.store.latest_of(ctx.table(budgets), meta["namespace"])
        if _guards(record, meta.get("labels") or {})
    ]
    if not matching or "deletionTimestamp" in meta:
        return
    if len(matching) > 1:
        raise ApiError(
            "This pod has more than one PodDisruptionBudget, which the eviction subresource does "
            "not support.",
            code=500,
        )
    name = matching[0].key.name

    def change(budget: JsonObject) -> JsonObject:
        status = budget.setdefault("status", {})
        if status.get("disruptionsAllowed", 0) <= 0:
            raise _too_many(name, status)
        status["disruptionsAllowed"] -= 1
        disrupted = status.get("disruptedPods") or {}
        status["disruptedPods"] = disrupted | {meta["name"]: now_text()}
        return budget

    target = Target(budgets, meta["namespace"], name, "status")
    pipeline.update(ctx, target, change, user, dry_run=dry_run)


def _guards(record: Record, labels: dict[str, str]) -> bool:
    raw = get(record.object(), "spec", "selector")
    if raw is None:
        return False
    return msgspec.convert(raw, LabelSelector).matches(labels)


def _too_many(name: str, status: JsonObject) -> ApiError:
    needs, healthy = status.get("desiredHealthy", 0), status.get("currentHealthy", 0)
    cause = Cause(
        "DisruptionBudget",
        f"The disruption budget {name} needs {needs} healthy pods and has {healthy} currently",
    )
    return ApiError(
        "Cannot evict pod as it would violate the pod's disruption budget.",
        code=429,
        reason="TooManyRequests",
        causes=(cause,),
    )


# -- namespaces, service accounts ----------------------------------------------------------------


async def finalize(ctx: Context, request: Request, form: Format) -> Answer:
    """Replace a namespace's spec.finalizers; with none left a deleting namespace goes."""
    obj, warnings = pipeline.decode_body(request, request.resource)

    def change(current: JsonObject) -> JsonObject:
        spec = current.setdefault("spec", {})
        spec["finalizers"] = get(obj, "spec", "finalizers", default=[])
        for key in ("uid", "resourceVersion"):
            if obj["metadata"].get(key):
                current["metadata"][key] = obj["metadata"][key]
        return current

    written = pipeline.update(ctx, request.target, change, request.user, dry_run=request.dry_run)
    await ctx.store.committed()
    return Answer(one(request.resource, written.record, form), 200, tuple(warnings))


async def token(ctx: Context, request: Request, form: Format) -> Answer:
    """A TokenRequest for a ServiceAccount, answered with a signed token."""
    body, _ = _decode_as(request, "authentication.k8s.io", "v1", "TokenRequest")
    target = request.target
    record = get_or_404(ctx, Target(request.resource, target.namespace, target.name))
    spec = body.get("spec") or {}
    lifetime = spec.get("expirationSeconds") or DEFAULT_TOKEN_S
    if not MIN_TOKEN_S <= lifetime <= MAX_TOKEN_S:
        raise BadRequestError(
            f"TokenRequest {target.name}: spec.expirationSeconds: Invalid value: {lifetime}: "
            "may not specify a duration less than 10 minutes"
        )
    audiences = spec.get("audiences") or ["https://kubernetes.default.svc.cluster.local"]
    spec |= {"audiences": audiences, "expirationSeconds": lifetime}
    signed = ctx.signer.sign(
        target.namespace,
        target.name,
        record.uid,
        audiences=audiences,
        lifetime_s=lifetime,
        bound=_bound(ctx, target.namespace, spec.get("boundObjectRef")),
    )
    answer = {
        "kind": "TokenRequest",
        "apiVersion": "authentication.k8s.io/v1",
        "metadata": {
            "name": target.name,
            "namespace": target.namespace,
            "creationTimestamp": now_text(),
        },
        "spec": spec,
        "status": {"token": signed, "expirationTimestamp": _after(lifetime)},
    }
    return Answer(encode(answer), 201)


def _after(seconds: int) -> str:
    return format_time(dt.datetime.now(dt.UTC) + dt.timedelta(seconds=min(seconds, 1 << 30)))


def _bound(ctx: Context, namespace: str, ref: JsonObject | None) -> JsonObject | None:
    if not ref:
        return None
    found = None
    resource = ctx.registry.by_kind("", "v1", ref.get("kind", ""))
    if resource is not None:
        where = namespace if resource.namespaced else ""
        found = ctx.latest(resource, where, ref.get("name", ""))
    if found is None or (ref.get("uid") and ref["uid"] != found.uid):
        raise NotFoundError(f'{ref.get("kind", "").lower()}s "{ref.get("name", "")}" not found')
    return {ref["kind"].lower(): {"name": ref["name"], "uid": found.uid}}


async def ephemeral_containers(ctx: Context, request: Request, form: Format) -> Answer:
    """Refused: accepted and never started, `kubectl debug` would wait for them for ever."""
    target = Target(request.resource, request.target.namespace, request.target.name)
    get_or_404(ctx, target)
    raise ForbiddenError(
        f'pods "{target.name}" is forbidden: nodes here run no ephemeral containers; '
        "`kubectl exec` into a stand-in runs this machine's programs in the pod's network",
        details={"name": target.name, "kind": "pods"},
    )


HANDLERS: dict[str, tuple[tuple[str, ...], Handler]] = {
    "scale": (("get", "update", "patch"), scale),
    "binding": (("create",), binding),
    "eviction": (("create",), eviction),
    "finalize": (("update",), finalize),
    "token": (("create",), token),
    "ephemeralcontainers": (("update", "patch"), ephemeral_containers),
}
"""Subresource -> the verbs it takes and what answers them."""


def handler_for(request: Request) -> Handler | None:
    """What answers a request for a subresource; None where it is an ordinary read or write."""
    row = HANDLERS.get(request.target.subresource)
    if row is None:
        return None
    verbs, handler = row
    if request.verb in verbs:
        return handler
    if request.verb == "get" and request.target.subresource == "ephemeralcontainers":
        return None
    raise method_not_allowed()


__all__ = ["HANDLERS", "binding", "handler_for", "scale_of"]
