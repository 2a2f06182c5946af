"""`why`, verified: the same connection by a real packet, with the rules it met.

    read_world -> explain (model) -> trace on the deciding node (packet) -> judge (pure) -> Why

Where model and packet disagree, the endpoints are asked directly: when they answer no differently,
the cause is theirs (nothing listens there, or a policy); else it is a bug of podwire, and said.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final, Literal

import aiohttp
import msgspec

from podwire.client import Api
from podwire.errors import PodwireError
from podwire.explain.endpoints import OUTSIDE_NAME, Endpoint, Snapshot
from podwire.explain.nodes import ask_nodes
from podwire.explain.probes.trace import TraceRequest, TraceResponse, parse_trace_response
from podwire.explain.probes.wire import (
    Probe,
    ProbeRequest,
    ProbeResult,
    encode,
    parse_response,
)
from podwire.explain.programmed import read_reports
from podwire.explain.reach import probe_source
from podwire.explain.staticlive import read_static
from podwire.explain.why import API_VERSION, Explanation, explain
from podwire.explain.whyworld import (
    Destination,
    Protocol,
    Unanswerable,
    World,
    find_destination,
    find_source,
)
from podwire.kernel.nftrace import TraceHit
from podwire.objects import kinds
from podwire.objects.meta import View
from podwire.policy.report import NodePolicyReport
from podwire.services import nftables as nf

Agreement = Literal["agrees", "endpoint", "unreached", "bug", "untested"]
_FITTING: Final = {
    "allowed": ("allowed",),
    "refused": ("refused", "rejected"),
    "dropped": ("dropped",),
}
_ASKED: Final = 8
# Hooks behind the choice of an endpoint: the model does not name their rules.
_BEHIND: Final = frozenset({"postrouting", "forward", "leaving"})


class Live(View):
    """What packets said. `direct` are the endpoints' own answers, asked where they were needed."""

    verdict: str
    latency_us: int = 0
    detail: str = ""
    rules: tuple[str, ...] = ()
    trace: tuple[str, ...] = ()
    untraced: str = ""
    direct: dict[str, str] = {}


class Why(View):
    """The document `podwire why -o json` prints."""

    model: Explanation
    api_version: str = API_VERSION
    kind: str = "Why"
    allowed: bool = False
    agreement: Agreement = "untested"
    summary: str = ""
    live: Live | None = None


# --- pure ---------------------------------------------------------------------------------------


def judge(model: Explanation, live: Live | None) -> Why:
    """Put model and packet together."""
    if live is None or live.verdict == "error":
        why = f"; not verified: {live.detail}" if live is not None else ""
        allowed = model.expected == "allowed"
        words = f"{model.expected}: {model.reason}" if model.reason else model.expected
        return Why(allowed=allowed, summary=words + why, model=model, live=live)
    allowed = live.verdict == "allowed"
    agreement, summary = _agreement(model, live)
    return Why(allowed=allowed, agreement=agreement, summary=summary, model=model, live=live)


def _agreement(model: Explanation, live: Live) -> tuple[Agreement, str]:
    verdict = live.verdict
    if model.expected == "unknown":
        return "agrees", f"{verdict}: no Service has a part in it"
    if not live.trace and not live.untraced and model.source == OUTSIDE_NAME:
        why = f" ({live.detail})" if live.detail else ""
        return "unreached", f"{verdict}: the packet never came to node {model.node}{why}"
    if verdict in _FITTING[model.expected]:
        if different := _different_rules(model, live):
            return "bug", f"{verdict}, but by other rules than the model says: {different}"
        return "agrees", f"{verdict}: {model.reason}" if model.reason else verdict
    if not all(step.ok for step in model.steps if step.name == "programmed"):
        return "agrees", f"{verdict}: {model.reason}"
    if model.expected == "allowed" and live.direct and "allowed" not in live.direct.values():
        where = ", ".join(f"{endpoint} {found}" for endpoint, found in live.direct.items())
        return "endpoint", f"{verdict}: the endpoints do not answer either ({where})"
    if model.expected == "allowed" and model.protocol == "udp" and verdict == "dropped":
        return "endpoint", "no answer: a UDP endpoint need not give one"
    if model.expected == "allowed" and "allowed" in live.direct.values():
        some = [e for e, found in live.direct.items() if found != "allowed"]
        if some:
            return "endpoint", f"{verdict}: of the endpoints {', '.join(some)} does not answer"
    return "bug", f"the model says {model.expected}, the packet was {verdict}"


def _different_rules(model: Explanation, live: Live) -> str:
    """The first rule where trace and model part; "" when they agree or cannot be compared."""
    if not live.rules or not model.rules or any("affinity" in rule for rule in model.rules):
        return ""  # a remembered client skips the choice
    for told, seen in zip(model.rules, live.rules, strict=False):
        if told != seen:
            return f"{seen!r} instead of {told!r}"
    if len(model.rules) != len(live.rules):
        longer = max(model.rules, live.rules, key=len)
        return f"{longer[min(len(model.rules), len(live.rules))]!r} is in one of them only"
    return ""


def first_packet(hits: Sequence[TraceHit]) -> list[TraceHit]:
    """The steps of the packet that opened the connection; ends of chains are left out."""
    if not hits:
        return []
    return [
        hit
        for hit in hits
        if hit.packet == hits[0].packet and not (hit.kind == "rule" and not hit.handle)
    ]


def choosing_rules(hits: Sequence[TraceHit]) -> tuple[str, ...]:
    """What the trace says in the words of the model: `chain: rule` up to the choice."""
    return tuple(
        f"{hit.chain}: {hit.rule}"
        for hit in hits
        if hit.table == nf.TABLE and hit.rule and hit.chain not in _BEHIND
    )


# --- asking the cluster -------------------------------------------------------------------------


async def read_world(api: Api) -> World:
    """Everything at about one moment; agents are asked last, so that they are not older."""
    (pods, _), (nodes, _), (services, _), (slices, _) = await asyncio.gather(
        api.list(kinds.POD),
        api.list(kinds.NODE),
        api.list(kinds.SERVICE),
        api.list(kinds.ENDPOINT_SLICE),
    )
    ready = [node.metadata.name for node in nodes if node.ready]
    _, static = await read_static(api)
    reports, enforcing = await asyncio.gather(read_reports(api, ready), _enforcing(api, ready))
    return World(Snapshot(pods, nodes), services, slices, reports, static, enforcing)


async def _enforcing(api: Api, nodes: Sequence[str]) -> frozenset[str]:
    reports = await ask_nodes(api, nodes, "policies", NodePolicyReport)
    return frozenset(
        node
        for node, report in reports.items()
        if isinstance(report, NodePolicyReport) and report.enforcing
    )


async def why(
    api: Api,
    source: str,
    destination: str,
    protocol: Protocol | None = None,
    *,
    live: bool = True,
    timeout_s: float = 1.0,
) -> Why:
    """Explain a connection and, with `live`, try it."""
    world = await read_world(api)
    try:
        who = find_source(world, source)
        to = find_destination(world, who, destination, protocol)
    except Unanswerable as refusal:
        model = Explanation(
            source=source, destination=destination, protocol=protocol or "", reason=str(refusal)
        )
        return Why(summary=str(refusal), model=model)
    model = explain(world, who, to)
    if not live:
        return judge(model, None)
    return judge(model, await _try(api, model, who, to, timeout_s))


async def _try(
    api: Api, model: Explanation, source: Endpoint, to: Destination, timeout_s: float
) -> Live:
    version = to.address.version
    probe = Probe(
        address=str(to.address),
        port=to.port,
        protocol=to.protocol,
        source=probe_source(source),
        source_address=next((a for a in source.addresses if (6 if ":" in a else 4) == version), ""),
        timeout_s=timeout_s,
    )
    try:
        answer = await _trace(api, model.node, probe)
    except (PodwireError, aiohttp.ClientError, TimeoutError) as e:
        return Live(verdict="error", detail=f"node {model.node}: {e or type(e).__name__}")
    direct: dict[str, str] = {}
    result = answer.result
    if model.expected == "allowed" and result.verdict != "allowed":
        direct = await _ask_directly(api, model, probe)
    hits = first_packet(answer.hits)
    return Live(
        verdict=result.verdict,
        latency_us=result.latency_us,
        detail=result.detail,
        rules=choosing_rules(hits),
        trace=tuple(map(str, hits)),
        untraced=answer.untraced,
        direct=direct,
    )


async def _trace(api: Api, node: str, probe: Probe) -> TraceResponse:
    path = f"/api/v1/nodes/{node}/proxy/trace"
    body = msgspec.json.encode(TraceRequest(probe=probe))
    timeout_s = 10.0 + 2 * probe.timeout_s
    return parse_trace_response(await api.request("POST", path, body=body, timeout_s=timeout_s))


async def _ask_directly(api: Api, model: Explanation, probe: Probe) -> dict[str, str]:
    endpoints = model.endpoints[:_ASKED]
    probes = tuple(_towards(probe, endpoint) for endpoint in endpoints)
    path = f"/api/v1/nodes/{model.node}/proxy/probe"
    answer = await api.request("POST", path, body=encode(ProbeRequest(probes=probes)))
    results: Sequence[ProbeResult] = parse_response(answer).results
    return {e: r.verdict for e, r in zip(endpoints, results, strict=True)}


def _towards(probe: Probe, endpoint: str) -> Probe:
    address, _, port = endpoint.rpartition(":")
    return msgspec.structs.replace(probe, address=address.strip("[]"), port=int(port))
