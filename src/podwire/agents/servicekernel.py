"""Services in the kernel: the seam the back ends are behind, and what all of them share.

    Claims -> ServiceBackend.commit -> kernel

A back end remembers what it applied and sends differences; nothing is listed while it works. When
a transaction fails, or somebody else touched its tables, `mend` compares with the kernel once.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from podwire.errors import KernelError
from podwire.kernel import conntrack, sysctl
from podwire.kernel.conntrack import Conntrack
from podwire.kernel.flows import Match
from podwire.services.claims import Claims
from podwire.services.evaluate import Domain
from podwire.services.flows import Stale, stale_flows
from podwire.services.model import PROTOCOLS, FrontendKey, Network

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


_TIMEOUTS: Final = {
    # A connection one side has closed may go on the other way for as long as it likes; after the
    # kernel's 60 s of silence its packets would be nobody's (k/k#32551).
    conntrack.TCP_CLOSE_WAIT_S: 3600,
    conntrack.TCP_ESTABLISHED_S: 86400,
}
"""kube-proxy's defaults (pkg/proxy/apis/config/v1alpha1/defaults.go)."""


def set_timeouts() -> None:
    """How long silent connections are remembered; where it cannot be said, the kernel's time."""
    try:
        sysctl.write(_TIMEOUTS)
    except KernelError as error:
        _LOG.warning("services: silent connections are forgotten early: %s", error)


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
