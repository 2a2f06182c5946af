"""A descriptor that becomes readable every so often: `timerfd`, which Python 3.11 does not offer.

For what is awaited like anything else in the event loop, where the kernel has no event to give.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import time
from typing import Final

from podwire.errors import KernelError

_libc = ctypes.CDLL(None, use_errno=True)


class _Timespec(ctypes.Structure):
    _fields_ = (("tv_sec", ctypes.c_long), ("tv_nsec", ctypes.c_long))


class _Itimerspec(ctypes.Structure):
    _fields_ = (("it_interval", _Timespec), ("it_value", _Timespec))


_NONBLOCK_CLOEXEC: Final = os.O_NONBLOCK | os.O_CLOEXEC


class Timer:
    """Readable `period_s` after it was made, and again after each period."""

    def __init__(self, period_s: float) -> None:
        self._fd = int(_libc.timerfd_create(time.CLOCK_MONOTONIC, _NONBLOCK_CLOEXEC))
        if self._fd < 0:
            raise KernelError("timerfd_create", errno=ctypes.get_errno())
        seconds, rest = divmod(round(period_s * 1e9), 10**9)
        every = _Timespec(seconds, rest)
        spec = _Itimerspec(every, every)
        if _libc.timerfd_settime(self._fd, 0, ctypes.byref(spec), None) < 0:
            number = ctypes.get_errno()
            os.close(self._fd)
            raise KernelError("timerfd_settime", errno=number)

    def fileno(self) -> int:
        return self._fd

    def read(self) -> int:
        """How many periods ended since the last call; never blocks."""
        with contextlib.suppress(BlockingIOError):
            return int.from_bytes(os.read(self._fd, 8), "little")
        return 0

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
