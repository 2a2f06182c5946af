"""OpenAPI v2 as protobuf: what kubectl before 1.27 reads to validate, merge and explain.

The v3 documents are translated schema by schema and written straight in the wire format of
gnostic's `openapi.v2.Document`; only definitions are, no paths. Old kubectl would otherwise merge
by the types compiled into it, which lack newer fields (`grpc` probes in 1.20).

Source: github.com/google/gnostic openapiv2/OpenAPIv2.proto (field numbers below).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from podwire.apiserver.store import encode
from podwire.objects.meta import JsonObject

_SWAGGER, _INFO, _DEFINITIONS = 1, 2, 9
_REF, _FORMAT, _DESCRIPTION, _REQUIRED = 1, 2, 4, 19
_ADDITIONAL, _TYPE, _ITEMS, _PROPERTIES, _VENDOR = 21, 22, 23, 25, 31
_V3, _V2 = "#/components/schemas/", "#/definitions/"


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _field(number: int, payload: bytes) -> bytes:
    """A length-delimited field."""
    return _varint(number << 3 | 2) + _varint(len(payload)) + payload


def _text(number: int, value: str) -> bytes:
    return _field(number, value.encode())


def _named(name: str, payload: bytes) -> bytes:
    """NamedSchema and NamedAny alike: name = 1, value = 2."""
    return _text(1, name) + _field(2, payload)


def _ref_of(schema: JsonObject) -> str:
    if "$ref" in schema:
        return str(schema["$ref"])
    parts: list[Any] = schema.get("allOf") or []
    return str(parts[0].get("$ref", "")) if len(parts) == 1 else ""


def encode_schema(schema: JsonObject) -> bytes:
    """One v3 schema as the bytes of a v2 Schema message."""
    out = [_text(_REF, ref.replace(_V3, _V2))] if (ref := _ref_of(schema)) else []
    if "oneOf" in schema:
        out += [_text(_FORMAT, "int-or-string"), _field(_TYPE, _text(1, "string"))]
    elif "format" in schema:
        out.append(_text(_FORMAT, schema["format"]))
    if "description" in schema:
        out.append(_text(_DESCRIPTION, schema["description"]))
    out += [_text(_REQUIRED, name) for name in schema.get("required") or ()]
    additional = schema.get("additionalProperties")
    if isinstance(additional, dict):
        out.append(_field(_ADDITIONAL, _field(1, encode_schema(additional))))
    if "type" in schema and "oneOf" not in schema:
        out.append(_field(_TYPE, _text(1, schema["type"])))
    if "items" in schema:
        out.append(_field(_ITEMS, _field(1, encode_schema(schema["items"]))))
    if properties := schema.get("properties"):
        named = (_field(1, _named(k, encode_schema(v))) for k, v in properties.items())
        out.append(_field(_PROPERTIES, b"".join(named)))
    for key, value in schema.items():
        if key.startswith("x-"):
            # Any.yaml = 2; JSON is YAML.
            out.append(_field(_VENDOR, _named(key, _field(2, encode(value)))))
    return b"".join(out)


def openapi_v2_protobuf(documents: Iterable[JsonObject], version: str) -> bytes:
    """The definitions of v3 documents as one v2 document."""
    schemas: dict[str, JsonObject] = {}
    for document in documents:
        schemas |= document["components"]["schemas"]
    definitions = b"".join(
        _field(1, _named(name, encode_schema(schemas[name]))) for name in sorted(schemas)
    )
    info = _text(1, "Kubernetes") + _text(2, version)
    return _text(_SWAGGER, "2.0") + _field(_INFO, info) + _field(_DEFINITIONS, definitions)
