"""`POST /trace`: one probe, and the rules of this node's netfilter its packets met.

    table podwire-trace (owned by a socket) -> probe -> trace messages -> table gone with its socket

One trace at a time: the source port tells a probe's packets from everybody else's, and the table
has room for one.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Iterable, Iterator

import msgspec
from aiohttp import web

from podwire.errors import BadRequestError, KernelError, UsageError
from podwire.explain.probes import Probe, ProbeRequest, ProbeService
from podwire.explain.probes.trace import (
    FIRST_PORT,
    LAST_PORT,
    TraceRequest,
    TraceResponse,
    parse_trace_request,
)
from podwire.kernel import hooks
from podwire.kernel.nfcounters import NfCounters
from podwire.kernel.nft import Nft
from podwire.kernel.nftrace import TraceHit, TraceMonitor, render_trace_table
from podwire.services import nftables as nf
from podwire.services.walk import CompiledRuleset

_PORTED = {"tcp": "tcp", "http": "tcp", "udp": "udp", "sctp": "sctp"}
_MAX_HITS = 500


class Tracer:
    """Sends probes through `probes` and listens meanwhile."""

    def __init__(self, probes: ProbeService) -> None:
        self._probes = probes
        self._lock = asyncio.Lock()

    async def handle(self, request: web.Request) -> web.Response:
        try:
            wanted: TraceRequest = parse_trace_request(await request.read())
        except UsageError as error:
            raise BadRequestError(str(error)) from error
        async with self._lock:
            response = await self._trace(wanted.probe)
        return web.Response(body=msgspec.json.encode(response), content_type="application/json")

    async def _trace(self, probe: Probe) -> TraceResponse:
        if probe.protocol not in _PORTED or not probe.source_address:
            return await self._plain(probe, f"{probe.protocol} probes are not traced")
        probe = msgspec.structs.replace(probe, source_port=random.randint(FIRST_PORT, LAST_PORT))
        try:
            with TraceMonitor() as monitor, Nft() as nft:
                nft.apply(_table(probe))
                answer = await self._probes.run(ProbeRequest(probes=(probe,)))
                hits = monitor.read()
                lost = monitor.lost
        except KernelError as error:
            return await self._plain(probe, str(error))
        named = tuple(itertools.islice(name_rules(hits), _MAX_HITS))
        return TraceResponse(
            result=answer.results[0], hits=named, lost=lost or len(hits) > _MAX_HITS
        )

    async def _plain(self, probe: Probe, why: str) -> TraceResponse:
        answer = await self._probes.run(ProbeRequest(probes=(probe,)))
        return TraceResponse(result=answer.results[0], untraced=why)


def _table(probe: Probe) -> str:
    version = 6 if ":" in probe.address else 4
    return render_trace_table(
        version,
        probe.source_address,
        probe.source_port,
        probe.address,
        probe.port,
        _PORTED[probe.protocol],
    )


def name_rules(hits: Iterable[TraceHit]) -> Iterator[TraceHit]:
    """The same with the text of the rules podwire wrote; its own marking is left out."""
    texts: dict[tuple[str, str], dict[int, str]] = {}
    with NfCounters() as kernel:
        for hit in hits:
            if hit.table == hooks.TRACE_TABLE:
                continue
            if hit.table != nf.TABLE or not hit.handle:
                yield hit
                continue
            where = hit.family, hit.chain
            if where not in texts:
                texts[where] = _texts(kernel, *where)
            yield msgspec.structs.replace(hit, rule=texts[where].get(hit.handle, ""))


def _texts(kernel: NfCounters, family: str, chain: str) -> dict[int, str]:
    """A chain's rules by handle: the kernel tells their order, and we know what we wrote."""
    version = 6 if family == "ip6" else 4
    try:
        handles = kernel.rule_handles(family, nf.TABLE, chain)
        rules = CompiledRuleset(version, {}, (), (), ()).rules(chain)
    except (KernelError, KeyError, ValueError):
        return {}
    return dict(zip(handles, rules, strict=False)) if len(handles) == len(rules) else {}
