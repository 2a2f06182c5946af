"""What is told of Services while the kernel refuses, and what is tried again."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from service_worlds import compiled, make_service, make_slice
from virtual_time import VirtualLoop, run

from podwire.agents.servicekernel import Ranges
from podwire.agents.serviceprogram import FlowWatch, Programmed, ServiceProgram
from podwire.errors import KernelError
from podwire.objects.meta import Key
from podwire.services.claims import Claims, Owner, Rank
from podwire.services.evaluate import Domain
from podwire.services.flows import Stale
from podwire.services.model import FrontendKey

WEB, OTHER = (Owner("Service", Key("ns1", name)) for name in ("web", "other"))


class Kernel:
    """A `ServiceBackend` that refuses what it is told to."""

    name = "fake"
    former: frozenset[FrontendKey] = frozenset()

    def __init__(self, claims: Claims) -> None:
        self._claims = claims
        self.refused: set[Owner] = set()
        self.deaf = False
        self.commits = 0
        self.mends = 0

    def open(self, ranges: Ranges) -> bool:
        return False

    def set_ranges(self, ranges: Ranges) -> None: ...

    def commit(self) -> None:
        self.commits += 1
        owners = {frontend.service for frontend in self._claims.frontends.values()}
        if self.deaf or any(owner.key in owners for owner in self.refused):
            raise KernelError("fake: no room")

    def mend(self) -> None:
        self.mends += 1
        if self.deaf:
            raise KernelError("fake: nobody answers")

    def fileno(self) -> int:
        return -1

    def foreign(self) -> list[str]:
        return []

    def close(self) -> None: ...


class Told:
    """A `ProgramReporter`."""

    def __init__(self) -> None:
        self.owners: list[tuple[Owner, str]] = []

    def programmed(self, owner: Owner, former: Programmed | None, now: Programmed | None) -> None:
        self.owners.append((owner, now.error if now else ""))


def rank(_owner: Owner) -> Rank:
    return ()


class Room:
    """A program with everything it needs."""

    def __init__(self) -> None:
        self.claims = Claims()
        self.kernel = Kernel(self.claims)
        self.told = Told()
        self.program = ServiceProgram(self.kernel, self.claims, rank, self.told)
        self.touched: list[Owner] = []
        self.program.touch = self.touched.append


def programmed(name: str = "web", revision: int = 1, ip: str = "10.96.0.1") -> Programmed:
    service = make_service(name, clusterIP=ip)
    return Programmed(revision, compiled(service, make_slice({"ip": "10.244.1.2"})))


def test_what_an_earlier_agent_left_is_programmed_when_it_was_compared() -> None:
    async def body() -> None:
        room = Room()
        room.kernel.deaf = True
        room.program.adopt({WEB: programmed()})
        room.program.mend()
        assert room.program.mend_wanted
        assert (room.program.programmed, room.told.owners) == ({}, [])
        room.kernel.deaf = False
        room.program.mend()
        assert not room.program.mend_wanted
        assert list(room.program.programmed) == [WEB]
        assert room.told.owners == [(WEB, "")]

    run(body())


def test_however_often_a_refused_service_changes_one_timer_tries_it_again() -> None:
    async def body() -> None:
        room = Room()
        room.kernel.refused.add(WEB)
        for revision in range(1, 20):
            room.program.commit({WEB: programmed(revision=revision)})
        await asyncio.sleep(100)
        assert room.touched == [WEB]
        # Nobody waits for what went.
        room.program.commit({WEB: programmed(revision=20)})
        room.program.commit({WEB: None})
        await asyncio.sleep(100)
        assert room.touched == [WEB]

    run(body())


def test_a_kernel_that_takes_nothing_is_not_asked_for_every_service() -> None:
    async def body() -> None:
        room = Room()
        room.kernel.deaf = True
        fresh = {
            Owner("Service", Key("ns1", f"s{n}")): programmed(f"s{n}", ip=f"10.96.1.{n}")
            for n in range(100)
        }
        room.program.commit(fresh)
        assert (room.kernel.commits, room.kernel.mends) == (1, 1)
        assert all(entry.error for entry in room.program.programmed.values())
        assert room.claims.owners == []
        await asyncio.sleep(2)
        assert len(room.touched) == 100

    run(body())


def test_one_refused_service_costs_the_others_nothing() -> None:
    async def body() -> None:
        room = Room()
        room.kernel.refused.add(WEB)
        room.program.commit({WEB: programmed(), OTHER: programmed("other", ip="10.96.0.2")})
        assert room.claims.owners == [OTHER]
        assert room.program.programmed[WEB].error
        assert not room.program.programmed[OTHER].error

    run(body())


class Slow:
    """Looks at a conntrack table that takes a second to read."""

    def __init__(self) -> None:
        self.looks: list[float] = []

    def clean(self, domain: Domain, gone: Sequence[FrontendKey] = ()) -> list[Stale]:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        self.looks.append(loop.time())
        loop.selector.now += 1.0
        return []


def test_looks_at_a_large_table_leave_the_loop_its_time() -> None:
    async def body() -> None:
        slow: Any = Slow()
        watch = FlowWatch(slow, Domain)
        port = {"name": "dns", "port": 53, "protocol": "UDP"}
        one = Programmed(1, compiled(make_service(ports=[port])))
        watch.note({WEB: None}, {WEB: one})
        await asyncio.sleep(0.5)
        for _ in range(80):
            watch.note({WEB: one}, {WEB: None})
            watch.note({WEB: None}, {WEB: one})
            await asyncio.sleep(0.1)
        assert len(slow.looks) in (2, 3)
        # The first is never put off.
        assert slow.looks[0] < 0.02

    run(body())
