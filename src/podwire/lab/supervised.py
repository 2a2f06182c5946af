"""What the holder looks after: processes it starts, restarts, or only waits for. Pure data."""

from __future__ import annotations

import socket
from dataclasses import dataclass

from podwire.lab.paths import LabPaths
from podwire.lab.spec import LabSpec, NodeSpec, PublishSpec

_BACKOFF_S = (0.0, 0.05, 0.2, 0.5, 1.0)
# A component that lived this long starts its back-off anew.
_STEADY_S = 10.0


@dataclass
class Context:
    """What a component is started with; everything in it was made before the fork."""

    spec: LabSpec
    paths: LabPaths
    incarnation: str
    api_socket: socket.socket
    node: NodeSpec | None = None
    published: Published | None = None
    sockets: tuple[socket.socket, ...] = ()


@dataclass(frozen=True)
class Published:
    """A listening socket of the host and where its connections go."""

    spec: PublishSpec
    listener: socket.socket


@dataclass
class Component:
    """One supervised process. `entry` is "module:function", called with a `Context`.

    `host` is the host of the fabric in whose namespace it runs; without one it is the lab's."""

    name: str
    entry: str
    node: NodeSpec | None = None
    host: str = ""
    published: Published | None = None
    sockets: tuple[socket.socket, ...] = ()
    """They outlive the process: what comes while it is restarted waits."""
    pid: int = 0
    started: float = 0.0
    restarts: int = 0
    failures: int = 0
    due: float | None = 0.0

    def ended(self, now: float) -> float:
        """When it is started again is `due`; returns how long it lived, in seconds."""
        lived = now - self.started
        self.failures = 0 if lived > _STEADY_S else self.failures + 1
        self.restarts += 1
        self.due = now + _BACKOFF_S[min(self.failures, len(_BACKOFF_S) - 1)]
        self.pid = 0
        return lived


@dataclass
class Spawned:
    key: str
    pid: int
    started_at: float
    owner: socket.socket | None
