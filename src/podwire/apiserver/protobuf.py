"""Request bodies in `application/vnd.kubernetes.protobuf`, as the documents JSON would have been.

    k8s\\0 | runtime.Unknown {typeMeta, raw} --kind--> schema + field numbers --> dict

Go clients from 1.32 on (kubectl's typed commands, controllers) write so; answers stay JSON, which
they accept. Field numbers come from the compiled table in `data/` (`tools/compile_protobuf.py`),
types from the JSON schemas, so that a message is a schema whose fields have numbers. Fields without
a number here (newer than the table) are skipped, as an older Go server does. The result still goes
through `decode.py`: canonical quantities, dropped empties and type checks are there.

Source: apimachinery pkg/runtime/serializer/protobuf, protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

import base64
import datetime as dt
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import msgspec

from podwire.apiserver import schema as schemas
from podwire.apiserver.schema import Schema
from podwire.errors import BadRequestError

CONTENT_TYPE = "application/vnd.kubernetes.protobuf"
MAGIC = b"k8s\0"

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_DELETE_OPTIONS = "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions"
_MAX_VARINT = 10
_MAX_DEPTH = 100


class _WireError(ValueError):
    """Bytes that are not a message of the expected type; the words are gogo-protobuf's."""


Span = tuple[bytes, int, int]
"""A buffer with the start and end of what matters."""


def parse(body: bytes) -> dict[str, Any]:
    """The document in a body, apiVersion and kind included. Raises BadRequestError."""
    if not body.startswith(MAGIC):
        raise BadRequestError(
            "provided data does not appear to be a protobuf message, expected prefix "
            f"[{' '.join(map(str, MAGIC))}]"
        )
    try:
        api_version, kind, span = _envelope((body, len(MAGIC), len(body)))
        document = _message(_plan(*_kind(api_version, kind)), span, {}, 0)
    except (_WireError, UnicodeDecodeError, msgspec.DecodeError) as error:
        raise BadRequestError(f"the body is not a protobuf message of its kind: {error}") from error
    return {"apiVersion": api_version, "kind": kind, **document}


def is_known(group: str, version: str, kind: str) -> bool:
    """Whether bodies of this kind can be read; custom kinds and their definitions cannot."""
    name = schemas.kind_definitions().get((group, version, kind))
    return name is not None and _short(name) in _numbers()


def _envelope(span: Span) -> tuple[str, str, Span]:
    """runtime.Unknown: {1: TypeMeta {1: apiVersion, 2: kind}, 2: raw}."""
    api_version, kind, raw = "", "", (b"", 0, 0)
    for number, _, value in _fields(span):
        if number == 1 and isinstance(value, tuple):
            names = {n: _text(v) for n, _, v in _fields(value) if isinstance(v, tuple)}
            api_version, kind = names.get(1, ""), names.get(2, "")
        elif number == 2 and isinstance(value, tuple):
            raw = value
    return api_version, kind, raw


def _kind(api_version: str, kind: str) -> tuple[str, str]:
    """The definition of a kind, and its name in the table of numbers."""
    if not kind:
        raise BadRequestError("Object 'Kind' is missing in the protobuf message")
    group, _, version = api_version.rpartition("/")
    name = schemas.kind_definitions().get((group, version, kind))
    if kind == "DeleteOptions":
        name = _DELETE_OPTIONS
    if name is None or _short(name) not in _numbers():
        raise BadRequestError(f'no kind "{kind}" is registered for version "{api_version}"')
    return name, _short(name)


def _short(definition: str) -> str:
    return definition.removeprefix("io.k8s.")


# -- the wire ------------------------------------------------------------------------------------


def _fields(span: Span) -> Iterator[tuple[int, int, int | Span]]:
    """(number, wire type, integer or span) of every field."""
    data, at, end = span
    while at < end:
        tag, at = _varint(data, at, end)
        wire = tag & 7
        if wire == _VARINT:
            value, at = _varint(data, at, end)
            yield tag >> 3, wire, value
            continue
        if wire == _BYTES:
            size, at = _varint(data, at, end)
        elif wire in (_FIXED64, _FIXED32):
            size = 8 if wire == _FIXED64 else 4
        else:
            raise _WireError(f"proto: illegal wireType {wire}")
        if at + size > end:
            raise _WireError("unexpected EOF")
        yield tag >> 3, wire, (data, at, at + size)
        at += size


def _varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    for index in range(at, min(end, at + _MAX_VARINT)):
        byte = data[index]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, index + 1
        shift += 7
    raise _WireError("unexpected EOF" if end - at < _MAX_VARINT else "proto: integer overflow")


def _signed(value: int) -> int:
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


def _text(span: Span) -> str:
    data, start, end = span
    return data[start:end].decode()


# -- messages by schema --------------------------------------------------------------------------


Read = Callable[[Span, int], Any]
"""A length-delimited value; the integer is the depth. None means that JSON would be null."""


@dataclass(slots=True)
class _Field:
    """What to do with one field: `read`, `number` (varints), `inner` (structs) or `values` (maps).

    A struct without a name is inlined: its fields become those of the struct around it.
    """

    name: str
    wire: int = _BYTES
    read: Read | None = None
    number: Callable[[int], Any] | None = None
    inner: _Plan | None = None
    values: _Field | None = None
    """Of a map: its values."""
    repeated: bool = False
    omit_zero: bool = False


_Plan = dict[int, _Field]


@cache
def _numbers() -> dict[str, dict[str, str]]:
    data = files("podwire.apiserver") / "data" / "protobuf.json.zlib"
    table: dict[str, dict[str, str]] = msgspec.json.decode(zlib.decompress(data.read_bytes()))
    return table


_plans: dict[tuple[str, str], _Plan] = {}


def _plan(definition: str, message: str) -> _Plan:
    """The fields of a message, whose names are those of a definition. Cached."""
    plan = _plans.get((definition, message))
    if plan is None:
        plan = _plans[definition, message] = {}  # before the fields: types may contain themselves
        schema = schemas.definition(definition)
        for number, text in _numbers()[message].items():
            plan[int(number)] = _field(definition, schema, text)
    return plan


def _field(definition: str, schema: Schema, text: str) -> _Field:
    if text.startswith("^"):
        return _Field("", inner=_plan(definition, text[1:]))
    name = text.rstrip("?[]")
    node = schema.properties[name]
    field = _Field(name)
    if node.type == "array" and node.items is not None:
        field = _typed(name, node.items)
        field.repeated = True
    elif node.is_map and node.additional is not None:
        wrapped = text.endswith("[]")
        field.values = _Field("", read=_strings) if wrapped else _typed("", node.additional)
    else:
        field = _typed(name, node)
        field.omit_zero = text.endswith("?")
    return field


def _typed(name: str, node: Schema) -> _Field:
    """One value of a schema's type."""
    special = _SPECIAL.get(node.definition) or _FORMATS.get(node.format)
    if special is not None:
        return _Field(name, read=special)
    match node.type:
        case "string":
            return _Field(name, read=lambda span, _: _text(span))
        case "boolean":
            return _Field(name, _VARINT, number=bool)
        case "integer":
            return _Field(name, _VARINT, number=_signed)
        case "number":
            return _Field(name, _FIXED64, read=_double)
    return _Field(name, inner=_plan(node.definition, _short(node.definition)))


def _message(plan: _Plan, span: Span, out: dict[str, Any], depth: int) -> dict[str, Any]:
    """Fill `out`; a struct that comes twice is merged, as protobuf has it."""
    if depth > _MAX_DEPTH:
        raise _WireError("exceeded max depth")
    for number, wire, value in _fields(span):
        field = plan.get(number)
        if field is None:
            continue
        if field.inner is not None and not field.repeated and isinstance(value, tuple):
            inside = out if not field.name else out.setdefault(field.name, {})
            _message(field.inner, value, inside, depth + 1)
        elif field.values is not None and isinstance(value, tuple):
            key, item = _entry(field.values, value, depth)
            out.setdefault(field.name, {})[key] = item
        elif field.repeated:
            items = _packed(field, wire, value) or [_value(field, wire, value, depth)]
            out.setdefault(field.name, []).extend(items)
        else:
            item = _value(field, wire, value, depth)
            if item is not None and (item or not field.omit_zero):
                out[field.name] = item
            else:
                out.pop(field.name, None)
    return out


def _value(field: _Field, wire: int, value: int | Span, depth: int) -> Any:
    if wire != field.wire:
        raise _WireError(f"proto: wrong wireType = {wire} for field {field.name or 'of a map'}")
    if isinstance(value, int):
        assert field.number is not None, field.name
        return field.number(value)
    if field.inner is not None:
        return _message(field.inner, value, {}, depth + 1)
    assert field.read is not None, field.name
    return field.read(value, depth)


def _packed(field: _Field, wire: int, value: int | Span) -> list[Any]:
    """Integers written one after another in one field; empty where they are not."""
    if field.number is None or wire != _BYTES or isinstance(value, int):
        return []
    data, at, end = value
    items = []
    while at < end:
        item, at = _varint(data, at, end)
        items.append(field.number(item))
    return items


def _entry(values: _Field, span: Span, depth: int) -> tuple[str, Any]:
    """One {1: key, 2: value} of a map; a missing value is its type's zero."""
    key, item = "", _UNSET
    for number, wire, value in _fields(span):
        if number == 1 and isinstance(value, tuple):
            key = _text(value)
        elif number == 2:
            item = _value(values, wire, value, depth)
    if item is _UNSET:
        item = _value(values, values.wire, 0 if values.wire == _VARINT else (b"", 0, 0), depth)
    return key, item


_UNSET: Any = object()


# -- Go types that write themselves ----------------------------------------------------------------


def _pairs(span: Span) -> dict[int, int | Span]:
    return {number: value for number, _, value in _fields(span)}


def _integer(value: int | Span | None) -> int:
    return _signed(value) if isinstance(value, int) else 0


def _time(span: Span, depth: int) -> str | None:
    """{1: seconds, 2: nanos}; an empty message is Go's zero time, which JSON writes as null."""
    found = _pairs(span)
    return f"{_clock(found):%Y-%m-%dT%H:%M:%SZ}" if found else None


def _micro_time(span: Span, depth: int) -> str | None:
    found = _pairs(span)
    return f"{_clock(found):%Y-%m-%dT%H:%M:%S.%fZ}" if found else None


_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


def _clock(found: dict[int, int | Span]) -> dt.datetime:
    seconds, micros = _integer(found.get(1)), _integer(found.get(2)) // 1000
    try:
        return _EPOCH + dt.timedelta(seconds=seconds, microseconds=micros)
    except OverflowError as error:
        raise _WireError(f"time: {seconds} s is out of range") from error


def _quantity(span: Span, depth: int) -> str:
    value = _pairs(span).get(1)
    return (_text(value) if isinstance(value, tuple) else "") or "0"


def _int_or_string(span: Span, depth: int) -> int | str:
    """{1: type, 2: intVal, 3: strVal}; type 1 says string."""
    found = _pairs(span)
    if _integer(found.get(1)) == 0:
        return _integer(found.get(2))
    text = found.get(3)
    return _text(text) if isinstance(text, tuple) else ""


def _raw_json(span: Span, depth: int) -> Any:
    """RawExtension and FieldsV1: {1: JSON text}."""
    value = _pairs(span).get(1)
    if not isinstance(value, tuple) or value[1] == value[2]:
        return None
    data, start, end = value
    return msgspec.json.decode(data[start:end])


def _strings(span: Span, depth: int) -> list[str]:
    """A message that only wraps a list of strings (authentication's ExtraValue)."""
    return [_text(v) for number, _, v in _fields(span) if number == 1 and isinstance(v, tuple)]


def _base64(span: Span, depth: int) -> str:
    data, start, end = span
    return base64.b64encode(data[start:end]).decode()


def _double(span: Span, depth: int) -> float:
    data, start, end = span
    value: float = struct.unpack("<d", data[start:end] or bytes(8))[0]
    return value


_SPECIAL: dict[str, Read] = {
    "io.k8s.apimachinery.pkg.util.intstr.IntOrString": _int_or_string,
    "io.k8s.apimachinery.pkg.runtime.RawExtension": _raw_json,
    "io.k8s.apimachinery.pkg.apis.meta.v1.FieldsV1": _raw_json,
}
_FORMATS: dict[str, Read] = {
    "date-time": _time,
    "micro-time": _micro_time,
    "quantity": _quantity,
    "byte": _base64,
}
