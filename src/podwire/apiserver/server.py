"""HTTP in, HTTP out: routes a request to its handler and turns every failure into a Status.

One function per URL family, no router: paths are few and regular, and the lookup is a dictionary.

    /healthz /livez /readyz /version /metrics      open to everybody
    /api /apis /openapi                            discovery
    /api/v1/... /apis/GROUP/VERSION/...            resources, through `pipeline`
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable

from aiohttp import web

from podwire.apiserver import (
    discovery,
    kubelet,
    pipeline,
    protobuf,
    reads,
    reviews,
    subresources,
    watch,
    writes,
)
from podwire.apiserver.authn import authenticate
from podwire.apiserver.context import Context
from podwire.apiserver.kinds import DEPRECATED
from podwire.apiserver.negotiation import Format, negotiate
from podwire.apiserver.representation import to_yaml
from podwire.apiserver.request import (
    Request,
    Target,
    User,
    method_not_allowed,
    page_not_found,
    parse_target,
    verb_of,
    warning_value,
)
from podwire.apiserver.store import encode
from podwire.apiserver.writes import Answer
from podwire.errors import ApiError

log = logging.getLogger(__name__)

MAX_BODY = 3 * 1024 * 1024
_HEALTH = ("healthz", "livez", "readyz")
_YAML = "application/yaml"
_CBOR = "application/cbor"
_JSON = {"Content-Type": "application/json"}
_GROUP_PARTS = {"api": 2, "apis": 3}

Write = Callable[[Context, Request, Format], Awaitable[Answer]]
_WRITES: dict[str, Write] = {
    "create": writes.create,
    "update": writes.update,
    "patch": writes.patch,
    "delete": writes.delete,
    "deletecollection": writes.delete_collection,
}


class Handler:
    """The aiohttp handler of one server."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx

    async def __call__(self, http: web.BaseRequest) -> web.StreamResponse:
        started = time.perf_counter()
        labels = ["", "", ""]
        try:
            response = await self._handle(http, labels)
        except ApiError as error:
            response = error_response(error)
        except ConnectionError:
            raise
        except Exception:
            log.exception("%s %s", http.method, http.path)
            response = error_response(
                ApiError("Internal error occurred: see the API server's log", code=500)
            )
        if labels[0] and labels[0] != "watch":
            verb, group, resource = labels
            elapsed = time.perf_counter() - started
            self._ctx.metrics.observe(verb.upper(), group, resource, response.status, elapsed)
        return response

    async def _handle(self, http: web.BaseRequest, labels: list[str]) -> web.StreamResponse:
        path = http.path
        parts = [part for part in path.split("/") if part]
        if not parts:
            return self._index()
        if parts[0] in _HEALTH:
            return self._health(http, parts)
        user = authenticate(http.transport, http.headers.get("Authorization", ""), self._ctx.signer)
        size = _GROUP_PARTS.get(parts[0])
        if size is not None and len(parts) > size:
            target = parse_target(self._ctx.registry, parts)
            labels[:] = [http.method, target.resource.group, target.resource.plural]
            return await self._resource(http, target, user, labels)
        return self._document(http, parts)

    # -- resources ---------------------------------------------------------------------------

    async def _resource(
        self, http: web.BaseRequest, target: Target, user: User, labels: list[str]
    ) -> web.StreamResponse:
        ctx, headers = self._ctx, http.headers
        query = http.query
        verb = verb_of(http.method, target, query)
        labels[0] = verb
        resource = target.resource
        connecting = verb == "connect"
        request = Request(
            verb,
            target,
            query,
            user,
            headers.get("Content-Type", "application/json").partition(";")[0].strip(),
            headers.get("Accept", ""),
            b"" if connecting or not http.body_exists else await _body(http),
        )
        pipeline.authorize(ctx, request)
        _check_media(request)
        if connecting:
            return await kubelet.connect(ctx, request, http)
        if reviews.is_review(request):
            if verb != "create":
                raise method_not_allowed()
            return _answered(await reviews.review(ctx, request), Format())
        special = subresources.handler_for(request)
        if resource.plural == "bindings" and verb == "create":
            special = subresources.binding
        if special is None and verb not in resource.verbs:
            raise method_not_allowed()
        if resource.storage == "componentstatuses":
            return _bytes(encode(_component_statuses()), Format())
        response = await self._serve(http, request, special)
        deprecated = DEPRECATED.get(resource.storage)
        if deprecated and not response.prepared:
            response.headers.add("Warning", warning_value(deprecated))
        return response

    async def _serve(
        self, http: web.BaseRequest, request: Request, special: Write | None
    ) -> web.StreamResponse:
        ctx, verb = self._ctx, request.verb
        form = negotiate(request.accept, request.query.get("includeObject", ""))
        _check_scope(request)
        if special is not None:
            return _answered(await special(ctx, request, form), form)
        if verb == "get":
            return _bytes(reads.get(ctx, request, form), form)
        if verb == "list":
            return _bytes(reads.list_(ctx, request, form), form)
        if verb == "watch":
            return await watch.watch(ctx, request, form, http)
        return _answered(await _WRITES[verb](ctx, request, form), form)

    # -- documents ---------------------------------------------------------------------------

    def _document(self, http: web.BaseRequest, parts: list[str]) -> web.StreamResponse:
        if http.method not in ("GET", "HEAD"):
            raise method_not_allowed()
        ctx, accept = self._ctx, http.headers.get("Accept", "")
        match parts:
            case ["api" | "apis"]:
                return _typed(*discovery.root(ctx, parts[0] == "api", accept))
            case ["api", version]:
                return _typed(discovery.resources(ctx, "", version), discovery.JSON)
            case ["apis", group]:
                return _typed(discovery.group(ctx, group), discovery.JSON)
            case ["apis", group, version]:
                return _typed(discovery.resources(ctx, group, version), discovery.JSON)
            case ["version"]:
                return _typed(encode(discovery.version()), discovery.JSON)
            case ["openapi", "v2"]:
                return _typed(*discovery.openapi_v2(ctx, accept))
            case ["openapi", "v3"]:
                return _typed(discovery.openapi_index(ctx), discovery.JSON)
            case ["openapi", "v3", *rest]:
                return _typed(discovery.openapi_document(ctx, "/".join(rest)), discovery.JSON)
            case ["metrics"]:
                text = ctx.metrics.render(ctx.store)
                return _typed(text.encode(), "text/plain; version=0.0.4; charset=utf-8")
        raise page_not_found()

    def _index(self) -> web.Response:
        paths = ["/api", "/api/v1", "/apis"]
        for group, versions in self._ctx.registry.groups().items():
            if group:
                paths += [f"/apis/{group}", *(f"/apis/{group}/{v}" for v in versions)]
        paths += ["/healthz", "/livez", "/metrics", "/openapi/v2", "/openapi/v3", "/readyz"]
        return _typed(encode({"paths": [*paths, "/version"]}), discovery.JSON)

    def _health(self, http: web.BaseRequest, parts: list[str]) -> web.Response:
        ready = parts[0] != "readyz" or self._ctx.ready
        checks = {"ping": True, "store": True, "bootstrap": ready}
        if len(parts) == 2:
            if parts[1] not in checks:
                raise page_not_found()
            ready = checks[parts[1]]
        status = 200 if ready else 500
        if "verbose" not in http.query:
            return web.Response(text="ok" if ready else "not ready", status=status)
        lines = [
            f"[{'+' if ok else '-'}]{name} {'ok' if ok else 'failed'}"
            for name, ok in checks.items()
        ]
        lines.append(f"{parts[0]} check {'passed' if ready else 'failed'}\n")
        return web.Response(text="\n".join(lines), status=status)


def _check_scope(request: Request) -> None:
    """Namespaced kinds are written within a namespace. Raises ApiError."""
    target = request.target
    if not target.resource.namespaced or target.namespace:
        return
    if request.verb in ("create", "update", "patch", "delete", "get") or target.name:
        raise page_not_found()


def _check_media(request: Request) -> None:
    """Not every kind has a protobuf form here, but DeleteOptions do. Raises ApiError 415."""
    if not request.body or request.content_type not in (protobuf.CONTENT_TYPE, _CBOR):
        return
    accepted: tuple[str, ...] = (discovery.JSON, _YAML)
    resource = request.resource
    known = protobuf.is_known(resource.group, resource.version, resource.kind)
    if known or request.verb in ("delete", "deletecollection"):
        accepted = (*accepted, protobuf.CONTENT_TYPE)
    if request.content_type not in accepted:
        raise pipeline.unsupported_media(request.content_type, accepted)


async def _body(http: web.BaseRequest) -> bytes:
    try:
        return await http.read()
    except web.HTTPRequestEntityTooLarge as error:
        raise ApiError(
            f"Request entity too large: limit is {MAX_BODY}",
            code=413,
            reason="RequestEntityTooLarge",
        ) from error


def _typed(body: bytes, content_type: str) -> web.Response:
    return web.Response(body=body, headers={"Content-Type": content_type})


def _bytes(body: bytes, form: Format, status: int = 200) -> web.Response:
    headers = _JSON if not form.yaml else {"Content-Type": form.content_type}
    return web.Response(body=body, status=status, headers=headers)


def _answered(answer: Answer, form: Format) -> web.Response:
    body = answer.body
    if form.yaml and body.startswith(b"{"):
        body = to_yaml(body)
    response = _bytes(body, form, answer.code)
    for warning in answer.warnings:
        response.headers.add("Warning", warning_value(warning))
    return response


def error_response(error: ApiError) -> web.Response:
    headers = dict(_JSON)
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(error.retry_after_s)
    return web.Response(body=encode(error.status()), status=error.code, headers=headers)


def _component_statuses() -> dict[str, object]:
    healthy = [{"type": "Healthy", "status": "True", "message": "ok"}]
    names = ("controller-manager", "scheduler", "store")
    items = [{"metadata": {"name": name}, "conditions": healthy} for name in names]
    return {"kind": "ComponentStatusList", "apiVersion": "v1", "metadata": {}, "items": items}


__all__ = ["Handler", "error_response"]
