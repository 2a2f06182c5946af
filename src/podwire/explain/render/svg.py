"""The same picture as SVG, laid out here: no Graphviz is needed to look at it.

    labels -> columns by how far they are from where connections begin -> boxes, curves, ports

Namespaces have a colour each. Parallel curves would hide each other in a dense graph, so a curve's
text is shown when the pointer is on it, and always where there are few.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final
from xml.sax.saxutils import escape

from podwire.explain.reach import Reachability
from podwire.explain.render.graph import Graph, graph_of, short

_WIDTH: Final = 230
_HEIGHT: Final = 40
_GAP_X: Final = 130
_GAP_Y: Final = 18
_MARGIN: Final = 24
_CHARACTER: Final = 6.6
_FEW: Final = 40
_FILLS: Final = ("#e8f1fb", "#eaf7ea", "#fdf1e3", "#f5eafa", "#fbeaec", "#e6f6f5", "#f6f4e3")
_STROKE: Final = "#667"


def render_svg(reach: Reachability) -> str:
    return draw_svg(graph_of(reach))


def draw_svg(graph: Graph) -> str:
    columns = _columns(graph)
    places: dict[str, tuple[float, float]] = {
        label: (_MARGIN + x * (_WIDTH + _GAP_X), _MARGIN + y * (_HEIGHT + _GAP_Y))
        for x, column in enumerate(columns)
        for y, label in enumerate(column)
    }
    width = 2 * _MARGIN + len(columns) * (_WIDTH + _GAP_X) - _GAP_X
    height = 2 * _MARGIN + max(map(len, columns), default=1) * (_HEIGHT + _GAP_Y)
    return (
        "\n".join(
            [*_head(width, height), *_curves(graph, places), *_boxes(graph, places), "</svg>"]
        )
        + "\n"
    )


def _columns(graph: Graph) -> list[list[str]]:
    """Sources of much and destinations of little to the left; within a column by name, which keeps
    namespaces together. A cycle has no order, so the balance of arrows decides."""
    out: dict[str, int] = dict.fromkeys(graph.nodes, 0)
    into: dict[str, int] = dict.fromkeys(graph.nodes, 0)
    for source, destination in graph.edges:
        out[source] += 1
        into[destination] += 1
    columns: list[list[str]] = [[], [], []]
    for label in sorted(graph.nodes):
        balance = out[label] - into[label]
        columns[0 if balance > 0 else 2 if balance < 0 else 1].append(label)
    return [column for column in columns if column]


def _head(width: float, height: float) -> Iterator[str]:
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:g}" height="{height:g}" '
        f'viewBox="0 0 {width:g} {height:g}" font-family="sans-serif" font-size="12">'
    )
    yield (
        '<defs><marker id="a" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" '
        'markerHeight="7" orient="auto-start-reverse">'
        '<path d="M0,0L8,4L0,8z" fill="context-stroke"/></marker></defs>'
    )
    yield f'<rect width="{width:g}" height="{height:g}" fill="white"/>'


def _boxes(graph: Graph, places: dict[str, tuple[float, float]]) -> Iterator[str]:
    fills: dict[str, str] = {}
    for namespace, labels in graph.by_namespace().items():
        fill = fills.setdefault(
            namespace, _FILLS[len(fills) % len(_FILLS)] if namespace else "#eee"
        )
        for label in labels:
            x, y = places[label]
            title = escape(label)
            yield (
                f'<g><title>{title}</title><rect x="{x:g}" y="{y:g}" width="{_WIDTH}" '
                f'height="{_HEIGHT}" rx="5" fill="{fill}" stroke="{_STROKE}"/>'
            )
            middle = x + _WIDTH / 2
            yield _text(middle, y + 17, _fit(short(label)), "#111")
            yield (
                _text(middle, y + 32, _fit(namespace or "outside of namespaces"), "#667", 10)
                + "</g>"
            )


def _curves(graph: Graph, places: dict[str, tuple[float, float]]) -> Iterator[str]:
    shown = len(graph.edges) <= _FEW
    for (source, destination), text in graph.edges.items():
        (x1, y1), (x2, y2) = places[source], places[destination]
        y1, y2 = y1 + _HEIGHT / 2 - 4, y2 + _HEIGHT / 2 + 4
        if x1 < x2:
            x1, bend = x1 + _WIDTH, (x2 - x1 - _WIDTH) / 2
            path = f"M{x1:g},{y1:g}C{x1 + bend:g},{y1:g} {x2 - bend:g},{y2:g} {x2:g},{y2:g}"
        else:
            # To the same column or back: around the right side.
            x1, x2 = x1 + _WIDTH, x2 + _WIDTH
            bend = max(x1, x2) + _GAP_X / 2
            path = f"M{x1:g},{y1:g}C{bend:g},{y1:g} {bend:g},{y2:g} {x2:g},{y2:g}"
        colour = graph.colours.get((source, destination), _STROKE)
        title = escape(f"{source} => {destination} : {text}")
        yield (
            f'<path d="{path}" fill="none" stroke="{colour}" marker-end="url(#a)">'
            f"<title>{title}</title></path>"
        )
        if shown:
            yield _text(
                (x1 + x2) / 2 + (0 if x1 < x2 else _GAP_X / 4),
                (y1 + y2) / 2 - 3,
                _fit(text, 24),
                "#334",
                10,
            )


def _text(x: float, y: float, text: str, fill: str, size: int = 12) -> str:
    return (
        f'<text x="{x:g}" y="{y:g}" text-anchor="middle" font-size="{size}" fill="{fill}">'
        f"{escape(text)}</text>"
    )


def _fit(text: str, most: int = int(_WIDTH / _CHARACTER)) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
