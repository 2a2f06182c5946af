"""Bytes of a request to a document: JSON, YAML or protobuf, with the keys that came twice.

YAML is read as Go's reader reads it: YAML 1.1 words and numbers, no timestamps, no merge bombs.
"""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec
import yaml

from podwire.apiserver import protobuf
from podwire.errors import BadRequestError
from podwire.objects.goyaml import GoLoader

_MAX_NODES = 1_000_000
# The latter ones are of tags that do not fit their text, as `!!bool x`.
_YAML_ERRORS = (yaml.YAMLError, ValueError, RecursionError, LookupError, TypeError, AttributeError)


def parse_body(body: bytes, content_type: str, *, strict: bool = True) -> tuple[Any, list[str]]:
    """A parsed document and texts of its duplicate keys; raises BadRequestError.

    Without `strict` duplicates are not looked for; the last one wins either way.
    """
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type == protobuf.CONTENT_TYPE:
        return protobuf.parse(body), []
    try:
        if "yaml" in media_type:
            return _parse_yaml(body)
        document = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as err:
        raise BadRequestError(
            f"the object provided is unrecognized: couldn't get version/kind; json parse error: "
            f"{_json_problem(body, err)} ({summary(body)})"
        ) from err
    if not strict or _no_duplicates(body, document):
        return document, []
    return document, [f'duplicate field "{path}"' for path in _duplicates(body)]


def _json_problem(body: bytes, err: Exception) -> str:
    if not body.strip():
        return "unexpected end of JSON input"
    return str(err)


def summary(body: bytes) -> str:
    if not body:
        return "<empty>"
    shown = body[:30].decode(errors="replace") if body[:1] == b"{" else body[:30].hex()
    return shown + (" ..." if len(body) > 30 else "")


# Every key of a JSON text is a closing quote before a colon. Quotes inside strings are escaped,
# so a count equal to the number of keys in the parsed document proves that none came twice.
_KEY_END = re.compile(rb'[^\\]"\s*:')


def _no_duplicates(body: bytes, document: Any) -> bool:
    if b'\\\\"' in body:
        return False
    return len(_KEY_END.findall(body)) == _count_keys(document)


def _count_keys(value: Any) -> int:
    total, stack = 0, [value]
    while stack:
        value = stack.pop()
        if type(value) is dict:
            total += len(value)
            stack.extend(value.values())
        elif type(value) is list:
            stack.extend(value)
    return total


def _duplicates(body: bytes) -> list[str]:
    """Paths of keys that come twice in one JSON object, in document order."""

    class Repeated(dict[str, Any]):
        keys_twice: tuple[str, ...] = ()

    def pairs(items: list[tuple[str, Any]]) -> Repeated:
        out = Repeated(items)
        if len(out) != len(items):
            seen: set[str] = set()
            twice = [key for key, _ in items if key in seen or seen.add(key)]  # type: ignore[func-returns-value]
            out.keys_twice = tuple(dict.fromkeys(twice))
        return out

    paths: list[str] = []

    def walk(value: Any, path: str) -> None:
        if isinstance(value, Repeated):
            paths.extend(f"{path}.{key}" if path else key for key in value.keys_twice)
            for key, item in value.items():
                walk(item, f"{path}.{key}" if path else key)
        elif isinstance(value, list):
            for index, item in enumerate(value):
                walk(item, f"{path}[{index}]")

    walk(json.loads(body, object_pairs_hook=pairs), "")
    return paths


def _parse_yaml(body: bytes) -> tuple[Any, list[str]]:
    try:
        loader = GoLoader(body)
        try:
            document = loader.get_single_data()
            duplicates = loader.duplicates
        finally:
            loader.dispose()
        _expanded_size(document, {})
    except _YAML_ERRORS as err:
        text = " ".join(str(err).split())
        raise BadRequestError(f"error converting YAML to JSON: yaml: {text}") from err
    if duplicates:
        return document, ["yaml: unmarshal errors:\n  " + "\n  ".join(duplicates)]
    return document, []


def _expanded_size(value: Any, known: dict[int, int]) -> int:
    """How many nodes a document has with every alias written out; refuses the absurd."""
    if not isinstance(value, dict | list):
        return 1
    size = known.get(id(value))
    if size is None:
        known[id(value)] = _MAX_NODES + 1  # a cycle, unless replaced below
        children = value.values() if isinstance(value, dict) else value
        size = known[id(value)] = 1 + sum(_expanded_size(child, known) for child in children)
    if size > _MAX_NODES:
        raise ValueError("document contains excessive aliasing")
    return size
