"""Three nodes and Online Boutique, from nothing to every pod Ready and reachable; and down again.

    python benchmarks/up.py [--runs 5] [-f MANIFESTS]

What a user does is measured: the command line as a process of its own, interpreter start included,
with a warm page cache. A phase is the time between two lines of its progress. Reachable means that
every pod was probed from every other one by its own address. For scale, published figures of
others until the same application and cluster DNS were up: kind 33.0 s, k3d 19.9 s (issue 2).
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from labs import ONLINE_BOUTIQUE, components, cpu_by_component, run_directory, spent
from lib import print_result
from podwire import Lab

_TARGET_UP_S, _TARGET_DOWN_S = 2.0, 1.0
_PUBLISHED_S = {"kind": 33.0, "k3d": 19.9}
_PODWIRE = [sys.executable, "-m", "podwire"]
# First words of a progress line -> the phase that ends with it.
_PHASES = {
    "building": "interpreter",
    "fabric": "holder and fabric",
    "imports": "imports",
    "applying": "API server and nodes",
}


def up(manifests: Path) -> dict[str, Any]:
    """One run: seconds per phase and in total."""
    started = last = time.perf_counter()
    phases: dict[str, float] = {}
    with subprocess.Popen(
        [*_PODWIRE, "up", "ob", "--nodes", "3", "--no-kubeconfig", "-f", str(manifests)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            phase = next((p for word, p in _PHASES.items() if f": {word}" in line), None)
            if phase is not None:
                now = time.perf_counter()
                phases[phase], last = now - last, now
    if process.returncode:
        raise SystemExit("".join(lines))
    ready = time.perf_counter()
    phases["pods ready"] = ready - last
    lab = Lab("ob")
    cpu = spent({}, cpu_by_component(components(lab)))
    asked = time.perf_counter()
    found = lab.reach()
    reached = time.perf_counter()
    lab.close()
    if not found.all_allowed:
        raise SystemExit(f"not every pair reaches each other: {found.verdicts()}")
    phases["every pair probed"] = reached - asked
    return {"up_s": ready - started + reached - asked, "phases_s": phases, "cpu_s": cpu}


def down() -> float:
    started = time.perf_counter()
    subprocess.run([*_PODWIRE, "down", "ob"], check=True, capture_output=True)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("-f", "--file", type=Path, default=ONLINE_BOUTIQUE)
    args = parser.parse_args()
    if not args.file.exists():
        raise SystemExit(f"{args.file}: not there; name Online Boutique's manifests with -f")
    runs, downs = [], []
    with run_directory():
        up(args.file)
        down()  # that was the page cache's turn
        for _ in range(args.runs):
            runs.append(up(args.file))
            downs.append(down())
    up_s = statistics.median(run["up_s"] for run in runs)
    down_s = statistics.median(downs)
    print_result(
        "up",
        runs=args.runs,
        up_s=round(up_s, 3),
        down_s=round(down_s, 3),
        all_up_s=[round(run["up_s"], 3) for run in runs],
        all_down_s=[round(seconds, 3) for seconds in downs],
        phases_s={
            phase: round(statistics.median(run["phases_s"][phase] for run in runs), 3)
            for phase in runs[0]["phases_s"]
        },
        cpu_s=runs[-1]["cpu_s"],
        published_s=_PUBLISHED_S,
        ratio={name: round(up_s / seconds, 4) for name, seconds in _PUBLISHED_S.items()},
        targets={
            f"up_s <= {_TARGET_UP_S}": up_s <= _TARGET_UP_S,
            f"down_s <= {_TARGET_DOWN_S}": down_s <= _TARGET_DOWN_S,
        },
    )


if __name__ == "__main__":
    main()
