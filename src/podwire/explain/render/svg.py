"""The same picture as SVG, laid out here: no Graphviz is needed to look at it.

    Graph -> Picture -> Scene (texts) -> Layout (columns) -> boxes, lines, legend

Ports stand above the line where the arrow ends. Where there are more arrows than an eye can
follow, there are rows and columns instead: see `tableau`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final
from xml.sax.saxutils import escape

from podwire.explain.reach import Reachability
from podwire.explain.render.canvas import (
    LINE,
    MARGIN,
    document,
    draw_box,
    draw_text,
    marker,
    size_of,
)
from podwire.explain.render.fold import Arrow, Graph, fold
from podwire.explain.render.graph import graph_of
from podwire.explain.render.layers import Line, Piece, Size, count_columns, lay_out
from podwire.explain.render.scene import SMALL, STROKE, Scene, Text, cut
from podwire.explain.render.tableau import draw_tableau

_CURVE: Final = 80
_HEAD: Final = 12
_LONGEST: Final = 46
"""Characters of an arrow's text; the whole is in its title."""
_ROW: Final = 900
"""How wide boxes without arrows are set."""
_MOST_BOXES: Final = 60
_MOST_COLUMNS: Final = 8
_MANY: Final = 24
_A_BOX: Final = 3
"""Arrows of a picture, and a box, past which they are too many."""
REMOVED: Final = "#cf222e"


def render_svg(reach: Reachability) -> str:
    return draw_svg(graph_of(reach))


def draw_svg(graph: Graph) -> str:
    scene = Scene(fold(graph))
    return _Drawing(scene).draw() if _is_clear(scene) else draw_tableau(scene)


def _is_clear(scene: Scene) -> bool:
    """Whether an eye can follow the arrows."""
    boxes, arrows = len(scene.inner), len(scene.arrows)
    if boxes > _MOST_BOXES or arrows > max(_MANY, _A_BOX * boxes):
        return False
    return count_columns(boxes, scene.pairs) <= _MOST_COLUMNS


@dataclass
class _Drawing:
    scene: Scene

    def __post_init__(self) -> None:
        scene = self.scene
        self._texts = {number: scene.texts(number) for number in scene.inner}
        self._titles = {n: ", ".join(scene.picture.boxes[n].labels) for n in scene.inner}
        self._index = {number: i for i, number in enumerate(scene.inner)}
        sizes = [size_of(self._texts[number]) for number in scene.inner]
        self._sizes = sizes
        self._layout = lay_out(sizes, scene.pairs)
        self._widths = [
            max((sizes[item.box].width for item in column if item.box is not None), default=0.0)
            for column in self._layout.columns
        ]
        self._lefts: list[float] = []
        x = float(MARGIN)
        for column, width in enumerate(self._widths):
            self._lefts.append(x)
            x += width + sum(self._zones(column)) + _CURVE
        self._right = self._lefts[-1] + self._widths[-1] if self._lefts else float(MARGIN)

    def draw(self) -> str:
        body = [*self._lines(), *self._boxes()]
        height = MARGIN + self._layout.height
        lonely, height = self._lonely(height + (LINE if self._lefts else 0))
        body += lonely
        return document(body, self.scene, self._right, height)

    # --- columns ---

    def _zones(self, column: int) -> tuple[float, float]:
        """Room for texts right of a column and left of the next."""
        left = right = float(_HEAD)
        for line, pieces in self._layout.lines.items():
            width = Text(self._text(line), size=SMALL).width + 2 * _HEAD
            if line.turned and pieces[0].left.column == column:
                left = max(left, width)
            if not line.turned and pieces[-1].left.column == column:
                right = max(right, width)
        return left, right

    def _text(self, line: Line) -> str:
        return cut(self.scene.arrows[line.number].text, _LONGEST)

    # --- lines ---

    def _lines(self) -> Iterator[str]:
        for line, pieces in self._layout.lines.items():
            arrow = self.scene.arrows[line.number]
            yield from self._line(line, pieces, arrow)

    def _line(self, line: Line, pieces: Sequence[Piece], arrow: Arrow) -> Iterator[str]:
        colour = arrow.colour or STROKE
        path = " ".join(self._steps(pieces))
        ways = "<=>" if arrow.both else "=>"
        source, destination = self._titles[arrow.source], self._titles[arrow.destination]
        heads = f' marker-end="url(#{marker(colour)})"' if not line.turned or arrow.both else ""
        heads += f' marker-start="url(#{marker(colour)})"' if line.turned or arrow.both else ""
        dash = ' stroke-dasharray="6 3"' if colour == REMOVED else ""
        yield (
            f"<g><title>{escape(f'{source} {ways} {destination} : {arrow.text}')}</title>"
            f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="1.3"{dash}{heads}/>'
            # Wide enough to be met by a pointer.
            f'<path d="{path}" fill="none" stroke="transparent" stroke-width="9"/>'
        )
        text = Text(self._text(line), colour if arrow.colour else "#334155", SMALL)
        if line.turned:
            first = pieces[0]
            x = self._lefts[first.left.column] + self._widths[first.left.column] + _HEAD
            yield draw_text(x, first.y1 + MARGIN - 4, text, "start") + "</g>"
        else:
            last = pieces[-1]
            x = self._lefts[last.right.column] - _HEAD
            yield draw_text(x, last.y2 + MARGIN - 4, text, "end") + "</g>"

    def _steps(self, pieces: Sequence[Piece]) -> Iterator[str]:
        for number, piece in enumerate(pieces):
            column = piece.left.column
            left, right = self._zones(column)
            y1, y2 = piece.y1 + MARGIN, piece.y2 + MARGIN
            x1 = self._lefts[column] + self._widths[column]
            x2 = self._lefts[column + 1]
            a, b = x1 + left, x2 - right
            bend = (b - a) / 2
            if number == 0:
                yield f"M{x1:g},{y1:g}"
            yield f"H{a:g} C{a + bend:g},{y1:g} {b - bend:g},{y2:g} {b:g},{y2:g} H{x2:g}"
            if piece is not pieces[-1]:
                yield f"H{x2 + self._widths[column + 1]:g}"

    # --- boxes ---

    def _boxes(self) -> Iterator[str]:
        for x, width, column in zip(self._lefts, self._widths, self._layout.columns, strict=True):
            for item in column:
                if item.box is not None:
                    size = Size(width, item.height)
                    yield self._box(self.scene.inner[item.box], x, item.top + MARGIN, size)

    def _box(self, number: int, x: float, y: float, size: Size) -> str:
        box = self.scene.picture.boxes[number]
        return draw_box(self.scene, box, self._texts[number], x, y, size)

    def _lonely(self, y: float) -> tuple[list[str], float]:
        """Boxes without arrows, in rows below; and where they end."""
        placed = {item.box for column in self._layout.columns for item in column}
        rest = [n for n in self.scene.inner if self._index[n] not in placed]
        x, tallest, found = float(MARGIN), 0.0, []
        for number in rest:
            size = self._sizes[self._index[number]]
            if x > MARGIN and x + size.width > max(self._right, _ROW):
                x, y, tallest = float(MARGIN), y + tallest + LINE, 0.0
            found.append(self._box(number, x, y, size))
            x, tallest = x + size.width + LINE, max(tallest, size.height)
            self._right = max(self._right, x - LINE)
        return found, y + tallest
