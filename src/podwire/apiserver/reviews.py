"""Review kinds: questions answered at once and never stored (authorization, authentication)."""

from __future__ import annotations

from collections.abc import Callable

from podwire.apiserver import pipeline
from podwire.apiserver.context import Context
from podwire.apiserver.request import Request, User
from podwire.apiserver.store import encode
from podwire.apiserver.strategy import now_text
from podwire.apiserver.writes import Answer
from podwire.errors import UnauthorizedError
from podwire.objects.meta import JsonObject

_EVERYTHING: JsonObject = {"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}


def user_info(user: User) -> JsonObject:
    info: JsonObject = {"username": user.name, "groups": list(user.groups)}
    return info | ({"uid": user.uid} if user.uid else {})


def _access(ctx: Context, request: Request, body: JsonObject) -> JsonObject:
    return {"allowed": True}


def _rules(ctx: Context, request: Request, body: JsonObject) -> JsonObject:
    return {
        "resourceRules": [_EVERYTHING],
        "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}],
        "incomplete": False,
    }


def _self(ctx: Context, request: Request, body: JsonObject) -> JsonObject:
    return {"userInfo": user_info(request.user)}


def _token(ctx: Context, request: Request, body: JsonObject) -> JsonObject:
    spec = body.get("spec") or {}
    try:
        user = ctx.signer.verify(spec.get("token", ""))
    except UnauthorizedError:
        return {"authenticated": False, "error": "invalid bearer token", "user": {}}
    return {
        "authenticated": True,
        "user": user_info(user),
        "audiences": spec.get("audiences") or ["https://kubernetes.default.svc.cluster.local"],
    }


_ANSWERS: dict[str, Callable[[Context, Request, JsonObject], JsonObject]] = {
    "selfsubjectaccessreviews": _access,
    "localsubjectaccessreviews": _access,
    "subjectaccessreviews": _access,
    "selfsubjectrulesreviews": _rules,
    "selfsubjectreviews": _self,
    "tokenreviews": _token,
}


def is_review(request: Request) -> bool:
    return request.resource.plural in _ANSWERS


async def review(ctx: Context, request: Request) -> Answer:
    body, warnings = pipeline.decode_body(request, request.resource)
    body["metadata"] = {"creationTimestamp": now_text()}
    body["status"] = _ANSWERS[request.resource.plural](ctx, request, body)
    return Answer(encode(body), 201, tuple(warnings))
