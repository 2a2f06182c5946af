"""Who is alive, found out by those who would have to act. Pure.

    expect(circles), watch(owners)          whom there is to know, whose silence counts
    hear(beat), answered(name)              what came in
    doubt(now) -> whom to ask, next_at()    what there is to do, and when
    candidates(now)                         what the election goes by

Only who announces is bound to speak; the others have nothing to do but to listen to it. When it is
silent for `SUSPECT_AFTER_S`, everybody who shares an address with it is doubted at once and asked,
until it answers or `PATIENCE_S` is over. So when an owner is given up, who is left is known.

**Why no two nodes go on announcing one address.** Nobody is dead for another who was not asked in
vain, so a node that slept, or has just started, asks before it takes. Two that both announce an
address both beat to its whole group; as soon as one datagram passes between them, the rule of the
election gives it to the same one for both. Who cannot hear the other counts it as dead, and asks it
and their common group once a second: a third that hears both says so, and the lower one lets go.
Between parts of a network that nothing joins each has its owner, and should: clients of either part
reach only their own.

Times are the receiver's own monotonic seconds; no clocks are compared.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from podwire.services.election import Candidate, State, digest
from podwire.services.heartbeats import Heartbeat

BEAT_S: Final = 0.25
SUSPECT_AFTER_S: Final = 0.35
PATIENCE_S: Final = 0.25
DEAD_AFTER_S: Final = SUSPECT_AFTER_S + PATIENCE_S
"""A lost heartbeat is a question, and five lost questions are a death."""
_ASK_S: Final = 0.05
# Whose kernel answers is asked like one that beats; the dead might come back without a word.
_ASK_FROZEN_S: Final = BEAT_S
_ASK_DEAD_S: Final = 1.0


@dataclass
class _Peer:
    heard: float
    """When its agent was heard of, by us or by another."""
    direct: float = float("-inf")
    answered: float = float("-inf")
    """When its kernel answered an echo request."""
    held: frozenset[bytes] = frozenset()
    watched: bool = False
    doubted: float | None = None
    """Since when it has been asked in vain."""
    asked: float = float("-inf")

    def state(self, now: float) -> State:
        if self.doubted is None or now < self.doubted + PATIENCE_S:
            return "alive"
        return "frozen" if now < self.answered + DEAD_AFTER_S else "dead"

    def next_at(self, now: float) -> float:
        """When it is to be looked at again."""
        if self.doubted is None:
            return self.heard + SUSPECT_AFTER_S if self.watched else float("inf")
        if now < self.doubted + PATIENCE_S:
            return min(self.asked + _ASK_S, self.doubted + PATIENCE_S)
        if self.state(now) == "frozen":
            return min(self.asked + _ASK_FROZEN_S, self.answered + DEAD_AFTER_S)
        return self.asked + _ASK_DEAD_S


@dataclass(frozen=True)
class Heard:
    """`disputed`: what the sender announces, or announced last time and no longer."""

    disputed: frozenset[bytes] = frozenset()
    news: bool = False
    """The sender announces other things, or somebody is alive of whom it was in doubt."""


class Liveness:
    """What one node knows of those it shares addresses with."""

    def __init__(self) -> None:
        self._circles: Mapping[str, Collection[str]] = {}
        self._peers: dict[str, _Peer] = {}
        self._names: dict[bytes, str] = {}
        self._former: dict[str, tuple[float, _Peer]] = {}

    def expect(self, circles: Mapping[str, Collection[str]], now: float) -> None:
        """These are the others now, each with those of them that share an address with it and us.

        Who is new counts as alive: who has just started knows nothing.
        """
        for name in self._peers.keys() - circles.keys():
            self._former[name] = (now, self._peers.pop(name))
        for name in circles.keys() - self._peers.keys():
            since, peer = self._former.pop(name, (float("-inf"), _Peer(now)))
            # Who left for a moment is not reborn by it; who was away longer had nothing to say.
            self._peers[name] = peer if now - since < DEAD_AFTER_S else _Peer(now)
        self._circles = circles
        self._names = {digest(name): name for name in self._peers}

    def watch(self, names: Collection[str], now: float) -> None:
        """These are to speak from now on."""
        for name, peer in self._peers.items():
            if name in names and not peer.watched:
                peer.heard = max(peer.heard, now)
            peer.watched = name in names

    # --- what comes in ---

    def hear(self, beat: Heartbeat, now: float) -> Heard:
        peer = self._peers.get(beat.node)
        if peer is None:
            return Heard()
        before, peer.held = peer.held, beat.announced
        peer.direct = now
        news = self._alive(peer, now) or before != beat.announced
        for who, age_ms in beat.heard_ms.items():
            other = self._peers.get(self._names.get(who, ""))
            # Only news: who asks after a silence must not be put off with what he heard himself.
            if other is not None and age_ms < SUSPECT_AFTER_S * 1000:
                news |= self._alive(other, now - age_ms / 1000)
        return Heard(before | beat.announced, news)

    @staticmethod
    def _alive(peer: _Peer, when: float) -> bool:
        """It was heard of `when`; true where that ends a doubt."""
        if when <= peer.heard:
            return False
        peer.heard = when
        doubted, peer.doubted = peer.doubted, None
        return doubted is not None

    def answered(self, name: str, now: float) -> None:
        if name in self._peers:
            self._peers[name].answered = now

    # --- what there is to do ---

    def doubt(self, now: float) -> frozenset[str]:
        """Those to ask now, and their kernels too."""
        silent = [
            name
            for name, peer in self._peers.items()
            if peer.watched and peer.doubted is None and now >= peer.heard + SUSPECT_AFTER_S
        ]
        for name in {name for first in silent for name in (first, *self._circles[first])}:
            peer = self._peers[name]
            if peer.doubted is None:
                peer.doubted, peer.asked = now, float("-inf")
        due = frozenset(
            name
            for name, peer in self._peers.items()
            if peer.doubted is not None and now >= peer.next_at(now)
        )
        for name in due:
            self._peers[name].asked = now
        return due

    def circle(self, names: Iterable[str]) -> frozenset[str]:
        """Everybody who may know of these, themselves too."""
        return frozenset(name for first in names for name in (first, *self._circles[first]))

    def next_at(self, now: float) -> float:
        """When `doubt` and `candidates` are to be looked at again, if nothing comes before."""
        return min((peer.next_at(now) for peer in self._peers.values()), default=float("inf"))

    # --- what is known ---

    def candidates(self, now: float) -> dict[str, Candidate]:
        """The others, by name. Equal results elect equally."""
        found = {}
        for name, peer in self._peers.items():
            state = peer.state(now)
            held = peer.held if state != "dead" else frozenset()
            found[name] = Candidate(name, state, held)
        return found

    def heard_ms(self, now: float) -> dict[bytes, int]:
        """What we heard ourselves, for an answer; hearsay is not passed on."""
        ages = {digest(name): now - peer.direct for name, peer in self._peers.items()}
        return {who: int(age * 1000) for who, age in ages.items() if age < DEAD_AFTER_S}
