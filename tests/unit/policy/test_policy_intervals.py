"""Intervals are sets of integers: every operation agrees with Python's own sets."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from podwire.policy import intervals, ports
from podwire.policy.intervals import Intervals
from podwire.policy.model import PortRange

_pairs = st.lists(
    st.tuples(st.integers(0, 40), st.integers(0, 6)).map(lambda p: (p[0], p[0] + p[1])), max_size=6
)


def _points(found: Intervals) -> set[int]:
    return {n for first, last in found for n in range(first, last + 1)}


def _normal(found: Intervals) -> bool:
    return all(a[1] + 1 < b[0] for a, b in itertools.pairwise(found)) and all(
        first <= last for first, last in found
    )


@given(_pairs, _pairs)
def test_operations_agree_with_sets(left: list[tuple[int, int]], right: list[tuple[int, int]]):
    a, b = intervals.union(left), intervals.union(right)
    assert _points(a) == {n for first, last in left for n in range(first, last + 1)}
    for found, wanted in (
        (intervals.union(a, b), _points(a) | _points(b)),
        (intervals.intersect(a, b), _points(a) & _points(b)),
        (intervals.subtract(a, b), _points(a) - _points(b)),
    ):
        assert _points(found) == wanted
        assert _normal(found)
    assert all(intervals.contains(a, n) == (n in _points(a)) for n in range(50))


def test_ports_lie_on_one_line():
    every = list(ports.to_ranges(ports.ALL))
    assert every == [PortRange(6), PortRange(17), PortRange(132)]
    assert list(ports.to_ranges(ports.ALL_PORTS)) == every
    some = [PortRange(6, 80, 90), PortRange(17, 0, 65535), PortRange(132, 7, 7)]
    assert list(ports.to_ranges(ports.of_ranges(some))) == some
    assert ports.point(1, 0) == ports.point(47, 12) == ports.OTHER
    assert intervals.contains(ports.of_ranges(some), ports.point(17, 53))
    assert not intervals.contains(ports.of_ranges(some), ports.point(6, 53))
