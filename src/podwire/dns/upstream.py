"""One upstream resolver: its sockets, its answers checked, its health.

    exchange(query) -> random ID -> UDP (a socket per query) | TCP (kept open) -> response

Every query over UDP has a socket of its own: the kernel picks a random source port, and only the
upstream's own address gets through (RFC 5452). What does not match in ID and question is not an
answer and is waited past. A failure starts probes (`. NS`) that end with the first answer; any
answer is one, whatever its code. Addresses come from the configuration only.
Source: coredns plugin/pkg/proxy/{connect,health,proxy}.go.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
from collections import deque
from typing import Final, Protocol

from podwire.dns import packet
from podwire.dns.packet import Question
from podwire.errors import PodwireError

READ_TIMEOUT_S: Final = 2.0
PROBE_TIMEOUT_S: Final = 1.0
DIAL_MIN_S, DIAL_MAX_S = 1.0, 30.0
_DIAL_WEIGHT: Final = 4
_RECEIVE_BYTES: Final = 65535


class UpstreamError(PodwireError):
    """No response came; the message is about the upstream."""


class ClosedError(UpstreamError):
    """A connection that was kept open had been closed by the other end: to be tried anew."""


class Transport(Protocol):
    """How bytes reach one upstream; raises `UpstreamError`."""

    async def udp(self, query: bytes, question: Question, timeout: float) -> bytes: ...

    async def tcp(self, query: bytes, question: Question, timeout: float) -> bytes: ...

    def close(self) -> None: ...


def matches(response: bytes, query: bytes, question: Question) -> bool:
    """Whether this answers that: ID, QR, and the question, in any case (RFC 5452 section 4)."""
    if len(response) < 12 or response[:2] != query[:2] or not response[2] & 0x80:
        return False
    if response[4:6] == b"\0\0":
        # Servers that cannot even read the query answer without it.
        return packet.rcode(response) in (packet.FORMERR, packet.NOTIMP, packet.REFUSED)
    return packet.parse_question(response) == question


class Upstream:
    """Health and the choice between UDP and TCP; `fails` counts since the last answer."""

    def __init__(
        self,
        address: str,
        port: int,
        transport: Transport,
        *,
        interval_s: float = 0.5,
        recursion: bool = True,
        domain: bytes = b"\0",
        probe_tcp: bool = False,
    ) -> None:
        self.label = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
        self.fails = 0
        self.failed_probes = 0
        self._transport = transport
        self._interval_s = interval_s
        self._recursion = recursion
        self._domain = domain
        self._probe_tcp = probe_tcp
        self._probing: asyncio.Task[None] | None = None

    def down(self, max_fails: int) -> bool:
        return max_fails != 0 and self.fails > max_fails

    async def exchange(self, query: bytes, question: Question, *, tcp: bool) -> bytes:
        """The upstream's response under a fresh ID, which is replaced by the query's own."""
        wire = secrets.token_bytes(2) + query[2:]
        response = await self._send(wire, question, tcp, READ_TIMEOUT_S)
        return query[:2] + response[2:]

    async def _send(self, wire: bytes, question: Question, tcp: bool, timeout: float) -> bytes:
        if not tcp:
            return await self._transport.udp(wire, question, timeout)
        while True:
            with contextlib.suppress(ClosedError):
                return await self._transport.tcp(wire, question, timeout)

    def probe(self) -> None:
        """Ask until it answers; at most one probe runs."""
        if self._interval_s > 0 and (self._probing is None or self._probing.done()):
            self._probing = asyncio.get_running_loop().create_task(self._probe())

    async def _probe(self) -> None:
        while not await self._answers():
            self.fails += 1
            self.failed_probes += 1
            await asyncio.sleep(self._interval_s)
        self.fails = 0

    async def _answers(self) -> bool:
        bits = packet.RD if self._recursion else 0
        query = packet.HEADER.pack(secrets.randbits(16), bits, 1, 0, 0, 0) + self._domain
        query += packet.NS.to_bytes(2, "big") + b"\0\1"
        question = Question(self._domain, packet.NS, 1, len(query))
        try:
            await self._send(query, question, self._probe_tcp, PROBE_TIMEOUT_S)
        except UpstreamError:
            return False
        return True

    async def close(self) -> None:
        if self._probing is not None:
            self._probing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._probing
        self._transport.close()


class _Connection:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.expiry: asyncio.TimerHandle | None = None

    async def exchange(self, query: bytes, question: Question) -> bytes:
        self.writer.write(len(query).to_bytes(2, "big") + query)
        while True:
            length = int.from_bytes(await self.reader.readexactly(2), "big")
            response = await self.reader.readexactly(length)
            if matches(response, query, question):
                return response


class SocketTransport:
    """Real sockets; a TCP connection serves one query at a time and is kept for `expire_s`."""

    def __init__(
        self, address: str, port: int, *, expire_s: float = 10.0, max_idle: int = 0
    ) -> None:
        self._address, self._port = address, port
        self._family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._expire_s = expire_s
        self._max_idle = max_idle
        self._idle: deque[_Connection] = deque()
        self._dial_s = 0.0
        self.reused = 0
        self.opened = 0

    async def udp(self, query: bytes, question: Question, timeout: float) -> bytes:
        loop = asyncio.get_running_loop()
        answered: asyncio.Future[bytes] = loop.create_future()
        with self._sent(query) as sock:
            loop.add_reader(sock, self._receive, sock, answered, query, question)
            try:
                async with asyncio.timeout(timeout):
                    return await answered
            except TimeoutError:
                raise UpstreamError(f"read udp {self._shown()}: i/o timeout") from None
            finally:
                loop.remove_reader(sock)

    def _sent(self, query: bytes) -> socket.socket:
        """A new socket that waits for the answer; there may be none left to have."""
        with contextlib.ExitStack() as stack:
            try:
                sock = socket.socket(self._family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
                stack.enter_context(sock)
                sock.connect((self._address, self._port))
                sock.send(query)
            except OSError as e:
                raise UpstreamError(f"write udp {self._shown()}: {e.strerror}") from e
            stack.pop_all()
        return sock

    def _receive(
        self,
        sock: socket.socket,
        answered: asyncio.Future[bytes],
        query: bytes,
        question: Question,
    ) -> None:
        if answered.done():
            return
        try:
            response = sock.recv(_RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError as e:
            answered.set_exception(UpstreamError(f"read udp {self._shown()}: {e.strerror}"))
            return
        if matches(response, query, question):
            answered.set_result(response)

    async def tcp(self, query: bytes, question: Question, timeout: float) -> bytes:
        connection, kept = await self._connection()
        try:
            async with asyncio.timeout(timeout):
                response = await connection.exchange(query, question)
        except TimeoutError:
            connection.writer.close()
            raise UpstreamError(f"read tcp {self._shown()}: i/o timeout") from None
        except (OSError, asyncio.IncompleteReadError) as e:
            connection.writer.close()
            kind = ClosedError if kept else UpstreamError
            raise kind(f"read tcp {self._shown()}: {e}") from e
        except asyncio.CancelledError:
            connection.writer.close()
            raise
        self._keep(connection)
        return response

    async def _connection(self) -> tuple[_Connection, bool]:
        while self._idle:
            connection = self._idle.popleft()
            if connection.expiry is not None:
                connection.expiry.cancel()
            if not connection.reader.at_eof():
                self.reused += 1
                return connection, True
            connection.writer.close()
        self.opened += 1
        loop = asyncio.get_running_loop()
        started = loop.time()
        try:
            async with asyncio.timeout(min(max(2 * self._dial_s, DIAL_MIN_S), DIAL_MAX_S)):
                reader, writer = await asyncio.open_connection(self._address, self._port)
        except TimeoutError:
            raise UpstreamError(f"dial tcp {self._shown()}: i/o timeout") from None
        except OSError as e:
            raise UpstreamError(f"dial tcp {self._shown()}: {e.strerror}") from e
        finally:
            self._dial_s += (loop.time() - started - self._dial_s) / _DIAL_WEIGHT
        return _Connection(reader, writer), False

    def _keep(self, connection: _Connection) -> None:
        if self._expire_s <= 0 or (self._max_idle and len(self._idle) >= self._max_idle):
            connection.writer.close()
            return
        loop = asyncio.get_running_loop()
        connection.expiry = loop.call_later(self._expire_s, self._expire, connection)
        self._idle.append(connection)

    def _expire(self, connection: _Connection) -> None:
        with contextlib.suppress(ValueError):
            self._idle.remove(connection)
            connection.writer.close()

    def close(self) -> None:
        for connection in self._idle:
            if connection.expiry is not None:
                connection.expiry.cancel()
            connection.writer.close()
        self._idle.clear()

    def _shown(self) -> str:
        return f"{self._address}:{self._port}"
