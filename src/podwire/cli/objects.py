"""`apply`, `delete`, `kubectl`, `exec`, `logs`, `events`, `shell`: what is in a lab."""

from __future__ import annotations

import asyncio
import os
import shutil
import urllib.parse
from typing import NoReturn

import click

from podwire.cli.lab import parse_duration
from podwire.cli.output import lab_option, output_option, print_structured, progress
from podwire.cli.running import running_lab
from podwire.errors import LabError, UsageError
from podwire.lab import Lab, LabPod, launch
from podwire.lab.paths import LabPaths
from podwire.lab.spec import OUTSIDE
from podwire.objects import kinds
from podwire.runtime.streams.client import ExecTarget, exec_client

_namespace_option = click.option("-n", "--namespace", default="default", show_default=True)
_files_option = click.option(
    "-f", "--filename", "files", multiple=True, required=True, metavar="PATH"
)


@click.command()
@_files_option
@_namespace_option
@lab_option
@click.option("--wait", default="0", help="Wait until everything is Ready, e.g. 60s.")
@output_option
def apply(files: tuple[str, ...], namespace: str, lab: str | None, wait: str, output: str) -> None:
    """Create or update the objects of manifests."""
    target = running_lab(lab)
    applied = target.apply(*files, namespace=namespace, wait_s=None)
    if not print_structured([str(a) for a in applied], output):
        for each in applied:
            click.echo(str(each))
    if timeout_s := parse_duration(wait):
        with progress("waiting") as say:
            target.wait_ready(timeout_s, lambda r: say(f"{r.pods_ready}/{r.pods} pods ready"))


@click.command()
@_files_option
@_namespace_option
@lab_option
def delete(files: tuple[str, ...], namespace: str, lab: str | None) -> None:
    """Delete the objects of manifests."""
    for each in running_lab(lab).delete(*files, namespace=namespace):
        click.echo(str(each))


@click.command(
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    add_help_option=False,
)
@lab_option
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def kubectl(arguments: tuple[str, ...], lab: str | None) -> NoReturn:
    """Run the real kubectl against the lab; `--lab NAME` comes first."""
    _exec_kubectl(running_lab(lab).paths, *arguments)


def _exec_kubectl(paths: LabPaths, *arguments: str) -> NoReturn:
    if shutil.which("kubectl") is None:
        raise UsageError("kubectl is not installed; `apt-get install kubernetes-client`")
    os.environ["KUBECONFIG"] = str(paths.kubeconfig)
    os.execvp("kubectl", ["kubectl", *arguments])


@click.command("exec", context_settings={"ignore_unknown_options": True})
@click.argument("target")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option("-c", "--container", default="")
@_namespace_option
@click.option("-i", "--stdin", is_flag=True, help="Pass standard input on.")
@click.option("-t", "--tty", is_flag=True, help="Allocate a terminal.")
@lab_option
def exec_(
    target: str,
    command: tuple[str, ...],
    container: str,
    namespace: str,
    stdin: bool,
    tty: bool,
    lab: str | None,
) -> None:
    """Run COMMAND in a pod ([NAMESPACE/]NAME), in a node, or in `outside`."""
    running = running_lab(lab)
    if target == OUTSIDE or running.spec.node(target) is not None:
        _exec_in_host(running, target, command)
    scope, _, name = target.rpartition("/")
    pod = running.pod(name, scope or namespace)
    url = _exec_url(pod, command, container, stdin, tty)
    exec_target = ExecTarget(url, unix_socket=running.paths.api_socket)
    code = asyncio.run(exec_client(exec_target, stdin=stdin, tty=tty))
    raise click.exceptions.Exit(code)


def _exec_url(pod: LabPod, command: tuple[str, ...], container: str, stdin: bool, tty: bool) -> str:
    query = [("command", word) for word in command]
    flags = {"stdin": stdin, "stdout": True, "stderr": not tty, "tty": tty}
    query += [(name, "true") for name, wanted in flags.items() if wanted]
    if container:
        query.append(("container", container))
    path = kinds.POD.path(pod.namespace, pod.name, "exec")
    return f"http://podwire{path}?{urllib.parse.urlencode(query)}"


def _exec_in_host(lab: Lab, host: str, command: tuple[str, ...]) -> NoReturn:
    """Nodes and the outside host are namespaces without an API: enter them through the holder."""
    holder = launch.holder_of(lab.paths)
    if holder is None:
        raise LabError(f"lab {lab.name}: is not running")
    enter = ["nsenter", "--target", str(holder.pid), "--mount", "--pid", "--uts", "--net"]
    if os.geteuid() != 0:
        enter += ["--user", "--preserve-credentials"]
    pin = lab.paths.node_pins / host
    # A host has its own name; the lab's is that of the outer namespace.
    named = ["unshare", "--uts", "sh", "-c", 'hostname "$0"; exec "$@"', host]
    os.execvp("nsenter", [*enter, "--", "nsenter", f"--net={pin}", "--", *named, *command])


@click.command()
@click.argument("target")
@click.option("-c", "--container", default="")
@_namespace_option
@click.option("-f", "--follow", is_flag=True)
@click.option("--tail", default=-1, help="Only the last lines.")
@lab_option
def logs(
    target: str, container: str, namespace: str, follow: bool, tail: int, lab: str | None
) -> None:
    """Print the logs of a pod ([NAMESPACE/]NAME)."""
    running = running_lab(lab)
    scope, _, name = target.rpartition("/")
    pod = running.pod(name, scope or namespace)
    arguments = ["logs", "-n", pod.namespace, pod.name]
    if container:
        arguments += ["-c", container]
    if follow:
        arguments.append("-f")
    if tail >= 0:
        arguments += ["--tail", str(tail)]
    if follow:
        _exec_kubectl(running.paths, *arguments)
    text = pod.logs(container)
    lines = text.splitlines()
    click.echo("\n".join(lines[-tail:] if tail >= 0 else lines))


@click.command()
@lab_option
@click.option("-o", "--output", type=click.Choice(("wide", "json", "yaml")), help="As kubectl's.")
def events(lab: str | None, output: str | None) -> NoReturn:
    """List the lab's Events, oldest first."""
    form = ("-o", output) if output else ()
    _exec_kubectl(running_lab(lab).paths, "get", "events", "-A", "--sort-by=.lastTimestamp", *form)


@click.command()
@lab_option
def shell(lab: str | None) -> NoReturn:
    """Start a shell in which kubectl and podwire mean this lab."""
    running = running_lab(lab)
    os.environ["KUBECONFIG"] = str(running.paths.kubeconfig)
    os.environ["PODWIRE_LAB"] = running.name
    program = os.environ.get("SHELL", "/bin/sh")
    click.echo(f"kubectl and podwire speak to lab {running.name}; `exit` leaves", err=True)
    os.execvp(program, [program])
