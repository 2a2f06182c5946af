"""A table of nftables that is podwire's own: made, filled, watched, mended.

    render_base, render_ranges -> text -> nft; elements -> netlink; others' changes -> `foreign`

Back ends differ in what is in the table, not in how it gets there.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from podwire.agents.servicekernel import Ranges
from podwire.errors import KernelError
from podwire.kernel import nft
from podwire.kernel.nfelements import Change, NfElements, split
from podwire.kernel.nfmonitor import NfMonitor
from podwire.kernel.nft import Nft
from podwire.services import nftables as nf
from podwire.services.model import FrontendKey, Network
from podwire.services.plan import Elements, is_whole

_LOG = logging.getLogger(__name__)
# Errors that say nothing of the table: what the kernel refuses now it may take later.
_PASSING: Final = frozenset(
    {
        errno.EACCES,
        errno.EAGAIN,
        errno.EBUSY,
        errno.EINTR,
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOBUFS,
        errno.ENOMEM,
        errno.ENOSPC,
        errno.EPERM,
    }
)


@dataclass(frozen=True)
class TableForm:
    """What a back end's table is made of; `sets` are those whose elements are kept."""

    name: str
    sets: Sequence[str]
    render_base: Callable[[int], str]
    render_ranges: Callable[[int, Sequence[Network], Sequence[Network]], str]


class NftTable:
    """The table in each of the `families`."""

    def __init__(self, form: TableForm, families: Iterable[int]) -> None:
        self._form = form
        self.families = tuple(families)
        self._ranges = Ranges((), ())
        self._nft = Nft()
        self.elements = NfElements()
        self._monitor = NfMonitor(lambda _family, table: table == form.name)
        self._monitor.ignore(self.elements.port)

    def ensure(self, ranges: Ranges | None = None) -> None:
        """Make what is missing; a table of an older podwire whose maps have other types is made
        anew. Without `ranges` it gets those it had.

        Errors: `KernelError` where the kernel has no room or no leave; what there is works on.
        """
        self._ranges = ranges or self._ranges
        for version in self.families:
            text = self._form.render_base(version) + self._render_ranges(version)
            try:
                self.apply_text(text)
            except KernelError as error:
                if error.errno in _PASSING:
                    raise
                _LOG.warning("services: the table is made anew: %s", error)
                self.apply_text(nft.render_delete(nf.FAMILY_NAMES[version], self._form.name) + text)

    def set_ranges(self, ranges: Ranges) -> None:
        if ranges != self._ranges:
            self._ranges = ranges
            for version in self.families:
                self.apply_text(self._render_ranges(version))

    def _render_ranges(self, version: int) -> str:
        ranges = self._ranges
        return self._form.render_ranges(version, ranges.service_cidrs, ranges.cluster_cidrs)

    def apply_text(self, text: str) -> None:
        self._nft.apply(text)
        if not nft.in_process():
            self._monitor.read()  # the nft program's changes look like anybody's

    def batches(self, step: Iterable[Change]) -> Iterator[list[Change]]:
        """Of one step what is for these families, in transactions the kernel takes."""
        mine = {nf.FAMILY_NAMES[version] for version in self.families}
        changes = [change for change in step if change.family in mine]
        return split(changes, self.elements.max_batch, is_whole)

    def dump(self) -> Elements:
        """All there is in the kernel: not on a hot path."""
        return {
            (version, name): self.elements.dump(nf.FAMILY_NAMES[version], self._form.name, name)
            for version in self.families
            for name in self._form.sets
        }

    def fileno(self) -> int:
        return self._monitor.fileno()

    def foreign(self) -> list[str]:
        """What others did to the table since the last call."""
        return [str(transaction) for transaction in self._monitor.read()]

    def close(self) -> None:
        self._monitor.close()
        self.elements.close()
        self._nft.close()


def read_keys(found: Elements, name: str) -> frozenset[FrontendKey]:
    """The frontends a map has elements of."""
    keys = [key for version in (4, 6) for key in found.get((version, name), {})]
    return frozenset(nf.unpack_key(key) for key in keys if isinstance(key, bytes))
