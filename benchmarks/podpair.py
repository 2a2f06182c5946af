"""Two pods on one node, in namespaces of their own: what benchmarks of packets measure between.

client 10.128.255.2 -veth- node (forwards, holds the rules) -veth- server 10.128.0.1:8080
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv4Network
from pathlib import Path
from statistics import median

from podwire.kernel import netns, sysctl
from podwire.kernel.requests import AddLink, Address, Replace, Request, Route, SetLink, Veth
from podwire.kernel.rtnl import Rtnl, loopback_up

CLIENT, SERVER = "10.128.255.2", "10.128.0.1"
PORT = 8080
CHUNK = 1 << 18
_RST_ON_CLOSE = b"\1\0\0\0\0\0\0\0"


@dataclass(frozen=True)
class World:
    """`client` and `server` are pinned namespaces."""

    client: Path
    server: Path


def _wire(node_fd: int, pod_fd: int, device: str, address: str) -> None:
    """A pod on the node: a veth, host routes on both ends."""
    veth = Veth(peer="eth0", netns=pod_fd)
    outside: list[Request] = [
        AddLink(name=device, kind=veth),
        SetLink(device=device, up=True),
        Replace(Address(device, IPv4Interface("169.254.1.1/32"))),
        Replace(Route(destination=IPv4Network(f"{address}/32"), device=device)),
    ]
    inside: list[Request] = [
        loopback_up(),
        SetLink(device="eth0", up=True),
        Replace(Address("eth0", IPv4Interface(f"{address}/32"))),
        Replace(Route(destination=IPv4Network("169.254.1.1/32"), device="eth0")),
    ]
    with Rtnl.in_ns(node_fd) as rtnl:
        rtnl.apply(outside)
    with Rtnl.in_ns(pod_fd) as rtnl:
        rtnl.apply(inside)
        default = Route(
            destination=IPv4Network("0.0.0.0/0"),
            via=IPv4Interface("169.254.1.1/32").ip,
            device="eth0",
        )
        rtnl.apply([Replace(default)])


def build(folder: Path, name: str, prepare: Callable[[], None] | None = None) -> World:
    """`prepare` runs in the node's namespace once both pods are wired."""
    pins = [folder / f"{name}-{part}" for part in ("node", "client", "server")]
    with contextlib.ExitStack() as stack:
        fds = []
        for pin in pins:
            with netns.creating(pin) as fd:
                pass
            fds.append(fd)
            stack.callback(os.close, fd)
        node, client, server = fds
        sysctl.write({"net.ipv4.ip_forward": 1}, node)
        with Rtnl.in_ns(node) as rtnl:
            rtnl.apply([loopback_up()])
        _wire(node, client, "client", CLIENT)
        _wire(node, server, "server", SERVER)
        if prepare is not None:
            with netns.entered(node):
                prepare()
    return World(pins[1], pins[2])


def socket_in(pin: Path) -> socket.socket:
    fd = netns.open_pin(pin)
    try:
        return netns.socket_in(fd, socket.AF_INET)
    finally:
        os.close(fd)


class Sink(threading.Thread):
    """Accepts on every world's server; reads what comes and counts it."""

    def __init__(self, worlds: Iterable[World]) -> None:
        super().__init__(daemon=True)
        self._selector = selectors.DefaultSelector()
        self.received = 0
        for world in worlds:
            sock = socket_in(world.server)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((SERVER, PORT))
            sock.listen(4096)
            sock.setblocking(False)
            self._selector.register(sock, selectors.EVENT_READ, True)

    def run(self) -> None:
        buffer = bytearray(CHUNK)
        while True:
            for key, _ in self._selector.select():
                sock = key.fileobj
                assert isinstance(sock, socket.socket)
                try:
                    if key.data:
                        self._selector.register(sock.accept()[0], selectors.EVENT_READ, False)
                        continue
                    count = sock.recv_into(buffer)
                except OSError:
                    count = 0
                self.received += count
                if not count and not key.data:
                    self._selector.unregister(sock)
                    sock.close()


def connect_us(world: World, target: tuple[str, int], connects: int) -> float:
    """The median microseconds of connect()."""
    fd = netns.open_pin(world.client)
    took = []
    try:
        for _ in range(connects):
            sock = netns.socket_in(fd, socket.AF_INET)
            began = time.perf_counter()
            sock.connect(target)
            took.append(time.perf_counter() - began)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RST_ON_CLOSE)
            sock.close()
    finally:
        os.close(fd)
    return median(took) * 1e6
