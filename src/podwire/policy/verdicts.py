"""Many connections judged by one state of the world: by their addresses, and quickly. Pure.

    World + policies, at one moment -> Verdicts.between(source, destination, protocol, port)

`evaluate` remembers nothing; here the policies that select a pod are looked up once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from ipaddress import ip_address

from podwire.objects.meta import Key
from podwire.policy.evaluate import (
    DEFAULT,
    Case,
    Decision,
    Flow,
    Judgement,
    Party,
    PolicySet,
    Semantics,
    evaluate,
)
from podwire.policy.model import Address, Policy
from podwire.policy.nearest import Near, find_nearest
from podwire.policy.world import NodeView, Owner, PodView, World, owners_of


class RememberingSet(PolicySet):
    """Of one world: who is selected by what is looked up once."""

    def __init__(self, policies: Iterable[Policy], *, staged: bool = False) -> None:
        super().__init__(policies, staged=staged)
        self._selecting: dict[Key, tuple[Policy, ...]] = {}

    def selecting(self, pod: PodView, world: World) -> tuple[Policy, ...]:
        found = self._selecting.get(pod.key)
        if found is None:
            found = self._selecting[pod.key] = super().selecting(pod, world)
        return found


class Verdicts:
    """`staged`: as if the staged policies were in force, too. `owners` are the world's, where
    somebody keeps them."""

    def __init__(
        self,
        world: World,
        policies: Iterable[Policy],
        semantics: Semantics = DEFAULT,
        *,
        staged: bool = False,
        owners: Mapping[Address, Owner] | None = None,
    ) -> None:
        self.world = world
        self._owners = owners_of(world) if owners is None else owners
        self._policies = RememberingSet(policies, staged=staged)
        self._semantics = semantics

    def party(self, ip: bytes) -> Party:
        """Who has the packed address; an outsider where nobody has."""
        address = ip_address(ip)
        owner = self._owners.get(address)
        return Party(
            address,
            owner if isinstance(owner, PodView) else None,
            owner if isinstance(owner, NodeView) else None,
        )

    def between(self, source: bytes, destination: bytes, protocol: int, port: int) -> Decision:
        """Addresses packed, as between DNAT and SNAT: one that meets itself does so through a
        Service."""
        return self.decide(self.flow(source, destination, protocol, port))

    def flow(self, source: bytes, destination: bytes, protocol: int, port: int) -> Flow:
        ends = self.party(source), self.party(destination)
        return Flow(*ends, protocol, port, hairpin=source == destination)

    def nearest(self, flow: Flow, judgement: Judgement) -> Near | None:
        """Of a denial: the rule that almost let the connection through."""
        case = Case(judgement.direction, flow, self.world, self._semantics)
        return find_nearest(case, judgement, self._policies)

    def decide(self, flow: Flow) -> Decision:
        return evaluate(flow, self._policies, self.world, self._semantics)
