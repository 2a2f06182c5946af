"""Heartbeats on the wire, and what silence means."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podwire.services.election import DEAD_AFTER_S, digest
from podwire.services.heartbeats import (
    SUSPECT_AFTER_S,
    Heartbeat,
    Liveness,
    pack_heartbeat,
    parse_heartbeat,
)

marks = st.binary(min_size=4, max_size=4)
beats = st.builds(
    Heartbeat,
    st.text("abc-.é", min_size=1, max_size=60),
    st.frozensets(marks, max_size=60),
    st.dictionaries(marks, st.integers(0, 0xFFFF), max_size=20),
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


@pytest.mark.parametrize("data", [b"", b"pwlb\1", b"pwlb\2\1a\0\0\0\0", b"pwlb\1\0\0\0\0\0"])
def test_refused(data: bytes) -> None:
    assert parse_heartbeat(data) is None


def test_silence() -> None:
    known = Liveness()
    known.expect(["b", "c"], 100.0)
    assert known.state("b", 100.0 + DEAD_AFTER_S / 2) == "alive"
    assert set(known.suspects(100.01 + SUSPECT_AFTER_S)) == {"b", "c"}
    known.hear(Heartbeat("b"), 100.5)
    assert known.state("b", 100.0 + DEAD_AFTER_S + 0.4) == "alive"
    assert known.state("c", 100.01 + DEAD_AFTER_S) == "dead"
    assert known.state("unknown", 100.0) == "dead"
    assert known.suspects(100.5 + 0.1) == ["c"]


def test_a_kernel_that_answers_is_frozen_with_what_it_announced() -> None:
    known = Liveness()
    known.expect(["b"], 0.0)
    vip = digest("172.30.0.200")
    known.hear(Heartbeat("b", frozenset({vip})), 0.1)
    assert known.candidates(0.2)["b"].held == frozenset()
    known.answered("b", 1.0)
    known.answered("stranger", 1.0)
    assert known.candidates(1.1)["b"].state == "frozen"
    assert known.candidates(1.1)["b"].held == {vip}
    assert known.candidates(1.0 + DEAD_AFTER_S)["b"].state == "dead"


def test_hearsay_keeps_alive_for_as_long_as_it_would_the_teller() -> None:
    known = Liveness()
    known.expect(["b", "c"], 0.0)
    told = Heartbeat("b", heard_ms={digest("c"): 200, digest("nobody"): 1})
    known.hear(told, 1.0)
    assert known.state("c", 0.8 + DEAD_AFTER_S - 0.01) == "alive"
    assert known.state("c", 0.81 + DEAD_AFTER_S) == "dead"
    # What was only told is not told on: two nodes could keep a dead one alive for ever.
    assert set(known.heard_ms(1.0)) == {digest("b")}


def test_what_a_sender_stopped_announcing_is_told_once() -> None:
    known = Liveness()
    known.expect(["b"], 0.0)
    vip = digest("172.30.0.200")
    assert known.hear(Heartbeat("b", frozenset({vip})), 0.1) == {vip}
    assert known.hear(Heartbeat("b"), 0.2) == {vip}
    assert known.hear(Heartbeat("b"), 0.3) == frozenset()
    assert known.hear(Heartbeat("stranger", frozenset({vip})), 0.3) == frozenset()


def test_leaving_for_a_moment_is_no_rebirth() -> None:
    known = Liveness()
    known.expect(["b"], 0.0)
    known.expect([], 0.4)
    known.expect(["b"], 0.5)
    assert known.state("b", DEAD_AFTER_S) == "dead"
    known.expect([], 1.0)
    known.expect(["b"], 1.0 + DEAD_AFTER_S)
    assert known.state("b", 1.0 + DEAD_AFTER_S) == "alive"


def test_silence_while_nobody_spoke_means_nothing() -> None:
    known = Liveness()
    known.expect(["b"], 0.0)
    assert known.state("b", 50.0) == "dead"
    known.restart(50.0)
    assert known.state("b", 50.0) == "alive"
