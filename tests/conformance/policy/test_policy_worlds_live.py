"""Random policies in a lab: the evaluator, a walk over what nodes are sent, and packets agree.

Pods, labels and named ports are made so that selectors and ports hit; the policies are drawn. A few
worlds by themselves, many and in both modes of the network with PODWIRE_ALL=1.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from policy_cases import NODES, PROTOCOLS, Apply, Raw
from policy_worlds import (
    PORTS,
    PolicyWorld,
    Probe,
    cluster_policies,
    make_namespace,
    make_pod,
    network_policies,
)
from policylab import LiveCluster, every_probe

from podwire.errors import InvalidError
from podwire.lab import Lab
from podwire.policy.evaluate import evaluate
from podwire.policy.nftables import Words, render_generation, render_switch, render_table
from podwire.policy.nodepolicies import NodePolicies
from podwire.policy.walk import Packet, Tables

ALL = os.environ.get("PODWIRE_ALL") == "1"
EXAMPLES = 150 if ALL else 8
_LABELS = [{}, {"app": "a"}, {"app": "b", "tier": "a"}, {"tier": "b"}]
_NAMED = [("web", PORTS[0], "TCP"), ("metrics", PORTS[1], "UDP"), ("web", PORTS[1], "TCP")]


def _world() -> list[Raw]:
    pods = []
    for i, (namespace, labels) in enumerate(itertools.product("xy", _LABELS)):
        name, port, protocol = _NAMED[i % len(_NAMED)]
        ports = [{"name": name, "containerPort": port, "protocol": protocol}]
        pods.append(make_pod(namespace, f"p{i}", [], labels, node="", ports=ports))
    return [make_namespace("x", {"app": "a"}), make_namespace("y", {"tier": "b"}), *pods]


@st.composite
def _policies(draw: st.DrawFn) -> list[Raw]:
    found = [draw(network_policies(i)) for i in range(draw(st.integers(0, 4)))]
    found += [draw(cluster_policies(i)) for i in range(draw(st.integers(0, 3)))]
    by_name = {(p["kind"], p["metadata"]["name"]): p for p in found}
    return [*by_name.values()]


@pytest.fixture(scope="module", params=["routed", "kubenet"] if ALL else ["routed"])
def cluster(request: pytest.FixtureRequest, root: None) -> Iterator[LiveCluster]:
    with Lab(f"worlds-{request.param}", nodes=3, network=request.param, dns="none") as lab:
        yield LiveCluster(lab, _world())


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(policies=_policies())
def test_three_ways(cluster: LiveCluster, policies: list[Raw]) -> None:
    try:
        cluster.do([Apply(policy) for policy in policies])
    except InvalidError:
        # What the API server refuses is no world.
        cluster.reset()
        assume(False)
    try:
        _check(cluster)
    finally:
        cluster.reset()


def _check(cluster: LiveCluster) -> None:
    asked = list(every_probe(cluster.addresses(), PORTS[:2], PROTOCOLS))
    world = cluster.world
    says = [evaluate(world.flow(a), world.policy_set, world.world).allowed for a in asked]
    walked = _walk(world, asked)
    assert [a for a, e, w in zip(asked, says, walked, strict=True) if e != w] == []
    packets = cluster.probe_as_said(asked, says)
    wrong = [(a, e) for a, e, p in zip(asked, says, packets, strict=True) if e != p]
    assert not wrong, wrong[:5]


def _walk(world: PolicyWorld, asked: Sequence[Probe]) -> list[bool]:
    """By the source's node, then by the destination's."""
    tables = {node: _tables(world, node) for node in NODES}
    found = []
    for each in asked:
        flow = world.flow(each)
        source, destination = flow.source.pod, flow.destination.pod
        assert source is not None
        assert destination is not None
        if source.key == destination.key:
            found.append(True)
            continue
        nodes = dict.fromkeys((source.node, destination.node))
        walks = [
            tables[node].walk(
                Packet(
                    source.ips[0].packed,
                    destination.ips[0].packed,
                    flow.protocol,
                    flow.port,
                    "veth0" if node == source.node else "eth0",
                )
            )
            for node in nodes
        ]
        found.append(all(walk.allowed for walk in walks))
    return found


def _tables(world: PolicyWorld, node: str) -> Tables:
    state = NodePolicies(node, (4,), ("veth*",))
    state.set_world(world.world, world.policies)
    tables, words = Tables(), Words(4, state.generation)
    tables.apply_text(render_table(4))
    tables.apply_text(render_generation(words, state.pod_interfaces))
    tables.apply_text(render_switch(words))
    for step in state.plan().steps:
        for text in step.text.values():
            tables.apply_text(text)
        tables.apply_elements(step.changes)
    return tables
