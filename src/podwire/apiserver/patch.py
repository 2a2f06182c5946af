"""The three patches of the API: RFC 6902, RFC 7386 and strategic merge patch."""

from __future__ import annotations

from typing import Any

from podwire.apiserver.schema import Schema

JSON_PATCH = "application/json-patch+json"
MERGE_PATCH = "application/merge-patch+json"
STRATEGIC_PATCH = "application/strategic-merge-patch+json"


def apply_patch(
    content_type: str, obj: dict[str, Any], body: bytes, schema: Schema | None
) -> dict[str, Any]:
    """The patched object; `obj` is unchanged. `schema` drives strategic patches only.

    Raises BadRequestError for a body that cannot be read, InvalidError (422) for a patch that cannot
    be applied, ApiError 415 for a content type not known.
    """
    raise NotImplementedError


def apply_json_patch(obj: dict[str, Any], operations: Any) -> dict[str, Any]:
    raise NotImplementedError


def apply_merge_patch(obj: Any, patch: Any) -> Any:
    raise NotImplementedError


def apply_strategic_patch(
    obj: dict[str, Any], patch: dict[str, Any], schema: Schema
) -> dict[str, Any]:
    raise NotImplementedError
