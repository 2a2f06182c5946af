"""`loadbalance`: A, AAAA and MX records of an answer in random order, CNAMEs before them.

Most answers are a run of address records of equal length, whose owner is a pointer: those are
shuffled as bytes. Others (owners written out, MX) are decoded and encoded again.
Source: coredns plugin/loadbalance/loadbalance.go.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Final, NamedTuple

import dns.rdatatype
import dns.rrset

from podwire.dns import packet
from podwire.dns.packet import Record
from podwire.dns.request import Handler, Reply, Request, decode, encode

_BALANCED: Final = frozenset({packet.A, packet.AAAA, packet.MX})
_ADDRESSES: Final = frozenset({packet.A, packet.AAAA})


class Run(NamedTuple):
    """Where the records stand; `stride` 0: they cannot be moved as bytes."""

    start: int
    stride: int
    number: int


def find_run(message: bytes, found: Sequence[Record]) -> Run | None:
    """The records of the answer to be shuffled; None where there is nothing to do."""
    answers = [r for r in found if r.section == 1]
    balanced = [r for r in answers if r.rtype in _BALANCED]
    if len(balanced) < 2:
        return None
    first = balanced[0]
    stride = first.end - first.start
    owner = message[first.start : first.start + 2]
    at_the_end = answers[-len(balanced) :] == balanced
    # Nothing can point into such records: they contain no names of their own.
    if at_the_end and all(
        r.rtype in _ADDRESSES
        and r.end - r.start == stride
        and r.data - r.start == 12
        and message[r.start : r.start + 2] == owner
        for r in balanced
    ):
        return Run(first.start, stride, len(balanced))
    return Run(0, 0, len(balanced))


def shuffle(message: bytes, run: Run | None, rng: random.Random) -> bytes:
    if run is None:
        return message
    if not run.stride:
        return _shuffle_decoded(message, rng)
    start, stride, count = run.start, run.stride, run.number
    end = start + stride * count
    chunks = [message[at : at + stride] for at in range(start, end, stride)]
    if count == 2:
        if rng.random() < 0.5:
            chunks.reverse()
    else:
        rng.shuffle(chunks)
    return b"".join((message[:start], *chunks, message[end:]))


def _shuffle_decoded(message: bytes, rng: random.Random) -> bytes:
    decoded = decode(message, "loadbalance")
    balanced = [s for s in decoded.answer if int(s.rdtype) in _BALANCED]
    aliases = [s for s in decoded.answer if s.rdtype == dns.rdatatype.CNAME]
    rest = [s for s in decoded.answer if s not in balanced and s not in aliases]
    addresses: list[dns.rrset.RRset] = [s for s in balanced if s.rdtype != dns.rdatatype.MX]
    exchanges = [s for s in balanced if s.rdtype == dns.rdatatype.MX]
    rng.shuffle(addresses)
    rng.shuffle(exchanges)
    decoded.answer = [*aliases, *rest, *addresses, *exchanges]
    return encode(decoded, "loadbalance")


class LoadBalance:
    def __init__(self, following: Handler, rng: random.Random) -> None:
        self._following = following
        self._rng = rng

    async def __call__(self, request: Request) -> Reply:
        reply = await self._following(request)
        end = request.question.end
        if int.from_bytes(reply.wire[6:8], "big") < 2:
            return reply
        found = packet.records(reply.wire, end)
        run = find_run(reply.wire, found or ())
        return reply._replace(wire=shuffle(reply.wire, run, self._rng))
