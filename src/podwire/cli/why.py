"""`podwire why`: why a connection works or does not."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from podwire.cli.output import lab_option, output_option, print_structured
from podwire.cli.static import Choices, read_files, semantics_options
from podwire.explain.whypolicy import DirectionWhy, PolicyWhy, explain_policies

if TYPE_CHECKING:
    # Explaining manifests works where labs do not.
    from podwire.explain.whylive import Why
    from podwire.explain.whyworld import Protocol

_COLOURS = {"agrees": "green", "endpoint": "yellow", "bug": "red", "untested": "yellow"}


@click.command()
@click.argument("source", metavar="SRC")
@click.argument("destination", metavar="DST[:PORT]")
@click.option("--protocol", type=click.Choice(("tcp", "udp", "sctp")), help="Default: the port's.")
@click.option("--live/--no-live", default=True, help="Verify by a real packet (default).")
@click.option("--timeout", default="1s", show_default=True, help="Of the packet.")
@click.option(
    "-f", "--filename", "files", multiple=True, metavar="PATH", help="From manifests: no lab."
)
@semantics_options
@lab_option
@output_option
def why(
    source: str,
    destination: str,
    protocol: Protocol | None,
    live: bool,
    timeout: str,
    files: tuple[str, ...],
    lab: str | None,
    output: str,
    **options: Any,
) -> None:
    """Explain why SRC reaches DST or does not: from the objects, then by a real packet.

    \b
    SRC  [NS/]POD, NS/WORKLOAD, node/NAME or outside
    DST  svc/[NS/]NAME[:PORT], ADDRESS:PORT, node/NAME:PORT or [NS/]POD[:PORT]

    With -f nothing is sent: what policies of the manifests say, to the line, and where they deny,
    the rule that almost matched and the field that differs. SRC may be an ADDRESS then, and DST
    outside:PORT; outside is told by ranges that are treated alike.

    The exit code is 0 when the connection is allowed, 1 when it is not (or cannot be explained), 2
    for wrong usage, 3 when there is no such lab.
    """
    if files:
        _from_files(files, source, destination, protocol, Choices(**options), output)
        return
    import podwire
    from podwire.cli.lab import parse_duration
    from podwire.explain.whylive import why as ask
    from podwire.lab import launch

    target = launch.choose(lab)
    launch.require_running(target)
    timeout_s = parse_duration(timeout)
    found = podwire.Lab(target).call(
        lambda api: ask(api, source, destination, protocol, live=live, timeout_s=timeout_s)
    )
    if not print_structured(found, output):
        click.echo(render(found))
    if not found.allowed:
        raise click.exceptions.Exit(1)


def _from_files(
    files: tuple[str, ...],
    source: str,
    destination: str,
    protocol: str | None,
    choices: Choices,
    output: str,
) -> None:
    static = read_files(files, choices)
    found = explain_policies(
        static, source, destination, protocol, choices.semantics, choices.version
    )
    if not print_structured(found, output):
        click.echo("\n\n".join(map(render_policies, found)))
    if not all(each.allowed for each in found):
        raise click.exceptions.Exit(1)


def render_policies(found: PolicyWhy) -> str:
    """Both directions with their rules, and the verdict."""
    lines = [f"  via       {found.via}"] if found.via else []
    for direction in found.directions:
        lines += _direction_lines(direction)
    verdict = "allowed" if found.allowed else "denied"
    line = f"{found.source} -> {found.destination} {found.protocol} {found.port}: {verdict}"
    colour = "green" if found.allowed else "red"
    lines.append(click.style(line, fg=colour) if sys.stdout.isatty() else line)
    return "\n".join(lines)


def _direction_lines(direction: DirectionWhy) -> list[str]:
    mark = " " if direction.allowed else click.style("x", fg="red")
    lines = [f"{mark} {direction.direction.ljust(10)}of {direction.pod}: {direction.text}"]
    lines += [f"{' ' * 12}passed by {told}" for told in direction.passed]
    if direction.rule is not None:
        lines.append(f"{' ' * 12}{direction.rule}")
    if not direction.allowed and direction.rule is None:
        lines += [f"{' ' * 12}isolated by {told}" for told in direction.isolating]
    if direction.nearest is not None:
        lines.append(f"{' ' * 12}nearest rule: {direction.nearest.rule}")
        for miss in direction.nearest.misses:
            place = f" ({miss.at})" if miss.at else ""
            lines.append(f"{' ' * 14}{miss.text}{place}")
    return lines


def render(found: Why) -> str:
    """The steps, one line each, and what a packet said."""
    width = max((len(step.name) for step in found.model.steps), default=0) + 2
    lines = []
    for step in found.model.steps:
        mark = " " if step.ok else click.style("x", fg="red")
        lines.append(f"{mark} {step.name.ljust(width)}{step.text}")
        lines += [f"  {' ' * width}{line}" for line in step.lines]
    if found.live is not None:
        lines += _live_lines(found, width)
    if found.agreement == "bug":
        text = "model and packet disagree: this is a bug of podwire, please report it with -o json"
        lines.append(click.style(text, fg="red"))
    verdict = click.style(found.summary, fg="green" if found.allowed else "red")
    lines.append(verdict if sys.stdout.isatty() else found.summary)
    return "\n".join(lines)


def _live_lines(found: Why, width: int) -> list[str]:
    live = found.live
    if live is None:
        return []
    took = f" in {live.latency_us / 1000:.2f} ms" if live.latency_us else ""
    detail = f" ({live.detail})" if live.detail else ""
    lines = [f"  {'packet'.ljust(width)}{live.verdict}{took}{detail}"]
    lines += [f"  {' ' * width}{line}" for line in live.trace]
    if live.untraced:
        lines.append(f"  {' ' * width}no trace: {live.untraced}")
    lines += [f"  {' ' * width}{where} directly: {what}" for where, what in live.direct.items()]
    return lines
