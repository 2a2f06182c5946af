"""Several nodes with one network between them, on a clock that jumps: who announces, and when."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address

from hypothesis import given, settings
from hypothesis import strategies as st
from virtual_time import run

from podwire.agents.l2 import L2Announcement
from podwire.errors import KernelError
from podwire.services.election import Member, plan_group
from podwire.services.heartbeats import Heartbeat, parse_heartbeat
from podwire.services.liveness import BEAT_S, DEAD_AFTER_S
from podwire.services.pools import Address

NAMES = ("node-1", "node-2", "node-3", "node-4")
MEMBERS = {n: Member(ip_address(f"172.30.0.{i}")) for i, n in enumerate(NAMES, 2)}
VIPS: list[Address] = [ip_address(f"172.30.0.{n}") for n in range(200, 206)]
VIP = VIPS[0]
_DELAY_S = 0.0005


@dataclass
class FakeKernel:
    """A node's kernel: it keeps what an agent left."""

    held: frozenset[Address] = frozenset()
    told: list[Address] = field(default_factory=list)
    refusing: bool = False

    def read(self) -> frozenset[Address]:
        return self.held

    def change(self, before: frozenset[Address], after: frozenset[Address]) -> None:
        if self.refusing:
            raise KernelError("announce: refused")
        self.held = (self.held - before) | after

    def announce(self, addresses: Iterable[Address]) -> None:
        self.told += addresses

    def close(self) -> None: ...


class Network:
    """`cut` are directions in which nothing passes."""

    def __init__(self) -> None:
        self.kernels = {name: FakeKernel() for name in NAMES}
        self.agents: dict[str, L2Announcement] = {}
        self.wires: dict[str, FakeWire] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self.cut: set[tuple[str, str]] = set()
        self.deaf: set[str] = set()
        self.sent: list[tuple[str, str]] = []
        self.vips = [VIP]

    def start(self, name: str) -> None:
        def wire(heard: Callable[[Heartbeat], None], answered: Callable[[str], None]) -> FakeWire:
            self.wires[name] = FakeWire(self, name, heard, answered)
            return self.wires[name]

        self.agents[name] = agent = L2Announcement(name, self.kernels[name], wire)
        self.tasks[name] = asyncio.ensure_future(agent.run())
        agent.set(dict.fromkeys(self.vips), MEMBERS)

    def kill(self, name: str) -> None:
        """The agent; its kernel goes on."""
        self.tasks.pop(name).cancel()
        del self.agents[name], self.wires[name]

    def plug_out(self, name: str) -> None:
        self.cut |= {p for other in NAMES for p in ((name, other), (other, name)) if name != other}

    def plug_in(self, name: str) -> None:
        self.cut = {pair for pair in self.cut if name not in pair}

    def owners(self, vip: Address = VIP) -> list[str]:
        return [name for name, kernel in self.kernels.items() if vip in kernel.held]

    async def until(self, condition: Callable[[], bool], within_s: float = 5.0) -> float:
        loop = asyncio.get_running_loop()
        start = loop.time()
        while not condition():
            assert loop.time() < start + within_s, self.owners()
            await asyncio.sleep(0.001)
        return loop.time() - start


class FakeWire:
    def __init__(
        self,
        network: Network,
        name: str,
        heard: Callable[[Heartbeat], None],
        answered: Callable[[str], None],
    ) -> None:
        self.network, self.name, self.heard, self.answered = network, name, heard, answered

    def set_peers(self, own: Address | None, peers: Mapping[str, Address]) -> None:
        assert own == MEMBERS[self.name].address
        if self.name in self.network.deaf:
            raise KernelError("no heartbeats: port in use")

    def send(self, data: bytes, names: Iterable[str]) -> None:
        for name in names:
            self.network.sent.append((self.name, name))
            asyncio.get_running_loop().call_later(_DELAY_S, self._deliver, name, data)

    def _deliver(self, name: str, data: bytes) -> None:
        beat, wire = parse_heartbeat(data), self.network.wires.get(name)
        if wire is not None and beat is not None and (self.name, name) not in self.network.cut:
            wire.heard(beat)

    def ask(self, name: str) -> None:
        if not {(self.name, name), (name, self.name)} & self.network.cut:
            asyncio.get_running_loop().call_later(2 * _DELAY_S, self.answered, name)

    def close(self) -> None: ...


@asynccontextmanager
async def started(vips: list[Address] | None = None) -> AsyncIterator[Network]:
    network = Network()
    network.vips = vips or [VIP]
    for name in NAMES:
        network.start(name)
    await asyncio.sleep(2)
    yield network
    for name in list(network.tasks):
        network.kill(name)


FIRST, SECOND, THIRD = plan_group(VIP, MEMBERS, None)


def test_only_the_owner_beats() -> None:
    async def play() -> None:
        async with started() as network:
            assert network.owners() == [FIRST]
            network.sent.clear()
            await asyncio.sleep(10)
            assert set(network.sent) == {(FIRST, SECOND), (FIRST, THIRD)}
            assert len(network.sent) <= 2 * 10 / BEAT_S + 2

    run(play())


def test_a_machine_that_dies() -> None:
    async def play() -> None:
        async with started() as network:
            network.kill(FIRST)
            network.plug_out(FIRST)
            took = await network.until(lambda: SECOND in network.owners())
            assert took <= DEAD_AFTER_S + 0.01
            assert network.kernels[SECOND].told == [VIP]
            await asyncio.sleep(2)
            assert network.owners() == [name for name in NAMES if name in (FIRST, SECOND)]
            network.plug_in(FIRST)
            # Its kernel still answers, and is believed to: nobody can take that back from it.
            await network.until(lambda: network.owners() == [FIRST])

    run(play())


def test_two_that_die_together() -> None:
    async def play() -> None:
        async with started() as network:
            for name in (FIRST, SECOND):
                network.kill(name)
                network.plug_out(name)
            took = await network.until(lambda: THIRD in network.owners())
            assert took <= DEAD_AFTER_S + 0.01

    run(play())


def test_a_stand_by_that_died_long_ago_delays_nothing() -> None:
    async def play() -> None:
        async with started() as network:
            network.kill(SECOND)
            network.plug_out(SECOND)
            await asyncio.sleep(30)
            network.kill(FIRST)
            network.plug_out(FIRST)
            took = await network.until(lambda: THIRD in network.owners())
            assert took <= DEAD_AFTER_S + 0.01

    run(play())


def test_an_agent_that_dies_or_restarts_moves_nothing() -> None:
    async def play() -> None:
        async with started() as network:
            network.kill(FIRST)
            await asyncio.sleep(5)
            assert network.owners() == [FIRST]
            network.start(FIRST)
            await asyncio.sleep(5)
            assert network.owners() == [FIRST]
            assert all(not network.kernels[name].told for name in (SECOND, THIRD))

    run(play())


def test_the_second_keeps_what_it_took_over_when_its_agent_restarts() -> None:
    """The best is still dead, of which a new agent knows nothing: it asks before it lets go."""

    async def play() -> None:
        async with started() as network:
            network.kill(FIRST)
            network.plug_out(FIRST)
            await network.until(lambda: SECOND in network.owners())
            network.kernels[FIRST].held = frozenset()
            network.kill(SECOND)
            network.start(SECOND)
            for _ in range(3000):
                assert network.owners() == [SECOND]
                await asyncio.sleep(0.001)
            # The best comes back, with nothing: the two meet, and it has the address again.
            network.plug_in(FIRST)
            network.start(FIRST)
            await network.until(lambda: network.owners() == [FIRST], within_s=0.1)

    run(play())


def test_a_third_that_hears_both_prevents_a_quarrel() -> None:
    async def play() -> None:
        async with started() as network:
            network.cut = {(FIRST, SECOND), (SECOND, FIRST)}
            for _ in range(3000):
                assert network.owners() == [FIRST]
                await asyncio.sleep(0.001)

    run(play())


def test_one_way_only() -> None:
    """The second hears nothing of the first, which hears it, and answers through the third."""

    async def play() -> None:
        async with started() as network:
            network.plug_out(SECOND)
            await network.until(lambda: SECOND in network.owners())
            network.cut = {(FIRST, SECOND)}
            await network.until(lambda: network.owners() == [FIRST], within_s=1.5)
            await asyncio.sleep(5)
            assert network.owners() == [FIRST]

    run(play())


def test_what_the_kernel_refuses_is_tried_again() -> None:
    async def play() -> None:
        async with started() as network:
            network.kernels[SECOND].refusing = True
            network.kill(FIRST)
            network.plug_out(FIRST)
            await asyncio.sleep(3)
            assert network.owners() == [FIRST]
            network.kernels[SECOND].refusing = False
            await network.until(lambda: SECOND in network.owners(), within_s=0.3)

    run(play())


def test_an_address_that_goes_is_let_go() -> None:
    async def play() -> None:
        async with started(VIPS) as network:
            assert all(len(network.owners(vip)) == 1 for vip in VIPS)
            network.vips = []
            for agent in network.agents.values():
                agent.set({}, MEMBERS)
            network.sent.clear()
            await asyncio.sleep(5)
            assert all(not network.owners(vip) for vip in VIPS)
            assert network.sent == []

    run(play())


def test_who_hears_nobody_takes_nothing() -> None:
    """Its port is in use: to it all the others are dead, to them it is one more that is silent."""

    async def play() -> None:
        async with started() as network:
            network.kill(SECOND)
            network.plug_out(SECOND)
            network.deaf.add(SECOND)
            with contextlib.suppress(KernelError):
                network.start(SECOND)
            await asyncio.sleep(5)
            assert network.owners() == [FIRST]
            network.deaf.clear()
            network.agents[SECOND].set(dict.fromkeys(network.vips), MEMBERS)
            await asyncio.sleep(5)
            # Now it asked, and nobody answers: a part of the network that nothing joins.
            assert set(network.owners()) == {FIRST, SECOND}

    run(play())


troubles = st.lists(
    st.tuples(
        st.sampled_from(["kill", "start", "out", "in", "one-way"]),
        st.sampled_from(NAMES),
        st.sampled_from(NAMES),
        st.sampled_from([0.01, 0.2, 0.5, 2.0]),
    ),
    max_size=12,
)


@settings(max_examples=40, deadline=None)
@given(troubles)
def test_whatever_happened_in_the_end_there_is_one(
    events: list[tuple[str, str, str, float]],
) -> None:
    async def play() -> None:
        async with started(VIPS) as network:
            for what, name, other, pause in events:
                if what == "kill" and name in network.agents:
                    network.kill(name)
                elif what == "start" and name not in network.agents:
                    network.start(name)
                elif what == "out":
                    network.plug_out(name)
                elif what == "in":
                    network.plug_in(name)
                elif what == "one-way" and name != other:
                    network.cut.add((name, other))
                await asyncio.sleep(pause)
            network.cut.clear()
            for name in NAMES:
                if name not in network.agents:
                    network.start(name)
            await asyncio.sleep(3)
            best = {vip: plan_group(vip, MEMBERS, None)[0] for vip in VIPS}
            assert {vip: network.owners(vip) for vip in VIPS} == {v: [n] for v, n in best.items()}

    run(play())
