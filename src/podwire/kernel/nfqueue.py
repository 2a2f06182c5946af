"""Packets that wait in the kernel until user space has seen them.

    rule `queue flags bypass to 7` -> nfnetlink_queue -> NfQueue.read -> what they are about is done
                                                      -> NfQueue.release -> they go on

Nothing here drops a packet. While nobody reads the queue (`bypass`), and when it is full, packets
pass unread; those that wait when their reader dies are lost, as on a wire.
Source: include/uapi/linux/netfilter/nfnetlink_queue.h.
"""

from __future__ import annotations

import socket
import struct
from typing import Final

from podwire.errors import KernelError
from podwire.kernel import decode, nfnl
from podwire.kernel.copied import CopiedPacket, parse_copied

_SUBSYS: Final = 3  # NFNL_SUBSYS_QUEUE
_PACKET, _CONFIG, _VERDICTS = _SUBSYS << 8, _SUBSYS << 8 | 2, _SUBSYS << 8 | 3
_CMD_BIND: Final = 1
_CFG_CMD, _CFG_PARAMS, _CFG_MASK, _CFG_FLAGS = 1, 2, 4, 5  # NFQA_CFG_*
_COPY_PACKET: Final = 2
_F_FAIL_OPEN: Final = 1
_A_HEADER, _A_VERDICT, _A_PAYLOAD = 1, 2, 10  # NFQA_*
_ACCEPT: Final = 1
_BUFFER: Final = 1 << 21
_RECEIVE: Final = 1 << 17


class NfQueue(nfnl.NfSocket):
    """The one reader of a queue in this network namespace; `read` when `fileno` is readable."""

    what = "nfqueue"

    def __init__(self, number: int, copied: int) -> None:
        """`copied` bytes of each packet are told, from its IP header on."""
        super().__init__()
        self._number = number
        self._waiting = 0
        self._receive_buffer(_BUFFER)
        flags = struct.pack("!I", _F_FAIL_OPEN)
        for body in (
            nfnl.attr(_CFG_CMD, struct.pack("!BxH", _CMD_BIND, socket.AF_UNSPEC)),
            nfnl.attr(_CFG_PARAMS, struct.pack("!IB", copied, _COPY_PACKET)),
            nfnl.attr(_CFG_FLAGS, flags) + nfnl.attr(_CFG_MASK, flags),
        ):
            likely = f"queue {number} is somebody else's, or nfnetlink_queue is missing"
            self._configure(_CONFIG, number, body, likely)
        self._socket.setblocking(False)

    def fileno(self) -> int:
        return self._socket.fileno()

    def read(self) -> list[CopiedPacket]:
        """The packets that came since the last call, all of which wait; never blocks."""
        found: list[CopiedPacket] = []
        while True:
            try:
                data = self._socket.recv(_RECEIVE)
            except BlockingIOError:
                return found
            except OSError as e:
                raise KernelError(self.what, errno=e.errno or 0) from e
            for kind, _flags, _seq, body in decode.messages(data):
                if kind == _PACKET:
                    attributes = decode.attrs(body, 4)
                    self._waiting = int.from_bytes(attributes[_A_HEADER][:4], "big")
                    packet = parse_copied(attributes.get(_A_PAYLOAD, b""))
                    if packet is not None:
                        found.append(packet)

    def release(self) -> None:
        """All that were read go on."""
        if not self._waiting:
            return
        verdict = nfnl.attr(_A_VERDICT, struct.pack("!II", _ACCEPT, self._waiting))
        self._waiting = 0
        request = nfnl.message(
            _VERDICTS, 1, self._next_seq(), socket.AF_UNSPEC, verdict, self._number
        )
        try:
            self._socket.send(request)
        except OSError as e:
            raise KernelError(self.what, errno=e.errno or 0) from e
