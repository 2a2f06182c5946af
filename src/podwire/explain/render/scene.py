"""What a drawing says beside its arrows: texts of boxes, names for the outside, a legend. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from string import ascii_uppercase
from typing import Final, NamedTuple

from podwire.explain.render.fold import Arrow, Box, Picture

INK: Final = "#1f2937"
PALE: Final = "#5b6472"
STROKE: Final = "#64748b"
SMALL: Final = 10
_FILLS: Final = ("#e3eefb", "#e2f5e5", "#fdeedb", "#f2e6fa", "#fbe4e7", "#def4f2", "#f6f2d4")
_PLAIN: Final = "#f1f2f4"
_WIDEST: Final = 58
"""Characters of a line in a box."""
_MOST_NAMES: Final = 10
_MOST_RANGES: Final = 4
_LEGEND_WIDTH: Final = 110
_EVERYWHERE: Final = ("0.0.0.0-255.255.255.255", f"::-{':'.join(['ffff'] * 8)}")


class Text(NamedTuple):
    words: str
    colour: str = INK
    size: int = 12

    @property
    def width(self) -> float:
        """Of sans-serif letters, a little too much for most fonts."""
        return len(self.words) * self.size * 0.61


def cut(words: str, most: int) -> str:
    return words if len(words) <= most else f"{words[: most - 1]}…"


class Scene:
    """`inner` are the boxes that are drawn: connections with the outside are words in them, since
    nearly all have some, and as arrows they would hide the others."""

    def __init__(self, picture: Picture) -> None:
        self.picture = picture
        boxes = picture.boxes
        self.inner: list[int] = [n for n, box in enumerate(boxes) if not box.external]
        self.arrows: list[Arrow] = [
            arrow
            for arrow in picture.arrows
            if not (boxes[arrow.source].external or boxes[arrow.destination].external)
        ]

    @cached_property
    def pairs(self) -> list[tuple[int, int]]:
        """Ends of `arrows`, as places in `inner`."""
        place = {number: i for i, number in enumerate(self.inner)}
        return [(place[arrow.source], place[arrow.destination]) for arrow in self.arrows]

    @cached_property
    def fills(self) -> dict[str, str]:
        """Of namespaces, in the order of their names; past seven they repeat."""
        names = sorted({box.namespace for box in self.picture.boxes if box.namespace})
        return {name: _FILLS[i % len(_FILLS)] for i, name in enumerate(names)}

    def fill(self, box: Box) -> str:
        return self.fills.get(box.namespace, _PLAIN)

    def texts(self, number: int) -> list[Text]:
        """The lines of a box."""
        box = self.picture.boxes[number]
        names = box.names()
        where = box.namespace or ("several namespaces" if len(box.labels) > 1 else "")
        lines = [Text(cut(where, _WIDEST), PALE, SMALL)] if where else []
        shown = names if len(names) <= _MOST_NAMES else names[: _MOST_NAMES - 1]
        lines += [Text(cut(name, _WIDEST)) for name in shown]
        if len(shown) < len(names):
            lines.append(Text(f"and {len(names) - len(shown)} more", PALE))
        if box.within:
            words = cut(f"each other: {box.within}", _WIDEST)
            lines.append(Text(words, box.colour or PALE, SMALL))
        met = any(number in (a.source, a.destination) for a in self.picture.arrows)
        if not met and not box.within:
            lines.append(Text("no connections", PALE, SMALL))
        return lines + list(self._outside_of(number))

    # --- the outside ---

    def _outside_of(self, number: int) -> Iterator[Text]:
        boxes = self.picture.boxes
        for arrow in self.picture.arrows:
            ends = {arrow.source, arrow.destination}
            if number not in ends or not any(boxes[end].external for end in ends):
                continue
            (other,) = ends - {number}
            way = "from" if arrow.destination == number else "to"
            words = f"{'to and from' if arrow.both else way} {self.outside[other]}: {arrow.text}"
            yield Text(cut(words, _WIDEST), arrow.colour or PALE, SMALL)

    @cached_property
    def outside(self) -> dict[int, str]:
        """What ranges of addresses are called; several that are alike have a letter."""
        found: dict[int, str] = {}
        letters = (f"outside {letter}" for letter in _letters())
        for number, box in enumerate(self.picture.boxes):
            if box.external:
                (name, *others) = box.names()
                single = "outside" if name in _EVERYWHERE else name
                found[number] = next(letters) if others else single
        return found

    # --- legend ---

    def legend(self, *, arrows: bool = True) -> Iterator[Text]:
        if self.arrows and arrows:
            words = (
                "arrow: may open connections to the ports at its head; two heads: both ways alike"
            )
            yield Text(words, PALE, SMALL)
        yield from self._ranges()
        if any(arrow.colour for arrow in self.picture.arrows):
            words = "green, +: added; red and dashed, -: removed; yellow, ->: before and after"
            yield Text(words, PALE, SMALL)

    def _ranges(self) -> Iterator[Text]:
        if "outside" in self.outside.values():
            yield Text("outside: every address that is no pod's", PALE, SMALL)
        for number, name in self.outside.items():
            ranges = self.picture.boxes[number].names()
            if len(ranges) > 1:
                rest = len(ranges) - _MOST_RANGES
                more = f" and {rest} more ranges" if rest > 0 else ""
                words = f"{name}: {', '.join(ranges[:_MOST_RANGES])}{more}"
                yield from (Text(line, PALE, SMALL) for line in wrap(words, _LEGEND_WIDTH))


def wrap(words: str, most: int) -> Sequence[str]:
    lines = [""]
    for word in words.split(" "):
        if lines[-1] and len(lines[-1]) + 1 + len(word) > most:
            lines.append(f"    {word}")
        else:
            lines[-1] = f"{lines[-1]} {word}".lstrip() if lines[-1] else word
    return lines


def _letters() -> Iterator[str]:
    """A to Z, AA to AZ, ..."""
    yield from ascii_uppercase
    for first in _letters():
        yield from (first + second for second in ascii_uppercase)
