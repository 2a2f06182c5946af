"""What is allowed, as a picture: Mermaid for READMEs, Graphviz and SVG for everything else.

    Reachability -> Graph: labels and arrows with ports -> text of one of the forms

A computed reachability is drawn with all its connections, one of packets with what was asked.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from podwire.explain.reach import Reachability
from podwire.explain.render.text import connections, join_ports


@dataclass(frozen=True)
class Graph:
    """Every label, also the lonely ones, with a short identifier; arrows by (source, destination).

    `colours` are words for arrows that differ from the others: a diff has green and red ones.
    """

    nodes: Mapping[str, str]
    edges: Mapping[tuple[str, str], str]
    colours: Mapping[tuple[str, str], str]

    def by_namespace(self) -> dict[str, list[str]]:
        """Namespace -> labels; nodes and the outside stand outside of all ("")."""
        groups: dict[str, list[str]] = {}
        for label in self.nodes:
            namespace, slash, _ = label.partition("/")
            inside = slash and label.endswith("]") and not label.endswith("[External]")
            groups.setdefault(namespace if inside else "", []).append(label)
        return groups


def make_graph(
    edges: Mapping[tuple[str, str], str],
    lonely: Iterable[str] = (),
    colours: Mapping[tuple[str, str], str] | None = None,
) -> Graph:
    labels = sorted({label for pair in edges for label in pair} | set(lonely))
    nodes = {label: f"n{number}" for number, label in enumerate(labels)}
    return Graph(nodes, edges, colours or {})


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


def draw_mermaid(graph: Graph) -> str:
    lines = ["flowchart LR"]
    for number, (namespace, labels) in enumerate(graph.by_namespace().items()):
        indent = "    " if namespace else "  "
        if namespace:
            lines.append(f'  subgraph s{number}["{namespace}"]')
        lines += [f'{indent}{graph.nodes[label]}["{short(label)}"]' for label in labels]
        if namespace:
            lines.append("  end")
    lines += [
        f'  {graph.nodes[source]} -->|"{text}"| {graph.nodes[destination]}'
        for (source, destination), text in graph.edges.items()
    ]
    lines += [
        f"  linkStyle {number} stroke:{graph.colours[pair]}"
        for number, pair in enumerate(graph.edges)
        if pair in graph.colours
    ]
    return "\n".join(lines) + "\n"


def draw_dot(graph: Graph) -> str:
    lines = ["digraph reachability {", "  rankdir=LR;", "  node [shape=box];"]
    for number, (namespace, labels) in enumerate(graph.by_namespace().items()):
        if namespace:
            lines += [f"  subgraph cluster_{number} {{", f'    label="{namespace}";']
        lines += [f'    {graph.nodes[label]} [label="{short(label)}"];' for label in labels]
        if namespace:
            lines.append("  }")
    for pair, text in graph.edges.items():
        colour = f", color={graph.colours[pair]}" if pair in graph.colours else ""
        source, destination = (graph.nodes[label] for label in pair)
        lines.append(f'  {source} -> {destination} [label="{text}"{colour}];')
    return "\n".join([*lines, "}"]) + "\n"


def short(label: str) -> str:
    """`shop/web[Deployment]` -> `web (Deployment)`: the namespace is drawn already."""
    if label.endswith("[External]"):
        return label.removesuffix("[External]")
    if not label.endswith("]"):
        return label
    name, _, kind = label.partition("/")[2].partition("[")
    return f"{name} ({kind[:-1]})"
