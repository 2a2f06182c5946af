"""What Services cost packets: connecting with 10, 1,000 and 10,000 of them, and a long stream.

    python benchmarks/services_packets.py [--rounds 21] [--connects 2000] [--seconds 1.0]

Every world is a node namespace between two pods' namespaces, with the node's real ruleset. Measured
in turns, each round in the opposite order:

    first packet   time of connect() through a Service's cluster IP (the handshake: one nat walk);
                   the median of each round's connects, and its ratio to the world of 10 Services.
                   A second world of 10 is the noise (A/A)
    stream         bytes a second of one TCP connection through a cluster IP among 10,000 Services,
                   against the same pods directly on a node whose table has no Service; another
                   such node is the noise (A/A), one without any table shows what tracking costs
"""

from __future__ import annotations

import argparse
import contextlib
import os
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv4Network
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from lib import paired, print_result
from podwire.agents.nftablesbackend import NftablesBackend
from podwire.agents.servicekernel import Ranges
from podwire.kernel import libc, netns, sysctl, userns
from podwire.kernel.requests import AddLink, Address, Replace, Request, Route, SetLink, Veth
from podwire.kernel.rtnl import Rtnl, loopback_up
from podwire.services.claims import Claims, Owner
from podwire.services.model import compile_service
from service_sizes import CLUSTER_CIDR, NODE, SERVICE_CIDR, Size, cluster_ip, snapshot

_CLIENT, _SERVER = "10.128.255.2", "10.128.0.1"  # the server is endpoint 0 of Service 0
_PORT = 8080
_RST_ON_CLOSE = b"\1\0\0\0\0\0\0\0"
_CHUNK = 1 << 18


@dataclass(frozen=True)
class World:
    """`client` and `server` are pinned namespaces; `services` -1 means no table at all."""

    services: int
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


def build(folder: Path, name: str, services: int) -> World:
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
        _wire(node, client, "client", _CLIENT)
        _wire(node, server, "server", _SERVER)
        if services >= 0:
            with netns.entered(node):
                program(services)
    return World(services, pins[1], pins[2])


def program(services: int) -> None:
    """Services of ten endpoints; Service 0 has the one that is really there."""
    claims = Claims()
    backend = NftablesBackend((4,), claims)
    backend.open(Ranges((SERVICE_CIDR,), (CLUSTER_CIDR,)))
    world = snapshot(Size(services, 10))
    if world:
        world[0] = snapshot(Size(1, 1))[0]
    for service, slices in world:
        frontends = compile_service(service, slices, NODE).frontends
        claims.set(Owner("Service", service.key), frontends)
    backend.commit()
    backend.close()


def socket_in(pin: Path) -> socket.socket:
    fd = netns.open_pin(pin)
    try:
        return netns.socket_in(fd, socket.AF_INET)
    finally:
        os.close(fd)


class Sink(threading.Thread):
    """Accepts on every world's server; reads what comes and counts it."""

    def __init__(self, worlds: list[World]) -> None:
        super().__init__(daemon=True)
        self._selector = selectors.DefaultSelector()
        self.received = 0
        for world in worlds:
            sock = socket_in(world.server)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((_SERVER, _PORT))
            sock.listen(4096)
            sock.setblocking(False)
            self._selector.register(sock, selectors.EVENT_READ, True)

    def run(self) -> None:
        buffer = bytearray(_CHUNK)
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


def connect_us(world: World, connects: int) -> float:
    """The median microseconds of connect() through the Service."""
    fd = netns.open_pin(world.client)
    took = []
    try:
        for _ in range(connects):
            sock = netns.socket_in(fd, socket.AF_INET)
            began = time.perf_counter()
            sock.connect((cluster_ip(0), 80))
            took.append(time.perf_counter() - began)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RST_ON_CLOSE)
            sock.close()
    finally:
        os.close(fd)
    return median(took) * 1e6


def stream_bytes(world: World, target: tuple[str, int], seconds: float) -> float:
    """Bytes a second of one connection, as its sender's process counts them."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if not child:
        # Its own process: sender and receiver would share one interpreter otherwise.
        sent = 0
        sock = socket_in(world.client)
        sock.connect(target)
        chunk = bytes(_CHUNK)
        began = time.perf_counter()
        while time.perf_counter() - began < seconds:
            sent += sock.send(chunk)
        os.write(write_end, str(sent / (time.perf_counter() - began)).encode())
        sock.close()
        os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end) as pipe:
        rate = float(pipe.read())
    os.waitpid(child, 0)
    return rate


def first_packets(worlds: dict[str, World], rounds: int, connects: int) -> dict[str, Any]:
    """Each world against that of 10 Services."""
    base = worlds["10"]

    def measure(world: World) -> Callable[[], float]:
        return lambda: connect_us(world, connects)

    return {
        name: paired(measure(world), measure(base), rounds).as_json()
        for name, world in worlds.items()
        if name != "10"
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--connects", type=int, default=2000)
    parser.add_argument("--seconds", type=float, default=1.0)
    args = parser.parse_args()
    userns.unshare_as_root(libc.CLONE_NEWNET | libc.CLONE_NEWNS)
    libc.mount("podwire", "/mnt", "tmpfs", data="mode=0700")
    folder = Path("/mnt")
    worlds = {
        name: build(folder, name, count)
        for name, count in (("10", 10), ("10 again", 10), ("1000", 1000), ("10000", 10_000))
    }
    empty, again = build(folder, "empty", 0), build(folder, "empty-again", 0)
    bare = build(folder, "bare", -1)
    every = [*worlds.values(), empty, again, bare]
    Sink(every).start()
    through, direct = (cluster_ip(0), 80), (_SERVER, _PORT)

    def stream(world: World, target: tuple[str, int]) -> Callable[[], float]:
        return lambda: stream_bytes(world, target, args.seconds)

    plain = stream(empty, direct)
    streams = {
        "through 10,000 Services": stream(worlds["10000"], through),
        "no Service again": stream(again, direct),
        "no table": stream(bare, direct),
    }
    print_result(
        "services_packets",
        connect_us_against_10_services=first_packets(worlds, args.rounds, args.connects),
        stream_against_no_service={
            name: paired(measure, plain, args.rounds, more_is_better=True).as_json()
            for name, measure in streams.items()
        },
        targets={"connect_ratio": "0.9 to 1.1", "stream_ratio": 0.98},
    )


if __name__ == "__main__":
    main()
