"""Views name fields as the API does: a misspelt one would silently stay at its default."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from podwire.apiserver.schema import Schema, builtin
from podwire.controllers import views
from podwire.objects import kinds
from podwire.objects.core import Node
from podwire.objects.meta import Kind, View

# Kinds of definitions (CustomResourceDefinition) are held against those, not against built-in ones.
KINDS = [
    kind
    for kind in [*vars(kinds).values(), views.POD]
    if isinstance(kind, Kind) and kind.group != "policy.networking.k8s.io"
]


def structs(of: Any) -> Iterator[type[View]]:
    """The views within a type, through unions, lists and maps."""
    match of:
        case msgspec.inspect.StructType(cls=cls):
            yield cls
        case msgspec.inspect.UnionType(types=types):
            for one in types:
                yield from structs(one)
        case msgspec.inspect.ListType(item_type=item) | msgspec.inspect.DictType(value_type=item):
            yield from structs(item)


def fields(view: type[View], schema: Schema | None) -> Iterator[tuple[str, bool]]:
    """(view and field, whether the schema at that place has it)."""
    info = msgspec.inspect.type_info(view)
    assert isinstance(info, msgspec.inspect.StructType)
    for known in info.fields:
        found = schema.properties.get(known.encode_name) if schema is not None else None
        yield f"{view.__module__}.{view.__name__}.{known.encode_name}", found is not None
        inner = found and (found.items or found.additional or found)
        for struct in structs(known.type):
            yield from fields(struct, inner)


def test_every_field_of_a_view_exists_somewhere_the_view_is_used() -> None:
    used: dict[str, bool] = {}
    for kind in KINDS:
        for name, exists in fields(kind.view, builtin(kind.group, kind.version, kind.kind)):
            used[name] = used.get(name, False) or exists
    assert len(used) > 300
    assert [name for name, exists in used.items() if not exists] == []


def test_an_internal_ip_that_is_no_address_is_left_out() -> None:
    """Everybody may write a Node's status as text; no agent may stumble over another node's."""
    texts = ["bogus", "172.30.0.4", "", "fd00:30::4"]
    addresses = [{"type": "InternalIP", "address": text} for text in texts]
    node = msgspec.convert({"status": {"addresses": addresses}}, Node)
    assert node.internal_ips == ["172.30.0.4", "fd00:30::4"]
