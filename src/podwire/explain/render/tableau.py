"""Many connections as rows and columns: sources down, destinations across. Pure.

A cell says the ports, or a letter that the legend tells where they are too long for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final
from xml.sax.saxutils import escape

from podwire.explain.render.canvas import LINE, MARGIN, PAD, document, draw_box, draw_text, size_of
from podwire.explain.render.layers import Size
from podwire.explain.render.scene import INK, PALE, SMALL, STROKE, Scene, Text, cut, wrap
from podwire.policy.connlist import ALL_CONNECTIONS

_FITS: Final = 16
"""Characters in a cell."""
_NARROW: Final = 8
_FILLS: Final = {"#1a7f37": "#d3f0db", "#cf222e": "#fbd9dc", "#bf8700": "#fbedc3"}
"""Paler ones of what is added, removed and changed."""
_ALL: Final = "#bfe6c8"
_SOME: Final = "#fde8c2"
_ITSELF: Final = "#e5e7eb"
_LEGEND_WIDTH: Final = 110


def draw_tableau(scene: Scene) -> str:
    return _Tableau(scene).draw()


class _Tableau:
    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._rows = [
            (number, [Text(f"{i}", PALE, SMALL), *scene.texts(number)])
            for i, number in enumerate(scene.inner, start=1)
        ]
        self._heads = max(size_of(texts).width for _, texts in self._rows)
        self._cells: dict[tuple[int, int], tuple[str, str]] = {}
        for arrow in scene.arrows:
            value = arrow.text, arrow.colour
            self._cells[arrow.source, arrow.destination] = value
            if arrow.both:
                self._cells[arrow.destination, arrow.source] = value
        self._keys: dict[str, str] = {}
        words = [self._word(text) for text, _ in self._cells.values()]
        self._cell_width = max(max(map(len, words), default=0), _NARROW) * 6.2 + 12

    def draw(self) -> str:
        top = y = float(MARGIN + LINE + 6)
        left = MARGIN + self._heads + PAD
        width = len(self._rows) * self._cell_width
        body: list[str] = []
        cells: list[str] = []
        for number, texts in self._rows:
            height = size_of(texts).height
            box = self._scene.picture.boxes[number]
            body.append(draw_box(self._scene, box, texts, MARGIN, y, Size(self._heads, height)))
            for i, (other, _) in enumerate(self._rows):
                cells += self._cell(number, other, left + i * self._cell_width, y, height)
            cells.append(_grid(left, y, left + width, y))
            y += height
        cells.append(_grid(left, y, left + width, y))
        cells += (
            _grid(left + i * self._cell_width, top, left + i * self._cell_width, y)
            for i in range(len(self._rows) + 1)
        )
        body += [*self._columns(left, top), *cells]
        for text in self._legend():
            y += LINE - 2
            body.append(draw_text(MARGIN, y + 6, text, "start"))
        return document(body, self._scene, left + width, y, arrows=False)

    def _columns(self, left: float, top: float) -> Iterator[str]:
        for i, (number, _) in enumerate(self._rows):
            middle = left + (i + 0.5) * self._cell_width
            name = self._scene.picture.boxes[number].names()[0].partition(" (")[0]
            yield draw_text(middle, top - 18, Text(f"{i + 1}", PALE, SMALL), "middle")
            yield draw_text(
                middle, top - 6, Text(cut(name, int(self._cell_width / 6.4)), INK, SMALL), "middle"
            )

    def _cell(
        self, source: int, destination: int, x: float, y: float, height: float
    ) -> Iterator[str]:
        words, colour = self._cells.get((source, destination), ("", ""))
        if not words and source != destination:
            return
        boxes = self._scene.picture.boxes
        plain = _ALL if words == ALL_CONNECTIONS else _SOME
        fill = _FILLS.get(colour, plain) if words else _ITSELF
        titles = [", ".join(boxes[n].labels) for n in (source, destination)]
        title = f"<title>{escape(f'{titles[0]} => {titles[1]} : {words}')}</title>"
        text = Text(self._word(words), INK, SMALL)
        yield (
            f'<g>{title if words else ""}<rect x="{x:g}" y="{y:g}" width="{self._cell_width:g}" '
            f'height="{height:g}" fill="{fill}"/>'
            f"{draw_text(x + self._cell_width / 2, y + height / 2 + 4, text, 'middle')}</g>"
        )

    def _word(self, words: str) -> str:
        short = words.replace(ALL_CONNECTIONS, "all")
        if len(short) <= _FITS:
            return short
        return self._keys.setdefault(words, f"ports {len(self._keys) + 1}")

    def _legend(self) -> Iterator[Text]:
        changes = any(colour for _, colour in self._cells.values())
        empty = "no change" if changes else "denied"
        words = f"row: who opens a connection; column: to whom; all: every port; empty: {empty}"
        yield Text(words, PALE, SMALL)
        for words, key in self._keys.items():
            for line in wrap(f"{key}: {words.replace(',', ', ')}", _LEGEND_WIDTH):
                yield Text(line, PALE, SMALL)


def _grid(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<path d="M{x1:g},{y1:g}L{x2:g},{y2:g}" stroke="{STROKE}" stroke-width="0.5"/>'
