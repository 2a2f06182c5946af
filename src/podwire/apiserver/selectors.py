"""Label and field selectors of list, watch and deletecollection requests."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any


class LabelSelector:
    """A parsed `labelSelector`; the empty one matches everything."""

    empty: bool

    def matches(self, obj: dict[str, Any]) -> bool:
        raise NotImplementedError


class FieldSelector:
    """A parsed `fieldSelector`; the empty one matches everything."""

    empty: bool

    def matches(self, obj: dict[str, Any]) -> bool:
        raise NotImplementedError

    def exact(self, path: str) -> str | None:
        """The one value `path` must have, e.g. for `metadata.name`, where the selector says so."""
        raise NotImplementedError


def parse_label_selector(text: str) -> LabelSelector:
    """Parses `a=b,c!=d,e in (x,y),!f,g`; raises BadRequestError."""
    raise NotImplementedError


def parse_field_selector(
    text: str, group: str, version: str, kind: str, selectable: Collection[str] = ()
) -> FieldSelector:
    """Parses `a=b,c!=d`; raises BadRequestError for a field the kind does not select by.

    `selectable` adds a CRD's selectableFields (dotted, without the leading dot).
    """
    raise NotImplementedError
