"""The record data the zone speaks of, made by dnspython, typed.

dnspython's record classes have untyped constructors; each is named once here as what it is.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import dns.name
import dns.rdata
import dns.rdataclass
import dns.rdatatype
from dns.rdtypes.ANY.CNAME import CNAME
from dns.rdtypes.ANY.NS import NS
from dns.rdtypes.ANY.PTR import PTR
from dns.rdtypes.ANY.SOA import SOA
from dns.rdtypes.ANY.TXT import TXT
from dns.rdtypes.IN.A import A
from dns.rdtypes.IN.AAAA import AAAA
from dns.rdtypes.IN.SRV import SRV

from podwire.dns.names import Labels, name_of, packed

_IN = dns.rdataclass.IN
_ADDRESSES_KEPT = 1 << 14
_Make = Callable[..., dns.rdata.Rdata]
_MAKE_A: _Make = A
_MAKE_AAAA: _Make = AAAA
_MAKE_CNAME: _Make = CNAME
_MAKE_NS: _Make = NS
_MAKE_PTR: _Make = PTR
_MAKE_SOA: _Make = SOA
_MAKE_SRV: _Make = SRV
_MAKE_TXT: _Make = TXT


class Record(NamedTuple):
    """One resource record of class IN."""

    name: dns.name.Name
    ttl_s: int
    rdata: dns.rdata.Rdata


@functools.lru_cache(_ADDRESSES_KEPT)
def address(text: str) -> dns.rdata.Rdata:
    """A or AAAA, by the address. Of a headless Service's thousand one changes, and all are asked
    for again."""
    if ":" in text:
        return _MAKE_AAAA(_IN, dns.rdatatype.AAAA, text)
    return _MAKE_A(_IN, dns.rdatatype.A, text)


def packed_address(rdata: dns.rdata.Rdata) -> bytes:
    """What an A or AAAA record says, as it stands in a message."""
    data = packed(rdata.address) if isinstance(rdata, A | AAAA) else None
    assert data is not None
    return data


def cname(target: dns.name.Name) -> dns.rdata.Rdata:
    return _MAKE_CNAME(_IN, dns.rdatatype.CNAME, target)


def alias_target(rdata: dns.rdata.Rdata) -> dns.name.Name | None:
    """Where a CNAME leads; None for any other record."""
    return rdata.target if isinstance(rdata, CNAME) else None


def ns(target: dns.name.Name) -> dns.rdata.Rdata:
    return _MAKE_NS(_IN, dns.rdatatype.NS, target)


def ptr(target: dns.name.Name) -> dns.rdata.Rdata:
    return _MAKE_PTR(_IN, dns.rdatatype.PTR, target)


def srv(weight: int, port: int, target: dns.name.Name) -> dns.rdata.Rdata:
    return _MAKE_SRV(_IN, dns.rdatatype.SRV, 0, weight, port, target)


def recased(rdata: dns.rdata.Rdata, zone: Labels) -> dns.rdata.Rdata:
    """An SRV record's target with the zone spelt as the question spells it; others as they are.

    Other names are compressed into pointers to the question and so take its spelling; an SRV
    target is never compressed (RFC 2782).
    """
    if not isinstance(rdata, SRV):
        return rdata
    labels = rdata.target.labels[:-1]
    if tuple(label.lower() for label in labels[-len(zone) :]) != tuple(
        label.lower() for label in zone
    ):
        return rdata
    return srv(rdata.weight, rdata.port, name_of((*labels[: -len(zone)], *zone)))


def compressible(rdata: dns.rdata.Rdata) -> bool:
    """Names in the records of RFC 1035 may be compressed, in later ones not (RFC 3597 4)."""
    return not isinstance(rdata, SRV)


def soa(zone: Labels, serial: int, ttl_s: int) -> dns.rdata.Rdata:
    """Mailbox and timers as CoreDNS writes them (plugin/backend_lookup.go SOA)."""
    server, mailbox = name_of((b"ns", b"dns", *zone)), name_of((b"hostmaster", *zone))
    timers = (serial, 7200, 1800, 86400, ttl_s)
    return _MAKE_SOA(_IN, dns.rdatatype.SOA, server, mailbox, *timers)


def txt(text: str) -> dns.rdata.Rdata:
    return _MAKE_TXT(_IN, dns.rdatatype.TXT, (text,))
