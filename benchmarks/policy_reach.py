"""Static reach, all pairs and all ports: groups against asking every pair.

    benchmarks/policy_reach.py [--workloads 1000] [--policies 500] [--namespaces 20] [--sample 40]

Both answer the same question for the same random world: which ports are open from every pod to
every other. The comparator is the straightforward way: per pair, each policy is matched against
both ends and each rule's ports are joined. Selectors are matched once per policy and pod, before.
It is timed on `--sample` sources against all destinations and scaled up, since whole it takes
minutes to hours; its answers are compared with ours. Ours computes every row of groups; lines are
not printed. Times are of the processor, so that other programs do not count.
"""

from __future__ import annotations

import argparse
import random
import time
import tracemalloc
from ipaddress import ip_network

from lib import print_result
from podwire.objects.meta import Key
from podwire.policy import intervals, ports
from podwire.policy.evaluate import PolicySet
from podwire.policy.intervals import Intervals
from podwire.policy.model import (
    Direction,
    NamedPort,
    NetworkPeer,
    Peer,
    PodsPeer,
    Policy,
    PolicyRef,
    PortMatch,
    PortRange,
    Rule,
    Tier,
)
from podwire.policy.reach import Reach
from podwire.policy.selector import EVERYTHING, Expression, Selector
from podwire.policy.world import ContainerPort, PodView, World, make_world


def make(
    workloads: int, policies: int, namespaces: int, replicas: int, seed: int
) -> tuple[World, list[Policy]]:
    """Applications with a tier and a version label; per namespace a default deny, then policies
    that open one application to others, to another namespace, or to addresses."""
    dice = random.Random(seed)
    pods = [
        PodView(
            Key(f"ns{w % namespaces}", f"app{w}-{replica}"),
            {
                "app": f"app{w}",
                "tier": dice.choice(["web", "api", "db"]),
                "pod-template-hash": f"{dice.getrandbits(32):x}",
            },
            ports=(ContainerPort("http", 6, 8000 + w % 7),),
        )
        for w in range(workloads)
        for replica in range(replicas)
    ]
    labels = {f"ns{n}": {"team": f"team{n % 5}"} for n in range(namespaces)}
    made = [_policy(dice, i, workloads, namespaces) for i in range(policies)]
    return make_world(pods, labels), made


def _policy(dice: random.Random, number: int, workloads: int, namespaces: int) -> Policy:
    namespace = f"ns{number % namespaces}"
    ref = PolicyRef("NetworkPolicy", namespace, f"p{number}")
    if number < namespaces:
        both: frozenset[Direction] = frozenset({"ingress", "egress"})
        return Policy(ref, Tier.NETWORK_POLICY, PodsPeer(EVERYTHING, namespace), isolates=both)
    subject = PodsPeer(_app(dice, workloads, namespaces, number % namespaces), namespace)
    rules: dict[Direction, list[Rule]] = {"ingress": [], "egress": []}
    for direction, into in rules.items():
        for index in range(dice.randint(1, 3)):
            chosen = (_port(dice), _port(dice))
            peers = tuple(_peer(dice, workloads, namespaces, namespace) for _ in range(2))
            into.append(Rule(ref, direction, index, "Accept", peers, chosen))
    return Policy(
        ref,
        Tier.NETWORK_POLICY,
        subject,
        tuple(rules["ingress"]),
        tuple(rules["egress"]),
        frozenset({"ingress", "egress"}),
    )


def _app(dice: random.Random, workloads: int, namespaces: int, namespace: int) -> Selector:
    number = namespace + namespaces * dice.randrange(max(1, workloads // namespaces))
    return Selector((Expression("app", "In", (f"app{number}",)),))


def _port(dice: random.Random) -> PortMatch:
    number = dice.randint(1, 30000)
    own = 8000 + dice.randrange(7)
    choices: list[PortMatch] = [
        PortRange(6, own, own),
        NamedPort("http", 6),
        PortRange(6, number, number + 9),
    ]
    return dice.choice(choices)


def _peer(dice: random.Random, workloads: int, namespaces: int, namespace: str) -> Peer:
    tier = Selector((Expression("tier", "In", (dice.choice(["web", "api", "db"]),)),))
    team = Selector((Expression("team", "In", (f"team{dice.randrange(5)}",)),))
    choices: list[Peer] = [
        PodsPeer(tier, namespace),
        PodsPeer(tier, namespaces=team),
        PodsPeer(_app(dice, workloads, namespaces, int(namespace[2:])), namespace),
        NetworkPeer(ip_network(f"10.{dice.randrange(256)}.0.0/16")),
    ]
    return dice.choice(choices)


class Pairwise:
    """The straightforward way."""

    def __init__(self, world: World, policies: list[Policy]) -> None:
        self._world = world
        self._policies = policies
        # Which pods each policy selects, and each rule's peers: by identity, which is quick.
        self._subjects: dict[int, set[Key]] = {}
        self._peers: dict[int, set[Key] | None] = {}

    def match_all(self) -> None:
        pods = list(self._world.pods.values())
        for policy in self._policies:
            subject = policy.subject
            self._subjects[id(policy)] = {p.key for p in pods if self._match(subject, p)}
            for rule in (*policy.ingress, *policy.egress):
                self._peers[id(rule)] = self._met(rule, pods)

    def _met(self, rule: Rule, pods: list[PodView]) -> set[Key] | None:
        """None: everybody."""
        if rule.peers is None:
            return None
        chosen = [peer for peer in rule.peers if isinstance(peer, PodsPeer)]
        return {pod.key for pod in pods if any(self._match(peer, pod) for peer in chosen)}

    def allowed(self, source: PodView, destination: PodView) -> Intervals:
        out = self._direction("egress", source, destination, destination)
        into = self._direction("ingress", destination, source, destination)
        return intervals.intersect(out, into)

    def _direction(
        self, direction: Direction, subject: PodView, peer: PodView, destination: PodView
    ) -> Intervals:
        chosen = [
            policy
            for policy in self._policies
            if direction in policy.isolates and subject.key in self._subjects[id(policy)]
        ]
        if not chosen:
            return ports.ALL
        open_: list[Intervals] = []
        for policy in chosen:
            for rule in policy.rules(direction):
                met = self._peers[id(rule)]
                if met is None or peer.key in met:
                    open_.append(self._ports(rule, destination))
        return intervals.union(*open_)

    def _match(self, peer: PodsPeer, pod: PodView) -> bool:
        if peer.namespaces is None:
            return peer.namespace == pod.key.namespace and peer.pods.matches(pod.labels)
        labels = self._world.namespaces[pod.key.namespace]
        return peer.namespaces.matches(labels) and peer.pods.matches(pod.labels)

    def _ports(self, rule: Rule, destination: PodView) -> Intervals:
        if rule.ports is None:
            return ports.ALL
        ranges: list[PortRange] = []
        for port in rule.ports:
            ranges += destination.resolve(port) if isinstance(port, NamedPort) else [port]
        return ports.of_ranges(ranges)


def ours(world: World, policies: list[Policy]) -> tuple[Reach, float]:
    started = time.process_time()
    reach = Reach(world, PolicySet(policies))
    for group in range(len(reach.groups)):
        reach.row(group)
    return reach, time.process_time() - started


def comparator(world: World, policies: list[Policy], reach: Reach, sample: int) -> float:
    """Seconds for all pairs, from some sources; every answer must be ours."""
    pods = list(world.pods.values())
    chosen = random.Random(1).sample(pods, min(sample, len(pods)))
    pairwise = Pairwise(world, policies)
    started = time.process_time()
    pairwise.match_all()
    once = time.process_time() - started
    started = time.process_time()
    answers = [[pairwise.allowed(source, destination) for destination in pods] for source in chosen]
    took = time.process_time() - started
    for source, row in zip(chosen, answers, strict=True):
        for destination, found in zip(pods, row, strict=True):
            if source is not destination and reach.between(source.key, destination.key) != found:
                raise SystemExit(f"{source.key} -> {destination.key}: the two ways disagree")
    return once + took * len(pods) / len(chosen)


def peak_mib(world: World, policies: list[Policy]) -> float:
    tracemalloc.start()
    ours(world, policies)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return round(peak / 2**20, 1)


def measure(
    workloads: int, policies: int, namespaces: int, replicas: int, sample: int
) -> dict[str, object]:
    world, made = make(workloads, policies, namespaces, replicas, seed=7)
    runs = [ours(world, made) for _ in range(3)]
    reach, best = runs[0][0], min(took for _, took in runs)
    theirs = comparator(world, made, reach, sample)
    return {
        "pods": len(world.pods),
        "workloads": workloads,
        "policies": policies,
        "namespaces": namespaces,
        "groups": len(reach.groups),
        "ours_s": round(best, 3),
        "comparator_s": round(theirs, 1),
        "comparator_sources_measured": sample,
        "ratio": round(theirs / best, 1),
        "ours_peak_mib": peak_mib(world, made),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workloads", type=int, default=1000)
    parser.add_argument("--policies", type=int, default=500)
    parser.add_argument("--namespaces", type=int, default=20)
    parser.add_argument("--sample", type=int, default=40)
    parser.add_argument("--small-only", action="store_true", help="Leave out 10,000 pods.")
    options = parser.parse_args()
    small = measure(options.workloads, options.policies, options.namespaces, 1, options.sample)
    figures = {"all_pairs": small}
    if not options.small_only:
        figures["all_pairs_large"] = measure(1000, 1000, 100, 10, max(2, options.sample // 10))
    print_result("policy_reach", **figures)


if __name__ == "__main__":
    main()
