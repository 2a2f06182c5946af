"""Packets that rules with `log group N` copy to user space: who met which rule.

    rule `log group 42 prefix "..." snaplen 96` -> nfnetlink_log -> NfLog.read -> LoggedPacket

The kernel gathers packets for up to a tenth of a second and sends them together. Those that did not
fit are counted: every packet carries the group's sequence number, and a gap is a loss.
Source: include/uapi/linux/netfilter/nfnetlink_log.h.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator
from typing import Final

from msgspec import Struct

from podwire.errors import KernelError
from podwire.kernel import decode, nfnl

_SUBSYS: Final = 4  # NFNL_SUBSYS_ULOG
_PACKET: Final = _SUBSYS << 8
_CONFIG: Final = _SUBSYS << 8 | 1
_CMD_BIND: Final = 1
_CFG_CMD, _CFG_MODE, _CFG_TIMEOUT, _CFG_THRESHOLD, _CFG_FLAGS = 1, 2, 4, 5, 6  # NFULA_CFG_*
_COPY_PACKET: Final = 2
_F_SEQ: Final = 1
_A_TIMESTAMP, _A_INDEV, _A_OUTDEV, _A_PAYLOAD, _A_PREFIX, _A_SEQ = 3, 4, 5, 9, 10, 12
_REQUEST_ACK: Final = 4  # NLM_F_ACK
_SNAPLEN: Final = 96  # an IPv6 header, one extension header and ports
_GATHER: Final = 64  # packets, or
_GATHER_CS: Final = 10  # hundredths of a second
_BUFFER: Final = 1 << 21
_RECEIVE: Final = 1 << 17
_EXTENSIONS: Final = frozenset({0, 43, 60})  # hop-by-hop, routing, destination options


class LoggedPacket(Struct, frozen=True, gc=False):
    """`sport` and `dport` are 0 where the protocol has no ports; addresses are packed.

    `transport` is what was copied of the packet from its transport header on.
    """

    prefix: str
    src: bytes
    dst: bytes
    protocol: int
    sport: int = 0
    dport: int = 0
    in_index: int = 0
    out_index: int = 0
    transport: bytes = b""


class NfLog(nfnl.NfSocket):
    """The one reader of a group in this network namespace; `read` when `fileno` is readable."""

    what = "nflog"

    def __init__(self, group: int, snaplen: int = _SNAPLEN) -> None:
        """`snaplen` bytes of each packet are copied, from its IP header on."""
        super().__init__()
        self._receive_buffer(_BUFFER)
        self._expected: int | None = None
        self.lost = 0
        mode = struct.pack("!IBx", snaplen, _COPY_PACKET)
        for kind, payload in (
            (_CFG_CMD, bytes([_CMD_BIND])),
            (_CFG_MODE, mode),
            (_CFG_TIMEOUT, struct.pack("!I", _GATHER_CS)),
            (_CFG_THRESHOLD, struct.pack("!I", _GATHER)),
            (_CFG_FLAGS, struct.pack("!H", _F_SEQ)),
        ):
            self._configure(group, nfnl.attr(kind, payload))
        self._socket.setblocking(False)

    def _configure(self, group: int, body: bytes) -> None:
        seq = self._next_seq()
        flags = 1 | _REQUEST_ACK
        request = nfnl.message(_CONFIG, flags, seq, socket.AF_UNSPEC, body, group)
        for _kind, got_flags, got_seq, got in self._exchange(request):
            if got_seq == seq:
                code, words = decode.error_of(got_flags, got)
                if code:
                    text = words or f"group {group} is somebody else's, or nfnetlink_log is missing"
                    raise KernelError(f"{self.what}: {text}", errno=code)

    def fileno(self) -> int:
        return self._socket.fileno()

    def read(self, limit: int = 10_000) -> list[LoggedPacket]:
        """The packets since the last call, about `limit` at most; never blocks."""
        found: list[LoggedPacket] = []
        while len(found) < limit:
            try:
                data = self._socket.recv(_RECEIVE)
            except BlockingIOError:
                break
            except OSError as e:
                if e.errno != errno.ENOBUFS:
                    raise KernelError(self.what, errno=e.errno or 0) from e
                continue  # the gap in the numbers will tell
            found += self._packets(data)
        return found

    def _packets(self, data: bytes) -> Iterator[LoggedPacket]:
        for kind, _flags, _seq, body in decode.messages(data):
            if kind != _PACKET:
                continue
            attributes = decode.attrs(body, 4)
            self._count_gap(int.from_bytes(attributes.get(_A_SEQ, b""), "big"))
            packet = parse_packet(attributes)
            if packet is not None:
                yield packet

    def _count_gap(self, number: int) -> None:
        if self._expected is not None:
            self.lost += (number - self._expected) & 0xFFFFFFFF
        self._expected = (number + 1) & 0xFFFFFFFF


def parse_packet(attributes: dict[int, bytes]) -> LoggedPacket | None:
    """None for what is not IP or is cut too short."""
    payload = attributes.get(_A_PAYLOAD, b"")
    header = _addresses(payload)
    if header is None:
        return None
    src, dst, protocol, offset = header
    sport = dport = 0
    if protocol in (6, 17, 132) and len(payload) >= offset + 4:
        sport, dport = struct.unpack_from("!HH", payload, offset)
    return LoggedPacket(
        attributes.get(_A_PREFIX, b"").rstrip(b"\0").decode(errors="replace"),
        src,
        dst,
        protocol,
        sport,
        dport,
        int.from_bytes(attributes.get(_A_INDEV, b""), "big"),
        int.from_bytes(attributes.get(_A_OUTDEV, b""), "big"),
        payload[offset:],
    )


def _addresses(payload: bytes) -> tuple[bytes, bytes, int, int] | None:
    """(source, destination, protocol, where the transport header begins)."""
    if len(payload) >= 20 and payload[0] >> 4 == 4:
        return payload[12:16], payload[16:20], payload[9], (payload[0] & 15) * 4
    if len(payload) >= 40 and payload[0] >> 4 == 6:
        protocol, offset = payload[6], 40
        while protocol in _EXTENSIONS and len(payload) >= offset + 8:
            protocol, offset = payload[offset], offset + (payload[offset + 1] + 1) * 8
        return payload[8:24], payload[24:40], protocol, offset
    return None
