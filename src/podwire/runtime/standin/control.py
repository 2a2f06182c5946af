"""The stand-in process itself: a control socket, the containers it holds, and its event loop.

The control socket is SOCK_SEQPACKET: packets keep their boundaries and their descriptors. Several
agents may be connected (an old one dying, a new one starting); each hears of every exit. An exit
nobody heard is kept until an agent asks for the list.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import signal
import socket
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import msgspec
import uvloop

from podwire.runtime.standin.held import HeldContainer
from podwire.runtime.standin.protocol import (
    MAX_FDS,
    MAX_PACKET,
    Exited,
    Listed,
    ListHeld,
    Reply,
    Request,
    Serve,
    Stop,
    Tune,
    decode_request,
    encode,
)

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class StandinConfig:
    """Where the node's stand-in process listens for its agent."""

    node_name: str
    socket_path: Path


def main(config: StandinConfig) -> int:
    """Serve until SIGTERM; the process entry point. Returns its exit code."""
    _raise_file_limit()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(config))
    return 0


def _raise_file_limit() -> None:
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def _serve(config: StandinConfig) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    control = Control(config.socket_path)
    control.open()
    try:
        await stopped.wait()
    finally:
        control.close()


class Control:
    """Owns every held container; all methods run on the event loop."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._listener: socket.socket | None = None
        self._agents: set[_Agent] = set()
        self._held: dict[str, HeldContainer] = {}
        self._unheard: list[Exited] = []

    def open(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        listener.setblocking(False)
        listener.bind(str(self._path))
        listener.listen(8)
        self._listener = listener
        asyncio.get_running_loop().add_reader(listener.fileno(), self._accept)

    def close(self) -> None:
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener.fileno())
            self._listener.close()
        for agent in list(self._agents):
            agent.close()
        for held in self._held.values():
            held.close()

    def _accept(self) -> None:
        assert self._listener is not None
        with contextlib.suppress(BlockingIOError):
            sock, _ = self._listener.accept()
            self._agents.add(_Agent(self, sock))

    def forget_agent(self, agent: _Agent) -> None:
        self._agents.discard(agent)

    def handle(self, agent: _Agent, request: Request, sockets: list[socket.socket]) -> None:
        match request:
            case Serve():
                self._serve(request, sockets)
            case Stop(id):
                self._exit(id, 0)
            case Tune(id, http_status):
                if id in self._held:
                    self._held[id].tune(http_status)
            case ListHeld():
                for held in self._held.values():
                    agent.send(held.describe())
                for exited in self._unheard:
                    agent.send(exited)
                self._unheard.clear()
                agent.send(Listed())

    def _serve(self, serve: Serve, sockets: list[socket.socket]) -> None:
        former = self._held.pop(serve.id, None)
        if former is not None:
            former.close()
        held = HeldContainer(serve, sockets, lambda code: self._exit(serve.id, code), time.time())
        self._held[serve.id] = held
        held.open()

    def _exit(self, identity: str, code: int) -> None:
        held = self._held.pop(identity, None)
        if held is None:
            return
        held.close()
        exited = Exited(identity, code)
        if not self._agents:
            self._unheard.append(exited)
        for agent in list(self._agents):
            agent.send(exited)


class _Agent:
    """One connected agent."""

    def __init__(self, control: Control, sock: socket.socket) -> None:
        self._control = control
        self._sock = sock
        self._unsent: deque[bytes] = deque()
        self._loop = asyncio.get_running_loop()
        sock.setblocking(False)
        self._loop.add_reader(sock.fileno(), self._readable)

    def _readable(self) -> None:
        # A handful per turn: connections are to be answered meanwhile.
        for _ in range(16):
            try:
                data, fds, _flags, _ = socket.recv_fds(self._sock, MAX_PACKET, MAX_FDS)
            except BlockingIOError:
                return
            except OSError:
                data, fds = b"", []
            if not data:
                self.close()
                return
            sockets = [socket.socket(fileno=fd) for fd in fds]
            try:
                self._control.handle(self, decode_request(data), sockets)
            except msgspec.MsgspecError as error:
                _LOG.warning("control: %s", error)
                for sock in sockets:
                    sock.close()

    def send(self, reply: Reply) -> None:
        self._unsent.append(encode(reply))
        if len(self._unsent) == 1:
            self._writable()

    def _writable(self) -> None:
        while self._unsent:
            try:
                self._sock.send(self._unsent[0])
            except BlockingIOError:
                self._loop.add_writer(self._sock.fileno(), self._writable)
                return
            except OSError:
                self.close()
                return
            self._unsent.popleft()
        self._loop.remove_writer(self._sock.fileno())

    def close(self) -> None:
        self._control.forget_agent(self)
        if self._sock.fileno() >= 0:
            self._loop.remove_reader(self._sock.fileno())
            self._loop.remove_writer(self._sock.fileno())
            self._sock.close()
        self._unsent.clear()
