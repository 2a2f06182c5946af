"""Has the kernel tell what it lets pass, and what DNS answers, while somebody wants to know."""

from __future__ import annotations

from collections.abc import Iterable

from podwire.errors import KernelError
from podwire.kernel.nft import Nft
from podwire.policy.observing import Answers, render_observation


class Observer:
    """What was asked for last stands; errors are `KernelError`, and asking again tries again.

    `pods` are the interfaces of pods, see `PolicyConfig.guarded`.
    """

    def __init__(self, families: Iterable[int], pods: str) -> None:
        self._families = tuple(families)
        self._pods = pods
        self._nft = Nft()
        self._stands: tuple[bool, bool] | None = None
        self._holds = True
        """Whether the kernel can have packets wait, as far as is known."""

    def want(self, *, passed: bool, answers: bool) -> Answers:
        """What becomes of DNS answers. The first time replaces what an agent before left."""
        if self._stands != (passed, answers):
            self._stands = None
            self._apply(passed, answers)
            self._stands = passed, answers
        return self._answers(answers)

    def _answers(self, wanted: bool) -> Answers:
        if not wanted:
            return "ignored"
        return "held" if self._holds else "copied"

    def _apply(self, passed: bool, answers: bool) -> None:
        try:
            self._render(passed, self._answers(answers))
        except KernelError:
            if not answers or not self._holds:
                raise
            self._holds = False
            self._render(passed, self._answers(answers))

    def _render(self, passed: bool, answers: Answers) -> None:
        for version in self._families:
            text = render_observation(version, self._pods, passed=passed, answers=answers)
            self._nft.apply(text)

    def forget(self) -> None:
        """Somebody may have taken it away."""
        self._stands = None

    @property
    def stands(self) -> bool:
        """Whether the kernel has what was asked for last; else it is to be asked for again."""
        return self._stands is not None

    @property
    def passed(self) -> bool:
        return self._stands is not None and self._stands[0]

    def close(self) -> None:
        self._nft.close()
