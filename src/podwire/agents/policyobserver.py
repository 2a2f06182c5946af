"""Has the kernel tell what it lets pass, and what DNS answers, while somebody wants to know."""

from __future__ import annotations

from collections.abc import Iterable

from podwire.kernel.nft import Nft
from podwire.policy.observing import render_observation


class Observer:
    """What was asked for last stands; errors are `KernelError`, and asking again tries again.

    `pods` are the interfaces of pods, see `PolicyConfig.guarded`.
    """

    def __init__(self, families: Iterable[int], pods: str) -> None:
        self._families = tuple(families)
        self._pods = pods
        self._nft = Nft()
        self._stands: tuple[bool, bool] | None = None

    def want(self, *, passed: bool, answers: bool) -> None:
        """The first time replaces what an agent before left."""
        if self._stands == (passed, answers):
            return
        self._stands = None
        for version in self._families:
            text = render_observation(version, self._pods, passed=passed, answers=answers)
            self._nft.apply(text)
        self._stands = passed, answers

    @property
    def passed(self) -> bool:
        return self._stands is not None and self._stands[0]

    def close(self) -> None:
        self._nft.close()
