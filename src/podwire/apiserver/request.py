"""One API request taken apart: who asks what of which resource.

    /api/v1/namespaces/shop/pods/web-0/log?follow=1
    -> verb get, resource pods, namespace shop, name web-0, subresource log

Source: apiserver pkg/endpoints/request/requestinfo.go.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from podwire.apiserver.decode import FieldValidation
from podwire.apiserver.registry import Registry, Resource
from podwire.errors import ApiError, BadRequestError, NotFoundError

DISCOVERY_PARTS = 2

Verb = Literal[
    "get", "list", "watch", "create", "update", "patch", "delete", "deletecollection", "connect"
]
_VERBS: dict[str, Verb] = {"POST": "create", "PUT": "update", "PATCH": "patch"}
_CONNECT = frozenset({"exec", "attach", "portforward", "proxy", "log"})


@dataclass(frozen=True)
class User:
    """Who asks; the groups decide what may be asked."""

    name: str
    groups: tuple[str, ...] = ()
    uid: str = ""
    extra: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Target:
    """The resource a URL names; `rest` is what follows a proxy subresource."""

    resource: Resource
    namespace: str = ""
    name: str = ""
    subresource: str = ""
    rest: str = ""


@dataclass(frozen=True)
class Request:
    """Everything handlers need of one HTTP request, apart from its connection."""

    verb: Verb
    target: Target
    query: Mapping[str, str]
    user: User
    content_type: str = ""
    accept: str = ""
    body: bytes = b""

    @property
    def resource(self) -> Resource:
        return self.target.resource

    @property
    def dry_run(self) -> bool:
        value = self.query.get("dryRun", "")
        if value not in ("", "All"):
            raise BadRequestError(f'Invalid value: "{value}": supported values: "All"')
        return value == "All"

    @property
    def field_validation(self) -> FieldValidation:
        match self.query.get("fieldValidation", ""):
            case "":
                return "Warn"
            case "Strict":
                return "Strict"
            case "Warn":
                return "Warn"
            case "Ignore":
                return "Ignore"
        raise BadRequestError(
            f'fieldValidation: Unsupported value: "{self.query["fieldValidation"]}": '
            'supported values: "Ignore", "Strict", "Warn"'
        )


def flag(query: Mapping[str, str], name: str) -> bool:
    """A boolean query parameter as Go's clients write it."""
    return query.get(name, "").lower() in ("1", "t", "true")


def page_not_found() -> ApiError:
    return NotFoundError("the server could not find the requested resource")


def not_found(resource: Resource, name: str) -> NotFoundError:
    return NotFoundError(
        f'{resource.qualified} "{name}" not found',
        details={"name": name, "kind": resource.plural}
        | ({"group": resource.group} if resource.group else {}),
    )


def parse_target(registry: Registry, parts: list[str]) -> Target:
    """`["api", "v1", "pods"]` to what it names. Raises NotFoundError."""
    if parts[0] == "api":
        group, version, rest = "", parts[1], parts[2:]
    else:
        group, version, rest = parts[1], parts[2], parts[3:]
    namespace = ""
    if rest[0] == "namespaces" and len(rest) > DISCOVERY_PARTS:
        nested = registry.find(group, version, rest[2])
        if nested is not None and nested.namespaced:
            namespace, rest = rest[1], rest[2:]
    resource = registry.find(group, version, rest[0])
    if resource is None:
        raise page_not_found()
    name, subresource = (*rest[1:3], "", "")[:2]
    if subresource and subresource not in resource.subresources:
        raise page_not_found()
    return Target(resource, namespace, name, subresource, "/".join(rest[3:]))


def verb_of(method: str, target: Target, query: Mapping[str, str]) -> Verb:
    """The Kubernetes verb of a method on a target. Raises ApiError 405."""
    if target.subresource in _CONNECT:
        return "connect"
    if method in _VERBS:
        return _VERBS[method]
    match method, bool(target.name):
        case "GET" | "HEAD", True:
            return "watch" if flag(query, "watch") else "get"
        case "GET" | "HEAD", False:
            return "watch" if flag(query, "watch") else "list"
        case "DELETE", True:
            return "delete"
        case "DELETE", False:
            return "deletecollection"
    raise method_not_allowed()


def method_not_allowed() -> ApiError:
    return ApiError(
        "the server does not allow this method on the requested resource",
        code=405,
        reason="MethodNotAllowed",
    )


def warning_value(text: str) -> str:
    """A Warning header's value (RFC 7234 section 5.5), as kubectl reads it."""
    quoted = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'299 - "{quoted}"'
