"""Documents -> typed views, with errors that name file, object and field. Pure."""

from __future__ import annotations

import re
from ipaddress import ip_address
from typing import Any, Final, NoReturn, TypeVar

import msgspec

from podwire.errors import UsageError
from podwire.objects.documents import Document
from podwire.policy.model import LAST_PORT, PROTOCOLS

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


def refuse(document: Document, path: str, text: str) -> NoReturn:
    """Raise `UsageError` about a field of the document."""
    raise UsageError(f"{document.line_of(path)}: {name_of(document)}: {path}: {text}")


def check_port(document: Document, path: str, number: int) -> None:
    """As an API server checks ports; beyond the last there is another protocol's here."""
    if not 1 <= number <= LAST_PORT:
        text = f"Invalid value: {number}: must be between 1 and {LAST_PORT}, inclusive"
        refuse(document, path, text)


def check_protocol(document: Document, path: str, name: str) -> None:
    if name not in PROTOCOLS:
        supported = ", ".join(f'"{each}"' for each in sorted(PROTOCOLS))
        text = f'Unsupported value: "{name}": supported values: {supported}'
        refuse(document, path, text)


def check_address(document: Document, path: str, text: str) -> None:
    try:
        ip_address(text)
    except ValueError:
        text = f'Invalid value: "{text}": must be a valid IP address, (e.g. 10.9.8.7)'
        refuse(document, path, text)


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
