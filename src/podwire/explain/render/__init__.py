"""A `Reachability` as text: matrix, connection list, Mermaid, Graphviz, SVG, JSON.

All pure. Colours are the command line's business: a `Cell` says its verdict.
"""

from podwire.explain.render.graph import render_dot, render_mermaid
from podwire.explain.render.matrix import Cell, Matrix, build_matrix, render_matrix
from podwire.explain.render.svg import render_svg
from podwire.explain.render.text import render_connlist, render_json, render_summary

__all__ = [
    "Cell",
    "Matrix",
    "build_matrix",
    "render_connlist",
    "render_dot",
    "render_json",
    "render_matrix",
    "render_mermaid",
    "render_summary",
    "render_svg",
]
