"""One stand-in container: its listening sockets, open connections, log and timers."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Coroutine
from typing import Any

from podwire.runtime.standin.endpoint import Endpoint
from podwire.runtime.standin.log import AccessLog
from podwire.runtime.standin.protocol import Held, Serve
from podwire.runtime.standin.tcp import Connection, plain_address

_ACCEPTS_PER_TURN = 64


class HeldContainer:
    """`sockets` are in the order of `serve.ports`; `exit_` ends the container with a code."""

    def __init__(
        self,
        serve: Serve,
        sockets: list[socket.socket],
        exit_: Callable[[int], None],
        started_at: float,
    ) -> None:
        self.serve = serve
        self.started_at = started_at
        self._sockets = sockets
        self._exit = exit_
        self._connections: set[Connection] = set()
        self._servers: list[asyncio.Server] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False
        self._log = AccessLog(serve.log_path)
        self._endpoints = [Endpoint(serve, port, self._log, self._leave) for port in serve.ports]

    def describe(self) -> Held:
        serve = self.serve
        return Held(serve.id, serve.pod_uid, serve.container, serve.attempt, self.started_at)

    def open(self) -> None:
        loop = asyncio.get_running_loop()
        for endpoint, sock in zip(self._endpoints, self._sockets, strict=False):
            sock.setblocking(False)
            port = endpoint.port
            if port.protocol == "UDP":
                loop.add_reader(sock.fileno(), self._datagrams, sock, endpoint)
            elif port.protocol == "SCTP":
                self._spawn(self._accept(sock, endpoint))
            else:
                self._spawn(self._listen(sock, endpoint))
        options = self.serve.options
        if options.exit_after_s is not None:
            self._timer = loop.call_later(options.exit_after_s, self._exit, options.exit_code)

    def tune(self, http_status: int) -> None:
        """Answer with another status from now on; open connections too."""
        for endpoint in self._endpoints:
            endpoint.tune(http_status)

    def close(self) -> None:
        """End every connection with a reset, as the death of a process would."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        for task in self._tasks:
            task.cancel()
        for server in self._servers:
            server.close()
        loop = asyncio.get_running_loop()
        for port, sock in zip(self.serve.ports, self._sockets, strict=False):
            if port.protocol == "UDP":
                loop.remove_reader(sock.fileno())
            sock.close()
        for connection in list(self._connections):
            if connection.transport is not None:
                connection.transport.abort()
        self._log.flush()

    def _leave(self, code: int) -> None:
        # The answer to /exit goes out first.
        asyncio.get_running_loop().call_later(0.01, self._exit, code)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _listen(self, sock: socket.socket, endpoint: Endpoint) -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(
            lambda: Connection(endpoint, self._connections), sock=sock, start_serving=True
        )
        if self._closed:
            server.close()
        else:
            self._servers.append(server)

    async def _accept(self, sock: socket.socket, endpoint: Endpoint) -> None:
        """SCTP one-to-one style: the stream front end without libuv, which knows TCP only."""
        loop = asyncio.get_running_loop()
        while True:
            connection, peer = await loop.sock_accept(sock)
            self._spawn(self._echo(connection, endpoint, plain_address(peer[0])))

    async def _echo(self, sock: socket.socket, endpoint: Endpoint, client: str) -> None:
        loop = asyncio.get_running_loop()
        greeted = False
        with sock, contextlib.suppress(OSError):
            while data := await loop.sock_recv(sock, 65536):
                prefix = b"" if greeted else endpoint.identity(client)
                greeted = True
                await loop.sock_sendall(sock, prefix + data)

    def _datagrams(self, sock: socket.socket, endpoint: Endpoint) -> None:
        for _ in range(_ACCEPTS_PER_TURN):
            try:
                data, peer = sock.recvfrom(65535)
            except BlockingIOError:
                return
            except OSError:
                continue
            client = plain_address(peer[0])
            with contextlib.suppress(OSError):
                sock.sendto(endpoint.answer_datagram(data, client), peer)
            endpoint.log.write(f"UDP :{endpoint.port.port} from {client} {len(data)} bytes")
