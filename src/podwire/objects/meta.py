"""What every Kubernetes object has: metadata, owners, labels and the selectors over them.

Typed views name only the fields podwire reads; a field they do not name is ignored on decode, so a
view must never be written back as a whole (write patches, or the raw object). Views are frozen:
one decoded object is shared by every reader of a snapshot.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import Any, Generic, NamedTuple, TypeVar

import msgspec

# Inherited at run time; type checkers would want it repeated on every class.
_FROZEN: dict[str, Any] = {"frozen": True}


class View(msgspec.Struct, rename="camel", omit_defaults=True, kw_only=True, **_FROZEN):
    """Base of all typed views: camelCase on the wire, snake_case here, absent means default."""


class Key(NamedTuple):
    """An object's identity within its kind; `namespace` is "" for cluster-scoped kinds."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}" if self.namespace else self.name


class OwnerReference(View):
    api_version: str = ""
    kind: str = ""
    name: str = ""
    uid: str = ""
    controller: bool = False
    block_owner_deletion: bool = False


class ObjectMeta(View):
    name: str = ""
    generate_name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    generation: int = 0
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None
    deletion_grace_period_seconds: int | None = None
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    finalizers: list[str] = []
    owner_references: list[OwnerReference] = []

    @property
    def controller(self) -> OwnerReference | None:
        """The owner that manages this object, if any."""
        return next((ref for ref in self.owner_references if ref.controller), None)


class Object(View):
    """A typed view with metadata: the bound of every generic over kinds."""

    api_version: str = ""
    kind: str = ""
    metadata: ObjectMeta = ObjectMeta()

    @property
    def key(self) -> Key:
        return Key(self.metadata.namespace, self.metadata.name)

    @property
    def deleting(self) -> bool:
        return self.metadata.deletion_timestamp is not None


T = TypeVar("T", bound=Object)


class Kind(msgspec.Struct, Generic[T], frozen=True):
    """Where a kind lives in the API and which view decodes it."""

    group: str
    version: str
    kind: str
    plural: str
    namespaced: bool
    view: type[T]

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str = "", name: str = "", subresource: str = "") -> str:
        """The REST path, e.g. `/api/v1/namespaces/shop/pods/web-0/status`."""
        parts = ["/apis", self.group] if self.group else ["/api"]
        parts.append(self.version)
        if self.namespaced and namespace:
            parts += ["namespaces", namespace]
        parts.append(self.plural)
        parts += [part for part in (name, subresource) if part]
        return "/".join(parts)


class Requirement(View):
    """One expression of a label selector: In, NotIn, Exists, DoesNotExist (Gt, Lt on nodes)."""

    key: str
    operator: str
    values: list[str] | None = None

    def matches(self, labels: Mapping[str, str]) -> bool:
        value = labels.get(self.key)
        wanted = self.values or ()
        match self.operator:
            case "In":
                return value is not None and value in wanted
            case "NotIn":
                return value is None or value not in wanted
            case "Exists":
                return value is not None
            case "DoesNotExist":
                return value is None
            case "Gt" | "Lt":
                return _compare(value, self.operator, wanted)
        raise ValueError(f"{self.operator!r} is not a valid label selector operator")


def _compare(value: str | None, operator: str, wanted: list[str] | tuple[str, ...]) -> bool:
    try:
        left, right = int(value or ""), int(wanted[0])
    except (ValueError, IndexError):
        return False
    return left > right if operator == "Gt" else left < right


class LabelSelector(View):
    """meta/v1 LabelSelector: all of `match_labels` and `match_expressions`; empty matches all."""

    match_labels: dict[str, str] | None = None
    match_expressions: list[Requirement] | None = None

    def matches(self, labels: Mapping[str, str]) -> bool:
        return all(labels.get(k) == v for k, v in (self.match_labels or {}).items()) and all(
            requirement.matches(labels) for requirement in self.match_expressions or ()
        )

    @property
    def empty(self) -> bool:
        return not self.match_labels and not self.match_expressions


def format_time(moment: dt.datetime) -> str:
    """RFC 3339 in UTC with whole seconds, as `metav1.Time` is written."""
    return moment.astimezone(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def format_micro_time(moment: dt.datetime) -> str:
    """RFC 3339 in UTC with microseconds, as `metav1.MicroTime` is written."""
    return moment.astimezone(dt.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def parse_time(text: str) -> dt.datetime:
    return dt.datetime.fromisoformat(text)


JsonObject = dict[str, Any]
