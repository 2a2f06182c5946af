"""How long answers of the receive loop take, told from few of them.

    datagram arrives (the kernel's clock) -> waits in the socket's buffer -> is answered
    |------------------------------ what is observed ------------------------------------|

Timing each query would cost a tenth of what answering it does. So one is timed at most every
millisecond, and stands for all since the one before it: a server that is asked less often times
them all, a busy one some thousand a second. Which one of a batch is timed moves on from batch to
batch: the first has waited longest for the loop, the last for those before it.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable
from typing import Final

from podwire.dns.metrics import DURATION_BUCKETS_S, Histogram

_PAUSE_S: Final = 0.001
# asm-generic/socket.h, since Linux 5.1: 64-bit seconds and nanoseconds whatever the machine's word.
_SO_TIMESTAMPNS_NEW: Final = 64
_TIMESPEC: Final = struct.Struct("=qq")
STAMP_SPACE: Final = socket.CMSG_SPACE(_TIMESPEC.size)
NONE: Final = -1

Ancillary = list[tuple[int, int, bytes]]


def stamp_arrivals(sock: socket.socket) -> None:
    """Have `recvmsg` tell when a datagram arrived; a kernel that cannot tells nothing."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS_NEW, 1)
    except OSError:
        return


def arrival_ns(ancillary: Ancillary) -> int | None:
    """When the kernel had the datagram, by the wall clock."""
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == _SO_TIMESTAMPNS_NEW:
            seconds, nanoseconds = _TIMESPEC.unpack(data)
            return int(seconds * 1_000_000_000 + nanoseconds)
    return None


class FastLatency:
    """`histogram` counts every query; those that were not timed where the next timed one is."""

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self.histogram = Histogram(DURATION_BUCKETS_S)
        self._clock = clock
        self._wall_ns = wall_ns
        self._due = 0.0
        self._turn = 0
        self._batch = 1
        self._untold = 0

    def place(self) -> int:
        """The number, from 0 on, of the datagram to time in the batch that begins now, or `NONE`.

        It may be one that does not come: the batch is taken to be as long as the one before.
        """
        now = self._clock()
        if now < self._due:
            return NONE
        # From here, not from when it is answered: places late in a batch must not count for more.
        self._due = now + _PAUSE_S
        self._turn += 1
        return self._turn % self._batch

    def batch(self, size: int) -> None:
        """So many datagrams were taken."""
        if size:
            self._batch = size
            self._untold += size

    def observe(self, ancillary: Ancillary, *, answered: bool) -> None:
        """The timed one is done; `answered` False: by others, who time it, and those like it."""
        weight = max(1, self._untold)
        self._untold = 0
        arrived = arrival_ns(ancillary)
        if answered and arrived is not None:
            # The wall clock may be set while a query waits.
            self.histogram.observe(max(0, self._wall_ns() - arrived) / 1e9, weight)
