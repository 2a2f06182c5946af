"""What commands share that compute from manifests: their options, reading, warnings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import click

from podwire.explain.staticreach import StaticReach
from podwire.explain.staticworld import StaticWorld, read_world
from podwire.objects.documents import load
from podwire.policy.evaluate import Semantics
from podwire.policy.model import NetworkPeer, Policy

F = TypeVar("F", bound=Callable[..., Any])
_OPTIONS: Final = (
    click.option("-n", "--namespace", default="default", help="Of objects that name none."),
    click.option(
        "--ipblock-matches-pods",
        "ipblock",
        type=bool,
        is_flag=False,
        flag_value=True,
        default=None,
        metavar="[BOOL]",
        help="Whether ipBlock and networks match addresses of pods (default: true).",
    ),
    click.option(
        "--no-ipblock-matches-pods", "no_ipblock", is_flag=True, help="The same as false."
    ),
    click.option(
        "--host-network",
        type=click.Choice(("node", "pods")),
        default=None,
        help="hostNetwork pods are their node, or pods by their labels (default: pods where "
        "ipBlock does not match pods, else node).",
    ),
    click.option(
        "--family",
        type=click.Choice(("4", "6")),
        default="4",
        show_default=True,
        help="Of the outside's addresses.",
    ),
)


def semantics_options(command: F) -> F:
    """How policies are read where Kubernetes leaves a choice."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@dataclass(frozen=True)
class Choices:
    namespace: str = "default"
    ipblock: bool | None = None
    no_ipblock: bool = False
    host_network: str | None = None
    family: str = "4"

    @property
    def semantics(self) -> Semantics:
        matches = not self.no_ipblock and self.ipblock is not False
        return Semantics(ipblock_matches_pods=matches)

    @property
    def version(self) -> int:
        return int(self.family)

    @property
    def host_network_as_pods(self) -> bool:
        """Who does not go by addresses has only labels to go by."""
        if self.host_network is None:
            return not self.semantics.ipblock_matches_pods
        return self.host_network == "pods"


def read_files(files: Sequence[str], choices: Choices) -> StaticWorld:
    """The manifests; what was skipped and what looks wrong goes to standard error."""
    strays: list[str] = []
    documents = load(files, marks=True, stray=lambda text: strays.append(f"{text}; skipped"))
    static = read_world(
        documents,
        namespace=choices.namespace,
        host_network_as_pods=choices.host_network_as_pods,
        warnings=strays,
    )
    warn(static.warnings)
    return static


def read_source(files: Sequence[str], lab: str | None, choices: Choices) -> StaticWorld:
    """Manifests where there are some, else what a running lab's API says."""
    if files:
        return read_files(files, choices)
    # Computing from manifests works where labs do not.
    from podwire.cli.running import running_lab
    from podwire.explain.staticlive import read_static

    _, static = running_lab(lab).call(read_static)
    warn(static.warnings)
    return static


def reach_files(files: Sequence[str], choices: Choices) -> StaticReach:
    return reach_world(read_files(files, choices), choices)


def reach_world(static: StaticWorld, choices: Choices) -> StaticReach:
    warn(other_family(static.policies, choices.version))
    found = StaticReach(static, choices.semantics, choices.version)
    warn(left_out(static, choices.version))
    warn(found.blocked_entries())
    return found


def warn(texts: Any) -> None:
    for text in texts:
        click.echo(f"warning: {text}", err=True)


def left_out(static: StaticWorld, version: int) -> list[str]:
    """Pods that have addresses, but none that is listed."""
    pods = [
        str(talker)
        for talker in static.talkers
        if talker.view.ips and all(ip.version != version for ip in talker.view.ips)
    ]
    if not pods:
        return []
    more = f" and {len(pods) - 1} more" if len(pods) > 1 else ""
    other = 10 - version
    return [f"{pods[0]}{more}: no IPv{version} address, not listed; --family {other} lists them"]


def other_family(policies: Sequence[Policy], version: int) -> list[str]:
    """Networks that what is listed says nothing about."""
    hidden = {
        str(policy.ref)
        for policy in policies
        for rule in (*policy.ingress, *policy.egress)
        for peer in rule.peers or ()
        if isinstance(peer, NetworkPeer) and peer.network.version != version
    }
    if not hidden:
        return []
    other = 10 - version
    names = ", ".join(sorted(hidden))
    return [f"{names}: networks of IPv{other} are not listed; --family {other} lists them"]
