"""`podwire dns`: why a name resolves in a pod as it does, and how cluster DNS fares."""

from __future__ import annotations

import sys

import click

import podwire
from podwire.cli.output import lab_option, output_option, print_structured, print_table
from podwire.explain.dnsexplain import DnsExplanation, DnsStep
from podwire.explain.dnslive import explain_live
from podwire.explain.dnsstats import DnsStats, read_stats
from podwire.lab import launch

_COLOURS = {"NOERROR": "green", "NXDOMAIN": "yellow", "NODATA": "yellow"}


@click.group()
def dns() -> None:
    """Explain name resolution, and show cluster DNS's golden signals."""


@dns.command()
@click.argument("pod", metavar="[NS/]POD")
@click.argument("name")
@click.option(
    "-t",
    "--type",
    "types",
    multiple=True,
    help="Record types (default: A and AAAA).",
    metavar="TYPE",
)
@click.option("-n", "--namespace", default="default", help="Of the pod, where it names none.")
@lab_option
@output_option
def explain(
    pod: str, name: str, types: tuple[str, ...], namespace: str, lab: str | None, output: str
) -> None:
    """Look NAME up as a program in POD would: every query is sent for real, each answer explained.

    POD is [NAMESPACE/]NAME of a pod, or of a workload (any Ready pod of it). The exit code is 0
    when the name resolves, 1 when it does not.
    """
    target = launch.choose(lab)
    launch.require_running(target)
    scope, _, short = pod.rpartition("/")
    kinds = tuple(kind.upper() for kind in types) or ("A", "AAAA")
    running = podwire.Lab(target)
    asking = running.pod(short, scope or namespace).object.key
    found = running.call(lambda api: explain_live(api, asking, name, kinds))
    if not print_structured(found, output):
        click.echo(render(found))
    if not (found.resolved or found.hosts):
        raise click.exceptions.Exit(1)


def render(found: DnsExplanation) -> str:
    """The configuration, one line a query with its reason below, and the sum of it."""
    lines = [
        (
            f"nameserver {', '.join(found.nameservers)}; ndots {found.ndots}; "
            f"search {' '.join(domain or '.' for domain in found.searches) or '(none)'}"
        )
    ]
    if found.hosts:
        lines.append(f"/etc/hosts has it: {found.hosts}")
    lines += [line for step in found.steps for line in _step_lines(step)]
    resolved = bool(found.resolved or found.hosts)
    styled = click.style(found.summary, fg="green" if resolved else "red")
    lines.append(styled if sys.stdout.isatty() else found.summary)
    return "\n".join(lines)


def _step_lines(step: DnsStep) -> list[str]:
    outcome = step.error or step.rcode
    if sys.stdout.isatty():
        outcome = click.style(outcome, fg=_COLOURS.get(step.rcode, "red"))
    took = f" in {step.took_ms:.2f} ms by {'TCP' if step.tcp else 'UDP'}" if step.rcode else ""
    lines = [f"{step.name} {step.type}: {outcome}{took}{' (wasted)' if step.wasted else ''}"]
    lines += [f"    {record}" for record in step.records]
    if step.why:
        lines.append(f"    {step.why}")
    if step.contradicts:
        lines.append(
            "    the objects say otherwise: the server has not heard of it yet, or is wrong"
        )
    return lines


@dns.command()
@lab_option
@output_option
def stats(lab: str | None, output: str) -> None:
    """Golden signals of every DNS pod: queries by type, errors, latency, cache, upstream."""
    target = launch.choose(lab)
    launch.require_running(target)
    found = podwire.Lab(target).call(read_stats)
    if print_structured(found, output):
        return
    heads = ["Pod", "Queries", "NXDOMAIN", "SERVFAIL", "p50", "p99", "Cache hits", "In flight"]
    print_table("Cluster DNS", heads, [_row(each) for each in found])
    for each in found:
        kinds = " ".join(f"{kind} {count}" for kind, count in each.by_type.items())
        if kinds:
            click.echo(f"{each.pod}: {kinds}")


def _row(each: DnsStats) -> list[str]:
    if each.error:
        return [each.pod, each.error, "", "", "", "", "", ""]
    return [
        each.pod,
        str(each.queries),
        str(each.nxdomain),
        str(each.servfail),
        _milliseconds(each.p50_ms),
        _milliseconds(each.p99_ms),
        str(each.cache_hits),
        str(each.upstream_in_flight),
    ]


def _milliseconds(value: float | None) -> str:
    return "-" if value is None else f"<{value:g} ms"
