"""What every handle on a network namespace has in common: opened inside it, closed after use."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from podwire.kernel import netns


class Handle:
    """Made without arguments, it belongs to the calling thread's namespace, wherever it is used."""

    @classmethod
    def in_ns(cls, fd: int) -> Self:
        """Open in the namespace behind `fd`."""
        with netns.entered(fd):
            return cls()

    def close(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
