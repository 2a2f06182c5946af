"""Which addresses the domain names of policies have: DNS answers to this node's pods are read.

    answers from cluster DNS, held (`queue`) -> NfQueue -> policy.names -> kernel -> they go on
                     or copied (`log group`) -> NfLog   -> policy.names -> kernel

It runs only while a policy speaks of a domain name. Answers of anybody but cluster DNS count for
nothing: two pods could else agree on what a name means. Over TCP nothing is read: what does not fit
into a datagram is asked again that way, and the addresses of the truncated answer are lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterable
from typing import Final

from podwire.agents.policynamefile import NameFile
from podwire.errors import KernelError
from podwire.kernel.nflog import NfLog
from podwire.kernel.nfqueue import NfQueue
from podwire.policy.names import NameTable, addresses_of
from podwire.policy.nftables import NAMES_LOG, NAMES_QUEUE
from podwire.policy.observing import Answers

_LOG = logging.getLogger(__name__)
_COPIED: Final = 1500
_UDP: Final = 17
_UDP_HEADER: Final = 8


class NameWatch:
    """`trusts` says whether an address (packed) is cluster DNS; `changed` is called when the
    addresses of a name did, and has them in force when it returns."""

    def __init__(
        self,
        trusts: Callable[[bytes], bool],
        changed: Callable[[], None],
        file: NameFile | None = None,
    ) -> None:
        self._trusts = trusts
        self._changed = changed
        self._file = file
        self._reader: NfLog | NfQueue | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.table = NameTable()

    def restore(self, patterns: Iterable[str]) -> None:
        """What an agent before this one had learned; `changed` is not called."""
        self.table.want(patterns)
        if self._file is None:
            return
        now, clock = asyncio.get_running_loop().time(), time.time()
        self.table.learn((row.answer(clock) for row in self._file.load()), now)
        self.table.expire(now)
        self._schedule()

    def want(self, patterns: Iterable[str], answers: Answers) -> None:
        """`KernelError` where packets cannot be read: then no name has an address."""
        fell_away = self.table.want(set(patterns))
        if answers == "ignored":
            self.close()
        elif self._reader is None:
            held = answers == "held"
            self._reader = (
                NfQueue(NAMES_QUEUE, _COPIED) if held else NfLog(NAMES_LOG, _COPIED, at_once=True)
            )
            asyncio.get_running_loop().add_reader(self._reader.fileno(), self._read)
        if fell_away:
            self._changed()

    @property
    def lost(self) -> int:
        return self._reader.lost if isinstance(self._reader, NfLog) else 0

    def _read(self) -> None:
        assert self._reader is not None
        now = asyncio.get_running_loop().time()
        try:
            changed = False
            for packet in self._reader.read():
                if packet.protocol == _UDP and self._trusts(packet.src):
                    answers = addresses_of(packet.transport[_UDP_HEADER:])
                    changed = self.table.learn(answers, now) or changed
                    if self._file is not None:
                        wanted = (a for a in answers if self.table.wanted(a.name))
                        self._file.add(wanted, time.time())
            if changed:
                self._changed()
            if isinstance(self._reader, NfQueue):
                self._reader.release()
        except KernelError as error:
            _LOG.warning("policies: DNS answers: %s", error)
        self._schedule()

    def _schedule(self) -> None:
        end = self.table.next_end
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if end is not None:
            self._timer = asyncio.get_running_loop().call_at(end, self._expire)

    def _expire(self) -> None:
        self._timer = None
        if self.table.expire(asyncio.get_running_loop().time()):
            self._changed()
        self._schedule()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._reader is not None:
            asyncio.get_running_loop().remove_reader(self._reader.fileno())
            if isinstance(self._reader, NfQueue):
                # What waits when its reader goes is lost.
                with contextlib.suppress(KernelError):
                    self._reader.read()
                    self._reader.release()
            self._reader.close()
            self._reader = None
