"""A thousand stand-in pods on four nodes, from apply to all Ready; and their wiring alone.

    python benchmarks/pods.py [--rounds 3] [--sizes 100,250,500,1000] [--only rollout|wiring]

Every roll-out is in a lab of its own, fresh and warm. CPU seconds per component (agents and
stand-ins summed) are printed beside the wall time: on a shared machine they are the steadier
figure. `wiring` compares `KernelPodNetwork.add` (leases, pins, idempotence) with a bare loop that
only makes namespace, veth, address and route with the same rtnetlink primitives.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from labs import (
    components,
    cpu_by_component,
    deployment,
    lab_pss_mib,
    roll_out,
    run_directory,
    running_lab,
    spent,
)
from lib import kernel_memory_bytes, paired, percentile, print_result
from podwire.cni.attach import KernelPodNetwork, NodeLinks
from podwire.cni.config import NetworkConfig
from podwire.cni.ipam import LeaseStore
from podwire.cni.podnetwork import Attachment
from podwire.kernel import libc, netns, userns
from podwire.kernel.requests import AddLink, Address, Replace, Request, Route, SetLink, Veth
from podwire.kernel.rtnl import Rtnl, loopback_up
from podwire.objects.documents import Document

_NODES = 4
_TARGET_S, _TARGET_PSS_MIB, _TARGET_WIRING = 6.0, 400, 1.5
# "Flat": no size costs this much more per pod than the cheapest one.
_FLAT = 1.25


def measure(documents: list[Document], pods: int) -> dict[str, Any]:
    """One roll-out in a fresh lab."""
    with running_lab("pods", _NODES) as lab:
        pids = components(lab)
        kernel, before = kernel_memory_bytes(), cpu_by_component(pids)
        found = lab.call(lambda api: roll_out(api, documents, pods))
        cpu = spent(before, cpu_by_component(pids))
        wall = found.ready_s[-1]
        return {
            "ready_s": round(wall, 3),
            "ms_per_pod": round(wall / pods * 1000, 3),
            "cpu_ms_per_pod": round(cpu["total"] / pods * 1000, 3),
            "last_created_s": round(found.created_s[-1], 3),
            "quarters_s": [round(percentile(found.ready_s, q), 2) for q in (0.25, 0.5, 0.75)],
            "cpu_s": cpu,
            "pss_mib": lab_pss_mib(lab),
            "kernel_kib_per_pod": round((kernel_memory_bytes() - kernel) / pods / 1024, 1),
        }


def median_of(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The run of median wall time, whole, with the others' wall times."""
    ordered = sorted(runs, key=lambda run: float(run["ready_s"]))
    return ordered[len(ordered) // 2] | {"all_ready_s": [run["ready_s"] for run in runs]}


def roll_outs(sizes: list[int], rounds: int) -> dict[str, Any]:
    runs: dict[str, list[dict[str, Any]]] = {}
    with run_directory():
        for _ in range(rounds):
            for size in sizes:
                result = measure([deployment("pods", size)], size)
                runs.setdefault(f"1x{size}", []).append(result)
            many = [deployment(f"pods-{i}", max(sizes) // 10) for i in range(10)]
            result = measure(many, max(sizes))
            runs.setdefault(f"10x{max(sizes) // 10}", []).append(result)
    figures = {name: median_of(found) for name, found in runs.items()}
    largest = figures[f"1x{max(sizes)}"]
    per_pod = [figures[f"1x{size}"]["cpu_ms_per_pod"] for size in sizes]
    return {
        "figures": figures,
        "targets": {
            f"ready_s <= {_TARGET_S}": largest["ready_s"] <= _TARGET_S,
            f"pss_mib < {_TARGET_PSS_MIB}": largest["pss_mib"] < _TARGET_PSS_MIB,
            f"cpu per pod at {sizes} within {_FLAT}": per_pod[-1] <= min(per_pod) * _FLAT,
        },
    }


# --- wiring alone -------------------------------------------------------------------------------


def isolate() -> str:
    """Fresh namespaces; returns a folder on a tmpfs nobody else sees."""
    userns.unshare_as_root(libc.CLONE_NEWNET | libc.CLONE_NEWNS)
    folder = tempfile.gettempdir()
    libc.mount("none", "/", flags=libc.MS_REC | libc.MS_PRIVATE)
    libc.mount("tmpfs", folder, "tmpfs")
    return folder


def ours(pods: int) -> list[float]:
    """Seconds per `KernelPodNetwork.add`."""
    folder = Path(isolate())
    address = IPv4Address("172.30.0.2")
    with Rtnl() as node:
        loopback = node.index("lo")
        node.apply([loopback_up(), Replace(Address(loopback, IPv4Interface(address)))])
    leases = LeaseStore(folder / "ipam.db", "boot")
    network = KernelPodNetwork(
        NetworkConfig(cluster_cidrs=(IPv4Network("10.244.0.0/16"),)), leases, folder
    )
    links = NodeLinks(1500, (address,))
    network.configure((IPv4Network("10.244.0.0/20"),), links)
    spent_s = []
    for number in range(pods):
        name = f"{number:064x}"
        attachment = Attachment(name, "default", f"pod-{number}", name, folder / name)
        start = time.perf_counter()
        network.add(attachment)
        spent_s.append(time.perf_counter() - start)
    return spent_s


def bare(pods: int) -> list[float]:
    """Seconds per namespace, veth, address and route, and nothing else."""
    folder = Path(isolate())
    node_ns = netns.current()
    spent_s = []
    with Rtnl() as node:
        node.apply([loopback_up()])
        for number in range(1, pods + 1):
            start = time.perf_counter()
            bare_pod(node, node_ns, folder, number)
            spent_s.append(time.perf_counter() - start)
    return spent_s


def bare_pod(node: Rtnl, node_ns: int, folder: Path, number: int) -> None:
    address, name, index = IPv4Address("10.244.0.0") + number, f"pod{number}", 1000 + number
    inside: list[Request] = [
        loopback_up(),
        AddLink(name="eth0", index=2, up=True, kind=Veth(peer=name, netns=node_ns, index=index)),
        Replace(Address(2, IPv4Interface((address, 32)))),
        Replace(Route(destination=IPv4Network("0.0.0.0/0"), device=2)),
    ]
    with netns.creating(folder / name) as fd, Rtnl() as pod:
        pod.apply(inside)
    node.apply(
        [
            SetLink(device=index, up=True),
            Replace(Route(destination=IPv4Network(address), device=index)),
        ]
    )
    os.close(fd)


CONTESTANTS = {"ours": ours, "bare": bare}


def in_child(contestant: str, pods: int) -> float:
    """Median ms per pod in a process of its own, because its namespaces cannot be left."""
    done = subprocess.run(
        [sys.executable, __file__, "--contestant", contestant, "--pods", str(pods)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{contestant}: {done.stderr}")
    found: list[float] = json.loads(done.stdout)
    return statistics.fmean(found) * 1000


def wiring(pods: int, rounds: int) -> dict[str, Any]:
    result = paired(lambda: in_child("ours", pods), lambda: in_child("bare", pods), rounds)
    return {
        "pods": pods,
        "unit": "ms per pod",
        **result.as_json(),
        "targets": {f"ratio <= {_TARGET_WIRING}": result.ratio <= _TARGET_WIRING},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sizes", default="100,250,500,1000")
    parser.add_argument("--only", choices=("rollout", "wiring"))
    parser.add_argument("--pods", type=int, default=300, help="of the wiring alone")
    parser.add_argument("--contestant", choices=sorted(CONTESTANTS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.contestant:
        print(json.dumps(CONTESTANTS[args.contestant](args.pods)))
        return
    figures: dict[str, Any] = {}
    if args.only != "wiring":
        figures["rollout"] = roll_outs([int(s) for s in args.sizes.split(",")], args.rounds)
    if args.only != "rollout":
        figures["wiring"] = wiring(args.pods, max(args.rounds, 5))
    print_result("pods", **figures)


if __name__ == "__main__":
    main()
