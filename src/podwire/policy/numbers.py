"""Numbers for things that come and go. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Final

_RESTING: Final = 10_000


class Numbers:
    """The one given back longest ago is given out first, and not before `settle`.

    A number that stands for something else at once could be met by a packet that read it in its
    former meaning. So many rest before one is used again, where there are others; without that
    bound all that ever were would be kept.
    """

    def __init__(self, first: int, last: int, what: str) -> None:
        self._next, self._last, self._what = first, last, what
        self._free: deque[int] = deque()
        self._returned: list[int] = []

    def take(self) -> int:
        if self._next <= self._last and len(self._free) < _RESTING:
            self._next += 1
            return self._next - 1
        if self._free:
            return self._free.popleft()
        raise OverflowError(f"policies: more than {self._last} {self._what} on one node")

    def give_back(self, numbers: Iterable[int]) -> None:
        self._returned += numbers

    def settle(self) -> None:
        """Nobody can have read what was given back."""
        self._free += self._returned
        self._returned = []
