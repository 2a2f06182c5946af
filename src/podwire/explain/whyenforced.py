"""The step of `why` that is the policies': may the packet pass to where Services sent it? Pure.

    endpoints a connection may be sent to -> evaluate, as the nodes that enforce do -> Step

Egress is judged on the source's node, ingress on the destination's; a node that does not enforce
lets everything pass, and the step says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ipaddress import ip_address
from typing import NamedTuple

from podwire.explain.endpoints import Endpoint
from podwire.explain.whypolicy import DirectionWhy, End, PolicyWhy, explain_ends
from podwire.explain.whyworld import Destination, World
from podwire.objects.meta import Key
from podwire.policy.evaluate import Party
from podwire.policy.model import PROTOCOLS, Address
from podwire.policy.nearest import ServicePort
from podwire.policy.world import NodeView, Owner, PodView, owners_of

_SHOWN = 4


class Verdict(NamedTuple):
    """`denied` counts the targets of `asked` that policies in force keep the packet from."""

    asked: int
    denied: int
    text: str
    lines: tuple[str, ...]


def judge_targets(
    world: World, source: Endpoint, to: Destination, targets: Iterable[tuple[Address, int]]
) -> Verdict | None:
    """None where nothing is to be said: no policies, or nothing to be sent to."""
    static = world.static
    listed = list(targets)
    if static is None or not static.policies or not listed:
        return None
    protocol = PROTOCOLS[to.protocol.upper()]
    address = next(
        (ip_address(a) for a in source.addresses if (":" in a) == (to.address.version == 6)), None
    )
    sender = _source(world, source, address)
    found: list[tuple[PolicyWhy, list[DirectionWhy]]] = []
    owners = owners_of(static.world)
    for target, port in sorted(listed, key=str):
        end = _destination(owners.get(target), target)
        leading: tuple[ServicePort, ...] = ()
        if to.service is not None and to.port != port:
            leading = (ServicePort(str(to.service), protocol, to.port),)
        via = str(to.service or "")
        why = explain_ends(static, sender, end, protocol, port, via=via, services=leading)
        found.append((why, _in_force(world, sender, end, why)))
    return _verdict(world, found)


def _verdict(world: World, found: Sequence[tuple[PolicyWhy, list[DirectionWhy]]]) -> Verdict:
    denied = [(why, directions) for why, directions in found if directions]
    idle = [why for why, directions in found if not why.allowed and not directions]
    lines: list[str] = []
    for why, directions in denied[:_SHOWN]:
        for direction in directions:
            lines += _words(why, direction)
    if idle:
        lines.append(f"denied but not enforced: {', '.join(why.destination for why in idle)}")
    if not denied:
        return Verdict(len(found), 0, "accept it", (*_rules(found), *lines))
    all_ = len(denied) == len(found)
    text = "deny it" if all_ else f"deny {len(denied)} of {len(found)} endpoints"
    return Verdict(len(found), len(denied), text, tuple(lines))


def _rules(found: Sequence[tuple[PolicyWhy, list[DirectionWhy]]]) -> Iterable[str]:
    """The rules that accept, of the first: the others' are alike or their endpoints' own."""
    why = found[0][0]
    return [
        f"{direction.direction}: {direction.rule or direction.text}"
        for direction in why.directions
        if direction.reason not in ("no policy", "not a pod")
    ]


def _words(why: PolicyWhy, direction: DirectionWhy) -> list[str]:
    where = f"{direction.direction} of {direction.pod}"
    if direction.rule is not None:
        lines = [f"{where}: {direction.rule} denies it"]
    else:
        lines = [f"{where}: isolated by {', '.join(map(str, direction.isolating))}"]
    if (near := direction.nearest) is not None:
        misses = "; ".join(miss.text for miss in near.misses)
        lines.append(f"  nearest rule: {near.rule}: {misses}")
    return lines


def _in_force(world: World, source: End, end: End, why: PolicyWhy) -> list[DirectionWhy]:
    """The directions that deny, on nodes that enforce."""
    nodes = {"egress": _node(source), "ingress": _node(end)}
    return [d for d in why.directions if not d.allowed and nodes[d.direction] in world.enforcing]


def _node(end: End) -> str:
    return end.party.pod.node if end.party.pod is not None else ""


def _source(world: World, source: Endpoint, address: Address | None) -> End:
    static = world.static
    assert static is not None
    if source.kind == "Outside":
        return End(source.key, Party(address))
    node = static.world.nodes.get(source.node)
    if source.kind == "Node":
        return End(source.key, Party(address, node=node))
    pod = static.world.pods.get(Key(source.namespace, source.name))
    host = node if pod is not None and pod.host_network else None
    return End(source.key, Party(address, pod, host))


def _destination(owner: Owner | None, address: Address) -> End:
    match owner:
        case PodView() as pod:
            return End(str(pod.key), Party(address, pod))
        case NodeView() as node:
            return End(f"node/{node.name}", Party(address, node=node))
    return End(str(address), Party(address))
