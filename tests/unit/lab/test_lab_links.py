"""Impaired links: the words people type, and the nft text they become."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from podwire.errors import UsageError
from podwire.lab.links import Impairment, parse_impairment, render
from podwire.lab.spec import NodeSpec

A, B, C = NodeSpec("node-1", 2), NodeSpec("node-2", 3), NodeSpec("node-10", 11)


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["up"], Impairment()),
        (["down"], Impairment(down=True)),
        (["loss", "5%"], Impairment(loss_percent=5)),
        (["loss", "0.5"], Impairment(loss_percent=0.5)),
        (["rate", "10mbit"], Impairment(rate_bit=10e6)),
        (["rate", "1.5gbit"], Impairment(rate_bit=1.5e9)),
        (["delay", "50ms"], Impairment(delay_s=0.05)),
        (["loss", "1%", "rate", "8kbit"], Impairment(loss_percent=1, rate_bit=8e3)),
    ],
)
def test_words(words: list[str], wanted: Impairment) -> None:
    assert parse_impairment(words) == wanted


@pytest.mark.parametrize(
    "words",
    [
        *([], ["loss"], ["sideways"], ["down", "up"], ["loss", "x"], ["rate", "10"]),
        *(["delay", "5"], ["loss", "-1%"], ["loss", "101%"], ["rate", "1mbit", "down"]),
    ],
)
def test_refused(words: list[str]) -> None:
    with pytest.raises(UsageError, match="link"):
        parse_impairment(words)


def test_rules(golden: Callable[[str, str], None]) -> None:
    pairs = [
        (A, B, Impairment(down=True)),
        (A, C, Impairment(loss_percent=0.01, rate_bit=1e6)),
        (B, C, Impairment(loss_percent=100)),
    ]
    golden("impairments.nft.txt", render(pairs))


def test_without_impairments_there_is_no_table() -> None:
    assert render([]) == "table bridge podwire-impair\ndelete table bridge podwire-impair\n"
