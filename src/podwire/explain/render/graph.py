"""What is allowed, as a picture: Mermaid for READMEs, Graphviz and SVG for everything else.

    Reachability -> Graph: labels and arrows with ports -> Picture: boxes -> text of a form

A computed reachability is drawn with all its connections, one of packets with what was asked.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from podwire.explain.reach import Reachability
from podwire.explain.render.fold import Arrow, Box, Graph, Picture, fold, make_graph
from podwire.explain.render.text import connections, join_ports


def graph_of(reach: Reachability) -> Graph:
    if reach.evidence == "static":
        edges = {(c.source, c.destination): c.text for c in reach.connections if c.ports}
    else:
        edges = {pair: join_ports(ports) for pair, ports in connections(reach).items()}
    drawn = {label for pair in edges for label in pair}
    # A pod whose workload is drawn pod by pod is drawn already.
    endpoints = (*reach.sources, *reach.destinations)
    return make_graph(edges, (e.group for e in endpoints if f"{e.key}[Pod]" not in drawn))


def render_mermaid(reach: Reachability) -> str:
    """A `flowchart LR` with one subgraph per namespace."""
    return draw_mermaid(graph_of(reach))


def render_dot(reach: Reachability) -> str:
    """A `digraph` with one cluster per namespace."""
    return draw_dot(graph_of(reach))


def _lines(box: Box) -> Iterator[str]:
    yield from box.names()
    if box.within:
        yield f"each other: {box.within}"


# --- Mermaid ------------------------------------------------------------------------------------


def draw_mermaid(graph: Graph) -> str:
    picture = fold(graph)
    lines = ["flowchart LR"]
    for number, (namespace, boxes) in enumerate(picture.by_namespace().items()):
        indent = "    " if namespace else "  "
        if namespace:
            lines.append(f'  subgraph s{number}["{_mermaid(namespace)}"]')
        lines += [f'{indent}n{i}["{_mermaid_label(picture.boxes[i])}"]' for i in boxes]
        if namespace:
            lines.append("  end")
    lines += [_mermaid_arrow(arrow) for arrow in picture.arrows]
    lines += [
        f"  linkStyle {number} stroke:{arrow.colour}"
        for number, arrow in enumerate(picture.arrows)
        if arrow.colour
    ]
    return "\n".join(lines) + "\n"


def _mermaid_label(box: Box) -> str:
    return "<br/>".join(map(_mermaid, _lines(box)))


def _mermaid_arrow(arrow: Arrow) -> str:
    line = "<-->" if arrow.both else "-->"
    return f'  n{arrow.source} {line}|"{_mermaid(arrow.text)}"| n{arrow.destination}'


def _mermaid(text: str) -> str:
    """Inside of quotes nothing but a quote and markup is special."""
    return text.replace('"', "#quot;").replace("<", "#lt;")


# --- Graphviz -----------------------------------------------------------------------------------

_FONT: Final = ', fontname="sans-serif"'
_FAINT: Final = ", color=gray50, fontcolor=gray30"
"""Of the outside: nearly everybody has connections with it."""


def draw_dot(graph: Graph) -> str:
    picture = fold(graph)
    lines = ["digraph reachability {", "  rankdir=LR;", f"  node [shape=box{_FONT}];"]
    lines.append(f"  edge [fontsize=10{_FONT}];")
    for number, (namespace, boxes) in enumerate(picture.by_namespace().items()):
        if namespace:
            lines += [f"  subgraph cluster_{number} {{", f'    label="{_dot(namespace)}";']
        lines += [f"    n{i} [{_dot_box(picture.boxes[i])}];" for i in boxes]
        if namespace:
            lines.append("  }")
    lines += (_dot_arrow(arrow, picture) for arrow in picture.arrows)
    return "\n".join([*lines, "}"]) + "\n"


def _dot_box(box: Box) -> str:
    label = "\\n".join(map(_dot, _lines(box)))
    return f'label="{label}"' + (f", style=dashed{_FAINT}" if box.external else "")


def _dot_arrow(arrow: Arrow, picture: Picture) -> str:
    ends = arrow.source, arrow.destination
    looks = _FAINT if any(picture.boxes[end].external for end in ends) else ""
    if arrow.colour:
        looks = f', color="{arrow.colour}", fontcolor="{arrow.colour}"'
    if arrow.both:
        looks += ", dir=both"
    return f'  n{arrow.source} -> n{arrow.destination} [label="{_dot(arrow.text)}"{looks}];'


def _dot(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')
