"""`reach --live`: read the cluster, have every node probe, put the answers together."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Final, TypeAlias

import aiohttp
import msgspec

from podwire.client import Api
from podwire.errors import PodwireError, UsageError
from podwire.explain.endpoints import Snapshot
from podwire.explain.probes.wire import (
    Probe,
    ProbeRequest,
    ProbeResponse,
    ProbeResult,
    encode,
    parse_response,
)
from podwire.explain.reach import (
    EVERYTHING,
    Reachability,
    ReachOptions,
    ReachPlan,
    merge,
    plan_reach,
)
from podwire.objects import kinds

Progress: TypeAlias = Callable[[int, int], None]
"""Called with (answered, total) after every batch."""

# About 0.3 s of an engine's work and 300 kB of JSON: progress is seen, requests stay small.
BATCH: Final = 4000


async def read_snapshot(api: Api) -> Snapshot:
    """Pods, nodes and namespaces, listed at the same time."""
    (pods, _), (nodes, _), (namespaces, _) = await asyncio.gather(
        api.list(kinds.POD), api.list(kinds.NODE), api.list(kinds.NAMESPACE)
    )
    return Snapshot(pods, nodes, namespaces)


async def reach_live(
    api: Api, options: ReachOptions = EVERYTHING, progress: Progress | None = None
) -> Reachability:
    """Probe every pair from its source's node, all nodes at once.

    A node that cannot be asked makes its own answers errors, not the whole. Raises `UsageError`
    for selectors that match nothing, `ApiError` when the cluster cannot be read.
    """
    plan = plan_reach(await read_snapshot(api), options)
    return await probe_plan(api, plan, progress)


async def probe_plan(api: Api, plan: ReachPlan, progress: Progress | None = None) -> Reachability:
    """Carry out a plan made by `plan_reach`."""
    started = time.monotonic()
    results: dict[int, ProbeResult] = {}
    by_node = plan.probes_by_node()
    if anywhere := by_node.pop("", None):
        node = _some_node(plan, by_node)
        by_node[node] = [*by_node.get(node, []), *anywhere]

    async def probe_node(node: str, numbered: Sequence[tuple[int, Probe]]) -> None:
        async for indices, answers in _batches(api, node, numbered):
            results.update(zip(indices, answers, strict=True))
            if progress is not None:
                progress(len(results), len(plan.questions))

    await asyncio.gather(*(probe_node(node, numbered) for node, numbered in by_node.items()))
    return merge(plan, results, time.monotonic() - started)


def _some_node(plan: ReachPlan, by_node: dict[str, list[tuple[int, Probe]]]) -> str:
    """A node to send the outside host's probes from: every agent of a lab can enter it."""
    nodes = [*by_node, *(e.node for e in plan.destinations if e.node)]
    if not nodes:
        raise UsageError("reach: no node to ask from; add a node or a destination in the cluster")
    return nodes[0]


async def _batches(
    api: Api, node: str, numbered: Sequence[tuple[int, Probe]]
) -> AsyncIterator[tuple[list[int], Sequence[ProbeResult]]]:
    for start in range(0, len(numbered), BATCH):
        batch = numbered[start : start + BATCH]
        yield [i for i, _ in batch], await _ask(api, node, [probe for _, probe in batch])


async def _ask(api: Api, node: str, probes: Sequence[Probe]) -> Sequence[ProbeResult]:
    path = f"/api/v1/nodes/{node}/proxy/probe"
    try:
        body = await api.request(
            "POST",
            path,
            body=encode(ProbeRequest(probes=tuple(probes))),
            timeout_s=_longest_s(probes),
        )
        response: ProbeResponse = parse_response(body)
    except (PodwireError, aiohttp.ClientError, TimeoutError, msgspec.MsgspecError) as e:
        why = f"node {node}: cannot be asked: {e or type(e).__name__}"
        return [ProbeResult(verdict="error", tries=0, detail=why)] * len(probes)
    if len(response.results) != len(probes):
        why = f"node {node}: answered {len(response.results)} of {len(probes)} probes"
        return [ProbeResult(verdict="error", tries=0, detail=why)] * len(probes)
    return response.results


def _longest_s(probes: Sequence[Probe]) -> float:
    """The time a batch takes when everything is dropped, and as much again for a busy node.

    Drops to one destination queue behind its limit of probes under way, 64 by default.
    """
    slowest = max((probe.timeout_s for probe in probes), default=0.0)
    return 30.0 + 2 * slowest * (1 + len(probes) // 64)
