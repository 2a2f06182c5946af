"""Quantities: the number itself, and rounded up to what schedulers count in."""

from __future__ import annotations

from decimal import Decimal

import pytest

from podwire.objects.quantity import count_units, parse_quantity


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("250m", "0.25"),
        ("2", "2"),
        (1, "1"),
        ("1Gi", str(2**30)),
        ("1.5k", "1500"),
        ("1e3", "1000"),
        ("2E", "2e18"),
    ],
)
def test_quantities_are_exact(text: str | int, number: str) -> None:
    assert parse_quantity(text) == Decimal(number)


@pytest.mark.parametrize("text", ["", "Gi", "many", "1 Gi x"])
def test_what_is_no_quantity(text: str) -> None:
    with pytest.raises(ValueError, match="not a quantity"):
        parse_quantity(text)
    assert count_units("memory", text) == 0


@pytest.mark.parametrize(
    ("resource", "text", "units"),
    [
        ("cpu", "100m", 100),
        ("cpu", "2", 2000),
        ("cpu", "1u", 1),
        ("memory", "1500Ki", 1536000),
        ("memory", "100m", 1),
        ("pods", "110", 110),
        ("cpu", "nan", 0),
    ],
)
def test_units_are_rounded_up(resource: str, text: str, units: int) -> None:
    assert count_units(resource, text) == units
