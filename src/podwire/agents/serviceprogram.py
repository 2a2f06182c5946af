"""Compiled Services into the kernel, and what to do when it refuses.

    {owner: Programmed} -> Claims -> back end -> UDP flows that lead nowhere -> ProgramReporter

A portion is one commit. When that is refused everything is put back, and its owners go in one by
one: who is refused alone keeps what it had, and is tried again ever more rarely.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from podwire.agents.servicekernel import FlowCleaner, ServiceBackend
from podwire.errors import KernelError
from podwire.services.claims import Claims, Owner, Rank
from podwire.services.evaluate import Domain
from podwire.services.model import PROTOCOLS, CompiledService, Frontend, FrontendKey

_LOG = logging.getLogger(__name__)
_CLEAN_DELAY_S = 0.01
# A look at a large table takes long: it may have this share of the time.
_CLEAN_SHARE = 0.2
_RETRY_S = 1.0
# What the kernel goes on refusing is tried ever more rarely: each time everything is compared.
_REFUSED_RETRY_MAX_S = 60.0


@dataclass(frozen=True)
class Programmed:
    """What the kernel does for one owner. `revision` is the newest resourceVersion in it."""

    revision: int
    compiled: CompiledService
    error: str = ""


Portion: TypeAlias = Mapping[Owner, Programmed | None]
"""None: the owner is gone."""


class ProgramReporter(Protocol):
    """Who tells others what became of it."""

    def programmed(
        self, owner: Owner, former: Programmed | None, now: Programmed | None
    ) -> None: ...


class ServiceProgram:
    """One node's. `mend_wanted` is set when a look at everything failed; `wake` is called when
    there is something to do, `touch` for an owner that is to be compiled again."""

    def __init__(
        self,
        backend: ServiceBackend,
        claims: Claims,
        rank: Callable[[Owner], Rank],
        reporter: ProgramReporter,
    ) -> None:
        self.backend = backend
        self.claims = claims
        self._rank = rank
        self._reporter = reporter
        self.programmed: dict[Owner, Programmed] = {}
        self.mended = 0
        self._adopted: dict[Owner, Programmed | None] = {}
        """What the kernel has only after the next look at everything."""
        self._refusals: dict[Owner, float] = {}
        """Seconds until what the kernel refused is tried again."""
        self._retries: dict[Owner, asyncio.TimerHandle] = {}
        self.mend_wanted = False
        self.wake: Callable[[], None] = _nothing
        self.touch: Callable[[Owner], None] = _nothing_of

    # --- apply ----------------------------------------------------------------------------------

    def commit(self, portion: Portion) -> dict[Owner, Programmed | None]:
        """Apply the difference these make; returns what was there before."""
        fresh = dict(portion)
        before = {owner: self.programmed.get(owner) for owner in fresh}
        for owner, programmed in fresh.items():
            self._claim(owner, programmed)
        try:
            self.backend.commit()
        except KernelError as error:
            self._one_by_one(fresh, before, error)
        for owner, programmed in fresh.items():
            self._remember(owner, programmed)
        return before

    def adopt(self, portion: Portion) -> None:
        """Claim only: the kernel has an earlier agent's state, and is compared as a whole. Until
        then nothing of it counts as programmed."""
        for owner, programmed in portion.items():
            self._claim(owner, programmed)
            self._adopted[owner] = programmed

    def mend(self) -> None:
        """Compare everything with the kernel."""
        self.mend_wanted = False
        try:
            self.backend.mend()
        except KernelError as error:
            _LOG.error("services: not mended: %s; trying again", error)
            self.mend_later()
            return
        self.mended += 1
        adopted, self._adopted = self._adopted, {}
        for owner, programmed in adopted.items():
            self._remember(owner, programmed)

    def mend_later(self) -> None:
        """The kernel has something else than what is remembered; it may take it by and by."""
        self.mend_wanted = True
        asyncio.get_running_loop().call_later(_RETRY_S, self.wake)

    def _claim(self, owner: Owner, programmed: Programmed | None) -> None:
        frontends = programmed.compiled.frontends if programmed else ()
        self.claims.set(owner, frontends, self._rank(owner))

    def _remember(self, owner: Owner, programmed: Programmed | None) -> None:
        former = self.programmed.get(owner)
        if programmed is None:
            self.programmed.pop(owner, None)
        else:
            self.programmed[owner] = programmed
        if programmed is None or not programmed.error:
            self._refusals.pop(owner, None)
            if owner in self._retries:
                self._retries.pop(owner).cancel()
        self._reporter.programmed(owner, former, programmed)

    # --- refused --------------------------------------------------------------------------------

    def _one_by_one(
        self,
        fresh: dict[Owner, Programmed | None],
        before: dict[Owner, Programmed | None],
        error: KernelError,
    ) -> None:
        """After a refused transaction: all back as it was, then one owner after the other."""
        _LOG.warning("services: %s", error)
        for owner in fresh:
            self._claim(owner, before[owner])
        self.mend()
        for owner, programmed in list(fresh.items()):
            if self.mend_wanted:
                # It does not even take what it had: one by one everybody would be compared anew.
                fresh[owner] = self._refused(owner, before[owner], error)
                continue
            self._claim(owner, programmed)
            try:
                self.backend.commit()
            except KernelError as refusal:
                _LOG.error("%s: refused, the former state works on: %s", owner, refusal)
                self._claim(owner, before[owner])
                self.mend()
                fresh[owner] = self._refused(owner, before[owner], refusal)

    def _refused(self, owner: Owner, before: Programmed | None, error: KernelError) -> Programmed:
        """What there was is there still; what was refused may have room later: memory, or the
        programs' lock, come back."""
        delay = self._refusals.get(owner, _RETRY_S)
        self._refusals[owner] = min(2 * delay, _REFUSED_RETRY_MAX_S)
        # One timer, however many changes were refused meanwhile.
        if owner in self._retries:
            self._retries.pop(owner).cancel()
        self._retries[owner] = asyncio.get_running_loop().call_later(delay, self._retry, owner)
        kept = before or Programmed(0, CompiledService(owner.key))
        return Programmed(kept.revision, kept.compiled, str(error))

    def _retry(self, owner: Owner) -> None:
        del self._retries[owner]
        self.touch(owner)


class FlowWatch:
    """Has conntrack looked at soon after UDP frontends changed, once for many changes."""

    def __init__(self, cleaner: FlowCleaner, domain: Callable[[], Domain]) -> None:
        self.cleaner = cleaner
        self._domain = domain
        self._gone: list[FrontendKey] = []
        self._timer: asyncio.TimerHandle | None = None
        self._not_before = 0.0

    def note(self, before: Portion, after: Portion) -> None:
        """UDP of these owners may now lead elsewhere."""
        changed = False
        for owner, programmed in after.items():
            old = _udp_frontends(before[owner])
            new = _udp_frontends(programmed)
            changed = changed or old != new
            self._gone += old.keys() - new.keys()
        if changed and self._timer is None:
            loop = asyncio.get_running_loop()
            when = max(loop.time() + _CLEAN_DELAY_S, self._not_before)
            self._timer = loop.call_at(when, self.clean)

    def clean(self, former: frozenset[FrontendKey] = frozenset()) -> None:
        """Look now. `former`: what there was before this agent; TCP notices by itself."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        gone, self._gone = self._gone, []
        gone += [key for key in former if key.protocol == PROTOCOLS["UDP"]]
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            for stale in self.cleaner.clean(self._domain(), gone):
                _LOG.info("services: flow deleted (%s): %s", stale.reason, stale.flow)
        except KernelError as error:
            _LOG.warning("services: conntrack not cleaned: %s; trying again", error)
            self._gone = gone
            self._timer = loop.call_later(_RETRY_S, self.clean)
        # After 1 ms nothing waits longer than anyway; after 1 s the next look is 4 s on.
        ended = loop.time()
        self._not_before = ended + (ended - began) * (1 / _CLEAN_SHARE - 1)


def _udp_frontends(programmed: Programmed | None) -> dict[FrontendKey, Frontend]:
    if programmed is None:
        return {}
    udp = PROTOCOLS["UDP"]
    return {f.key: f for f in programmed.compiled.frontends if f.key.protocol == udp}


def _nothing() -> None:
    """Nobody waits."""


def _nothing_of(_owner: Owner) -> None:
    """Nobody waits."""
