"""Connection tracking entries, as values and as bytes. Pure; `conntrack` asks and sends.

A flow has two tuples: as its first packet was (original), and as an answer looks (reply). What nat
did is the difference: a Service's flow has the cluster address as original destination and the
endpoint as reply source. Addresses are packed bytes here, ports are `int`: tables have tens of
thousands of entries. Of ICMP the identifier is the source port and type << 8 | code the destination
port, as the kernel's own hash has them. Source: include/uapi/linux/netfilter/nfnetlink_conntrack.h,
nf_conntrack_common.h.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from ipaddress import ip_address
from socket import AF_INET, AF_INET6, IPPROTO_ICMP, IPPROTO_ICMPV6
from typing import Final, Literal, NamedTuple

from msgspec import Struct

from podwire.kernel import decode, nfnl
from podwire.kernel import encode as nl

SEEN_REPLY: Final = 1 << 1
ASSURED: Final = 1 << 2
CONFIRMED: Final = 1 << 3
SRC_NAT: Final = 1 << 4
DST_NAT: Final = 1 << 5
DYING: Final = 1 << 9

_ORIG: Final = 1  # CTA_*
_REPLY: Final = 2
_STATUS: Final = 3
_TIMEOUT: Final = 7
_MARK: Final = 8
_COUNTERS_ORIG: Final = 9
_COUNTERS_REPLY: Final = 10
_ID: Final = 12
_ZONE: Final = 18
_MARK_MASK: Final = 21
_FILTER: Final = 25
_STATUS_MASK: Final = 26
_TUPLE_IP: Final = 1
_TUPLE_PROTO: Final = 2
_FILTER_ORIG_FLAGS: Final = 1
_F_IP_SRC: Final = 1
_F_IP_DST: Final = 2
_F_PROTO_NUM: Final = 8
_F_SRC_PORT: Final = 16
_F_DST_PORT: Final = 32

_PORTLESS: Final = (IPPROTO_ICMP, IPPROTO_ICMPV6)
_U16: Final = struct.Struct("!H")
_U32: Final = struct.Struct("!I")


class Tuple(NamedTuple):
    """One direction: what identifies its packets."""

    src: bytes
    dst: bytes
    sport: int
    dport: int
    proto: int

    def __str__(self) -> str:
        source, destination = ip_address(self.src), ip_address(self.dst)
        ports = f" sport={self.sport} dport={self.dport}" if self.sport or self.dport else ""
        return f"src={source} dst={destination}{ports}"


class Flow(Struct, frozen=True, gc=False):
    """One entry. Counters are (packets, bytes), None unless nf_conntrack_acct is on."""

    orig: Tuple
    reply: Tuple
    status: int = 0
    mark: int = 0
    timeout_s: int = 0
    id: int = 0
    zone: int = 0
    counters: tuple[int, int] | None = None
    reply_counters: tuple[int, int] | None = None

    @property
    def family(self) -> int:
        return AF_INET if len(self.orig.src) == 4 else AF_INET6

    @property
    def dst_nat(self) -> bool:
        """Its destination was rewritten: it goes to an endpoint of a Service."""
        return bool(self.status & DST_NAT)

    @property
    def redirected(self) -> bool:
        """It is answered by another than was asked. IPVS sets no status for what it translates."""
        return self.dst_nat or (
            self.orig.proto not in _PORTLESS
            and (self.reply.src, self.reply.sport) != (self.orig.dst, self.orig.dport)
        )

    @property
    def seen_reply(self) -> bool:
        return bool(self.status & SEEN_REPLY)

    @property
    def assured(self) -> bool:
        """Traffic went both ways for long enough that a full table does not evict it."""
        return bool(self.status & ASSURED)

    def __str__(self) -> str:
        return f"proto={self.orig.proto} {self.orig} -> {self.reply} mark={self.mark:#x}"


class FlowEvent(Struct, frozen=True, gc=False):
    kind: Literal["new", "update", "destroy"]
    flow: Flow


class Match(Struct, frozen=True, kw_only=True):
    """Which flows are meant: of the original direction, with all of these `status` bits.

    The kernel does the choosing since 5.8 (status since 5.15); `accepts` does it again for others.
    """

    proto: int | None = None
    src: bytes | None = None
    dst: bytes | None = None
    sport: int | None = None
    dport: int | None = None
    status: int = 0
    mark: tuple[int, int] | None = None  # (value, mask)

    def accepts(self, flow: Flow) -> bool:
        orig = flow.orig
        mark = self.mark
        return (
            self.proto in (None, orig.proto)
            and self.dst in (None, orig.dst)
            and self.src in (None, orig.src)
            and self.dport in (None, orig.dport)
            and self.sport in (None, orig.sport)
            and flow.status & self.status == self.status
            and (mark is None or flow.mark & mark[1] == mark[0])
        )


EVERY: Final = Match()


# -- to bytes ------------------------------------------------------------------------------------


def _ports(tuple_: Tuple) -> bytes:
    if tuple_.proto in (IPPROTO_ICMP, IPPROTO_ICMPV6):
        first = 4 if tuple_.proto == IPPROTO_ICMP else 7
        return (
            nfnl.attr(first, _U16.pack(tuple_.sport))
            + nfnl.attr(first + 1, bytes([tuple_.dport >> 8]))
            + nfnl.attr(first + 2, bytes([tuple_.dport & 0xFF]))
        )
    return nfnl.attr(2, _U16.pack(tuple_.sport)) + nfnl.attr(3, _U16.pack(tuple_.dport))


def pack_tuple(kind: int, tuple_: Tuple) -> bytes:
    first = 1 if len(tuple_.src) == 4 else 3
    addresses = nfnl.attr(first, tuple_.src) + nfnl.attr(first + 1, tuple_.dst)
    proto = nfnl.attr(1, bytes([tuple_.proto])) + _ports(tuple_)
    return nfnl.nest(kind, nfnl.nest(_TUPLE_IP, addresses) + nfnl.nest(_TUPLE_PROTO, proto))


def pack_exact(flow: Flow) -> bytes:
    """The attributes of a deletion: the reply's tuple and the id.

    An id is made of the entry's memory and its original tuple, so a successor that got the same
    memory has the same. The reply tells where the flow leads: a successor that leads to another
    endpoint is never meant, one that leads to the same may be.
    """
    zone = nfnl.attr(_ZONE, _U16.pack(flow.zone)) if flow.zone else b""
    return pack_tuple(_REPLY, flow.reply) + nfnl.attr(_ID, _U32.pack(flow.id)) + zone


def pack_match(match: Match) -> bytes:
    """The attributes of a dump that chooses; a family has to be given where addresses are."""
    body = b""
    flags = 0
    address = match.dst or match.src
    ips = b""
    if address is not None:
        first = 1 if len(address) == 4 else 3
        for offset, value, flag in ((0, match.src, _F_IP_SRC), (1, match.dst, _F_IP_DST)):
            if value is not None:
                ips += nfnl.attr(first + offset, value)
                flags |= flag
        body += nfnl.nest(_TUPLE_IP, ips)
    if match.proto is not None:
        flags |= _F_PROTO_NUM
        proto = nfnl.attr(1, bytes([match.proto]))
        # Ports mean nothing to the kernel's filter without a protocol that has them.
        for kind, port, flag in ((2, match.sport, _F_SRC_PORT), (3, match.dport, _F_DST_PORT)):
            if port is not None and match.proto not in (IPPROTO_ICMP, IPPROTO_ICMPV6):
                proto += nfnl.attr(kind, _U16.pack(port))
                flags |= flag
        body += nfnl.nest(_TUPLE_PROTO, proto)
    found = b""
    if flags:
        found = nfnl.nest(_ORIG, body)
        found += nfnl.nest(_FILTER, nfnl.attr(_FILTER_ORIG_FLAGS, struct.pack("=I", flags)))
    if match.status:
        found += nfnl.attr(_STATUS, _U32.pack(match.status))
        found += nfnl.attr(_STATUS_MASK, _U32.pack(match.status))
    if match.mark is not None:
        found += nfnl.attr(_MARK, _U32.pack(match.mark[0]))
        found += nfnl.attr(_MARK_MASK, _U32.pack(match.mark[1]))
    return found


# -- from bytes ----------------------------------------------------------------------------------

# The tuples of TCP, UDP and SCTP always look the same, one behind the other:
# tuple { ip { src dst } proto { number sport dport } }, every attribute with a header of 4.
_PAIR4: Final = struct.Struct("!" + "12x4s4x4s8xB3x4xH2x4xH2x" * 2)
_PAIR6: Final = struct.Struct("!" + "12x16s4x16s8xB3x4xH2x4xH2x" * 2)
_BORDERS: Final = {  # by the header of the original tuple: its length and the pair's layout
    nl.ATTR.pack(_PAIR4.size // 2, _ORIG | nfnl.NESTED): _PAIR4,
    nl.ATTR.pack(_PAIR6.size // 2, _ORIG | nfnl.NESTED): _PAIR6,
}


def _parse_tuple(raw: bytes) -> Tuple:
    found = decode.attrs(raw)
    ip, proto = decode.attrs(found[_TUPLE_IP]), decode.attrs(found[_TUPLE_PROTO])
    first = 1 if 1 in ip else 3
    number = proto[1][0]
    if number in (IPPROTO_ICMP, IPPROTO_ICMPV6):
        base = 4 if number == IPPROTO_ICMP else 7
        sport = int.from_bytes(proto.get(base, b""), "big")
        dport = proto.get(base + 1, b"\0")[0] << 8 | proto.get(base + 2, b"\0")[0]
    else:
        sport = int.from_bytes(proto.get(2, b""), "big")
        dport = int.from_bytes(proto.get(3, b""), "big")
    return Tuple(ip[first], ip[first + 1], sport, dport, number)


def _parse_counters(raw: bytes | None) -> tuple[int, int] | None:
    if raw is None:
        return None
    found = decode.attrs(raw)
    return int.from_bytes(found[1], "big"), int.from_bytes(found[2], "big")


_PORTED: Final = frozenset((6, 17, 33, 132, 136))  # protocols whose tuples have two ports


def parse_flow(body: bytes, offset: int = 4) -> Flow:
    """The entry of a message; its attributes begin at `offset`."""
    pair = _BORDERS.get(body[offset : offset + 4])
    if pair is not None and len(body) >= offset + pair.size:
        src, dst, proto, sport, dport, rsrc, rdst, rproto, rsport, rdport = pair.unpack_from(
            body, offset
        )
        # Protocols without ports, as GRE, may have a tuple as long.
        if proto in _PORTED:
            orig = Tuple(src, dst, sport, dport, proto)
            reply = Tuple(rsrc, rdst, rsport, rdport, rproto)
            return _flow(orig, reply, decode.attrs(body, offset + pair.size))
    found = decode.attrs(body, offset)
    return _flow(_parse_tuple(found[_ORIG]), _parse_tuple(found[_REPLY]), found)


def _flow(orig: Tuple, reply: Tuple, found: dict[int, bytes]) -> Flow:
    number = int.from_bytes
    return Flow(
        orig,
        reply,
        number(found.get(_STATUS, b""), "big"),
        number(found.get(_MARK, b""), "big"),
        number(found.get(_TIMEOUT, b""), "big"),
        number(found.get(_ID, b""), "big"),
        number(found.get(_ZONE, b""), "big"),
        _parse_counters(found.get(_COUNTERS_ORIG)),
        _parse_counters(found.get(_COUNTERS_REPLY)),
    )


def parse_flows(messages: Iterable[bytes], match: Match = EVERY) -> Iterator[Flow]:
    """The accepted flows of a dump, whose messages begin with their attributes."""
    flows = (parse_flow(body, 0) for body in messages)
    return flows if match == EVERY else filter(match.accepts, flows)
