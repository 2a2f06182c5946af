"""`policy flows`, `policy observe`: connections as the nodes saw them, and what decided."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import click

from podwire.cli.output import lab_option, output_option, print_structured, print_table
from podwire.cli.static import Choices, read_files
from podwire.policy.flowdocument import FlowLogDocument, clock
from podwire.policy.flowlog import FlowRecord, Said

_COLUMNS = ("Last-Seen", "Source", "Destination", "Port", "Verdict", "Count", "Why")


def live_flows(lab: str | None) -> tuple[FlowLogDocument, str]:
    """What the nodes of a running lab have noted, and the lab's name."""
    from podwire.cli.running import running_lab
    from podwire.explain.liveflows import read_flows

    running = running_lab(lab)
    return running.call(read_flows), running.name


@click.command()
@click.option("--denied", is_flag=True, help="Only connections that were denied.")
@click.option(
    "-f",
    "--filename",
    "files",
    multiple=True,
    metavar="PATH",
    help="Manifests of the policies, to tell file and line of each rule.",
)
@lab_option
@output_option
def flows(denied: bool, files: Sequence[str], lab: str | None, output: str) -> None:
    """Tell which connections the nodes saw, and which rule decided.

    What was denied is always noted; what passed after `policy observe on`, and while policies are
    staged. With -o json it is the flow log that `staged` and `recommend` read from files.
    """
    document, _ = live_flows(lab)
    if denied:
        document.records = tuple(r for r in document.records if r.verdict == "denied")
    if files:
        from podwire.explain.liveflows import find_places

        document.places = find_places(document, read_files(files, Choices()).origins)
    if print_structured(document, output):
        return
    print_table("Flows", _COLUMNS, [_row(r, document.places) for r in document.records])
    for doubt in document.doubts():
        click.echo(f"note: {doubt}", err=True)


def _row(record: FlowRecord, places: Mapping[str, str]) -> list[str]:
    port = f"{record.protocol} {record.port}" if record.port else record.protocol
    return [
        clock(record.last_seen),
        str(record.source),
        str(record.destination),
        port,
        record.verdict,
        str(record.count),
        _why(record, places),
    ]


def _why(record: FlowRecord, places: Mapping[str, str]) -> str:
    """Of a denial the direction that denies, of what passed the rules it rests on."""
    said = [("egress", record.egress), ("ingress", record.ingress)]
    if record.verdict == "denied":
        denied = [(name, each) for name, each in said if each.verdict == "denied"]
        return "; ".join(f"{name}: {_denial(each, places)}" for name, each in denied)
    return "; ".join(f"{name}: {_placed(each.rule, places)}" for name, each in said if each.rule)


def _denial(said: Said, places: Mapping[str, str]) -> str:
    isolating = ", ".join(_placed(each, places) for each in said.isolating)
    who = _placed(said.rule, places) if said.rule else f"isolated by {isolating}"
    nearest = f"; nearest {_placed(said.nearest, places)}: {', '.join(said.differs)}"
    return who + (nearest if said.nearest else "")


def _placed(name: str, places: Mapping[str, str]) -> str:
    return f"{name} ({places[name]})" if name in places else name


@click.command()
@click.argument("switch", type=click.Choice(("on", "off")))
@lab_option
def observe(switch: str, lab: str | None) -> None:
    """Have the nodes note connections that pass, or no more.

    It costs a node some 20 us of processor time for each new connection. While policies are staged
    it is on by itself.
    """
    from podwire.cli.running import running_lab
    from podwire.explain import liveflows

    nodes = running_lab(lab).call(lambda api: liveflows.observe(api, switch == "on"))
    click.echo(f"{len(nodes)} nodes: connections that pass are noted: {switch}")
