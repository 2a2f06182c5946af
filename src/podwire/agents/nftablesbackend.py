"""Services through nftables: `services.nftables` in the kernel.

    Claims -> Ruleset.plan -> chains as text, elements by netlink in up to three ordered steps

What elements that go have counted is read just before and kept (`services.tally`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from podwire.agents.nftable import NftTable, TableForm, read_keys
from podwire.agents.servicekernel import Ranges
from podwire.kernel.nfcounters import NfCounters
from podwire.kernel.nfelements import Change
from podwire.kernel.nfpack import Key
from podwire.services import nftables as nf
from podwire.services.claims import Claims
from podwire.services.model import FrontendKey
from podwire.services.plan import SETS, Elements, Plan, Ruleset
from podwire.services.tally import COUNTING, Tally

_FORM = TableForm(nf.TABLE, SETS, nf.render_base, nf.render_ranges)


class NftablesBackend:
    """`ServiceBackend` by one table per family."""

    name = "nftables"

    def __init__(self, families: Iterable[int], claims: Claims) -> None:
        self._claims = claims
        self._table = NftTable(_FORM, families)
        self._ruleset = Ruleset(claims)
        self._counters = NfCounters()
        self.tally = Tally()
        self._found: tuple[int, Elements] | None = None
        self.former: frozenset[FrontendKey] = frozenset()

    @property
    def vips(self) -> frozenset[bytes]:
        return self._ruleset.vips

    @property
    def ruleset(self) -> Ruleset:
        return self._ruleset

    def open(self, ranges: Ranges) -> bool:
        self._table.ensure(ranges)
        found = self._table.dump()
        self._found = self._table.elements.generation(), found
        self.former = read_keys(found, nf.SERVICES)
        self._ruleset.adopt(found)
        return not any(found.values())

    def set_ranges(self, ranges: Ranges) -> None:
        self._found = None  # should the kernel refuse, the next look is to make them
        self._table.set_ranges(ranges)

    def commit(self) -> None:
        if self._claims.touched:
            self._apply(self._ruleset.plan())

    def mend(self) -> None:
        self._apply(self._ruleset.mend(self._look()))

    def _look(self) -> Elements:
        """What the kernel has now. What `open` read still counts if nobody did anything since."""
        generation, found = self._found or (0, {})
        self._found = None
        if found and generation == self._table.elements.generation():
            return found
        self._table.ensure()
        return self._table.dump()

    def _apply(self, plan: Plan) -> None:
        for version, names in plan.chains.items():
            if version in self._table.families:
                self._table.apply_text(nf.render_chains(names, version))
        for step in plan.steps:
            for batch in self._table.batches(step):
                self._apply_batch(batch)

    def _apply_batch(self, batch: list[Change]) -> None:
        """One transaction; what the elements it takes away have counted is kept."""
        counted = [
            (change.set, self._counters.read(change.family, change.table, change.set, keys))
            for change in batch
            if (keys := _counting(change))
        ]
        self._table.elements.apply(batch)
        for name, elements in counted:
            self.tally.keep(name, elements)

    def fileno(self) -> int:
        return self._table.fileno()

    def foreign(self) -> list[str]:
        return self._table.foreign()

    def close(self) -> None:
        self._table.close()
        self._counters.close()


def _counting(change: Change) -> Sequence[Key]:
    return change.delete if change.set in COUNTING else ()
