"""Sets of integers as sorted, disjoint, never adjacent (first, last) pairs, both included. Pure.

Ports and addresses are both such sets; every operation is one pass over its operands.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, TypeAlias

Interval: TypeAlias = tuple[int, int]
Intervals: TypeAlias = tuple[Interval, ...]

EMPTY: Final[Intervals] = ()


def union(*sets: Iterable[Interval]) -> Intervals:
    """Of any intervals, in any order; overlapping and adjacent ones become one."""
    merged: list[Interval] = []
    for first, last in sorted(interval for each in sets for interval in each):
        if merged and first <= merged[-1][1] + 1:
            if last > merged[-1][1]:
                merged[-1] = (merged[-1][0], last)
        else:
            merged.append((first, last))
    return tuple(merged)


def intersect(left: Intervals, right: Intervals) -> Intervals:
    common: list[Interval] = []
    i = j = 0
    while i < len(left) and j < len(right):
        first, last = max(left[i][0], right[j][0]), min(left[i][1], right[j][1])
        if first <= last:
            common.append((first, last))
        if left[i][1] < right[j][1]:
            i += 1
        else:
            j += 1
    return tuple(common)


def subtract(left: Intervals, right: Intervals) -> Intervals:
    if not right:
        return left
    rest: list[Interval] = []
    j = 0
    for first, last in left:
        while j < len(right) and right[j][1] < first:
            j += 1
        k = j
        while k < len(right) and right[k][0] <= last:
            if right[k][0] > first:
                rest.append((first, right[k][0] - 1))
            first = right[k][1] + 1
            k += 1
        if first <= last:
            rest.append((first, last))
    return tuple(rest)


def contains(intervals: Intervals, point: int) -> bool:
    return any(first <= point <= last for first, last in intervals)
