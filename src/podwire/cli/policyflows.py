"""`policy flows`, `policy observe`: connections as the nodes saw them, and what decided."""

from __future__ import annotations

import click

from podwire.cli.output import lab_option, output_option, print_structured, print_table
from podwire.policy.flowdocument import FlowLogDocument, clock
from podwire.policy.flowlog import FlowRecord, Said

_COLUMNS = ("Last-Seen", "Source", "Destination", "Port", "Verdict", "Count", "Why")


def live_flows(lab: str | None) -> tuple[FlowLogDocument, str]:
    """What the nodes of a running lab have noted, and the lab's name."""
    from podwire.explain.liveflows import read_flows
    from podwire.lab import Lab, launch

    name = launch.choose(lab)
    launch.require_running(name)
    return Lab(name).call(read_flows), name


@click.command()
@click.option("--denied", is_flag=True, help="Only connections that were denied.")
@lab_option
@output_option
def flows(denied: bool, lab: str | None, output: str) -> None:
    """Tell which connections the nodes saw, and which rule decided.

    What was denied is always noted; what passed after `policy observe on`, and while policies are
    staged. With -o json it is the flow log that `staged` and `recommend` read from files.
    """
    document, _ = live_flows(lab)
    if denied:
        document.records = tuple(r for r in document.records if r.verdict == "denied")
    if print_structured(document, output):
        return
    print_table("Flows", _COLUMNS, [_row(record) for record in document.records])
    for doubt in document.doubts():
        click.echo(f"note: {doubt}", err=True)


def _row(record: FlowRecord) -> list[str]:
    port = f"{record.protocol} {record.port}" if record.port else record.protocol
    return [
        clock(record.last_seen),
        str(record.source),
        str(record.destination),
        port,
        record.verdict,
        str(record.count),
        _why(record),
    ]


def _why(record: FlowRecord) -> str:
    """Of a denial the direction that denies, of what passed the rules it rests on."""
    said = [("egress", record.egress), ("ingress", record.ingress)]
    if record.verdict == "denied":
        return "; ".join(_denial(name, each) for name, each in said if each.verdict == "denied")
    return "; ".join(f"{name}: {each.rule}" for name, each in said if each.rule)


def _denial(direction: str, said: Said) -> str:
    who = said.rule or f"isolated by {', '.join(said.isolating)}"
    near = f"; nearest {said.nearest}: {', '.join(said.differs)}" if said.nearest else ""
    return f"{direction}: {who}{near}"


@click.command()
@click.argument("switch", type=click.Choice(("on", "off")))
@lab_option
def observe(switch: str, lab: str | None) -> None:
    """Have the nodes note connections that pass, or no more.

    It costs a node some 20 us of processor time for each new connection. While policies are staged
    it is on by itself.
    """
    from podwire.explain import liveflows
    from podwire.lab import Lab, launch

    name = launch.choose(lab)
    launch.require_running(name)
    nodes = Lab(name).call(lambda api: liveflows.observe(api, switch == "on"))
    click.echo(f"{len(nodes)} nodes: connections that pass are noted: {switch}")
