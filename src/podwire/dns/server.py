"""The sockets of the DNS server: a hot loop over UDP, pipelined TCP, and bounded waiting.

UDP datagram -> kept answer (one look-up) -> sendto                       in the receive loop
             -> FastAnswers.answer -> bytes -> sendto                     the first time
             -> None -> SlowPath.resolve, a task -> sendto                not the cluster's names
TCP stream   -> `stream`: the same, by length-prefixed messages, answered as they become ready

One process and one thread. A plain `recvfrom`/`sendto` loop costs within an eighth of what
recvmmsg and sendmmsg through ctypes do: nearly all of a query's time is the kernel's, per packet.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Coroutine, Iterable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import dns.rcode

from podwire.dns import packet, wire
from podwire.dns.answers import Entry, truncated
from podwire.dns.seam import Client, FastAnswers, SlowPath
from podwire.dns.stream import Conversation
from podwire.dns.timing import STAMP_SPACE, FastLatency, stamp_arrivals
from podwire.dns.wire import MalformedError

_LOG = logging.getLogger(__name__)
_BATCH = 128  # datagrams handled before the event loop gets its turn
_RECEIVE_BYTES = 4096  # a query is a question and an OPT; what is longer reads as malformed
_RECEIVE_BUFFER = 4 << 20
_SHUTDOWN_S = 5.0
_T = TypeVar("_T")
_Address = tuple[Any, ...]  # (host, port) or IPv6's (host, port, flow, scope)


@dataclass(frozen=True)
class Limits:
    """`waiting`: queries on the slow path at once, SERVFAIL above (CoreDNS: max_concurrent 1000);
    `connections`, `pipelined`: TCP connections, and unanswered queries of each."""

    waiting: int = 1000
    connections: int = 1000
    pipelined: int = 100
    idle_s: float = 8.0


@dataclass
class Stats:
    """Numbers of this process, for metrics."""

    udp: int = 0
    tcp: int = 0
    connections: int = 0
    refused_waiting: int = 0
    unsent: int = 0
    failed: int = 0


class Served(FastAnswers, Protocol):
    """`Answers`, or the door in front of them (`front.Front`): what the loop looks into."""

    @property
    def max_udp(self) -> int: ...
    @property
    def hot(self) -> dict[bytes, Entry]: ...
    @property
    def cold(self) -> dict[bytes, Entry]: ...


class Server:
    """Serves `answers` and `slow` on sockets given or bound. `slow` None refuses other names."""

    def __init__(
        self, answers: Served, slow: SlowPath | None, limits: Limits | None = None
    ) -> None:
        self._answers = answers
        self._slow = slow
        self._limits = limits or Limits()
        self.stats = Stats()
        self.latency = FastLatency()
        self._udp: list[socket.socket] = []
        self._tcp: list[asyncio.Server] = []
        self._waiting: set[asyncio.Task[Any]] = set()
        self._connections: set[Conversation] = set()

    @property
    def waiting(self) -> int:
        """Queries on the slow path right now."""
        return len(self._waiting)

    async def start(
        self, udp: Iterable[socket.socket] = (), tcp: Iterable[socket.socket] = ()
    ) -> None:
        """Serve on bound UDP sockets and bound or listening TCP sockets; the server owns them."""
        loop = asyncio.get_running_loop()
        for sock in udp:
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
            stamp_arrivals(sock)
            self._udp.append(sock)
            loop.add_reader(sock, self._read, sock)
        for sock in tcp:
            server = await loop.create_server(self._connection, sock=sock, backlog=1024)
            self._tcp.append(server)

    async def stop(self, lameduck_s: float = 0.0) -> None:
        """Answer on for `lameduck_s`, then take nothing new, finish what is under way, close."""
        if lameduck_s:
            await asyncio.sleep(lameduck_s)
        loop = asyncio.get_running_loop()
        for sock in self._udp:
            loop.remove_reader(sock)
        for server in self._tcp:
            server.close()
        if self._waiting:
            await asyncio.wait(self._waiting, timeout=_SHUTDOWN_S)
        left = tuple(self._waiting)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        await self._end_connections()
        for sock in self._udp:
            sock.close()
        self._udp.clear()
        self._tcp.clear()

    # --- UDP ----------------------------------------------------------------------------------

    def _read(self, sock: socket.socket) -> None:
        receive, send = sock.recvfrom, sock.sendto
        hot, cold = self._answers.hot, self._answers.cold
        latency = self.latency
        timed = latency.place()
        done = 0
        try:
            while done < _BATCH:
                if done == timed:
                    self._read_timed(sock)
                    done += 1
                    continue
                data, address = receive(_RECEIVE_BYTES)
                done += 1
                key = data[2:]
                entry = hot.get(key) or cold.get(key)
                if entry is None:
                    self._first_time(sock, data, address)
                    continue
                tail, count, rotation, _ = entry
                count[0] += 1
                if rotation is not None:
                    tail = rotation.next()
                send(data[:2] + tail, address)
        except BlockingIOError:
            pass  # drained; or nobody takes our answers, then asking again is the resolver's part
        except OSError as error:
            # An ICMP error for an earlier answer is told here.
            self.stats.unsent += 1
            _LOG.debug("dns: udp: %s", error)
        finally:
            self.stats.udp += done
            latency.batch(done)

    def _read_timed(self, sock: socket.socket) -> None:
        data, ancillary, _, address = sock.recvmsg(_RECEIVE_BYTES, STAMP_SPACE)
        answered = self._first_time(sock, data, address)
        # What a cache answers at once is not the cluster's, and timed where it is.
        question = packet.parse_question(data) if answered else None
        ours = question is not None and self._answers.owns(question.name)
        self.latency.observe(ancillary, answered=ours)

    def _first_time(self, sock: socket.socket, data: bytes, address: _Address) -> bool:
        """Whether it is answered; if not, somebody is at it."""
        client = Client(address[0], address[1], False)
        response = self._answer(data, client)
        if response is not None:
            self._send(sock, response, address)
        elif (refusal := self._refused(data)) is not None:
            self._send(sock, refusal, address)
        else:
            self._wait_for(self._resolve_udp(sock, data, client, address))
        return response is not None

    def _send(self, sock: socket.socket, response: bytes, address: _Address) -> None:
        if not response:
            return
        try:
            sock.sendto(response, address)
        except OSError as error:
            self.stats.unsent += 1
            _LOG.debug("dns: udp to %s: %s", address[0], error)

    async def _resolve_udp(
        self, sock: socket.socket, data: bytes, client: Client, address: _Address
    ) -> None:
        response = await self._resolve(data, client)
        if response and sock.fileno() >= 0:
            self._send(sock, response, address)

    # --- what both transports do --------------------------------------------------------------

    def _answer(self, data: bytes, client: Client) -> bytes | None:
        """One query must not end the server: what it trips over is logged and answered SERVFAIL."""
        try:
            return self._answers.answer(data, client)
        except Exception:
            self.stats.failed += 1
            _LOG.exception("dns: answering %s failed", data[:64].hex())
            return wire.refusal(data, dns.rcode.SERVFAIL, None, self._answers.max_udp)

    def _refused(self, data: bytes) -> bytes | None:
        """The answer to what nobody else answers, or for which there is no room to wait."""
        if self._slow is None:
            return self._refusal(data, dns.rcode.REFUSED)
        if len(self._waiting) >= self._limits.waiting:
            self.stats.refused_waiting += 1
            return self._refusal(data, dns.rcode.SERVFAIL)
        return None

    def _refusal(self, data: bytes, rcode: dns.rcode.Rcode) -> bytes:
        query = wire.parse_query(data)  # it was read before: None is said of readable queries only
        return wire.refusal(data, rcode, query, self._answers.max_udp)

    def _wait_for(self, work: Coroutine[Any, Any, _T]) -> asyncio.Task[_T]:
        task = asyncio.create_task(work)
        self._waiting.add(task)
        task.add_done_callback(self._waiting.discard)
        return task

    async def _resolve(self, data: bytes, client: Client) -> bytes | None:
        assert self._slow is not None
        try:
            response = await self._slow.resolve(data, client)
        except Exception:
            self.stats.failed += 1
            _LOG.exception("dns: resolving %s failed", data[:64].hex())
            return self._refusal(data, dns.rcode.SERVFAIL)
        if response is not None and len(response) > self._room(data, client):
            return truncated(data)
        return response

    def _room(self, data: bytes, client: Client) -> int:
        try:
            return wire.parse_query(data).limit(client.tcp, self._answers.max_udp)
        except MalformedError:
            return wire.MIN_UDP

    # --- TCP ----------------------------------------------------------------------------------

    def _connection(self) -> Conversation:
        limits = self._limits
        return Conversation(self, limits.idle_s, limits.pipelined, self._begun)

    def ask(self, data: bytes, client: Client) -> bytes | None:
        """A query by TCP: its response, b"" for none; None: it is for `resolve`."""
        self.stats.tcp += 1
        response = self._answer(data, client)
        return self._refused(data) if response is None else response

    def resolve(self, data: bytes, client: Client) -> asyncio.Task[bytes | None]:
        return self._wait_for(self._resolve(data, client))

    def _begun(self, conversation: Conversation) -> bool:
        """Whether there is room for one more."""
        if len(self._connections) >= self._limits.connections:
            return False
        self._connections.add(conversation)
        conversation.closed.add_done_callback(lambda _: self._connections.discard(conversation))
        self.stats.connections += 1
        return True

    async def _end_connections(self) -> None:
        """What is written still goes out, to those who take it."""
        for conversation in self._connections:
            conversation.close()
        if self._connections:
            await asyncio.wait([c.closed for c in self._connections], timeout=_SHUTDOWN_S)
        for conversation in tuple(self._connections):
            conversation.abort()


def bind(address: str, port: int, *, reuse_port: bool = False) -> tuple[socket.socket, ...]:
    """A UDP and a listening TCP socket on one address and port; port 0 picks one for both."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    udp = socket.socket(family, socket.SOCK_DGRAM)
    tcp = socket.socket(family, socket.SOCK_STREAM)
    try:
        tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        for sock in (udp, tcp):
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            if reuse_port:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        tcp.bind((address, port))
        udp.bind((address, tcp.getsockname()[1]))
        tcp.listen(1024)
    except OSError:
        udp.close()
        tcp.close()
        raise
    return udp, tcp
