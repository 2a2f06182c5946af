"""The program's sockets: those it was given open, else its own.

Either is dup'ed for every use, so that a new configuration listens before the old one has ended and
no datagram falls between them.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Collection, Iterable, Sequence
from typing import Final

from podwire.errors import UsageError
from podwire.kernel.sockets import open_socket

_ANYWHERE: Final = ("0.0.0.0", "::")
_Place = tuple[socket.SocketKind, str, int]


class Listening:
    """`given`: descriptors of bound sockets; the process keeps them open to its end."""

    def __init__(self, given: Sequence[int] = ()) -> None:
        self._given = [socket.socket(fileno=fd) for fd in given]
        self._own: dict[_Place, socket.socket] = {}

    def sockets(
        self, kind: socket.SocketKind, port: int, addresses: Sequence[str] = ()
    ) -> list[socket.socket]:
        """Bound sockets of one port, streams listening; `addresses` () is every address."""
        fitting = [s for s in self._given if s.type == kind and s.getsockname()[1] == port]
        if addresses:
            fitting = [s for s in fitting if s.getsockname()[0] in addresses]
        if fitting:
            return [s.dup() for s in fitting]
        places = [(kind, address, port) for address in addresses or _ANYWHERE]
        self._open(places, all_of_them=bool(addresses))
        return [self._own[place].dup() for place in places if place in self._own]

    def _open(self, places: Iterable[_Place], *, all_of_them: bool) -> None:
        """Those that are not open yet; none of them if that fails."""
        opened: dict[_Place, socket.socket] = {}
        failures: list[str] = []
        there = False
        for place in places:
            kind, address, port = place
            if place in self._own:
                there = True
                continue
            try:
                opened[place] = open_socket(address, port, kind)
            except OSError as error:
                failures.append(f"{address} port {port}: {error.strerror}")
        # A host without IPv6 has no `::` to listen on, which is no fault.
        if failures and (all_of_them or not (opened or there)):
            for sock in opened.values():
                sock.close()
            raise UsageError(f"listening on {'; '.join(failures)}")
        self._own |= opened

    def keep(self, ports: Collection[int]) -> None:
        """Its own of other ports are closed: nobody reads what arrives there."""
        for place in [place for place in self._own if place[2] not in ports]:
            self._own.pop(place).close()


def parse_listener(text: str) -> tuple[str, int]:
    """`:8080`, `localhost:9153`, `[::1]:8080` -> host ("" is every address) and port."""
    host, _, port = text.rpartition(":")
    host = host.strip("[]")
    if host == "localhost":
        host = "127.0.0.1"
    try:
        return host, int(port)
    except ValueError as error:
        raise UsageError(f"{text}: is no address with a port") from error


def own_addresses(hosts: str, hostname: str = "") -> tuple[str, ...]:
    """The pod's addresses, as its hosts file tells them; the loopback address without."""
    name = hostname or os.uname().nodename
    lines = (line.partition("#")[0].split() for line in hosts.splitlines())
    return tuple(line[0] for line in lines if name in line[1:]) or ("127.0.0.1",)
