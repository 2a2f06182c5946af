"""Maglev consistent hashing: a table of slots that changes little when backends come and go.

Every backend walks its own permutation of the slots and they take turns claiming the next free
one, as often as their weight says. All nodes compute the same table from the same backends, so a
connection that arrives at another node finds the same backend there.
Source: Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer", NSDI 2016.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Final

from podwire.services.endpoints import Backend

# Primes: a permutation needs a step without a common divisor. The table is at least eight times
# as long as there are backends, so that shares differ by little.
SIZES: Final = (251, 509, 1021, 2039, 4093, 8191, 16381)
_SLOTS_PER_BACKEND: Final = 8


def table_size(backends: int) -> int:
    """Slots for so many backends (16,381 at the most)."""
    return next((size for size in SIZES if size >= _SLOTS_PER_BACKEND * backends), SIZES[-1])


def fill_table(
    backends: Sequence[Backend], weights: Mapping[bytes, int] | None = None
) -> list[Backend]:
    """The backend of every slot; empty without backends."""
    ordered = sorted(backends)
    if not ordered:
        return []
    size = table_size(len(ordered))
    walks = [_Walk(backend, size) for backend in ordered]
    turns = [(weights or {}).get(backend.ip, 1) for backend in ordered]
    table: list[Backend | None] = [None] * size
    left = size
    while True:
        for backend, walk, weight in zip(ordered, walks, turns, strict=True):
            for _ in range(weight):
                slot = walk.next_free(table)
                table[slot] = backend
                left -= 1
                if not left:
                    return [b for b in table if b is not None]


class _Walk:
    """One backend's permutation of the slots: offset, then step after step."""

    def __init__(self, backend: Backend, size: int) -> None:
        digest = hashlib.blake2b(str(backend).encode(), digest_size=16).digest()
        self._slot = int.from_bytes(digest[:8], "big") % size
        self._step = int.from_bytes(digest[8:], "big") % (size - 1) + 1
        self._size = size

    def next_free(self, table: Sequence[Backend | None]) -> int:
        while table[self._slot] is not None:
            self._slot = (self._slot + self._step) % self._size
        return self._slot
