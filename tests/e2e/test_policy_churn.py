"""A hundred changes a second to labels of pods and namespaces, policies and pods, under probes.

Every probe is held against the states its packet may have met at either end, see `policy_churn`: it
gets through only if some such state lets each end's part through, and is lost only if some such
state denies a part. A node has left a state when it says so; pods that come meanwhile are judged by
what they are from their first packet on.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import time
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address

import pytest
from policy_churn import (
    APPS,
    NAMESPACES,
    NODES,
    PORT,
    Churn,
    Newcomer,
    Reached,
    Seen,
    make_pod,
    rank,
    view_of,
)

from podwire.client import Api
from podwire.explain.probes import wire
from podwire.lab import Lab
from podwire.objects import kinds
from podwire.policy.world import PodView

ALL = os.environ.get("PODWIRE_ALL") == "1"
SECONDS = 180.0 if ALL else 20.0
RATE = 100.0
TIMEOUT_S = 0.25
PROBERS = 8
PAUSE_S = 0.02
LONGEST_S = 2.0
"""No node is that long behind the API, however busy the machine."""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab("np-churn", nodes=2, dns="none") as lab:
        lab.call(_fill)
        lab.wait_ready(30)
        yield lab


async def _fill(api: Api) -> None:
    for name in NAMESPACES:
        body = {"metadata": {"name": name, "labels": {"team": "red"}}}
        await api.create(kinds.NAMESPACE, body)
    for i, (namespace, app) in enumerate(itertools.product(NAMESPACES, APPS)):
        await api.create(kinds.POD, make_pod(f"p{i}", namespace, app, NODES[i % 2]))


async def _probe(
    churn: Churn, pods: list[PodView], node: str, number: int, ends: float, seen: list[Seen]
) -> None:
    """One connection after the other from pods of the node."""
    chance = random.Random(f"{node} {number}")
    while time.monotonic() < ends:
        everybody: list[PodView | Newcomer] = [*pods, *churn.newcomers.values()]
        source = chance.choice([end for end in everybody if view_of(end).node == node])
        destination = chance.choice([end for end in everybody if end != source])
        probe = wire.Probe(
            source=str(view_of(source).key),
            address=str(view_of(destination).ips[0]),
            port=PORT,
            timeout_s=TIMEOUT_S,
        )
        body = wire.encode(wire.ProbeRequest(probes=(probe,)))
        sent = time.monotonic()
        answer = await churn.api.request("POST", f"/api/v1/nodes/{node}/proxy/probe", body=body)
        now = time.monotonic()
        (result,) = wire.parse_response(answer).results
        # Who left meanwhile cannot be judged.
        if all(_is_there(end, churn) for end in (source, destination)):
            assert result.verdict in ("allowed", "dropped"), (probe, result)
            seen.append(Seen((source, destination), sent, now, result.verdict == "allowed"))
        await asyncio.sleep(PAUSE_S)


def _is_there(end: PodView | Newcomer, churn: Churn) -> bool:
    return not isinstance(end, Newcomer) or churn.newcomers.get(end.view.key) == end


async def _run(api: Api, pods: list[PodView], seen: list[Seen]) -> tuple[Churn, Reached]:
    churn = Churn(api, {pod.key: pod for pod in pods}, RATE)
    reached = Reached(churn)
    ends = time.monotonic() + SECONDS
    probers = [
        _probe(churn, pods, node, number, ends, seen)
        for node, number in itertools.product(NODES, range(PROBERS))
    ]
    async with asyncio.TaskGroup() as group:
        following = [group.create_task(reached.follow(node)) for node in NODES]
        await asyncio.gather(churn.run(ends), *probers)
        for task in following:
            task.cancel()
    return churn, reached


def test_no_packet_meets_what_was_never_said(lab: Lab) -> None:
    pods = [
        PodView(pod.key, {"app": pod.metadata.labels["app"]}, (ip_address(pod.status.pod_ip),))
        for pod in lab.pods()
    ]
    nodes = {pod.key: pod.spec.node_name for pod in lab.pods()}
    pods = [replace(pod, node=nodes[pod.key]) for pod in pods]
    seen: list[Seen] = []
    churn, reached = lab.call(lambda api: _run(api, pods, seen))
    decided = newcomers = 0
    for each in seen:
        egress, ingress = each.may_have_said(churn, reached)
        if each.through:
            assert True in egress, f"no state let it out: {each}"
            assert True in ingress, f"no state let it in: {each}"
        else:
            assert False in egress | ingress, f"every state let it through: {each}"
        decided += len(egress) == len(ingress) == 1
        newcomers += any(isinstance(end, Newcomer) for end in each.ends)
    told = (
        f"{churn.number} changes, {churn.came} pods came, {len(seen)} probes, {decided} decided, "
        f"{newcomers} of newcomers; nodes behind by p50 {rank(reached.delays, 0.5):.3f} s, "
        f"p99 {rank(reached.delays, 0.99):.3f} s, at most {max(reached.delays):.3f} s"
    )
    print(told)
    assert churn.number > SECONDS * RATE * 0.5, told
    assert len(seen) > SECONDS * 20, told
    assert max(reached.delays) < LONGEST_S, told
    # Probes of which only one verdict was possible are what the test is about.
    assert decided > len(seen) * 0.4, told
    assert newcomers > SECONDS, told
