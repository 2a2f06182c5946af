"""One node's policy agent in a big cluster: from the start, from a write, what it weighs.

    python benchmarks/policy_agent.py [--pods 10000] [--policies 1000] [--changes 300]

A real API server holds pods, namespaces and policies, a real `PolicyAgent` in a process and network
namespace of its own follows it; this process writes and watches both the API and that namespace's
nftables. 110 of the pods are on the agent's node.

    start           of the process until everything is in force
    label change    of any pod of the cluster that policies of this node speak of
    policy create   one that selects a pod of the node
                    both from the watch event, as any client gets it, and from the answer to the
                    write, to the kernel's commit
    churn           100 label changes a second anywhere in the cluster: processor time of the agent
    memory          PSS of the agent
    restart         SIGKILL and start, until everything is in force again
"""

from __future__ import annotations

import argparse
import asyncio
import random
import signal
import sys
from collections.abc import Awaitable, Iterator
from functools import partial
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import nodeagent
from lib import cpu_seconds, percentile, print_result, pss_bytes
from podwire.agents.config import PolicyConfig
from podwire.agents.policy import PolicyAgent
from podwire.client import Api, Informer
from podwire.objects import kinds
from podwire.objects.core import Node
from policy_sizes import APPS, local_pods, pod_address, raw_one_more, raw_pod, raw_policy

_NAMESPACES = 100
_SERVICE_CIDR = IPv4Network("10.96.0.0/16")
_CHURN_PER_S = 100
_TARGETS = {"start_s": 2.0, "label_change_p99_ms": 20, "policy_create_p99_ms": 30}


async def serve_agent(folder: Path) -> None:
    """The policy part of a node agent."""
    async with nodeagent.client(folder) as api:
        nodes: Informer[Node] = Informer(api, kinds.NODE)
        agent = PolicyAgent(api, nodeagent.NODE, PolicyConfig(), nodes)
        async with asyncio.TaskGroup() as group:
            group.create_task(nodes.run())
            group.create_task(agent.run())
            await agent.synced.wait()
            nodeagent.tell_synced(folder)


# --- the client -----------------------------------------------------------------------------------


async def fill(api: Api, args: argparse.Namespace) -> None:
    """Pods as their nodes report them: running, with an address."""
    here = set(local_pods(args.pods))

    async def namespace(i: int) -> None:
        await api.create(kinds.NAMESPACE, {"metadata": {"name": f"ns{i}"}})

    async def pod(i: int) -> None:
        raw = raw_pod(i, _NAMESPACES, i in here)
        name, home = raw["metadata"]["name"], raw["metadata"]["namespace"]
        await api.create(kinds.POD, raw, home)
        address = pod_address(i)
        status = {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]}
        await api.patch(kinds.POD, name, {"status": status}, home, subresource="status")

    async def policy(i: int) -> None:
        raw = raw_policy(i, _NAMESPACES)
        await api.create(kinds.NETWORK_POLICY, raw, raw["metadata"]["namespace"])

    await nodeagent.create_node(api)
    await nodeagent.all_of(namespace, range(_NAMESPACES))
    await nodeagent.all_of(pod, range(args.pods))
    await nodeagent.all_of(policy, range(args.policies))


def relabel(api: Api, i: int, app: str) -> Awaitable[Any]:
    change = {"metadata": {"labels": {"app": app}}}
    return api.patch(kinds.POD, f"p{i}", change, f"ns{i % _NAMESPACES}")


def spoken_of(pods: int) -> Iterator[int]:
    """Pods of the namespaces whose policies select pods of the node, in random order, for ever."""
    homes = {i % _NAMESPACES for i in local_pods(pods)}
    chance = random.Random(7)
    while True:
        i = chance.randrange(pods)
        if i % _NAMESPACES in homes:
            yield i


async def relabels(api: Api, pin: Path, args: argparse.Namespace) -> dict[str, float]:
    """Each pod gets another app than it had."""
    apps = [i // _NAMESPACES % APPS for i in range(args.pods)]
    commits = nodeagent.Commits(pin)
    told = _Told()
    chosen = spoken_of(args.pods)
    async with nodeagent.watching(api, kinds.POD) as arrived:
        for _ in range(args.changes):
            i = next(chosen)
            apps[i] = (apps[i] + 1) % APPS
            answered, done = await commits.after(relabel(api, i, f"a{apps[i]}"))
            told.add(arrived[f"p{i}"], answered, done)
    commits.close()
    return told.as_json()


async def creations(api: Api, pin: Path, args: argparse.Namespace) -> dict[str, float]:
    commits = nodeagent.Commits(pin)
    told = _Told()
    async with nodeagent.watching(api, kinds.NETWORK_POLICY) as arrived:
        for i in range(args.changes):
            raw = raw_one_more(i, args.pods, _NAMESPACES)
            home = raw["metadata"]["namespace"]
            answered, done = await commits.after(api.create(kinds.NETWORK_POLICY, raw, home))
            told.add(arrived[raw["metadata"]["name"]], answered, done)
    commits.close()
    return told.as_json()


class _Told:
    def __init__(self) -> None:
        self._from_event: list[float] = []
        self._from_answer: list[float] = []

    def add(self, event: float, answered: float, done: float) -> None:
        self._from_event.append((done - event) * 1000)
        self._from_answer.append((done - answered) * 1000)

    def as_json(self) -> dict[str, float]:
        return {
            "watch_event_to_kernel_p50_ms": round(percentile(self._from_event, 0.5), 3),
            "watch_event_to_kernel_p99_ms": round(percentile(self._from_event, 0.99), 3),
            "answer_to_kernel_p50_ms": round(percentile(self._from_answer, 0.5), 3),
            "answer_to_kernel_p99_ms": round(percentile(self._from_answer, 0.99), 3),
            "changes": len(self._from_event),
        }


async def churn(api: Api, pid: int, args: argparse.Namespace) -> dict[str, float]:
    loop = asyncio.get_running_loop()
    chance = random.Random(11)
    began, before = loop.time(), cpu_seconds([pid])
    count = args.churn * _CHURN_PER_S
    for turn in range(count):
        await relabel(api, chance.randrange(args.pods), f"a{chance.randrange(APPS)}")
        await asyncio.sleep(max(0.0, began + (turn + 1) / _CHURN_PER_S - loop.time()))
    took = loop.time() - began
    return {
        "changes_per_s": round(count / took, 1),
        "agent_percent_of_a_core": round((cpu_seconds([pid]) - before) / took * 100, 1),
    }


async def measure(args: argparse.Namespace, folder: Path, pin: Path) -> dict[str, Any]:
    figures: dict[str, Any] = {"pods": args.pods, "policies": args.policies}
    with nodeagent.process("api", folder):
        async with nodeagent.client(folder) as api:
            await fill(api, args)
            with nodeagent.process("agent", folder, pin) as agent:
                figures["start_s"] = round(await nodeagent.wait_synced(folder, 60), 2)
                await asyncio.sleep(1.0)
                figures["policy_create"] = await creations(api, pin, args)
                figures["label_change"] = await relabels(api, pin, args)
                figures["churn"] = await churn(api, agent.pid, args)
                figures["agent_pss_mib"] = round(pss_bytes([agent.pid]) / 2**20, 1)
                agent.send_signal(signal.SIGKILL)
                agent.wait()
            nodeagent.forget_synced(folder)
            with nodeagent.process("agent", folder, pin):
                figures["restart_s"] = round(await nodeagent.wait_synced(folder, 60), 2)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pods", type=int, default=10_000)
    parser.add_argument("--policies", type=int, default=1_000)
    parser.add_argument("--changes", type=int, default=300)
    parser.add_argument("--churn", type=int, default=10, help="seconds")
    nodeagent.add_role(parser)
    args = parser.parse_args()
    if args.serve:
        nodeagent.serve(args.serve[0], Path(args.serve[1]), _SERVICE_CIDR, serve_agent)
    print_result("policy_agent", **nodeagent.run(partial(measure, args)), targets=_TARGETS)


if __name__ == "__main__":
    main()
