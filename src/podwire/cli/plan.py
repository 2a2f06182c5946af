"""`podwire plan`: the address planner, on files and flags alone."""

from __future__ import annotations

import sys
from ipaddress import ip_network
from typing import Any, Literal

import click

from podwire.cli.output import print_table
from podwire.errors import AddressError
from podwire.explain.plan import PlanRequest, plan_addresses, plan_rows, render_plan
from podwire.explain.plan.clouds import MODES, find_instance

_FAMILIES: dict[str, tuple[Literal[4, 6], ...]] = {"ipv4": (4,), "ipv6": (6,), "dual": (4, 6)}


@click.command()
@click.option("--nodes", default=3, help="Nodes now.")
@click.option("--peak-nodes", default=0, help="Nodes at the peak.")
@click.option("--surge-nodes", default=0, help="Extra nodes during upgrades.")
@click.option("--pods-per-node", default=110, show_default=True)
@click.option("--services", default=100, show_default=True)
@click.option("--ip-family", type=click.Choice(tuple(_FAMILIES)), default="ipv4")
@click.option("--cloud", type=click.Choice(tuple(MODES)), default="none")
@click.option("--mode", default="", help="The cloud's addressing mode (default: its own).")
@click.option("--overlay", type=click.Choice(("none", "vxlan")), default="none")
@click.option("--instance", default="", help="EKS: instance type, e.g. m5.large.")
@click.option("--node-cidr", "node_cidrs", multiple=True)
@click.option("--pod-cidr", "pod_cidrs", multiple=True)
@click.option("--service-cidr", "service_cidrs", multiple=True)
@click.option("--node-mask", "node_prefix", default=0, help="Prefix length of a node's pod CIDR.")
@click.option("--avoid", multiple=True, metavar="CIDR", help="Existing networks (VPC, VPN, peers).")
@click.option("--mtu", "underlay_mtu", default=1500, show_default=True)
@click.option("-o", "--output", type=click.Choice(("table", "json", "yaml")), default="table")
def plan(output: str, ip_family: str, instance: str, **options: Any) -> None:
    """Plan a cluster's addresses: sizes, headroom, overlaps, and what runs out first.

    `podwire plan ... -o yaml > plan.yaml; podwire up --plan plan.yaml` builds it. The exit code is
    1 when the plan does not hold what was asked.
    """
    for name in ("node_cidrs", "pod_cidrs", "service_cidrs", "avoid"):
        options[name] = tuple(_network(text) for text in options[name])
    request = PlanRequest(
        families=_FAMILIES[ip_family],
        instance=find_instance(instance) if instance else None,
        **options,
    )
    found = plan_addresses(request)
    if output == "table":
        print_table("Address plan", ["What", "Value"], [list(row) for row in plan_rows(found)])
    else:
        click.echo(render_plan(found, "json" if output == "json" else "yaml"), nl=False)
    if not found.feasible:
        click.echo("this plan does not hold what was asked; see limits and overlaps", err=True)
        sys.exit(1)


def _network(text: str) -> Any:
    try:
        return ip_network(text)
    except ValueError as error:
        raise AddressError(f"CIDR {text!r}: {error}") from error
