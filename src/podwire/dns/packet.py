"""DNS messages as bytes, where parsing them whole would cost more than the work itself. Pure.

What a message is made of, for the whole room, and what forwarding and caching do with others'.
Queries to our own zones and what these answer are read and written in `wire`, with this.

    0 id 2 flags 4 qdcount 6 ancount 8 nscount 10 arcount 12 question, answers, authority, more

The question, the OPT record, where records and their TTLs are. Names are never decompressed, so a
loop of pointers costs nothing; every offset is checked, and what does not add up is `None`.
Everything else is dnspython's.
Source: RFC 1035 section 4.1, RFC 6891.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

HEADER: Final = struct.Struct(">HHHHHH")
_RECORD: Final = struct.Struct(">HHIH")
_PAIR: Final = struct.Struct(">HH")

QR, AA, TC, RD, RA, AD, CD = 0x8000, 0x0400, 0x0200, 0x0100, 0x0080, 0x0020, 0x0010
OPCODE: Final = 0x7800

NOERROR, FORMERR, SERVFAIL, NXDOMAIN, NOTIMP, REFUSED, BADVERS = 0, 1, 2, 3, 4, 5, 16

A, NS, CNAME, SOA, PTR, MX, AAAA, SRV, OPT, HINFO = 1, 2, 5, 6, 12, 15, 28, 33, 41, 13
AXFR, IXFR = 252, 251
IN = 1

_CLIENT_SUBNET, _COOKIE, _KEEPALIVE, _PADDING = 8, 10, 11, 12
# They are between two neighbours (RFC 7873, 7828, 7830): not to be passed on.
_HOP_BY_HOP: Final = frozenset({_COOKIE, _KEEPALIVE, _PADDING})


# What never fragments (DNS flag day 2020, RFC 9715): what we send at most over UDP and ask for.
OWN_SIZE: Final = 1232


class Question(NamedTuple):
    """`name` is wire form in lower case; `end` is where the question ends in the message."""

    name: bytes
    qtype: int
    qclass: int
    end: int


class Edns(NamedTuple):
    """`start` and `end` frame the OPT record; `options` is its data."""

    size: int
    version: int
    dnssec: bool
    options: bytes
    start: int
    end: int

    @property
    def subnet(self) -> bool:
        """Whether the answer may depend on an address in the query (RFC 7871)."""
        return any(code == _CLIENT_SUBNET for code, _ in split_options(self.options))


ADDITIONAL: Final = 3


class Record(NamedTuple):
    """Offsets in the message; `section` is 1 answer, 2 authority, 3 additional."""

    section: int
    start: int
    rtype: int
    rclass: int
    ttl: int
    ttl_at: int
    data: int
    end: int


def parse_question(message: bytes) -> Question | None:
    """The question of a message that has exactly one; None otherwise."""
    if len(message) < 17 or message[4:6] != b"\0\1":
        return None
    at = 12
    end = len(message)
    while True:
        length = message[at]
        at += 1
        if not length:
            break
        # The question is the first name: it has nothing to point to.
        if length > 63:
            return None
        at += length
        if at >= end:
            return None
    if at + 4 > end or at - 12 > 255:
        return None
    qtype, qclass = _PAIR.unpack_from(message, at)
    return Question(message[12:at].lower(), qtype, qclass, at + 4)


def skip_name(message: bytes, at: int) -> int | None:
    """Where the name at this offset ends; a pointer has to point before itself."""
    start, end = at, len(message)
    while at < end:
        length = message[at]
        if not length:
            return at + 1 if at + 1 - start <= 255 else None
        if length >= 0xC0:
            if at + 2 > end or ((length & 0x3F) << 8 | message[at + 1]) >= at:
                return None
            return at + 2
        if length > 63:
            return None
        at += 1 + length
    return None


def records(message: bytes, at: int) -> list[Record] | None:
    """All records behind the question, which ends at `at`; None if they do not add up."""
    counts = HEADER.unpack_from(message)[3:]
    found: list[Record] = []
    for section, count in enumerate(counts, 1):
        for _ in range(count):
            start = at
            name_end = skip_name(message, at)
            if name_end is None or name_end + 10 > len(message):
                return None
            rtype, rclass, ttl, length = _RECORD.unpack_from(message, name_end)
            at = name_end + 10 + length
            if at > len(message):
                return None
            found.append(
                Record(section, start, rtype, rclass, ttl, name_end + 4, name_end + 10, at)
            )
    return found


def parse_edns(message: bytes, at: int) -> Edns | None:
    """The OPT record among the additional ones; None where there is none."""
    counts = message[6:12]
    if counts[4:] == b"\0\0":
        return None
    if counts == b"\0\0\0\0\0\1" and message[at : at + 3] == b"\0\0\x29":
        # What nearly all queries look like: nothing but the OPT record behind the question.
        if len(message) < at + 11:
            return None
        _, size, ttl, length = _RECORD.unpack_from(message, at + 1)
        end = at + 11 + length
        if end > len(message):
            return None
        version, dnssec = ttl >> 16 & 0xFF, bool(ttl & QR)
        return Edns(max(size, 512), version, dnssec, message[at + 11 : end], at, end)
    for record in records(message, at) or ():
        if record.section == ADDITIONAL and record.rtype == OPT:
            return edns_of(message, record)
    return None


def edns_of(message: bytes, opt: Record) -> Edns:
    """What an OPT record says; sizes below 512 read as 512 (RFC 6891 6.2.3)."""
    return Edns(
        max(opt.rclass, 512),
        opt.ttl >> 16 & 0xFF,
        bool(opt.ttl & QR),
        message[opt.data : opt.end],
        opt.start,
        opt.end,
    )


def whole_options(data: bytes) -> bool:
    """Whether EDNS options end where their record does."""
    at = 0
    while at + 4 <= len(data):
        at += 4 + int.from_bytes(data[at + 2 : at + 4], "big")
    return at == len(data)


def split_options(data: bytes) -> list[tuple[int, bytes]]:
    """EDNS options; a broken tail is dropped."""
    options: list[tuple[int, bytes]] = []
    at = 0
    while at + 4 <= len(data):
        code, length = _PAIR.unpack_from(data, at)
        if at + 4 + length > len(data):
            break
        options.append((code, data[at + 4 : at + 4 + length]))
        at += 4 + length
    return options


def opt_record(size: int, dnssec: bool, options: bytes = b"", extended: int = 0) -> bytes:
    ttl = extended << 24 | (QR if dnssec else 0)
    return b"\0" + _RECORD.pack(OPT, size, ttl, len(options)) + options


def flags(message: bytes) -> int:
    return int.from_bytes(message[2:4], "big")


def rcode(message: bytes) -> int:
    return message[3] & 0xF


def error_reply(query: bytes, code: int, *, edns: Edns | None = None, end: int = 0) -> bytes:
    """A response without records; the question is repeated where `end` says where it ends."""
    kept = flags(query) & (OPCODE | RD | CD)
    extra = opt_record(OWN_SIZE, edns.dnssec, extended=code >> 4) if edns else b""
    head = HEADER.pack(
        int.from_bytes(query[:2], "big"), QR | kept | RA | code & 0xF, bool(end), 0, 0, bool(extra)
    )
    return head + query[12:end] + extra


def upstream_query(query: bytes, question: Question, edns: Edns | None) -> bytes:
    """The query to pass on: the question and the OPT record without hop-by-hop options."""
    head = HEADER.pack(0, flags(query) & (OPCODE | RD | AD | CD), 1, 0, 0, bool(edns))
    extra = b""
    if edns:
        kept = b"".join(
            _PAIR.pack(code, len(value)) + value
            for code, value in split_options(edns.options)
            if code not in _HOP_BY_HOP
        )
        extra = opt_record(min(edns.size, OWN_SIZE), edns.dnssec, kept)
    return head + query[12 : question.end] + extra


def without_opt(message: bytes, found: list[Record]) -> bytes:
    """The message without its OPT record."""
    for record in reversed(found):
        if record.rtype == OPT:
            count = int.from_bytes(message[10:12], "big") - 1
            # Names behind it would point to wrong places; OPT is last in practice, and a message
            # where it is not is only shortened if nothing follows.
            if record.end != len(message):
                return message
            message = message[:10] + count.to_bytes(2, "big") + message[12 : record.start]
    return message


def with_edns(response: bytes, edns: Edns) -> bytes:
    """The response with our OPT record, DO as asked (RFC 3225); it must not have one yet."""
    count = int.from_bytes(response[10:12], "big") + 1
    tail = response[12:] + opt_record(OWN_SIZE, edns.dnssec)
    return response[:10] + count.to_bytes(2, "big") + tail


def fit(response: bytes, end: int, limit: int) -> bytes:
    """The response within `limit` bytes: first without additional records, then truncated (TC).

    The OPT record is kept. Source: RFC 2181 section 9, RFC 6891 section 7, miekg/dns Truncate.
    """
    if len(response) <= limit:
        return response
    found = records(response, end)
    if found is None:
        return _truncated(response, end, [0, 0, 0], b"", cut=True)
    opt = next((response[r.start : r.end] for r in found if r.rtype == OPT), b"")
    counts, at, cut = [0, 0, 0], end, False
    for record in found:
        if record.section == ADDITIONAL:
            break
        if record.end + len(opt) > limit:
            cut = True
            break
        counts[record.section - 1] += 1
        at = record.end
    return _truncated(response, at, counts, opt, cut=cut)


def _truncated(response: bytes, at: int, counts: list[int], opt: bytes, *, cut: bool) -> bytes:
    bits = flags(response) | (TC if cut else 0)
    head = HEADER.pack(
        int.from_bytes(response[:2], "big"), bits, 1, counts[0], counts[1], bool(opt)
    )
    return head + response[12:at] + opt


def name_to_text(name: bytes) -> str:
    """Wire form (no pointers) -> text with the final dot; escaped as in zone files."""
    labels: list[str] = []
    at = 0
    while name[at]:
        label = name[at + 1 : at + 1 + name[at]]
        labels.append("".join(map(_shown, label)))
        at += 1 + name[at]
    return ".".join(labels) + "."


def _shown(byte: int) -> str:
    if byte in b'."\\;()@$':
        return "\\" + chr(byte)
    return chr(byte) if 0x20 < byte < 0x7F else f"\\{byte:03d}"


def parents(name: bytes) -> list[bytes]:
    """The name itself and every name above it, the root last."""
    found = [name]
    while name[0]:
        name = name[1 + name[0] :]
        found.append(name)
    return found
