"""A built-in image (`podwire.dev/NAME`): one of podwire's own programs, forked into the pod."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from podwire.errors import ContainerError
from podwire.runtime.containers import ExecProcess, ExitStatus, Process
from podwire.runtime.nsexec import PodShell


class BuiltinContainer:
    """A `Process` of the `Spawner` in the shape of a `RunningContainer`.

    `key` is the spawner's: POD_UID/NAME/ATTEMPT.
    """

    def __init__(
        self,
        process: Process,
        key: str,
        log_path: Path,
        shell: PodShell,
        env: Mapping[str, str],
    ) -> None:
        self.id = f"podwire://{key}"
        _, self.name, attempt = key.split("/")
        self.attempt = int(attempt)
        self.image_id = ""
        self.log_path = log_path
        self.started_at = process.started_at
        self._process = process
        self._shell = shell
        self._env = env

    async def wait(self) -> ExitStatus:
        return await self._process.wait()

    async def kill(self, signal: int) -> None:
        await self._process.kill(signal)

    async def exec(
        self, command: Sequence[str], *, tty: bool = False, stdin: bool = False
    ) -> ExecProcess:
        return await self._shell.run(command, self._env, tty=tty, stdin=stdin)

    async def attach(self) -> ExecProcess:
        raise ContainerError(f"container {self.name}: a built-in image cannot be attached to")

    async def remove(self) -> None:
        pass
