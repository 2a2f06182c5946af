"""Weights as repetition: a backend of weight 3 stands in three slots. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

from podwire.services.endpoints import Backend

# Shares finer than this are not worth the elements.
MAX_SLOTS: Final = 256


def spread(backends: Sequence[Backend], weights: Mapping[bytes, int] | None) -> list[Backend]:
    """Each backend as often as its weight says, divided by what all have in common.

    Past `MAX_SLOTS` in total the shares are rounded, but nobody gets none.
    """
    if not weights:
        return list(backends)
    numbers = [weights.get(backend.ip, 1) for backend in backends]
    divisor = math.gcd(*numbers)
    numbers = [number // divisor for number in numbers]
    total = sum(numbers)
    limit = max(MAX_SLOTS, len(numbers))
    if total > limit:
        numbers = [max(1, round(number * limit / total)) for number in numbers]
    return [b for b, number in zip(backends, numbers, strict=True) for _ in range(number)]
