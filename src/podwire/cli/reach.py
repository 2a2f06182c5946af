"""`podwire reach`: who reaches whom."""

from __future__ import annotations

import re
import shutil
import sys

import click

from podwire.cli.output import lab_option, progress
from podwire.errors import UsageError
from podwire.explain.reach import Reachability, ReachOptions
from podwire.explain.render.graph import render_dot, render_mermaid
from podwire.explain.render.matrix import build_matrix, render_matrix
from podwire.explain.render.text import render_connlist, render_json, render_summary
from podwire.lab import Lab, launch

# Cells only: names hold these letters too ("bookinfo").
_VERDICT = re.compile(r"(?<=\s)(ok|drop|reject|refused|error)(?=\s|$)", re.MULTILINE)


@click.command()
@click.option("--live/--static", default=True, help="Ask with real packets (default), or compute.")
@click.option("--from", "sources", multiple=True, metavar="SEL", help="ns/pod, ns/app=web, outside")
@click.option("--to", "destinations", multiple=True, metavar="SEL")
@click.option("--port", "ports", multiple=True, help="8080, 53/udp or icmp (default: declared).")
@click.option("--icmp", is_flag=True, help="Ping every pair as well.")
@click.option("--http", is_flag=True, help="Ask by HTTP: tells the address the peer saw.")
@click.option("--per-owner", default=0, help="Take that many pods of each workload (0: all).")
@click.option(
    "-o",
    "--output",
    type=click.Choice(("table", "json", "yaml", "connlist", "mermaid", "dot")),
    default="table",
)
@lab_option
def reach(live: bool, lab: str | None, output: str, **options: object) -> None:
    """Print the pod x pod (x port) matrix."""
    if not live:
        raise UsageError("reach --static needs the policy evaluator, which this version lacks")
    name = launch.choose(lab)
    launch.require_running(name)
    with progress("probing") as say:
        found = Lab(name).reach(ReachOptions(**options))  # type: ignore[arg-type]
        say(f"{len(found.answers)} answers")
    click.echo(render(found, output), nl=False)


def render(found: Reachability, output: str) -> str:
    match output:
        case "json":
            return render_json(found).decode() + "\n"
        case "yaml":
            import msgspec

            return msgspec.yaml.encode(msgspec.json.decode(render_json(found))).decode()
        case "connlist":
            return render_connlist(found)
        case "mermaid":
            return render_mermaid(found)
        case "dot":
            return render_dot(found)
    matrix = render_matrix(build_matrix(found), shutil.get_terminal_size((100, 24)).columns)
    if sys.stdout.isatty():
        matrix = _VERDICT.sub(_coloured, matrix)
    return f"{matrix}\n{render_summary(found)}\n"


def _coloured(match: re.Match[str]) -> str:
    return click.style(match[0], fg="green" if match[0] == "ok" else "red")
