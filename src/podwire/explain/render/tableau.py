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

_CELL: Final = 74
_FITS: Final = 11
"""Characters in a cell."""
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

    def draw(self) -> str:
        top = y = float(MARGIN + LINE + 6)
        left = MARGIN + self._heads + PAD
        width = len(self._rows) * _CELL
        body: list[str] = []
        cells: list[str] = []
        for number, texts in self._rows:
            height = size_of(texts).height
            box = self._scene.picture.boxes[number]
            body.append(draw_box(self._scene, box, texts, MARGIN, y, Size(self._heads, height)))
            for i, (other, _) in enumerate(self._rows):
                cells += self._cell(number, other, left + i * _CELL, y, height)
            cells.append(_grid(left, y, left + width, y))
            y += height
        cells.append(_grid(left, y, left + width, y))
        cells += (
            _grid(left + i * _CELL, top, left + i * _CELL, y) for i in range(len(self._rows) + 1)
        )
        body += [*self._columns(left, top), *cells]
        for text in self._legend():
            y += LINE - 2
            body.append(draw_text(MARGIN, y + 6, text, "start"))
        return document(body, self._scene, left + width, y, arrows=False)

    def _columns(self, left: float, top: float) -> Iterator[str]:
        for i, (number, _) in enumerate(self._rows):
            middle = left + (i + 0.5) * _CELL
            name = self._scene.picture.boxes[number].names()[0].partition(" (")[0]
            yield draw_text(middle, top - 18, Text(f"{i + 1}", PALE, SMALL), "middle")
            yield draw_text(middle, top - 6, Text(cut(name, _FITS), INK, SMALL), "middle")

    def _cell(
        self, source: int, destination: int, x: float, y: float, height: float
    ) -> Iterator[str]:
        words, colour = self._cells.get((source, destination), ("", ""))
        if not words and source != destination:
            return
        boxes = self._scene.picture.boxes
        fill = _ITSELF if not words else _ALL if words == ALL_CONNECTIONS else _SOME
        titles = [", ".join(boxes[n].labels) for n in (source, destination)]
        title = f"<title>{escape(f'{titles[0]} => {titles[1]} : {words}')}</title>"
        text = Text(self._word(words), colour or INK, SMALL)
        yield (
            f'<g>{title if words else ""}<rect x="{x:g}" y="{y:g}" width="{_CELL}" '
            f'height="{height:g}" fill="{fill}"/>'
            f"{draw_text(x + _CELL / 2, y + height / 2 + 4, text, 'middle')}</g>"
        )

    def _word(self, words: str) -> str:
        if words == ALL_CONNECTIONS:
            return "all"
        if len(words) <= _FITS:
            return words
        return self._keys.setdefault(words, f"ports {len(self._keys) + 1}")

    def _legend(self) -> Iterator[Text]:
        yield Text(
            "row: who opens a connection; column: to whom; all: to every port; empty: to none",
            PALE,
            SMALL,
        )
        for words, key in self._keys.items():
            for line in wrap(f"{key}: {words.replace(',', ', ')}", _LEGEND_WIDTH):
                yield Text(line, PALE, SMALL)


def _grid(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<path d="M{x1:g},{y1:g}L{x2:g},{y2:g}" stroke="{STROKE}" stroke-width="0.5"/>'
