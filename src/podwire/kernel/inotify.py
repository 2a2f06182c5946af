"""Files that are replaced, told by the kernel (inotify(7)): no polling.

A whole directory is watched, because editors and kubelet replace files instead of writing them: a
projected volume changes by the rename of `..data`.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from podwire.errors import KernelError

_IN_CLOSE_WRITE: Final = 0x8
_IN_MOVED_TO: Final = 0x80
_IN_CREATE: Final = 0x100
_IN_DELETE: Final = 0x200
_EVENTS: Final = _IN_CLOSE_WRITE | _IN_MOVED_TO | _IN_CREATE | _IN_DELETE
_READ_BYTES: Final = 64 * 1024
_libc = ctypes.CDLL(None, use_errno=True)


class DirectoryWatch:
    """Readable (`fileno`) when something in `directory` was written, renamed, made or removed."""

    def __init__(self, directory: Path) -> None:
        self._fd: int = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0:
            raise KernelError("inotify_init1", errno=ctypes.get_errno())
        try:
            self.add(directory)
        except KernelError:
            self.close()
            raise

    def add(self, directory: Path) -> None:
        """One more directory; again for one that is watched changes nothing."""
        if _libc.inotify_add_watch(self._fd, os.fsencode(directory), _EVENTS) < 0:
            raise KernelError(f"inotify_add_watch {directory}", errno=ctypes.get_errno())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()

    def fileno(self) -> int:
        return self._fd

    def drain(self) -> None:
        """Forget what was told so far."""
        with contextlib.suppress(BlockingIOError):
            while os.read(self._fd, _READ_BYTES):
                pass

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
