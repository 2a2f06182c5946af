"""Objects on the wire: single objects, lists, Tables and partial metadata, from stored bytes.

Plain reads never decode: an object is its stored bytes, a list is those bytes joined. Only Tables,
PartialObjectMetadata, converted versions and YAML decode what they show.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import yaml

from podwire.apiserver.negotiation import Format
from podwire.apiserver.registry import Resource
from podwire.apiserver.store import Record, decode, encode
from podwire.objects.meta import JsonObject


def object_bytes(resource: Resource, record: Record) -> bytes:
    """The object in the resource's version, as JSON."""
    if resource.read is None:
        return record.data
    return encode(resource.read(record.object()))


def read_object(resource: Resource, record: Record) -> JsonObject:
    """The object in the resource's version, a fresh copy."""
    obj = record.object()
    return obj if resource.read is None else resource.read(obj)


def one(resource: Resource, record: Record, form: Format) -> bytes:
    """The body of an answer that carries one object."""
    if form.shape == "object":
        body = object_bytes(resource, record)
    else:
        body = encode(shaped(resource, read_object(resource, record), form))
    return to_yaml(body) if form.yaml else body


def shaped(
    resource: Resource, obj: JsonObject, form: Format, *, columns: bool = True
) -> JsonObject:
    """One object as `form` wants it: a one-row Table, its metadata, or itself."""
    match form.shape:
        case "table":
            meta = {"resourceVersion": obj["metadata"].get("resourceVersion", "")}
            return table(resource, [obj], form, meta, columns=columns)
        case "partial":
            return partial(obj, form)
    return obj


def partial(obj: JsonObject, form: Format) -> JsonObject:
    return {
        "kind": "PartialObjectMetadata",
        "apiVersion": f"meta.k8s.io/{form.version}",
        "metadata": obj["metadata"],
    }


def table(
    resource: Resource,
    objects: Iterable[JsonObject],
    form: Format,
    meta: JsonObject,
    *,
    columns: bool = True,
) -> JsonObject:
    spec = resource.table
    assert spec is not None, f"{resource.qualified}: a stored kind has a table"
    rows = []
    for obj in objects:
        row: JsonObject = {"cells": spec.row(obj)}
        if form.include == "Object":
            row["object"] = obj
        elif form.include == "Metadata":
            row["object"] = partial(obj, form)
        else:
            row["object"] = None
        rows.append(row)
    return {
        "kind": "Table",
        "apiVersion": f"meta.k8s.io/{form.version}",
        "metadata": meta,
        "columnDefinitions": [c.definition() for c in spec.columns] if columns else None,
        "rows": rows,
    }


def many(resource: Resource, records: Sequence[Record], form: Format, meta: JsonObject) -> bytes:
    """The body of a list. Items of built-in kinds carry no kind of their own, as upstream's."""
    if form.shape == "table":
        objects = (read_object(resource, record) for record in records)
        body = encode(table(resource, objects, form, meta))
    elif form.shape == "partial":
        body = encode(
            {
                "kind": "PartialObjectMetadataList",
                "apiVersion": f"meta.k8s.io/{form.version}",
                "metadata": meta,
                "items": [partial(read_object(resource, record), form) for record in records],
            }
        )
    else:
        head = {"kind": resource.list_kind, "apiVersion": resource.api_version, "metadata": meta}
        items = b",".join(_items(resource, records))
        body = encode(head)[:-1] + b',"items":[' + items + b"]}"
    return to_yaml(body) if form.yaml else body


def _items(resource: Resource, records: Sequence[Record]) -> list[bytes]:
    if resource.is_custom:
        return [object_bytes(resource, record) for record in records]
    prefix = type_prefix(resource.api_version, resource.kind)
    size = len(prefix)
    return [
        b"{" + data[size:] if data.startswith(prefix) else data
        for data in (object_bytes(resource, record) for record in records)
    ]


def type_prefix(api_version: str, kind: str) -> bytes:
    """How every stored object begins: `with_type` puts these two members first."""
    return encode({"apiVersion": api_version, "kind": kind})[:-1] + b","


def with_type(obj: JsonObject) -> JsonObject:
    """The same object, apiVersion and kind first."""
    return {"apiVersion": obj["apiVersion"], "kind": obj["kind"], **obj}


def to_yaml(body: bytes) -> bytes:
    text: str = yaml.dump(decode(body), Dumper=yaml.CSafeDumper, sort_keys=False)
    return text.encode()
