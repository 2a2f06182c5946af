"""How far one node is: the number up to which every change it was told of is in the kernel. Pure.

    told(owner, version) ... done(owner) -> number

Versions are Kubernetes' resourceVersions of Services and EndpointSlices, in the order the API gave
them out. The number is the highest one that has no earlier change outstanding; once it was read it
never falls. The two kinds come by two watches, so it speaks of what this node was told: whether one
particular Service is in the kernel at a version is its own entry's to say
(`ServiceReport.revision`).
"""

from __future__ import annotations

import re
from typing import Final

from podwire.services.claims import Owner

CONDITION = "ServicesProgrammed"
"""The Node condition that tells the number."""
_INTERVAL_S = 1.0
# Every node hears of every Node's writes: in large clusters they are rarer.
_NODES_PER_SECOND = 20
_SHOWN = 3


class Progress:
    """`refused` are owners whose newest state the kernel does not have, with its reason."""

    def __init__(self) -> None:
        self._outstanding: dict[Owner, int] = {}
        self._highest = 0
        self._number = 0
        self.refused: dict[Owner, str] = {}

    def told(self, owner: Owner, version: int) -> None:
        """A change of this owner at `version`; the first outstanding one is what holds back."""
        self._outstanding.setdefault(owner, version)
        self._highest = max(self._highest, version)

    def done(self, owner: Owner) -> None:
        """All that was told of the owner is in the kernel, or needs nothing there."""
        self._outstanding.pop(owner, None)
        self.refused.pop(owner, None)

    def refuse(self, owner: Owner, reason: str) -> None:
        """The kernel keeps a former state of the owner."""
        self.refused[owner] = reason

    @property
    def pending(self) -> int:
        """Owners with outstanding changes, the refused ones included."""
        return len(self._outstanding)

    @property
    def number(self) -> int:
        if self._outstanding:
            reached = min(self._outstanding.values()) - 1
        else:
            reached = self._highest
        self._number = max(self._number, reached)
        return self._number


def describe_progress(progress: Progress) -> tuple[str, str, str]:
    """(status, reason, message) of the condition; `parse_progress` reads it."""
    message = f"changes up to resourceVersion {progress.number} are in the kernel"
    if progress.refused:
        first = [f"{owner}: {why}" for owner, why in list(progress.refused.items())[:_SHOWN]]
        more = len(progress.refused) - len(first)
        tail = f"; and {more} more" if more > 0 else ""
        return "False", "KernelRefused", f"{message}, except {'; '.join(first)}{tail}"
    if progress.pending:
        return "False", "Programming", f"{message}; {progress.pending} Services are behind"
    return "True", "Programmed", message


_NUMBER: Final = re.compile(r"^changes up to resourceVersion (\d+) ")


def parse_progress(message: str) -> int:
    """The number in a condition's message; 0 where there is none."""
    found = _NUMBER.match(message)
    return int(found[1]) if found else 0


def write_interval_s(nodes: int) -> float:
    """How often one node may tell, so that a cluster's nodes together stay quiet enough."""
    return max(_INTERVAL_S, nodes / _NODES_PER_SECOND)
