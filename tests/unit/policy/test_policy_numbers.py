"""Numbers rest before they mean something else, and are not kept for ever."""

from __future__ import annotations

import pytest

from podwire.policy.numbers import Numbers


def test_a_number_that_was_given_back_rests_and_then_comes_again() -> None:
    numbers = Numbers(1, (1 << 32) - 1, "things")
    taken = []
    for _ in range(50_000):
        taken.append(numbers.take())
        numbers.give_back(taken[-1:])
        numbers.settle()
    assert len(set(taken[-10_000:])) == 10_000
    assert max(taken) <= 10_001


def test_where_there_are_few_the_longest_rested_comes_first() -> None:
    numbers = Numbers(1, 2, "things")
    assert (numbers.take(), numbers.take()) == (1, 2)
    numbers.give_back([2, 1])
    with pytest.raises(OverflowError, match="more than 2 things"):
        numbers.take()
    numbers.settle()
    assert (numbers.take(), numbers.take()) == (2, 1)
