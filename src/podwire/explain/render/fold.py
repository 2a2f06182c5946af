"""Labels that no arrow tells apart share a box, so that a picture stays small. Pure.

    Graph (labels, arrows with ports) -> fold -> Picture (boxes, arrows; both ways in one)

Two labels are alike when every other one may open the same to both, and both the same to it, and
they the same to each other. Where few policies are, there are few boxes, however many workloads.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from podwire.policy.classviews import EXTERNAL

Value: TypeAlias = tuple[str, str]
"""An arrow's text and colour."""
_Ends: TypeAlias = Mapping[str, Mapping[str, Value]]


@dataclass(frozen=True)
class Graph:
    """Every label, also the lonely ones, and arrows by (source, destination).

    `colours` are of arrows that differ from the others: a diff has green and red ones.
    """

    labels: tuple[str, ...]
    edges: Mapping[tuple[str, str], str]
    colours: Mapping[tuple[str, str], str]


class Box(NamedTuple):
    """`namespace` is that of all its labels, "" where they have several or none; `within` is what
    they may open to each other."""

    labels: tuple[str, ...]
    namespace: str
    within: str = ""
    colour: str = ""

    @property
    def external(self) -> bool:
        """Addresses beyond the pods."""
        return self.labels[0].endswith(EXTERNAL)

    def names(self) -> list[str]:
        """As they are called in the box, which says the namespace where it is one."""
        return [short(label, self.namespace) for label in self.labels]


class Arrow(NamedTuple):
    """Between boxes, by number; `both`: the same the other way."""

    source: int
    destination: int
    text: str
    colour: str = ""
    both: bool = False


@dataclass(frozen=True)
class Picture:
    boxes: tuple[Box, ...]
    arrows: tuple[Arrow, ...]

    def by_namespace(self) -> dict[str, list[int]]:
        """Namespace -> numbers of boxes; "" has those of none or several."""
        groups: dict[str, list[int]] = {}
        for number, box in enumerate(self.boxes):
            groups.setdefault(box.namespace, []).append(number)
        return groups


def make_graph(
    edges: Mapping[tuple[str, str], str],
    lonely: Iterable[str] = (),
    colours: Mapping[tuple[str, str], str] | None = None,
) -> Graph:
    labels = sorted({label for pair in edges for label in pair} | set(lonely))
    return Graph(tuple(labels), edges, colours or {})


def fold(graph: Graph) -> Picture:
    """Boxes in the order of their first labels."""
    out: dict[str, dict[str, Value]] = {label: {} for label in graph.labels}
    into: dict[str, dict[str, Value]] = {label: {} for label in graph.labels}
    for (source, destination), text in graph.edges.items():
        value = text, graph.colours.get((source, destination), "")
        out[source][destination] = into[destination][source] = value
    boxes = sorted(_boxes(graph.labels, out, into))
    place = {label: number for number, box in enumerate(boxes) for label in box.labels}
    return Picture(tuple(boxes), tuple(_arrows(boxes, place, out)))


def _boxes(labels: Iterable[str], out: _Ends, into: _Ends) -> Iterator[Box]:
    alone = dict.fromkeys(labels)
    for value, members in _alike(labels, out, into):
        for label in members:
            del alone[label]
        yield Box(tuple(members), _namespace_of(members), *value)
    for label in alone:
        yield Box((label,), _namespace_of([label]))


def _alike(labels: Iterable[str], out: _Ends, into: _Ends) -> Iterator[tuple[Value, list[str]]]:
    """Labels that share all ends, with what they may open to each other; each label once.

    Whoever is alike to one that it may open something to, is alike to none that it may not.
    """
    groups: dict[object, tuple[Value, list[str]]] = {}
    for label in labels:
        kind = label.endswith(EXTERNAL)
        mutual = {value for other, value in out[label].items() if into[label].get(other) == value}
        for each in (None, *mutual):
            own = {} if each is None else {label: each}
            ends = (frozenset({**side[label], **own}.items()) for side in (out, into))
            key = (kind, each, *ends)
            groups.setdefault(key, (each or ("", ""), []))[1].append(label)
    yield from (found for found in groups.values() if len(found[1]) > 1)


def _arrows(boxes: list[Box], place: Mapping[str, int], out: _Ends) -> Iterator[Arrow]:
    """All members of a box have the same, so its first speaks for them."""
    found: dict[tuple[int, int], Value] = {}
    for number, box in enumerate(boxes):
        for other, value in out[box.labels[0]].items():
            if place[other] != number:
                found[number, place[other]] = value
    for (source, destination), value in found.items():
        both = found.get((destination, source)) == value
        if not both or source < destination:
            yield Arrow(source, destination, *value, both=both)


def _namespace_of(labels: Iterable[str]) -> str:
    found = {namespace_of(label) for label in labels}
    return found.pop() if len(found) == 1 else ""


def namespace_of(label: str) -> str:
    """Of `shop/web[Deployment]`; "" of nodes and the outside."""
    namespace, slash, _ = label.partition("/")
    inside = slash and label.endswith("]") and not label.endswith(EXTERNAL)
    return namespace if inside else ""


def short(label: str, namespace: str = "") -> str:
    """`shop/web[Deployment]` -> `web (Deployment)`, with its namespace unless that is told."""
    if label.endswith(EXTERNAL):
        return label.removesuffix(EXTERNAL)
    own = namespace_of(label)
    if not own:
        return label
    name, _, kind = label.partition("/")[2].partition("[")
    scope = "" if own == namespace else f"{own}/"
    return f"{scope}{name} ({kind[:-1]})"
