"""Looking into an image or a running container from outside: users by name, programs on PATH.

Paths are resolved as the container would, one component at a time inside its root: an absolute
symlink must not lead into the node's own files.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from podwire.errors import ContainerError
from podwire.runtime.containers import ContainerSpec
from podwire.runtime.oci.bundle import DEFAULT_PATH, Identity

_MAX_SYMLINKS: Final = 40
_MAX_PASSWD: Final = 1024 * 1024


def resolve(root: Path, path: str) -> Path | None:
    """The file behind `path` inside `root`, or None when it does not exist."""
    pending, hops = [p for p in reversed(path.split("/")) if p not in ("", ".")], 0
    done: list[str] = []
    while pending:
        part = pending.pop()
        if part == "..":
            done = done[:-1]
            continue
        here = root.joinpath(*done, part)
        try:
            mode = os.lstat(here).st_mode
        except OSError:
            return None
        if not stat.S_ISLNK(mode):
            done.append(part)
            continue
        hops += 1
        if hops > _MAX_SYMLINKS:
            return None
        link = os.readlink(here)
        done = [] if link.startswith("/") else done
        pending += [p for p in reversed(link.split("/")) if p not in ("", ".")]
    return root.joinpath(*done)


def program_missing(root: Path, program: str, search_path: str, cwd: str) -> str:
    """Why `program` cannot be started inside `root`, in the runtimes' words; "" when it can."""
    if "/" in program:
        candidates = [program if program.startswith("/") else f"{cwd}/{program}"]
    else:
        candidates = [f"{part}/{program}" for part in (search_path or DEFAULT_PATH).split(":")]
    found = [real for c in candidates if (real := resolve(root, c)) is not None]
    if not found:
        where = (
            "no such file or directory" if "/" in program else "executable file not found in $PATH"
        )
        return f'exec: "{program}": {where}'
    for real in found:
        mode = real.stat().st_mode
        if stat.S_ISREG(mode) and mode & 0o111:
            return ""
    return f'exec: "{program}": permission denied'


def identify(spec: ContainerSpec, image_user: str, layers: Sequence[Path]) -> Identity:
    """Who the container runs as: the pod's numbers, else the image's user looked up in its files.

    Raises `ContainerError` for an unknown name, and for root where the pod forbids it.
    """
    passwd, group = _rows(layers, "etc/passwd"), _rows(layers, "etc/group")
    name, _, group_name = image_user.partition(":")
    if spec.user.uid is not None:
        uid, row = spec.user.uid, _by_id(passwd, spec.user.uid)
    elif not name or name.isdigit():
        uid, row = int(name or 0), _by_id(passwd, int(name or 0))
    else:
        row = _by_name(spec, passwd, name, "user")
        uid = int(row[2])
        if spec.user.must_not_be_root:
            raise _config_error(
                spec, f"container has runAsNonRoot and image has non-numeric user ({name}), "
                "cannot verify user is non-root"
            )  # fmt: skip
    if uid == 0 and spec.user.must_not_be_root:
        raise _config_error(spec, "container has runAsNonRoot and image will run as root")
    gid = _gid(spec, group, group_name, row)
    return Identity(uid, gid, _groups(spec, group, row), row[5] if row and row[5] else "/")


def _gid(
    spec: ContainerSpec, group: list[list[str]], group_name: str, row: list[str] | None
) -> int:
    if spec.user.gid is not None:
        return spec.user.gid
    if group_name and spec.user.uid is None:
        if group_name.isdigit():
            return int(group_name)
        return int(_by_name(spec, group, group_name, "group")[2])
    return int(row[3]) if row else 0


def _groups(spec: ContainerSpec, group: list[list[str]], row: list[str] | None) -> tuple[int, ...]:
    member = {int(g[2]) for g in group if row and len(g) > 3 and row[0] in g[3].split(",")}
    return tuple(sorted(member | set(spec.user.groups)))


def _rows(layers: Sequence[Path], name: str) -> list[list[str]]:
    """The lines of passwd or group from the topmost layer that has it (lowest layer first)."""
    for layer in reversed(layers):
        path = layer / name
        try:
            mode = os.lstat(path).st_mode
        except OSError:
            continue
        # A whiteout hides what lies below; a link is nothing a sane image has here.
        if not stat.S_ISREG(mode):
            return []
        with path.open(encoding="utf-8", errors="replace") as file:
            rows = [line.split(":") for line in file.read(_MAX_PASSWD).splitlines()]
        width = 6 if name.endswith("passwd") else 3
        return [row for row in rows if len(row) >= width and row[2].isdigit()]
    return []


def _by_id(rows: list[list[str]], number: int) -> list[str] | None:
    return next((row for row in rows if int(row[2]) == number), None)


def _by_name(spec: ContainerSpec, rows: list[list[str]], name: str, what: str) -> list[str]:
    for row in rows:
        if row[0] == name:
            return row
    raise _config_error(spec, f"unable to find {what} {name}: no matching entries in the image")


def _config_error(spec: ContainerSpec, message: str) -> ContainerError:
    return ContainerError(
        f"container {spec.name} of pod {spec.pod_namespace}/{spec.pod_name}: {message}",
        reason="CreateContainerConfigError",
    )
