"""One broken rule at one field, in the words of apimachinery's `field` package.

Paths are plain strings grown by the caller (`f"{path}.ports[{i}]"`). Values are shown as Go prints
them, since users compare these lines with what other clusters say.
Source: k8s.io/apimachinery pkg/util/validation/field/errors.go.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from podwire.errors import Cause, InvalidError


@dataclass(frozen=True)
class FieldError:
    """One rule broken at one field; `reason` is a cause reason (`FieldValueRequired`, ...)."""

    reason: str
    field: str
    message: str

    def __str__(self) -> str:
        return f"{self.field}: {self.message}"


class GoValue(str):
    """Text that already is how Go prints a value, and is not quoted again."""


def required(field: str, detail: str = "") -> FieldError:
    return FieldError("FieldValueRequired", field, _join("Required value", detail))


def invalid_value(field: str, value: Any, detail: str) -> FieldError:
    return FieldError("FieldValueInvalid", field, f"Invalid value: {go_value(value)}: {detail}")


def invalid_field(field: str, detail: str) -> FieldError:
    """Of a value that is too much to show (upstream's OmitValueType)."""
    return FieldError("FieldValueInvalid", field, f"Invalid value: {detail}")


def type_invalid(field: str, value: Any, detail: str) -> FieldError:
    return FieldError("FieldValueTypeInvalid", field, f"Invalid value: {go_value(value)}: {detail}")


def not_supported(field: str, value: Any, supported: Iterable[str]) -> FieldError:
    values = ", ".join(go_value(each) for each in supported)
    text = f"Unsupported value: {go_value(value)}: supported values: {values}"
    return FieldError("FieldValueNotSupported", field, text)


def duplicate(field: str, value: Any) -> FieldError:
    return FieldError("FieldValueDuplicate", field, f"Duplicate value: {go_value(value)}")


def forbidden(field: str, detail: str) -> FieldError:
    return FieldError("FieldValueForbidden", field, _join("Forbidden", detail))


def not_found(field: str, value: Any) -> FieldError:
    return FieldError("FieldValueNotFound", field, f"Not found: {go_value(value)}")


def too_long(field: str, limit: int) -> FieldError:
    text = f"Too long: may not be more than {limit} bytes"
    return FieldError("FieldValueTooLong", field, text)


def too_many(field: str, count: int, limit: int) -> FieldError:
    text = f"Too many: {count}: must have at most {limit} items"
    return FieldError("FieldValueTooMany", field, text)


def _join(kind: str, detail: str) -> str:
    return f"{kind}: {detail}" if detail else kind


def go_value(value: Any) -> str:
    """A value as Go's `%v`, `%q` or `%#v` shows it in a field error."""
    match value:
        case GoValue():
            return str(value)
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case str():
            return json.dumps(value, ensure_ascii=False)
        case dict() if all(isinstance(item, str) for item in value.values()):
            return go_string_map(value)
        case dict() | list():
            return json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
    return str(value)


def go_string_map(labels: Mapping[str, str] | None) -> str:
    if labels is None:
        return "map[string]string(nil)"
    pairs = ", ".join(f"{go_value(key)}:{go_value(labels[key])}" for key in sorted(labels))
    return f"map[string]string{{{pairs}}}"


def go_label_selector(selector: Mapping[str, Any] | None) -> GoValue:
    """A label selector as `%#v` prints `v1.LabelSelector`."""
    selector = selector or {}
    expressions = selector.get("matchExpressions")
    if expressions:
        rows = ", ".join(map(_go_requirement, expressions))
        shown = f"[]v1.LabelSelectorRequirement{{{rows}}}"
    else:
        shown = "[]v1.LabelSelectorRequirement(nil)"
    labels = go_string_map(selector.get("matchLabels"))
    return GoValue(f"v1.LabelSelector{{MatchLabels:{labels}, MatchExpressions:{shown}}}")


def _go_requirement(row: Mapping[str, Any]) -> str:
    key, operator = go_value(row.get("key", "")), go_value(row.get("operator", ""))
    values = go_strings(row.get("values"))
    return f"v1.LabelSelectorRequirement{{Key:{key}, Operator:{operator}, Values:{values}}}"


def go_strings(values: Sequence[str] | None, kind: str = "string") -> GoValue:
    """A slice of strings (or of `kind`, a named string type) as `%#v` prints it."""
    if values is None:
        return GoValue(f"[]{kind}(nil)")
    return GoValue(f"[]{kind}{{" + ", ".join(go_value(value) for value in values) + "}")


def invalid(kind: str, group: str, name: str, errors: Sequence[FieldError]) -> InvalidError:
    """The 422 kubectl prints: `Deployment.apps "x" is invalid: [spec.a: ..., spec.b: ...]`."""
    details = {"name": name, "group": group, "kind": kind}
    texts = list(dict.fromkeys(str(error) for error in errors))
    body = texts[0] if len(texts) == 1 else f"[{', '.join(texts)}]"
    qualified = f"{kind}.{group}" if group else kind
    message = f"{qualified} {go_value(name)} is invalid"
    return InvalidError(
        f"{message}: {body}" if texts else message,
        causes=[Cause(error.reason, error.message, error.field) for error in errors],
        details={key: value for key, value in details.items() if value},
    )
