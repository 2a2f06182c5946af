"""Who has which frontend, and who wins where several claim one. Pure.

Two Services may ask for the same external IP or share a load balancer's address, a hostPort may
meet a node port. The lowest rank wins (the oldest Service, as a rule), and when it goes the next
one takes over: nothing has to be asked again.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, TypeAlias

from podwire.objects.meta import Key
from podwire.services.model import Frontend, FrontendKey

Rank: TypeAlias = tuple[str, ...]


class Owner(NamedTuple):
    """Whose frontends they are: a Service, or a Pod with hostPorts."""

    kind: str
    key: Key

    def __str__(self) -> str:
        return f"{self.kind.lower()} {self.key}"


class Claims:
    """Every owner's frontends. What changed waits in `take_touched` for a back end."""

    def __init__(self) -> None:
        self._owned: dict[Owner, dict[FrontendKey, tuple[Rank, Frontend]]] = {}
        self._claims: dict[FrontendKey, list[Owner]] = {}
        self._touched: dict[FrontendKey, None] = {}

    def set(self, owner: Owner, frontends: Iterable[Frontend], rank: Rank = ()) -> None:
        """Say what `owner` has from now on, instead of what it had."""
        before = self._owned.get(owner, {})
        after = {f.key: (rank, f) for f in frontends}
        for key in before.keys() - after.keys():
            self._claims[key].remove(owner)
            if not self._claims[key]:
                del self._claims[key]
            self._touched[key] = None
        for key, claim in after.items():
            if before.get(key) == claim:
                continue
            if key not in before:
                self._claims.setdefault(key, []).append(owner)
            self._touched[key] = None
        if after:
            self._owned[owner] = after
        else:
            self._owned.pop(owner, None)

    def take_touched(self) -> list[FrontendKey]:
        """The keys whose claims changed since the last call."""
        touched = list(self._touched)
        self._touched.clear()
        return touched

    @property
    def touched(self) -> bool:
        return bool(self._touched)

    def winner(self, key: FrontendKey) -> Frontend | None:
        """The frontend that counts."""
        owner = self._winning_owner(key)
        return self._owned[owner][key][1] if owner is not None else None

    def _winning_owner(self, key: FrontendKey) -> Owner | None:
        claims = self._claims.get(key)
        if not claims:
            return None
        if len(claims) == 1:
            return claims[0]
        return min(claims, key=lambda owner: (self._owned[owner][key][0], owner))

    def lost(self, owner: Owner) -> dict[FrontendKey, Owner]:
        """Keys `owner` asked for and did not get, and who has them."""
        lost: dict[FrontendKey, Owner] = {}
        for key in self._owned.get(owner, {}):
            winner = self._winning_owner(key)
            if winner is not None and winner != owner:
                lost[key] = winner
        return lost

    def of(self, owner: Owner) -> tuple[Frontend, ...]:
        """All that `owner` claims, won or lost."""
        return tuple(frontend for _, frontend in self._owned.get(owner, {}).values())

    @property
    def owners(self) -> list[Owner]:
        return list(self._owned)

    @property
    def frontends(self) -> dict[FrontendKey, Frontend]:
        """What counts now: what `evaluate` wants."""
        return {key: f for key in self._claims if (f := self.winner(key)) is not None}
