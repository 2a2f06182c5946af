"""The field's probe table over a whole lab: 9 pods, 81 pairs, 2 ports, TCP, UDP and SCTP.

    python benchmarks/policy_live.py [--rounds 15]

486 probes at once from three nodes, everything allowed and nearly everything denied; and a step of
a conformance case: a policy is created, waited for on every node, and the table is asked. A denied
probe costs its timeout, 200 ms; all are in flight together. Cyclonus sleeps 5 s before it asks.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from lib import percentile, print_result
from podwire.client import Api
from podwire.explain.policies import wait_policies
from podwire.explain.probes import wire
from podwire.lab import Lab
from podwire.objects import kinds
from podwire.objects.core import Pod

_TIMEOUT_S = 0.2
_PORTS = (80, 81)
_PROTOCOLS: tuple[wire.Protocol, ...] = ("tcp", "udp", "sctp")


def _manifests() -> str:
    text = ""
    for i, (namespace, name) in enumerate(itertools.product("xyz", "abc")):
        ports = ", ".join(
            f"{{containerPort: {port}, protocol: {protocol}}}"
            for port in _PORTS
            for protocol in ("TCP", "UDP")
        )
        if name == "a":
            text += f"apiVersion: v1\nkind: Namespace\nmetadata: {{name: {namespace}}}\n---\n"
        text += (
            f"apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {namespace}, "
            f"labels: {{pod: {name}}}}}\nspec:\n  nodeName: node-{i % 3 + 1}\n"
            f"  containers: [{{name: c, image: nginx, ports: [{ports}]}}]\n---\n"
        )
    return text


def _policy(namespace: str, name: str) -> dict[str, Any]:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"podSelector": {}, "policyTypes": ["Ingress"]},
    }


async def table(api: Api, pods: list[Pod]) -> tuple[float, int]:
    """(seconds, how many got through) of all 486."""
    by_node: dict[str, list[wire.Probe]] = {}
    for source, target in itertools.product(pods, pods):
        for port, protocol in itertools.product(_PORTS, _PROTOCOLS):
            probe = wire.Probe(
                source=str(source.key),
                address=target.status.pod_ip,
                port=port,
                protocol=protocol,
                timeout_s=_TIMEOUT_S,
            )
            by_node.setdefault(source.spec.node_name, []).append(probe)
    began = time.perf_counter()
    answers = await asyncio.gather(*(_ask(api, n, probes) for n, probes in by_node.items()))
    took = time.perf_counter() - began
    return took, sum(r.verdict in ("allowed", "refused") for some in answers for r in some)


async def _ask(api: Api, node: str, probes: list[wire.Probe]) -> tuple[wire.ProbeResult, ...]:
    body = wire.encode(wire.ProbeRequest(probes=tuple(probes)))
    answer = await api.request("POST", f"/api/v1/nodes/{node}/proxy/probe", body=body)
    return tuple(wire.parse_response(answer).results)


async def step(pods: list[Pod], number: int, api: Api) -> float:
    """A policy more, in force everywhere, and the table."""
    began = time.perf_counter()
    namespace = "xyz"[number % 3]
    await api.create(kinds.NETWORK_POLICY, _policy(namespace, f"deny-{number}"), namespace)
    missing = await wait_policies(api, timeout_s=10)
    assert not missing, missing
    await table(api, pods)
    return time.perf_counter() - began


def _times(values: list[float]) -> dict[str, float]:
    return {
        "p50_s": round(percentile(values, 0.5), 3),
        "p99_s": round(percentile(values, 0.99), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    with Lab("bench-policy", nodes=3, dns="none") as lab:
        lab.apply_text(_manifests())
        lab.wait_ready(30)
        pods = lab.pods()
        opened = [lab.call(lambda api: table(api, pods)) for _ in range(args.rounds)]
        steps = [lab.call(partial(step, pods, i)) for i in range(args.rounds)]
        denied = [lab.call(lambda api: table(api, pods)) for _ in range(args.rounds)]
        print_result(
            "policy_live",
            probes=len(pods) ** 2 * len(_PORTS) * len(_PROTOCOLS),
            timeout_of_a_denied_probe_s=_TIMEOUT_S,
            all_allowed=_times([took for took, _ in opened]) | {"through": opened[-1][1]},
            nearly_all_denied=_times([took for took, _ in denied]) | {"through": denied[-1][1]},
            step_with_a_policy=_times(steps),
            targets={"table_s": 1.0},
        )


if __name__ == "__main__":
    main()
