"""Cold programming of N Services with M endpoints: from a snapshot to the kernel, on one node.

    python benchmarks/services_cold.py [--sizes 1000x10,5000x20,10000x10] [--bound 240]

Ours is what the agent does at its start: compile, plan and apply in portions of 200 Services. The
comparator is kube-proxy's layout (`kubeproxy_layout.py`), only its text through `nft -f -`: what
kube-proxy does to make that text is not counted. Each in a network namespace of its own, in the
same run. A comparator slower than `--bound` seconds is ended and stands as a lower bound.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import kubeproxy_layout
from lib import print_result
from podwire.agents.nftablesbackend import NftablesBackend
from podwire.agents.servicekernel import Ranges
from podwire.kernel import libc, userns
from podwire.services.claims import Claims, Owner
from podwire.services.model import compile_service
from service_sizes import CLUSTER_CIDR, NODE, SERVICE_CIDR, Size, cluster_ip, endpoint_ip, snapshot

_PORTION = 200
_TARGET_S, _TARGET_RATIO = 2.0, 20.0


def ours(size: Size) -> dict[str, float]:
    """Seconds of compile, and of plan and apply; run in a child with a namespace of its own."""
    userns.unshare_as_root(libc.CLONE_NEWNET)
    world = snapshot(size)
    gc.collect()
    gc.freeze()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    claims = Claims()
    backend = NftablesBackend((4,), claims)
    backend.open(Ranges((SERVICE_CIDR,), (CLUSTER_CIDR,)))
    compiling = 0.0
    for start in range(0, len(world), _PORTION):
        mark = time.perf_counter()
        for service, slices in world[start : start + _PORTION]:
            compiled = compile_service(service, slices, NODE)
            claims.set(Owner("Service", service.key), compiled.frontends)
        compiling += time.perf_counter() - mark
        backend.commit()
    total = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "total_s": round(total, 3),
        "compile_s": round(compiling, 3),
        "plan_and_apply_s": round(total - compiling, 3),
        "state_mib": round((after - before) / 1024, 1),
    }


def comparator(size: Size, bound_s: float) -> dict[str, Any]:
    text = kubeproxy_layout.render(
        (
            cluster_ip(n),
            80,
            [(endpoint_ip(n * size.endpoints + k), 8080) for k in range(size.endpoints)],
        )
        for n in range(size.services)
    )
    began = time.perf_counter()
    command = ["unshare", "-n", "nft", "-f", "-"]
    if os.geteuid():
        command[1:1] = ["-U", "-r"]
    try:
        subprocess.run(command, input=text, text=True, check=True, timeout=bound_s)
    except subprocess.TimeoutExpired:
        return {"total_s": bound_s, "ended_at_bound": True}
    return {"total_s": round(time.perf_counter() - began, 3), "ended_at_bound": False}


def in_child(size: Size) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, __file__, "--ours", str(size)], capture_output=True, text=True, check=True
    )
    found: dict[str, float] = json.loads(done.stdout)
    return found


def parse_size(text: str) -> Size:
    services, _, endpoints = text.partition("x")
    return Size(int(services), int(endpoints))


def measure(size: Size, rounds: int, bound_s: float) -> dict[str, Any]:
    runs = [in_child(size) for _ in range(rounds)]
    theirs = comparator(size, bound_s)
    total = median(run["total_s"] for run in runs)
    return {
        "ours": {key: median(run[key] for run in runs) for key in runs[0]},
        "ours_spread_s": [min(r["total_s"] for r in runs), max(r["total_s"] for r in runs)],
        "comparator": theirs,
        "times_faster": round(theirs["total_s"] / total, 1),
        "rounds": rounds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", default="1000x10,5000x20,10000x10")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--bound", type=float, default=240.0, help="seconds for the comparator")
    parser.add_argument("--ours", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.ours:
        libc.set_pdeathsig(9)
        print(json.dumps(ours(parse_size(args.ours))))
        return
    sizes = [parse_size(text) for text in args.sizes.split(",")]
    figures = {str(size): measure(size, args.rounds, args.bound) for size in sizes}
    print_result(
        "services_cold",
        sizes=figures,
        targets={"10000x10_s": _TARGET_S, "times_faster_from_5000": _TARGET_RATIO},
    )


if __name__ == "__main__":
    main()
