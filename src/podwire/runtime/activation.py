"""Sockets that a built-in program finds open, as a service started by systemd does.

    container's ports -> sockets in the pod's namespace, held by the agent -> passed at every start

They outlive the program: what arrives between its death and its next start waits in the kernel and
is answered, instead of being refused. (A program that is not given any opens its own.)
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from podwire.kernel import netns
from podwire.kernel.sockets import open_socket
from podwire.objects.core import ContainerPort

_KINDS: Final = {"TCP": socket.SOCK_STREAM, "UDP": socket.SOCK_DGRAM}


class ActivatedSockets:
    """By pod and container; `release` when the pod's sandbox ends."""

    def __init__(self) -> None:
        self._held: dict[str, dict[str, list[socket.socket]]] = {}

    def of(
        self,
        uid: str,
        container: str,
        pin: Path | None,
        ports: Sequence[ContainerPort],
        families: Sequence[int],
    ) -> list[socket.socket]:
        """The container's sockets, opened in its namespace (None: ours) the first time."""
        held = self._held.setdefault(uid, {})
        if container not in held:
            held[container] = _open_all(pin, ports, families)
        return held[container]

    def release(self, uid: str) -> None:
        for sockets in self._held.pop(uid, {}).values():
            _close(sockets)


def _open_all(
    pin: Path | None, ports: Sequence[ContainerPort], families: Sequence[int]
) -> list[socket.socket]:
    wanted = [
        ("::" if family == 6 else "0.0.0.0", port.container_port, _KINDS[port.protocol])
        for port in ports
        for family in families
        if port.protocol in _KINDS
    ]
    opened: list[socket.socket] = []
    fd = None if pin is None else netns.open_pin(pin)
    try:
        with netns.maybe_entered(fd):
            for address, number, kind in wanted:
                opened.append(open_socket(address, number, kind))
    except OSError:
        _close(opened)
        raise
    finally:
        if fd is not None:
            os.close(fd)
    return opened


def _close(sockets: Sequence[socket.socket]) -> None:
    for sock in sockets:
        sock.close()
