"""What is sent to the kernel, and in which order. Pure data.

A packet makes several look-ups, and a commit may come between any two. Packets in flight meet at
most one commit, so what every step leaves behind has to be right with what was read before it:

    grow      chains, rows of new groups and classes, outcomes: nobody asks for them yet
    members   which group an address is in; who left is unknown
    classes   which class a pod is in; who came is known
    merge     groups that nobody tells apart any more; classes of pods that left
    shrink    what only former classes and groups asked for: elements, then chains

Class before group is the order in which a packet asks, so it never meets a class of later with a
group of before: those were made without the peers that class names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from podwire.kernel.nfpack import Change, Data, Key
from podwire.policy import nftables as nf
from podwire.policy.classes import Outcome
from podwire.policy.nftables import Number

Place: TypeAlias = tuple[int, str]
"""IP version and plain name of a set."""


@dataclass(frozen=True)
class Step:
    """One transaction: text by IP version (each its own), or elements of both."""

    name: str
    text: Mapping[int, str] = field(default_factory=dict)
    changes: tuple[Change, ...] = ()


@dataclass(frozen=True)
class Plan:
    """Steps in order; `outcomes` are those whose counters go with the last."""

    steps: tuple[Step, ...] = ()
    outcomes: Mapping[Number, Outcome] = field(default_factory=dict)

    @property
    def empty(self) -> bool:
        return not self.steps

    @property
    def elements(self) -> int:
        """How many are deleted or added."""
        return sum(len(c.delete) + len(c.add) for step in self.steps for c in step.changes)


class Batch:
    """The elements of one step in the making; one deleted and added is replaced."""

    def __init__(self, generation: str, versions: Sequence[int]) -> None:
        self._generation = generation
        self._versions = versions
        self._delete: dict[Place, list[Key]] = {}
        self._add: dict[Place, list[tuple[Key, Data]]] = {}

    def put(self, version: int, name: str, key: Key, data: Data = None) -> None:
        if version in self._versions:
            self._add.setdefault((version, name), []).append((key, data))

    def remove(self, version: int, name: str, key: Key) -> None:
        if version in self._versions:
            self._delete.setdefault((version, name), []).append(key)

    def put_all(self, name: str, key: Key, data: Data = None) -> None:
        """In every family."""
        for version in self._versions:
            self._add.setdefault((version, name), []).append((key, data))

    def remove_all(self, name: str, key: Key) -> None:
        for version in self._versions:
            self._delete.setdefault((version, name), []).append(key)

    def changes(self) -> tuple[Change, ...]:
        return tuple(
            Change(
                nf.FAMILY_NAMES[version],
                nf.TABLE,
                f"{self._generation}-{name}",
                tuple(self._delete.get((version, name), ())),
                tuple(self._add.get((version, name), ())),
            )
            for version, name in sorted({*self._delete, *self._add})
        )


def is_whole(change: Change) -> bool:
    """Ranges of one map may not overlap, not even for a moment."""
    return change.set.endswith(f"-{nf.NETWORKS}")
