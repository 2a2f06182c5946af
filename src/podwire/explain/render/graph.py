"""What is allowed, as a graph: Mermaid for READMEs, Graphviz for everything else."""

from __future__ import annotations

from collections.abc import Iterable

from podwire.explain.reach import Reachability
from podwire.explain.render.text import connections, join_ports


def _nodes(reach: Reachability) -> dict[str, str]:
    """Every label, also the lonely ones, with a short identifier."""
    labels = dict.fromkeys(label for pair in connections(reach) for label in pair)
    for endpoint in (*reach.sources, *reach.destinations):
        # A pod whose workload is drawn pod by pod is drawn already.
        if f"{endpoint.key}[Pod]" not in labels:
            labels.setdefault(endpoint.group)
    return {label: f"n{number}" for number, label in enumerate(sorted(labels))}


def _by_namespace(labels: Iterable[str]) -> dict[str, list[str]]:
    """Namespace -> labels; nodes and the outside host stand outside of all ("")."""
    groups: dict[str, list[str]] = {}
    for label in labels:
        namespace, slash, _ = label.partition("/")
        inside = slash and label.endswith("]")
        groups.setdefault(namespace if inside else "", []).append(label)
    return groups


def render_mermaid(reach: Reachability) -> str:
    """A `flowchart LR` with one subgraph per namespace."""
    nodes = _nodes(reach)
    lines = ["flowchart LR"]
    for number, (namespace, labels) in enumerate(_by_namespace(nodes).items()):
        indent = "    " if namespace else "  "
        if namespace:
            lines.append(f'  subgraph s{number}["{namespace}"]')
        lines += [f'{indent}{nodes[label]}["{_short(label)}"]' for label in labels]
        if namespace:
            lines.append("  end")
    lines += [
        f'  {nodes[source]} -->|"{join_ports(ports)}"| {nodes[destination]}'
        for (source, destination), ports in connections(reach).items()
    ]
    return "\n".join(lines) + "\n"


def render_dot(reach: Reachability) -> str:
    """A `digraph` with one cluster per namespace."""
    nodes = _nodes(reach)
    lines = ["digraph reachability {", "  rankdir=LR;", "  node [shape=box];"]
    for number, (namespace, labels) in enumerate(_by_namespace(nodes).items()):
        if namespace:
            lines += [f"  subgraph cluster_{number} {{", f'    label="{namespace}";']
        lines += [f'    {nodes[label]} [label="{_short(label)}"];' for label in labels]
        if namespace:
            lines.append("  }")
    lines += [
        f'  {nodes[source]} -> {nodes[destination]} [label="{join_ports(ports)}"];'
        for (source, destination), ports in connections(reach).items()
    ]
    return "\n".join([*lines, "}"]) + "\n"


def _short(label: str) -> str:
    """`shop/web[Deployment]` -> `web (Deployment)`: the namespace is drawn already."""
    if not label.endswith("]"):
        return label
    name, _, kind = label.partition("/")[2].partition("[")
    return f"{name} ({kind[:-1]})"
