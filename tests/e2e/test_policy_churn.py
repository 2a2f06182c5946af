"""A hundred changes a second to labels, policies and pods, under probes.

Every probe is held against the states its packet may have met: those that were begun before it was
judged, but for those that every node had left before it was sent. Each end of a connection is
judged on its own node and may be at another state than the other end. A packet gets through only if
some such state lets each end's part through, and is lost only if some such state denies a part.

A node has left a state `WINDOW_S` after the API answered the change that ended it.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, replace
from ipaddress import ip_address
from typing import Any

import pytest

from podwire.client import Api, PatchType
from podwire.errors import AlreadyExistsError
from podwire.explain.probes import wire
from podwire.lab import Lab
from podwire.objects import kinds
from podwire.objects.meta import Key
from podwire.objects.policy import NetworkPolicy
from podwire.policy.evaluate import Case, Flow, Party, PolicySet, judge
from podwire.policy.model import Policy
from podwire.policy.parse import parse_network_policy
from podwire.policy.world import PodView, World, make_world

import msgspec  # isort: skip

ALL = os.environ.get("PODWIRE_ALL") == "1"
SECONDS = 180.0 if ALL else 12.0
RATE = 100.0
WINDOW_S = 0.5
TIMEOUT_S = 0.25
NODES = ("node-1", "node-2")
NAMESPACES = ("x", "y")
APPS = ("a", "b", "c")
POD = """
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: {namespace}, labels: {{app: {app}}}}}
spec:
  nodeName: {node}
  terminationGracePeriodSeconds: 0
  containers: [{{name: c, image: nginx, ports: [{{containerPort: 8080}}]}}]
---
"""


@dataclass(frozen=True)
class State:
    """From `begun` on some node may be in it; until `left` one may still be."""

    world: World
    policies: PolicySet
    begun: float
    left: float = float("inf")


@dataclass(frozen=True)
class Seen:
    source: Key
    destination: Key
    sent: float
    answered: float
    through: bool


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab("np-churn", nodes=2, dns="none") as lab:
        text = "".join(
            f"apiVersion: v1\nkind: Namespace\nmetadata: {{name: {n}}}\n---\n" for n in NAMESPACES
        )
        for i, (namespace, app) in enumerate((n, a) for n in NAMESPACES for a in APPS):
            node = NODES[i % 2]
            text += POD.format(name=f"p{i}", namespace=namespace, app=app, node=node)
        lab.apply_text(text)
        lab.wait_ready(30)
        yield lab


def _policy(chance: random.Random, name: str) -> tuple[str, dict[str, Any]]:
    namespace = chance.choice(NAMESPACES)
    peer = {"podSelector": {"matchLabels": {"app": chance.choice(APPS)}}}
    if chance.random() < 0.5:
        peer["namespaceSelector"] = {}
    direction = chance.choice(("ingress", "egress"))
    rule = {"from" if direction == "ingress" else "to": [peer]}
    spec: dict[str, Any] = {
        "podSelector": {"matchLabels": {"app": chance.choice(APPS)}},
        "policyTypes": [direction.capitalize()],
        direction: [rule],
    }
    meta = {"name": name, "namespace": namespace}
    return namespace, {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": meta,
        "spec": spec,
    }


class Churn:
    """One change after the other, so that their order is known."""

    def __init__(self, api: Api, pods: list[PodView]) -> None:
        self._api = api
        self._chance = random.Random(11)
        self._pods = {pod.key: pod for pod in pods}
        self._policies: dict[tuple[str, str], Policy] = {}
        self.states = [self._state(0.0)]
        self.extra = 0
        self.number = 0

    def _state(self, begun: float) -> State:
        world = make_world(self._pods.values(), {n: {} for n in NAMESPACES})
        return State(world, PolicySet(self._policies.values()), begun)

    async def run(self, ends: float) -> None:
        began = time.monotonic()
        while time.monotonic() < ends:
            await self._change()
            self.number += 1
            due = began + self.number / RATE
            await asyncio.sleep(max(0.0, due - time.monotonic()))

    async def _change(self) -> None:
        kind = self._chance.random()
        begun = time.monotonic()
        if kind < 0.85:
            await self._relabel(begun)
        elif kind < 0.98:
            await self._change_policy(begun)
        else:
            await self._change_pods()
            return
        self.states[-2] = replace(self.states[-2], left=time.monotonic() + WINDOW_S)

    async def _relabel(self, begun: float) -> None:
        # Half of the pods keep their labels: of those more can be said.
        key = self._chance.choice([*self._pods][::2])
        app = self._chance.choice(APPS)
        self._pods[key] = replace(self._pods[key], labels={"app": app})
        self.states.append(self._state(begun))
        patch = {"metadata": {"labels": {"app": app}}}
        await self._api.patch(kinds.POD, key.name, patch, key.namespace, patch_type=PatchType.MERGE)

    async def _change_policy(self, begun: float) -> None:
        name = f"np{self._chance.randrange(6)}"
        namespace, raw = _policy(self._chance, name)
        where = (namespace, name)
        if where in self._policies:
            del self._policies[where]
            self.states.append(self._state(begun))
            await self._api.delete(kinds.NETWORK_POLICY, name, namespace)
        else:
            self._policies[where] = parse_network_policy(msgspec.convert(raw, NetworkPolicy))
            self.states.append(self._state(begun))
            await self._api.create(kinds.NETWORK_POLICY, raw, namespace)

    async def _change_pods(self) -> None:
        """Pods nobody asks for: they take addresses and labels, and give them back."""
        name = f"extra{self.extra % 4}"
        self.extra += 1
        body = {
            "metadata": {"name": name, "namespace": "x", "labels": {"app": "a"}},
            "spec": {
                "nodeName": NODES[self.extra % 2],
                "terminationGracePeriodSeconds": 0,
                "containers": [{"name": "c", "image": "nginx"}],
            },
        }
        try:
            await self._api.create(kinds.POD, body, "x")
        except AlreadyExistsError:
            await self._api.delete(kinds.POD, name, "x")


async def _probe(api: Api, pods: list[PodView], ends: float, seen: list[Seen], node: str) -> None:
    chance = random.Random(node)
    here = [pod for pod in pods if pod.node == node]
    while time.monotonic() < ends:
        pairs = [(chance.choice(here), chance.choice(pods)) for _ in range(12)]
        pairs = [(a, b) for a, b in pairs if a.key != b.key]
        probes = tuple(
            wire.Probe(source=str(a.key), address=str(b.ips[0]), port=8080, timeout_s=TIMEOUT_S)
            for a, b in pairs
        )
        sent = time.monotonic()
        body = wire.encode(wire.ProbeRequest(probes=probes))
        answer = await api.request("POST", f"/api/v1/nodes/{node}/proxy/probe", body=body)
        now = time.monotonic()
        for (a, b), result in zip(pairs, wire.parse_response(answer).results, strict=True):
            assert result.verdict in ("allowed", "dropped"), result
            seen.append(Seen(a.key, b.key, sent, now, result.verdict == "allowed"))


def _judge(seen: Seen, states: list[State]) -> tuple[set[bool], set[bool]]:
    """What egress of the source and ingress of the destination may have said.

    States begin and are left in one order.
    """
    said: tuple[set[bool], set[bool]] = (set(), set())
    first = bisect_left(states, seen.sent, key=lambda state: state.left)
    last = bisect_right(states, seen.answered, key=lambda state: state.begun)
    for state in states[first:last]:
        pods = state.world.pods
        parties = [Party(pods[k].ips[0], pods[k]) for k in (seen.source, seen.destination)]
        flow = Flow(*parties, 6, 8080)
        for direction, found in zip(("egress", "ingress"), said, strict=True):
            case = Case(direction, flow, state.world)
            found.add(judge(case, state.policies).allowed)
        if all(len(found) == 2 for found in said):
            break
    return said


def test_no_packet_meets_what_was_never_said(lab: Lab) -> None:
    pods = [
        PodView(pod.key, {"app": pod.metadata.labels["app"]}, (ip_address(pod.status.pod_ip),))
        for pod in lab.pods()
    ]
    nodes = {pod.key: pod.spec.node_name for pod in lab.pods()}
    pods = [replace(pod, node=nodes[pod.key]) for pod in pods]
    seen: list[Seen] = []

    async def run(api: Api) -> Churn:
        churn = Churn(api, pods)
        ends = time.monotonic() + SECONDS
        await asyncio.gather(
            churn.run(ends), *(_probe(api, pods, ends, seen, node) for node in NODES)
        )
        return churn

    churn = lab.call(run)
    decided = 0
    for each in seen:
        egress, ingress = _judge(each, churn.states)
        if each.through:
            assert True in egress, f"no state let it out: {each}"
            assert True in ingress, f"no state let it in: {each}"
        else:
            assert False in egress | ingress, f"every state let it through: {each}"
        decided += len(egress) == len(ingress) == 1
    assert churn.number > SECONDS * RATE * 0.5
    assert len(seen) > SECONDS * 10
    # Probes of which only one verdict was possible are what the test is about.
    assert decided > len(seen) * 0.05, (decided, len(seen))
