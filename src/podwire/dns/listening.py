"""The program's sockets: those it was given open, else its own.

A given socket is dup'ed for every use, so that a new configuration listens before the old one has
ended and no datagram falls between them.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Sequence
from typing import Final

from podwire.errors import UsageError
from podwire.kernel.sockets import open_socket

_ANYWHERE: Final = ("0.0.0.0", "::")


class Listening:
    """`given`: descriptors of bound sockets; the process keeps them open to its end."""

    def __init__(self, given: Sequence[int] = ()) -> None:
        self._given = [socket.socket(fileno=fd) for fd in given]

    def sockets(
        self, kind: socket.SocketKind, port: int, addresses: Sequence[str] = ()
    ) -> list[socket.socket]:
        """Bound sockets of one port, streams listening; `addresses` () is every address."""
        fitting = [s for s in self._given if s.type == kind and s.getsockname()[1] == port]
        if addresses:
            fitting = [s for s in fitting if s.getsockname()[0] in addresses]
        if fitting:
            return [s.dup() for s in fitting]
        return _open(kind, port, addresses or _ANYWHERE, all_of_them=bool(addresses))


def _open(
    kind: socket.SocketKind, port: int, addresses: Iterable[str], *, all_of_them: bool
) -> list[socket.socket]:
    opened: list[socket.socket] = []
    failures: list[str] = []
    for address in addresses:
        try:
            opened.append(open_socket(address, port, kind))
        except OSError as error:
            failures.append(f"{address} port {port}: {error.strerror}")
    # A host without IPv6 has no `::` to listen on, which is no fault.
    if not opened or (all_of_them and failures):
        for sock in opened:
            sock.close()
        raise UsageError(f"listening on {'; '.join(failures)}")
    return opened


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
