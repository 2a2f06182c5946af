"""Where boxes and arrows lie in a picture: in columns, arrows from left to right. Pure.

    sizes + arrows -> turn arrows of cycles -> columns -> order in columns -> heights -> paths

Sugiyama's way: an arrow that spans columns has a lane of its own in each column between, so it
never runs under a box; the order in a column is that of the neighbours' middles, some times to and
fro. Every end of an arrow has a place of its own at its box, so texts at ends never meet.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, TypeAlias

LANE: Final = 17
"""Between two arrows at a box or past it: a line of text has room above each."""
GAP: Final = 22
_SWEEPS: Final = 12


class Size(NamedTuple):
    width: float
    height: float


class Line(NamedTuple):
    """From box to box by number, in the direction of reading; `turned`: the arrow points back."""

    number: int
    left: int
    right: int
    turned: bool = False


@dataclass(eq=False)
class Item:
    """A box in its column, or with `box` None the lane of an arrow; `y` is its middle."""

    column: int
    height: float
    box: int | None = None
    y: float = 0.0
    before: list[Piece] = field(default_factory=list)
    after: list[Piece] = field(default_factory=list)

    @property
    def top(self) -> float:
        return self.y - self.height / 2


@dataclass(eq=False)
class Piece:
    """A part of a line, from a column to the next; `y1` and `y2` are where it ends."""

    line: Line
    left: Item
    right: Item
    y1: float = 0.0
    y2: float = 0.0


Columns: TypeAlias = list[list[Item]]


@dataclass(frozen=True)
class Layout:
    """`pieces` of each line, left to right; the topmost item begins at 0."""

    columns: Columns
    lines: Mapping[Line, Sequence[Piece]]
    height: float


def count_columns(count: int, arrows: Sequence[tuple[int, int]]) -> int:
    """How many columns so many boxes would have."""
    return max(_depths(*_turn(count, arrows)).values(), default=-1) + 1


def lay_out(sizes: Sequence[Size], arrows: Sequence[tuple[int, int]]) -> Layout:
    """Boxes without arrows are not part of it."""
    lines, rank = _turn(len(sizes), arrows)
    columns, pieces = _place(sizes, lines, _depths(lines, rank))
    _sort(columns)
    _raise(columns)
    _attach(columns)
    top = min((item.top for column in columns for item in column), default=0.0)
    for column in columns:
        for item in column:
            item.y -= top
    for parts in pieces.values():
        for piece in parts:
            piece.y1, piece.y2 = piece.y1 - top, piece.y2 - top
    bottom = max((i.y + i.height / 2 for column in columns for i in column), default=0.0)
    return Layout(columns, pieces, bottom)


def _turn(count: int, arrows: Sequence[tuple[int, int]]) -> tuple[list[Line], list[int]]:
    """Arrows as lines that make no cycle, and the order of boxes they follow."""
    rank = _ranks(count, arrows)
    lines = [
        Line(n, *((a, b) if rank[a] < rank[b] else (b, a)), turned=rank[a] > rank[b])
        for n, (a, b) in enumerate(arrows)
    ]
    return lines, rank


def _ranks(count: int, arrows: Sequence[tuple[int, int]]) -> list[int]:
    """An order in which few arrows point back (Eades, Lin and Smyth)."""
    out: list[set[int]] = [set() for _ in range(count)]
    into: list[set[int]] = [set() for _ in range(count)]
    for a, b in arrows:
        out[a].add(b)
        into[b].add(a)
    left: list[int] = []
    right: list[int] = []
    rest = set(range(count))
    while rest:
        sink = next((n for n in sorted(rest) if not out[n]), None)
        source = next((n for n in sorted(rest) if not into[n]), None)
        if sink is not None:
            chosen, end = sink, right
        elif source is not None:
            chosen, end = source, left
        else:
            chosen, end = max(sorted(rest), key=lambda n: len(out[n]) - len(into[n])), left
        end.append(chosen)
        rest.remove(chosen)
        for other in out[chosen]:
            into[other].discard(chosen)
        for other in into[chosen]:
            out[other].discard(chosen)
    order = [*left, *reversed(right)]
    return [order.index(n) for n in range(count)]


def _depths(lines: Sequence[Line], rank: Sequence[int]) -> dict[int, int]:
    """The column of each box that has arrows: right of all that lead to it, then as far right as
    what it leads to lets it."""
    depth = {box: 0 for line in lines for box in (line.left, line.right)}
    for line in sorted(lines, key=lambda each: rank[each.left]):
        depth[line.right] = max(depth[line.right], depth[line.left] + 1)
    for box in sorted(depth, key=lambda n: -rank[n]):
        if not any(line.right == box for line in lines):
            depth[box] = min((depth[n.right] for n in lines if n.left == box), default=1) - 1
    return depth


def _place(
    sizes: Sequence[Size], lines: Sequence[Line], depth: Mapping[int, int]
) -> tuple[Columns, dict[Line, list[Piece]]]:
    columns: Columns = [[] for _ in range(max(depth.values(), default=-1) + 1)]
    boxes = {box: Item(column, sizes[box].height, box) for box, column in depth.items()}
    for item in boxes.values():
        columns[item.column].append(item)
    found: dict[Line, list[Piece]] = {}
    for line in lines:
        at, parts = boxes[line.left], []
        for column in range(depth[line.left] + 1, depth[line.right] + 1):
            last = column == depth[line.right]
            to = boxes[line.right] if last else Item(column, LANE)
            if not last:
                columns[column].append(to)
            piece = Piece(line, at, to)
            at.after.append(piece)
            to.before.append(piece)
            parts.append(piece)
            at = to
        found[line] = parts
    for item in boxes.values():
        ends = max(len(item.before), len(item.after))
        item.height = max(item.height, ends * LANE + 6)
    return columns, found


def _sort(columns: Columns) -> None:
    """Of some orders the one with the fewest crossings."""
    best, least = [list(column) for column in columns], _crossings(columns)
    for sweep in range(_SWEEPS):
        onward = sweep % 2 == 0
        for column in columns if onward else reversed(columns):
            where = {id(i): n for other in columns for n, i in enumerate(other)}
            column.sort(key=lambda item: _middle(item, where, onward))
        found = _crossings(columns)
        if found < least:
            best, least = [list(column) for column in columns], found
    for column, order in zip(columns, best, strict=True):
        column[:] = order


def _middle(item: Item, where: Mapping[int, int], onward: bool) -> float:
    others = [p.left for p in item.before] if onward else [p.right for p in item.after]
    own = where[id(item)]
    return sum(where[id(other)] for other in others) / len(others) if others else own


def _crossings(columns: Columns) -> int:
    total = 0
    for column in columns:
        where = {id(item): n for n, item in enumerate(column)}
        after = columns[column[0].column + 1] if column[0].column + 1 < len(columns) else ()
        beyond = {id(item): n for n, item in enumerate(after)}
        ends = sorted((where[id(item)], beyond[id(p.right)]) for item in column for p in item.after)
        # Two cross when they begin in one order and end in the other.
        passed: list[int] = []
        for _, end in ends:
            total += len(passed) - bisect_right(passed, end)
            insort(passed, end)
    return total


def _raise(columns: Columns) -> None:
    """Heights: each item as near to its neighbours' middle as the others of its column let it."""
    for column in columns:
        y = 0.0
        for item in column:
            item.y = y + item.height / 2
            y += item.height + _space(item)
    for sweep in range(_SWEEPS):
        for column in columns if sweep % 2 else reversed(columns):
            wanted = [_wanted(item) for item in column]
            _settle(column, wanted)


def _wanted(item: Item) -> float:
    near = [piece.left.y for piece in item.before] + [piece.right.y for piece in item.after]
    return sum(near) / len(near)


def _settle(column: Sequence[Item], wanted: Sequence[float]) -> None:
    """Least squares under the distances items need: blocks that touch move as one."""
    blocks: list[tuple[float, int, list[float]]] = []
    at = 0.0
    offsets: list[float] = []
    previous: Item | None = None
    for item in column:
        if previous is not None:
            at += (previous.height + item.height) / 2 + _space(previous)
        offsets.append(at)
        previous = item
    for want, offset in zip(wanted, offsets, strict=True):
        block = (want - offset, 1, [want - offset])
        while blocks and blocks[-1][0] > block[0]:
            _, _, own = blocks.pop()
            joined = [*own, *block[2]]
            block = (sum(joined) / len(joined), len(joined), joined)
        blocks.append(block)
    starts = (start for start, count, _ in blocks for _ in range(count))
    for item, offset, start in zip(column, offsets, starts, strict=True):
        item.y = start + offset


def _space(item: Item) -> float:
    return GAP if item.box is not None else 0.0


def _attach(columns: Columns) -> None:
    """Ends of lines at a box in the order of where they lead, so that they do not cross there."""
    for column in columns:
        for item in column:
            for piece, y in _spread(item, sorted(item.before, key=lambda p: p.left.y)):
                piece.y2 = y
            for piece, y in _spread(item, sorted(item.after, key=lambda p: p.right.y)):
                piece.y1 = y


def _spread(item: Item, pieces: Sequence[Piece]) -> Iterator[tuple[Piece, float]]:
    first = item.y - (len(pieces) - 1) * LANE / 2
    for number, piece in enumerate(pieces):
        yield piece, first + number * LANE
