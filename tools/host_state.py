"""The root namespace's state as JSON: what `./test` proves equal before and after.

Left out is what changes by itself: lifetimes, neighbour states, counters. A sysctl key that appears
when a kernel module is loaded is no change; one that changes its value or goes is.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

_VOLATILE_FIELDS = {
    "valid_life_time",
    "preferred_life_time",
    "expires",
    "state",
    "used",
    "confirmed",
    "updated",
    "probes",
    "refcnt",
    "operstate",
    "cache",
}
_VOLATILE_SYSCTLS = ("nf_conntrack_count", "/random/", "tcp_fastopen_key")


def _ip(*what: str) -> Any:
    found = []
    for family in ("-4", "-6"):
        done = subprocess.run(
            ["ip", "-j", family, *what], capture_output=True, text=True, check=False
        )
        found += json.loads(done.stdout or "[]")
    return _stable(found)


def _stable(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _stable(v) for k, v in value.items() if k not in _VOLATILE_FIELDS}
    if isinstance(value, list):
        return [_stable(item) for item in value if item]
    return value


def _nft() -> str:
    done = subprocess.run(
        ["nft", "--stateless", "list", "ruleset"], capture_output=True, text=True, check=False
    )
    return done.stdout


def _sysctls() -> dict[str, str]:
    values = {}
    for path in Path("/proc/sys/net").rglob("*"):
        if path.is_file() and not any(word in str(path) for word in _VOLATILE_SYSCTLS):
            try:
                values[str(path)] = path.read_text(errors="replace")
            except OSError:
                continue
    return values


def _cgroups() -> list[str]:
    """Our own kind only: other programs of the machine come and go."""
    return sorted(
        folder
        for folder, _, _ in os.walk("/sys/fs/cgroup")
        if "podwire" in folder or "crun" in folder
    )


def read() -> dict[str, Any]:
    return {
        "addr": _ip("addr"),
        "route": _ip("route", "show", "table", "all"),
        "rule": _ip("rule"),
        "link": _ip("link"),
        "neigh": sorted(
            f"{n.get('dst')} {n.get('dev')} {n.get('lladdr')}"
            for n in _ip("neigh", "show", "nud", "permanent")
        ),
        "nft": _nft(),
        "sysctl": _sysctls(),
        "mounts": sorted(
            line.split(" ", 2)[2] for line in Path("/proc/self/mountinfo").read_text().splitlines()
        ),
        "cgroups": _cgroups(),
        "netns pins": sorted(os.listdir("/run/netns")) if Path("/run/netns").exists() else [],
    }


def compare(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    problems = []
    for part, value in before.items():
        now = after[part]
        if part == "sysctl":
            problems += [
                f"sysctl {key}: {old!r} became {now.get(key)!r}"
                for key, old in value.items()
                if now.get(key) != old
            ]
        elif now != value:
            problems.append(f"{part}: {value!r} became {now!r}")
    return problems


def main() -> None:
    state = json.loads(json.dumps(read()))
    if len(sys.argv) == 3 and sys.argv[1] == "--compare":
        problems = compare(json.loads(Path(sys.argv[2]).read_text()), state)
        for problem in problems:
            print(f"root namespace changed: {problem[:2000]}")
        print("changed" if problems else "equal")
        sys.exit(1 if problems else 0)
    json.dump(state, sys.stdout)


if __name__ == "__main__":
    main()
