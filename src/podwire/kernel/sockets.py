"""Server sockets, opened in the calling thread's namespace."""

from __future__ import annotations

import socket
from typing import Final

_BACKLOG: Final = 1024


def open_socket(address: str, port: int, kind: int) -> socket.socket:
    """One bound socket, listening if it is a stream; an IPv6 one takes no IPv4. Errors: OSError."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family, kind)
    try:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if kind == socket.SOCK_STREAM:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address, port))
        if kind == socket.SOCK_STREAM:
            sock.listen(_BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock
