"""How far one node is: the number up to which every change it was told of is in the kernel. Pure.

    told(owner, version) ... done(owner) -> number

Versions are Kubernetes' resourceVersions of what an agent follows, in the order the API gave them
out. The number is the highest one that has no earlier change outstanding; once it was read it never
falls. Kinds come by watches of their own, so it speaks of what this node was told: whether one
particular Service or policy is in the kernel at a version is its own entry's to say.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator
from typing import Final, Generic, TypeVar

SERVICES: Final = "ServicesProgrammed"
POLICIES: Final = "PoliciesProgrammed"
"""The Node conditions that tell the number."""
K = TypeVar("K", bound=Hashable)
_INTERVAL_S = 1.0
# Every node hears of every Node's writes: in large clusters they are rarer.
_NODES_PER_SECOND = 20
_SHOWN = 3


class Progress(Generic[K]):
    """`refused` are those whose newest state the kernel does not have, with its reason."""

    def __init__(self) -> None:
        self._outstanding: dict[K, int] = {}
        self._highest = 0
        self._number = 0
        self.refused: dict[K, str] = {}

    def told(self, owner: K, version: int) -> None:
        """A change of this one at `version`; the first outstanding one is what holds back."""
        self._outstanding.setdefault(owner, version)
        self._highest = max(self._highest, version)

    def done(self, owner: K) -> None:
        """All that was told of it is in the kernel, or needs nothing there."""
        self._outstanding.pop(owner, None)
        self.refused.pop(owner, None)

    def refuse(self, owner: K, reason: str) -> None:
        """The kernel keeps a former state of it."""
        self.refused[owner] = reason

    def behind(self, owner: K) -> bool:
        """Whether a change of this one is outstanding."""
        return owner in self._outstanding

    def outstanding(self) -> Iterator[tuple[K, int]]:
        """Those with outstanding changes, each with the version of the first of them."""
        yield from self._outstanding.items()

    @property
    def pending(self) -> int:
        """Those with outstanding changes, the refused ones included."""
        return len(self._outstanding)

    @property
    def number(self) -> int:
        if self._outstanding:
            reached = min(self._outstanding.values()) - 1
        else:
            reached = self._highest
        self._number = max(self._number, reached)
        return self._number


def describe_progress(progress: Progress[K], what: str) -> tuple[str, str, str]:
    """(status, reason, message) of the condition; `what` are `Services` or the like.

    `parse_progress` reads the number again.
    """
    message = f"changes up to resourceVersion {progress.number} are in the kernel"
    if progress.refused:
        first = [f"{owner}: {why}" for owner, why in list(progress.refused.items())[:_SHOWN]]
        more = len(progress.refused) - len(first)
        tail = f"; and {more} more" if more > 0 else ""
        return "False", "KernelRefused", f"{message}, except {'; '.join(first)}{tail}"
    if progress.pending:
        return "False", "Programming", f"{message}; {progress.pending} {what} are behind"
    return "True", "Programmed", message


_NUMBER: Final = re.compile(r"^changes up to resourceVersion (\d+) ")


def parse_progress(message: str) -> int:
    """The number in a condition's message; 0 where there is none."""
    found = _NUMBER.match(message)
    return int(found[1]) if found else 0


def write_interval_s(nodes: int) -> float:
    """How often one node may tell, so that a cluster's nodes together stay quiet enough."""
    return max(_INTERVAL_S, nodes / _NODES_PER_SECOND)
