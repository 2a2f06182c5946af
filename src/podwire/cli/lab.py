"""`up`, `down`, `status`, `node`, `link`, `publish`, `check`: a lab's life."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click
import msgspec

import podwire
from podwire.cli.output import (
    lab_option,
    output_option,
    print_structured,
    print_table,
    progress,
)
from podwire.cli.policies import status_policies
from podwire.cli.services import status_services
from podwire.errors import UsageError
from podwire.explain.plan import parse_plan
from podwire.lab import kubeconfig, launch
from podwire.lab import spec as specs
from podwire.lab.spec import LabSpec
from podwire.objects.documents import load

if TYPE_CHECKING:
    from podwire.lab import Lab
    from podwire.lab.waiting import Readiness

# Flags that are fields of `LabSpec`; one that is not given leaves the remembered value.
_SPEC_FLAGS = (
    "network",
    "overlay",
    "hairpin_mode",
    "ip_family",
    "service_proxy",
    "network_policy",
    "denied_flows",
    "pod_cidrs",
    "service_cidrs",
    "node_cidrs",
    "node_mask",
    "non_masquerade_cidrs",
    "load_balancer_pools",
    "internal_load_balancer_pools",
    "load_balancer",
    "mtu",
    "max_pods",
    "probe_delays",
    "dns",
    "node_local_dns",
    "outside_zone",
)
_PLAN_ROLES: dict[str, Literal["nodes", "pods", "services"]] = {
    "node_cidrs": "nodes",
    "pod_cidrs": "pods",
    "service_cidrs": "services",
}


@click.command()
@click.argument("name", required=False)
@lab_option
@click.option("--nodes", type=int, default=None, help="How many nodes (default 1).")
@click.option("--zones", default="", help="Zones the nodes are dealt to, e.g. a,b,c.")
@click.option(
    "-f", "--filename", "files", multiple=True, metavar="PATH", help="Manifests to apply."
)
@click.option("-n", "--namespace", default="default", help="For objects that name none.")
@click.option("--network", type=click.Choice(("routed", "kubenet")), help="Default: routed.")
@click.option("--overlay", type=click.Choice(("none", "vxlan")), help="Default: none.")
@click.option(
    "--hairpin-mode",
    type=click.Choice(("hairpin-veth", "promiscuous-bridge", "none")),
    help="kubenet: how a pod reaches itself through a Service (default hairpin-veth).",
)
@click.option("--ip-family", type=click.Choice(("ipv4", "ipv6", "dual")), help="Default: ipv4.")
@click.option(
    "--service-proxy",
    type=click.Choice(("nftables", "iptables", "ipvs")),
    help="What programmes Services on every node (default nftables).",
)
@click.option(
    "--network-policy",
    type=click.Choice(("enforce", "none")),
    help="Whether nodes enforce network policies (default enforce).",
)
@click.option(
    "--denied-flows",
    type=click.Choice(("cut", "keep")),
    help="Connections that a new policy denies (default cut).",
)
@click.option("--pod-cidr", "pod_cidrs", multiple=True, help="Cluster CIDR, one per family.")
@click.option("--service-cidr", "service_cidrs", multiple=True, help="One per family.")
@click.option("--node-cidr", "node_cidrs", multiple=True, help="The nodes' segment, per family.")
@click.option("--node-mask", type=int, help="Prefix length of a node's pod CIDR.")
@click.option(
    "--non-masquerade-cidr", "non_masquerade_cidrs", multiple=True, help="Reached unmasqueraded."
)
@click.option(
    "--load-balancer",
    type=click.Choice(("l2", "bgp")),
    help="How load balancer addresses are announced (default l2: ARP and NDP).",
)
@click.option(
    "--load-balancer-pool",
    "load_balancer_pools",
    multiple=True,
    metavar="FIRST-LAST",
    help="Addresses of load balancers, in the nodes' segment.",
)
@click.option(
    "--internal-load-balancer-pool",
    "internal_load_balancer_pools",
    multiple=True,
    metavar="FIRST-LAST",
    help="Addresses of internal load balancers, which `outside` cannot reach.",
)
@click.option("--mtu", type=int, help="MTU of pods (default: derived).")
@click.option("--max-pods", type=int, help="Pods per node (default 1000).")
@click.option(
    "--publish", multiple=True, metavar="[HOST:]PORT:TARGET", help="e.g. 8080:svc/shop/web:80"
)
@click.option(
    "--probe-delays", type=click.Choice(("standin", "manifest")), help="Default: standin."
)
@click.option(
    "--dns", type=click.Choice(("podwire", "none")), help="Cluster DNS (default podwire)."
)
@click.option(
    "--node-local-dns/--no-node-local-dns",
    default=None,
    help="A DNS cache on every node, which its pods ask (default: none).",
)
@click.option(
    "--outside-zone",
    metavar="FILE",
    help="A zone file: what the host outside answers for names that are not the cluster's.",
)
@click.option("--state", "state_dir", default="", metavar="DIR", help="Keep the store there.")
@click.option("--plan", "plan_file", default="", metavar="FILE", help="Build a `podwire plan`.")
@click.option("--wait", "wait", default="60s", help="How long to wait until Ready (0: do not).")
@click.option("--kubeconfig/--no-kubeconfig", "merge", default=True, help="Merge into yours.")
@output_option
def up(name: str | None, lab: str | None, files: tuple[str, ...], **options: Any) -> None:
    """Build the lab NAME (or reconcile it) and apply manifests."""
    started = time.monotonic()
    # Read first: a manifest that is not YAML must not leave half a lab.
    documents = load(files)
    spec = _spec(name or lab or launch.choose(None), options)
    timeout_s = parse_duration(options["wait"])
    with progress(f"lab {spec.name}: building") as say:
        built = launch.up(spec, lambda step: say(f"lab {spec.name}: {step}"))
        target = podwire.Lab.from_spec(spec)
        target.wait_nodes()
        if options["merge"]:
            _merge_kubeconfig(target)
        if documents:
            say(f"lab {spec.name}: applying {len(documents)} objects")
            target.apply_documents(documents, namespace=options["namespace"], wait_s=None)
        if timeout_s:
            target.wait_ready(timeout_s, lambda found: say(_progress_line(spec.name, found)))
    took = time.monotonic() - started
    status = target.status()
    if print_structured(status, options["output"]):
        return
    verb = "is up" if built else "was up already and is reconciled"
    click.echo(f"lab {spec.name} {verb} ({took:.2f} s)")
    print_nodes(target)
    if documents:
        print_pods(target)
    hint = "" if options["merge"] else f"export KUBECONFIG={status.kubeconfig}; "
    click.echo(f"{hint}kubectl get pods -A -o wide; podwire reach --live; podwire down {spec.name}")


def _progress_line(name: str, found: Readiness) -> str:
    return (
        f"lab {name}: {found.nodes_ready}/{found.nodes} nodes, "
        f"{found.pods_ready}/{found.pods} pods ready"
    )


def _spec(name: str, options: dict[str, Any]) -> LabSpec:
    """The lab as it was remembered, changed by the plan and by the flags that were given."""
    state = str(Path(options["state_dir"]).absolute()) if options["state_dir"] else ""
    base = launch.remembered(name, state) or LabSpec(name=name)
    given = _planned(options["plan_file"])
    given |= {field: options[field] for field in _SPEC_FLAGS if options[field] not in (None, ())}
    if state:
        given["state_dir"] = state
    if "outside_zone" in given:
        given["outside_zone"] = str(Path(given["outside_zone"]).absolute())
    planned = given.pop("nodes", 0)
    count = options["nodes"]
    if count is None:
        count = planned or len(base.nodes) or 1
    if count < 1:
        raise UsageError(f"--nodes {count}: a lab has between 1 and {specs.MAX_NODES} nodes")
    zones = tuple(zone for zone in (options["zones"] or "").split(",") if zone)
    return msgspec.structs.replace(
        base,
        nodes=specs.extend_nodes(base, count, zones),
        publish=base.publish
        + tuple(
            entry
            for entry in map(specs.parse_publish, options["publish"])
            if entry not in base.publish
        ),
        **given,
    )


def _planned(path: str) -> dict[str, Any]:
    """What a plan fixes; the flags say the rest."""
    if not path:
        return {}
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--plan {path}: {getattr(error, 'strerror', error)}") from error
    plan = parse_plan(text)
    families = {family.family: family for family in plan.families}
    return {
        "nodes": max(
            (x.needed for x in plan.limits if x.name.endswith("node addresses")), default=0
        ),
        "ip_family": "dual" if len(families) == 2 else "ipv6" if 6 in families else "ipv4",
        "overlay": "vxlan" if plan.mode == "vxlan" else "none",
        **{
            field: tuple(str(cidr) for cidr in plan.cidrs(role))
            for field, role in _PLAN_ROLES.items()
        },
        "node_mask": plan.families[0].node_prefix,
        "max_pods": plan.capacity.pods_per_node,
    }


def _merge_kubeconfig(lab: Lab) -> None:
    import yaml

    config = yaml.load(lab.paths.kubeconfig.read_text(), yaml.CSafeLoader)
    kubeconfig.merge(kubeconfig.user_file(), config)


def parse_duration(text: str) -> float:
    """`60s`, `2m`, `500ms` or a plain number of seconds."""
    for unit, factor in (("ms", 1e-3), ("s", 1.0), ("m", 60.0), ("h", 3600.0)):
        if text.endswith(unit):
            text, scale = text.removesuffix(unit), factor
            break
    else:
        scale = 1.0
    try:
        seconds = float(text) * scale
    except ValueError as error:
        raise UsageError(f"{text!r} is not a duration; write 60s, 2m or 500ms") from error
    if not seconds >= 0:
        raise UsageError(f"{text!r} is not a duration; it cannot be negative")
    return seconds


def print_nodes(lab: Lab) -> None:
    rows = [
        [
            node.name,
            "Ready" if node.ready else "NotReady",
            node.zone,
            ",".join(node.addresses),
            str(node.pid),
        ]
        for node in lab.status().nodes
    ]
    print_table("Nodes", ["Node", "Status", "Zone", "Addresses", "Agent pid"], rows)


def print_pods(lab: Lab) -> None:
    rows = []
    for pod in lab.pods():
        ready = sum(status.ready for status in pod.status.container_statuses)
        rows.append(
            [
                pod.metadata.namespace,
                pod.metadata.name,
                f"{ready}/{len(pod.spec.containers)}",
                pod.status.phase,
                ",".join(entry.ip for entry in pod.status.pod_ips),
                pod.spec.node_name,
            ]
        )
    print_table("Pods", ["Namespace", "Pod", "Ready", "Status", "Addresses", "Node"], rows)


@click.command()
@click.argument("name", required=False)
@lab_option
@click.option("--all", "everything", is_flag=True, help="Every lab of this user.")
def down(name: str | None, lab: str | None, everything: bool) -> None:
    """Remove the lab NAME: processes, namespaces, files. State kept with --state stays."""
    names = launch.labs() if everything else [launch.choose(name or lab)]
    for each in names:
        removed = launch.down(each)
        kubeconfig.unmerge(kubeconfig.user_file(), each)
        click.echo(f"lab {each}: removed" if removed else f"lab {each}: was not there")


class _StatusGroup(click.Group):
    """`status services|policies ...` are commands; every other first word is a lab."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args[:1] in (["services"], ["policies"]):
            return super().parse_args(ctx, args)
        # An argument of a group would swallow the subcommand's name, so labs come as an option.
        at = next((i for i, word in enumerate(args) if _is_lab(args, i)), None)
        if at is not None:
            args = [*args[:at], "--lab", *args[at:]]
        return super().parse_args(ctx, args)


def _is_lab(args: list[str], index: int) -> bool:
    takes_value = index > 0 and args[index - 1] in ("-o", "--output", "--lab")
    return not args[index].startswith("-") and not takes_value


@click.group(cls=_StatusGroup, invoke_without_command=True, options_metavar="[LAB] [OPTIONS]")
@lab_option
@output_option
@click.pass_context
def status(ctx: click.Context, lab: str | None, output: str) -> None:
    """Tell the health of every component and node of LAB; or of its Services, or policies.

    \b
    podwire status [LAB]
    podwire status services [-n NAMESPACE] [NAME]
    podwire status policies [-n NAMESPACE] [NAME]
    """
    if ctx.invoked_subcommand is None:
        _print_status(launch.choose(lab), output)


status.add_command(status_services)
status.add_command(status_policies)


def _print_status(chosen: str, output: str) -> None:
    found = podwire.Lab(chosen).status()
    if print_structured(found, output):
        return
    click.echo(
        f"lab {found.lab}: {found.network}"
        + (f", {found.overlay} overlay" if found.overlay != "none" else "")
        + f", {found.ip_family}; kubeconfig {found.kubeconfig}"
    )
    print_table(
        "Components",
        ["Component", "Pid", "Health", "Restarts"],
        [
            [c.name, str(c.pid), "healthy" if c.healthy else "restarting", str(c.restarts)]
            for c in found.components
        ],
    )
    print_nodes(podwire.Lab(chosen))
    for line in found.published:
        click.echo(f"published {line}")
    for impairment in found.impairments:
        click.echo(f"impaired {_impairment_line(impairment)}")
    if found.unsupported:
        lacking = ", ".join(found.unsupported)
        click.echo(f"this machine lacks {lacking}; `podwire check` says what that costs")


def _impairment_line(entry: dict[str, Any]) -> str:
    """`node-1 node-2: rate 10mbit`, in the words that made it."""
    words = [
        "down" if entry["down"] else "",
        f"loss {entry['loss_percent']:g}%" if entry["loss_percent"] else "",
        f"rate {entry['rate_bit'] / 1e6:g}mbit" if entry["rate_bit"] else "",
        f"delay {entry['delay_s'] * 1e3:g}ms" if entry["delay_s"] else "",
    ]
    return f"{entry['a']} {entry['b']}: {' '.join(filter(None, words))}"


@click.group()
def node() -> None:
    """Add and remove nodes of a running lab."""


@node.command("add")
@click.argument("name", required=False, default="")
@click.option("--zone", default="", help="The node's zone.")
@lab_option
def node_add(name: str, zone: str, lab: str | None) -> None:
    """Add a node and wait until it is Ready."""
    added = podwire.Lab(launch.choose(lab)).add_node(name, zone)
    click.echo(f"node/{added} added")


@node.command("remove")
@click.argument("name")
@lab_option
def node_remove(name: str, lab: str | None) -> None:
    """Remove a node, as `kubectl delete node` does."""
    from podwire.objects import kinds

    target = podwire.Lab(launch.choose(lab))
    launch.require_running(target.name)
    target.call(lambda api: api.delete(kinds.NODE, name))
    click.echo(f"node/{name} removed")


@click.command()
@click.argument("a")
@click.argument("b")
@click.argument("impairment", nargs=-1, required=True)
@lab_option
@output_option
def link(a: str, b: str, impairment: tuple[str, ...], lab: str | None, output: str) -> None:
    """Impair the link between nodes A and B: up, down, loss 5%, rate 10mbit, delay 50ms."""
    name = launch.choose(lab)
    launch.require_running(name)
    found = podwire.Lab(name).link(a, b, *impairment)
    if not print_structured(found, output):
        click.echo(f"link {a} {b}: {' '.join(impairment)}")


@click.command()
@click.argument("publish")
@lab_option
def publish(publish: str, lab: str | None) -> None:
    """Relay a loopback port of this machine into the lab: [HOST:]PORT:TARGET."""
    name = launch.choose(lab)
    port = podwire.Lab(name).publish(publish)
    click.echo(f"127.0.0.1:{port} -> {specs.parse_publish(publish).target}")
