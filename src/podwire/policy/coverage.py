"""How much of a cluster policies cover: isolation per direction, and what is exposed. Pure.

    Reach + policies -> per namespace: pods, isolated, reached by others, reaching out

A pod is isolated in a direction when a NetworkPolicy selects it for it: what is not allowed is
denied. Presence says little, so what is open is counted beside it, from all policies together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from podwire.objects.meta import View
from podwire.policy import intervals
from podwire.policy.classviews import Bits
from podwire.policy.connlist import EVERY_PORT
from podwire.policy.evaluate import PolicySet
from podwire.policy.intervals import Intervals
from podwire.policy.reach import Reach
from podwire.policy.world import PodView


class Coverage(View):
    """Numbers of pods; `namespace` is "" for all together.

    `from_world`: some address outside may open some port. `from_namespaces`: some pod of another
    namespace may.
    """

    namespace: str
    pods: int = 0
    ingress_isolated: int = 0
    egress_isolated: int = 0
    from_world: int = 0
    to_world: int = 0
    from_namespaces: int = 0
    to_namespaces: int = 0
    host_network: int = 0

    @property
    def isolated_share(self) -> float:
        """Of pods that can be isolated, both directions counted."""
        pods = 2 * (self.pods - self.host_network)
        return (self.ingress_isolated + self.egress_isolated) / pods if pods else 1.0


def measure_coverage(reach: Reach, policies: PolicySet) -> list[Coverage]:
    """By namespace, and all of them last."""
    opened = _Open(reach)
    counts: dict[str, Counter[str]] = {"": Counter()}
    for pod in reach.pods:
        found = [name for name, is_so in _facts(pod, opened, policies) if is_so]
        for namespace in ("", pod.key.namespace):
            counts.setdefault(namespace, Counter()).update(found)
    order = sorted(counts, key=lambda name: (name == "", name))
    return [Coverage(namespace=name, **counts[name]) for name in order]


def _facts(pod: PodView, opened: _Open, policies: PolicySet) -> Iterator[tuple[str, bool]]:
    """The fields of `Coverage` that count the pod."""
    selecting = () if pod.host_network else policies.selecting(pod, opened.reach.world)
    yield "pods", True
    yield "host_network", pod.host_network
    yield "ingress_isolated", any("ingress" in policy.isolates for policy in selecting)
    yield "egress_isolated", any("egress" in policy.isolates for policy in selecting)
    yield "from_world", opened.from_world(pod)
    yield "to_world", opened.to_world(pod)
    yield "from_namespaces", opened.from_namespaces(pod)
    yield "to_namespaces", opened.to_namespaces(pod)


class _Open:
    """Which groups can do what, asked once per group."""

    def __init__(self, reach: Reach) -> None:
        self.reach = reach
        self._from_world: dict[int, bool] = {}
        self._to_world: dict[int, bool] = {}
        # Groups that some pod of a namespace reaches, and the namespaces each group reaches into.
        self._by_source: dict[str, Bits] = {}
        self._reached: list[Bits] = []
        self._members: dict[str, Bits] = {}
        for group, pods in enumerate(reach.groups):
            bits: Bits = 0
            for ports, found in reach.row(group).items():
                bits |= found if _wired(ports) else 0
            self._reached.append(bits)
            for namespace in {pod.key.namespace for pod in pods}:
                self._by_source[namespace] = self._by_source.get(namespace, 0) | bits
                self._members[namespace] = self._members.get(namespace, 0) | 1 << group

    def from_world(self, pod: PodView) -> bool:
        group = self.reach.group_of[pod.key]
        if group not in self._from_world:
            self._from_world[group] = any(
                _wired(self.reach.from_outside(source, group))
                for source in self.reach.outside("ingress")
            )
        return self._from_world[group]

    def to_world(self, pod: PodView) -> bool:
        group = self.reach.group_of[pod.key]
        if group not in self._to_world:
            self._to_world[group] = any(
                _wired(self.reach.to_outside(group, destination))
                for destination in self.reach.outside("egress")
            )
        return self._to_world[group]

    def from_namespaces(self, pod: PodView) -> bool:
        own = 1 << self.reach.group_of[pod.key]
        return any(
            bits & own for name, bits in self._by_source.items() if name != pod.key.namespace
        )

    def to_namespaces(self, pod: PodView) -> bool:
        reached = self._reached[self.reach.group_of[pod.key]]
        return any(
            bits & reached for name, bits in self._members.items() if name != pod.key.namespace
        )


def _wired(ports: Intervals) -> bool:
    return bool(intervals.intersect(ports, EVERY_PORT))
