"""Who reaches whom in a cluster read from manifests or an API: no packet is sent. Pure.

    StaticWorld -> StaticReach -> connections (workloads, all ports, outside, entries)

The words of np-guard name who talks: `ns/web[Deployment]`, address ranges with `[External]`, and
`{ingress-controller}` for what Ingress and Gateway objects let in.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property

from podwire.explain.entries import CONTROLLER, CONTROLLER_POD, promised
from podwire.explain.staticworld import StaticWorld
from podwire.explain.workloads import Talker
from podwire.objects.meta import Key
from podwire.policy import intervals, ports
from podwire.policy.connlist import Actor, Connection, connections, make_actors
from podwire.policy.evaluate import DEFAULT, Semantics
from podwire.policy.intervals import Intervals
from podwire.policy.model import PortRange
from podwire.policy.reach import Reach
from podwire.policy.world import make_world


class StaticReach:
    """`version` is the family of addresses: the outside is listed in one of them."""

    def __init__(
        self, static: StaticWorld, semantics: Semantics = DEFAULT, version: int = 4
    ) -> None:
        self.static = static
        world = static.world
        if static.entries:
            pods = [*world.pods.values(), CONTROLLER_POD]
            world = replace(make_world(pods, world.namespaces, world.nodes.values(), world.names))
        self.reach = Reach(world, static.policy_set, semantics, version)

    @cached_property
    def actors(self) -> list[Actor]:
        names = {talker.view.key: str(talker) for talker in self.static.talkers}
        workloads = {
            str(owner): [talker.view.key for talker in talkers]
            for owner, talkers in self.static.workloads().items()
        }
        return make_actors(self.reach, workloads, names)

    def connections(self) -> Iterator[Connection]:
        """In the order of np-guard's lines, which is that of their text."""
        yield from connections(self.reach, self.actors)
        yield from self._entering()

    def _entering(self) -> Iterator[Connection]:
        """What Ingress objects ask for and policies leave, workload by workload."""
        for label, found in self.entering().items():
            if found:
                yield Connection(CONTROLLER, label, found)

    def entering(self) -> Mapping[str, Intervals]:
        """Workloads that entries lead to, with the ports that work: none where policies forbid.
        Where an entry leads to some of their pods, or policies let it in to some, those pods."""
        asked = promised(self.static.entries, self.static.services, self.static.talkers)
        found: dict[str, Intervals] = {}
        for owner, talkers in self.static.workloads().items():
            known = [talker for talker in talkers if talker.view.key in self.reach.group_of]
            opened = {str(t): self._entered(t, asked.get(t.view.key)) for t in known}
            alike = len(set(opened.values())) == 1
            for label, left in ({str(owner): opened[str(known[0])]} if alike else opened).items():
                if left is not None:
                    found[label] = left
        return {label: found[label] for label in sorted(found, key=lambda name: f"{name} : ")}

    def _entered(self, talker: Talker, asked: Iterable[PortRange] | None) -> Intervals | None:
        """None where no entry leads to it."""
        if asked is None:
            return None
        return intervals.intersect(ports.of_ranges(asked), self._let_in(talker, talker.view.key))

    def _let_in(self, talker: Talker, key: Key) -> Intervals:
        return self.reach.between(CONTROLLER_POD.key, key)

    def blocked_entries(self) -> Iterator[str]:
        """Warnings: objects that promise a way in which policies close."""
        for label, found in self.entering().items():
            if not found:
                yield f"{label}: policies let no ingress controller in, though an entry leads here"
