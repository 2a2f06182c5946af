"""The evaluator against an implementation that shares nothing with it, over random worlds."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from naive_policy import allowed
from policy_worlds import PolicyWorld, probes, worlds

from podwire.policy.evaluate import evaluate

PROBES = 12
"""Of each world; building one costs more than asking it."""


def agree(data: st.DataObject, world: PolicyWorld) -> None:
    for _ in range(PROBES):
        probe = data.draw(probes(world))
        decision = evaluate(world.flow(probe), world.policy_set, world.world)
        wanted = allowed(
            world.raw,
            probe.source,
            probe.destination,
            probe.protocol,
            probe.port,
            hairpin=probe.hairpin,
        )
        assert decision.allowed == wanted, (probe, decision)


@given(st.data(), worlds(cluster=False))
def test_network_policies(data: st.DataObject, world: PolicyWorld) -> None:
    agree(data, world)


@given(st.data(), worlds())
def test_all_kinds(data: st.DataObject, world: PolicyWorld) -> None:
    agree(data, world)


@given(st.data(), worlds(unknown=True))
def test_what_nobody_knows_fails_closed(data: st.DataObject, world: PolicyWorld) -> None:
    agree(data, world)
