"""A cluster that changes all the time, and which of its states a packet may have met.

    Churn     one change after the other -> State, State, ... in the order of the API
    Reached   every node says which state its kernel has -> Seen -> the states a probe may have met

A node may be in any state from the last one it said it had reached when the probe was sent to the
last one that was begun when it was answered. What the one end's node judged and what the other's
did need not be of one state.
"""

from __future__ import annotations

import asyncio
import random
import time
from bisect import bisect_right
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from typing import Any, Final

import msgspec

from podwire.client import Api, Change, Informer
from podwire.explain.nodes import wait_nodes
from podwire.objects import kinds
from podwire.objects.core import Pod
from podwire.objects.meta import Key
from podwire.objects.policy import NetworkPolicy
from podwire.policy.evaluate import Case, Flow, Party, PolicySet, judge
from podwire.policy.model import Direction, Policy
from podwire.policy.parse import parse_network_policy
from podwire.policy.world import PodView, World, make_world

NODES: Final = ("node-1", "node-2")
NAMESPACES: Final = ("x", "y")
APPS: Final = ("a", "b", "c")
TEAMS: Final = ("red", "blue")
PORT: Final = 8080
_NEWCOMERS: Final = 4
_TCP: Final = 6
_ASK_S: Final = 5.0


def make_pod(name: str, namespace: str, app: str, node: str) -> dict[str, Any]:
    port = {"containerPort": PORT}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": {"app": app}},
        "spec": {
            "nodeName": node,
            "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "c", "image": "nginx", "ports": [port]}],
        },
    }


@dataclass(frozen=True)
class State:
    """From `begun` on some node may be in it."""

    world: World
    policies: PolicySet
    begun: float


@dataclass(frozen=True)
class Newcomer:
    """A pod that came meanwhile: nodes know it once they know Pods up to `revision`."""

    view: PodView
    revision: int


@dataclass(frozen=True)
class Asked:
    """Everything the API had answered: which state that was, and how a node is asked for it."""

    state: int
    at: float
    revisions: Mapping[str, int]


@dataclass(frozen=True)
class Mark:
    """At `at` a node had reached `state`, and knew the pods up to `pods`."""

    at: float
    state: int
    pods: int


@dataclass
class Churn:
    """`states` grow; `newcomers` are pods that may be probed."""

    api: Api
    pods: dict[Key, PodView]
    rate: float
    chance: random.Random = field(default_factory=lambda: random.Random(11))
    states: list[State] = field(default_factory=list)
    newcomers: dict[Key, Newcomer] = field(default_factory=dict)
    number: int = 0
    came: int = 0

    def __post_init__(self) -> None:
        self._policies: dict[Key, tuple[Policy, int]] = {}
        self._teams = {name: {"team": "red"} for name in NAMESPACES}
        self._highest: dict[str, int] = {}
        self._fixed = frozenset(self.pods)
        self._begin(0.0)
        self.asked = self._ask()
        self._next = asyncio.Event()

    def _begin(self, at: float) -> None:
        world = make_world(self.pods.values(), self._teams)
        policies = PolicySet(policy for policy, _ in self._policies.values())
        self.states.append(State(world, policies, at))

    def _ask(self) -> Asked:
        named = {f"NetworkPolicy {key}": revision for key, (_, revision) in self._policies.items()}
        return Asked(len(self.states) - 1, time.monotonic(), {**self._highest, **named})

    # --- changes --------------------------------------------------------------------------------

    async def run(self, ends: float) -> None:
        """The next change begins when the one before was answered."""
        informer: Informer[Pod] = Informer(self.api, kinds.POD)
        informer.on_change(self._pod_told)
        following = asyncio.ensure_future(informer.run())
        began = time.monotonic()
        try:
            while time.monotonic() < ends:
                await self._change()
                self.asked, answered = self._ask(), self._next
                self._next = asyncio.Event()
                answered.set()
                self.number += 1
                await asyncio.sleep(max(0.0, began + self.number / self.rate - time.monotonic()))
        finally:
            following.cancel()

    async def newer(self, asked: Asked) -> Asked:
        """What the API has answered, once that is more."""
        while self.asked is asked:
            await self._next.wait()
        return self.asked

    async def _change(self) -> None:
        kind = self.chance.random()
        if kind < 0.77:
            await self._relabel()
        elif kind < 0.92:
            await self._change_policy()
        elif kind < 0.96:
            await self._relabel_namespace()
        else:
            await self._come_or_go()

    def _answered(self, kind: str, revision: int) -> int:
        self._highest[kind] = max(self._highest.get(kind, 0), revision)
        return revision

    async def _relabel(self) -> None:
        # Half of the pods keep their labels: of those more can be said.
        key = self.chance.choice([*self._fixed_pods()][::2])
        labels = {"app": self.chance.choice(APPS)}
        self.pods[key] = replace(self.pods[key], labels=labels)
        self._begin(time.monotonic())
        patch = {"metadata": {"labels": labels}}
        done = await self.api.patch(kinds.POD, key.name, patch, key.namespace)
        self._answered("Pod", int(done.metadata.resource_version))

    def _fixed_pods(self) -> list[Key]:
        return sorted(self._fixed)

    async def _relabel_namespace(self) -> None:
        name = self.chance.choice(NAMESPACES)
        labels = {"team": self.chance.choice(TEAMS)}
        self._teams = {**self._teams, name: labels}
        self._begin(time.monotonic())
        patch = {"metadata": {"labels": labels}}
        done = await self.api.patch(kinds.NAMESPACE, name, patch)
        self._answered("Namespace", int(done.metadata.resource_version))

    async def _change_policy(self) -> None:
        key = Key(self.chance.choice(NAMESPACES), f"np{self.chance.randrange(4)}")
        if key in self._policies:
            del self._policies[key]
            self._begin(time.monotonic())
            await self.api.delete(kinds.NETWORK_POLICY, key.name, key.namespace)
            # A deletion's own version is not told to who asked for it.
            _, version = await self.api.list(kinds.NETWORK_POLICY, key.namespace)
            self._answered("NetworkPolicy", int(version))
            return
        raw = self._draw_policy(key)
        policy = parse_network_policy(msgspec.convert(raw, NetworkPolicy))
        self._policies[key] = policy, 0
        self._begin(time.monotonic())
        done = await self.api.create(kinds.NETWORK_POLICY, raw, key.namespace)
        revision = self._answered("NetworkPolicy", int(done.metadata.resource_version))
        self._policies[key] = policy, revision

    def _draw_policy(self, key: Key) -> dict[str, Any]:
        peer: dict[str, Any] = {"podSelector": {"matchLabels": {"app": self.chance.choice(APPS)}}}
        where = self.chance.random()
        if where < 0.3:
            peer["namespaceSelector"] = {}
        elif where < 0.6:
            peer["namespaceSelector"] = {"matchLabels": {"team": self.chance.choice(TEAMS)}}
        direction = self.chance.choice(("ingress", "egress"))
        spec: dict[str, Any] = {
            "podSelector": {"matchLabels": {"app": self.chance.choice(APPS)}},
            "policyTypes": [direction.capitalize()],
            direction: [{"from" if direction == "ingress" else "to": [peer]}],
        }
        return {"metadata": {"name": key.name, "namespace": key.namespace}, "spec": spec}

    # --- pods that come and go ------------------------------------------------------------------

    async def _come_or_go(self) -> None:
        """A pod more, under a name of its own; past a few the oldest goes."""
        if len(self.newcomers) >= _NEWCOMERS:
            key = next(iter(self.newcomers))
            del self.newcomers[key]
            await self.api.delete(kinds.POD, key.name, key.namespace)
            return
        self.came += 1
        node = NODES[self.came % len(NODES)]
        namespace = self.chance.choice(NAMESPACES)
        pod = make_pod(f"new{self.came}", namespace, self.chance.choice(APPS), node)
        await self.api.create(kinds.POD, pod, namespace)

    def _pod_told(self, change: Change[Pod]) -> None:
        pod = change.new
        if pod is None or pod.key in self._fixed or pod.key in self.newcomers:
            return
        if not pod.ready or pod.deleting:
            return
        revision = self._answered("Pod", int(pod.metadata.resource_version))
        ips = (ip_address(pod.status.pod_ip),)
        view = PodView(pod.key, dict(pod.metadata.labels), ips, pod.spec.node_name)
        self.newcomers[pod.key] = Newcomer(view, revision)


class Reached:
    """What every node has said of its kernel."""

    def __init__(self, churn: Churn) -> None:
        self._churn = churn
        self._marks: dict[str, list[Mark]] = {node: [Mark(0.0, 0, 0)] for node in NODES}
        self.delays: list[float] = []
        """From the API's answer to the node's, of every time a node was asked."""

    async def follow(self, node: str) -> None:
        """Ask for the newest state, again and again until cancelled."""
        asked = self._churn.asked
        while True:
            asked = await self._churn.newer(asked)
            missing = await wait_nodes(self._churn.api, [node], "policies", asked.revisions, _ASK_S)
            now = time.monotonic()
            assert not missing, f"after {_ASK_S:g} s: {missing}"
            mark = Mark(now, asked.state, asked.revisions.get("Pod", 0))
            self._marks[node].append(mark)
            self.delays.append(now - asked.at)

    def at(self, node: str, when: float) -> Mark:
        """The last thing that was certain then."""
        marks = self._marks[node]
        return marks[bisect_right(marks, when, key=lambda mark: mark.at) - 1]


@dataclass(frozen=True)
class Seen:
    """A probe; an end that came meanwhile is a `Newcomer`."""

    ends: tuple[PodView | Newcomer, PodView | Newcomer]
    sent: float
    answered: float
    through: bool

    def may_have_said(self, churn: Churn, reached: Reached) -> Iterator[set[bool]]:
        """Of egress at the source's node, then of ingress at the destination's."""
        last = bisect_right(churn.states, self.answered, key=lambda state: state.begun)
        directions: tuple[Direction, Direction] = ("egress", "ingress")
        for direction, end in zip(directions, self.ends, strict=True):
            node = view_of(end).node
            mark = reached.at(node, self.sent)
            found: set[bool] = set()
            for state in churn.states[mark.state : last]:
                for parties in self._parties(state, node, mark):
                    flow = Flow(*parties, _TCP, PORT)
                    found.add(judge(Case(direction, flow, state.world), state.policies).allowed)
                if len(found) == 2:
                    break
            yield found

    def _parties(self, state: State, node: str, mark: Mark) -> Iterator[tuple[Party, Party]]:
        """A newcomer is known to its own node before its first packet; to others it is a stranger
        at first."""
        known = [self._party(end, state) for end in self.ends]
        yield known[0], known[1]
        for i, end in enumerate(self.ends):
            if isinstance(end, Newcomer) and end.view.node != node and mark.pods < end.revision:
                parties = list(known)
                parties[i] = Party(known[i].ip)
                yield parties[0], parties[1]

    @staticmethod
    def _party(end: PodView | Newcomer, state: State) -> Party:
        view = end.view if isinstance(end, Newcomer) else state.world.pods[end.key]
        return Party(view.ips[0], view)


def view_of(end: PodView | Newcomer) -> PodView:
    return end.view if isinstance(end, Newcomer) else end


def rank(delays: Collection[float], share: float) -> float:
    ordered = sorted(delays)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]
