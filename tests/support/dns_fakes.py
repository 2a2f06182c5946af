"""Upstreams, zones and messages for tests of the slow path of DNS."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset

from podwire.dns.corefile import parse_corefile
from podwire.dns.packet import Question
from podwire.dns.seam import Client
from podwire.dns.slowpath import SlowPath, World
from podwire.dns.upstream import UpstreamError, matches

POD = Client("10.244.1.7", 40000, False)
SOA = "example.org. {ttl} IN SOA ns.example.org. root.example.org. 1 7200 1800 86400 {minimum}"


def query(
    name: str,
    kind: str = "A",
    *,
    ident: int = 4711,
    edns: int | None = None,
    dnssec: bool = False,
    payload: int = 1232,
) -> bytes:
    message = dns.message.make_query(name, kind)
    if edns is not None or dnssec:
        message.use_edns(0, payload=payload)
        message.want_dnssec(dnssec)
    message.id = ident
    return message.to_wire()


def respond(
    wire: bytes,
    answers: Iterable[str] = (),
    *,
    rcode: str = "NOERROR",
    authority: Iterable[str] = (),
    flags: int = 0,
) -> bytes:
    """A response to `wire`; records as in a zone file."""
    asked = dns.message.from_wire(wire)
    response = dns.message.make_response(asked, recursion_available=True)
    response.set_rcode(dns.rcode.from_text(rcode))
    response.flags |= flags
    for section, texts in ((response.answer, answers), (response.authority, authority)):
        section += [_rrset(text) for text in texts]
    return response.to_wire()


def _rrset(text: str) -> dns.rrset.RRset:
    name, ttl, group, kind, value = text.split(None, 4)
    return dns.rrset.from_text(name, int(ttl), group, kind, value)


def soa(ttl: int = 300, minimum: int = 300) -> str:
    return SOA.format(ttl=ttl, minimum=minimum)


def show(wire: bytes | None) -> list[str]:
    """Answer and authority as zone-file lines, in order."""
    assert wire is not None
    message = dns.message.from_wire(wire, one_rr_per_rrset=True)
    return [rrset.to_text() for rrset in (*message.answer, *message.authority)]


def rcode(wire: bytes | None) -> str:
    assert wire is not None
    return dns.rcode.to_text(dns.message.from_wire(wire, raise_on_truncation=False).rcode())


Answer = Callable[[bytes], bytes | None]


@dataclass
class FakeUpstream:
    """A `Transport`: answers by a function; None, or being down, is a timeout."""

    answer: Answer
    down: bool = False
    refuses: bool = False
    delay_s: float = 0.0
    asked: list[tuple[str, bytes]] = field(default_factory=list)

    async def udp(self, query: bytes, question: Question, timeout: float) -> bytes:
        return await self._ask("udp", query, question, timeout)

    async def tcp(self, query: bytes, question: Question, timeout: float) -> bytes:
        return await self._ask("tcp", query, question, timeout)

    async def _ask(self, proto: str, query: bytes, question: Question, timeout: float) -> bytes:
        self.asked.append((proto, query))
        if self.refuses:
            raise UpstreamError(f"read {proto} fake: connection refused")
        await asyncio.sleep(min(self.delay_s, timeout))
        response = None if self.down else self.answer(query)
        if response is None or self.delay_s > timeout or not matches(response, query, question):
            await asyncio.sleep(timeout - min(self.delay_s, timeout))
            raise UpstreamError(f"read {proto} fake: i/o timeout")
        return response

    def close(self) -> None:
        pass

    def names(self) -> list[str]:
        """Questions so far, health checks left out."""
        found = []
        for _, wire in self.asked:
            asked = dns.message.from_wire(wire).question[0]
            if asked.rdtype != dns.rdatatype.NS:
                found.append(f"{asked.name} {dns.rdatatype.to_text(asked.rdtype)}")
        return found


@dataclass
class FakeZone:
    """`FastAnswers` of one zone: records by name and type, NXDOMAIN for the rest."""

    zone: str
    records: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    silent: bool = False

    def answer(self, query: bytes, client: Client) -> bytes | None:
        asked = dns.message.from_wire(query).question[0]
        name = str(asked.name).lower()
        if self.silent or not name.endswith(self.zone):
            return None
        kind = dns.rdatatype.to_text(asked.rdtype)
        found = self.records.get((name, kind))
        if found is None:
            exists = any(known == name for known, _ in self.records)
            return respond(query, rcode="NOERROR" if exists else "NXDOMAIN", authority=[soa(5, 5)])
        return respond(query, found, flags=dns.flags.AA)

    def owns(self, qname: bytes) -> bool:
        return qname.endswith(_wire(self.zone))


def _wire(name: str) -> bytes:
    import dns.name

    return dns.name.from_text(name).to_wire()


@dataclass
class Bench:
    """A slow path of a Corefile over fake upstreams."""

    corefile: str
    upstreams: dict[str, FakeUpstream] = field(default_factory=dict)
    world: World = field(default_factory=World)
    lines: list[str] = field(default_factory=list)

    def build(self) -> SlowPath:
        from dataclasses import replace

        world = replace(
            self.world,
            transport=lambda address, port: self.upstreams[address],
            write=self.lines.append,
            rng=random.Random(7),
        )
        return SlowPath(parse_corefile(self.corefile).blocks, world)
