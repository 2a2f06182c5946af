"""Documents -> typed views, with errors that name file, object and field. Pure."""

from __future__ import annotations

import re
from typing import Any, Final, TypeVar

import msgspec

from podwire.errors import UsageError
from podwire.objects.documents import Document

T = TypeVar("T")
_PLACE: Final = re.compile(
    r"^(?P<text>.*?)(?: - at (?:`key` in )?`\$\.?(?P<path>[^`]*)`)?$", re.DOTALL
)


def name_of(document: Document, namespace: str = "") -> str:
    """`Deployment shop/web`, as messages begin."""
    scope = document.namespace or namespace
    return (
        f"{document.kind} {scope}/{document.name}" if scope else f"{document.kind} {document.name}"
    )


def convert(document: Document, value: Any, view: type[T], path: str = "") -> T:
    """`value`, which is at `path` of the document, as a view. Null is absent, as in Go."""
    try:
        return msgspec.convert(without_nulls(value), view)
    except msgspec.ValidationError as error:
        text, inner = place_of(error)
        where = ".".join(part for part in (path, inner) if part)
        raise UsageError(
            f"{document.line_of(where)}: {name_of(document)}: {where}: {text}"
        ) from error


def place_of(error: msgspec.ValidationError) -> tuple[str, str]:
    """What is wrong, and the path it is wrong at."""
    found = _PLACE.match(str(error))
    return (found["text"], found["path"] or "") if found else (str(error), "")


def without_nulls(value: Any) -> Any:
    """Keys whose value is null are left out; nulls in lists have a meaning of their own."""
    if isinstance(value, dict):
        return {key: without_nulls(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [without_nulls(inner) for inner in value]
    return value
