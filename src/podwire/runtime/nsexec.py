"""Running the host's programs as if inside a pod: what `kubectl exec` into a stand-in does.

nsenter enters the pod's network namespace, unshare gives private mount and UTS namespaces, and a
shell line lays the pod's hosts file and resolv.conf over /etc's. Nothing of it outlives it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from podwire.errors import ContainerError
from podwire.runtime.containers import ExecProcess
from podwire.runtime.streams import spawn_local

# $1 hosts, $2 resolv.conf, $3 host name, then the program. A file missing on the host cannot be
# covered. 126 and 127 are what a shell answers for a program that cannot run or does not exist.
_ENTER: Final = """\
cover() { [ -f "$1" ] && [ -e "$2" ] && mount --bind "$1" "$(readlink -f "$2")" 2>/dev/null; }
cover "$1" /etc/hosts
cover "$2" /etc/resolv.conf
[ -n "$3" ] && hostname "$3" 2>/dev/null
shift 3
exec "$@"
"""
_NEEDED: Final = ("nsenter", "unshare", "sh")


@dataclass(frozen=True)
class PodShell:
    """Where a pod's programs run. `netns` None: the node's own namespace."""

    netns: Path | None
    hosts: Path
    resolv_conf: Path
    hostname: str

    def command(self, program: Sequence[str]) -> list[str]:
        """The whole command line around `program`."""
        words = ["nsenter", f"--net={self.netns}"] if self.netns is not None else []
        words += ["unshare", "--mount", "--uts", "--propagation", "private"]
        hosts, resolv = str(self.hosts), str(self.resolv_conf)
        return [*words, "sh", "-c", _ENTER, "sh", hosts, resolv, self.hostname, *program]

    async def run(
        self,
        program: Sequence[str],
        env: Mapping[str, str],
        *,
        tty: bool = False,
        stdin: bool = False,
    ) -> ExecProcess:
        """Start a program. Raises `ContainerError` when it does not exist on this machine."""
        if not program:
            raise ContainerError("exec: you must specify at least one command for the container")
        missing = [tool for tool in _NEEDED if shutil.which(tool) is None]
        if missing:
            raise ContainerError(f"exec: {', '.join(missing)} not found; install util-linux")
        if shutil.which(program[0]) is None:
            raise ContainerError(
                f'exec: "{program[0]}": executable file not found in $PATH '
                "(a stand-in runs this machine's programs)"
            )
        environment = _base_environment() | dict(env)
        command = self.command(program)
        try:
            return await spawn_local(command, stdin=stdin, tty=tty, env=environment)
        except OSError as error:
            raise ContainerError(f"exec: {error}") from error


def _base_environment() -> dict[str, str]:
    inherited = {k: v for k, v in os.environ.items() if k in ("PATH", "LANG", "LC_ALL")}
    return {"TERM": "xterm", "HOME": "/root", "PATH": os.defpath} | inherited
