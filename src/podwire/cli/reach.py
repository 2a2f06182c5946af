"""`podwire reach`: who reaches whom, by packets or by computing."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Sequence

import click

from podwire.cli.output import lab_option, progress
from podwire.cli.static import Choices, reach_files, semantics_options, warn
from podwire.errors import UsageError
from podwire.explain.reach import Reachability, ReachOptions
from podwire.explain.render.graph import render_dot, render_mermaid
from podwire.explain.render.matrix import build_matrix, render_matrix
from podwire.explain.render.svg import render_svg
from podwire.explain.render.text import render_connlist, render_json, render_summary
from podwire.explain.staticmatrix import chosen_connections, reach_static
from podwire.policy.connlist import render_connlist as connlist_lines

# Cells only: names hold these letters too ("bookinfo").
_VERDICT = re.compile(r"(?<=\s)(ok|drop|reject|refused|error)(?=\s|$)", re.MULTILINE)
_PICTURES = ("mermaid", "dot", "svg")
OUTPUTS = ("table", "json", "yaml", "connlist", *_PICTURES)


@click.command()
@click.option("--live/--static", default=True, help="Ask with real packets (default), or compute.")
@click.option(
    "-f",
    "--filename",
    "files",
    multiple=True,
    metavar="PATH",
    help="Compute from manifests (with --static; default: from the lab's API).",
)
@click.option("--from", "sources", multiple=True, metavar="SEL", help="ns/pod, ns/app=web, outside")
@click.option("--to", "destinations", multiple=True, metavar="SEL")
@click.option("--port", "ports", multiple=True, help="8080, 53/udp or icmp (default: declared).")
@click.option("--icmp", is_flag=True, help="Ping every pair as well.")
@click.option("--http", is_flag=True, help="Ask by HTTP: tells the address the peer saw.")
@click.option("--per-owner", default=0, help="Take that many pods of each workload (0: all).")
@click.option("-o", "--output", type=click.Choice(OUTPUTS), default="table")
@semantics_options
@lab_option
def reach(
    live: bool,
    files: tuple[str, ...],
    lab: str | None,
    output: str,
    namespace: str,
    ipblock: bool | None,
    no_ipblock: bool,
    host_network: str | None,
    family: str,
    **options: object,
) -> None:
    """Print the pod x pod (x port) matrix.

    With --static nothing is sent: policies are evaluated, from manifests (-f, no root and no lab
    needed) or from the lab's API. `-o connlist` lists all connections there are then, of workloads
    and of the outside, at all ports.
    """
    asked = ReachOptions(**options)  # type: ignore[arg-type]
    choices = Choices(namespace, ipblock, no_ipblock, host_network, family)
    if files:
        if live:
            raise UsageError("reach -f: computes from manifests; write --static -f")
        _from_files(files, choices, asked, output)
        return
    # Computing from manifests works where labs do not.
    from podwire.cli.running import running_lab

    target = running_lab(lab)
    if live:
        with progress("probing") as say:
            found = target.reach(asked)
            say(f"{len(found.answers)} answers")
    else:
        found, warnings = target.reach_static(asked, choices.semantics, choices.version)
        warn(warnings)
    click.echo(render(found, output), nl=False)


def _from_files(files: Sequence[str], choices: Choices, asked: ReachOptions, output: str) -> None:
    static = reach_files(files, choices)
    if output == "connlist":
        # Line by line: there may be millions.
        for line in connlist_lines(chosen_connections(static, asked)):
            sys.stdout.write(f"{line}\n")
        return
    whole, pairs = output != "table", output not in _PICTURES
    click.echo(render(reach_static(static, asked, whole=whole, pairs=pairs), output), nl=False)


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
        case "svg":
            return render_svg(found)
    matrix = render_matrix(build_matrix(found), shutil.get_terminal_size((100, 24)).columns)
    if sys.stdout.isatty():
        matrix = _VERDICT.sub(_coloured, matrix)
    return f"{matrix}\n{render_summary(found)}\n"


def _coloured(match: re.Match[str]) -> str:
    return click.style(match[0], fg="green" if match[0] == "ok" else "red")
