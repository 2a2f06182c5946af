"""Services through iptables-restore: `services.iptables` in the kernel.

    Claims -> Ruleset.plan -> iptables-restore --noflush (only what changed)
                            refused? -> iptables-save, compare, restore what differs

At the start nothing is sent until everything is compiled: a dispatch chain is always whole, and
half of one would cut off what an earlier agent serves. Then one restore makes of what is there
what should be; where it is that already, nothing is sent. On stop everything stays.

Foreign changes are told by the nftables monitor where the programs are the nft variant. Nobody
tells of x_tables, so there the tables are looked at every 30 s, as kube-proxy does.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

from podwire.agents.servicekernel import Ranges
from podwire.errors import KernelError, UnsupportedError
from podwire.kernel import iptables
from podwire.kernel.iptables import Family
from podwire.kernel.nfmonitor import Event, NfMonitor, Transaction
from podwire.kernel.timer import Timer
from podwire.services import iptables as ipt
from podwire.services.claims import Claims
from podwire.services.iptplan import TABLES, Ruleset, Tables, parse_save
from podwire.services.model import FrontendKey

_LOG = logging.getLogger(__name__)
_LOOK_S = 30.0
_FAMILIES: dict[int, Family] = {4: 4, 6: 6}
_FAMILY_NAMES = ("ip", "ip6")


class IptablesBackend:
    """`ServiceBackend` by the programs iptables-restore and iptables-save."""

    name = "iptables"
    former: frozenset[FrontendKey] = frozenset()  # rules are compared, never read as frontends

    def __init__(
        self, families: Iterable[int], claims: Claims, *, flavour: str | None = None
    ) -> None:
        """`flavour`: which programs, as `iptables.working_flavour` says; None: what works."""
        self._families = tuple(_FAMILIES[version] for version in families)
        self._claims = claims
        self._ruleset = Ruleset(claims, self._families)
        self._wanted = flavour
        self._flavour = ""
        self._affinity = True
        self._ranges = Ranges((), ())
        self._started = False
        self._monitor = NfMonitor(lambda family, table: family in _FAMILY_NAMES and table in TABLES)
        self._timer: Timer | None = None

    @property
    def ruleset(self) -> Ruleset:
        return self._ruleset

    def open(self, ranges: Ranges) -> bool:
        flavour = iptables.working_flavour() if self._wanted is None else self._wanted
        if flavour is None:
            raise UnsupportedError(f"services: {ABSENT}")
        self._flavour = flavour
        if iptables.variant(flavour) == "legacy" and self._timer is None:
            self._timer = Timer(_LOOK_S)
        self._affinity = iptables.has_recent(flavour)
        if not self._affinity:
            _LOG.warning("services: no match `recent` (xt_recent): sessionAffinity is not kept")
        self._monitor.read()  # what was tried
        self._ranges = ranges
        self._set_ranges()
        return False

    def _set_ranges(self) -> None:
        ranges = self._ranges
        self._ruleset.set_ranges(
            ranges.service_cidrs, ranges.cluster_cidrs, affinity=self._affinity
        )

    def set_ranges(self, ranges: Ranges) -> None:
        if ranges != self._ranges:
            self._ranges = ranges
            self._set_ranges()
            self._commit()

    def commit(self) -> None:
        if self._started and self._claims.touched:
            self._commit()

    def _commit(self) -> None:
        """The changed chains; when they are refused, whatever differs from the kernel."""
        try:
            self._restore(self._ruleset.plan())
        except KernelError as error:
            _LOG.warning("services: partial restore failed, comparing everything: %s", error)
            self.mend()

    def mend(self) -> None:
        self._restore(
            self._ruleset.mend({family: self._saved(family) for family in self._families})
        )
        self._started = True

    def _saved(self, family: Family) -> Tables:
        return {t: parse_save(iptables.save(t, family, flavour=self._flavour)) for t in TABLES}

    def _restore(self, texts: dict[int, str]) -> None:
        for version, text in texts.items():
            with self._monitor.ignoring() as ignore:
                iptables.restore(text, _FAMILIES[version], flavour=self._flavour, started=ignore)

    def fileno(self) -> int:
        return self._timer.fileno() if self._timer else self._monitor.fileno()

    def foreign(self) -> list[str]:
        if self._timer is None:
            return [str(found) for found in self._monitor.read() if _concerns_us(found)]
        self._timer.read()
        try:
            return self._look()
        except KernelError as error:
            return [str(error)]

    def _look(self) -> list[str]:
        return [
            f"table {table} (IPv{family}): {len(lost)} chains are not as they were left"
            for family in self._families
            for table, lost in self._lost(family).items()
            if lost
        ]

    def _lost(self, family: Family) -> dict[str, list[str]]:
        found, wanted = self._saved(family), self._ruleset.tables(family)
        return {
            table: [
                name for name, rules in wanted[table].items() if found[table].get(name) != rules
            ]
            for table in TABLES
        }

    def close(self) -> None:
        self._monitor.close()
        if self._timer is not None:
            self._timer.close()


ABSENT = "no iptables works here; install the package iptables or use --service-proxy nftables"


def _concerns_us(transaction: Transaction) -> bool:
    return transaction.lost or any(map(_is_ours, transaction.events))


def _is_ours(event: Event) -> bool:
    """Our chains, the tables they are in, and rules that leave built-in chains: maybe the jumps."""
    if event.noun == "table" or ipt.is_ours(event.name):
        return True
    return event.verb == "delete" and event.name in _BUILT_IN


_BUILT_IN = {chain for jumps in ipt.JUMPS.values() for chain in jumps}
