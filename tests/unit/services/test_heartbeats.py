"""Heartbeats on the wire."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podwire.services.heartbeats import Heartbeat, pack_heartbeat, parse_heartbeat

marks = st.binary(min_size=4, max_size=4)
beats = st.builds(
    Heartbeat,
    st.text("abc-.é", min_size=1, max_size=60),
    st.frozensets(marks, max_size=60),
    st.dictionaries(marks, st.integers(0, 0xFFFF), max_size=20),
    st.booleans(),
)


@given(beats)
def test_round_trip(beat: Heartbeat) -> None:
    assert parse_heartbeat(pack_heartbeat(beat)) == beat


@given(st.binary(max_size=200) | beats.map(pack_heartbeat), st.integers(0, 200))
def test_anything_else_is_nothing(data: bytes, cut: int) -> None:
    """Whatever comes in at the port, nobody falls over; half a heartbeat is none."""
    parse_heartbeat(data)
    part = data[:cut]
    assert part == data or parse_heartbeat(part) is None


@pytest.mark.parametrize(
    "data", [b"", b"pwlb\2", b"pwlb\1\1a\0\0\0\0\0", b"pwlb\2\0\0\0\0\0\0", b"pwlb\2\1a\2\0\0\0\0"]
)
def test_refused(data: bytes) -> None:
    assert parse_heartbeat(data) is None
