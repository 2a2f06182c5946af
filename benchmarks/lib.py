"""What every benchmark shares: paired medians, machine facts, memory of process trees, output.

A figure of ours is only worth something beside the comparator's from the same run: the two are
measured in turns, ABBA, and the ratio is the median of the rounds' ratios, so that a machine that
slows down half-way slows both.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

Measure = Callable[[], float]


@dataclass(frozen=True)
class Paired:
    """Medians of both, and the median of `ours / comparator` over the rounds.

    `ratio_of_bests` compares each one's best round: what disturbs a machine only ever slows, so on
    a busy one the bests are the better estimate.
    """

    ours: float
    comparator: float
    ratio: float
    rounds: int
    spread: tuple[float, float]
    ratio_of_bests: float

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def paired(
    ours: Measure, comparator: Measure, rounds: int = 5, *, more_is_better: bool = False
) -> Paired:
    """Measure both in turns, `rounds` times, every other round in the opposite order.

    `spread` is the least and the greatest ratio of a round: the noise to read the ratio with.
    """
    mine: list[float] = []
    theirs: list[float] = []
    for number in range(rounds):
        order = [(mine, ours), (theirs, comparator)]
        for values, measure in order if number % 2 == 0 else reversed(order):
            values.append(measure())
    ratios = [a / b for a, b in zip(mine, theirs, strict=True) if b]
    if not ratios:
        raise SystemExit("the comparator measured nothing but zeros")
    best = max if more_is_better else min
    return Paired(
        statistics.median(mine),
        statistics.median(theirs),
        round(statistics.median(ratios), 4),
        rounds,
        (round(min(ratios), 4), round(max(ratios), 4)),
        round(best(mine) / best(theirs), 4),
    )


def percentile(values: Iterable[float], fraction: float) -> float:
    """The nearest-rank percentile; 0 for no values."""
    ordered = sorted(values)
    if not ordered:
        return 0.0
    return ordered[min(len(ordered) - 1, int(fraction * len(ordered)))]


def machine_facts() -> dict[str, Any]:
    """What a reader needs to place the figures."""
    return {
        "kernel": platform.release(),
        "cpu": _field("/proc/cpuinfo", "model name"),
        "cpus": os.cpu_count(),
        "memory_mib": int(_field("/proc/meminfo", "MemTotal").split()[0] or 0) // 1024,
        "python": platform.python_version(),
        "root": os.geteuid() == 0,
        "load": os.getloadavg(),
    }


def _field(path: str, name: str) -> str:
    for line in Path(path).read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return "0"


def process_tree(root: int) -> list[int]:
    """`root` and all its descendants, from one pass over /proc."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (parent := _parent(int(entry.name))) is not None:
            children.setdefault(parent, []).append(int(entry.name))
    tree, queue = [], [root]
    while queue:
        pid = queue.pop()
        tree.append(pid)
        queue += children.get(pid, [])
    return tree


def _parent(pid: int) -> int | None:
    try:
        # The command in parentheses may hold spaces and parentheses itself.
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None


def pss_bytes(pids: Iterable[int]) -> int:
    """The sum of proportional set sizes: shared pages are counted once, not per process."""
    total = 0
    for pid in pids:
        try:
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except OSError:
            continue  # ended meanwhile, or a kernel thread
        total += sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:"))
    return total * 1024


def cpu_seconds(pids: Iterable[int]) -> float:
    """User and system time of the processes so far, without their ended children."""
    ticks = 0
    for pid in pids:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def kernel_memory_bytes() -> int:
    """Slab, per-CPU memory, kernel stacks and tmpfs of the machine: differences of it are what
    namespaces, and the pods' files on the lab's tmpfs, cost."""
    facts: Mapping[str, int] = {
        line.partition(":")[0]: int(line.split()[1])
        for line in Path("/proc/meminfo").read_text().splitlines()
    }
    return (facts["Slab"] + facts["Percpu"] + facts["KernelStack"] + facts["Shmem"]) * 1024


def print_result(benchmark: str, **figures: Any) -> None:
    """One JSON document on standard output."""
    document = {"benchmark": benchmark, "machine": machine_facts(), **figures}
    json.dump(document, sys.stdout, indent=2, default=str)
    sys.stdout.write("\n")
