"""Random worlds in the kernel: the set of backends new connections get is the model's.

Every frontend is asked from a pod here, a pod elsewhere, outside and the node itself, one
connection per source port, until every allowed backend was seen; one that is not allowed fails at
once. Bounded in time: about 25 worlds in `./test`, 300 with PODWIRE_ALL=1.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from service_injector import Injector, Result
from service_net import ServiceNet, address_of
from service_rows import backends_of
from service_worlds import CLUSTER_CIDRS, SERVICE_CIDRS, World, compiled, domain_of, worlds

from podwire.agents.servicekernel import FlowCleaner, Ranges
from podwire.kernel.flows import Flow
from podwire.services.claims import Owner
from podwire.services.evaluate import Domain, Outcome, Packet, evaluate
from podwire.services.model import Frontend, FrontendKey

# So many worlds fit well into the time one test in namespaces has.
WORLDS = 25
BATCHES = range(12 if os.environ.get("PODWIRE_ALL") == "1" else 1)
_ORIGINS = ("here-a", "far-a", "outside", "outside-2", "node")
_ROUNDS = 24
_PODS_HERE = (ip_network("10.244.1.0/24"), ip_network("fd00:244:0:1::/64"))


@dataclass(repr=False)
class Question:
    """One packet, what the model says of it, and what the kernel did so far."""

    packet: Packet
    outcome: Outcome
    seen: set[tuple[bytes, int]] = field(default_factory=set)

    def __repr__(self) -> str:
        p, o = self.packet, self.outcome
        ends = sorted(map(str, o.backends))
        where = f"{ip_address(p.src)} -> {p.protocol} {ip_address(p.dst)}:{p.dport}"
        return f"{where}: {o.verdict} {o.reason} {ends} {len(o.masqueraded)} {o.frontend}"

    @property
    def sticky(self) -> bool:
        frontend = self.outcome.frontend
        return frontend is not None and (
            frontend.affinity_s > 0 or frontend.balancing == "maglev-source"
        )

    def times(self) -> int:
        return 1 if self.outcome.verdict != "dnat" else 8 + 8 * len(self.outcome.backends)

    def take(self, results: list[Result]) -> None:
        verdicts = {r.verdict for r in results}
        if self.outcome.verdict == "pass":
            # Whoever has the address may refuse, and the entry is gone again.
            assert "dnat" not in verdicts, self
            return
        assert verdicts == {self.outcome.verdict}, (self, results[:3])
        allowed = backends_of(self.outcome.backends)
        hidden = backends_of(self.outcome.masqueraded)
        for result in results:
            if result.backend is not None:
                end = result.backend[:2]
                assert end in allowed, (self, result)
                # The node's own address is what a masqueraded backend sees anyway.
                if not self.packet.from_node:
                    assert result.masqueraded == (end in hidden), (self, result)
                self.seen.add(end)
        if self.sticky and self.outcome.verdict == "dnat":
            assert len(self.seen) == 1, self

    @property
    def answered(self) -> bool:
        return self.sticky or self.seen == backends_of(self.outcome.backends)


def questions(net: ServiceNet, world: World) -> list[Question]:
    frontends = net.claims.frontends
    domain = domain_of(frozenset(f.key.ip for f in frontends.values() if f.exclusive))
    packets = [
        *(p for p in world.packets if not p.from_node),
        *(p for key in frontends for p in packets_to(key)),
    ]
    return [Question(p, evaluate(p, frontends, domain)) for p in packets]


def packets_to(key: FrontendKey) -> Iterator[Packet]:
    version = 4 if len(key.ip) == 4 else 6
    for origin in _ORIGINS:
        source = ip_address(address_of(origin, version)).packed
        yield Packet(source, *key[:2], key.port, from_node=origin == "node")


def check(net: ServiceNet, injector: Injector, world: World) -> None:
    waiting = questions(net, world)
    for _ in range(_ROUNDS):
        asked = [(q.packet, q.times()) for q in waiting]
        for question, results in zip(waiting, injector.send_all(asked), strict=True):
            question.take(results)
        waiting = [q for q in waiting if not q.answered]
        if not waiting:
            return
    raise AssertionError(f"never chosen: {waiting}")


@pytest.mark.parametrize("batch", BATCHES)
def test_the_kernel_chooses_from_what_the_model_says(scratch: Path, batch: int) -> None:
    with ServiceNet(scratch) as net, Injector(net) as injector:
        net.open(Ranges(SERVICE_CIDRS, CLUSTER_CIDRS))
        net.swallow(_PODS_HERE)

        @settings(
            max_examples=WORLDS,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(worlds())
        def in_a_world(world: World) -> None:
            net.clear()
            injector.forget_affinity()
            for number, (service, slices) in enumerate(world.services):
                result = compiled(service, *slices)
                owner = Owner("Service", service.key)
                net.claims.set(owner, result.frontends, (f"{number:03}",))
            net.backend.commit()
            check(net, injector, world)

        in_a_world()
        for version in (4, 6):
            assert net.counters(version)["endpoint-missing"] == 0


@pytest.mark.parametrize("batch", BATCHES)
def test_flows_that_stay_after_a_world_changed_lead_to_what_serves(
    scratch: Path, batch: int
) -> None:
    """UDP only: from one world to the next, with the cleaner as the agent has it."""
    with ServiceNet(scratch) as net, Injector(net) as injector:
        net.open(Ranges(SERVICE_CIDRS, CLUSTER_CIDRS))
        net.swallow(_PODS_HERE)
        cleaner = FlowCleaner((4, 6), net.claims)

        @settings(
            max_examples=WORLDS,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(worlds(), worlds())
        def in_two_worlds(before: World, after: World) -> None:
            net.clear()
            program(net, before)
            injector.send_all([(p, 4) for key in net.claims.frontends for p in packets_to(key)])
            gone = set(net.claims.frontends)
            program(net, after)
            gone -= set(net.claims.frontends)
            frontends = net.claims.frontends
            domain = domain_of(frozenset())
            cleaner.clean(domain, list(gone))
            for flow in injector.udp_flows():
                check_flow(flow, frontends, domain)

        in_two_worlds()
        cleaner.close()


def check_flow(flow: Flow, frontends: Mapping[FrontendKey, Frontend], domain: Domain) -> None:
    orig, reply = flow.orig, flow.reply
    own = orig.src in domain.node_addresses
    packet = Packet(orig.src, orig.dst, orig.proto, orig.dport, orig.sport, from_node=own)
    outcome = evaluate(packet, frontends, domain)
    if outcome.frontend is None:
        assert not flow.dst_nat, flow
    elif outcome.reason != "source not in loadBalancerSourceRanges":
        # (Source ranges are for new connections, as in every proxy.)
        serving = backends_of({*outcome.backends, *outcome.frontend.lasting})
        assert (reply.src, reply.sport) in serving, (flow, outcome)


def program(net: ServiceNet, world: World) -> None:
    owners = {Owner("Service", service.key) for service, _ in world.services}
    for owner in net.claims.owners:
        if owner not in owners:
            net.claims.set(owner, ())
    for number, (service, slices) in enumerate(world.services):
        owner = Owner("Service", service.key)
        net.claims.set(owner, compiled(service, *slices).frontends, (f"{number:03}",))
    net.backend.commit()
