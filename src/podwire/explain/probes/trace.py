"""A probe with the rules its first packets met, as it travels between `why` and an agent."""

from __future__ import annotations

import msgspec

from podwire.errors import UsageError
from podwire.explain.probes.wire import Probe, ProbeResult
from podwire.kernel.nftrace import TraceHit

# Outside of the range the kernel gives out (net.ipv4.ip_local_port_range), so it is free.
FIRST_PORT, LAST_PORT = 61000, 65500


class TraceRequest(msgspec.Struct, frozen=True, kw_only=True):
    """`probe` needs a `source_address`; the answering node picks the source port."""

    probe: Probe


class TraceResponse(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`hits` in the order they happened on the answering node; `untraced` says why there are none.

    `lost` tells that the kernel had more to say than was read.
    """

    result: ProbeResult
    hits: tuple[TraceHit, ...] = ()
    lost: bool = False
    untraced: str = ""


def parse_trace_request(body: bytes) -> TraceRequest:
    """Raises `UsageError` for anything that is not a well-formed request."""
    try:
        return msgspec.json.decode(body, type=TraceRequest)
    except msgspec.MsgspecError as e:
        raise UsageError(f"trace request: {e}") from e


def parse_trace_response(body: bytes) -> TraceResponse:
    try:
        return msgspec.json.decode(body, type=TraceResponse)
    except msgspec.MsgspecError as e:
        raise UsageError(f"trace response: {e}; do the agent and the client differ?") from e
