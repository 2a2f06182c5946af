"""What our zones are asked and say: a query's question and OPT, a response that fits.

    query bytes -> parse_query -> Query;  Query, Reply -> encode -> Encoded

`packet` has what any message is made of, and what forwarding does with other servers'; here is what
only who has records of its own needs: strict reading, and writing with dnspython's names and record
data, which brings compression, cut to what the client can take (RFC 1035, 2181 9, 6891).
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import dns.name
import dns.rdatatype

from podwire.dns import packet, rdatas
from podwire.dns.names import Labels, name_of, parse_wire
from podwire.dns.packet import AA, CD, HEADER, OPCODE, QR, RA, RD, TC, Edns
from podwire.dns.rdatas import Record

_TYPE_CLASS = struct.Struct("!HH")
_RR = struct.Struct("!HHIH")  # type, class, TTL, length: after the owner
CLASS_IN: Final = packet.IN
MIN_UDP, MAX_TCP = 512, 65535


class MalformedError(Exception):
    """The bytes are no query this server can read; never leaves the room."""


@dataclass(frozen=True, slots=True)
class Query:
    """What a response depends on: `raw_name` as asked; `exact` if nothing follows what was read."""

    flags: int
    raw_name: bytes
    rtype: int
    rclass: int
    edns: Edns | None
    exact: bool

    @property
    def name(self) -> bytes:
        return self.raw_name.lower()

    @property
    def labels(self) -> Labels:
        return parse_wire(self.name)

    @property
    def question(self) -> bytes:
        return self.raw_name + _TYPE_CLASS.pack(self.rtype, self.rclass)

    def limit(self, tcp: bool, max_udp: int) -> int:
        """The largest response the client can take by this transport."""
        if tcp:
            return MAX_TCP
        advertised = self.edns.size if self.edns else MIN_UDP
        return max(MIN_UDP, min(advertised, max_udp))


def parse_query(data: bytes) -> Query:
    """The question and OPT of a message with one question.

    Limits on the other sections are miekg/dns's (acceptfunc.go): a NOTIFY or IXFR may bring one
    record each, an additional section two.
    """
    if len(data) < HEADER.size:
        raise MalformedError
    _, flags, _, answers, authorities, additional = HEADER.unpack_from(data)
    question = packet.parse_question(data)
    if question is None or answers > 1 or authorities > 1 or additional > 2:
        raise MalformedError
    raw_name, end, edns = data[HEADER.size : question.end - _TYPE_CLASS.size], question.end, None
    if answers or authorities or additional:
        found = packet.records(data, end)
        if found is None:
            raise MalformedError
        end, edns = found[-1].end, _only_opt(data, found)
    return Query(flags, raw_name, question.qtype, question.qclass, edns, end == len(data))


def _only_opt(data: bytes, found: Sequence[packet.Record]) -> Edns | None:
    """At most one OPT record, additional, of the root, and whole (RFC 6891 6.1)."""
    opts = [record for record in found if record.rtype == packet.OPT]
    if not opts:
        return None
    opt = opts[0]
    if len(opts) > 1 or opt.section != packet.ADDITIONAL or data[opt.start] != 0:
        raise MalformedError
    edns = packet.edns_of(data, opt)
    if not packet.whole_options(edns.options):
        raise MalformedError
    return edns


def response_flags(query_flags: int, rcode: int, *, authoritative: bool) -> int:
    """QR and RA, RD and CD as asked; AD is never claimed."""
    flags = QR | RA | (query_flags & (OPCODE | RD | CD)) | (rcode & 0xF)
    return flags | AA if authoritative else flags


def opt_record(edns: Edns, size: int, rcode: int = 0) -> bytes:
    """Our OPT: what we can take, and DO as asked (RFC 3225 3)."""
    return packet.opt_record(size, edns.dnssec, extended=rcode >> 4)


def refusal(data: bytes, rcode: int, query: Query | None, max_udp: int) -> bytes:
    """A response without records: the question where it could be read, the OPT where one came."""
    identifier, flags = struct.unpack_from("!HH", data)
    question = query.question if query else b""
    opt = opt_record(query.edns, max_udp, rcode) if query and query.edns else b""
    head = HEADER.pack(
        identifier,
        response_flags(flags, rcode, authoritative=False),
        1 if query else 0,
        0,
        0,
        1 if opt else 0,
    )
    return head + question + opt


@dataclass(frozen=True, slots=True)
class Rotating:
    """Where equal-sized address records stand in a response, so that they can change places."""

    start: int
    end: int
    size: int


@dataclass(frozen=True, slots=True)
class Encoded:
    """A response after its identifier (bytes 2 onward); offsets of `rotating` are within it.

    `wide`: the address records before some were cut, where some were. `whole`: nothing was.
    """

    tail: bytes
    rotating: Rotating | None = None
    wide: bytes = b""
    whole: bool = True


@dataclass(frozen=True, slots=True)
class Reply:
    """What a response says; `truncated` where it is known to be incomplete whatever its size."""

    rcode: int
    answers: Sequence[Record] = ()
    authority: Sequence[Record] = ()
    additional: Sequence[Record] = ()
    authoritative: bool = True
    truncated: bool = False


class _Writer:
    """One message in the making: names are compressed against all that stands before."""

    def __init__(self, query: Query, limit: int) -> None:
        self.file = io.BytesIO()
        self._compress: dict[dns.name.Name, int] = {}
        self._limit = limit
        self.file.write(bytes(HEADER.size))
        # The table gets the question's suffixes; the bytes stay as asked, in their case.
        name_of(parse_wire(query.raw_name)).to_wire(self.file, self._compress)
        self.file.write(_TYPE_CLASS.pack(query.rtype, query.rclass))

    def fits(self, record: Record) -> bool:
        """Write the record, or nothing if the message would grow past its limit."""
        file, start = self.file, self.file.tell()
        known = len(self._compress)
        record.name.to_wire(file, self._compress)
        rdata = record.rdata
        file.write(_RR.pack(rdata.rdtype, rdata.rdclass, record.ttl_s, 0))
        data_at = file.tell()
        rdata.to_wire(file, self._compress if rdatas.compressible(rdata) else None)
        end = file.tell()
        if end > self._limit:
            file.seek(start)
            file.truncate()
            for name in list(self._compress)[known:]:
                del self._compress[name]
            return False
        file.seek(data_at - 2)
        file.write((end - data_at).to_bytes(2, "big"))
        file.seek(end)
        return True

    def section(self, records: Iterable[Record]) -> int:
        """How many of the records found room, from the first on."""
        count = 0
        for record in records:
            if not self.fits(record):
                break
            count += 1
        return count

    def addresses(self, records: Sequence[Record]) -> tuple[int, bytes]:
        """Records of one name, type and TTL: only the address differs, so all behind the first are
        laid side by side. How many found room; and where not all did, all of them."""
        start = self.file.tell()
        if not records or not self.fits(records[0]):
            return 0, b""
        size = self.file.tell() - start
        data = [rdatas.packed_address(record.rdata) for record in records]
        # The owner is the question or an alias's target: mostly a pointer, which is right in all.
        head = self.file.getvalue()[start : start + size - len(data[0])]
        more = min(len(data) - 1, (self._limit - self.file.tell()) // size)
        self.file.write(b"".join([head + each for each in data[1 : 1 + more]]))
        everything = b"" if more == len(data) - 1 else b"".join([head + each for each in data])
        return 1 + more, everything


def encode(query: Query, reply: Reply, limit: int, own_size: int) -> Encoded:
    """The response, cut to `limit`: the additional section first, then answers, with TC set."""
    opt = opt_record(query.edns, own_size, reply.rcode) if query.edns else b""
    writer = _Writer(query, limit - len(opt))
    first, rest = _split_addresses(reply.answers)
    answered = writer.section(first)
    start = writer.file.tell()
    placed, wide = writer.addresses(rest) if answered == len(first) else (0, b"")
    end = writer.file.tell()
    answered += placed
    cut = answered < len(reply.answers)
    authority = 0 if cut else writer.section(reply.authority)
    cut = cut or authority < len(reply.authority)
    additional = 0 if cut else writer.section(reply.additional)
    whole = not cut and additional == len(reply.additional)
    flags = response_flags(query.flags, reply.rcode, authoritative=reply.authoritative)
    if cut or reply.truncated:
        flags |= TC
    counts = struct.pack("!HHHHH", flags, 1, answered, authority, additional + bool(opt))
    body = writer.file.getvalue()
    rotating = None
    if placed and len(rest) > 1:
        rotating = Rotating(start - 2, end - 2, (end - start) // placed)
    return Encoded(counts + body[HEADER.size :] + opt, rotating, wide, whole)


def encode_negative(query: Query, rcode: int, soa: bytes, own_size: int) -> Encoded:
    """A response with nothing but the zone's SOA, already encoded for this length of question."""
    opt = opt_record(query.edns, own_size, rcode) if query.edns else b""
    flags = response_flags(query.flags, rcode, authoritative=True)
    counts = struct.pack("!HHHHH", flags, 1, 0, 1, 1 if opt else 0)
    return Encoded(counts + query.question + soa + opt)


def _split_addresses(
    records: Sequence[Record],
) -> tuple[Sequence[Record], Sequence[Record]]:
    """The records before, and those from where on all are addresses of one name, family and TTL."""
    at = len(records)
    if not at or records[-1].rdata.rdtype not in (dns.rdatatype.A, dns.rdatatype.AAAA):
        return records, ()
    last = records[-1]
    while at and _alike(records[at - 1], last):
        at -= 1
    return records[:at], records[at:]


def _alike(one: Record, other: Record) -> bool:
    return (
        one.rdata.rdtype == other.rdata.rdtype
        and one.ttl_s == other.ttl_s
        and one.name == other.name
    )
