"""The first walk over a document: closures compiled from the kind's schema, without paths.

Every type is checked, quantities are written canonically, and what Go's `omitempty` drops is
dropped. Anything wrong raises `NeedsPathError`: then `pathwalk` says what and where.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from podwire.apiserver.gotexts import base64_problem, time_problem
from podwire.apiserver.quantity import QuantityError, canonical
from podwire.apiserver.schema import OBJECT_META, Schema, definition

Decoder = Callable[[Any], Any]

_INT32 = (-(2**31), 2**31 - 1)
_INT64 = (-(2**63), 2**63 - 1)


class NeedsPathError(Exception):
    """Something is wrong; the slow walk will say what and where."""


def compiled(schema: Schema) -> Decoder:
    if schema.compiled is None:
        # Through the cell, since a type may contain itself.
        schema.compiled = lambda value: schema.compiled(value)  # type: ignore[misc]
        schema.compiled = _compile(schema)
    return schema.compiled


def _compile(schema: Schema) -> Decoder:
    if schema.custom:
        return _compile_custom(schema)
    match schema.type:
        case "object" if schema.preserve_unknown and not schema.properties:
            return _only(dict)
        case "object" if schema.is_map:
            return _compile_map(schema)
        case "object":
            return _compile_struct(schema)
        case "array":
            return _compile_list(schema)
        case "integer":
            return _integer(*(_INT32 if schema.format == "int32" else _INT64))
        case "number":
            return _number
        case "boolean":
            return _only(bool)
        case "string":
            return _STRINGS.get(schema.format) or _only(str)
    return _int_or_string if schema.int_or_string else _anything


def _only(kind: type) -> Decoder:
    def check(value: Any) -> Any:
        if type(value) is not kind:
            raise NeedsPathError
        return value

    return check


def _integer(low: int, high: int) -> Decoder:
    def check(value: Any) -> Any:
        if type(value) is not int or not low <= value <= high:
            raise NeedsPathError
        return value

    return check


def _number(value: Any) -> Any:
    if type(value) is not float and type(value) is not int:
        raise NeedsPathError
    return value


def _anything(value: Any) -> Any:
    return value


def _int_or_string(value: Any) -> Any:
    if type(value) is int and _INT32[0] <= value <= _INT32[1]:
        return value
    if type(value) is not str:
        raise NeedsPathError
    return value


def _quantity(value: Any) -> Any:
    if type(value) is not str:
        if type(value) is not int and type(value) is not float:
            raise NeedsPathError
        value = str(value)
    try:
        return canonical(value)
    except QuantityError:
        raise NeedsPathError from None


def _bytes(value: Any) -> Any:
    if type(value) is not str or base64_problem(value) is not None:
        raise NeedsPathError
    return value


def _time(value: Any) -> Any:
    if type(value) is not str or time_problem(value) is not None:
        raise NeedsPathError
    return value


_STRINGS: dict[str, Decoder] = {
    "quantity": _quantity,
    "byte": _bytes,
    "date-time": _time,
    "micro-time": _time,
}


def is_empty(value: Any) -> bool:
    return value is None or (not value and (type(value) is list or type(value) is dict))


def _compile_struct(schema: Schema) -> Decoder:
    required = frozenset(schema.required)
    # (decoder, whether Go's omitempty drops an empty value)
    fields = {
        key: (
            compiled(child),
            (child.type == "array" or child.is_map) and key not in required,
        )
        for key, child in schema.properties.items()
    }

    def struct(value: Any) -> Any:
        if type(value) is not dict:
            raise NeedsPathError
        out = {}
        for key, item in value.items():
            field = fields.get(key)
            if field is None:
                raise NeedsPathError
            if item is not None:
                item = field[0](item)
                if item or not field[1]:
                    out[key] = item
        return out

    return struct


def _compile_map(schema: Schema) -> Decoder:
    assert schema.additional is not None
    child, zero = compiled(schema.additional), zero_of(schema.additional)
    if schema.additional.type == "string" and not schema.additional.format:

        def strings(value: Any) -> Any:
            if type(value) is not dict:
                raise NeedsPathError
            out = value.copy()
            for key, item in value.items():
                if type(item) is not str:
                    if item is not None:
                        raise NeedsPathError
                    out[key] = ""
            return out

        return strings

    def mapping(value: Any) -> Any:
        if type(value) is not dict:
            raise NeedsPathError
        return {k: zero() if item is None else child(item) for k, item in value.items()}

    return mapping


def _compile_list(schema: Schema) -> Decoder:
    items = schema.items or Schema()
    child, zero = compiled(items), zero_of(items)

    def array(value: Any) -> Any:
        if type(value) is not list:
            raise NeedsPathError
        return [zero() if item is None else child(item) for item in value]

    return array


def zero_of(schema: Schema) -> Callable[[], Any]:
    """What Go leaves where a list or map holds null."""
    if schema.format == "quantity":
        return lambda: "0"
    match schema.type:
        case "object":
            return dict
        case "array":
            return list
        case "string":
            return str
        case "integer" | "number":
            return int
        case "boolean":
            return bool
    return lambda: None


def _compile_custom(schema: Schema) -> Decoder:
    """Custom resources: fields must be known; types are left to validation (422, not 400)."""
    fields = {key: compiled(child) for key, child in schema.properties.items()}
    typed = frozenset(key for key, child in schema.properties.items() if not child.custom)
    preserve = schema.preserve_unknown
    additional = compiled(schema.additional) if schema.additional is not None else None
    items = compiled(schema.items) if schema.items is not None else _anything

    def custom(value: Any) -> Any:
        if type(value) is dict:
            out = {}
            for key, item in value.items():
                field = fields.get(key) or additional
                if item is None and key in typed:
                    continue
                if field is not None:
                    out[key] = field(item)
                elif preserve:
                    out[key] = item
                else:
                    raise NeedsPathError
            return out
        if type(value) is list:
            return [items(item) for item in value]
        return value

    return custom


# Warm what every request needs, before a server forks.
compiled(definition(OBJECT_META))
