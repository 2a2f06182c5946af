"""The window size of a program that a runtime runs on a terminal of its own.

    our terminal --SIGWINCH--> crun exec --copies--> the program's terminal

The runtime hears of a change only once it listens, and nobody can tell when that is: a size set
while it starts gets lost. So the program's own terminal is set too, as soon as there is one.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import struct
import termios
from collections.abc import Callable
from typing import Final

from podwire.runtime.streams.local import set_window_size

_FIRST_S: Final = 0.01
_LAST_S: Final = 0.5
_GIVE_UP_S: Final = 20.0


def window_size(terminal: int) -> tuple[int, int]:
    """(columns, rows)."""
    rows, columns, _, _ = struct.unpack("HHHH", fcntl.ioctl(terminal, termios.TIOCGWINSZ, bytes(8)))
    return columns, rows


def ensure_size(pid: int, columns: int, rows: int) -> bool:
    """Give the terminal that `pid` speaks on a size; False when it has none (yet)."""
    for number in (0, 1, 2):
        try:
            fd = os.open(f"/proc/{pid}/fd/{number}", os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        except OSError:
            continue
        try:
            if os.isatty(fd):
                if window_size(fd) != (columns, rows):
                    set_window_size(fd, columns, rows)
                return True
        finally:
            os.close(fd)
    return False


class Resizer:
    """Has the last size asked for arrive; `pid_of` raises OSError or ValueError until it knows."""

    def __init__(self, pid_of: Callable[[], int]) -> None:
        self._pid_of = pid_of
        self._task: asyncio.Task[None] | None = None

    def want(self, columns: int, rows: int) -> None:
        self.close()
        self._task = asyncio.get_running_loop().create_task(self._settle(columns, rows))

    def close(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _settle(self, columns: int, rows: int) -> None:
        # There is no event to wait for: the runtime writes its pid file, then makes the terminal.
        pause_s = _FIRST_S
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_GIVE_UP_S):
                while not self._try(columns, rows):
                    await asyncio.sleep(pause_s)
                    pause_s = min(pause_s * 1.5, _LAST_S)

    def _try(self, columns: int, rows: int) -> bool:
        try:
            return ensure_size(self._pid_of(), columns, rows)
        except (OSError, ValueError):
            return False
