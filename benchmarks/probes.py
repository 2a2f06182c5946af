"""Probes per second of one engine, between pods of a topology built by hand with `ip`.

    python benchmarks/probes.py [--count 20000]

The listener is another process on the same machine and shares its processors. There is no other
tool to compare with; the target is issue 2's "thousands of probes a second".
"""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import signal
import socket
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from lib import percentile, print_result
from podwire.explain.probes import Probe, ProbeEngine, Protocol
from podwire.kernel import libc, netns
from throughput import Kind, Place, hand_built

_TCP, _UDP, _CLOSED = 8080, 5353, 9999
_TARGET = 5000
_BODY = b'{"namespace":"bench","pod":"peer","node":"node-1","client":"0.0.0.0"}'
_HTTP = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(_BODY), _BODY)


def pin(place: Place) -> str:
    return f"/proc/{place.pid}/root{place.pin}"


def listeners(place: Place) -> list[socket.socket]:
    fd = netns.open_pin(Path(pin(place)))
    tcp = netns.socket_in(fd)
    tcp.bind(("", _TCP))
    tcp.listen(1024)
    udp = netns.socket_in(fd, socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind(("", _UDP))
    os.close(fd)
    for sock in (tcp, udp):
        sock.setblocking(False)
    return [tcp, udp]


def serve(sockets: list[socket.socket]) -> None:
    epoll, known = select.epoll(), {sock.fileno(): sock for sock in sockets}
    for sock in sockets:
        epoll.register(sock, select.EPOLLIN)
    listening = {sock.fileno() for sock in sockets if sock.type == socket.SOCK_STREAM}
    while True:
        for fd, _events in epoll.poll():
            sock = known[fd]
            with contextlib.suppress(BlockingIOError, ConnectionError):
                if sock.type == socket.SOCK_DGRAM:
                    while True:
                        sock.sendto(_BODY, sock.recvfrom(2048)[1])
                if fd in listening:
                    while True:
                        conn, _peer = sock.accept()
                        known[conn.fileno()] = conn
                        epoll.register(conn, select.EPOLLIN)
                if sock.recv(4096):
                    sock.send(_HTTP)
            if fd not in listening and sock.type == socket.SOCK_STREAM:
                known.pop(fd).close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20_000)
    count = parser.parse_args().count
    if os.geteuid() != 0:
        raise SystemExit("needs root")
    figures: dict[str, dict[str, object]] = {}
    with hand_built(Kind("routed", "none")) as world:
        sockets = [sock for place in (world.near, world.far) for sock in listeners(place)]
        server = os.fork()
        if server == 0:
            libc.set_pdeathsig(signal.SIGKILL)
            serve(sockets)
        try:
            cases: list[tuple[str, Protocol, int]] = [
                ("tcp", "tcp", _TCP),
                ("tcp refused", "tcp", _CLOSED),
                ("http", "http", _TCP),
                ("udp", "udp", _UDP),
                ("icmp", "icmp", 0),
            ]
            for name, protocol, port in cases:
                targets = (world.near.address, world.far.address)
                probes = [
                    Probe(
                        netns=pin(world.client),
                        address=targets[i % 2],
                        port=port,
                        protocol=protocol,
                    )
                    for i in range(count)
                ]
                started, cpu = time.perf_counter(), time.process_time()
                results = ProbeEngine().run(probes)
                elapsed = time.perf_counter() - started
                wanted = "refused" if port == _CLOSED else "allowed"
                figures[name] = {
                    "probes_per_second": round(count / elapsed),
                    "cpu_us_per_probe": round((time.process_time() - cpu) / count * 1e6, 1),
                    "as_expected": sum(r.verdict == wanted for r in results),
                    "count": count,
                    "latency_us_p50": percentile([r.latency_us for r in results], 0.5),
                    "latency_us_p99": percentile([r.latency_us for r in results], 0.99),
                }
        finally:
            os.kill(server, signal.SIGKILL)
            os.waitpid(server, 0)
    print_result("probes", target_tcp_per_second=_TARGET, figures=figures)


if __name__ == "__main__":
    main()
