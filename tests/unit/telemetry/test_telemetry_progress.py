"""How far a node is, in every order changes can come and end."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podwire.objects.meta import Key
from podwire.services.claims import Owner
from podwire.telemetry.progress import (
    Progress,
    describe_progress,
    parse_progress,
    write_interval_s,
)

A, B = (Owner("Service", Key("ns", name)) for name in "ab")


def test_nothing_was_told() -> None:
    assert Progress[Owner]().number == 0


def test_the_first_outstanding_change_holds_the_number_back() -> None:
    progress = Progress[Owner]()
    progress.told(A, 10)
    progress.told(B, 12)
    progress.told(A, 15)
    assert progress.number == 9
    progress.done(A)
    assert progress.number == 11
    progress.done(B)
    assert progress.number == 15


def test_a_number_that_was_told_never_falls() -> None:
    progress = Progress[Owner]()
    progress.told(A, 20)
    progress.done(A)
    assert progress.number == 20
    progress.told(B, 5)  # the other watch is slower
    assert progress.number == 20


def test_what_the_kernel_refused_stays_outstanding_until_it_is_done() -> None:
    progress = Progress[Owner]()
    progress.told(A, 7)
    progress.refuse(A, "no memory")
    progress.told(B, 9)
    progress.done(B)
    assert (progress.number, progress.pending) == (6, 1)
    assert describe_progress(progress, "Services") == (
        "False",
        "KernelRefused",
        "changes up to resourceVersion 6 are in the kernel, except service ns/a: no memory",
    )
    progress.done(A)
    assert describe_progress(progress, "Services")[:2] == ("True", "Programmed")
    assert progress.number == 9


def test_many_refusals_are_cut_short() -> None:
    progress = Progress[Owner]()
    for number in range(5):
        progress.refuse(Owner("Service", Key("ns", str(number))), "x")
    assert describe_progress(progress, "Services")[2].endswith("; and 2 more")


def test_programming() -> None:
    progress = Progress[Owner]()
    progress.told(A, 8)
    status, reason, message = describe_progress(progress, "Services")
    assert (status, reason) == ("False", "Programming")
    assert message.endswith("; 1 Services are behind")


@pytest.mark.parametrize(("message", "number"), [("", 0), ("all is well", 0)])
def test_other_words_have_no_number(message: str, number: int) -> None:
    assert parse_progress(message) == number


@given(st.lists(st.tuples(st.sampled_from([A, B]), st.booleans()), max_size=30))
def test_what_is_outstanding_is_beyond_the_number(steps: list[tuple[Owner, bool]]) -> None:
    progress = Progress[Owner]()
    outstanding: dict[Owner, int] = {}
    last = 0
    for version, (owner, done) in enumerate(steps, 1):
        if done:
            progress.done(owner)
            outstanding.pop(owner, None)
        else:
            progress.told(owner, version)
            outstanding.setdefault(owner, version)
        assert all(progress.number < version for version in outstanding.values())
        assert progress.number >= last
        assert parse_progress(describe_progress(progress, "Services")[2]) == progress.number
        last = progress.number


@pytest.mark.parametrize(("nodes", "seconds"), [(1, 1.0), (20, 1.0), (100, 5.0)])
def test_large_clusters_tell_more_rarely(nodes: int, seconds: float) -> None:
    assert write_interval_s(nodes) == seconds
