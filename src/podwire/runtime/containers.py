"""The seam between the pod life cycle and whatever really runs a container.

    ContainerSpec -> ContainerRuntime.create_and_start -> RunningContainer   OCI (crun, runc)
    entry point   -> Spawner.spawn                     -> Process            podwire's own programs

A runtime knows nothing of pods' rules (restarts, probes, status): it starts what the spec says,
writes its output as a CRI log and tells how it ended. After a restart of the agent `recover` gives
back what still runs, so a crash of the agent never ends a container.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol


@dataclass(frozen=True)
class ExitStatus:
    """How a process ended; `exit_code` is 128 + signal when `signal` is set, as in Kubernetes."""

    exit_code: int
    signal: int = 0
    message: str = ""
    reason: str = ""

    @property
    def ok(self) -> bool:
        return self.exit_code == 0


@dataclass(frozen=True)
class Mount:
    """A bind mount of `source` (a path of the node), or a fresh tmpfs when `source` is None."""

    destination: str
    source: Path | None = None
    read_only: bool = False
    recursive: bool = True
    size_bytes: int | None = None


@dataclass(frozen=True)
class User:
    """None means: what the image says (uid) or its primary group (gid)."""

    uid: int | None = None
    gid: int | None = None
    groups: tuple[int, ...] = ()
    must_not_be_root: bool = False


@dataclass(frozen=True)
class Resources:
    """cgroup limits; None means no limit. A runtime without a cgroup ignores them."""

    cpu_millis: int | None = None
    memory_bytes: int | None = None


@dataclass(frozen=True)
class ContainerSpec:
    """Everything a runtime needs, with every reference of the pod already resolved.

    `command` and `args` replace the image's Entrypoint and Cmd where not empty, by Kubernetes'
    rules (a command without args drops the image's Cmd). `env` overrides the image's.
    `hosts_path`, `resolv_conf_path` and `termination_path` are files of the node to bind-mount over
    /etc/hosts, /etc/resolv.conf and `termination_message_path`. `netns` None: the node's namespace.
    `pause_key` names the pod's shared namespaces (ipc, uts; pid if `share_process_namespace`).
    """

    pod_uid: str
    pod_namespace: str
    pod_name: str
    name: str
    attempt: int
    image: str
    netns: Path | None
    hostname: str
    hosts_path: Path
    resolv_conf_path: Path
    log_path: Path
    termination_path: Path
    termination_message_path: str = "/dev/termination-log"
    command: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()
    working_dir: str = ""
    user: User = User()
    mounts: tuple[Mount, ...] = ()
    tty: bool = False
    stdin: bool = False
    read_only_rootfs: bool = False
    privileged: bool = False
    allow_privilege_escalation: bool = True
    capabilities_add: tuple[str, ...] = ()
    capabilities_drop: tuple[str, ...] = ()
    sysctls: tuple[tuple[str, str], ...] = ()
    share_process_namespace: bool = False
    resources: Resources = Resources()
    annotations: Mapping[str, str] = field(default_factory=dict)

    @property
    def pause_key(self) -> str:
        return self.pod_uid


@dataclass(frozen=True)
class Image:
    """An image of the node's store: `id` is `sha256:...`, `reference` the name it was asked by."""

    reference: str
    id: str
    size_bytes: int = 0
    names: tuple[str, ...] = ()


class Stdin(Protocol):
    """The writing half an `asyncio.StreamWriter` offers."""

    def write(self, data: bytes) -> None: ...

    async def drain(self) -> None: ...

    def close(self) -> None: ...


class ExecProcess(Protocol):
    """A process started inside a container. With a tty `stderr` is None, stdout carries both."""

    stdin: Stdin | None
    stdout: asyncio.StreamReader
    stderr: asyncio.StreamReader | None

    def resize(self, columns: int, rows: int) -> None: ...

    def kill(self, signal: int) -> None: ...

    async def wait(self) -> ExitStatus: ...


class RunningContainer(Protocol):
    """One started container; `id` is `scheme://hex` as in `containerID`.

    `started_at` is a Unix time. `wait` may be called by several and again after the end.
    """

    id: str
    name: str
    attempt: int
    image_id: str
    log_path: Path
    started_at: float

    async def wait(self) -> ExitStatus: ...

    async def kill(self, signal: int) -> None: ...

    async def exec(
        self, command: Sequence[str], *, tty: bool = False, stdin: bool = False
    ) -> ExecProcess:
        """Raises `ContainerError` when the program cannot be started."""

    async def attach(self) -> ExecProcess:
        """The container's own streams; output is what comes from now on."""

    async def remove(self) -> None:
        """Forget an ended container and free its file system; the log stays."""


class ContainerRuntime(Protocol):
    """OCI containers. `name` and `version` are what the Node reports."""

    name: str
    version: str

    async def find_image(self, reference: str) -> Image | None:
        """The loaded image, or None: then a stand-in takes its place."""

    async def list_images(self) -> list[Image]: ...

    async def create_and_start(self, spec: ContainerSpec) -> RunningContainer:
        """Raises `ContainerError` whose reason is CreateContainerError, RunContainerError, ..."""

    async def recover(self, pod_uid: str) -> Sequence[RunningContainer]:
        """What of the pod still runs (or ended unseen) after the agent was restarted."""

    async def remove_pod(self, pod_uid: str) -> None:
        """End and forget everything of the pod, the pause process included; idempotent."""


class Process(Protocol):
    """A program the lab forked for a built-in image."""

    pid: int
    started_at: float

    async def wait(self) -> ExitStatus: ...

    async def kill(self, signal: int) -> None: ...


class Spawner(Protocol):
    """Forks podwire's own programs (`podwire.dev/NAME` images) from the warmed parent."""

    async def spawn(
        self,
        key: str,
        entry: str,
        kwargs: Mapping[str, Any],
        *,
        netns: Path | None,
        env: Mapping[str, str],
        log_path: Path,
        sockets: Sequence[socket.socket] = (),
    ) -> Process:
        """Run `entry` ("module:function") in `netns`; `key` (unique) finds it again.

        stdout and stderr go to `log_path` as CRI log lines. With `sockets`, the function is also
        given their descriptors, as `sockets`.
        """

    async def recover(self, prefix: str) -> dict[str, Process]:
        """What runs under keys that begin with `prefix`."""


ProbeDelays = Literal["standin", "manifest"]
