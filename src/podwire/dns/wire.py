"""Messages as bytes: reading a query's question, writing a response that fits.

dnspython encodes names and record data, with compression; here are only the parts every query
passes through: the header, where the question ends, what the OPT record says, and cutting a
response to what the client can take (RFC 1035, 2181 9, 6891).
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import dns.name
import dns.rdatatype

from podwire.dns import rdatas
from podwire.dns.names import Labels, name_of, parse_wire
from podwire.dns.rdatas import Record

HEADER: Final = struct.Struct("!HHHHHH")
_TYPE_CLASS = struct.Struct("!HH")
_RR = struct.Struct("!HHIH")  # type, class, TTL, length: after the owner
_OPT = 41
QR, AA, TC, RD, RA, CD = 0x8000, 0x0400, 0x0200, 0x0100, 0x0080, 0x0010
OPCODE_MASK = 0x7800
DO = 0x8000
CLASS_IN = 1
MIN_UDP, MAX_TCP = 512, 65535
_OPT_LENGTH = 11


class MalformedError(Exception):
    """The bytes are no query this server can read; never leaves the room."""


@dataclass(frozen=True, slots=True)
class Edns:
    """The OPT record of a query: RFC 6891."""

    size: int
    version: int
    dnssec_ok: bool
    options: bool


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
    _, flags, questions, answers, authorities, additional = HEADER.unpack_from(data)
    if questions != 1 or answers > 1 or authorities > 1 or additional > 2:
        raise MalformedError
    end = _name_end(data, 12, pointers=False)
    if end + 4 > len(data):
        raise MalformedError
    rtype, rclass = _TYPE_CLASS.unpack_from(data, end)
    raw_name = data[12:end]
    at, edns = end + 4, None
    for number in range(answers + authorities + additional):
        at, found = _skip_record(data, at)
        if found is not None:
            if edns is not None or number < answers + authorities:
                raise MalformedError  # RFC 6891 6.1.1
            edns = found
    return Query(flags, raw_name, rtype, rclass, edns, at == len(data))


def _name_end(data: bytes, at: int, *, pointers: bool) -> int:
    """Where a name ends. A pointer ends it and is never followed: there is nothing to loop in."""
    start, size = at, len(data)
    while at < size:
        length = data[at]
        if length == 0:
            if at - start > 254:
                break
            return at + 1
        if length >= 0xC0 and pointers:
            return at + 2
        if length > 63:
            break
        at += 1 + length
    raise MalformedError


def _skip_record(data: bytes, at: int) -> tuple[int, Edns | None]:
    owner, at = at, _name_end(data, at, pointers=True)
    if at + _RR.size > len(data):
        raise MalformedError
    rtype, rclass, ttl, length = _RR.unpack_from(data, at)
    at += _RR.size
    end = at + length
    if end > len(data):
        raise MalformedError
    if rtype != _OPT:
        return end, None
    if data[owner] != 0 or not _options_fit(data, at, end):
        raise MalformedError
    return end, Edns(rclass, ttl >> 16 & 0xFF, bool(ttl & DO), bool(length))


def _options_fit(data: bytes, at: int, end: int) -> bool:
    while at < end:
        if at + 4 > end:
            return False
        at += 4 + int.from_bytes(data[at + 2 : at + 4], "big")
    return at == end


def response_flags(query_flags: int, rcode: int, *, authoritative: bool) -> int:
    """QR and RA, RD and CD as asked; AD is never claimed."""
    flags = QR | RA | (query_flags & (OPCODE_MASK | RD | CD)) | (rcode & 0xF)
    return flags | AA if authoritative else flags


def opt_record(edns: Edns, size: int, rcode: int = 0) -> bytes:
    """Our OPT: what we can take, and DO as asked (RFC 3225 3)."""
    ttl = (rcode >> 4) << 24 | (DO if edns.dnssec_ok else 0)
    return b"\0" + _RR.pack(_OPT, size, ttl, 0)


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

    `wide`: the address records before some were cut, where some were.
    """

    tail: bytes
    rotating: Rotating | None = None
    wide: bytes = b""


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


def encode(query: Query, reply: Reply, limit: int, own_size: int) -> Encoded:
    """The response, cut to `limit`: the additional section first, then answers, with TC set."""
    opt = opt_record(query.edns, own_size, reply.rcode) if query.edns else b""
    writer = _Writer(query, limit - len(opt))
    first, rest = _split_addresses(reply.answers)
    answered = writer.section(first)
    start = writer.file.tell()
    placed = writer.section(rest) if answered == len(first) else 0
    end = writer.file.tell()
    answered += placed
    cut = answered < len(reply.answers)
    authority = 0 if cut else writer.section(reply.authority)
    cut = cut or authority < len(reply.authority)
    additional = 0 if cut else writer.section(reply.additional)
    flags = response_flags(query.flags, reply.rcode, authoritative=reply.authoritative)
    if cut or reply.truncated:
        flags |= TC
    counts = struct.pack("!HHHHH", flags, 1, answered, authority, additional + bool(opt))
    body = writer.file.getvalue()
    rotating, wide = None, b""
    if placed and len(rest) > 1:
        size = (end - start) // placed
        rotating = Rotating(start - 2, end - 2, size)
        if placed < len(rest):
            owner = body[start : start + size - len(_rdata(rest[0])) - _RR.size]
            wide = b"".join(owner + _plain(record) for record in rest)
    return Encoded(counts + body[HEADER.size :] + opt, rotating, wide)


def encode_negative(query: Query, rcode: int, soa: bytes, own_size: int) -> Encoded:
    """A response with nothing but the zone's SOA, already encoded for this length of question."""
    opt = opt_record(query.edns, own_size, rcode) if query.edns else b""
    flags = response_flags(query.flags, rcode, authoritative=True)
    counts = struct.pack("!HHHHH", flags, 1, 0, 1, 1 if opt else 0)
    return Encoded(counts + query.question + soa + opt)


def _split_addresses(
    records: Sequence[Record],
) -> tuple[Sequence[Record], Sequence[Record]]:
    """The records before, and those from where on all are addresses of one name and family."""
    at = len(records)
    if not at or records[-1].rdata.rdtype not in (dns.rdatatype.A, dns.rdatatype.AAAA):
        return records, ()
    last = records[-1]
    while at and records[at - 1].rdata.rdtype == last.rdata.rdtype:
        if records[at - 1].name != last.name:
            break
        at -= 1
    return records[:at], records[at:]


def _rdata(record: Record) -> bytes:
    data = record.rdata.to_wire()
    assert data is not None
    return data


def _plain(record: Record) -> bytes:
    data = _rdata(record)
    return _RR.pack(record.rdata.rdtype, CLASS_IN, record.ttl_s, len(data)) + data
