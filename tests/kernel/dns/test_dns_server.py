"""The server on real sockets of a namespace of its own: UDP, TCP, the slow path, stopping."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable

import dns.flags
import dns.message
import dns.rcode
import pytest
import uvloop
from dns_worlds import World, cluster_ip, endpoint, headless, rows, slice_of

from podwire.dns.seam import Client, SlowPath
from podwire.dns.server import Limits, Server, bind
from podwire.kernel.rtnl import Rtnl, loopback_up

NAME = "web.shop.svc.cluster.local."
MANY = "many.shop.svc.cluster.local."
OUTSIDE = "www.example.com."


class Slow:
    """Answers when it is let: `gate` open, everything at once. Drops names that begin with drop."""

    def __init__(self, size: int = 0) -> None:
        self.gate = asyncio.Event()
        self.gate.set()
        self.asked = asyncio.Event()
        self.clients: list[Client] = []
        self._size = size

    async def resolve(self, query: bytes, client: Client) -> bytes | None:
        self.clients.append(client)
        self.asked.set()
        await self.gate.wait()
        message = dns.message.from_wire(query)
        name = message.question[0].name.to_text()
        if name.startswith("drop"):
            return None
        if name.startswith("fail"):
            raise ValueError(name)
        return dns.message.make_response(message).to_wire() + bytes(self._size)


def make_world() -> World:
    many = [endpoint(f"10.1.0.{n}", host=f"host-{n}") for n in range(1, 101)]
    return World(
        namespaces=("shop",),
        services=(cluster_ip("shop", "web", "10.96.0.1"), headless("shop", "many")),
        slices=(slice_of("shop", "many", *many),),
    )


Scenario = Callable[[Server, World, int], Awaitable[None]]


def serve(
    scenario: Scenario,
    slow: Callable[[], SlowPath] | None = Slow,
    limits: Limits | None = None,
    address: str = "127.0.0.1",
) -> None:
    async def run() -> None:
        world = make_world()
        server = Server(world.answers, slow() if slow else None, limits)
        udp, tcp = bind(address, 0)
        port = udp.getsockname()[1]
        await server.start([udp], [tcp])
        try:
            async with asyncio.timeout(20):
                await scenario(server, world, port)
        finally:
            await server.stop()

    with Rtnl() as rtnl:
        rtnl.apply([loopback_up()])
    uvloop.run(run())


def query(name: str = NAME, rtype: str = "A") -> bytes:
    return dns.message.make_query(name, rtype).to_wire()


class Asker(asyncio.DatagramProtocol):
    def __init__(self) -> None:
        self.responses: asyncio.Queue[bytes] = asyncio.Queue()

    def datagram_received(self, data: bytes, addr: object) -> None:
        self.responses.put_nowait(data)


async def asker(port: int, address: str = "127.0.0.1") -> tuple[asyncio.DatagramTransport, Asker]:
    loop = asyncio.get_running_loop()
    return await loop.create_datagram_endpoint(Asker, remote_addr=(address, port))


async def ask(port: int, data: bytes, address: str = "127.0.0.1") -> dns.message.Message:
    transport, protocol = await asker(port, address)
    try:
        transport.sendto(data)
        return dns.message.from_wire(await protocol.responses.get())
    finally:
        transport.close()


async def ask_tcp(port: int, *queries: bytes) -> list[dns.message.Message]:
    """All at once, in one write; answers as they come."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"".join(len(data).to_bytes(2, "big") + data for data in queries))
    found = []
    for _ in queries:
        size = int.from_bytes(await reader.readexactly(2), "big")
        found.append(dns.message.from_wire(await reader.readexactly(size)))
    writer.close()
    await writer.wait_closed()
    return found


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_udp(address: str) -> None:
    async def scenario(server: Server, world: World, port: int) -> None:
        for _ in range(3):
            message = await ask(port, query(), address)
            assert rows(message.answer) == [f"{NAME} 5 IN A 10.96.0.1"]
        assert (server.stats.udp, len(world.answers.hot)) == (3, 1)
        # Since when they wait is the kernel's word; one is timed at once, others if late.
        latency = server.latency.histogram
        assert 1 <= sum(latency.counts) <= 3
        assert 0 < latency.sum < 3

    serve(scenario, address=address)


def test_a_change_is_in_the_next_answer() -> None:
    async def scenario(server: Server, world: World, port: int) -> None:
        late = "late.shop.svc.cluster.local."
        assert (await ask(port, query(late))).rcode() == dns.rcode.NXDOMAIN
        assert (await ask(port, query(late))).rcode() == dns.rcode.NXDOMAIN
        world.set_service(cluster_ip("shop", "late", "10.96.0.7"))
        assert rows((await ask(port, query(late))).answer) == [f"{late} 5 IN A 10.96.0.7"]
        world.set_service(cluster_ip("shop", "late", "10.96.0.8"))
        assert rows((await ask(port, query(late))).answer) == [f"{late} 5 IN A 10.96.0.8"]

    serve(scenario)


def test_truncated_by_udp_whole_by_tcp() -> None:
    async def scenario(server: Server, world: World, port: int) -> None:
        message = await ask(port, query(MANY))
        assert message.flags & dns.flags.TC
        (whole,) = await ask_tcp(port, query(MANY))
        assert not whole.flags & dns.flags.TC
        assert len(whole.answer[0]) == 100

    serve(scenario)


def test_tcp_queries_in_a_row_are_answered_as_they_become_ready() -> None:
    slow = None

    def make() -> Slow:
        nonlocal slow
        slow = Slow()
        slow.gate.clear()
        return slow

    async def scenario(server: Server, world: World, port: int) -> None:
        assert slow is not None
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for data in (query(OUTSIDE), query()):
            writer.write(len(data).to_bytes(2, "big") + data)

        async def next_name() -> str:
            size = int.from_bytes(await reader.readexactly(2), "big")
            return str(dns.message.from_wire(await reader.readexactly(size)).question[0].name)

        assert await next_name() == NAME
        slow.gate.set()
        assert await next_name() == OUTSIDE
        assert slow.clients[0].tcp
        writer.close()

    serve(scenario, make)


def test_tcp_clients_that_have_said_all_get_their_answers() -> None:
    """RFC 1035 4.2.2: the server closes when all that was asked has been answered."""
    slow = None

    def make() -> Slow:
        nonlocal slow
        slow = Slow()
        slow.gate.clear()
        return slow

    async def scenario(server: Server, world: World, port: int) -> None:
        assert slow is not None
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for data in (query(OUTSIDE), query(), query(OUTSIDE)):
            writer.write(len(data).to_bytes(2, "big") + data)
        writer.write_eof()
        await slow.asked.wait()
        slow.gate.set()
        rest, names = await reader.read(), []
        while rest:
            size = int.from_bytes(rest[:2], "big")
            names.append(str(dns.message.from_wire(rest[2 : 2 + size]).question[0].name))
            rest = rest[2 + size :]
        assert sorted(names) == sorted([NAME, OUTSIDE, OUTSIDE])
        writer.close()

    serve(scenario, make)


def test_tcp_ends_what_is_idle_and_what_is_cut() -> None:
    async def scenario(server: Server, world: World, port: int) -> None:
        for start in (b"", b"\0", b"\0\x20half"):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(start)
            assert await reader.read() == b""
            writer.close()
        assert (await ask(port, query())).answer

    serve(scenario, limits=Limits(idle_s=0.05))


def test_tcp_messages_of_every_size() -> None:
    async def scenario(server: Server, world: World, port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for junk in (b"", b"\0" * 11, b"\1\0" * 32767 + b"\0"):
            writer.write(len(junk).to_bytes(2, "big") + junk)
        good = query()
        writer.write(len(good).to_bytes(2, "big") + good)
        while True:
            size = int.from_bytes(await reader.readexactly(2), "big")
            response = await reader.readexactly(size)
            if response[:2] == good[:2]:
                break
            assert response[3] & 0xF in (dns.rcode.FORMERR, dns.rcode.NOTIMP)
        writer.close()

    serve(scenario)


def test_datagrams_of_any_bytes() -> None:
    async def scenario(server: Server, world: World, port: int) -> None:
        transport, protocol = await asker(port)
        junk = [b"", b"\0" * 11, b"\xff" * 12, query()[:20], bytes(60000), query() + bytes(5000)]
        for data in junk:
            transport.sendto(data)
        transport.sendto(query())
        while True:
            message = dns.message.from_wire(await protocol.responses.get(), ignore_trailing=True)
            if message.answer:
                break
            assert message.rcode() in (dns.rcode.FORMERR, dns.rcode.NOTIMP)
        transport.close()

    serve(scenario)


def test_other_names_take_the_slow_path() -> None:
    async def scenario(server: Server, world: World, port: int) -> None:
        assert (await ask(port, query(OUTSIDE))).rcode() == dns.rcode.NOERROR
        assert (await ask(port, query("fail.example.com."))).rcode() == dns.rcode.SERVFAIL
        assert server.stats.failed == 1
        assert server.waiting == 0
        assert sum(server.latency.histogram.counts) == 0, "others time it"

    serve(scenario)


def test_without_a_slow_path_other_names_are_refused() -> None:
    async def scenario(server: Server, world: World, port: int) -> None:
        assert (await ask(port, query(OUTSIDE))).rcode() == dns.rcode.REFUSED
        (by_tcp,) = await ask_tcp(port, query(OUTSIDE))
        assert by_tcp.rcode() == dns.rcode.REFUSED

    serve(scenario, None)


def test_what_waits_is_bounded() -> None:
    slow = None

    def make() -> Slow:
        nonlocal slow
        slow = Slow()
        slow.gate.clear()
        return slow

    async def scenario(server: Server, world: World, port: int) -> None:
        assert slow is not None
        transport, protocol = await asker(port)
        for number in range(4):
            transport.sendto(query(f"n{number}.example.com."))
        refused = [dns.message.from_wire(await protocol.responses.get()) for _ in range(2)]
        assert {message.rcode() for message in refused} == {dns.rcode.SERVFAIL}
        assert server.waiting == 2
        assert (await ask(port, query())).answer
        slow.gate.set()
        served = [dns.message.from_wire(await protocol.responses.get()) for _ in range(2)]
        assert {message.rcode() for message in served} == {dns.rcode.NOERROR}
        transport.close()

    serve(scenario, make, Limits(waiting=2))


def test_a_slow_answer_too_large_for_udp_asks_for_tcp() -> None:
    async def scenario(server: Server, world: World, port: int) -> None:
        message = await ask(port, query(OUTSIDE))
        assert message.flags & dns.flags.TC

    serve(scenario, lambda: Slow(size=600))


def test_stop_finishes_what_is_under_way() -> None:
    slow = None

    def make() -> Slow:
        nonlocal slow
        slow = Slow()
        slow.gate.clear()
        return slow

    async def scenario(server: Server, world: World, port: int) -> None:
        assert slow is not None
        transport, protocol = await asker(port)
        transport.sendto(query(OUTSIDE))
        await slow.asked.wait()
        stopping = asyncio.ensure_future(server.stop())
        await asyncio.sleep(0)
        slow.gate.set()
        assert dns.message.from_wire(await protocol.responses.get()).rcode() == dns.rcode.NOERROR
        await stopping
        transport.close()
        with pytest.raises(OSError):
            await asyncio.open_connection("127.0.0.1", port)

    serve(scenario, make)


def test_lameduck_answers_on() -> None:
    async def scenario(server: Server, world: World, port: int) -> None:
        stopping = asyncio.ensure_future(server.stop(lameduck_s=0.2))
        await asyncio.sleep(0)
        assert (await ask(port, query())).answer
        await stopping

    serve(scenario)


def test_both_transports_have_one_port() -> None:
    udp, tcp = bind("127.0.0.1", 0)
    assert udp.getsockname() == tcp.getsockname()
    assert (udp.type, tcp.type) == (socket.SOCK_DGRAM, socket.SOCK_STREAM)
    udp.close()
    tcp.close()
