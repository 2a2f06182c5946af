"""What every directive is read with: its arguments, and the properties its block may have. Pure.

A property is a function of its `Words` that gives the fields of the directive's value; unknown
properties are refused with those that are known.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from podwire.dns.caddyfile import Line, Token
from podwire.dns.zones import parse_zone

_DURATION_PART: Final = re.compile(r"(\d+\.?\d*|\.\d+)(ns|us|µs|ms|s|m|h)")
_UNITS: Final = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True)
class Site:
    """Where a directive stands: the zones of its server block."""

    zones: tuple[str, ...]


Once = Mapping[str, Callable[[Line, Site], Any]]
Many = Mapping[str, Callable[[Line, Site], tuple[Any, ...]]]


class Words:
    """The arguments of one line, taken one by one."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self._rest = list(line.arguments)

    def __len__(self) -> int:
        return len(self._rest)

    def fail(self, message: str) -> NoReturn:
        raise self._line.error(f"{self._line.name}: {message}")

    def take(self, what: str) -> Token:
        if not self._rest:
            self.fail(f"wrong argument count: {what} is missing")
        return self._rest.pop(0)

    def peek(self) -> str | None:
        return self._rest[0].text if self._rest else None

    def rest(self, what: str = "") -> list[Token]:
        """All that is left; `what` must be there at least once."""
        if what and not self._rest:
            self.fail(f"wrong argument count: {what} is missing")
        taken, self._rest = self._rest, []
        return taken

    def end(self) -> None:
        if self._rest:
            extra = self._rest[0]
            raise extra.error(
                f"{self._line.name}: wrong argument count: {extra.text!r} is too many"
            )

    def integer(self, what: str) -> int:
        return parse_integer(self.take(what), what)

    def duration(self, what: str) -> float:
        return parse_duration(self.take(what))


def parse_integer(token: Token, what: str) -> int:
    try:
        return int(token.text)
    except ValueError:
        raise token.error(f"{what} {token.text!r} is not a number") from None


def parse_duration(token: Token) -> float:
    """Go's time.ParseDuration: `1h30m`, `500ms`, `0`; seconds."""
    text = token.text.lstrip("+-")
    parts = _DURATION_PART.findall(text)
    if text == "0":
        return 0.0
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise token.error(f"duration {token.text!r} is not valid; write 30s, 5m or 1h30m")
    seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
    return -seconds if token.text.startswith("-") else seconds


def zones_of(tokens: list[Token]) -> tuple[str, ...]:
    """Zones in their normal form, ranges written out."""
    zones: list[str] = []
    for token in tokens:
        try:
            zones += parse_zone(token.text)
        except ValueError as e:
            raise token.error(str(e)) from e
    return tuple(dict.fromkeys(zones))


Setter = Callable[[Words], Mapping[str, Any]]


def read_body(line: Line, known: Mapping[str, Setter]) -> dict[str, Any]:
    """The fields that the block's properties set; every one has to be known and used up."""
    fields: dict[str, Any] = {}
    for entry in line.body:
        setter = known.get(entry.name)
        if setter is None:
            names = ", ".join(known) or "none"
            raise entry.error(f"{line.name}: unknown property '{entry.name}'; known are: {names}")
        if entry.braces:
            raise entry.error(f"{line.name}: {entry.name}: takes no block of its own")
        words = Words(entry)
        fields.update(setter(words))
        words.end()
    return fields


def no_body(line: Line) -> None:
    if line.braces:
        raise line.error(f"{line.name}: takes no block")


def flag(field: str, value: bool = True) -> Setter:
    return lambda words: {field: value}


def zones_setter(field: str) -> Setter:
    return lambda words: {field: zones_of(words.rest())}


def refused(instead: str) -> Setter:
    def read(words: Words) -> Mapping[str, Any]:
        words.fail(f"is not supported; {instead}")

    return read


def number(field: str) -> Setter:
    return lambda w: {field: int(at_least_zero(w, field, w.integer("the number")))}


def at_least_zero(words: Words, name: str, value: float) -> float:
    if value < 0:
        words.fail(f"{name} can't be negative: {value:g}")
    return value


def compile_regex(token: Token) -> re.Pattern[str]:
    try:
        return re.compile(token.text)
    except re.error as e:
        raise token.error(f"invalid regex matching pattern: {token.text} ({e})") from e


def is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
