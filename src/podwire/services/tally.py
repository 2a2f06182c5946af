"""What elements counted, kept when they go. Pure.

    element about to be deleted or replaced -> keep -> + what is in the kernel now -> Counts

An element's counter is lost with it, and an endpoint that comes or goes replaces the verdict of
its Service. So the counter is read just before the transaction and added here. Connections between
that reading and the commit (some 0.1 ms) are lost; those of an agent that was killed in between
too. Packets of connections never come this way: only the first one meets a nat chain, so packets
here are connections.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Mapping
from dataclasses import dataclass, field

from podwire.kernel.nfcounters import Counted
from podwire.kernel.nfpack import Key
from podwire.services import nftables as nf
from podwire.services.model import FrontendKey
from podwire.services.report import Counts

COUNTING = (nf.SERVICES, nf.ENDPOINTS, nf.BACKENDS_BY_ID)
"""The maps whose elements count."""
_UNSERVED = frozenset(nf.pack_index(nf.chain_code(name)) for name in (nf.REFUSE, nf.NOBODY_LOCAL))

Live = Mapping[str, Mapping[Key, Counted]]
"""Elements by set name."""


@dataclass
class _Row:
    accepted: int = 0
    refused: int = 0
    endpoints: Counter[tuple[bytes, int]] = field(default_factory=Counter)

    def add(self, name: str, counted: Counted) -> None:
        if name == nf.SERVICES:
            if counted.data in _UNSERVED:
                self.refused += counted.packets
            else:
                self.accepted += counted.packets
        elif isinstance(counted.data, bytes) and counted.packets:
            self.endpoints[nf.unpack_backend(counted.data)[:2]] += counted.packets


class Tally:
    """One node's."""

    def __init__(self) -> None:
        self._kept: dict[FrontendKey, _Row] = {}
        self._fresh: set[tuple[str, Key]] | None = None

    def keep(self, name: str, counted: Mapping[Key, Counted]) -> None:
        """These elements of the map `name` are gone now."""
        for key, each in counted.items():
            if self._fresh is not None:
                self._fresh.add((name, key))
            if each.packets:
                self._kept.setdefault(frontend_of(name, key), _Row()).add(name, each)

    def begin(self) -> None:
        """A reading of the kernel begins, maybe elsewhere: what is kept from now on may be in it
        as well, and counts once."""
        self._fresh = set()

    def forget(self, key: FrontendKey) -> None:
        """The frontend is nobody's any more."""
        self._kept.pop(key, None)

    def totals(self, live: Live, wanted: Container[FrontendKey]) -> dict[FrontendKey, Counts]:
        """All of the `wanted` frontends."""
        fresh, self._fresh = self._fresh or (), None
        rows = {
            frontend: _Row(row.accepted, row.refused, Counter(row.endpoints))
            for frontend, row in self._kept.items()
            if frontend in wanted
        }
        for name, elements in live.items():
            for key, counted in elements.items():
                if (name, key) not in fresh and counted.packets:
                    frontend = frontend_of(name, key)
                    if frontend in wanted:
                        rows.setdefault(frontend, _Row()).add(name, counted)
        return {
            frontend: Counts(row.accepted, row.refused, dict(row.endpoints))
            for frontend, row in rows.items()
        }


def frontend_of(name: str, key: Key) -> FrontendKey:
    """Whose element it is; keys of the endpoint maps end with an index or number."""
    assert isinstance(key, bytes)
    return nf.unpack_key(key if name == nf.SERVICES else key[:-4])
