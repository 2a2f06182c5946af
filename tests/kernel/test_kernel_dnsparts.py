"""What cluster DNS stands on: replaced files, sockets that outlive programs, small HTTP pages."""

from __future__ import annotations

import asyncio
import select
import socket
from http import HTTPStatus
from pathlib import Path

import pytest

from podwire.dns.httpd import serve_pages
from podwire.dns.listening import Listening
from podwire.errors import KernelError, UsageError
from podwire.kernel.inotify import DirectoryWatch
from podwire.kernel.requests import SetLink
from podwire.kernel.rtnl import Rtnl
from podwire.objects.core import ContainerPort
from podwire.runtime.activation import ActivatedSockets

PORTS = [ContainerPort(container_port=0, protocol=protocol) for protocol in ("UDP", "TCP", "SCTP")]


def told(watch: DirectoryWatch) -> bool:
    return bool(select.select([watch], [], [], 0)[0])


def test_a_file_that_is_replaced_is_told(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    with DirectoryWatch(tmp_path) as watch:
        assert not told(watch)
        (tmp_path / ".new").write_text("2")
        (tmp_path / ".new").replace(tmp_path / "a")
        assert told(watch)
        watch.drain()
        assert not told(watch)


def test_a_directory_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(KernelError, match="inotify_add_watch"):
        DirectoryWatch(tmp_path / "nil")


def test_sockets_are_kept_until_released() -> None:
    held = ActivatedSockets()
    first = held.of("u", "c", None, PORTS, (4,))
    assert [sock.type for sock in first] == [socket.SOCK_DGRAM, socket.SOCK_STREAM]
    assert held.of("u", "c", None, PORTS, (4,)) is first
    held.release("u")
    assert [sock.fileno() for sock in first] == [-1, -1]
    held.release("u")


def test_a_clash_closes_what_was_opened() -> None:
    with socket.socket() as busy:
        busy.bind(("0.0.0.0", 0))
        busy.listen()
        port = busy.getsockname()[1]
        clashing = [*PORTS, ContainerPort(container_port=port, protocol="TCP")]
        held = ActivatedSockets()
        with pytest.raises(OSError, match="in use"):
            held.of("u", "c", None, clashing, (4,))
        held.release("u")


def test_given_sockets_are_used_and_stay() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as given:
        given.bind(("127.0.0.1", 0))
        port = given.getsockname()[1]
        listening = Listening([given.dup().detach()])
        for addresses in ((), ("127.0.0.1",)):
            (found,) = listening.sockets(socket.SOCK_DGRAM, port, addresses)
            assert found.getsockname() == ("127.0.0.1", port)
            found.close()


def test_own_sockets_are_there_for_the_next_configuration_until_nobody_wants_their_port() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    listening = Listening()
    kinds = (socket.SOCK_DGRAM, socket.SOCK_STREAM)
    first = [s for kind in kinds for s in listening.sockets(kind, port)]
    again = [s for kind in kinds for s in listening.sockets(kind, port)]
    assert len(first) == len(again) >= 2
    for sock in (*first, *again):
        assert sock.getsockname()[1] == port
        sock.close()
    listening.keep((port,))
    with pytest.raises(OSError, match="in use"), socket.socket() as other:
        other.bind(("127.0.0.1", port))
    listening.keep(())
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))


def test_a_port_that_is_taken_is_said() -> None:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        with pytest.raises(UsageError, match=rf"listening on 127.0.0.1 port {port}: "):
            Listening().sockets(socket.SOCK_STREAM, port, ("127.0.0.1",))


async def get(port: int, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer


@pytest.mark.parametrize(
    ("request_line", "status", "body"),
    [
        (b"GET /ready HTTP/1.1", b"200 OK", b"OK"),
        (b"GET /ready?x=1 HTTP/1.0", b"200 OK", b"OK"),
        (b"HEAD /ready HTTP/1.1", b"200 OK", b""),
        (b"GET /nil HTTP/1.1", b"404 Not Found", b"404 page not found\n"),
        (b"POST /ready HTTP/1.1", b"405 Method Not Allowed", b""),
        (b"nonsense", b"405 Method Not Allowed", b""),
    ],
)
def test_pages(request_line: bytes, status: bytes, body: bytes) -> None:
    with Rtnl() as rtnl:
        rtnl.apply([SetLink(device="lo", up=True)])

    async def go() -> bytes:
        sock = socket.create_server(("127.0.0.1", 0))
        servers = await serve_pages({"/ready": lambda: (HTTPStatus.OK, "OK")}, [sock])
        try:
            return await get(sock.getsockname()[1], request_line + b"\r\nHost: x\r\n\r\n")
        finally:
            for server in servers:
                server.close()

    head, _, found = asyncio.run(go()).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 " + status)
    assert found == body
