"""ICMP and ICMPv6 as probes need them: echo packets, and what an error queue says.

The kernel keeps, for sockets with IP(V6)_RECVERR, the ICMP message behind an errno together with
who sent it: the only way to tell "prohibited by a firewall" from "no such host", both EHOSTUNREACH.

Source: RFC 792, RFC 1812 section 5.2.7.1, RFC 4443; ip(7) and ipv6(7) on IP_RECVERR.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import struct
from dataclasses import dataclass
from typing import Final

from podwire.explain.probes.wire import Verdict

# linux/errqueue.h, linux/in.h, linux/in6.h, linux/icmp.h: not in Python's socket module.
IP_RECVERR: Final = 11
IPV6_RECVERR: Final = 25
IP_MTU_DISCOVER: Final = 10
IPV6_MTU_DISCOVER: Final = 23
PMTUDISC_PROBE: Final = 3
IP_BIND_ADDRESS_NO_PORT: Final = 24
_ICMP_FILTER: Final = 1
_ICMPV6_FILTER: Final = 1
_SOL_RAW: Final = 255

ORIGIN_LOCAL: Final = 1
ORIGIN_ICMP: Final = 2
ORIGIN_ICMP6: Final = 3

ECHO_REQUEST: Final = {4: 8, 6: 128}
ECHO_REPLY: Final = {4: 0, 6: 129}
HEADER_BYTES: Final = {4: 20 + 8, 6: 40 + 8}

_EE = struct.Struct("=IBBBBII")
_ECHO = struct.Struct("!BBHHH")

# (origin, type, code) of what a firewall or a router sends on somebody's orders.
_PROHIBITED: Final = {
    (ORIGIN_ICMP, 3, 9): "net prohibited",
    (ORIGIN_ICMP, 3, 10): "host prohibited",
    (ORIGIN_ICMP, 3, 13): "administratively prohibited",
    (ORIGIN_ICMP6, 1, 1): "administratively prohibited",
    (ORIGIN_ICMP6, 1, 5): "source address failed policy",
    (ORIGIN_ICMP6, 1, 6): "reject route",
}
_UNREACHABLE: Final = {
    (ORIGIN_ICMP, 3, 0): "net unreachable",
    (ORIGIN_ICMP, 3, 1): "host unreachable",
    (ORIGIN_ICMP, 3, 2): "protocol unreachable",
    (ORIGIN_ICMP6, 1, 0): "no route",
    (ORIGIN_ICMP6, 1, 2): "beyond scope",
    (ORIGIN_ICMP6, 1, 3): "address unreachable",
}
_PORT_UNREACHABLE: Final = {(ORIGIN_ICMP, 3, 3), (ORIGIN_ICMP6, 1, 4)}
_TOO_BIG: Final = {(ORIGIN_ICMP, 3, 4), (ORIGIN_ICMP6, 2, 0)}


@dataclass(frozen=True)
class IcmpError:
    """One entry of an error queue; `original` starts at the refused packet's transport header."""

    errno: int
    origin: int
    type: int
    code: int
    mtu: int
    offender: str
    original: bytes


def echo_request(version: int, ident: int, seq: int, size: int = 0) -> bytes:
    """An echo request; `size` is that of the whole IP packet, the least possible when smaller."""
    data = b"podwire-" + bytes(max(0, size - HEADER_BYTES[version] - 8))
    header = _ECHO.pack(ECHO_REQUEST[version], 0, 0, ident, seq)
    if version == 6:
        return header + data  # the kernel fills the checksum of ICMPv6 (RFC 3542 section 3.1)
    return _ECHO.pack(ECHO_REQUEST[4], 0, checksum(header + data), ident, seq) + data


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    padded = data + b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def parse_echo(packet: bytes) -> tuple[int, int, int] | None:
    """(type, ident, seq) of an ICMP echo message, None when it is too short to be one."""
    if len(packet) < _ECHO.size:
        return None
    kind, _code, _sum, ident, seq = _ECHO.unpack_from(packet)
    return kind, ident, seq


def strip_ip_header(packet: bytes) -> bytes:
    """What raw IPv4 sockets deliver begins with the IP header; ping and IPv6 sockets' does not."""
    return packet[(packet[0] & 0x0F) * 4 :] if packet else packet


def filter_echo_replies(sock: socket.socket, version: int) -> None:
    """Have a raw socket receive echo replies only, not every ICMP message of the namespace."""
    if version == 4:
        sock.setsockopt(
            _SOL_RAW, _ICMP_FILTER, struct.pack("=I", ~(1 << ECHO_REPLY[4]) & 0xFFFFFFFF)
        )
        return
    blocked = bytearray(b"\xff" * 32)
    word, bit = divmod(ECHO_REPLY[6], 32)
    struct.pack_into("=I", blocked, word * 4, ~(1 << bit) & 0xFFFFFFFF)
    sock.setsockopt(socket.IPPROTO_ICMPV6, _ICMPV6_FILTER, bytes(blocked))


def filter_errors(sock: socket.socket, version: int) -> None:
    """Have a raw socket receive what says that a packet did not get through, and nothing else."""
    if version == 4:
        sock.setsockopt(_SOL_RAW, _ICMP_FILTER, struct.pack("=I", ~(1 << 3) & 0xFFFFFFFF))
        return
    blocked = bytearray(b"\xff" * 32)
    struct.pack_into("=I", blocked, 0, ~(1 << 1 | 1 << 4) & 0xFFFFFFFF)
    sock.setsockopt(socket.IPPROTO_ICMPV6, _ICMPV6_FILTER, bytes(blocked))


def parse_error(message: bytes, version: int, sender: str) -> IcmpError | None:
    """An ICMP error as a raw socket delivers it, like one of an error queue."""
    inner = message[8:]
    header = (inner[0] & 0x0F) * 4 if version == 4 and inner else 40
    if len(inner) < header + 8:
        return None
    origin = ORIGIN_ICMP if version == 4 else ORIGIN_ICMP6
    return IcmpError(0, origin, message[0], message[1], 0, sender, inner[header:])


def enable_error_queue(sock: socket.socket, version: int) -> None:
    if version == 4:
        sock.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVERR, 1)


def forbid_fragments(sock: socket.socket, version: int) -> None:
    """Set DF and ignore cached path MTUs, so that every probe asks the path anew."""
    if version == 4:
        sock.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, PMTUDISC_PROBE)
    else:
        sock.setsockopt(socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, PMTUDISC_PROBE)


def read_error(sock: socket.socket) -> IcmpError | None:
    """The next entry of the error queue, None when it is empty."""
    try:
        original, control, _flags, _address = sock.recvmsg(512, 256, socket.MSG_ERRQUEUE)
    except OSError:
        return None
    for level, kind, data in control:
        if (level, kind) in (
            (socket.IPPROTO_IP, IP_RECVERR),
            (socket.IPPROTO_IPV6, IPV6_RECVERR),
        ) and len(data) >= _EE.size:
            return _parse_extended_error(data, original)
    return None


def _parse_extended_error(data: bytes, original: bytes) -> IcmpError:
    number, origin, kind, code, _pad, info, _data = _EE.unpack_from(data)
    return IcmpError(number, origin, kind, code, info, _offender(data[_EE.size :]), original)


def _offender(sockaddr: bytes) -> str:
    """The address in a `struct sockaddr_in` or `sockaddr_in6`, "" for AF_UNSPEC."""
    if len(sockaddr) < 8:
        return ""
    (family,) = struct.unpack_from("=H", sockaddr)
    if family == socket.AF_INET:
        return str(ipaddress.IPv4Address(sockaddr[4:8]))
    if family == socket.AF_INET6 and len(sockaddr) >= 24:
        return str(ipaddress.IPv6Address(sockaddr[8:24]))
    return ""


def judge(
    error: IcmpError, destination: str, own: str, *, closed_by_icmp: bool
) -> tuple[Verdict, str]:
    """The verdict an ICMP error means, and its words.

    `own` is the source address of the probe: what our own stack says is not a firewall's word.
    `closed_by_icmp` holds for UDP, where port unreachable is how a host says that nothing listens;
    a TCP stack says so by RST, so there it comes from a firewall (nft's plain `reject`).
    """
    key = (error.origin, error.type, error.code)
    sender = error.offender or "?"
    if error.origin == ORIGIN_LOCAL:
        return judge_errno(error.errno, error.mtu)
    if key in _TOO_BIG:
        return "error", f"packet too big: {sender} allows {error.mtu} bytes; lower the pods' MTU"
    if key in _PORT_UNREACHABLE:
        if closed_by_icmp and sender == destination:
            return "refused", "port unreachable"
        return "rejected", f"port unreachable from {sender}"
    if key in _PROHIBITED:
        return "rejected", f"{_PROHIBITED[key]} by {sender}"
    if key in _UNREACHABLE:
        verdict: Verdict = "error" if sender == own else "rejected"
        return verdict, f"{_UNREACHABLE[key]} says {sender}"
    return "error", f"ICMP type {error.type} code {error.code} from {sender}"


def judge_errno(number: int, mtu: int = 0) -> tuple[Verdict, str]:
    """The verdict of an errno alone, where no ICMP message explains it."""
    if number in (errno.ECONNREFUSED, errno.ECONNRESET):
        return "refused", ""
    if number == errno.ETIMEDOUT:
        return "dropped", ""
    if number == errno.EPERM:
        # What the kernel answers to a sender whose packet its own output hook dropped.
        return "dropped", "dropped by a rule in the source's own namespace"
    if number == errno.EACCES:
        return "rejected", "prohibited by a route or a rule in the source's own namespace"
    if number == errno.EMSGSIZE:
        limit = f": the source's interface allows {mtu} bytes" if mtu else ""
        return "error", f"packet too big{limit}; lower the pods' MTU"
    if number in (errno.EPROTONOSUPPORT, errno.ESOCKTNOSUPPORT):
        return "error", "this kernel does not know the protocol"
    return "error", os.strerror(number)
