"""The second walk over a document in which something is wrong: it knows where it is."""

from __future__ import annotations

from typing import Any

from podwire.apiserver.gotexts import base64_problem, go_json_kind, go_type, time_problem
from podwire.apiserver.quantity import QuantityError, canonical
from podwire.apiserver.schema import Schema
from podwire.apiserver.walk import NeedsPathError, compiled, is_empty, zero_of


class Walk:
    """The same decoding with paths; collects strict errors and Go's first type error.

    Go's decoder names the field by its dotted path without list indexes and map keys (`go_path`),
    the strict one with them (`path`).
    """

    def __init__(self) -> None:
        self.error = ""
        self.strict: list[str] = []

    def value(self, value: Any, schema: Schema, path: str, go_path: str, struct: str) -> Any:
        if schema.custom:
            return self._custom(value, schema, path, go_path)
        if schema.type == "object" and isinstance(value, dict):
            if schema.preserve_unknown and not schema.properties:
                return value
            if schema.is_map:
                return self._map(value, schema, path, go_path, struct)
            return self._struct(value, schema, path, go_path)
        if schema.type == "array" and isinstance(value, list):
            items = schema.items or Schema()
            return [
                zero_of(items)()
                if item is None
                else self.value(item, items, f"{path}[{index}]", go_path, struct)
                for index, item in enumerate(value)
            ]
        try:
            if schema.type in ("object", "array"):
                raise NeedsPathError
            return compiled(schema)(value)
        except NeedsPathError:
            self._mismatch(value, schema, go_path, struct)
            return value

    def _struct(self, value: dict[str, Any], schema: Schema, path: str, go_path: str) -> Any:
        out = {}
        for key, item in value.items():
            below = f"{path}.{key}" if path else key
            child = schema.properties.get(key)
            if child is None:
                self.strict.append(f'unknown field "{below}"')
            elif item is not None:
                go_below = f"{go_path}.{key}" if go_path else key
                item = self.value(item, child, below, go_below, schema.go_name)
                omit = (child.type == "array" or child.is_map) and key not in schema.required
                if not (omit and is_empty(item)):
                    out[key] = item
        return out

    def _map(self, value: dict[str, Any], schema: Schema, path: str, go: str, struct: str) -> Any:
        assert schema.additional is not None
        zero = zero_of(schema.additional)
        return {
            key: zero()
            if item is None
            else self.value(item, schema.additional, f"{path}.{key}", go, struct)
            for key, item in value.items()
        }

    def _custom(self, value: Any, schema: Schema, path: str, go_path: str) -> Any:
        if isinstance(value, list) and schema.items is not None:
            return [
                self.value(item, schema.items, f"{path}[{index}]", go_path, "")
                for index, item in enumerate(value)
            ]
        if not isinstance(value, dict):
            return value
        out = {}
        for key, item in value.items():
            below = f"{path}.{key}" if path else key
            child = schema.properties.get(key) or schema.additional
            if child is not None and (item is not None or child.custom):
                out[key] = self.value(item, child, below, below, "")
            elif child is not None:
                continue
            elif schema.preserve_unknown:
                out[key] = item
            else:
                self.strict.append(f'unknown field "{below}"')
        return out

    def _mismatch(self, value: Any, schema: Schema, go_path: str, struct: str) -> None:
        if self.error:
            return
        problem = _own_problem(value, schema)
        if problem is not None:
            self.error = problem
            return
        wanted = go_type(schema, struct, go_path.rpartition(".")[2])
        where = f"Go struct field {struct}.{go_path}" if struct else "Go value"
        self.error = (
            f"json: cannot unmarshal {go_json_kind(value, wanted)} into {where} of type {wanted}"
        )


def _own_problem(value: Any, schema: Schema) -> str | None:
    """The words of Go types that read themselves (quantities, times, bytes)."""
    if schema.format == "quantity":
        try:
            canonical(value if isinstance(value, str) else "")
        except QuantityError as err:
            return str(err)
    if isinstance(value, str) and schema.format == "byte":
        return f"illegal base64 data at input byte {base64_problem(value)}"
    if isinstance(value, str) and schema.format in ("date-time", "micro-time"):
        return time_problem(value)
    return None
