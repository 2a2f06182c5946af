"""Pieces of an SVG document: boxes with their texts, the legend, arrow heads. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final
from xml.sax.saxutils import escape, quoteattr

from podwire.explain.render.fold import Box
from podwire.explain.render.layers import Size
from podwire.explain.render.scene import STROKE, Scene, Text

MARGIN: Final = 24
LINE: Final = 17
PAD: Final = 10


def size_of(texts: Sequence[Text]) -> Size:
    width = max((text.width for text in texts), default=0.0)
    return Size(max(width, 90) + 2 * PAD, len(texts) * LINE + PAD)


def document(
    body: Sequence[str], scene: Scene, right: float, height: float, *, arrows: bool = True
) -> str:
    """With the legend below."""
    legend, y = [], height + 1.6 * LINE
    for text in scene.legend(arrows=arrows):
        legend.append(draw_text(MARGIN, y, text, "start"))
        right = max(right, MARGIN + text.width)
        y += LINE - 2
    width, height = right + MARGIN, y
    colours = {STROKE, *(arrow.colour for arrow in scene.picture.arrows if arrow.colour)}
    head = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:g}" height="{height:g}" '
            f'viewBox="0 0 {width:g} {height:g}" font-family="sans-serif" font-size="12">'
        ),
        f"<defs>{''.join(map(_head, sorted(colours)))}</defs>",
        f'<rect width="{width:g}" height="{height:g}" fill="white"/>',
    ]
    return "\n".join([*head, *body, *legend, "</svg>"]) + "\n"


def marker(colour: str) -> str:
    return f"head-{colour.lstrip('#')}"


def _head(colour: str) -> str:
    return (
        f'<marker id="{marker(colour)}" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" '
        'markerHeight="7" markerUnits="userSpaceOnUse" orient="auto-start-reverse">'
        f'<path d="M0,0L8,4L0,8z" fill="{colour}"/></marker>'
    )


def draw_box(scene: Scene, box: Box, texts: Sequence[Text], x: float, y: float, size: Size) -> str:
    title = escape(", ".join(box.labels))
    top = y + (size.height - len(texts) * LINE) / 2
    words = "".join(
        draw_text(x + PAD, top + (i + 0.72) * LINE, text, "start") for i, text in enumerate(texts)
    )
    return (
        f'<g><title>{title}</title><rect x="{x:g}" y="{y:g}" width="{size.width:g}" '
        f'height="{size.height:g}" rx="5" fill="{scene.fill(box)}" stroke="{STROKE}"/>{words}</g>'
    )


def draw_text(x: float, y: float, text: Text, anchor: str) -> str:
    return (
        f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" font-size="{text.size}" '
        f"fill={quoteattr(text.colour)}>{escape(text.words)}</text>"
    )
