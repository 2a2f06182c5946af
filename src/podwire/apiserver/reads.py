"""GET and LIST: committed state only, pages consistent at one resourceVersion.

Source: apiserver pkg/storage/cacher, KEP-365; semantics table in the API concepts document.
"""

from __future__ import annotations

import base64
import bisect
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from podwire.apiserver.context import Context
from podwire.apiserver.negotiation import Format
from podwire.apiserver.representation import many, one
from podwire.apiserver.request import Request, not_found
from podwire.apiserver.selection import parse_selection
from podwire.apiserver.store import Record, Store, encode
from podwire.errors import ApiError, BadRequestError, Cause, ExpiredError, InvalidError
from podwire.objects.meta import JsonObject, Key

MATCHES = ("", "Exact", "NotOlderThan")


def get(ctx: Context, request: Request, form: Format) -> bytes:
    target = request.target
    check_not_future(ctx.store, request.query.get("resourceVersion", ""))
    table = ctx.table(target.resource)
    record = table.records.get(Key(target.namespace, target.name))
    if record is None:
        raise not_found(target.resource, target.name)
    return one(target.resource, record, form)


class ExpiredPageError(ExpiredError):
    """410 whose Status carries a fresh continue token in its metadata."""

    def __init__(self, message: str, token: str) -> None:
        super().__init__(message)
        self.token = token

    def status(self) -> JsonObject:
        return {**super().status(), "metadata": {"continue": self.token}}


class _Token(msgspec.Struct):
    """A continue token: what the client got last, and at which version."""

    v: str
    rv: int
    start: str


def _encode_token(rv: int, key: Key) -> str:
    token = _Token("meta.k8s.io/v1", rv, f"{key.namespace}/{key.name}\0")
    return base64.urlsafe_b64encode(encode(token)).decode().rstrip("=")


def _decode_token(text: str) -> tuple[int, Key]:
    try:
        token = msgspec.json.decode(
            base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)), type=_Token
        )
        namespace, _, name = token.start.removesuffix("\0").partition("/")
    except (ValueError, msgspec.MsgspecError) as error:
        raise BadRequestError("continue key is not valid: " + str(error)) from error
    return token.rv, Key(namespace, name)


@dataclass(frozen=True)
class _Page:
    """Where a list starts, how much of it is wanted and as of which version."""

    rv: int
    after: Key | None
    limit: int


def parse_resource_version(text: str) -> int:
    """0 for "" and "0". Raises BadRequestError."""
    if not text:
        return 0
    if not text.isdigit():
        raise BadRequestError(
            f'Invalid value: "{text}": strconv.ParseUint: parsing "{text}": invalid syntax'
        )
    return int(text)


def check_not_future(store: Store, text: str) -> None:
    """Raises ApiError 504 with cause ResourceVersionTooLarge for a version not reached yet."""
    rv = parse_resource_version(text)
    if rv > store.rv:
        raise ApiError(
            f"Too large resource version: {rv}, current: {store.rv}",
            code=504,
            reason="Timeout",
            causes=(Cause("ResourceVersionTooLarge", "Too large resource version"),),
            retry_after_s=1,
        )


def _page(store: Store, query: Mapping[str, str]) -> _Page:
    text, match = query.get("resourceVersion", ""), query.get("resourceVersionMatch", "")
    token = query.get("continue", "")
    _check_match(text, match, token)
    limit_text = query.get("limit", "") or "0"
    if not limit_text.isdigit():
        raise BadRequestError(f'Invalid value: "{limit_text}": limit must be a whole number')
    limit = int(limit_text)
    if token:
        if text not in ("", "0"):
            raise BadRequestError("specifying resource version is not allowed when using continue")
        rv, after = _decode_token(token)
        return _Page(rv if rv > 0 else store.rv, after, limit)
    check_not_future(store, text)
    exact = match == "Exact" or (limit > 0 and text not in ("", "0") and not match)
    return _Page(parse_resource_version(text) if exact else store.rv, None, limit)


def _check_match(text: str, match: str, token: str) -> None:
    problem = ""
    if match not in MATCHES:
        problem = f'Unsupported value: "{match}": supported values: "Exact", "NotOlderThan"'
    elif match and token:
        problem = "Forbidden: resourceVersionMatch is forbidden when continue is provided"
    elif match and not text:
        problem = "Forbidden: resourceVersionMatch is forbidden unless resourceVersion is provided"
    elif match == "Exact" and text == "0":
        problem = 'Forbidden: resourceVersionMatch "exact" is forbidden for resourceVersion "0"'
    if problem:
        raise InvalidError(
            f'ListOptions.meta.k8s.io "" is invalid: resourceVersionMatch: {problem}',
            causes=(Cause("FieldValueForbidden", problem, "resourceVersionMatch"),),
        )


def list_(ctx: Context, request: Request, form: Format) -> bytes:
    target, query = request.target, request.query
    selection = parse_selection(target, query)
    table = ctx.table(target.resource)
    page = _page(ctx.store, query)
    if page.rv == ctx.store.rv:
        records = selection.current(table)
    else:
        try:
            records = selection.pick(table.snapshot_at(page.rv, selection.namespace))
        except ExpiredError as error:
            raise _expired_page(ctx.store, page, error) from error
    if page.after is not None:
        records = records[bisect.bisect_right(records, page.after, key=_key) :]
    meta: JsonObject = {"resourceVersion": str(page.rv)}
    if page.limit and len(records) > page.limit:
        rest = len(records) - page.limit
        records = records[: page.limit]
        meta["continue"] = _encode_token(page.rv, records[-1].key)
        if selection.labels.empty and selection.fields.empty:
            meta["remainingItemCount"] = rest
    return many(target.resource, records, form, meta)


def _key(record: Record) -> Key:
    return record.key


def _expired_page(store: Store, page: _Page, error: ExpiredError) -> ExpiredError:
    """410 with a token that goes on at the same place, at the newest version instead."""
    if page.after is None:
        return error
    return ExpiredPageError(
        "The provided continue parameter is too old to display a consistent list result. You can "
        "start a new list without the continue parameter, or use the continue token in this "
        "response to retrieve the remainder of the results. Continuing with the provided token "
        "results in an inconsistent list - objects that were created, modified, or deleted between "
        "the time the first chunk was returned and now may show up in the list.",
        _encode_token(-1, page.after),
    )
