"""Services in the kernel: the back ends behind one seam, and what all of them share.

    Claims -> ServiceBackend.commit -> kernel

A back end remembers what it applied and sends differences; nothing is listed while it works. When
a transaction fails, or somebody else touched its tables, `mend` compares with the kernel once.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from podwire.errors import KernelError
from podwire.kernel import nft
from podwire.kernel.conntrack import Conntrack
from podwire.kernel.flows import Match
from podwire.kernel.nfcounters import NfCounters
from podwire.kernel.nfelements import Change, NfElements
from podwire.kernel.nfmonitor import NfMonitor
from podwire.kernel.nfpack import Key
from podwire.kernel.nft import Nft
from podwire.services import nftables as nf
from podwire.services.claims import Claims
from podwire.services.evaluate import Domain
from podwire.services.flows import Stale, stale_flows
from podwire.services.model import PROTOCOLS, FrontendKey, Network
from podwire.services.plan import SETS, Elements, Plan, Ruleset, split_step
from podwire.services.tally import COUNTING, Tally

_LOG = logging.getLogger(__name__)
_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}


@dataclass(frozen=True)
class Ranges:
    """What all Services of the cluster share."""

    service_cidrs: tuple[Network, ...]
    cluster_cidrs: tuple[Network, ...]


class ServiceBackend(Protocol):
    """One way to have the kernel balance Services. Errors are `KernelError`."""

    name: str
    former: frozenset[FrontendKey]
    """What `open` found an earlier agent's frontends to be, where the back end can read them."""

    def open(self, ranges: Ranges) -> bool:
        """Make what is there without any Service, and take over what an earlier agent left.

        True when there was nothing: then what is claimed may be committed piece by piece. Else the
        whole is claimed first, and `mend` sends the difference.
        """

    def set_ranges(self, ranges: Ranges) -> None: ...

    def commit(self) -> None:
        """Apply what changed in the claims since the last call."""

    def mend(self) -> None:
        """Compare with the kernel and repair every difference."""

    def fileno(self) -> int:
        """Readable when somebody else may have touched our tables; -1 where nobody can tell."""

    def foreign(self) -> list[str]:
        """What was done to our tables by others since the last call, in words."""

    def close(self) -> None: ...


class NftablesBackend:
    """`services.nftables`: text for rules and chains, netlink for elements."""

    name = "nftables"

    def __init__(self, families: Iterable[int], claims: Claims) -> None:
        self._families = tuple(families)
        self._claims = claims
        self._ruleset = Ruleset(claims)
        self._nft = Nft()
        self._elements = NfElements()
        self._counters = NfCounters()
        self.tally = Tally()
        self._monitor = NfMonitor(lambda _family, table: table == nf.TABLE)
        self._monitor.ignore(self._elements.port)
        self._ranges = Ranges((), ())
        self._found: tuple[int, Elements] | None = None
        self.former: frozenset[FrontendKey] = frozenset()

    @property
    def vips(self) -> frozenset[bytes]:
        return self._ruleset.vips

    @property
    def ruleset(self) -> Ruleset:
        return self._ruleset

    def open(self, ranges: Ranges) -> bool:
        self._ranges = ranges
        self._make_base()
        found = self._dump()
        self._found = self._elements.generation(), found
        self.former = read_keys(found, nf.SERVICES)
        self._ruleset.adopt(found)
        return not any(found.values())

    def _make_base(self) -> None:
        """The table; one of an older podwire whose maps have other types is made anew."""
        for version in self._families:
            text = nf.render_base(version) + self._render_ranges(version)
            try:
                self._text(text)
            except KernelError as error:
                _LOG.warning("services: the table is made anew: %s", error)
                self._nft.delete_table(nf.FAMILY_NAMES[version], nf.TABLE)
                self._text(text)

    def _text(self, text: str) -> None:
        self._nft.apply(text)
        if not nft.in_process():
            self._monitor.read()  # the nft program's changes look like anybody's

    def _render_ranges(self, version: int) -> str:
        return nf.render_ranges(version, self._ranges.service_cidrs, self._ranges.cluster_cidrs)

    def set_ranges(self, ranges: Ranges) -> None:
        if ranges != self._ranges:
            self._ranges = ranges
            for version in self._families:
                self._text(self._render_ranges(version))

    def commit(self) -> None:
        if self._claims.touched:
            self._apply(self._ruleset.plan())

    def mend(self) -> None:
        self._apply(self._ruleset.mend(self._look()))

    def _look(self) -> Elements:
        """What the kernel has now. What `open` read still counts if nobody did anything since."""
        generation, found = self._found or (0, {})
        self._found = None
        if found and generation == self._elements.generation():
            return found
        self._make_base()
        return self._dump()

    def _apply(self, plan: Plan) -> None:
        for version, names in plan.chains.items():
            if version in self._families:
                self._text(nf.render_chains(names, version))
        for step in plan.steps:
            for batch in split_step(step, self._elements.max_batch):
                self._apply_batch(batch)

    def _apply_batch(self, batch: list[Change]) -> None:
        """One transaction; what the elements it takes away have counted is kept."""
        counted = [
            (change.set, self._counters.read(change.family, change.table, change.set, keys))
            for change in batch
            if (keys := _counting(change))
        ]
        self._elements.apply(batch)
        for name, elements in counted:
            self.tally.keep(name, elements)

    def _dump(self) -> Elements:
        return {
            (version, name): self._elements.dump(nf.FAMILY_NAMES[version], nf.TABLE, name)
            for version in self._families
            for name in SETS
        }

    def fileno(self) -> int:
        return self._monitor.fileno()

    def foreign(self) -> list[str]:
        return [str(transaction) for transaction in self._monitor.read()]

    def close(self) -> None:
        self._monitor.close()
        self._elements.close()
        self._counters.close()
        self._nft.close()


def read_keys(found: Elements, name: str) -> frozenset[FrontendKey]:
    """The frontends a map has elements of."""
    keys = [key for version in (4, 6) for key in found.get((version, name), {})]
    return frozenset(nf.unpack_key(key) for key in keys if isinstance(key, bytes))


def _counting(change: Change) -> Sequence[Key]:
    return change.delete if change.set in COUNTING else ()


class FlowCleaner:
    """Deletes UDP flows that lead where no new one would; see `services.flows`."""

    def __init__(self, families: Iterable[int], claims: Claims) -> None:
        self._families = tuple(families)
        self._claims = claims
        self._conntrack = Conntrack()
        self.deleted: dict[str, int] = {}

    def clean(self, domain: Domain, gone: Sequence[FrontendKey] = ()) -> list[Stale]:
        """One look at the whole table; returns what was deleted."""
        found: list[Stale] = []
        for version in self._families:
            flows = self._conntrack.dump(_FAMILIES[version], Match(proto=PROTOCOLS["UDP"]))
            found += stale_flows(flows, self._claims.winner, domain, set(gone))
        if found:
            self._conntrack.delete_many(stale.flow for stale in found)
            for stale in found:
                self.deleted[stale.reason] = self.deleted.get(stale.reason, 0) + 1
        return found

    def close(self) -> None:
        self._conntrack.close()
