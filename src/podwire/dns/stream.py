"""One TCP connection: length-prefixed queries (RFC 7766), answered as they become ready.

    bytes arrive -> whole messages -> known at once: all answers of a turn in one write
                                   -> None: a task each, written when it is done
    too much unanswered, or answers nobody takes -> no more is read until that is better

A protocol and not streams, whose timeouts and wake-ups cost ten times what answering does. A turn
is bounded: what one client sends in a row must not keep others waiting, by UDP neither.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from typing import Any, Final, Protocol

from podwire.dns.seam import Client

_LENGTH: Final = struct.Struct("!H")
_TURN: Final = 128  # messages
_TURN_BYTES: Final = 64 << 10  # of answers

Task = asyncio.Task[bytes | None]


class Asked(Protocol):
    """What answers: `ask` at once (b"" for what gets nothing), or None and then `resolve`."""

    def ask(self, data: bytes, client: Client) -> bytes | None: ...
    def resolve(self, data: bytes, client: Client) -> Task: ...


class Conversation(asyncio.Protocol):
    """Ends itself when it was quiet for `idle_s`; `closed` is set when it has ended."""

    def __init__(
        self, asked: Asked, idle_s: float, pipelined: int, begun: Callable[[Conversation], bool]
    ) -> None:
        self._asked = asked
        self._idle_s = idle_s
        self._pipelined = pipelined
        self._begun = begun
        self._loop = asyncio.get_running_loop()
        self._pending: set[Task] = set()
        self._rest = b""
        self._reading = True
        self._taken = True  # whether the other end takes our answers
        self._ended = False  # it will ask no more
        self._heard_s = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None
        self.closed: asyncio.Future[None] = self._loop.create_future()

    # --- what the transport tells -----------------------------------------------------------------

    def connection_made(self, transport: Any) -> None:
        self._transport: asyncio.Transport = transport
        peer = transport.get_extra_info("peername")
        if peer is None or not self._begun(self):
            transport.close()
            return
        self._client = Client(peer[0], peer[1], True)
        self._timer = self._loop.call_later(self._idle_s, self._check)

    def data_received(self, data: bytes) -> None:
        self._rest = self._rest + data if self._rest else data
        self._go_on()

    def eof_received(self) -> bool:
        """The other end has said all and waits for answers (RFC 1035 4.2.2): ours come first."""
        self._ended = True
        self._go_on()
        return True

    def pause_writing(self) -> None:
        self._taken = False
        self._heard_s = self._loop.time()

    def resume_writing(self) -> None:
        self._taken = True
        self._go_on()

    def connection_lost(self, error: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        for task in self._pending:
            task.cancel()
        if not self.closed.done():
            self.closed.set_result(None)

    # --- asking and answering ---------------------------------------------------------------------

    @property
    def _open(self) -> bool:
        """Whether more may be asked just now."""
        return self._taken and len(self._pending) < self._pipelined

    def _go_on(self) -> None:
        """Answer what there is, within a turn; then read on, wait, or end."""
        if self._transport.is_closing():
            return
        more = self._open and self._turn()
        if more:
            self._loop.call_soon(self._go_on)
        self._read(self._open and not more)
        if self._ended and not more and self._open and not self._pending:
            self.close()

    def _turn(self) -> bool:
        """Whether the turn was over before the messages were."""
        ask, client = self._asked.ask, self._client
        data, at, done, size = self._rest, 0, 0, 0
        answers: list[bytes] = []
        while (end := _message_end(data, at)) and self._open:
            if done == _TURN or size > _TURN_BYTES:
                break
            message = data[at + 2 : end]
            at = end
            done += 1
            response = ask(message, client)
            if response is None:
                self._wait_for(message)
            elif response:
                size += len(response)
                answers += (_LENGTH.pack(len(response)), response)
        if done:
            self._rest = data[at:]
            self._heard_s = self._loop.time()
        if answers:
            self._transport.write(b"".join(answers))
        return end > 0 and self._open

    def _wait_for(self, message: bytes) -> None:
        task = self._asked.resolve(message, self._client)
        self._pending.add(task)
        task.add_done_callback(self._resolved)

    def _resolved(self, task: Task) -> None:
        self._pending.discard(task)
        if task.cancelled() or self._transport.is_closing():
            return
        response = task.result()
        self._heard_s = self._loop.time()
        if response:
            self._transport.write(_LENGTH.pack(len(response)) + response)
        self._go_on()

    def _read(self, wanted: bool) -> None:
        if wanted != self._reading and not self._ended and not self._transport.is_closing():
            self._reading = wanted
            (self._transport.resume_reading if wanted else self._transport.pause_reading)()

    # --- ending -----------------------------------------------------------------------------------

    def _check(self) -> None:
        """Quiet for too long: nothing whole was asked, or our answers were not taken."""
        quiet_s = self._loop.time() - self._heard_s
        if self._taken and self._pending:
            quiet_s = 0.0  # it waits for us, not we for it
        if quiet_s < self._idle_s:
            self._timer = self._loop.call_later(self._idle_s - quiet_s, self._check)
        elif self._taken:
            self.close()
        else:
            self._transport.abort()

    def close(self) -> None:
        """What was written still goes out, if it is taken: that is not waited for, for ever."""
        if self.closed.done():
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(self._idle_s, self._transport.abort)
        self._transport.close()

    def abort(self) -> None:
        self._transport.abort()


def _message_end(data: bytes, at: int) -> int:
    """Where the message at this offset ends; 0 while it is not whole."""
    if len(data) < at + 2:
        return 0
    end = at + 2 + (data[at] << 8 | data[at + 1])
    return end if end <= len(data) else 0
