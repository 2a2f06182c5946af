"""Selectors as values: what matches, what is equal, how they read."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from naive_policy import labels_match
from policy_worlds import labels, selectors

from podwire.objects.meta import LabelSelector
from podwire.policy.selector import EVERYTHING, Selector, normalise


def made(raw: dict[str, Any]) -> Selector:
    return normalise(msgspec.convert(raw, LabelSelector))


def expression(key: str, operator: str, *values: str) -> dict[str, Any]:
    return {"key": key, "operator": operator, **({"values": [*values]} if values else {})}


def selector(*rows: dict[str, Any], **match_labels: str) -> dict[str, Any]:
    return {"matchLabels": match_labels, "matchExpressions": [*rows]}


MATCHES: list[tuple[dict[str, Any], dict[str, str], bool]] = [
    ({}, {}, True),
    ({"matchLabels": None, "matchExpressions": None}, {"a": "b"}, True),
    ({"matchLabels": {}, "matchExpressions": []}, {"a": "b"}, True),
    (selector(a="b"), {"a": "b", "c": "d"}, True),
    (selector(a="b"), {"a": "c"}, False),
    (selector(a="b"), {}, False),
    (selector(a="b", c="d"), {"a": "b"}, False),
    (selector(a=""), {"a": ""}, True),
    (selector(a=""), {}, False),
    (selector(expression("a", "In", "b", "c")), {"a": "c"}, True),
    (selector(expression("a", "In", "b")), {}, False),
    (selector(expression("a", "NotIn", "b")), {"a": "c"}, True),
    (selector(expression("a", "NotIn", "b")), {"a": "b"}, False),
    (selector(expression("a", "NotIn", "b")), {}, True),
    (selector(expression("a", "Exists")), {"a": ""}, True),
    (selector(expression("a", "Exists")), {}, False),
    (selector(expression("a", "DoesNotExist")), {"b": "c"}, True),
    (selector(expression("a", "DoesNotExist")), {"a": "b"}, False),
    (selector(expression("a", "Exists"), expression("a", "NotIn", "b")), {"a": "b"}, False),
    (selector(expression("a", "In", "c"), a="b"), {"a": "b"}, False),
]


@pytest.mark.parametrize(("raw", "there", "matches"), MATCHES)
def test_matching(raw: dict[str, Any], there: dict[str, str], matches: bool) -> None:
    assert made(raw).matches(there) == matches
    assert labels_match(raw, there) == matches


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({}, {"matchLabels": None, "matchExpressions": []}),
        (selector(a="b"), selector(expression("a", "In", "b"))),
        (selector(a="b", c="d"), selector(c="d", a="b")),
        (selector(expression("a", "In", "c", "b", "c")), selector(expression("a", "In", "b", "c"))),
        (
            selector(expression("a", "Exists"), expression("b", "Exists")),
            selector(expression("b", "Exists"), expression("a", "Exists")),
        ),
        (selector(a="b"), selector(expression("a", "In", "b"), a="b")),
    ],
)
def test_equal_selectors_are_one(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert made(one) == made(other)
    assert hash(made(one)) == hash(made(other))


def test_everything() -> None:
    assert made({}) == EVERYTHING
    assert str(EVERYTHING) == ""


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (selector(b="1", a="2"), "a=2,b=1"),
        (selector(expression("a", "In", "c", "b")), "a in (b,c)"),
        (selector(expression("a", "NotIn", "b")), "a!=b"),
        (selector(expression("a", "NotIn", "b", "c")), "a notin (b,c)"),
        (selector(expression("a", "Exists"), expression("b", "DoesNotExist")), "a,!b"),
    ],
)
def test_it_reads_as_kubectl_writes(raw: dict[str, Any], text: str) -> None:
    assert str(made(raw)) == text


@pytest.mark.parametrize(
    ("row", "text"),
    [
        (expression("a", "in", "b"), "'in' is not a valid label selector operator"),
        (expression("a", "In"), "In of 'a' needs values"),
        (expression("a", "NotIn"), "NotIn of 'a' needs values"),
    ],
)
def test_what_is_no_selector(row: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        made(selector(row))


@given(selectors(), labels)
def test_it_means_what_it_says(raw: dict[str, Any], there: dict[str, str]) -> None:
    assert made(raw).matches(there) == labels_match(raw, there)


@given(st.lists(selectors(), min_size=2, max_size=2), labels)
def test_equal_ones_match_the_same(raw: list[dict[str, Any]], there: dict[str, str]) -> None:
    one, other = map(made, raw)
    if one == other:
        assert labels_match(raw[0], there) == labels_match(raw[1], there)
