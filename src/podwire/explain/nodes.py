"""Nodes asked through the API server, all at once; a node that cannot be asked gives words."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, TypeVar

import aiohttp
import msgspec

from podwire.client import Api
from podwire.errors import NotFoundError, PodwireError
from podwire.objects import kinds
from podwire.objects.core import Node
from podwire.telemetry.waiting import WaitRequest, WaitResponse

T = TypeVar("T")
_FAILURES: Final = (PodwireError, aiohttp.ClientError, TimeoutError, msgspec.MsgspecError)
# What the answer may take beyond what is waited for.
_GRACE_S: Final = 10.0


async def ready_nodes(api: Api) -> list[str]:
    nodes: Sequence[Node] = (await api.list(kinds.NODE))[0]
    return [node.metadata.name for node in nodes if node.ready]


async def ask_node(
    api: Api, node: str, path: str, answer: type[T], query: Mapping[str, str] | None = None
) -> T | str:
    """GET `path` of the node's agent, e.g. `services`. Raises `NotFoundError` where it is not."""
    try:
        body = await api.request("GET", _path(node, path), query=dict(query) if query else None)
        return msgspec.json.decode(body, type=answer)
    except NotFoundError:
        raise
    except _FAILURES as error:
        return _words(error)


async def ask_nodes(
    api: Api,
    nodes: Iterable[str],
    path: str,
    answer: type[T],
    query: Mapping[str, str] | None = None,
) -> dict[str, T | str]:
    names = list(nodes)
    answers = await asyncio.gather(*(_ask_quietly(api, n, path, answer, query) for n in names))
    return dict(zip(names, answers, strict=True))


async def _ask_quietly(
    api: Api, node: str, path: str, answer: type[T], query: Mapping[str, str] | None
) -> T | str:
    try:
        return await ask_node(api, node, path, answer, query)
    except NotFoundError as error:
        return _words(error)


async def wait_nodes(
    api: Api, nodes: Iterable[str], what: str, revisions: Mapping[str, int], timeout_s: float
) -> dict[str, str]:
    """Return when every node has `revisions` of `what` (`services`, `policies`) in its kernel.

    Returns what is missing after `timeout_s`, by `NODE name`; nothing when all is done.
    """
    names = list(nodes)
    if not revisions:
        return {}
    request = msgspec.json.encode(WaitRequest(dict(revisions), timeout_s))
    answers = await asyncio.gather(*(_wait_node(api, n, what, request, timeout_s) for n in names))
    return {
        f"{node} {name}": why
        for node, answer in zip(names, answers, strict=True)
        for name, why in answer.missing.items()
    }


async def _wait_node(
    api: Api, node: str, what: str, request: bytes, timeout_s: float
) -> WaitResponse:
    path = _path(node, f"{what}/wait")
    try:
        answer = await api.request("POST", path, body=request, timeout_s=timeout_s + _GRACE_S)
        return msgspec.json.decode(answer, type=WaitResponse)
    except _FAILURES as error:
        return WaitResponse({"*": _words(error)})


def _path(node: str, rest: str) -> str:
    return f"/api/v1/nodes/{node}/proxy/{rest}"


def _words(error: Exception) -> str:
    return f"cannot be asked: {error or type(error).__name__}"
