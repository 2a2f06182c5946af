"""Policies in one node's kernel: cold, after a change, and what they cost a new connection.

    python benchmarks/policy_enforcement.py [--rounds 15] [--connects 1000] [--changes 300]

10,000 pods, 1,000 policies, 100 namespaces, 110 pods on the node; ours as the agent does it
(`NodePolicies`, `PolicyBackend`), the comparator a chain per policy and a set per selector
(`policy_layout.py`), by libnftables in process, without the time to find out what changed. Each in
network namespaces of its own, in the same run.

    cold            from all objects to the kernel
    label change    one pod's labels, anywhere in the cluster, to the kernel
    policy create   one policy more that selects a pod of the node, to the kernel
    connect         connect() to a pod that 1 to 1,000 policies select, the last of which lets the
                    client in; ratio to one policy, A/A beside it
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from lib import paired, percentile, print_result
from nodeagent import NODE
from podpair import CLIENT, PORT, SERVER, Sink, World, build, connect_us
from podwire.agents.policykernel import PolicyBackend
from podwire.kernel import libc, userns
from podwire.kernel.nft import Nft
from podwire.policy.evaluate import selects
from podwire.policy.model import PodsPeer, Policy
from podwire.policy.nodepolicies import NodePolicies
from podwire.policy.world import PodView
from policy_layout import TABLE, Layout
from policy_sizes import APPS, big_policies, big_world, one_more, stacked

_PODS, _POLICIES, _NAMESPACES = 10_000, 1_000, 100
_COUNTS = (1, 10, 100, 1000)


class Ours:
    def __init__(self) -> None:
        began = time.perf_counter()
        self.state = NodePolicies(NODE, (4,))
        self.backend = PolicyBackend(self.state)
        self.state.set_world(big_world(_PODS, _NAMESPACES), big_policies(_POLICIES, _NAMESPACES))
        self.backend.commit()
        self.cold_s = time.perf_counter() - began

    def relabel(self, pod: PodView) -> float:
        began = time.perf_counter()
        self.state.set_pod(pod)
        self.backend.commit()
        return time.perf_counter() - began

    def create(self, policy: Policy) -> float:
        began = time.perf_counter()
        self.state.set_policy(policy)
        self.backend.commit()
        return time.perf_counter() - began


class Field:
    """Only text and its way into the kernel are timed."""

    def __init__(self) -> None:
        self.nft = Nft()
        world = big_world(_PODS, _NAMESPACES)
        self.layout = Layout(world, big_policies(_POLICIES, _NAMESPACES), NODE)
        text = self.layout.text()
        began = time.perf_counter()
        self.nft.apply(text)
        self.cold_s = time.perf_counter() - began

    def relabel(self, pod: PodView) -> float:
        layout = self.layout
        before = layout.world.pods[pod.key]
        lines = []
        for peer, name in layout.sets.items():
            if isinstance(peer, PodsPeer):
                was, now = (selects(peer, p, layout.world) for p in (before, pod))
                if was != now:
                    verb = "add" if now else "delete"
                    lines.append(f"{verb} element {TABLE} {name} {{ {pod.ips[0]} }}")
        layout.world = replace(layout.world, pods={**layout.world.pods, pod.key: pod})
        began = time.perf_counter()
        if lines:
            self.nft.apply("\n".join(lines) + "\n")
        return time.perf_counter() - began

    def create(self, policy: Policy) -> float:
        layout = self.layout
        chosen = [p for p in layout.local if selects(policy.subject, p, layout.world)]
        new = [q for r in policy.ingress for q in r.peers or () if q not in layout.sets]
        layout._name_sets(policy)
        lines = [line for peer in new for line in layout.set_lines(peer)]
        lines += layout.policy_lines(policy)
        for pod in chosen:
            layout.selected[pod.key].append(policy)
            # The pod's chain ends in a drop, so it is written anew.
            chain = f"{TABLE} pod-{pod.key.namespace}-{pod.key.name}"
            lines += [f"add chain {chain}", f"flush chain {chain}"]
            lines += [x for x in layout.pod_lines(pod) if not x.startswith(f"add chain {chain}")]
        began = time.perf_counter()
        self.nft.apply("\n".join(lines) + "\n")
        return time.perf_counter() - began


def relabelled(count: int) -> list[PodView]:
    """The same random changes for both."""
    chance = random.Random(7)
    pods = list(big_world(_PODS, _NAMESPACES).pods.values())
    chosen = [chance.choice(pods) for _ in range(count)]
    return [replace(p, labels={**p.labels, "app": f"a{chance.randrange(APPS)}"}) for p in chosen]


def times(values: list[float]) -> dict[str, float]:
    return {
        "p50_ms": round(percentile(values, 0.5) * 1e3, 3),
        "p99_ms": round(percentile(values, 0.99) * 1e3, 3),
        "changes": len(values),
    }


def changes(make: type[Ours] | type[Field], count: int) -> dict[str, Any]:
    side = make()
    labels = [side.relabel(pod) for pod in relabelled(count)]
    created = [side.create(one_more(i, _PODS, _NAMESPACES)) for i in range(count)]
    return {
        "cold_s": round(side.cold_s, 3),
        "label_change": times(labels),
        "policy_create": times(created),
    }


# --- packets --------------------------------------------------------------------------------------


def program_ours(count: int) -> None:
    world, policies = stacked(count, CLIENT, SERVER, PORT)
    state = NodePolicies(NODE, (4,), ("client", "server"))
    state.set_world(world, policies)
    backend = PolicyBackend(state)
    backend.commit()
    backend.close()


def program_field(count: int) -> None:
    world, policies = stacked(count, CLIENT, SERVER, PORT)
    nft = Nft()
    nft.apply(Layout(world, policies, NODE).text())
    nft.close()


def connects(folder: Path, name: str, program: Callable[[int], None]) -> dict[str, World]:
    worlds = {
        str(count): build(folder, f"{name}-{count}", partial(program, count)) for count in _COUNTS
    }
    worlds["1 again"] = build(folder, f"{name}-again", partial(program, 1))
    return worlds


def against_one(worlds: dict[str, World], rounds: int, count: int) -> dict[str, Any]:
    def measure(world: World) -> Callable[[], float]:
        return lambda: connect_us(world, (SERVER, PORT), count)

    return {
        name: paired(measure(world), measure(worlds["1"]), rounds).as_json()
        for name, world in worlds.items()
        if name != "1"
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--connects", type=int, default=1000)
    parser.add_argument("--changes", type=int, default=300)
    args = parser.parse_args()
    userns.unshare_as_root(libc.CLONE_NEWNET | libc.CLONE_NEWNS)
    libc.mount("podwire", "/mnt", "tmpfs", data="mode=0700")
    ours = changes(Ours, args.changes)
    userns.unshare_as_root(libc.CLONE_NEWNET)
    field = changes(Field, args.changes)
    folder = Path("/mnt")
    mine = connects(folder, "ours", program_ours)
    theirs = connects(folder, "field", program_field)
    Sink([*mine.values(), *theirs.values()]).start()
    print_result(
        "policy_enforcement",
        pods=_PODS,
        policies=_POLICIES,
        ours=ours,
        chain_per_policy=field,
        ratio={
            "cold": round(ours["cold_s"] / field["cold_s"], 3),
            "label_change_p99": _ratio(ours, field, "label_change"),
            "policy_create_p99": _ratio(ours, field, "policy_create"),
        },
        connect_us_against_one_policy=against_one(mine, args.rounds, args.connects),
        connect_us_chain_per_policy=against_one(theirs, args.rounds, args.connects),
        targets={
            "cold_s": 2.0,
            "label_change_p99_ms": 20,
            "policy_create_p99_ms": 30,
            "connect_ratio": "0.9 to 1.1",
        },
    )


def _ratio(ours: dict[str, Any], field: dict[str, Any], what: str) -> float:
    mine, theirs = float(ours[what]["p99_ms"]), float(field[what]["p99_ms"])
    return round(mine / max(theirs, 1e-9), 3)


if __name__ == "__main__":
    main()
