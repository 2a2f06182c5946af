"""What an idle lab costs: three nodes, Online Boutique's pods, their manifests' own probes running.

    python benchmarks/idle.py [--seconds 60]

CPU time of every podwire process of the lab over the time, in percent of one core. Nothing is to
compare with: the target is issue 2's "under 1 % of a core".
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from labs import (
    ONLINE_BOUTIQUE,
    components,
    cpu_by_component,
    lab_pss_mib,
    run_directory,
    running_lab,
    spent,
)
from lib import print_result

_TARGET_PERCENT = 1.0
# Events and the last statuses are written behind the start.
_SETTLE_S = 10.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("-f", "--file", type=Path, default=ONLINE_BOUTIQUE)
    args = parser.parse_args()
    with run_directory(), running_lab("idle", 3) as lab:
        lab.apply(args.file)
        pids = components(lab)
        time.sleep(_SETTLE_S)
        before, started = cpu_by_component(pids), time.perf_counter()
        time.sleep(args.seconds)
        cpu, elapsed = spent(before, cpu_by_component(pids)), time.perf_counter() - started
        pods, pss = len(lab.pods()), lab_pss_mib(lab)
    percent = {name: round(100 * seconds / elapsed, 3) for name, seconds in cpu.items()}
    print_result(
        "idle",
        seconds=round(elapsed, 1),
        pods=pods,
        percent_of_a_core=percent,
        pss_mib=pss,
        targets={f"total < {_TARGET_PERCENT} %": percent["total"] < _TARGET_PERCENT},
    )


if __name__ == "__main__":
    main()
