"""A TCP connection by its protocol: bytes in any pieces, turns, who waits for whom, the end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from virtual_time import run

from podwire.dns.seam import Client
from podwire.dns.stream import Conversation

IDLE_S = 8.0


def framed(*messages: bytes) -> bytes:
    return b"".join(len(message).to_bytes(2, "big") + message for message in messages)


class FakeTransport:
    """What a conversation needs of one; `full`: its buffer is above the mark with any write;
    `stuck`: what it holds is not taken, so that closing does not come to its end."""

    def __init__(self, conversation: Conversation) -> None:
        self._conversation = conversation
        self.writes: list[bytes] = []
        self.reading = True
        self.full = self.stuck = False
        self.end = ""
        conversation.connection_made(self)

    def get_extra_info(self, name: str) -> tuple[str, int]:
        return ("10.244.0.9", 40000)

    def write(self, data: bytes) -> None:
        assert not self.end
        self.writes.append(data)
        if self.full:
            self._conversation.pause_writing()

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def is_closing(self) -> bool:
        return bool(self.end)

    def close(self) -> None:
        if self.stuck:
            self.end = self.end or "closing"
        else:
            self._finish("closed")

    def abort(self) -> None:
        self._finish("aborted")

    def _finish(self, how: str) -> None:
        if self.end in ("", "closing"):
            self.end = how
            self._conversation.connection_lost(None)

    @property
    def answers(self) -> list[bytes]:
        found, data = [], b"".join(self.writes)
        while data:
            size = int.from_bytes(data[:2], "big")
            found.append(data[2 : 2 + size])
            data = data[2 + size :]
        return found


class Echo:
    """Answers with the question; those that begin with `slow` once `gate` is set; never `drop`."""

    def __init__(self) -> None:
        self.asked: list[bytes] = []
        self.gate = asyncio.Event()

    def ask(self, data: bytes, client: Client) -> bytes | None:
        assert client == Client("10.244.0.9", 40000, True)
        self.asked.append(data)
        return None if data.startswith(b"slow") else b"" if data.startswith(b"drop") else data

    def resolve(self, data: bytes, client: Client) -> asyncio.Task[bytes | None]:
        async def wait() -> bytes:
            await self.gate.wait()
            return data

        return asyncio.create_task(wait())


Scenario = Callable[[Echo, Conversation, FakeTransport], Awaitable[None]]


def converse(scenario: Scenario, pipelined: int = 100, room: bool = True) -> None:
    async def whole() -> None:
        echo = Echo()
        conversation = Conversation(echo, IDLE_S, pipelined, lambda _: room)
        transport = FakeTransport(conversation)
        await scenario(echo, conversation, transport)
        transport.abort()
        await conversation.closed

    run(whole())


def test_messages_come_in_any_pieces() -> None:
    async def scenario(echo: Echo, conversation: Conversation, transport: FakeTransport) -> None:
        stream = framed(b"one", b"", b"drop", b"two" * 20000, b"three")
        for size in (1, 2, 3, 7, len(stream)):
            transport.writes.clear()
            echo.asked.clear()
            for at in range(0, len(stream), size):
                conversation.data_received(stream[at : at + size])
            assert echo.asked == [b"one", b"", b"drop", b"two" * 20000, b"three"]
            assert transport.answers == [b"one", b"two" * 20000, b"three"]

    converse(scenario)


def test_all_answers_of_a_turn_are_one_write() -> None:
    async def scenario(echo: Echo, conversation: Conversation, transport: FakeTransport) -> None:
        conversation.data_received(framed(*[b"%d" % n for n in range(100)]))
        assert len(transport.writes) == 1
        assert len(transport.answers) == 100

    converse(scenario)


def test_a_turn_is_bounded_so_that_others_have_theirs() -> None:
    async def scenario(echo: Echo, conversation: Conversation, transport: FakeTransport) -> None:
        conversation.data_received(framed(*[b"%d" % n for n in range(300)]))
        assert (len(echo.asked), transport.reading) == (128, False)
        await asyncio.sleep(0)
        assert (len(echo.asked), transport.reading) == (256, False)
        await asyncio.sleep(0)
        assert (len(echo.asked), transport.reading) == (300, True)
        transport.writes.clear()
        conversation.data_received(framed(*[b"x" * 60000] * 5))
        assert len(transport.answers) == 2, "by bytes, too"
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert len(transport.answers) == 5

    converse(scenario)


def test_who_asks_more_than_is_answered_is_read_no_further() -> None:
    async def scenario(echo: Echo, conversation: Conversation, transport: FakeTransport) -> None:
        conversation.data_received(framed(b"slow1", b"quick", b"slow2", b"slow3", b"late"))
        assert echo.asked == [b"slow1", b"quick", b"slow2"]
        assert (transport.answers, transport.reading) == ([b"quick"], False)
        echo.gate.set()
        await asyncio.sleep(1)
        assert sorted(transport.answers) == [b"late", b"quick", b"slow1", b"slow2", b"slow3"]
        assert transport.reading

    converse(scenario, pipelined=2)


def test_who_does_not_take_answers_is_read_no_further_and_ended() -> None:
    async def scenario(echo: Echo, conversation: Conversation, transport: FakeTransport) -> None:
        transport.full = True
        conversation.data_received(framed(b"one"))
        conversation.data_received(framed(b"two"))
        assert (transport.answers, transport.reading) == ([b"one"], False)
        await asyncio.sleep(IDLE_S - 1)
        conversation.resume_writing()
        assert transport.answers == [b"one", b"two"]
        await asyncio.sleep(IDLE_S - 1)
        assert not transport.end
        await asyncio.sleep(1)
        assert transport.end == "aborted"

    converse(scenario)


def test_quiet_ones_are_ended_and_those_who_wait_for_us_are_not() -> None:
    async def scenario(echo: Echo, conversation: Conversation, transport: FakeTransport) -> None:
        await asyncio.sleep(IDLE_S - 1)
        conversation.data_received(framed(b"slow"))
        await asyncio.sleep(10 * IDLE_S)
        assert not transport.end
        echo.gate.set()
        await asyncio.sleep(IDLE_S - 1)
        assert transport.answers == [b"slow"]
        # Half a message is none: it must not be kept open a byte at a time.
        conversation.data_received(framed(b"half")[:3])
        await asyncio.sleep(1)
        assert transport.end == "closed"

    converse(scenario)


def test_what_is_never_taken_does_not_hold_a_connection() -> None:
    """Less than the mark: the transport waits for ever to get rid of it."""

    async def quiet(echo: Echo, conversation: Conversation, transport: FakeTransport) -> None:
        transport.stuck = True
        conversation.data_received(framed(b"one"))
        await asyncio.sleep(IDLE_S + 1)
        assert transport.end == "closing"
        await asyncio.sleep(IDLE_S)
        assert transport.end == "aborted"

    async def over(echo: Echo, conversation: Conversation, transport: FakeTransport) -> None:
        transport.stuck = True
        conversation.data_received(framed(b"one"))
        conversation.eof_received()
        assert transport.end == "closing"
        await asyncio.sleep(IDLE_S + 1)
        assert transport.end == "aborted"

    converse(quiet)
    converse(over)


def test_who_has_said_all_gets_all_answers() -> None:
    async def scenario(echo: Echo, conversation: Conversation, transport: FakeTransport) -> None:
        conversation.data_received(framed(b"slow", *[b"%d" % n for n in range(200)]))
        assert conversation.eof_received()
        await asyncio.sleep(1)
        assert (len(transport.answers), transport.end) == (200, "")
        echo.gate.set()
        await asyncio.sleep(0.1)
        assert (len(transport.answers), transport.end) == (201, "closed")

    converse(scenario)


def test_who_is_gone_is_not_answered() -> None:
    async def scenario(echo: Echo, conversation: Conversation, transport: FakeTransport) -> None:
        conversation.data_received(framed(b"slow"))
        transport.abort()
        echo.gate.set()
        await asyncio.sleep(1)
        assert transport.writes == []

    converse(scenario)


def test_one_too_many_is_turned_away() -> None:
    async def scenario(echo: Echo, conversation: Conversation, transport: FakeTransport) -> None:
        assert transport.end == "closed"

    converse(scenario, room=False)
