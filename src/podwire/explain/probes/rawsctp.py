"""SCTP where the kernel has no such sockets: an INIT by a raw socket, and what ICMP says of it.

    INIT ─▶ ICMP "protocol unreachable", ICMPv6 "unknown next header" of the destination itself:
            refused: the packet got there, and the host knows no SCTP either

Policies see SCTP packets whether or not anybody speaks it, so they can be probed on any kernel.
Source: RFC 9260 sections 3.1, 3.3.2 and 6.8, appendix A (CRC32c); RFC 1122 section 3.2.2.1.
"""

from __future__ import annotations

import functools
import os
import select
import socket
import struct
from typing import Final

from podwire.explain.probes import icmp
from podwire.explain.probes.sessions import Session

_HEADER: Final = struct.Struct("!HHI")
_INIT: Final = struct.Struct("!BBHIIHHI")
_INIT_CHUNK: Final = 1
_CASTAGNOLI: Final = 0x82F63B78
_READ_BYTES: Final = 2048
_UNKNOWN_TO_HOST: Final = {(icmp.ORIGIN_ICMP, 3, 2), (icmp.ORIGIN_ICMP6, 4, 1)}
_EPHEMERAL: Final = 49152


@functools.cache
def _crc_table() -> tuple[int, ...]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (_CASTAGNOLI if value & 1 else 0)
        table.append(value)
    return tuple(table)


def crc32c(data: bytes) -> int:
    table, crc = _crc_table(), 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ table[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def init_packet(sport: int, dport: int, tag: int) -> bytes:
    """One INIT chunk, one stream each way; the checksum is little-endian in its place."""
    header = _HEADER.pack(sport, dport, 0)
    chunk = _INIT.pack(_INIT_CHUNK, 0, _INIT.size, tag, 65536, 1, 1, tag)
    return header + struct.pack("<I", crc32c(header + bytes(4) + chunk)) + chunk


class RawSctpSession(Session):
    """Sent twice before the deadline, like a datagram; answers are read from ICMP.

    No socket of the protocol stays open: a host that has one does not say that it does not know
    SCTP, and pods are asked and ask at the same time. So a peer with an SCTP stack is not heard.
    """

    kind = socket.SOCK_RAW

    def open(self) -> None:
        proto = socket.IPPROTO_ICMPV6 if self.version == 6 else socket.IPPROTO_ICMP
        sock = socket.socket(self.family, socket.SOCK_RAW | socket.SOCK_NONBLOCK, proto)
        icmp.filter_errors(sock, self.version)
        self.sockets.append(sock)
        self._tag = int.from_bytes(os.urandom(4), "big") or 1
        self._sport = self.probe.source_port or _EPHEMERAL + self._tag % (65536 - _EPHEMERAL)

    def _send_first(self, sock: socket.socket) -> None:
        self.loop.watch(sock, select.EPOLLIN, self)
        self._try_again()

    def _try_again(self) -> None:
        self.tries += 1
        packet = init_packet(self._sport, self.probe.port, self._tag)
        try:
            with self.loop.socket_again(self, self.family, self.kind, socket.IPPROTO_SCTP) as sock:
                if self.probe.source_address:
                    sock.bind((self.probe.source_address, 0))
                sock.sendto(packet, (self.probe.address, 0))
        except OSError as e:
            self.finish(*icmp.judge_errno(e.errno or 0))

    def on_event(self, fd: int, events: int) -> None:
        while not self.done:
            try:
                packet, sender = self.sockets[0].recvfrom(_READ_BYTES)
            except BlockingIOError:
                return
            message = icmp.strip_ip_header(packet) if self.version == 4 else packet
            error = icmp.parse_error(message, self.version, str(sender[0]))
            if error is not None and self._is_own(error.original):
                self._judge_error(error)

    def _is_own(self, original: bytes) -> bool:
        """At least the ports come back with an error (RFC 792), most send more."""
        ports = len(original) >= 8 and _HEADER.unpack_from(original)[:2]
        tag = original[16:20]
        return ports == (self._sport, self.probe.port) and (
            len(tag) < 4 or tag == self._tag.to_bytes(4, "big")
        )

    def _judge_error(self, error: icmp.IcmpError) -> None:
        unknown = (error.origin, error.type, error.code) in _UNKNOWN_TO_HOST
        if unknown and error.offender == self.probe.address:
            self.finish("refused", "the host does not know SCTP")
        else:
            self._judge_icmp(error, closed_by_icmp=False)
