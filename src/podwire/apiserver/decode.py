"""Request bodies to objects, with the Go decoder's strictness and its words."""

from __future__ import annotations

from typing import Any, Literal

from podwire.apiserver.schema import Schema

FieldValidation = Literal["Strict", "Warn", "Ignore"]


def decode(
    body: bytes,
    content_type: str,
    schema: Schema,
    *,
    group: str,
    version: str,
    kind: str,
    field_validation: FieldValidation = "Strict",
) -> tuple[dict[str, Any], list[str]]:
    """The object in a body (JSON or YAML) and the warnings to send; raises BadRequestError.

    apiVersion and kind are filled in where absent; other ones are a BadRequestError.
    """
    raise NotImplementedError


def decode_object(
    obj: Any,
    schema: Schema,
    *,
    group: str,
    version: str,
    kind: str,
    field_validation: FieldValidation = "Strict",
    duplicates: tuple[str, ...] = (),
) -> tuple[dict[str, Any], list[str]]:
    """The same for a parsed document (a patch's result); `obj` is not changed."""
    raise NotImplementedError


def parse_body(body: bytes, content_type: str) -> tuple[Any, list[str]]:
    """A parsed JSON or YAML document and the paths of duplicate keys; raises BadRequestError."""
    raise NotImplementedError
