"""What silence means, and what it does not."""

from __future__ import annotations

from collections.abc import Iterable

from podwire.services.election import digest
from podwire.services.heartbeats import Heartbeat
from podwire.services.liveness import (
    BEAT_S,
    DEAD_AFTER_S,
    PATIENCE_S,
    SUSPECT_AFTER_S,
    Heard,
    Liveness,
)

VIP = digest("172.30.0.200")


def knowing(names: str, watched: Iterable[str] = ()) -> Liveness:
    """All of `names` share an address with us, since 0."""
    known = Liveness()
    known.expect({n: set(names) - {n} for n in names}, 0.0)
    known.watch(set(watched), 0.0)
    return known


def state(known: Liveness, name: str, now: float) -> str:
    return known.candidates(now)[name].state


def test_a_lost_heartbeat_is_a_question() -> None:
    known = knowing("bc", "b")
    assert known.doubt(SUSPECT_AFTER_S - 0.01) == frozenset()
    assert known.next_at(0.1) == SUSPECT_AFTER_S
    # The others of the circle are asked too: it may be their turn.
    assert known.doubt(SUSPECT_AFTER_S) == {"b", "c"}
    assert known.doubt(SUSPECT_AFTER_S + 0.01) == frozenset()
    assert known.hear(Heartbeat("b"), 0.41).news
    assert known.doubt(0.45) == {"c"}
    assert state(known, "b", DEAD_AFTER_S) == "alive"
    assert state(known, "c", DEAD_AFTER_S) == "dead"
    # Whom nobody watches may be silent for ever, the dead stay dead until they speak.
    assert state(known, "c", 100.0) == "dead"
    assert known.hear(Heartbeat("c"), 100.0).news
    assert state(known, "c", 200.0) == "alive"


def test_nobody_is_dead_who_was_not_asked() -> None:
    """Who slept for a minute, or was kept from the processor, does not take what others have."""
    known = knowing("bc", "b")
    assert state(known, "b", 60.0) == "alive"
    assert known.doubt(60.0) == {"b", "c"}
    assert state(known, "b", 60.0 + PATIENCE_S - 0.01) == "alive"
    assert state(known, "b", 60.0 + PATIENCE_S) == "dead"
    assert known.next_at(60.0) <= 60.0 + PATIENCE_S


def test_who_is_to_speak_from_now_on_has_its_time() -> None:
    known = knowing("bc")
    assert known.doubt(50.0) == frozenset()
    known.watch({"b"}, 50.0)
    assert known.next_at(50.0) == 50.0 + SUSPECT_AFTER_S
    known.watch({"b"}, 50.2)
    assert known.doubt(50.0 + SUSPECT_AFTER_S) == {"b", "c"}


def test_a_kernel_that_answers_is_frozen_with_what_it_announced() -> None:
    known = knowing("b", "b")
    assert known.hear(Heartbeat("b", frozenset({VIP})), 0.1) == Heard(frozenset({VIP}), True)
    known.doubt(0.1 + SUSPECT_AFTER_S)
    known.answered("b", 0.5)
    known.answered("stranger", 0.5)
    now = 0.1 + DEAD_AFTER_S
    assert (state(known, "b", now), known.candidates(now)["b"].held) == ("frozen", {VIP})
    assert known.doubt(0.5 + BEAT_S) == {"b"}
    assert state(known, "b", 0.5 + DEAD_AFTER_S) == "dead"
    assert known.candidates(0.5 + DEAD_AFTER_S)["b"].held == frozenset()


def test_hearsay_is_believed_where_it_is_news() -> None:
    known = knowing("bc", "b")
    known.doubt(1.0)
    told = Heartbeat("c", heard_ms={digest("b"): 200, digest("nobody"): 1})
    assert known.hear(told, 1.1).news
    assert known.doubt(1.0 + SUSPECT_AFTER_S - 0.11) == frozenset()
    assert "b" in known.doubt(0.91 + SUSPECT_AFTER_S)
    # What the teller heard before the silence is no news, and does not put the end off.
    stale = Heartbeat("c", heard_ms={digest("b"): int(SUSPECT_AFTER_S * 1000)})
    assert not known.hear(stale, 1.3).news or state(known, "b", 0.91 + DEAD_AFTER_S) == "dead"
    assert state(known, "b", 0.92 + DEAD_AFTER_S) == "dead"
    # What was only told is not told on: two nodes could keep a dead one alive for ever.
    assert set(known.heard_ms(1.3)) == {digest("c")}


def test_what_a_sender_stopped_announcing_is_told_once() -> None:
    known = knowing("b")
    both = frozenset({VIP})
    assert known.hear(Heartbeat("b", both), 0.1).disputed == both
    assert known.hear(Heartbeat("b"), 0.2).disputed == both
    assert known.hear(Heartbeat("b"), 0.3) == Heard()
    assert known.hear(Heartbeat("stranger", both), 0.3) == Heard()


def test_leaving_for_a_moment_is_no_rebirth() -> None:
    known = knowing("b", "b")
    known.doubt(1.0)
    known.expect({}, 1.2)
    known.expect({"b": ()}, 1.3)
    assert state(known, "b", 1.0 + PATIENCE_S) == "dead"
    known.expect({}, 2.0)
    known.expect({"b": ()}, 2.0 + DEAD_AFTER_S)
    assert state(known, "b", 2.0 + DEAD_AFTER_S) == "alive"


def test_the_dead_are_asked_now_and_then() -> None:
    known = knowing("b", "b")
    asked = [n / 100 for n in range(1000) if known.doubt(n / 100)]
    assert 5 <= len([t for t in asked if t <= DEAD_AFTER_S]) <= 6
    assert len([t for t in asked if t > DEAD_AFTER_S]) in (9, 10)
