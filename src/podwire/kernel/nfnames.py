"""What a table of nf_tables holds, by name: for taking over what an earlier agent left.

Source: net/netfilter/nf_tables_api.c (nf_tables_get{chain,rule,set,obj}).
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import Final, NamedTuple

from podwire.errors import KernelError
from podwire.kernel import decode, nfnl
from podwire.kernel.nfpack import FAMILIES, TABLE

_GETCHAIN: Final = nfnl.SUBSYS_NFTABLES << 8 | 4
_GETRULE: Final = nfnl.SUBSYS_NFTABLES << 8 | 7
_GETSET: Final = nfnl.SUBSYS_NFTABLES << 8 | 10
_GETOBJ: Final = nfnl.SUBSYS_NFTABLES << 8 | 19
_CHAIN_NAME: Final = 3
_RULE_CHAIN: Final = 2
_RULE_EXPRESSIONS: Final = 4
_SET_NAME: Final = 2
_SET_FLAGS: Final = 3
_OBJECT_NAME: Final = 2
_OBJECT_TYPE: Final = 3
_COUNTER: Final = 1  # NFT_OBJECT_COUNTER
_ANONYMOUS: Final = 0x1
_MAP: Final = 0x8


class TableNames(NamedTuple):
    """Anonymous sets go with their rules and are left out."""

    chains: tuple[str, ...]
    sets: tuple[str, ...]
    maps: tuple[str, ...]
    counters: tuple[str, ...]


class NfNames(nfnl.NfSocket):
    """The names in one network namespace."""

    what = "nftables"

    def read(self, family: str, table: str) -> TableNames:
        """A table that is not there holds nothing."""
        chains = [_text(each[_CHAIN_NAME]) for each in self._all(_GETCHAIN, family, table)]
        sets = [
            (_text(each[_SET_NAME]), _number(each.get(_SET_FLAGS)))
            for each in self._all(_GETSET, family, table)
        ]
        counters = [
            _text(each[_OBJECT_NAME])
            for each in self._all(_GETOBJ, family, table)
            if _number(each.get(_OBJECT_TYPE)) == _COUNTER
        ]
        return TableNames(
            tuple(chains),
            tuple(name for name, flags in sets if not flags & (_ANONYMOUS | _MAP)),
            tuple(name for name, flags in sets if flags & _MAP and not flags & _ANONYMOUS),
            tuple(counters),
        )

    def leads_to(self, family: str, table: str, chain: str) -> bytes:
        """The expressions of the chain's rules as the kernel has them; the names of chains they
        lead to are in there, each ended by a zero."""
        return b"".join(
            each.get(_RULE_EXPRESSIONS, b"")
            for each in self._all(_GETRULE, family, table)
            if _text(each.get(_RULE_CHAIN, b"")) == chain
        )

    def _all(self, kind: int, family: str, table: str) -> Iterator[dict[int, bytes]]:
        """The kernel may tell of all tables of the family: ours are chosen here."""
        where = nfnl.text(TABLE, table)
        try:
            messages = self._dump(kind, FAMILIES[family], where)
        except KernelError as e:
            if e.errno == errno.ENOENT:
                return
            raise
        for message in messages:
            attributes = decode.attrs(message)
            if _text(attributes.get(TABLE, b"")) == table:
                yield attributes


def _text(raw: bytes) -> str:
    return raw.rstrip(b"\0").decode()


def _number(raw: bytes | None) -> int:
    return int.from_bytes(raw or b"", "big")
