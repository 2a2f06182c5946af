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
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from lib import paired, print_result
from podpair import CHUNK, PORT, SERVER, Sink, World, build, connect_us, socket_in
from podwire.agents.nftablesbackend import NftablesBackend
from podwire.agents.servicekernel import Ranges
from podwire.kernel import libc, userns
from podwire.services.claims import Claims, Owner
from podwire.services.model import compile_service
from service_sizes import CLUSTER_CIDR, NODE, SERVICE_CIDR, Size, cluster_ip, snapshot


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


def stream_bytes(world: World, target: tuple[str, int], seconds: float) -> float:
    """Bytes a second of one connection, as its sender's process counts them."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if not child:
        # Its own process: sender and receiver would share one interpreter otherwise.
        sent = 0
        sock = socket_in(world.client)
        sock.connect(target)
        chunk = bytes(CHUNK)
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
        return lambda: connect_us(world, (cluster_ip(0), 80), connects)

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
        name: build(folder, name, partial(program, count))
        for name, count in (("10", 10), ("10 again", 10), ("1000", 1000), ("10000", 10_000))
    }
    empty, again = (build(folder, n, partial(program, 0)) for n in ("empty", "empty-again"))
    bare = build(folder, "bare")
    every = [*worlds.values(), empty, again, bare]
    Sink(every).start()
    through, direct = (cluster_ip(0), 80), (SERVER, PORT)

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
