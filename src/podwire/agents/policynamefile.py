"""What was learned of domain names, for the agent that comes after this one was killed.

    a line of JSON per answer, in the order they came; the newest of each name and addresses counts

Without it connections that stand would be nobody's after a restart, and be cut.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Final

import msgspec

from podwire.policy.names import Answer

_LOG = logging.getLogger(__name__)
_MOST_LINES: Final = 20_000
"""Then what is repeated in them is left out."""
_KEPT: Final = 10_000


class Learned(msgspec.Struct, frozen=True):
    """`at` is when, in seconds since the epoch."""

    name: str
    addresses: tuple[str, ...]
    ttl_s: float
    at: float

    def answer(self, now: float) -> Answer:
        """With the time that is left; a clock that was set back gives none away."""
        addresses = frozenset(map(ip_address, self.addresses))
        return Answer(self.name, addresses, self.ttl_s - max(0.0, now - self.at))


class NameFile:
    """Errors of the file system are told in the log: names are learned anew then."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lines = 0

    def add(self, answers: Iterable[Answer], at: float) -> None:
        rows = [Learned(a.name, tuple(sorted(map(str, a.addresses))), a.ttl_s, at) for a in answers]
        if not rows:
            return
        try:
            with self._path.open("ab") as file:
                file.write(msgspec.json.Encoder().encode_lines(rows))
            self._lines += len(rows)
            if self._lines > _MOST_LINES:
                self.load()
        except OSError as error:
            _LOG.warning("policies: learned names are not kept: %s", error)

    def load(self) -> list[Learned]:
        """The newest of each, the longest unheard of first; the file has no more afterwards."""
        try:
            newest: dict[tuple[object, ...], Learned] = {}
            for row in self._read():
                newest.pop((row.name, row.addresses), None)
                newest[row.name, row.addresses] = row
            rows = list(newest.values())[-_KEPT:]
            self._lines = len(rows)
            if self._path.exists():
                fresh = self._path.with_suffix(".new")
                fresh.write_bytes(msgspec.json.Encoder().encode_lines(rows))
                fresh.replace(self._path)
            return rows
        except OSError as error:
            _LOG.warning("policies: learned names are not kept: %s", error)
            return []

    def _read(self) -> Iterator[Learned]:
        decoder = msgspec.json.Decoder(Learned)
        lines = self._path.read_bytes().splitlines() if self._path.exists() else []
        for line in lines:
            try:
                yield decoder.decode(line)
            except msgspec.MsgspecError:
                continue  # the last one of an agent that was killed
