"""Real sockets on loopback: source ports, spoofs, refusals, kept connections, a real loop."""

from __future__ import annotations

import asyncio
import resource
import socket
from collections.abc import Callable, Coroutine
from typing import Any

import dns.flags
import pytest
import uvloop
from dns_fakes import POD, FakeZone, query, rcode, respond, show

from podwire.dns import packet
from podwire.dns.corefile import parse_corefile
from podwire.dns.front import Front
from podwire.dns.packet import Question, parse_question
from podwire.dns.server import Server, bind
from podwire.dns.slowpath import SlowPath, World
from podwire.dns.upstream import SocketTransport, UpstreamError
from podwire.kernel.rtnl import Rtnl, loopback_up

HOST = "127.0.0.1"
A = ["example.org. 300 IN A 192.0.2.1"]
Says = Callable[[bytes], list[bytes]]


def play(scenario: Coroutine[Any, Any, None]) -> None:
    with Rtnl() as rtnl:
        rtnl.apply([loopback_up()])
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(asyncio.wait_for(scenario, 30))


def plain(wire: bytes) -> list[bytes]:
    return [respond(wire, A)]


def question_of(wire: bytes) -> Question:
    question = parse_question(wire)
    assert question is not None
    return question


class Upstream(asyncio.DatagramProtocol):
    """A server on one port, UDP and TCP; `says` gives the messages to send for a query."""

    def __init__(self, says: Says = plain) -> None:
        self.says = says
        self.peers: list[int] = []
        self.connections = 0
        self.port = 0
        self.close_after_each = False

    async def start(self, port: int = 0) -> Upstream:
        udp, tcp = bind(HOST, port)
        self.port = udp.getsockname()[1]
        loop = asyncio.get_running_loop()
        udp.setblocking(False)
        self.transport, _ = await loop.create_datagram_endpoint(lambda: self, sock=udp)
        self.server = await asyncio.start_server(self._connected, sock=tcp)
        return self

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.peers.append(addr[1])
        for answer in self.says(data):
            self.transport.sendto(answer, addr)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                length = int.from_bytes(await reader.readexactly(2), "big")
                for answer in self.says(await reader.readexactly(length)):
                    writer.write(len(answer).to_bytes(2, "big") + answer)
                if self.close_after_each:
                    break
        except asyncio.IncompleteReadError:
            pass
        writer.close()

    def stop(self) -> None:
        self.transport.close()
        self.server.close()


def test_every_query_comes_from_a_port_of_its_own() -> None:
    async def scenario() -> None:
        upstream = await Upstream().start()
        transport = SocketTransport(HOST, upstream.port)
        wire = query("example.org")
        for _ in range(16):
            assert show(await transport.udp(wire, question_of(wire), 2.0)) == A
        assert len(set(upstream.peers)) > 8
        upstream.stop()

    play(scenario())


def test_what_does_not_match_is_waited_past() -> None:
    def spoofed(wire: bytes) -> list[bytes]:
        good = respond(wire, A)
        other = respond(query("example.com"), ["example.com. 1 IN A 6.6.6.6"])
        return [b"", b"\0", bytes([good[0] ^ 1]) + good[1:], good[:2] + other[2:], wire, good]

    async def scenario() -> None:
        upstream = await Upstream(spoofed).start()
        transport = SocketTransport(HOST, upstream.port)
        wire = query("example.org")
        assert show(await transport.udp(wire, question_of(wire), 2.0)) == A
        assert show(await transport.tcp(wire, question_of(wire), 2.0)) == A
        transport.close()
        upstream.stop()

    play(scenario())


def test_a_port_where_nobody_listens_fails_at_once() -> None:
    async def scenario() -> None:
        transport = SocketTransport(HOST, 1)
        wire = query("example.org")
        started = asyncio.get_running_loop().time()
        with pytest.raises(UpstreamError, match=r"read udp 127\.0\.0\.1:1: Connection refused"):
            await transport.udp(wire, question_of(wire), 5.0)
        with pytest.raises(UpstreamError, match=r"dial tcp 127\.0\.0\.1:1: "):
            await transport.tcp(wire, question_of(wire), 5.0)
        assert asyncio.get_running_loop().time() - started < 1.0

    play(scenario())


def test_a_process_without_descriptors_left_fails_as_an_upstream_does() -> None:
    """Or the reason would be a traceback for each query instead of a line."""

    async def scenario() -> None:
        transport = SocketTransport(HOST, 1)
        wire = query("example.org")
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, most))
        try:
            for ask in (transport.udp, transport.tcp):
                with pytest.raises(UpstreamError, match="Too many open files"):
                    await ask(wire, question_of(wire), 5.0)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))

    play(scenario())


def test_silence_ends_with_the_timeout() -> None:
    async def scenario() -> None:
        upstream = await Upstream(lambda wire: []).start()
        transport = SocketTransport(HOST, upstream.port)
        wire = query("example.org")
        for ask in (transport.udp, transport.tcp):
            with pytest.raises(UpstreamError, match="i/o timeout"):
                await ask(wire, question_of(wire), 0.05)
        upstream.stop()

    play(scenario())


def test_connections_are_kept_and_those_the_other_end_closed_are_replaced() -> None:
    async def scenario() -> None:
        upstream = await Upstream().start()
        slow = SlowPath(
            parse_corefile(
                f". {{\n forward . {HOST}:{upstream.port} {{\n force_tcp\n }}\n}}"
            ).blocks,
            World(),
        )
        for _ in range(5):
            assert show(await slow.resolve(query("example.org"), POD)) == A
        assert upstream.connections == 1
        upstream.close_after_each = True
        for _ in range(4):
            assert show(await slow.resolve(query("example.org"), POD)) == A
        assert upstream.connections >= 4
        await slow.close()
        upstream.stop()

    play(scenario())


def test_a_server_that_dies_is_left_for_the_other_and_found_again() -> None:
    async def scenario() -> None:
        first, second = await Upstream().start(), await Upstream().start()
        world = World()
        slow = SlowPath(
            parse_corefile(
                f". {{\n forward . {HOST}:{first.port} {HOST}:{second.port} {{\n"
                " policy sequential\n max_fails 1\n health_check 20ms\n }\n}"
            ).blocks,
            world,
        )
        assert show(await slow.resolve(query("example.org"), POD)) == A
        port = first.port
        first.stop()
        assert show(await slow.resolve(query("example.org"), POD)) == A
        assert len(second.peers) == 1
        (block,) = slow._blocks
        upstream = block.forwards[0].upstreams[0]
        while not upstream.down(1):
            assert show(await slow.resolve(query("example.org"), POD)) == A
        again = await Upstream().start(port)
        while upstream.down(1):
            await slow.resolve(query("example.org"), POD)
        asked = len(second.peers)
        assert show(await slow.resolve(query("example.org"), POD)) == A
        assert len(second.peers) == asked
        assert "coredns_proxy_healthcheck_failures_total{" in world.metrics.render()
        await slow.close()
        again.stop()
        second.stop()

    play(scenario())


def test_truncated_over_udp_whole_over_tcp() -> None:
    many = [f"example.org. 300 IN A 192.0.2.{n}" for n in range(120)]

    class Cutting(Upstream):
        def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
            self.transport.sendto(respond(data, flags=dns.flags.TC), addr)

    async def scenario() -> None:
        upstream = await Cutting(lambda wire: [respond(wire, many)]).start()
        text = f". {{\n cache\n forward . {HOST}:{upstream.port}\n}}"
        slow = SlowPath(parse_corefile(text).blocks, World())
        cut = await slow.resolve(query("example.org"), POD)
        assert cut is not None
        assert packet.flags(cut) & packet.TC
        whole = await slow.resolve(query("example.org"), POD._replace(tcp=True))
        assert len(show(whole)) == 120
        await slow.close()
        upstream.stop()

    play(scenario())


async def ask_over_udp(port: int, wire: bytes) -> bytes:
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
        sock.connect((HOST, port))
        sock.send(wire)
        async with asyncio.timeout(5):
            return await loop.sock_recv(sock, 4096)


def test_a_whole_server_and_a_loop_through_itself() -> None:
    async def scenario() -> None:
        upstream = await Upstream().start()
        udp, tcp = bind(HOST, 0)
        port = udp.getsockname()[1]
        halted = asyncio.Event()
        zone = FakeZone(
            "cluster.local.", {("a.cluster.local.", "A"): ["a.cluster.local. 5 IN A 10.0.0.1"]}
        )
        text = (
            f".:{port} {{\n errors\n cache 30\n loop\n kubernetes cluster.local\n"
            f" forward . {HOST}:{upstream.port}\n}}\n"
            f"loop.test:{port} {{\n loop\n forward . {HOST}:{port}\n}}"
        )
        world = World(fast=zone, halt=lambda message: halted.set(), write=lambda line: None)
        slow = SlowPath(parse_corefile(text).on_port(port), world)
        server = Server(Front(zone, slow), slow)
        await server.start([udp], [tcp])
        assert show(await ask_over_udp(port, query("a.cluster.local"))) == [
            "a.cluster.local. 5 IN A 10.0.0.1"
        ]
        for _ in range(2):
            assert show(await ask_over_udp(port, query("example.org"))) == [
                "example.org. 30 IN A 192.0.2.1"
            ]
        assert len(upstream.peers) == 1, "the second came from the cache"
        assert sum(server.latency.histogram.counts) == 1, "the loop times what it answers itself"
        assert rcode(await ask_over_udp(port, query("no.cluster.local"))) == "NXDOMAIN"
        slow.start((HOST, port))
        async with asyncio.timeout(10):
            await halted.wait()
        await slow.close()
        await server.stop()
        upstream.stop()

    play(scenario())
