"""Print the table of netfilter hooks that ARCHITECTURE.md shows; `--write` puts it there.

src/podwire/kernel/hooks.py is the registry; the text between the markers is made from it, so the
document cannot tell of a chain that does not exist. tests/unit/test_docs.py compares them.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

from podwire.kernel.hooks import HOOKS, Hook

BEGIN = "<!-- hooks: made by tools/render_hooks.py --write -->"
END = "<!-- hooks: end -->"
DOCUMENT = Path(__file__).parents[1] / "ARCHITECTURE.md"
_ON_PATH = ("prerouting", "input", "forward", "output", "postrouting")


def render_table(hooks: Iterable[Hook] = HOOKS) -> str:
    """Markdown, in the order a packet meets the chains: by family, hook and priority."""
    rows = sorted(hooks, key=lambda h: (h.family, _ON_PATH.index(h.hook), h.priority, h.table))
    lines = [
        "| family | hook | priority | type | table | base chain | owner |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row.family} | {row.hook} | {row.priority} | {row.type} | `{row.table}` "
            f"| `{row.chain}` | {row.owner}/ |"
        )
    return "\n".join(lines) + "\n"


def replace_table(document: str) -> str:
    """The document with the table between its markers made anew."""
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{DOCUMENT.name}: the markers {BEGIN} and {END} are missing")
    return f"{before}{BEGIN}\n{render_table()}{END}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="put it into ARCHITECTURE.md")
    if parser.parse_args().write:
        DOCUMENT.write_text(replace_table(DOCUMENT.read_text()))
    else:
        print(render_table(), end="")


if __name__ == "__main__":
    main()
