"""The matrix people look at first: sources down, destinations across, workloads as rows.

A thousand pods of twenty Deployments are a matrix of twenty; a cell sums up all pods of its row
and column and says so when they differ.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from podwire.explain.endpoints import Endpoint
from podwire.explain.probes.wire import Verdict
from podwire.explain.reach import Answer, Reachability

GroupBy: TypeAlias = Literal["auto", "pod", "owner"]
# Beyond this many pods a matrix of pods is wider than any terminal.
_AUTO_LIMIT: Final = 16

_WORDS: Final[dict[Verdict, str]] = {
    "allowed": "ok",
    "refused": "refused",
    "rejected": "reject",
    "dropped": "drop",
    "error": "error",
}


@dataclass(frozen=True)
class Cell:
    """`verdict` is None for a cell nobody asked about and "mixed" where its answers differ."""

    text: str
    verdict: Verdict | Literal["mixed"] | None = None
    details: tuple[str, ...] = ()


@dataclass(frozen=True)
class Matrix:
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells: tuple[tuple[Cell, ...], ...]


def build_matrix(reach: Reachability, by: GroupBy = "auto") -> Matrix:
    """Cells in the order of the reachability's sources and destinations."""
    if by == "auto":
        largest = max(len(reach.sources), len(reach.destinations))
        by = "owner" if largest > _AUTO_LIMIT else "pod"
    row_of = [_label(endpoint, by) for endpoint in reach.sources]
    column_of = [_label(endpoint, by) for endpoint in reach.destinations]
    answers: dict[tuple[str, str], list[Answer]] = {}
    for answer in reach.answers:
        key = row_of[answer.source], column_of[answer.destination]
        answers.setdefault(key, []).append(answer)
    rows, columns = tuple(dict.fromkeys(row_of)), tuple(dict.fromkeys(column_of))
    return Matrix(
        rows,
        columns,
        tuple(tuple(_cell(answers.get((row, column), [])) for column in columns) for row in rows),
    )


def _label(endpoint: Endpoint, by: GroupBy) -> str:
    return endpoint.key if by == "pod" else endpoint.group


def _cell(answers: Sequence[Answer]) -> Cell:
    if not answers:
        return Cell("-")
    counts = Counter(answer.verdict for answer in answers)
    details = tuple(sorted({a.detail for a in answers if a.detail}))
    if len(counts) == 1:
        verdict = answers[0].verdict
        return Cell(_WORDS[verdict], verdict, details)
    ports = {answer.port for answer in answers}
    by_port = {p: {a.verdict for a in answers if a.port == p} for p in ports}
    if len(ports) > 1 and all(len(verdicts) == 1 for verdicts in by_port.values()):
        # All pods agree and the ports differ: name the ports that are open.
        opened = [str(port.number or port) for port in sorted(ports) if "allowed" in by_port[port]]
        if opened:
            return Cell("ok:" + ",".join(opened), "mixed", details)
    return Cell(f"{counts['allowed']}/{len(answers)} ok", "mixed", details)


def render_matrix(matrix: Matrix, width: int = 100) -> str:
    """The matrix as plain text; columns are numbered with a legend when their names do not fit."""
    if not matrix.rows or not matrix.columns:
        return "nothing to show: no pairs were asked about\n"
    table = [[cell.text for cell in row] for row in matrix.cells]
    heads = list(matrix.columns)
    legend: list[str] = []
    if _width(matrix.rows, heads, table) > width:
        heads = [f"[{number}]" for number in range(1, len(heads) + 1)]
        legend = [f"{head} {name}" for head, name in zip(heads, matrix.columns, strict=True)]
    first = max(map(len, matrix.rows))
    widths = [max(len(heads[j]), *(len(row[j]) for row in table)) for j in range(len(heads))]
    lines = [_line("", heads, first, widths)]
    lines += [_line(name, row, first, widths) for name, row in zip(matrix.rows, table, strict=True)]
    if legend:
        lines += ["", *legend]
    return "\n".join(lines) + "\n"


def _width(rows: Sequence[str], heads: Sequence[str], table: Sequence[Sequence[str]]) -> int:
    columns = [max(len(heads[j]), *(len(row[j]) for row in table)) for j in range(len(heads))]
    return max(map(len, rows)) + sum(columns) + 2 * len(columns)


def _line(name: str, cells: Sequence[str], first: int, widths: Sequence[int]) -> str:
    padded = [cell.ljust(width) for cell, width in zip(cells, widths, strict=True)]
    return "  ".join([name.ljust(first), *padded]).rstrip()
