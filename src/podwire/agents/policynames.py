"""Which addresses the domain names of policies have: DNS answers to this node's pods are read.

    `log group` on answers from cluster DNS -> NfLog -> policy.names -> NodePolicies

It runs only while a policy speaks of a domain name. Answers of anybody but cluster DNS count for
nothing: two pods could else agree on what a name means. Over TCP nothing is read: what does not fit
into a datagram is asked again that way, and the addresses of the truncated answer are lost.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Final

from podwire.errors import KernelError
from podwire.kernel.nflog import NfLog
from podwire.policy.names import NameTable, addresses_of

_LOG = logging.getLogger(__name__)
_SNAPLEN: Final = 1500
_UDP: Final = 17
_UDP_HEADER: Final = 8


class NameWatch:
    """`trusts` says whether an address (packed) is cluster DNS; `changed` is called when the
    addresses of a name did."""

    def __init__(
        self, group: int, trusts: Callable[[bytes], bool], changed: Callable[[], None]
    ) -> None:
        self._group = group
        self._trusts = trusts
        self._changed = changed
        self._log: NfLog | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.table = NameTable()

    def want(self, patterns: Iterable[str]) -> None:
        """`KernelError` where packets cannot be logged: then no name has an address."""
        wanted = set(patterns)
        fell_away = self.table.want(wanted)
        if wanted and self._log is None:
            self._log = NfLog(self._group, _SNAPLEN)
            asyncio.get_running_loop().add_reader(self._log.fileno(), self._read)
        elif not wanted:
            self.close()
        if fell_away:
            self._changed()

    @property
    def lost(self) -> int:
        return self._log.lost if self._log is not None else 0

    def _read(self) -> None:
        assert self._log is not None
        now = asyncio.get_running_loop().time()
        try:
            packets = self._log.read()
        except KernelError as error:
            _LOG.warning("policies: DNS answers: %s", error)
            return
        changed = False
        for packet in packets:
            if packet.protocol == _UDP and self._trusts(packet.src):
                answers = addresses_of(packet.transport[_UDP_HEADER:])
                changed = self.table.learn(answers, now) or changed
        if changed:
            self._changed()
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
        if self._log is not None:
            asyncio.get_running_loop().remove_reader(self._log.fileno())
            self._log.close()
            self._log = None
