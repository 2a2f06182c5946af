"""Which connection tracking entries lead somewhere no new connection would go. Pure.

An entry keeps its translation for as long as packets come. TCP notices that its peer is gone; a
UDP sender does not, and goes on for ever to an endpoint that left, or past a Service that came
after the first packet (k/k#19029, #48370, #59368, #126130, #139628, #141371). So the whole table is
held against what should be, whatever the change was: nothing has to be remembered, nothing missed.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator
from typing import NamedTuple

from podwire.kernel.flows import Flow
from podwire.services.evaluate import Domain, within
from podwire.services.model import Frontend, FrontendKey


class Stale(NamedTuple):
    """`reason` is one of: endpoint gone, service gone, untranslated."""

    flow: Flow
    key: FrontendKey
    reason: str


def stale_flows(
    flows: Iterable[Flow],
    winner: Callable[[FrontendKey], Frontend | None],
    domain: Domain,
    gone: Container[FrontendKey] = (),
) -> Iterator[Stale]:
    """Flows at an address of Services that do not end at an endpoint which serves.

    Traffic policies, topology and endings choose for new connections only, over UDP as over TCP
    (k/k pkg/proxy/conntrack/cleanup.go).

    `gone` are keys that were frontends until now: at a node's own address nothing else tells a
    flow of ours from somebody else's translation.
    """
    known: dict[FrontendKey, frozenset[tuple[bytes, int]]] = {}
    for flow in flows:
        orig, reply = flow.orig, flow.reply
        key = FrontendKey(orig.dst, orig.proto, orig.dport)
        frontend = winner(key)
        if frontend is not None:
            # A thousand endpoints may have a hundred thousand flows.
            ends = known.get(key)
            if ends is None:
                ends = known[key] = _ends(frontend)
            if (reply.src, reply.sport) not in ends:
                reason = "endpoint gone" if flow.dst_nat else "untranslated"
                yield Stale(flow, key, reason)
        elif flow.dst_nat and (key in gone or within(orig.dst, domain.service_ranges)):
            yield Stale(flow, key, "service gone")


def _ends(frontend: Frontend) -> frozenset[tuple[bytes, int]]:
    """Where its flows may end: addresses and ports of all that serve."""
    every = (frontend.backends, frontend.internal or (), frontend.lasting)
    return frozenset(backend[:2] for backends in every for backend in backends)
