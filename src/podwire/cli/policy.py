"""`podwire policy`: what policies do, before they are applied and before they are enforced."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from podwire.cli.output import lab_option, output_option, print_structured, print_table
from podwire.cli.policyflows import flows, observe
from podwire.cli.policyrecommend import recommend
from podwire.cli.policystage import promote, read_log, stage, staged
from podwire.cli.static import (
    Choices,
    left_out,
    reach_files,
    reach_world,
    read_source,
    semantics_options,
    warn,
)
from podwire.errors import UsageError
from podwire.explain import policytools
from podwire.explain.policytools import DiffTold, ExposureTold, FindingTold, FlowsTold
from podwire.explain.render.graph import draw_dot, draw_mermaid
from podwire.explain.render.svg import draw_svg
from podwire.policy.coverage import Coverage

_FILES = click.option(
    "-f",
    "--filename",
    "files",
    multiple=True,
    metavar="PATH",
    help="Manifests, - for stdin (default: what the lab's API says).",
)
_PICTURES = {"mermaid": draw_mermaid, "dot": draw_dot, "svg": draw_svg}


@click.group()
def policy() -> None:
    """Compare, measure, check and recommend policies; try them before they block.

    From manifests, or from the API of a running lab. Of any other cluster: `kubectl get
    ns,nodes,deploy,sts,ds,rs,pods,svc,netpol -A -o json | podwire policy lint -f -`. Nothing needs
    root.
    """


for _command in (flows, observe, promote, recommend, stage, staged):
    policy.add_command(_command)


@policy.command()
@click.argument("old", metavar="OLD")
@click.argument("new", metavar="NEW")
@click.option(
    "-o",
    "--output",
    type=click.Choice(("table", "json", "yaml", *_PICTURES)),
    default="table",
    help="How to print the result.",
)
@click.option("--exit-code", is_flag=True, help="Exit with 1 when something changes.")
@click.option("--flows", metavar="FLOWLOG", help="Weigh the changes by what was seen, - for stdin.")
@semantics_options
def diff(
    old: str, new: str, output: str, exit_code: bool, flows: str | None, **options: Any
) -> None:
    """Tell which connections change from the manifests OLD to NEW (files, folders, - for stdin).

    With a flow log also how many observed flows each change would newly deny or allow.
    """
    choices = Choices(**options)
    before, after = reach_files([old], choices), reach_files([new], choices)
    changes = policytools.diff_worlds(before, after)
    if output in _PICTURES:
        click.echo(_PICTURES[output](policytools.draw_diff(changes)), nl=False)
    else:
        found = policytools.tell_diff(changes, before, after)
        if flows is not None:
            log = read_log(flows)
            found = policytools.add_flows(found, changes, before.static, log)
        if not print_structured(found, output):
            _print_diff(found)
    if changes and exit_code:
        raise click.exceptions.Exit(1)


def _print_diff(found: DiffTold) -> None:
    for label in found.workloads_added:
        click.echo(f"new workload {label}")
    for label in found.workloads_removed:
        click.echo(f"no more workload {label}")
    if not found.changes:
        click.echo("no connection changes")
        return
    columns = ["Change", "Source", "Destination", "Old", "New"]
    rows = [[c.kind, c.source, c.destination, c.old, c.new] for c in found.changes]
    if found.flows is not None:
        columns += ["Newly-Denied", "Newly-Allowed"]
        for row, change in zip(rows, found.changes, strict=True):
            row += [str(change.flows_denied), str(change.flows_allowed)]
    print_table("Connections", columns, rows)
    if found.flows is not None:
        _print_flows(found.flows)


def _print_flows(flows: FlowsTold) -> None:
    click.echo(
        f"of {flows.total} observed flows {flows.denied} would newly be denied, {flows.allowed} "
        f"newly allowed; {flows.unused} changes open what nothing tried; seen {flows.window}"
    )
    for doubt in flows.doubts:
        click.echo(f"warning: {doubt}", err=True)


@policy.command()
@_FILES
@semantics_options
@lab_option
@output_option
def coverage(files: tuple[str, ...], lab: str | None, output: str, **options: Any) -> None:
    """Tell how many pods are isolated per direction, and what is open to whom."""
    choices = Choices(**options)
    found = policytools.cover(reach_world(read_source(files, lab, choices), choices))
    if not print_structured(found, output):
        _print_coverage(found)


def _print_coverage(found: Sequence[Coverage]) -> None:
    columns = (
        "Namespace",
        "Pods",
        "Ingress-Isolated",
        "Egress-Isolated",
        "From-World",
        "To-World",
        "From-Namespaces",
        "To-Namespaces",
    )
    rows = [
        [
            row.namespace or "(all)",
            str(row.pods),
            _share(row.ingress_isolated, row.pods),
            _share(row.egress_isolated, row.pods),
            _share(row.from_world, row.pods),
            _share(row.to_world, row.pods),
            _share(row.from_namespaces, row.pods),
            _share(row.to_namespaces, row.pods),
        ]
        for row in found
    ]
    print_table("Coverage", columns, rows)


def _share(part: int, whole: int) -> str:
    return f"{part} ({part / whole:.0%})" if whole else "0"


@policy.command("lint")
@_FILES
@click.option("--exit-code", is_flag=True, help="Exit with 1 for errors and warnings.")
@semantics_options
@lab_option
@output_option
def lint_(
    files: tuple[str, ...], lab: str | None, output: str, exit_code: bool, **options: Any
) -> None:
    """Tell what is likely wrong: shadowed, redundant and dangling rules, ties, lost DNS, ..."""
    choices = Choices(**options)
    static = read_source(files, lab, choices)
    warn(left_out(static, choices.version))
    found = policytools.lint_world(static, choices.semantics, choices.version)
    if not print_structured(found, output):
        _print_findings(found)
    if exit_code and any(finding.severity != "info" for finding in found):
        raise click.exceptions.Exit(1)


def _print_findings(found: Sequence[FindingTold]) -> None:
    colours = {"error": "red", "warning": "yellow", "info": "cyan"}
    for finding in found:
        place = f"{finding.at}: " if finding.at else ""
        mark = click.style(finding.severity, fg=colours[finding.severity])
        click.echo(
            f"{place}{mark} [{finding.check}] {finding.policy} {finding.path}: {finding.text}"
        )
    if not found:
        click.echo("nothing found")


@policy.command()
@_FILES
@click.option("--labels", metavar="K=V,...", help="Of the pod (default: all selectors of rules).")
@semantics_options
@lab_option
@output_option
def exposure(
    files: tuple[str, ...], labels: str | None, lab: str | None, output: str, **options: Any
) -> None:
    """Tell what pods that do not exist yet could reach, and who could reach them.

    With --labels a pod with these labels, in the namespace of -n; else one for each selector that
    rules name, and one that none of them means.
    """
    choices = Choices(**options)
    static = read_source(files, lab, choices)
    warn(left_out(static, choices.version))
    if labels is None:
        found = policytools.expose(static, choices.semantics, choices.version)
    else:
        own = _labels(labels)
        found = policytools.expose_pod(
            static, choices.namespace, own, choices.semantics, choices.version
        )
    if not print_structured(found, output):
        _print_exposure(found)


def _labels(text: str) -> dict[str, str]:
    labels: dict[str, str] = {}
    for part in filter(None, text.split(",")):
        key, equals, value = part.partition("=")
        if not equals:
            raise UsageError(f"--labels {part!r}: write KEY=VALUE,KEY=VALUE")
        labels[key.strip()] = value.strip()
    return labels


def _print_exposure(found: Sequence[ExposureTold]) -> None:
    columns = ("Pod", "Direction", "Peer", "Connections")
    rows = [[told.imagined, told.direction, told.peer, told.text] for told in found]
    print_table("Exposure", columns, rows)
