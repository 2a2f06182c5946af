"""`podwire check`: what this kernel offers; what a move to nftables, or another plugin, changes."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from podwire.cli.output import output_option, print_structured, print_table
from podwire.errors import UsageError
from podwire.explain.migration import Finding, advise
from podwire.explain.nodedump import parse_dumps
from podwire.policy.profiles import DEFAULT_PROFILE, PROFILES

_COLOURS = {"breaks": "red", "changes": "yellow", "check": "cyan"}


@click.command()
@click.option(
    "-f", "--filename", "files", multiple=True, metavar="PATH", help="Manifests of a cluster."
)
@click.option(
    "--node-dump",
    "dumps",
    multiple=True,
    metavar="FILE",
    help="Output of iptables-save, ipvsadm -Sn, nft list ruleset or uname -r; or kube-proxy's "
    "ConfigMap.",
)
@click.option("--policies", is_flag=True, help="Tell which verdicts depend on the plugin.")
@click.option(
    "--plugin",
    "plugins",
    multiple=True,
    type=click.Choice(sorted(PROFILES)),
    help="With --policies: these only (default: all).",
)
@output_option
def check(
    files: tuple[str, ...],
    dumps: tuple[str, ...],
    policies: bool,
    plugins: tuple[str, ...],
    output: str,
) -> None:
    """Tell what this machine's kernel offers to labs; or what leaving IPVS or iptables changes.

    With -f or --node-dump nothing is asked of this machine: the files tell what a cluster has, and
    the answer is what will be different with nftables, each with the object named. `kubectl get
    svc,nodes,cm,deploy,ds,sts -A -o yaml` makes a good file. The exit code is 1 when something
    would break.

    With --policies the answer is which parts of the policies in the files a network plugin does not
    honour, and which pairs of pods it treats otherwise than podwire does. The exit code is 1 when a
    verdict depends on the plugin.
    """
    if policies or plugins:
        if dumps or not files:
            raise UsageError("check --policies: want -f PATH, and no --node-dump")
        _compare(files, plugins, output)
        return
    if files or dumps:
        _advise(files, dumps, output)
        return
    from podwire.kernel import features

    found = features.probe()
    if print_structured(found, output):
        return
    missing = found.missing()
    rows = [
        [name, "no" if name in missing else "yes", missing.get(name, "")]
        for name in found.__struct_fields__
        if isinstance(getattr(found, name), bool)
    ]
    print_table("Kernel features", ["Feature", "There", "Without it"], rows)


def _advise(files: tuple[str, ...], dumps: tuple[str, ...], output: str) -> None:
    from podwire.objects.documents import load

    objects = [document.obj for document in load(files)]
    found = advise(objects, parse_dumps({path: _read(path) for path in dumps}))
    if not print_structured(found, output):
        click.echo("\n".join(map(_lines, found)) or "nothing changes")
    if any(finding.severity == "breaks" for finding in found):
        raise click.exceptions.Exit(1)


def _compare(files: tuple[str, ...], plugins: tuple[str, ...], output: str) -> None:
    from podwire.cli.static import Choices, read_files
    from podwire.explain.plugins import compare_plugins, lines

    chosen = [PROFILES[name] for name in plugins or PROFILES if name != DEFAULT_PROFILE.name]
    report = compare_plugins(read_files(files, Choices()), chosen)
    if not print_structured(report, output):
        click.echo("\n".join(lines(report)))
    if report.depends:
        raise click.exceptions.Exit(1)


def _lines(finding: Finding) -> str:
    severity = finding.severity.ljust(9)
    if sys.stdout.isatty():
        severity = click.style(severity, fg=_COLOURS.get(finding.severity, ""))
    source = f" ({finding.source})" if finding.source else ""
    return f"{severity}{finding.object}: {finding.title}{source}\n{' ' * 9}-> {finding.action}"


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise UsageError(f"--node-dump {path}: {error.strerror}") from error
