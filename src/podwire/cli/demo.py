"""`podwire demo`: a lab with a three-tier shop, shown working."""

from __future__ import annotations

import time
from pathlib import Path

import click

from podwire.cli.lab import print_nodes, print_pods
from podwire.cli.output import heading, progress
from podwire.cli.reach import render
from podwire.explain.reach import ReachOptions
from podwire.lab import Lab, kubeconfig
from podwire.lab.launch import running
from podwire.objects.documents import load

MANIFEST = Path(__file__).parent / "data" / "shop.yaml"
NAME = "demo"


@click.command()
@click.option("--keep/--down", default=True, help="Leave the lab running (default) or remove it.")
def demo(keep: bool) -> None:
    """Bring up a lab of three nodes with a small shop and show who reaches whom."""
    was_running = running(NAME)
    started = time.monotonic()
    lab = Lab(NAME, nodes=3, zones=("a", "b", "c"))
    with progress("demo: building three nodes") as say:
        lab.up(lambda step: say(f"demo: {step}"))
        say("demo: applying the shop (web, api, db)")
        lab.apply_documents(load([MANIFEST]), wait_s=None)
        lab.wait_ready(60.0, lambda r: say(f"demo: {r.pods_ready} of {r.pods} pods ready"))
        took = time.monotonic() - started
        say("demo: probing every pair of pods")
        found = lab.reach(ReachOptions())
    click.echo(
        f"A Kubernetes network of 3 nodes {'was running already' if was_running else 'is up'}: "
        f"{took:.2f} s from nothing to every pod Ready.\n"
    )
    print_nodes(lab)
    print_pods(lab)
    heading("\nWho reaches whom, by real packets")
    click.echo(render(found, "table"))
    if not keep:
        lab.down()
        click.echo("The lab was removed.")
        return
    _next_steps(lab)


def _next_steps(lab: Lab) -> None:
    heading("What to try next")
    steps = (
        ("./podwire shell", "a shell whose kubectl means this lab"),
        ("./podwire kubectl get pods -A -o wide", "the real kubectl"),
        ("./podwire exec -n shop web -- curl -s localhost:8080", "a command inside a pod"),
        ("./podwire exec node-1 -- ip route", "look at a node's network"),
        ("./podwire reach --from shop/app=web -o mermaid", "the matrix as a picture"),
        ("./podwire link node-1 node-2 down", "cut a wire, then `reach` again"),
        ("./podwire up ob --nodes 3 -f my-manifests/", "your own manifests"),
        ("./podwire down --all", "remove every lab"),
    )
    width = max(len(command) for command, _ in steps)
    for command, what in steps:
        click.echo(f"  {click.style(command.ljust(width), fg='cyan')}   {what}")
    click.echo(
        f"\nkubeconfig: {lab.paths.kubeconfig} (context {kubeconfig.context_name(lab.name)})"
    )
