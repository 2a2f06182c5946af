"""The agent's side of the stand-ins: sockets opened in pods, handed over, and deaths noticed.

    open_sockets (in the pod's namespace) -> Serve + descriptors -> stand-in process
    EOF on the control socket -> every stand-in of the node has died -> workers restart them

The agent keeps no copy of a socket it handed over: when the stand-in process dies its connections
are reset and its ports refuse, as they would if a container had died.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import logging
import os
import secrets
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

from podwire.errors import ContainerError
from podwire.kernel import netns
from podwire.objects.core import Container, ContainerPort, Pod
from podwire.runtime.containers import ExecProcess, ExitStatus
from podwire.runtime.nsexec import PodShell
from podwire.runtime.standin.protocol import (
    MAX_FDS,
    MAX_PACKET,
    Exited,
    Held,
    Listed,
    ListHeld,
    Options,
    Port,
    Request,
    Serve,
    Stop,
    Tune,
    decode_reply,
    encode,
)

EnvSource = Callable[[], Awaitable[Mapping[str, str]]]
"""A stand-in's environment is needed by `exec` only, so it is made then."""

_LOG = logging.getLogger(__name__)
_ANNOTATION = "standin.podwire.dev/"
_BACKLOG = 1024
_RETRY_MIN_S, _RETRY_MAX_S = 0.005, 0.2
DIED = ExitStatus(137, signal.SIGKILL, "the stand-in process of the node died", "Error")


def options_from(pod: Pod, container: Container) -> Options:
    """The pod's stand-in annotations; `NAME.CONTAINER` overrides `NAME` for one container.

    Raises `ContainerError` for a value that is not a number.
    """

    def number(name: str) -> float | None:
        annotations = pod.metadata.annotations
        text = annotations.get(
            f"{_ANNOTATION}{name}.{container.name}", annotations.get(_ANNOTATION + name)
        )
        if text is None:
            return None
        try:
            return float(text.removesuffix("s"))
        except ValueError as error:
            raise ContainerError(
                f"pod {pod.key}: annotation {_ANNOTATION}{name}: {text!r} is not a number",
                reason="CreateContainerConfigError",
            ) from error

    return Options(
        exit_code=int(number("exit-code") or 0),
        exit_after_s=number("exit-after"),
        ready_after_s=number("ready-after") or 0.0,
        http_status=int(number("http-status") or 0),
    )


def allowed(pod: Pod) -> bool:
    """Whether a missing image may be played by a stand-in."""
    return pod.metadata.annotations.get(_ANNOTATION + "enabled", "true").lower() != "false"


def exits_at_once(pod: Pod, options: Options, *, init: bool) -> bool:
    """Init containers and Jobs' containers have done their work as soon as they start."""
    owner = pod.metadata.controller
    short = init or (owner is not None and owner.kind == "Job")
    annotated = any(name.startswith(_ANNOTATION + "exit-code") for name in pod.metadata.annotations)
    return (short or annotated) and not options.exit_after_s


def open_sockets(
    ns: int | None, ports: Sequence[ContainerPort], family: int
) -> tuple[list[socket.socket], list[Port]]:
    """Bound and listening sockets of a container, opened inside the namespace `ns` (None: ours).

    SCTP ports are left out where the kernel has no SCTP. Raises OSError (EADDRINUSE on a clash).
    """
    sockets: list[socket.socket] = []
    opened: list[Port] = []
    try:
        with netns.maybe_entered(ns):
            for port in ports:
                sock = _open(port, family)
                if sock is not None:
                    sockets.append(sock)
                    opened.append(Port(port.container_port, port.protocol, port.name))
    except OSError:
        for sock in sockets:
            sock.close()
        raise
    return sockets, opened


def _open(port: ContainerPort, family: int) -> socket.socket | None:
    inet = socket.AF_INET6 if family == 6 else socket.AF_INET
    kind = socket.SOCK_DGRAM if port.protocol == "UDP" else socket.SOCK_STREAM
    try:
        sock = socket.socket(inet, kind, socket.IPPROTO_SCTP if port.protocol == "SCTP" else 0)
    except OSError:
        if port.protocol == "SCTP":
            return None
        raise
    try:
        if port.protocol == "TCP":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == 6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind(("::" if family == 6 else "0.0.0.0", port.container_port))
        if kind == socket.SOCK_STREAM:
            sock.listen(_BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock


async def _no_env() -> Mapping[str, str]:
    return {}


class StandinContainer:
    """A `RunningContainer` that is a few sockets in the stand-in process."""

    def __init__(
        self,
        client: StandinClient | None,
        held: Held,
        log_path: Path,
        shell: PodShell,
        env: EnvSource,
    ) -> None:
        self.id = held.id
        self.name = held.container
        self.attempt = held.attempt
        self.image_id = ""
        self.log_path = log_path
        self.started_at = held.started_at
        self.ended: asyncio.Future[ExitStatus] = asyncio.get_running_loop().create_future()
        self._client = client
        self._shell = shell
        self._env = env

    async def wait(self) -> ExitStatus:
        return await asyncio.shield(self.ended)

    def on_end(self, call: Callable[[ExitStatus], None]) -> None:
        """Call back when it ends, at once if it has; costs no task, as `wait` would."""
        if self.ended.done():
            call(self.ended.result())
        else:
            self.ended.add_done_callback(
                lambda ended: None if ended.cancelled() else call(ended.result())
            )

    async def kill(self, signal: int) -> None:
        """Any signal ends a stand-in at once, cleanly: it has nothing to finish."""
        if not self.ended.done() and self._client is not None:
            self._client.stop(self.id)

    def tune(self, http_status: int) -> None:
        """Answer with another status from now on; 0 means the ordinary one."""
        if not self.ended.done() and self._client is not None:
            self._client.tune(self.id, http_status)

    async def exec(
        self, command: Sequence[str], *, tty: bool = False, stdin: bool = False
    ) -> ExecProcess:
        return await self._shell.run(command, await self._env(), tty=tty, stdin=stdin)

    async def attach(self) -> ExecProcess:
        raise ContainerError(
            f"container {self.name}: a stand-in has no terminal to attach to; use exec"
        )

    async def remove(self) -> None:
        pass


class StandinClient:
    """The connection to the node's stand-in process, restored for as long as `run` runs."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._sock: socket.socket | None = None
        self._containers: dict[str, StandinContainer] = {}
        self._listing: list[Held] = []
        self._lost: asyncio.Event = asyncio.Event()
        self.connected = asyncio.Event()
        self.held: dict[str, Held] = {}
        """What the process held when it was first connected to, until adopted."""

    async def run(self) -> None:
        """Keep connected until cancelled."""
        delay = _RETRY_MIN_S
        try:
            while True:
                try:
                    self._connect()
                except OSError:
                    await asyncio.sleep(delay)
                    delay = min(delay * 2, _RETRY_MAX_S)
                    continue
                delay = _RETRY_MIN_S
                await self._lost.wait()
                self._disconnected()
        finally:
            self._close()

    def _connect(self) -> None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            sock.connect(str(self._path))
            sock.setblocking(False)
        except OSError:
            sock.close()
            raise
        self._sock = sock
        self._lost = asyncio.Event()
        self._listing = []
        asyncio.get_running_loop().add_reader(sock.fileno(), self._readable)
        self._send(ListHeld())

    def _close(self) -> None:
        self.connected.clear()
        if self._sock is not None:
            asyncio.get_running_loop().remove_reader(self._sock.fileno())
            self._sock.close()
            self._sock = None

    def _disconnected(self) -> None:
        self._close()
        self.held.clear()
        containers, self._containers = self._containers, {}
        _LOG.warning("the stand-in process went away with %d containers", len(containers))
        for container in containers.values():
            if not container.ended.done():
                container.ended.set_result(DIED)

    def _readable(self) -> None:
        while self._sock is not None:
            try:
                data = self._sock.recv(MAX_PACKET)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._lost.set()
                asyncio.get_running_loop().remove_reader(self._sock.fileno())
                return
            match decode_reply(data):
                case Held() as held:
                    self._listing.append(held)
                case Listed():
                    self._listed()
                case Exited(id, code, message):
                    self._exited(id, ExitStatus(code, 0, message))

    def _listed(self) -> None:
        self.held = {held.id: held for held in self._listing}
        self.connected.set()

    def _exited(self, identity: str, status: ExitStatus) -> None:
        self.held.pop(identity, None)
        container = self._containers.pop(identity, None)
        if container is not None and not container.ended.done():
            container.ended.set_result(status)

    def _send(self, request: Request, fds: Sequence[int] = ()) -> None:
        if self._sock is None:
            raise ContainerError("the stand-in process of the node is not running")
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            self._sock.sendmsg([encode(request)], rights)
        except BlockingIOError:
            # Rare: the process is a full socket buffer behind. Waiting is the back-pressure.
            self._sock.setblocking(True)
            try:
                self._sock.sendmsg([encode(request)], rights)
            finally:
                self._sock.setblocking(False)
        except OSError as error:
            raise ContainerError(f"the stand-in process of the node: {error}") from error

    def serve(
        self,
        serve: Serve,
        sockets: Sequence[socket.socket],
        shell: PodShell,
        env: EnvSource,
    ) -> StandinContainer:
        """Hand the sockets over; they are closed here whatever happens. Raises ContainerError."""
        try:
            if len(sockets) > MAX_FDS:
                raise ContainerError(
                    f"container {serve.container}: more than {MAX_FDS} ports",
                    reason="CreateContainerError",
                )
            self._send(serve, [sock.fileno() for sock in sockets])
        finally:
            for sock in sockets:
                sock.close()
        held = Held(serve.id, serve.pod_uid, serve.container, serve.attempt, time.time())
        container = StandinContainer(self, held, Path(serve.log_path), shell, env)
        self._containers[serve.id] = container
        return container

    def adopt(
        self, held: Held, log_path: Path, shell: PodShell, env: EnvSource
    ) -> StandinContainer:
        """Take over what the process held when this agent started."""
        self.held.pop(held.id, None)
        container = StandinContainer(self, held, log_path, shell, env)
        self._containers[held.id] = container
        return container

    def stop(self, identity: str) -> None:
        with contextlib.suppress(ContainerError):
            self._send(Stop(identity))

    def tune(self, identity: str, http_status: int) -> None:
        with contextlib.suppress(ContainerError):
            self._send(Tune(identity, http_status))


def ended_container(
    name: str, attempt: int, status: ExitStatus, log_path: Path, shell: PodShell
) -> StandinContainer:
    """A stand-in whose work is done at once: it never reaches the stand-in process."""
    held = Held(new_id(), "", name, attempt, time.time())
    container = StandinContainer(None, held, log_path, shell, _no_env)
    container.ended.set_result(status)
    return container


def new_id() -> str:
    return "standin://" + secrets.token_hex(32)


def open_namespace(pin: Path | None) -> int | None:
    """A descriptor of the pod's namespace, to be closed by `close_namespace`."""
    return None if pin is None else netns.open_pin(pin)


def close_namespace(fd: int | None) -> None:
    if fd is not None:
        os.close(fd)
