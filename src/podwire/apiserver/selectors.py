"""Label and field selectors of list, watch and deletecollection requests.

Parsed once per request, then asked per object. Source: apimachinery pkg/labels/selector.go,
pkg/fields/selector.go; which fields a kind selects by: pkg/apis/*/v1/conversion.go.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from podwire.apiserver.names import is_label_value, is_qualified_name
from podwire.apiserver.schema import kind_definitions
from podwire.errors import BadRequestError

# --- labels ----------------------------------------------------------------------------------

_TOKEN = re.compile(r"\s*(==|!=|=|!|\(|\)|,|<|>|[^\s=!(),<>]+)")
_SYMBOLS = frozenset({"==", "!=", "=", "!", "(", ")", ",", "<", ">"})


@dataclass(frozen=True)
class LabelRequirement:
    """One comma-separated part; `operator` is =, !=, in, notin, exists, !, gt or lt."""

    key: str
    operator: str
    values: frozenset[str] = frozenset()

    def matches(self, labels: Mapping[str, str]) -> bool:
        value = labels.get(self.key)
        match self.operator:
            case "in":
                return value is not None and value in self.values
            case "notin":
                return value is None or value not in self.values
            case "exists":
                return value is not None
            case "!":
                return value is None
        (bound,) = self.values
        try:
            number = int(value or "")
        except ValueError:
            return False
        return number > int(bound) if self.operator == "gt" else number < int(bound)


@dataclass(frozen=True)
class LabelSelector:
    """A parsed `labelSelector`; the empty one matches everything."""

    requirements: tuple[LabelRequirement, ...] = ()

    @property
    def empty(self) -> bool:
        return not self.requirements

    def matches(self, obj: dict[str, Any]) -> bool:
        labels = (obj.get("metadata") or {}).get("labels") or {}
        return all(requirement.matches(labels) for requirement in self.requirements)


def parse_label_selector(text: str) -> LabelSelector:
    """Parses `a=b,c!=d,e in (x,y),!f,g`; raises BadRequestError."""
    try:
        return LabelSelector(_LabelParser(text).parse())
    except ValueError as err:
        raise BadRequestError(str(err)) from None


class _LabelParser:
    def __init__(self, text: str) -> None:
        self._tokens = _TOKEN.findall(text)
        self._next = 0

    def _peek(self) -> str:
        return self._tokens[self._next] if self._next < len(self._tokens) else ""

    def _take(self) -> str:
        token = self._peek()
        self._next += 1
        return token

    def parse(self) -> tuple[LabelRequirement, ...]:
        out: list[LabelRequirement] = []
        while token := self._peek():
            if token != "!" and token in _SYMBOLS:
                raise ValueError(f"found '{token}', expected: !, identifier, or 'end of string'")
            try:
                out.append(self._requirement())
            except ValueError as err:
                raise ValueError(f"unable to parse requirement: {err}") from None
            after = self._take()
            if after not in ("", ","):
                raise ValueError(f"found '{after}', expected: ',' or 'end of string'")
            if after == "," and self._peek() != "!" and self._peek() in ("", *_SYMBOLS):
                raise ValueError(f"found '{self._peek()}', expected: identifier after ','")
        return tuple(out)

    def _requirement(self) -> LabelRequirement:
        absent = self._peek() == "!"
        if absent:
            self._take()
        key = self._take()
        if not key or key in _SYMBOLS:
            raise ValueError(f"found '{key}', expected: identifier")
        _check(f'key: Invalid value: "{key}"', is_qualified_name(key))
        if absent or self._peek() in ("", ","):
            return LabelRequirement(key, "!" if absent else "exists")
        operator = self._take()
        match operator:
            case "=" | "==" | "!=":
                value = "" if self._peek() in ("", ",") else self._take()
                return _in(key, "notin" if operator == "!=" else "in", [self._word(value)])
            case "in" | "notin":
                return _in(key, operator, self._values())
            case "<" | ">":
                return self._compare(key, "lt" if operator == "<" else "gt")
        raise ValueError(f"found '{operator}', expected: in, notin, =, ==, !=, gt, lt")

    @staticmethod
    def _word(value: str) -> str:
        if value in _SYMBOLS:
            raise ValueError(f"found '{value}', expected: identifier")
        return value

    def _compare(self, key: str, operator: str) -> LabelRequirement:
        value = self._word(self._take())
        try:
            int(value)
        except ValueError:
            raise ValueError(
                f"values[0]: Invalid value: \"{value}\": for 'Gt', 'Lt' operators, the value "
                "must be an integer"
            ) from None
        return LabelRequirement(key, operator, frozenset([value]))

    def _values(self) -> list[str]:
        opening = self._take()
        if opening != "(":
            raise ValueError(f"found '{opening}' expected: '('")
        values: list[str] = []
        while True:
            token = self._peek()
            if token in (",", ")"):
                values.append("")
            else:
                values.append(self._word(self._take()))
            token = self._take()
            if token == ")":
                return values
            if token != ",":
                raise ValueError(f"found '{token}', expected: ',' or ')'")


def _in(key: str, operator: str, values: list[str]) -> LabelRequirement:
    for index, value in enumerate(values):
        _check(f'values[{index}][{key}]: Invalid value: "{value}"', is_label_value(value))
    return LabelRequirement(key, operator, frozenset(values))


def _check(prefix: str, problems: list[str]) -> None:
    if problems:
        raise ValueError(f"{prefix}: {'; '.join(problems)}")


# --- fields ----------------------------------------------------------------------------------

_COMMON = frozenset({"metadata.name", "metadata.namespace"})
_INVOLVED = tuple(
    f"{{}}.{name}"
    for name in ("kind", "namespace", "name", "uid", "apiVersion", "resourceVersion", "fieldPath")
)
_FIELDS: dict[tuple[str, str], frozenset[str]] = {
    ("", "Pod"): frozenset(
        {
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "spec.hostNetwork",
            "status.phase",
            "status.podIP",
            "status.podIPs",
            "status.nominatedNodeName",
        }
    ),
    ("", "Node"): frozenset({"spec.unschedulable"}),
    ("", "Namespace"): frozenset({"status.phase"}),
    ("", "Secret"): frozenset({"type"}),
    ("", "Service"): frozenset({"spec.clusterIP", "spec.type"}),
    ("", "ReplicationController"): frozenset({"status.replicas"}),
    ("", "Event"): frozenset(
        {each.format("involvedObject") for each in _INVOLVED}
        | {"reason", "reportingComponent", "source", "type"}
    ),
    ("events.k8s.io", "Event"): frozenset(
        {each.format("regarding") for each in _INVOLVED}
        | {each.format("involvedObject") for each in _INVOLVED}
        | {"reason", "reportingController", "type"}
    ),
    ("apps", "ReplicaSet"): frozenset({"status.replicas"}),
    ("batch", "Job"): frozenset({"status.successful"}),
    ("certificates.k8s.io", "CertificateSigningRequest"): frozenset({"spec.signerName"}),
}


@dataclass(frozen=True)
class FieldTerm:
    path: str
    value: str
    equal: bool


@dataclass(frozen=True)
class FieldSelector:
    """A parsed `fieldSelector`; the empty one matches everything."""

    terms: tuple[FieldTerm, ...] = ()

    @property
    def empty(self) -> bool:
        return not self.terms

    def matches(self, obj: dict[str, Any]) -> bool:
        return all((_field(obj, term.path) == term.value) == term.equal for term in self.terms)

    def exact(self, path: str) -> str | None:
        """The one value `path` must have, e.g. for `metadata.name`, where the selector says so."""
        return next((t.value for t in self.terms if t.equal and t.path == path), None)


def parse_field_selector(
    text: str, group: str, version: str, kind: str, selectable: Collection[str] = ()
) -> FieldSelector:
    """Parses `a=b,c!=d`; raises BadRequestError for a field the kind does not select by.

    `selectable` adds a CRD's selectableFields (dotted, without the leading dot).
    """
    known = _COMMON | _FIELDS.get((group, kind), frozenset()) | frozenset(selectable)
    terms = tuple(_term(part) for part in _split(text) if part)
    for term in terms:
        if term.path not in known:
            raise BadRequestError(_unsupported(term.path, group, version, kind))
    return FieldSelector(terms)


def _unsupported(path: str, group: str, version: str, kind: str) -> str:
    if (group, kind) in _FIELDS or (group, version, kind) not in kind_definitions():
        return f"field label not supported: {path}"
    return f'"{path}" is not a known field selector: only "metadata.name", "metadata.namespace"'


def _split(text: str) -> list[str]:
    """Splits at commas that no backslash escapes."""
    parts, current, escaped = [], "", False
    for char in text:
        if not escaped and char == ",":
            parts.append(current)
            current = ""
            continue
        escaped = char == "\\" and not escaped
        current += char
    return [*parts, current]


def _term(part: str) -> FieldTerm:
    match = re.match(r"((?:\\.|[^=!\\])*?)(!=|==|=)(.*)$", part, re.DOTALL)
    if match is None:
        raise BadRequestError(f"invalid selector: '{part}'; can't understand '{part}'")
    path, operator, value = match.groups()
    return FieldTerm(path, re.sub(r"\\([\\,=])", r"\1", value), operator != "!=")


_SPECIAL: dict[str, Callable[[dict[str, Any]], str]] = {
    "spec.hostNetwork": lambda obj: _text(_walk(obj, "spec.hostNetwork") or False),
    "spec.unschedulable": lambda obj: _text(_walk(obj, "spec.unschedulable") or False),
    "status.successful": lambda obj: _text(_walk(obj, "status.succeeded") or 0),
    "status.podIPs": lambda obj: ",".join(
        each.get("ip", "") for each in _walk(obj, "status.podIPs") or ()
    ),
    "source": lambda obj: _text(_walk(obj, "source.component") or _walk(obj, "reportingComponent")),
}


def _field(obj: dict[str, Any], path: str) -> str:
    special = _SPECIAL.get(path)
    if special is not None:
        return special(obj)
    return _text(_walk(obj, path))


def _walk(obj: Any, path: str) -> Any:
    for key in path.split("."):
        if not isinstance(obj, dict):
            return None
        obj = obj.get(key)
    return obj


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)
