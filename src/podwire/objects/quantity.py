"""Resource quantities as numbers: exact, and in the whole units that schedulers count in.

Source: apimachinery pkg/api/resource/quantity.go (Value and MilliValue round up).
"""

from __future__ import annotations

from decimal import ROUND_CEILING, Decimal, InvalidOperation
from functools import lru_cache
from typing import Final

Quantity = str | int | float

_SUFFIXES: Final = {
    "n": Decimal("1e-9"),
    "u": Decimal("1e-6"),
    "m": Decimal("1e-3"),
    "k": Decimal(10**3),
    "M": Decimal(10**6),
    "G": Decimal(10**9),
    "T": Decimal(10**12),
    "P": Decimal(10**15),
    "E": Decimal(10**18),
    "Ki": Decimal(2**10),
    "Mi": Decimal(2**20),
    "Gi": Decimal(2**30),
    "Ti": Decimal(2**40),
    "Pi": Decimal(2**50),
    "Ei": Decimal(2**60),
}


def parse_quantity(text: Quantity) -> Decimal:
    """A quantity as a number. Raises ValueError."""
    plain = str(text).strip()
    try:
        for suffix in (plain[-2:], plain[-1:]):
            if suffix in _SUFFIXES:
                return Decimal(plain[: -len(suffix)]) * _SUFFIXES[suffix]
        return Decimal(plain)
    except InvalidOperation as error:
        raise ValueError(f"not a quantity: {plain!r}") from error


def round_up(number: Decimal) -> int:
    return int(number.to_integral_value(ROUND_CEILING))


@lru_cache(maxsize=4096)
def count_units(resource: str, value: Quantity) -> int:
    """Thousandths for `cpu`, whole units (bytes) for all else, rounded up; 0 for what cannot be
    read."""
    try:
        number = parse_quantity(value)
    except ValueError:
        return 0
    if not number.is_finite():
        return 0
    return round_up(number * 1000 if resource == "cpu" else number)
