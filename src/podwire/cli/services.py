"""`status services` and `wait services`: what every node does for Services, and until it does."""

from __future__ import annotations

import click

import podwire
from podwire.cli.output import heading, lab_option, output_option, print_structured, print_table
from podwire.errors import LabError
from podwire.explain.programmed import ServiceRow, read_rows, wait_services
from podwire.lab import launch
from podwire.objects.meta import Key
from podwire.services.report import EndpointReport, FrontendReport

_COLUMNS = (
    "Namespace",
    "Name",
    "Type",
    "Cluster-IP",
    "External",
    "Ports",
    "Ready",
    "Programmed",
    "Connections",
    "Problems",
)


@click.command("services")
@click.argument("name", required=False, default="")
@click.option("-n", "--namespace", default="", help="Default: all; with NAME: default.")
@lab_option
@output_option
def status_services(name: str, namespace: str, lab: str | None, output: str) -> None:
    """Tell which nodes have programmed each Service; with NAME, every detail.

    The exit code is 1 when a node lacks the newest state of a Service, or the kernel refused it.
    """
    target = launch.choose(lab)
    launch.require_running(target)
    scope = namespace or ("default" if name else "")
    rows = podwire.Lab(target).call(lambda api: read_rows(api, scope, name))
    if not print_structured(rows[0] if name else rows, output):
        print_rows(rows)
        if name:
            print_details(rows[0])
    if not all(row.complete for row in rows):
        raise click.exceptions.Exit(1)


def print_rows(rows: list[ServiceRow]) -> None:
    print_table(
        "Services",
        _COLUMNS,
        [
            [
                row.namespace,
                row.name,
                row.type,
                ",".join(row.cluster_ips),
                ",".join(row.external),
                ",".join(row.ports),
                f"{row.ready}/{row.total}",
                f"{row.programmed}/{len(row.nodes)}" if row.served else "-",
                str(row.connections),
                "; ".join((*row.problems, row.note) if row.note else row.problems),
            ]
            for row in rows
        ],
    )


def print_details(row: ServiceRow) -> None:
    for node in row.nodes:
        state = "programmed" if node.current else "behind"
        click.echo("")
        heading(
            f"{node.node}: {state} at {node.revision} of {row.revision} {node.problem}".rstrip()
        )
        frontends = node.report.frontends if node.report is not None else ()
        table = [line for frontend in frontends for line in _frontend_lines(frontend)]
        if table:
            columns = ["Frontend", "Role", "Endpoint", "Where", "Connections", "Note"]
            print_table("", columns, table)


def _frontend_lines(frontend: FrontendReport) -> list[list[str]]:
    """A line per endpoint, the first one with the frontend's own words."""
    where = f"{frontend.address}:{frontend.port}/{frontend.protocol}"
    if ":" in frontend.address:
        where = f"[{frontend.address}]:{frontend.port}/{frontend.protocol}"
    notes = [
        f"belongs to {frontend.owner}" if frontend.owner else "",
        f"affinity {frontend.affinity_s} s" if frontend.affinity_s else "",
        frontend.balancing if frontend.balancing != "random" else "",
        "source ranges" if frontend.limited else "",
        f"{frontend.refused} refused" if frontend.refused else "",
    ]
    note = ", ".join(filter(None, notes))
    lines = [_endpoint_line(e, "") for e in frontend.endpoints]
    if not lines:
        lines = [[f"none: {frontend.empty}", "", str(frontend.connections), ""]]
    lines += [_endpoint_line(e, "for clients in the cluster") for e in frontend.internal or ()]
    first, *rest = lines
    first[-1] = ", ".join(filter(None, [first[-1], note]))
    return [[where, frontend.role, *first], *(["", "", *line] for line in rest)]


def _endpoint_line(endpoint: EndpointReport, note: str) -> list[str]:
    weight = f"weight {endpoint.weight}" if endpoint.weight != 1 else ""
    words = ", ".join(filter(None, [note, weight]))
    where = "here" if endpoint.local else ""
    return [endpoint.address, where, str(endpoint.connections), words]


@click.command("services")
@click.argument("names", nargs=-1)
@click.option("-n", "--namespace", default="default", help="Of names without one.")
@click.option("--timeout", default="30s", show_default=True)
@lab_option
def wait_services_command(
    names: tuple[str, ...], namespace: str, timeout: str, lab: str | None
) -> None:
    """Return when every Ready node has programmed [NAMESPACE/]NAME..., or every Service.

    What is there when the command starts is waited for, not what comes later. The exit code is 0
    when all is programmed, 1 when time ran out or a Service is not there, 2 for wrong usage, 3
    when there is no such lab.
    """
    from podwire.cli.lab import parse_duration

    target = launch.choose(lab)
    launch.require_running(target)
    keys = [_key(name, namespace) for name in names]
    timeout_s = parse_duration(timeout)
    missing = podwire.Lab(target).call(lambda api: wait_services(api, keys, timeout_s))
    if missing:
        shown = "; ".join(f"node {where}: {why}" for where, why in list(missing.items())[:5])
        more = f"; and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise LabError(f"services not programmed after {timeout_s:g} s: {shown}{more}")
    click.echo(f"{len(keys) or 'all'} services are programmed on every node")


def _key(text: str, namespace: str) -> Key:
    scope, _, name = text.rpartition("/")
    return Key(scope.rpartition("/")[2] or namespace, name)
