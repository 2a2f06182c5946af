"""`status policies`, `wait policies`: which nodes have each policy in force; until all do."""

from __future__ import annotations

import click

import podwire
from podwire.cli.output import heading, lab_option, output_option, print_structured, print_table
from podwire.errors import LabError
from podwire.explain.policies import PolicyRow, read_policy_rows, wait_policies
from podwire.lab import launch

_COLUMNS = (
    "Namespace",
    "Kind",
    "Name",
    "Generation",
    "In-Force",
    "Pods",
    "Accepted",
    "Denied",
    "Problems",
)
_SHOWN = 5


@click.command("policies")
@click.argument("name", required=False, default="")
@click.option("-n", "--namespace", default="", help="Default: all.")
@lab_option
@output_option
def status_policies(name: str, namespace: str, lab: str | None, output: str) -> None:
    """Tell which nodes have each policy in force; with NAME, every rule and what it decided.

    The exit code is 1 when a node lacks the newest state of a policy.
    """
    target = launch.choose(lab)
    launch.require_running(target)
    rows = podwire.Lab(target).call(lambda api: read_policy_rows(api, namespace, name))
    if not print_structured(rows, output):
        _print_rows(rows)
        if name:
            for row in rows:
                _print_details(row)
    if not all(row.complete for row in rows):
        raise click.exceptions.Exit(1)


def _print_rows(rows: list[PolicyRow]) -> None:
    print_table(
        "Policies",
        _COLUMNS,
        [
            [
                row.namespace,
                row.kind,
                row.name,
                str(row.generation),
                "staged" if row.staged else f"{row.in_force}/{len(row.nodes)}",
                str(row.subjects),
                str(row.accepted),
                str(row.denied),
                "; ".join(row.problems),
            ]
            for row in rows
        ],
    )


def _print_details(row: PolicyRow) -> None:
    for node in row.nodes:
        report = node.report
        state = "in force" if node.current else "behind"
        click.echo("")
        heading(
            f"{node.node}: {state} at {node.revision} of {row.revision} {node.problem}".rstrip()
        )
        if report is not None and report.subjects:
            counts = [[r.path, r.action, str(r.connections)] for r in report.rules]
            if row.kind == "NetworkPolicy":
                counts.append(["(no rule)", "Deny", str(report.denied)])
            print_table("", ["Rule", "Action", "Connections"], counts)


@click.command("policies")
@click.argument("names", nargs=-1)
@click.option("--timeout", default="30s", show_default=True)
@lab_option
def wait_policies_command(names: tuple[str, ...], timeout: str, lab: str | None) -> None:
    """Return when every Ready node has [NAMESPACE/]NAME... in force, or every policy.

    What is there when the command starts is waited for, not what comes later. Of a name without
    a namespace the policy of the cluster is meant. The exit code is 0 when all are in force, 1 when
    time ran out or a policy is not there, 2 for wrong usage, 3 when there is no such lab.
    """
    from podwire.cli.lab import parse_duration

    target = launch.choose(lab)
    launch.require_running(target)
    timeout_s = parse_duration(timeout)
    missing = podwire.Lab(target).call(lambda api: wait_policies(api, names, timeout_s))
    if missing:
        shown = "; ".join(f"node {where}: {why}" for where, why in list(missing.items())[:_SHOWN])
        more = f"; and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        raise LabError(f"policies not in force after {timeout_s:g} s: {shown}{more}")
    click.echo(f"{len(names) or 'all'} policies are in force on every node")
