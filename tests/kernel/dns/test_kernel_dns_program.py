"""The program with a Corefile on disk: what it and its imports come to say is in force at once."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import uvloop
from dns_fakes import query, show

from podwire.client import Api
from podwire.dns.instance import Surroundings
from podwire.dns.listening import Listening
from podwire.dns.main import Program
from podwire.dns.podfiles import PodFiles
from podwire.kernel.rtnl import Rtnl, loopback_up
from podwire.objects.meta import Kind

PORT = 1053
BEFORE = ".:1053 {\n reload 2s\n import custom/*.override\n}\n"


def hosts(address: str) -> str:
    return f"hosts {{\n {address} web.example\n}}\n"


class Replies(asyncio.DatagramProtocol):
    def __init__(self) -> None:
        self.got: asyncio.Queue[bytes] = asyncio.Queue()

    def datagram_received(self, data: bytes, addr: object) -> None:
        self.got.put_nowait(data)


async def answers(expected: list[str]) -> None:
    """Ask until that is the answer."""
    loop = asyncio.get_running_loop()
    remote = ("127.0.0.1", PORT)
    transport, replies = await loop.create_datagram_endpoint(Replies, remote_addr=remote)
    found: list[str] | None = None
    async with asyncio.timeout(10):
        while found != expected:
            transport.sendto(query("web.example"))
            try:
                found = show(await asyncio.wait_for(replies.got.get(), 0.05))
            except TimeoutError:
                continue  # it does not listen yet
    transport.close()


def test_imported_files_are_in_force_when_they_come_change_and_go(tmp_path: Path) -> None:
    (tmp_path / "Corefile").write_text(BEFORE)
    custom = tmp_path / "custom"
    custom.mkdir()

    async def scenario() -> None:
        around = Surroundings(None, Listening(), ("127.0.0.1",))
        program = Program(str(tmp_path / "Corefile"), around, PodFiles())
        running = asyncio.create_task(program.run())
        await answers([])
        (custom / "a.override").write_text(hosts("192.0.2.1"))
        await answers(["web.example. 3600 IN A 192.0.2.1"])
        (custom / "a.override").write_text(hosts("192.0.2.2"))
        await answers(["web.example. 3600 IN A 192.0.2.2"])
        (custom / "a.override").write_text("nil\n")
        (custom / "b.override").write_text("")
        await answers(["web.example. 3600 IN A 192.0.2.2"])
        (custom / "a.override").unlink()
        await answers([])
        program.stop()
        assert await running == 0

    with Rtnl() as rtnl:
        rtnl.apply([loopback_up()])
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(asyncio.wait_for(scenario(), 30))


class Broken(Api):
    """Fails as nothing it talks to can: by a fault of its own."""

    def __init__(self) -> None:
        pass

    async def list(self, kind: Kind[Any], namespace: str = "", **selectors: str) -> Any:
        raise ZeroDivisionError(kind.plural)


def test_a_watch_that_ends_ends_the_program(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "Corefile").write_text(".:1053 {\n kubernetes cluster.local\n}\n")

    async def scenario() -> None:
        around = Surroundings(
            Broken(), Listening(), ("127.0.0.1",), lambda text: program.fail(text)
        )
        program = Program(str(tmp_path / "Corefile"), around, PodFiles())
        assert await program.run() == 1

    with Rtnl() as rtnl:
        rtnl.apply([loopback_up()])
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(asyncio.wait_for(scenario(), 30))
    assert "[FATAL] plugin/kubernetes: the watch ended: " in capsys.readouterr().out
