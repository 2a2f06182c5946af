"""The sockets of liveness: heartbeats by UDP between nodes, echo requests to those that are silent.

Heartbeats are believed only from the address the API names for their sender.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Iterable, Mapping
from ipaddress import ip_address
from typing import Final, Protocol, TypeAlias

from podwire.errors import KernelError
from podwire.explain.probes import icmp
from podwire.services.heartbeats import Heartbeat, parse_heartbeat
from podwire.services.pools import Address

PORT: Final = 7947
"""UDP, next to the one MetalLB's speakers use."""
_FAMILIES: Final = {4: socket.AF_INET, 6: socket.AF_INET6}
_ICMP: Final = {4: socket.IPPROTO_ICMP, 6: socket.IPPROTO_ICMPV6}
_IP_FREEBIND: Final = 15
"""linux/in.h; it holds for IPv6 sockets too."""
# More waiting than this is a flood: it must not keep the loop from its timers.
_BATCH: Final = 256


class Wire(Protocol):
    """The way to the other nodes."""

    def set_peers(self, own: Address | None, peers: Mapping[str, Address]) -> None:
        """Errors: `KernelError` where nobody can be heard."""

    def send(self, data: bytes, names: Iterable[str]) -> None: ...
    def ask(self, name: str) -> None: ...
    def close(self) -> None: ...


MakeWire: TypeAlias = Callable[[Callable[[Heartbeat], None], Callable[[str], None]], Wire]


def _bound(own: Address) -> socket.socket:
    sock = socket.socket(_FAMILIES[own.version], socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    try:
        # An IPv6 address may still be tentative, any address may come a little later.
        sock.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
        sock.bind((str(own), PORT))
    except OSError:
        sock.close()
        raise
    return sock


class HeartbeatSocket:
    """`heard` is called with every heartbeat of a peer, `answered` with a peer's name whose kernel
    answered `ask`."""

    def __init__(self, heard: Callable[[Heartbeat], None], answered: Callable[[str], None]) -> None:
        self._heard = heard
        self._answered = answered
        self._own: Address | None = None
        self._peers: Mapping[str, Address] = {}
        self._names: dict[Address, str] = {}
        self._last: dict[str, tuple[bytes, Heartbeat]] = {}
        """The last heartbeat from each address: most are what they were before."""
        self._udp: socket.socket | None = None
        self._raw: dict[int, socket.socket] = {}
        self._ident = os.getpid() & 0xFFFF
        self._seq = 0

    def set_peers(self, own: Address | None, peers: Mapping[str, Address]) -> None:
        """Listen on our own address, where there are others, and know them by theirs."""
        own = own if peers else None
        self._peers = dict(peers)
        self._names = {address: name for name, address in peers.items()}
        self._last.clear()
        if own == self._own:
            return
        self._close_udp()
        self._own = own
        if own is None:
            return
        try:
            self._udp = sock = _bound(own)
        except OSError as error:
            self._own = None
            what = f"load balancers: no heartbeats: UDP {own} port {PORT}"
            raise KernelError(what, errno=error.errno or 0) from error
        asyncio.get_running_loop().add_reader(sock.fileno(), self._read, sock)

    def send(self, data: bytes, names: Iterable[str]) -> None:
        """To these peers; who cannot be reached is noticed by his silence."""
        if self._udp is None:
            return
        for address in (self._peers[name] for name in names if name in self._peers):
            with contextlib.suppress(OSError):
                self._udp.sendto(data, (str(address), PORT))

    def _read(self, sock: socket.socket) -> None:
        """One datagram: what else waits has its turn after the timers, however much it is."""
        try:
            data, where = sock.recvfrom(65535)
        except OSError:
            return
        last = self._last.get(where[0])
        if last is not None and last[0] == data:
            self._heard(last[1])
            return
        beat = parse_heartbeat(data)
        if beat is not None and self._peers.get(beat.node) == ip_address(where[0]):
            self._last[where[0]] = data, beat
            self._heard(beat)

    def ask(self, name: str) -> None:
        """Send the peer's kernel an echo request."""
        address = self._peers.get(name)
        if address is None:
            return
        self._seq = (self._seq + 1) & 0xFFFF
        packet = icmp.echo_request(address.version, self._ident, self._seq)
        with contextlib.suppress(OSError):
            self._raw_socket(address.version).sendto(packet, (str(address), 0))

    def _raw_socket(self, version: int) -> socket.socket:
        """Opened when first needed: it is woken by every echo reply of the node."""
        if version not in self._raw:
            kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK
            sock = socket.socket(_FAMILIES[version], kind, _ICMP[version])
            icmp.filter_echo_replies(sock, version)
            self._raw[version] = sock
            asyncio.get_running_loop().add_reader(sock.fileno(), self._read_echo, sock, version)
        return self._raw[version]

    def _read_echo(self, sock: socket.socket, version: int) -> None:
        for _ in range(_BATCH):
            try:
                packet, where = sock.recvfrom(2048)
            except OSError:
                return
            reply = icmp.parse_echo(icmp.strip_ip_header(packet) if version == 4 else packet)
            if reply is None or reply[:2] != (icmp.ECHO_REPLY[version], self._ident):
                continue
            name = self._names.get(ip_address(where[0]))
            if name is not None:
                self._answered(name)

    def _close_udp(self) -> None:
        if self._udp is not None:
            with contextlib.suppress(RuntimeError):
                asyncio.get_running_loop().remove_reader(self._udp.fileno())
            self._udp.close()
            self._udp = None

    def close(self) -> None:
        self._close_udp()
        for sock in self._raw.values():
            with contextlib.suppress(RuntimeError):
                asyncio.get_running_loop().remove_reader(sock.fileno())
            sock.close()
        self._raw.clear()
