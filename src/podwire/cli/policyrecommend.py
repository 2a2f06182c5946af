"""`policy recommend`: policies that leave open what was seen, or what manifests hint at."""

from __future__ import annotations

from typing import Any

import click
import msgspec

from podwire.cli.output import lab_option, print_structured
from podwire.cli.policyflows import live_flows
from podwire.cli.policystage import dump_manifests, read_log
from podwire.cli.static import warn
from podwire.errors import UsageError
from podwire.explain.hintneeds import Cluster
from podwire.explain.recommending import (
    Report,
    recommend_from_flows,
    recommend_from_hints,
    summary,
)
from podwire.explain.staticworld import read_world
from podwire.objects.documents import load
from podwire.policy.flowdocument import FlowLogDocument
from podwire.policy.flowneeds import FlowOptions
from podwire.policy.model import DIRECTIONS, Direction
from podwire.policy.recommend import Options, Recommendation


@click.command()
@click.option(
    "-f", "--filename", "files", multiple=True, metavar="PATH", help="Manifests of the cluster."
)
@click.option("--from-flows", "flows", metavar="FLOWLOG", help="What was seen, - for stdin.")
@click.option("--live", is_flag=True, help="What the lab's nodes have seen, and its pods.")
@lab_option
@click.option("-n", "--namespace", default="default", help="Of objects that name none.")
@click.option(
    "--only",
    "namespaces",
    multiple=True,
    metavar="NS",
    help="Make policies for that namespace (default: all but kube-*).",
)
@click.option(
    "--direction",
    type=click.Choice(("both", "ingress", "egress")),
    default="both",
    show_default=True,
    help="Isolate in one direction only; ingress first is a gentle way.",
)
@click.option("--include-idle", is_flag=True, help="Isolate pods of which nothing is known, too.")
@click.option("--close-quiet", is_flag=True, help="Leave no direction open out of doubt.")
@click.option(
    "--widen", type=click.IntRange(0, 32), default=32, help="Networks for IPv4 outsiders, as /N."
)
@click.option(
    "--widen6", type=click.IntRange(0, 128), default=128, help="Networks for IPv6 outsiders."
)
@click.option("--icmp", is_flag=True, help="Keep ICMP that was seen: opens all ports with it.")
@click.option("--stage", "staged", is_flag=True, help="Annotate them to be tried first.")
@click.option(
    "-o",
    "--output",
    type=click.Choice(("yaml", "json")),
    default="yaml",
    help="Manifests for kubectl, or a report with them.",
)
def recommend(
    files: tuple[str, ...],
    flows: str | None,
    live: bool,
    lab: str | None,
    namespace: str,
    output: str,
    **chosen: Any,
) -> None:
    """Print NetworkPolicies that leave open what was seen (--live, --from-flows), or what settings
    hint at.

    With both, manifests tell which pods there are besides. Every connection is checked under what
    is printed; pods of which nothing was seen are left alone, and named.
    """
    if live and (files or flows):
        raise UsageError("policy recommend: --live is instead of -f and --from-flows")
    if not (files or flows or live):
        raise UsageError("policy recommend: want --live, --from-flows FLOWLOG, -f PATH or both")
    options = _options(**chosen)
    log: FlowLogDocument | None
    if live:
        log, cluster = _live(lab, namespace)
    else:
        log = read_log(flows) if flows is not None else None
        cluster = _cluster(files, namespace) if files else Cluster(namespace=namespace)
    if log is None:
        result, report = recommend_from_hints(cluster, options)
    else:
        wide = FlowOptions({4: chosen["widen"], 6: chosen["widen6"]}, chosen["icmp"])
        result, report = recommend_from_flows(log, cluster, options, wide)
    _print(result, report, output)


def _options(
    *,
    direction: str,
    include_idle: bool,
    close_quiet: bool,
    namespaces: tuple[str, ...],
    staged: bool,
    **_: object,
) -> Options:
    directions: tuple[Direction, ...] = tuple(d for d in DIRECTIONS if direction in ("both", d))
    only = frozenset(namespaces) or None
    return Options(directions, include_idle, close_quiet, only, staged)


def _live(lab: str | None, namespace: str) -> tuple[FlowLogDocument, Cluster]:
    """What the nodes have seen, and the pods there are."""
    from podwire.explain.staticlive import read_static
    from podwire.lab import Lab

    log, name = live_flows(lab)
    _, static = Lab(name).call(read_static)
    return log, Cluster(static, namespace=namespace, complete=True)


def _cluster(files: tuple[str, ...], namespace: str) -> Cluster:
    strays: list[str] = []
    documents = load(files, marks=True, stray=lambda text: strays.append(f"{text}; skipped"))
    static = read_world(documents, namespace=namespace, warnings=strays)
    return Cluster(static, documents, namespace, complete=True)


def _print(result: Recommendation, report: Report, output: str) -> None:
    """Manifests go to standard output, what to know about them to standard error."""
    if output == "json":
        plain = msgspec.to_builtins(report) | {"manifests": list(result.manifests)}
        print_structured(plain, output)
        return
    if result.manifests:
        click.echo(dump_manifests(result.manifests))
    for line in summary(report):
        click.echo(line, err=True)
    warn(report.warnings)
