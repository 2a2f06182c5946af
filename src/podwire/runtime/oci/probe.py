"""Which OCI runtime this machine offers, and what this process may do with it.

crun first: it starts a container in a third of runc's time. crun 1.8 refuses hybrid cgroup
hierarchies even with its cgroup manager disabled, so it needs a cgroup2 mount over
/sys/fs/cgroup, which the lab's own mount and cgroup namespaces allow; where that fails, runc is
taken.
"""

from __future__ import annotations

import asyncio
import os
import resource
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from podwire.errors import KernelError
from podwire.kernel import libc

_CGROUP: Final = "/sys/fs/cgroup"
_ALL_IDS: Final = 4294967295


@dataclass(frozen=True)
class Facts:
    """`id_ranges`: (first, count) of the ids that exist in this user namespace."""

    flavour: Literal["crun", "runc"]
    program: str
    version: str
    rootless: bool
    id_ranges: tuple[tuple[int, int], ...]
    nofile_limit: int

    def maps(self, number: int) -> bool:
        return any(first <= number < first + count for first, count in self.id_ranges)

    def command(self, root: Path, *args: str) -> list[str]:
        """The command line that begins every call; errors go to runtime.log, one JSON per line."""
        shared = [self.program, "--root", str(root), "--log", "runtime.log", "--log-format", "json"]
        if self.flavour == "crun":
            shared.append("--cgroup-manager=disabled")
        return [*shared, *args]


async def probe() -> Facts | None:
    """The best usable runtime, or None: then every container is a stand-in."""
    if shutil.which("crun") and ensure_cgroup2():
        return await _facts("crun")
    if shutil.which("runc"):
        return await _facts("runc")
    return None


def ensure_cgroup2() -> bool:
    """Make /sys/fs/cgroup the unified hierarchy in this private mount namespace; False: denied."""
    mounted = _filesystem_at(_CGROUP)
    if mounted == "cgroup2":
        return True
    try:
        libc.mount("cgroup2", _CGROUP, "cgroup2")
    except KernelError:
        return False
    return True


def _filesystem_at(target: str) -> str:
    """The type of the topmost mount on `target`, "" when nothing is mounted there."""
    found = ""
    with open("/proc/self/mountinfo", encoding="utf-8") as file:
        for line in file:
            before, _, after = line.partition(" - ")
            if before.split()[4] == target:
                found = after.split()[0]
    return found


async def _facts(flavour: Literal["crun", "runc"]) -> Facts:
    program = shutil.which(flavour) or flavour
    process = await asyncio.create_subprocess_exec(
        program, "--version", stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    output, _ = await process.communicate()
    first_line = output.decode(errors="replace").partition("\n")[0]
    ranges = id_ranges(Path("/proc/self/uid_map").read_text())
    return Facts(
        flavour=flavour,
        program=program,
        version=first_line.rpartition(" ")[2] or "unknown",
        rootless=ranges != ((0, _ALL_IDS),) or os.geteuid() != 0,
        id_ranges=ranges,
        nofile_limit=resource.getrlimit(resource.RLIMIT_NOFILE)[1],
    )


def id_ranges(uid_map: str) -> tuple[tuple[int, int], ...]:
    """(first, count) per line of /proc/PID/uid_map, as seen inside."""
    rows = [line.split() for line in uid_map.splitlines()]
    return tuple((int(row[0]), int(row[2])) for row in rows if len(row) == 3)
