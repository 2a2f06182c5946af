"""One probe in flight, per protocol: small state machines driven by the engine's loop.

The engine calls `open` in the source's network namespace (sockets keep the namespace they were
made in), `start` outside of it, then `on_event` for every event of one of its descriptors and
`on_timer` when `next_timer_ns` has passed. A session ends itself with `finish`, exactly once.

Nothing here waits for TIME_WAIT: TCP sockets are closed by RST (SO_LINGER 0), so thousands of
probes leave neither sockets nor long-lived conntrack entries behind.
"""

from __future__ import annotations

import errno
import ipaddress
import select
import socket
import struct
import time
from typing import Final, Protocol

import httptools

from podwire.errors import UnsupportedError
from podwire.explain.probes import icmp
from podwire.explain.probes.wire import Identity, Probe, ProbeResult, Verdict, parse_identity

_LINGER_RST: Final = struct.pack("ii", 1, 0)
_READ_BYTES: Final = 65536
# A stand-in's answer is below 4 KiB; a probe needs no more of anybody's page.
_HTTP_MAX_BYTES: Final = 256 * 1024
_SO_RCVBUFFORCE: Final = 33
_CHANNEL_BUFFER_BYTES: Final = 2 * 1024 * 1024
_ESTABLISHED_THEN_CLOSED: Final = {errno.ECONNRESET, errno.EPIPE}
_BAD_EVENTS: Final = select.EPOLLERR | select.EPOLLHUP


class Loop(Protocol):
    """What a session may ask of the engine."""

    def watch(self, sock: socket.socket, events: int, session: Session) -> None: ...

    def change(self, sock: socket.socket, events: int) -> None: ...

    def forget(self, sock: socket.socket) -> None: ...

    def finished(self, session: Session, result: ProbeResult) -> None: ...

    def socket_again(
        self, session: Session, family: int, kind: int, proto: int
    ) -> socket.socket: ...


class Session:
    """The common part: sockets, clock and the one result."""

    kind = socket.SOCK_STREAM
    proto = 0
    attempts = 2

    def __init__(self, loop: Loop, index: int, probe: Probe) -> None:
        self.loop = loop
        self.index = index
        self.probe = probe
        self.done = False
        self.tries = 0
        self.sockets: list[socket.socket] = []
        self.started_ns = 0
        self.next_timer_ns = 0
        self._timers = 0
        self.version = 6 if ":" in probe.address else 4
        self.family = socket.AF_INET6 if self.version == 6 else socket.AF_INET

    def open(self) -> None:
        """Make the first socket; called inside the source's namespace."""
        self._prepare(socket.socket(self.family, self.kind | socket.SOCK_NONBLOCK, self.proto))

    def start(self) -> None:
        """Send the first packet; called outside the source's namespace."""
        self.started_ns = time.monotonic_ns()
        self._schedule()
        self._send_first(self.sockets[0])

    def on_event(self, fd: int, events: int) -> None:
        raise NotImplementedError

    def on_timer(self) -> None:
        """Try once more or give up."""
        if self._timers >= self.attempts:
            self.finish(*self._timeout_verdict())
            return
        self._try_again()
        if not self.done:
            self._schedule()

    def finish(
        self,
        verdict: Verdict,
        detail: str = "",
        *,
        identity: Identity | None = None,
        status: int = 0,
    ) -> None:
        if self.done:
            return
        # A drop has no latency: the time until we gave up would read like one.
        elapsed = 0 if verdict in ("dropped", "error") else time.monotonic_ns() - self.started_ns
        who = identity or Identity()
        self.end(
            ProbeResult(
                verdict=verdict,
                latency_us=elapsed // 1000,
                client=who.client,
                peer=who.peer,
                peer_node=who.node,
                status=status,
                tries=self.tries,
                detail=detail,
            )
        )

    def end(self, result: ProbeResult) -> None:
        if self.done:
            return
        self.done = True
        self.close()
        self.loop.finished(self, result)

    def close(self) -> None:
        for sock in self.sockets:
            self.loop.forget(sock)
            sock.close()
        self.sockets.clear()

    # --- for the protocols ---

    def _send_first(self, sock: socket.socket) -> None:
        raise NotImplementedError

    def _try_again(self) -> None:
        raise NotImplementedError

    def _timeout_verdict(self) -> tuple[Verdict, str]:
        return "dropped", ""

    def _prepare(self, sock: socket.socket) -> socket.socket:
        self.sockets.append(sock)
        icmp.enable_error_queue(sock, self.version)
        if self.probe.source_address:
            # A second socket beside the first cannot have the same port.
            port = self.probe.source_port if len(self.sockets) == 1 else 0
            if self.version == 4 and not port:
                # Bind the address only; the port is chosen at connect, unique per destination.
                sock.setsockopt(socket.IPPROTO_IP, icmp.IP_BIND_ADDRESS_NO_PORT, 1)
            sock.bind((self.probe.source_address, port))
        return sock

    @property
    def _deadline_ns(self) -> int:
        return self.started_ns + int(self.probe.timeout_s * 1e9)

    def _schedule(self) -> None:
        """Retries divide the time to the deadline evenly."""
        self._timers += 1
        step = int(self.probe.timeout_s * 1e9) // self.attempts
        self.next_timer_ns = min(self.started_ns + step * self._timers, self._deadline_ns)

    def _judge(self, sock: socket.socket, number: int, *, closed_by_icmp: bool) -> None:
        if (error := icmp.read_error(sock)) is not None:
            self._judge_icmp(error, closed_by_icmp=closed_by_icmp)
        else:
            self.finish(*icmp.judge_errno(number))

    def _judge_icmp(self, error: icmp.IcmpError, *, closed_by_icmp: bool) -> None:
        self.finish(
            *icmp.judge(
                error, self.probe.address, self._own_address(), closed_by_icmp=closed_by_icmp
            )
        )

    def _own_address(self) -> str:
        """The address the source speaks from, asked of the routing table; "" without a route."""
        if self.probe.source_address:
            return self.probe.source_address
        try:
            with self.loop.socket_again(self, self.family, socket.SOCK_DGRAM, 0) as sock:
                sock.connect((self.probe.address, 9))
                return str(sock.getsockname()[0])
        except OSError:
            return ""


class TcpSession(Session):
    """Connect, then reset. Also SCTP, whose one-to-one sockets behave alike.

    The kernel sends a lost SYN again only after a second, so half-way to the deadline a second
    socket tries too; the first stays, because a slow path is not a lost packet.
    """

    def _send_first(self, sock: socket.socket) -> None:
        self._connect(sock)

    def _connect(self, sock: socket.socket) -> None:
        self.tries += 1
        number = sock.connect_ex((self.probe.address, self.probe.port))
        if number in (0, errno.EINPROGRESS):
            self.loop.watch(sock, select.EPOLLOUT, self)
        elif len(self.sockets) == 1:
            self._judge(sock, number, closed_by_icmp=False)

    def _try_again(self) -> None:
        try:
            sock = self.loop.socket_again(
                self, self.family, self.kind | socket.SOCK_NONBLOCK, self.proto
            )
        except OSError:
            return  # the first socket is still trying
        self._prepare(sock)
        self._connect(sock)

    def on_event(self, fd: int, events: int) -> None:
        sock = next((s for s in self.sockets if s.fileno() == fd), None)
        if sock is None:
            return
        number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if number in _ESTABLISHED_THEN_CLOSED:
            number = 0  # in SYN_SENT an RST reads ECONNREFUSED, so there was a connection
        if number:
            self._judge(sock, number, closed_by_icmp=False)
        elif _connected_to_itself(sock):
            self.finish("refused")
        else:
            self._connected(sock)

    def _connected(self, sock: socket.socket) -> None:
        self.finish("allowed")

    def close(self) -> None:
        for sock in self.sockets:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RST)
        super().close()


class SctpSession(TcpSession):
    proto = socket.IPPROTO_SCTP


class HttpSession(TcpSession):
    """TCP, then one GET; any response is an answer, and a stand-in's says who it saw."""

    def __init__(self, loop: Loop, index: int, probe: Probe) -> None:
        super().__init__(loop, index, probe)
        self.stream: socket.socket | None = None
        self.body = bytearray()
        self.received = 0
        self.complete = False
        self.parser = httptools.HttpResponseParser(self)

    # httptools' callbacks
    def on_body(self, data: bytes) -> None:
        self.body += data

    def on_message_complete(self) -> None:
        self.complete = True

    def _connected(self, sock: socket.socket) -> None:
        if self.stream is not None:
            return
        self.stream = sock
        for other in [s for s in self.sockets if s is not sock]:
            self.loop.forget(other)
            other.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RST)
            other.close()
        self.sockets[:] = [sock]
        try:
            sock.send(self._request())
        except OSError as e:
            self.finish("refused", f"connected, then {e.strerror}")
            return
        self.loop.change(sock, select.EPOLLIN)

    def _request(self) -> bytes:
        probe = self.probe
        address = f"[{probe.address}]" if self.version == 6 else probe.address
        return (
            f"GET {probe.path} HTTP/1.1\r\nHost: {probe.host or f'{address}:{probe.port}'}\r\n"
            "User-Agent: podwire-probe\r\nAccept: application/json\r\nConnection: close\r\n\r\n"
        ).encode()

    def _try_again(self) -> None:
        if self.stream is None:
            super()._try_again()
        else:
            self.tries += 1  # the kernel repeats what is lost on a connection

    def on_event(self, fd: int, events: int) -> None:
        if self.stream is None:
            super().on_event(fd, events)
            return
        try:
            data = self.stream.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError as e:
            self.finish("refused", f"connected, then {e.strerror}")
            return
        self._received(data)

    def _received(self, data: bytes) -> None:
        self.received += len(data)
        try:
            if data:
                self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self.complete = True
        except httptools.HttpParserError:
            self.finish("error", "connected, but the answer is not HTTP/1")
            return
        if self.complete or self.received > _HTTP_MAX_BYTES or (not data and self.received):
            status = self.parser.get_status_code()
            self.finish("allowed", identity=parse_identity(bytes(self.body)), status=status)
        elif not data:
            self.finish("refused", "connected, then closed without an answer")

    def _timeout_verdict(self) -> tuple[Verdict, str]:
        return "dropped", "connected, but no HTTP answer" if self.stream else ""


class UdpSession(Session):
    """Send the payload, wait for any answer; repeated twice before the deadline."""

    kind = socket.SOCK_DGRAM
    attempts = 3

    def _send_first(self, sock: socket.socket) -> None:
        number = sock.connect_ex((self.probe.address, self.probe.port))
        if number:
            self._judge(sock, number, closed_by_icmp=True)
            return
        self.loop.watch(sock, select.EPOLLIN, self)
        self._try_again()

    def _try_again(self) -> None:
        self.tries += 1
        try:
            self.sockets[0].send(self.probe.payload.encode())
        except BlockingIOError:
            pass
        except OSError as e:
            if e.errno != errno.EPERM:
                self._judge(self.sockets[0], e.errno or 0, closed_by_icmp=True)

    def on_event(self, fd: int, events: int) -> None:
        sock = self.sockets[0]
        try:
            data = sock.recv(_READ_BYTES)
        except BlockingIOError:
            if events & _BAD_EVENTS and (error := icmp.read_error(sock)) is not None:
                self._judge_icmp(error, closed_by_icmp=True)
            return
        except OSError as e:
            self._judge(sock, e.errno or 0, closed_by_icmp=True)
            return
        self.finish("allowed", identity=parse_identity(data))

    def _timeout_verdict(self) -> tuple[Verdict, str]:
        return "dropped", "no answer"


class IcmpSession(Session):
    """An echo through the `IcmpChannel` of its source; the channel owns the socket."""

    attempts = 3
    channel: IcmpChannel | None = None
    seq = 0

    def open(self) -> None:
        """Nothing: the engine gives the session its `channel`."""

    def start(self) -> None:
        self.started_ns = time.monotonic_ns()
        self._schedule()
        if self.channel is not None:
            self.seq = self.channel.enlist(self)
            self._try_again()

    def _try_again(self) -> None:
        self.tries += 1
        if self.channel is not None:
            self.channel.send(self)

    def refused_by(self, error: icmp.IcmpError) -> None:
        self._judge_icmp(error, closed_by_icmp=False)

    def close(self) -> None:
        if self.channel is not None:
            self.channel.dismiss(self)


class IcmpChannel:
    """One ICMP socket for all echoes of one source; replies find their session by (id, seq).

    A raw socket where we may (root, also of a user namespace), else a ping socket, whose id the
    kernel chooses. Every raw socket of a namespace receives every reply, so there is one.
    """

    def __init__(self, loop: Loop, version: int, source_address: str, dont_fragment: bool) -> None:
        self.loop = loop
        self.version = version
        self.pending: dict[int, IcmpSession] = {}
        self.done = False
        self._next_seq = 0
        self.sock, self.raw = _icmp_socket(version)
        self.ident = (id(self) >> 4) & 0xFFFF
        _widen(self.sock)
        icmp.enable_error_queue(self.sock, version)
        if dont_fragment:
            icmp.forbid_fragments(self.sock, version)
        if source_address:
            self.sock.bind((source_address, 0))

    def enlist(self, session: IcmpSession) -> int:
        while self._next_seq in self.pending:
            self._next_seq = (self._next_seq + 1) & 0xFFFF
        seq = self._next_seq
        self._next_seq = (seq + 1) & 0xFFFF
        self.pending[seq] = session
        return seq

    def dismiss(self, session: IcmpSession) -> None:
        if self.pending.get(session.seq) is session:
            del self.pending[session.seq]

    def send(self, session: IcmpSession) -> None:
        packet = icmp.echo_request(self.version, self.ident, session.seq, session.probe.size)
        try:
            self.sock.sendto(packet, (session.probe.address, 0))
        except BlockingIOError:
            pass  # the send buffer is full: the session's next try
        except OSError as e:
            # May be the pending error of another session's packet, kept in the queue as well.
            mtu = self.drain_errors()
            if not session.done and e.errno != errno.EPERM:
                session.finish(*icmp.judge_errno(e.errno or 0, mtu))

    def on_event(self, fd: int, events: int) -> None:
        if events & _BAD_EVENTS:
            self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            self.drain_errors()
        for _ in range(256):
            try:
                packet, address = self.sock.recvfrom(_READ_BYTES)
            except BlockingIOError:
                return
            except OSError:
                continue  # its explanation waits in the error queue
            self._reply(packet, str(address[0]))

    def _reply(self, packet: bytes, sender: str) -> None:
        message = icmp.strip_ip_header(packet) if self.raw and self.version == 4 else packet
        echo = icmp.parse_echo(message)
        if echo is None or echo[0] != icmp.ECHO_REPLY[self.version]:
            return
        if self.raw and echo[1] != self.ident:
            return
        session = self.pending.get(echo[2])
        if session is not None and _same_address(sender, session.probe.address):
            session.finish("allowed")

    def drain_errors(self) -> int:
        """Give every queued error to its session; returns the MTU our own stack complained of."""
        mtu = 0
        for _ in range(256):
            error = icmp.read_error(self.sock)
            if error is None:
                break
            if error.origin == icmp.ORIGIN_LOCAL:
                mtu = error.mtu
                continue
            echo = icmp.parse_echo(error.original)
            session = self.pending.get(echo[2]) if echo else None
            if session is None or (self.raw and echo and echo[1] != self.ident):
                continue
            session.refused_by(error)
        return mtu

    def close(self) -> None:
        self.loop.forget(self.sock)
        self.sock.close()


def _icmp_socket(version: int) -> tuple[socket.socket, bool]:
    family = socket.AF_INET6 if version == 6 else socket.AF_INET
    proto = socket.IPPROTO_ICMPV6 if version == 6 else socket.IPPROTO_ICMP
    try:
        sock = socket.socket(family, socket.SOCK_RAW | socket.SOCK_NONBLOCK, proto)
    except PermissionError:
        return _ping_socket(family, proto), False
    icmp.filter_echo_replies(sock, version)
    return sock, True


def _ping_socket(family: int, proto: int) -> socket.socket:
    try:
        return socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, proto)
    except PermissionError as e:
        raise UnsupportedError(
            "no permission to send ICMP: it takes CAP_NET_RAW, or a group in the sysctl "
            "net.ipv4.ping_group_range of the source's namespace"
        ) from e


def _widen(sock: socket.socket) -> None:
    """The default receive buffer holds 256 echo replies (832 bytes of memory each)."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _CHANNEL_BUFFER_BYTES)
    except PermissionError:
        # Up to net.core.rmem_max; CAP_NET_ADMIN of a user namespace is not enough to pass it.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _CHANNEL_BUFFER_BYTES)


def _same_address(left: str, right: str) -> bool:
    return left == right or (
        ":" in left
        and ipaddress.ip_address(left.partition("%")[0])
        == ipaddress.ip_address(right.partition("%")[0])
    )


def _connected_to_itself(sock: socket.socket) -> bool:
    """A connect to an own address and a free ephemeral port can meet itself (RFC 9293, 3.5)."""
    try:
        return bool(sock.getsockname() == sock.getpeername())
    except OSError:
        return False
