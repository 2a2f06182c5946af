"""What the world beyond a lab answers: a zone file held in memory, and RFC 1034's way through it.

    query -> name -> records of the name | CNAME, and on | wildcard | NODATA | NXDOMAIN

The `outside` host plays everybody's resolver: cluster DNS and nodes send it what they do not know
themselves. It knows its zone file and nothing else, so a lab never asks the machine's resolver.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset
import dns.tokenizer
import dns.transaction
import dns.zonefile

from podwire.cni.config import Address
from podwire.dns.seam import Client
from podwire.errors import UsageError

_TTL_S: Final = 60
_MAX_CHAIN: Final = 8
# What a client without EDNS0 takes by UDP (RFC 1035), and what we send at most (DNS flag day 2020).
_PLAIN_UDP, _MAX_UDP = 512, 1232
_SOA: Final = "ns.outside.example. hostmaster.outside.example. 1 7200 1800 86400 60"


def default_zone(addresses: Sequence[Address]) -> str:
    """`outside.example`, `example.com` and their neighbours, at the outside host's addresses."""
    names = ("outside.example.", "ns.outside.example.", "example.com.", "example.org.")
    lines = [f"{zone} SOA {_SOA}" for zone in ("outside.example.", "example.com.", "example.org.")]
    lines += [f"{zone} NS ns.outside.example." for zone in ("outside.example.", "example.com.")]
    for address in addresses:
        kind = "A" if address.version == 4 else "AAAA"
        lines += [f"{name} {kind} {address}" for name in names]
        lines.append(f"{address.reverse_pointer}. PTR outside.example.")
    lines += [
        "www.outside.example. CNAME outside.example.",
        "*.wild.outside.example. CNAME outside.example.",
        "www.example.com. CNAME example.com.",
        "example.com. MX 10 mail.example.com.",
        'example.com. TXT "v=spf1 -all"',
    ]
    return "\n".join(lines) + "\n"


def read_zone_file(path: str) -> str:
    """The file's text, checked; raises `UsageError` before anything of a lab is built."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise UsageError(f"--outside-zone {path}: {why}") from error
    OutsideZone(text, path)
    return text


class OutsideZone:
    """A `SlowPath` over the records of a zone file; names must be absolute or below `$ORIGIN`."""

    def __init__(self, text: str, source: str = "zone") -> None:
        self._records: dict[dns.name.Name, list[dns.rrset.RRset]] = {}
        # Every name that has something at or below it: without records of its own it is NODATA.
        self._existing: set[dns.name.Name] = {dns.name.root}
        try:
            found = _read(text, source)
        except (dns.exception.DNSException, ValueError) as error:
            raise UsageError(f"--outside-zone {error}") from error
        for rrset in found:
            self._records.setdefault(rrset.name, []).append(rrset)
            self._existing.update(_ancestors(rrset.name))
        if not self._of(dns.name.root, dns.rdatatype.SOA):
            soa = dns.rrset.from_text(dns.name.root, _TTL_S, "IN", "SOA", _SOA)
            self._records.setdefault(dns.name.root, []).append(soa)

    async def resolve(self, query: bytes, client: Client) -> bytes | None:
        return self.answer(query, tcp=client.tcp)

    def answer(self, query: bytes, *, tcp: bool = False) -> bytes | None:
        """The response; None for what is no query at all."""
        try:
            asked = dns.message.from_wire(query, ignore_trailing=True)
        except (dns.exception.DNSException, ValueError):
            return _format_error(query)
        if asked.flags & dns.flags.QR:
            return None
        response = dns.message.make_response(asked, recursion_available=True)
        if asked.opcode() != dns.opcode.QUERY or len(asked.question) != 1:
            response.set_rcode(dns.rcode.NOTIMP)
        else:
            self._fill(response, asked.question[0])
        return _fitting(response, asked, tcp)

    def _fill(self, response: dns.message.Message, question: dns.rrset.RRset) -> None:
        name, rdtype = question.name, question.rdtype
        if question.rdclass != dns.rdataclass.IN or rdtype == dns.rdatatype.AXFR:
            response.set_rcode(dns.rcode.REFUSED)
            return
        for _ in range(_MAX_CHAIN):
            found, exists = self._look_up(name)
            matching = [r for r in found if rdtype in (r.rdtype, dns.rdatatype.ANY)]
            alias = next((r for r in found if r.rdtype == dns.rdatatype.CNAME), None)
            if matching or alias is None:
                break
            response.answer.append(_renamed(alias, name))
            name = alias[0].target
        response.answer += [_renamed(rrset, name) for rrset in matching]
        if not matching:
            response.authority.append(self._soa(name))
            if not exists:
                response.set_rcode(dns.rcode.NXDOMAIN)

    def _look_up(self, name: dns.name.Name) -> tuple[list[dns.rrset.RRset], bool]:
        """Records at a name or of the wildcard that covers it; whether the name exists."""
        lower = name.canonicalize()
        if lower in self._existing:
            return self._records.get(lower, []), True
        encloser = next(a for a in _ancestors(lower) if a in self._existing)
        wild = self._records.get(dns.name.Name((b"*", *encloser.labels)), [])
        return wild, bool(wild)

    def _of(self, name: dns.name.Name, rdtype: dns.rdatatype.RdataType) -> list[dns.rrset.RRset]:
        return [rrset for rrset in self._records.get(name, []) if rrset.rdtype == rdtype]

    def _soa(self, name: dns.name.Name) -> dns.rrset.RRset:
        """Of the closest zone around a name; the root always has one."""
        above = (self._of(a, dns.rdatatype.SOA) for a in _ancestors(name.canonicalize()))
        return next(found[0] for found in above if found)


class _Collector(dns.transaction.Transaction):
    """What the reader of zone files writes into: records of any zones; dnspython's own take the
    SOA of one only."""

    def __init__(self) -> None:
        super().__init__(dns.zonefile.RRSetsReaderManager(dns.name.root))
        self.found: dict[tuple[dns.name.Name, int], dns.rrset.RRset] = {}

    def add(self, *args: Any) -> None:
        name, ttl, rdata = args
        name = name.canonicalize()
        key = name, rdata.rdtype
        if key not in self.found:
            self.found[key] = dns.rrset.RRset(name, rdata.rdclass, rdata.rdtype)
        self.found[key].add(rdata, ttl)

    def _set_origin(self, origin: dns.name.Name | None) -> None:
        pass


def _read(text: str, source: str) -> Iterable[dns.rrset.RRset]:
    records = _Collector()
    dns.zonefile.Reader(
        dns.tokenizer.Tokenizer(text, source),
        dns.rdataclass.IN,
        records,
        allow_directives=("$ORIGIN", "$TTL"),
        default_ttl=_TTL_S,
    ).read()
    return records.found.values()


def _ancestors(name: dns.name.Name) -> Iterator[dns.name.Name]:
    """The name itself and everything above it, the root last."""
    while True:
        yield name
        if name == dns.name.root:
            return
        name = name.parent()


def _renamed(rrset: dns.rrset.RRset, name: dns.name.Name) -> dns.rrset.RRset:
    return dns.rrset.from_rdata_list(name, rrset.ttl, list(rrset))


def _fitting(response: dns.message.Message, asked: dns.message.Message, tcp: bool) -> bytes:
    size = 65535
    if not tcp:
        size = min(max(asked.payload, _PLAIN_UDP), _MAX_UDP) if asked.edns >= 0 else _PLAIN_UDP
    try:
        return response.to_wire(max_size=size)
    except dns.exception.TooBig:
        response.answer, response.authority = [], []
        response.flags |= dns.flags.TC
        return response.to_wire(max_size=size)


def _format_error(query: bytes) -> bytes | None:
    """FORMERR with the query's own identifier, where it has one and is not itself a response."""
    if len(query) < 12 or query[2] & 0x80:
        return None
    return query[:2] + bytes([0x80 | (query[2] & 0x79), dns.rcode.FORMERR]) + bytes(8)
