"""The three patches of the API: RFC 6902, RFC 7386 and strategic merge patch.

All three are pure: they return a new object and never change what they were given. A strategic
merge patch is a merge patch that knows the kind: lists of objects with a merge key are merged
element by element, lists of scalars with the merge strategy are merged as sets, and directives
(`$patch`, `$deleteFromPrimitiveList`, `$setElementOrder`, `$retainKeys`) say the rest.
Source: RFC 6902, RFC 7386, apimachinery pkg/util/strategicpatch/patch.go.
"""

from __future__ import annotations

import copy
from typing import Any

import jsonpatch
import jsonpointer
import msgspec

from podwire.apiserver.schema import Schema
from podwire.errors import ApiError, BadRequestError, InvalidError

JSON_PATCH = "application/json-patch+json"
MERGE_PATCH = "application/merge-patch+json"
STRATEGIC_PATCH = "application/strategic-merge-patch+json"

MAX_OPERATIONS = 10_000

_DIRECTIVE = "$patch"
_RETAIN_KEYS = "$retainKeys"
_DELETE_FROM = "$deleteFromPrimitiveList/"
_ELEMENT_ORDER = "$setElementOrder/"

_NOT_APPLICABLE = (
    jsonpatch.JsonPatchException,
    jsonpointer.JsonPointerException,
    TypeError,
    KeyError,
    IndexError,
)

_ANY = Schema(preserve_unknown=True)


def apply_patch(
    content_type: str, obj: dict[str, Any], body: bytes, schema: Schema | None
) -> dict[str, Any]:
    """The patched object; `obj` is unchanged. `schema` drives strategic patches only.

    Raises BadRequestError for a body that cannot be read, InvalidError (422) for a patch that
    cannot be applied, ApiError 415 for a content type this kind does not take.
    """
    media_type = content_type.partition(";")[0].strip().lower()
    strategic = schema is not None and not schema.custom
    if media_type not in (JSON_PATCH, MERGE_PATCH) and not (
        strategic and media_type == STRATEGIC_PATCH
    ):
        raise _unsupported(media_type, strategic)
    try:
        patch = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError) as err:
        raise BadRequestError(f"error decoding patch: {err}") from err
    if media_type == JSON_PATCH:
        return apply_json_patch(obj, patch)
    if not isinstance(patch, dict):
        raise BadRequestError("error decoding patch: a patch of this type must be an object")
    if media_type == MERGE_PATCH or schema is None:
        merged: dict[str, Any] = apply_merge_patch(obj, patch)
        return merged
    # The patch was read just now and is nobody else's.
    return _merge_map(obj, patch, schema)


def _unsupported(media_type: str, strategic: bool) -> ApiError:
    supported = [JSON_PATCH, MERGE_PATCH, *([STRATEGIC_PATCH] if strategic else ())]
    supported.append("application/apply-patch+yaml")
    return ApiError(
        "the body of the request was in an unknown format - accepted media types include: "
        + ", ".join(supported),
        code=415,
        reason="UnsupportedMediaType",
    )


def apply_json_patch(obj: dict[str, Any], operations: Any) -> dict[str, Any]:
    """RFC 6902; a `test` that fails or a path that is not there is an InvalidError."""
    if not isinstance(operations, list):
        raise BadRequestError("error decoding patch: json patch must be a list of operations")
    if len(operations) > MAX_OPERATIONS:
        raise ApiError(
            f"Request entity too large: The allowed maximum operations in a JSON patch is "
            f"{MAX_OPERATIONS}, got {len(operations)}",
            code=413,
            reason="RequestEntityTooLarge",
        )
    try:
        patched = jsonpatch.JsonPatch(operations).apply(obj, in_place=False)
    except jsonpatch.InvalidJsonPatch as err:
        raise BadRequestError(f"error decoding patch: {err}") from err
    except _NOT_APPLICABLE as err:
        raise InvalidError(
            "the server rejected our request due to an error in our request: "
            + _failed_operation(obj, operations)
        ) from err
    if not isinstance(patched, dict):
        raise InvalidError("json patch: the result must be an object")
    return patched


def _failed_operation(obj: dict[str, Any], operations: list[Any]) -> str:
    """Which operation it was, in the words of upstream's library (evanphx/json-patch)."""
    current: Any = copy.deepcopy(obj)
    for operation in operations:
        try:
            current = jsonpatch.JsonPatch([operation]).apply(current, in_place=True)
        except jsonpatch.JsonPatchTestFailed:
            return f"testing value {operation['path']} failed: test failed"
        except _NOT_APPLICABLE:
            path = operation.get("from") or operation["path"]
            return f"{operation['op']} operation does not apply: doc is missing path: {path}"
    return "it does not apply"


def apply_merge_patch(obj: Any, patch: Any) -> Any:
    """RFC 7386: null deletes, objects merge, everything else replaces."""
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    out = dict(obj) if isinstance(obj, dict) else {}
    for key, value in patch.items():
        if value is None:
            out.pop(key, None)
        else:
            out[key] = apply_merge_patch(out.get(key), value)
    return out


def apply_strategic_patch(
    obj: dict[str, Any], patch: dict[str, Any], schema: Schema
) -> dict[str, Any]:
    """A strategic merge patch by the kind's merge keys and strategies.

    Raises InvalidError for a patch that contradicts the schema or itself.
    """
    return _merge_map(obj, copy.deepcopy(patch), schema)


def _invalid(text: str) -> InvalidError:
    return InvalidError(f"invalid strategic merge patch: {text}")


def _child(schema: Schema, key: str) -> Schema:
    return schema.properties.get(key) or schema.additional or _ANY


def _merge_map(
    original: dict[str, Any], patch: dict[str, Any], schema: Schema, *, replace: bool = False
) -> dict[str, Any]:
    """What `original` becomes; it stays as it is, while directives are taken out of `patch`.

    `replace` says that the field's strategy is to replace (an atomic struct).
    """
    original = dict(original)
    directive = patch.pop(_DIRECTIVE, None)
    if directive == "replace":
        return _plain(patch)
    if directive == "delete":
        return {}
    if directive not in (None, "merge"):
        raise _invalid(f"unknown patch type found: {directive}")
    if replace and directive is None:
        return _plain(patch)
    _retain_keys(original, patch)
    for key in list(patch):
        value = patch[key]
        if key.startswith(_DELETE_FROM):
            _delete_from(original, key.removeprefix(_DELETE_FROM), value, patch)
        elif key.startswith(_ELEMENT_ORDER):
            field = key.removeprefix(_ELEMENT_ORDER)
            if field not in patch and isinstance(original.get(field), list):
                current = original[field]
                original[field] = _ordered(current, value, [], current, _child(schema, field))
        elif value is None:
            original.pop(key, None)
        else:
            order = patch.get(_ELEMENT_ORDER + key)
            original[key] = _merge_value(original.get(key), value, _child(schema, key), order)
    return original


def _merge_value(original: Any, patch: Any, schema: Schema, order: Any) -> Any:
    if isinstance(patch, dict):
        before = original if isinstance(original, dict) else {}
        return _merge_map(before, patch, schema, replace="replace" in schema.patch_strategy)
    if isinstance(patch, list):
        current = original if isinstance(original, list) else []
        if "merge" in schema.patch_strategy:
            return _merge_list(current, patch, schema, order)
        return [item for item in map(_replaced, patch) if item is not _GONE]
    return patch


_GONE = object()


def _replaced(item: Any) -> Any:
    """An element of a list that is replaced as a whole: directives in it say nothing more."""
    if isinstance(item, dict):
        return _GONE if set(item) == {_DIRECTIVE} else _without_directives(item)
    return item


def _plain(patch: dict[str, Any]) -> dict[str, Any]:
    out: dict[str, Any] = _without_directives(patch)
    return out


def _without_directives(value: Any) -> Any:
    """What a patch writes where there is nothing to merge with: nulls and directives go."""
    if isinstance(value, dict):
        return {
            key: _without_directives(item)
            for key, item in value.items()
            if item is not None
            and key not in (_DIRECTIVE, _RETAIN_KEYS)
            and not key.startswith((_DELETE_FROM, _ELEMENT_ORDER))
        }
    if isinstance(value, list):
        return [_without_directives(item) for item in value]
    return value


def _retain_keys(original: dict[str, Any], patch: dict[str, Any]) -> None:
    retained = patch.pop(_RETAIN_KEYS, None)
    if retained is None:
        return
    if not isinstance(retained, list):
        raise _invalid("invalid patch format of retainKeys")
    for key, value in patch.items():
        if value is None or key in retained or key.startswith((_DELETE_FROM, _ELEMENT_ORDER)):
            continue
        raise _invalid("patch content doesn't match retainKeys list")
    for key in [key for key in original if key not in retained]:
        del original[key]


def _delete_from(original: dict[str, Any], field: str, gone: Any, patch: dict[str, Any]) -> None:
    if not isinstance(gone, list):
        raise _invalid("invalid patch format of primitive list")
    current = original.get(field)
    if isinstance(current, list):
        original[field] = [item for item in current if item not in gone]
    if isinstance(patch.get(field), list):
        patch[field] = [item for item in patch[field] if item not in gone]


# --- lists -----------------------------------------------------------------------------------


def _merge_list(original: list[Any], patch: list[Any], schema: Schema, order: Any) -> list[Any]:
    key = schema.patch_merge_key
    if not key:
        merged = list(original)
        for item in patch:
            if item not in merged:
                merged.append(item)
        return _ordered(merged, order, patch, original, schema)
    server, original = original, list(original)
    patch, replace = _list_directives(original, patch, key)
    if replace:
        return [_without_directives(item) for item in patch]
    merged = [item for item in original if item is not None]
    for item in patch:
        if not isinstance(item, dict) or key not in item:
            raise _invalid(f"map: {item} does not contain declared merge key: {key}")
        index = _find(merged, key, item[key])
        if index is None:
            merged.append(_merge_map({}, item, schema.items or _ANY))
        else:
            merged[index] = _merge_map(merged[index], item, schema.items or _ANY)
    return _ordered(merged, order, patch, server, schema)


def _find(items: list[Any], key: str, value: Any) -> int | None:
    for index, item in enumerate(items):
        if isinstance(item, dict) and item.get(key) == value:
            return index
    return None


def _list_directives(original: list[Any], patch: list[Any], key: str) -> tuple[list[Any], bool]:
    """Carries out elements that are directives; the rest, and whether the list is replaced."""
    rest: list[Any] = []
    replace = False
    for item in patch:
        directive = item.get(_DIRECTIVE) if isinstance(item, dict) else None
        match directive:
            case None | "merge":
                if directive == "merge":
                    del item[_DIRECTIVE]
                if item or directive is None:
                    rest.append(item)
            case "delete":
                if key not in item:
                    raise _invalid("delete patch type with no merge key defined")
                original[:] = [
                    each
                    for each in original
                    if not (isinstance(each, dict) and each.get(key) == item[key])
                ]
            case "replace":
                replace = True
            case _:
                raise _invalid(f"unknown patch type found: {directive}")
    return rest, replace


def _ordered(
    merged: list[Any], order: Any, patch: list[Any], server: list[Any], schema: Schema
) -> list[Any]:
    """Sorts a merged list by `$setElementOrder`.

    The elements named there stand in that order; those only the server knows keep their place
    among the named ones as far as the server's list (`server`) tells it, and come last otherwise.
    """
    if order is None:
        return merged
    if not isinstance(order, list):
        raise _invalid("invalid patch format of setElementOrder list")
    key = schema.patch_merge_key

    def identity(item: Any) -> Any:
        return item.get(key) if key and isinstance(item, dict) else item

    rank = {identity(item): index for index, item in enumerate(order)}
    if any(identity(item) not in rank for item in patch):
        text = f"The order in patch list:\n{patch}\n doesn't match $setElementOrder list:\n{order}"
        raise _invalid(text)
    place = {identity(item): index for index, item in enumerate(server)}
    named = [item for item in merged if identity(item) in rank]
    named.sort(key=lambda item: rank[identity(item)])
    rest = [item for item in merged if identity(item) not in rank]
    out: list[Any] = []
    for item in named:
        at = place.get(identity(item))
        while rest and at is not None and place.get(identity(rest[0]), at) < at:
            out.append(rest.pop(0))
        out.append(item)
    return out + rest
