"""Tables of custom kinds: `additionalPrinterColumns` and their JSONPaths.

Only what apiextensions allows in a column is understood: field steps (dotted or quoted in
brackets), array indices, `[*]` and one filter form `[?(@.type=="Ready")]`; the first hit is shown.
Source: apiextensions-apiserver pkg/registry/customresource/tableconvertor.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

from podwire.apiserver.printers.columns import GENERIC, Cell, Column, TableSpec, name, since
from podwire.objects.meta import JsonObject

_STEP = re.compile(
    r"""\.(?P<field>(?:[^.\[\]\\]|\\.)+)
      | \[\s*'(?P<quoted>[^']*)'\s*\]
      | \[\s*"(?P<double>[^"]*)"\s*\]
      | \[\s*(?P<index>-?\d+|\*)\s*\]
      | \[\?\(\s*@(?P<path>[^=!<>]+?)\s*(?P<op>==|!=)\s*(?P<value>"[^"]*"|'[^']*'|[^)]+?)\s*\)\]
      """,
    re.VERBOSE,
)


def find_path(obj: Any, path: str) -> list[Any]:
    """Every value at a JSONPath; an unreadable path finds nothing."""
    path = path.strip().removeprefix("{").removesuffix("}").removeprefix("$")
    values, position = [obj], 0
    while position < len(path):
        match = _STEP.match(path, position)
        if match is None:
            return []
        values = [found for value in values for found in _step(value, match)]
        position = match.end()
    return values


def _step(value: Any, match: re.Match[str]) -> Iterable[Any]:
    groups = match.groupdict()
    key = groups["field"] or groups["quoted"] or groups["double"]
    if key is not None:
        key = key.replace("\\.", ".")
        return [value[key]] if isinstance(value, dict) and key in value else []
    items: list[Any] = value if isinstance(value, list) else []
    if groups["index"] == "*":
        return list(value.values()) if isinstance(value, dict) else items
    if groups["index"] is not None:
        index = int(groups["index"])
        return items[index : index + 1] if index >= 0 else items[index:][:1]
    wanted = _literal(groups["value"])
    equal = groups["op"] == "=="
    return [item for item in items if (wanted in find_path(item, groups["path"])) is equal]


def _literal(text: str) -> Any:
    if text[:1] in "'\"":
        return text[1:-1]
    try:
        return json.loads(text)
    except ValueError:
        return text


def custom_table(columns: list[JsonObject] | None) -> TableSpec:
    """The table of a CRD version; NAME and AGE where it names no columns."""
    if not columns:
        return GENERIC
    definitions = tuple(
        Column(
            column["name"],
            column["type"],
            bool(column.get("priority")),
            column.get("format", ""),
            column.get("description", ""),
        )
        for column in columns
    )

    def row(obj: JsonObject) -> list[Cell]:
        return [name(obj), *(_cell(obj, column["jsonPath"], column["type"]) for column in columns)]

    return TableSpec((Column("Name", format="name"), *definitions), row)


def _cell(obj: JsonObject, path: str, kind: str) -> Cell:
    values = find_path(obj, path)
    if not values or values[0] is None:
        return None
    value = values[0]
    match kind:
        case "date":
            return since(value) if isinstance(value, str) else None
        case "integer":
            return int(value) if isinstance(value, int | float) else None
        case "number":
            return float(value) if isinstance(value, int | float) else None
        case "boolean":
            return value if isinstance(value, bool) else None
    if isinstance(value, dict | list):
        return json.dumps(value, separators=(",", ":"))
    return str(value).lower() if isinstance(value, bool) else str(value)
