"""JSON of an API server into views: null means the same as absent.

A list without `omitempty` is null where it is empty (`endpoints` of a Service without pods:
kubernetes/kubernetes#135968), which the decoder of a view takes for a fault. What it refuses is
decoded once more without nulls, so that the usual object pays nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, TypeVar, cast

import msgspec

from podwire.objects.meta import Object

V = TypeVar("V")
O = TypeVar("O", bound=Object)  # noqa: E741


def decode_view(payload: bytes | msgspec.Raw, view: type[V]) -> V:
    """Raises `msgspec.ValidationError` for what does not fit without its nulls either."""
    try:
        return msgspec.json.decode(payload, type=view)
    except msgspec.ValidationError:
        return msgspec.convert(_without_nulls(msgspec.json.decode(payload)), view)


def decode_list(payload: bytes, view: type[O]) -> tuple[Sequence[O], str]:
    """The items of a list, and the resourceVersion it was read at."""
    try:
        page = msgspec.json.decode(payload, type=_list_type(view))
    except msgspec.ValidationError:
        pieces = decode_view(payload, _RawPage)
        items = [decode_view(item, view) for item in pieces.items]
        return items, pieces.metadata.resource_version
    return page.items, page.metadata.resource_version


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value


class ListMeta(msgspec.Struct, rename="camel"):
    resource_version: str = ""


class _Page(msgspec.Struct):
    """Base of the per-kind list types made by `_list_type`."""

    metadata: ListMeta = msgspec.field(default_factory=ListMeta)
    items: list[Any] = []


class _RawPage(msgspec.Struct):
    metadata: ListMeta = msgspec.field(default_factory=ListMeta)
    items: list[msgspec.Raw] = []


@functools.cache
def _list_type(view: type[Object]) -> type[_Page]:
    """`{metadata, items: [view]}` as a decoder type."""
    fields: list[tuple[str, Any, Any]] = [("items", list[view], [])]  # type: ignore[valid-type]
    page = msgspec.defstruct(f"{view.__name__}List", fields, bases=(_Page,))
    return cast(type[_Page], page)
