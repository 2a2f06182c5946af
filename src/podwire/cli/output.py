"""How results are printed: tables with colours on a terminal, plain text in a pipe, JSON, YAML."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import click
import msgspec

OUTPUTS = ("table", "json", "yaml")

output_option = click.option(
    "-o", "--output", type=click.Choice(OUTPUTS), default="table", help="How to print the result."
)
lab_option = click.option(
    "--lab", "lab", metavar="NAME", help="The lab (default: $PODWIRE_LAB, else the only one)."
)

_COLOURS = {
    "Ready": "green",
    "Running": "green",
    "Succeeded": "green",
    "healthy": "green",
    "created": "green",
    "configured": "yellow",
    "Pending": "yellow",
    "restarting": "red",
    "NotReady": "red",
    "Failed": "red",
}


def print_structured(value: Any, output: str) -> bool:
    """Print `value` as JSON or YAML if that was asked for; False when a table is wanted."""
    if output == "json":
        plain = msgspec.to_builtins(value)
        click.echo(msgspec.json.format(msgspec.json.encode(plain), indent=2).decode())
    elif output == "yaml":
        import yaml

        click.echo(
            yaml.dump(msgspec.to_builtins(value), Dumper=yaml.CSafeDumper, sort_keys=False).rstrip()
        )
    else:
        return False
    return True


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A rich table on a terminal, aligned plain text elsewhere."""
    if sys.stdout.isatty():
        _print_rich(title, columns, rows)
        return
    widths = [max(len(row[i]) for row in (columns, *rows)) for i in range(len(columns))]
    for row in ([column.upper() for column in columns], *rows):
        line = "   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        click.echo(line.rstrip())


def _print_rich(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns, title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        table.add_row(*(Text(cell, style=_COLOURS.get(cell, "")) for cell in row))
    Console().print(table)


@contextlib.contextmanager
def progress(start: str) -> Iterator[Callable[[str], None]]:
    """Tell how long work goes: a spinner on a terminal, a line per step on stderr elsewhere."""
    if not sys.stderr.isatty():
        last = ""

        def say(text: str) -> None:
            nonlocal last
            if text != last:
                click.echo(text, err=True)
                last = text

        say(start)
        yield say
        return
    from rich.console import Console

    with Console(stderr=True).status(start) as status:
        yield status.update


def heading(text: str) -> None:
    click.echo(click.style(text, bold=True))
