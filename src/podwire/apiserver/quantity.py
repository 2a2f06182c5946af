"""Resource quantities: the number, and the one way Kubernetes writes it.

The API server rewrites quantities when it decodes them (`0.5` becomes `500m`, `1024Mi` `1Gi`), so
that what is stored compares equal. Source: apimachinery pkg/api/resource/quantity.go.
"""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache

_SHAPE = re.compile(r"([+-]?)([0-9]+(?:\.[0-9]*)?|\.[0-9]+)([a-zA-Z]*(?:[+-]?[0-9]+)?)", re.ASCII)
_BINARY = {"Ki": 10, "Mi": 20, "Gi": 30, "Ti": 40, "Pi": 50, "Ei": 60}
_DECIMAL = {"n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_EXPONENT = re.compile(r"[eE]([+-]?[0-9]+)", re.ASCII)
_BY_POWER = {power: suffix for suffix, power in _DECIMAL.items()}
_NANO = 10**9
_MAX = 2**63 - 1

INVALID = (
    "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
)
INVALID_SUFFIX = "unable to parse quantity's suffix"


class QuantityError(ValueError):
    """The text is Kubernetes' own."""


def parse_quantity(text: str) -> Fraction:
    """The number, rounded up to nano units and capped like Kubernetes does; QuantityError."""
    return _parse(text)[0]


@lru_cache(maxsize=4096)
def canonical(text: str) -> str:
    """The text Kubernetes stores for a quantity; raises QuantityError."""
    value, form = _parse(text)
    if form == "binary" and abs(value) < 1024:
        form = "decimal"
    if form == "binary" and value.denominator == 1:
        return _binary(int(value))
    return _decimal(value, exponent=form == "exponent")


@lru_cache(maxsize=4096)
def _parse(text: str) -> tuple[Fraction, str]:
    if not text or text.strip("+-0123456789.eEinumkKMGTP") != "":
        raise QuantityError(INVALID)
    match = _SHAPE.fullmatch(text)
    if match is None:
        raise QuantityError(INVALID)
    sign, digits, suffix = match.groups()
    number = Fraction(digits if digits[-1] != "." else digits[:-1])
    if suffix in _BINARY:
        number, form = number * 2 ** _BINARY[suffix], "binary"
    elif suffix in _DECIMAL:
        number, form = number * Fraction(10) ** _DECIMAL[suffix], "decimal"
    elif exponent := _EXPONENT.fullmatch(suffix):
        number, form = number * Fraction(10) ** _bounded(int(exponent[1])), "exponent"
    else:
        raise QuantityError(INVALID_SUFFIX)
    number = Fraction(-(-(number * _NANO) // 1), _NANO)  # away from zero
    number = min(number, Fraction(_MAX))
    return (-number if sign == "-" else number), form


def _bounded(power: int) -> int:
    return max(-100, min(100, power))


def _binary(value: int) -> str:
    for suffix, power in reversed(_BINARY.items()):
        if value % (1 << power) == 0:
            return f"{value >> power if value >= 0 else -(-value >> power)}{suffix}"
    return str(value)


def _decimal(value: Fraction, *, exponent: bool) -> str:
    if value == 0:
        return "0"
    for power in range(18, -10, -3):
        scaled = value / Fraction(10) ** power
        if scaled.denominator == 1:
            if exponent:
                return f"{scaled.numerator}e{power}" if power else str(scaled.numerator)
            return f"{scaled.numerator}{_BY_POWER[power]}"
    raise AssertionError("nano units always divide")
