"""What policies would do to pods that do not exist yet. Pure.

    peers in use -> one imagined pod per selector -> a world with it -> its connections

A policy that opens a port to `app: client` opens it to whoever gets that label one day. For each
selector of the rules a pod is imagined that it matches and that has nothing else; and one pod that
no selector names stands for any other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final, NamedTuple

from podwire.objects.meta import Key
from podwire.policy.model import PodsPeer, Policy
from podwire.policy.selector import EVERYTHING, Selector
from podwire.policy.world import NAME_LABEL, PodView, World, make_world, namespace_labels

_POD: Final = "imagined"
_NAMESPACE: Final = "imagined"


class Imagined(NamedTuple):
    """`label` says which pods it stands for; `namespace_labels` are set for a new namespace."""

    label: str
    pod: PodView
    namespace_labels: Mapping[str, str]


def imagine_all(policies: Iterable[Policy], world: World) -> list[Imagined]:
    """One per pods selector of the rules, `{any pod}` first; what no pod can match is left out."""
    peers = dict.fromkeys(
        peer
        for policy in policies
        for rule in (*policy.ingress, *policy.egress)
        for peer in rule.peers or ()
        if isinstance(peer, PodsPeer)
    )
    nobody = imagine("{any pod}", "", {}, world, number=0)
    return [nobody, *_of_peers(peers, world)]


def imagine(
    label: str,
    namespace: str,
    labels: Mapping[str, str],
    world: World,
    number: int = 0,
    of_namespace: Mapping[str, str] | None = None,
) -> Imagined:
    """A pod with these labels; `namespace` "" is one that does not exist either."""
    name = namespace or f"{_NAMESPACE}-{number}"
    own = of_namespace if of_namespace is not None else world.namespaces.get(name, {})
    return Imagined(label, PodView(Key(name, f"{_POD}-{number}"), dict(labels)), own)


def with_imagined(world: World, imagined: Iterable[Imagined]) -> World:
    """The world with these pods, and their namespaces where it lacks them."""
    listed = list(imagined)
    namespaces = dict(world.namespaces)
    for each in listed:
        namespaces.setdefault(each.pod.key.namespace, each.namespace_labels)
    pods = [*world.pods.values(), *(each.pod for each in listed)]
    return make_world(pods, namespaces, world.nodes.values(), world.names)


def _of_peers(peers: Iterable[PodsPeer], world: World) -> Iterator[Imagined]:
    for number, peer in enumerate(peers, start=1):
        labels = satisfy(peer.pods)
        if labels is None or peer == PodsPeer(EVERYTHING, peer.namespace, EVERYTHING):
            continue
        words = f"pods {peer.pods}" if peer.pods.expressions else "pods"
        if peer.namespaces is None:
            label = f"{{{words} of namespace {peer.namespace}}}"
            yield imagine(label, peer.namespace, labels, world, number)
            continue
        own = satisfy(peer.namespaces)
        if own is None:
            continue
        where = f" of namespaces {peer.namespaces}" if peer.namespaces.expressions else ""
        name = own.pop(NAME_LABEL, "")
        made = imagine(f"{{{words}{where}}}", name, labels, world, number, own)
        place = made.pod.key.namespace
        if peer.namespaces.matches(world.namespaces.get(place, namespace_labels(place, own))):
            yield made


def satisfy(selector: Selector) -> dict[str, str] | None:
    """The fewest labels it matches; None where it contradicts itself."""
    labels: dict[str, str] = {}
    for key in {expression.key for expression in selector.expressions}:
        own = [e for e in selector.expressions if e.key == key]
        wanted = [value for e in own if e.operator == "In" for value in e.values]
        if any(e.operator == "Exists" for e in own):
            wanted.append("any")
        fitting = [v for v in wanted if all(e.matches({key: v}) for e in own)]
        if fitting:
            labels[key] = fitting[0]
        elif wanted:
            return None
    return labels if selector.matches(labels) else None
