"""Random policies by real first packets: the kernel does what `evaluate` says, and counts it there.

One node and histories of worlds: each is taken over from an agent before, then follow small changes
with questions after each, so what is asked has been grown, switched and shrunk. TCP, UDP, SCTP and
ICMP of both families, routed and on a bridge. Some hundred worlds in `./test`, with PODWIRE_ALL=1
ten times as many. (That the walk over the same plans agrees is `test_policy_node`'s.)
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from policy_node_worlds import (
    HERE,
    Change,
    Changing,
    apply_change,
    changes,
    outcomes_of,
    some_flows,
)
from policy_wires import BRIDGE, BRIDGE_NF, Wires, carried

from podwire.agents.policykernel import PolicyBackend
from podwire.policy.classes import Outcome
from podwire.policy.evaluate import Flow
from podwire.policy.nodepolicies import NodePolicies

# So many fit well into the time one test in namespaces has.
HISTORIES = 30
BATCHES = range(10 if os.environ.get("PODWIRE_ALL") == "1" else 1)
_FLOWS = 120
_ROUNDS = 5
# A world of its own first, then small changes.
_histories = st.builds(
    lambda first, others: [first, *others],
    st.lists(changes, min_size=10, max_size=20),
    st.lists(st.lists(changes, min_size=1, max_size=3), max_size=8),
)


def start(*, bridged: bool) -> tuple[Changing, NodePolicies]:
    api = Changing()
    policies = NodePolicies(HERE, pod_interfaces=(BRIDGE,) if bridged else ("veth*",))
    for node in api.nodes.values():
        policies.set_node(node)
    return api, policies


def check(wires: Wires, backend: PolicyBackend, asked: list[tuple[Flow, list[Outcome]]]) -> None:
    """What was sent and did not come where it may is sent again: queues may overflow."""
    before = backend.outcomes()
    waiting, again = asked, 0
    for _ in range(_ROUNDS):
        came = wires.send([flow for flow, _ in waiting])
        for (flow, outcomes), here in zip(waiting, came, strict=True):
            assert not here or all(o.allowed for o in outcomes), (_short(flow), outcomes)
        pairs = zip(waiting, came, strict=True)
        waiting = [one for one, here in pairs if not here and all(o.allowed for o in one[1])]
        if not waiting:
            break
        again += len(waiting)
    assert not waiting, [_short(flow) for flow, _ in waiting]
    if not again:
        after = backend.outcomes()
        told = {
            o: c.packets - before[o].packets if o in before else c.packets for o, c in after.items()
        }
        assert {o: n for o, n in told.items() if n} == Counter(o for _, os_ in asked for o in os_)


def _short(flow: Flow) -> str:
    return f"{flow.source.ip} -> {flow.destination.ip} protocol {flow.protocol} port {flow.port}"


@pytest.mark.parametrize("bridged", [False, True], ids=["routed", "bridged"])
@pytest.mark.parametrize("batch", BATCHES)
def test_first_packets_come_where_the_evaluator_lets_them(
    scratch: Path, batch: int, bridged: bool
) -> None:
    if bridged and not Path("/proc/sys", BRIDGE_NF).exists():
        pytest.skip("no br_netfilter in this kernel")
    with Wires(scratch, bridged=bridged) as wires:

        @settings(
            max_examples=HISTORIES,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(_histories, st.integers(0, 1 << 32))
        def in_a_history(history: list[list[Change]], seed: int) -> None:
            api, policies = start(bridged=bridged)
            random = Random(seed)
            with PolicyBackend(policies) as backend:
                for some in history:
                    for change in some:
                        apply_change(change, api, policies)
                    backend.commit()
                    flows = carried(some_flows(api, random, _FLOWS), bridged=bridged)
                    check(wires, backend, outcomes_of(api, flows))
                assert not any(backend.drops().values())
                assert not backend.foreign()

        in_a_history()
