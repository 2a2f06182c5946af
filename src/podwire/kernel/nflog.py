"""Packets that rules with `log group N` copy to user space: who met which rule.

    rule `log group 42 prefix "..." snaplen 96` -> nfnetlink_log -> NfLog.read -> CopiedPacket

The kernel gathers packets for up to a tenth of a second and sends them together, or sends each at
once where somebody waits for what it says. Those that did not fit are counted: every packet carries
the group's sequence number, and a gap is a loss.
Source: include/uapi/linux/netfilter/nfnetlink_log.h.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator
from typing import Final

from podwire.errors import KernelError
from podwire.kernel import decode, nfnl
from podwire.kernel.copied import CopiedPacket, parse_copied

_SUBSYS: Final = 4  # NFNL_SUBSYS_ULOG
_PACKET: Final = _SUBSYS << 8
_CONFIG: Final = _SUBSYS << 8 | 1
_CMD_BIND: Final = 1
_CFG_CMD, _CFG_MODE, _CFG_TIMEOUT, _CFG_THRESHOLD, _CFG_FLAGS = 1, 2, 4, 5, 6  # NFULA_CFG_*
_COPY_PACKET: Final = 2
_F_SEQ: Final = 1
_A_TIMESTAMP, _A_INDEV, _A_OUTDEV, _A_PAYLOAD, _A_PREFIX, _A_SEQ = 3, 4, 5, 9, 10, 12
_SNAPLEN: Final = 96  # an IPv6 header, one extension header and ports
_GATHER: Final = 64  # packets, or
_GATHER_CS: Final = 10  # hundredths of a second
_BUFFER: Final = 1 << 21
_RECEIVE: Final = 1 << 17


class NfLog(nfnl.NfSocket):
    """The one reader of a group in this network namespace; `read` when `fileno` is readable."""

    what = "nflog"

    def __init__(self, group: int, snaplen: int = _SNAPLEN, *, at_once: bool = False) -> None:
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
            (_CFG_THRESHOLD, struct.pack("!I", 1 if at_once else _GATHER)),
            (_CFG_FLAGS, struct.pack("!H", _F_SEQ)),
        ):
            likely = f"group {group} is somebody else's, or nfnetlink_log is missing"
            self._configure(_CONFIG, group, nfnl.attr(kind, payload), likely)
        self._socket.setblocking(False)

    def fileno(self) -> int:
        return self._socket.fileno()

    def read(self, limit: int = 10_000) -> list[CopiedPacket]:
        """The packets since the last call, about `limit` at most; never blocks."""
        found: list[CopiedPacket] = []
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

    def _packets(self, data: bytes) -> Iterator[CopiedPacket]:
        for kind, _flags, _seq, body in decode.messages(data):
            if kind != _PACKET:
                continue
            attributes = decode.attrs(body, 4)
            self._count_gap(int.from_bytes(attributes.get(_A_SEQ, b""), "big"))
            packet = parse_copied(
                attributes.get(_A_PAYLOAD, b""),
                attributes.get(_A_PREFIX, b"").rstrip(b"\0").decode(errors="replace"),
                int.from_bytes(attributes.get(_A_INDEV, b""), "big"),
                int.from_bytes(attributes.get(_A_OUTDEV, b""), "big"),
            )
            if packet is not None:
                yield packet

    def _count_gap(self, number: int) -> None:
        if self._expected is not None:
            self.lost += (number - self._expected) & 0xFFFFFFFF
        self._expected = (number + 1) & 0xFFFFFFFF
