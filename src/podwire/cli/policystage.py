"""`policy stage`, `staged`, `promote`: policies tried on real connections before they block any."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import click
import yaml

from podwire.cli.output import lab_option, print_structured, print_table
from podwire.cli.policyflows import live_flows
from podwire.errors import UsageError
from podwire.explain.policyfiles import CLUSTER_POLICIES
from podwire.objects.documents import Document, load
from podwire.policy.flowdocument import FlowLogDocument, read_flow_log
from podwire.policy.staging import COLUMNS, StagedReport, report_staged, rows, summary, with_stage

_KINDS = {"NetworkPolicy", *CLUSTER_POLICIES}


def dump_manifests(manifests: Sequence[object]) -> str:
    """Documents as kubectl reads them, fields in the order they were made."""
    return yaml.dump_all(manifests, Dumper=yaml.CSafeDumper, sort_keys=False).rstrip()


def read_log(path: str) -> FlowLogDocument:
    try:
        with click.open_file(path, encoding="utf-8") as file:
            return read_flow_log(file.read(), path)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error


# --- staging ------------------------------------------------------------------------------------


@click.command()
@click.option("-f", "--filename", "files", multiple=True, required=True, metavar="PATH")
@click.option("-n", "--namespace", default="default", show_default=True)
@click.option("--dry-run", is_flag=True, help="Print the manifests instead of applying them.")
@lab_option
def stage(files: tuple[str, ...], namespace: str, dry_run: bool, lab: str | None) -> None:
    """Apply the policies among manifests so that they are tried and block nothing.

    They get the annotation policy.podwire.dev/stage: "true"; `policy staged` then tells what they
    would do, and `policy promote` puts them in force. A policy that is in force is refused: what it
    closes would be open.
    """
    documents = load(files)
    chosen = [replace(d, obj=with_stage(d.obj)) for d in documents if d.kind in _KINDS]
    if not chosen:
        raise UsageError(f"{', '.join(files)}: holds no policy")
    if left := len(documents) - len(chosen):
        click.echo(f"warning: {left} objects are no policies and are left out", err=True)
    if dry_run:
        click.echo(dump_manifests([document.obj for document in chosen]))
        return
    _apply(chosen, namespace, lab)


def _apply(documents: Sequence[Document], namespace: str, lab: str | None) -> None:
    # Printing manifests works where labs do not.
    from podwire.cli.running import running_lab
    from podwire.explain.promoting import refuse_enforced

    target = running_lab(lab)
    target.call(lambda api: refuse_enforced(api, documents, namespace))
    for each in target.apply_documents(documents, namespace=namespace, wait_s=None):
        click.echo(f"{each} (staged)")


@click.command()
@click.argument("names", nargs=-1, metavar="[NS/]NAME...")
@click.option("-n", "--namespace", "namespaces", multiple=True, help="A Namespace that stages.")
@click.option("--all", "everything", is_flag=True, help="Whatever is staged.")
@lab_option
def promote(
    names: tuple[str, ...], namespaces: tuple[str, ...], everything: bool, lab: str | None
) -> None:
    """Put staged policies in force, by taking the annotation away.

    NAME without a namespace is a policy of the cluster; with -n the annotation of the Namespace
    itself goes, which stages every NetworkPolicy in it.
    """
    if everything == bool(names or namespaces):
        raise UsageError("policy promote: want [NS/]NAME..., -n NAMESPACE or --all")
    from podwire.cli.running import running_lab
    from podwire.explain import promoting

    target = running_lab(lab)
    if everything:
        done = target.call(promoting.promote_all)
    else:
        done = target.call(lambda api: promoting.promote(api, names, namespaces))
    click.echo("\n".join(done) or "nothing is staged")


# --- what staged policies would do ----------------------------------------------------------------


@click.command()
@click.option("-f", "--filename", "file", metavar="FLOWLOG", help="Default: the lab's nodes.")
@lab_option
@click.option(
    "-o", "--output", type=click.Choice(("table", "text", "json", "yaml")), default="table"
)
def staged(file: str | None, lab: str | None, output: str) -> None:
    """Tell which connections that were seen the staged policies would deny or allow.

    The exit code is 1 when some would newly be denied.
    """
    report = report_staged(live_flows(lab)[0] if file is None else read_log(file))
    print_staged(report, output)
    if report.of("newly denied"):
        raise click.exceptions.Exit(1)


def print_staged(report: StagedReport, output: str) -> None:
    if print_structured(report, output):
        return
    if output == "table" and report.flows:
        print_table("Staged", COLUMNS, rows(report))
        click.echo("")
    elif output == "text":
        for row in rows(report):
            click.echo("{}: {} to {} {}, {} times, {} to {}: {}".format(*row))
    for line in summary(report):
        click.echo(line)
