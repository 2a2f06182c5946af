"""What a server-side table is made of: columns, cells and the texts they share.

Source: pkg/printers/internalversion/printers.go and apimachinery util/duration of Kubernetes 1.33.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from podwire.objects.meta import JsonObject, parse_time

Cell = Any
CellOf = Callable[[JsonObject], Cell]
NONE = "<none>"
UNKNOWN = "<unknown>"
UNSET = "<unset>"


@dataclass(frozen=True)
class Column:
    """One column; `wide` ones show under `-o wide` only."""

    name: str
    type: str = "string"
    wide: bool = False
    format: str = ""
    description: str = ""

    def definition(self) -> JsonObject:
        return {
            "name": self.name,
            "type": self.type,
            "format": self.format,
            "description": self.description,
            "priority": int(self.wide),
        }


@dataclass(frozen=True)
class TableSpec:
    """How one kind is printed: its columns and the cells of one object."""

    columns: tuple[Column, ...]
    row: Callable[[JsonObject], list[Cell]]


def spec(*cells: tuple[str, CellOf] | tuple[str, CellOf, str]) -> TableSpec:
    """A table from (name, cell) pairs; a third member `wide` or `integer` describes the column."""
    columns, makers = [], []
    for name, maker, *rest in cells:
        hint = rest[0] if rest else ""
        kind = "integer" if "integer" in hint else "string"
        columns.append(Column(name, kind, "wide" in hint, "name" if name == "Name" else ""))
        makers.append(maker)
    return TableSpec(tuple(columns), lambda obj: [maker(obj) for maker in makers])


def get(obj: Any, *path: str, default: Any = None) -> Any:
    """The value at a path of keys; `default` where anything on the way is absent or null."""
    for part in path:
        obj = obj.get(part) if isinstance(obj, dict) else None
        if obj is None:
            return default
    return obj


def at(*path: str, default: Cell = "") -> CellOf:
    return lambda obj: get(obj, *path, default=default)


def count(*path: str) -> CellOf:
    return lambda obj: len(get(obj, *path, default=()))


def name(obj: JsonObject) -> str:
    return str(obj["metadata"]["name"])


def duration(seconds: float) -> str:
    """`HumanDuration`: two units at most, coarser with age."""
    if seconds < -1:
        return "<invalid>"
    total = max(int(seconds), 0)
    if total < 120:
        return f"{total}s"
    minutes, hours = total // 60, total // 3600
    if minutes < 10:
        return _pair(minutes, "m", total % 60, "s")
    if minutes < 180:
        return f"{minutes}m"
    if hours < 8:
        return _pair(hours, "h", minutes % 60, "m")
    if hours < 48:
        return f"{hours}h"
    if hours < 192:
        return _pair(hours // 24, "d", hours % 24, "h")
    if hours < 24 * 365 * 2:
        return f"{hours // 24}d"
    if hours < 24 * 365 * 8:
        return _pair(hours // 24 // 365, "y", hours // 24 % 365, "d")
    return f"{hours // 24 // 365}y"


def _pair(major: int, major_unit: str, minor: int, minor_unit: str) -> str:
    return f"{major}{major_unit}{minor}{minor_unit}" if minor else f"{major}{major_unit}"


def since(text: str | None) -> str:
    """How long ago an RFC 3339 moment was."""
    if not text:
        return UNKNOWN
    return duration((dt.datetime.now(dt.UTC) - parse_time(text)).total_seconds())


def age(obj: JsonObject) -> str:
    return since(obj["metadata"].get("creationTimestamp"))


def created_at(obj: JsonObject) -> str:
    return obj["metadata"].get("creationTimestamp") or UNKNOWN


def containers(*path: str) -> CellOf:
    return lambda obj: ",".join(c["name"] for c in get(obj, *path, default=()))


def images(*path: str) -> CellOf:
    return lambda obj: ",".join(c.get("image", "") for c in get(obj, *path, default=()))


def pairs(labels: dict[str, str] | None) -> str:
    """`FormatLabels`: `a=b,c=d` or `<none>`."""
    return ",".join(f"{key}={labels[key]}" for key in sorted(labels)) if labels else NONE


def selector(value: JsonObject | None, empty: str = NONE) -> str:
    """`FormatLabelSelector`: matchLabels and matchExpressions as one line."""
    if value is None:
        return NONE
    parts = [(key, f"{key}={val}") for key, val in (value.get("matchLabels") or {}).items()]
    parts += [(e["key"], _requirement(e)) for e in value.get("matchExpressions") or ()]
    return ",".join(text for _, text in sorted(parts)) or empty


def _requirement(expression: JsonObject) -> str:
    values = ",".join(sorted(expression.get("values") or ()))
    match expression["operator"]:
        case "In":
            return f"{expression['key']} in ({values})"
        case "NotIn":
            return f"{expression['key']} notin ({values})"
        case "DoesNotExist":
            return f"!{expression['key']}"
    return str(expression["key"])


def join(values: Iterable[Any], empty: str = "") -> str:
    return ",".join(str(value) for value in values) or empty


NAME: tuple[str, CellOf] = ("Name", name)
AGE: tuple[str, CellOf] = ("Age", age)
CREATED: tuple[str, CellOf] = ("Created At", created_at)
GENERIC = spec(NAME, AGE)
