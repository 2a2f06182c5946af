"""Counters of nf_tables by netlink: of single elements, and those that have a name.

An element's counter dies with the element. `read` asks for chosen elements only, a message each,
so it may stand on the way of every deletion: about 10 us an element, whatever the set's size.
Source: net/netfilter/nf_tables_api.c (nf_tables_getsetelem, nf_tables_getobj).
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from typing import Final, NamedTuple

from podwire.errors import KernelError
from podwire.kernel import decode, nfnl
from podwire.kernel import encode as nl
from podwire.kernel.nfelements import NfElements
from podwire.kernel.nfpack import DATA, FAMILIES, TABLE, Change, Data, Key, bodies
from podwire.kernel.nfparse import parse_counter, parse_data, parse_keyed

_GETSETELEM: Final = nfnl.SUBSYS_NFTABLES << 8 | 13
_GETOBJ: Final = nfnl.SUBSYS_NFTABLES << 8 | 19
_GETRULE: Final = nfnl.SUBSYS_NFTABLES << 8 | 7
_RULE_CHAIN: Final = 2
_RULE_HANDLE: Final = 3
_OBJECT_NAME: Final = 2
_OBJECT_TYPE: Final = 3
_OBJECT_DATA: Final = 4
_COUNTER: Final = 1  # NFT_OBJECT_COUNTER
_CHUNK: Final = 100  # so many answers surely fit into the receive buffer


class Counted(NamedTuple):
    """An element's data and what met it."""

    data: Data
    packets: int
    bytes: int


class NfCounters(NfElements):
    """The counters of one network namespace."""

    what = "nftables counters"

    def read(self, family: str, table: str, name: str, keys: Iterable[Key]) -> dict[Key, Counted]:
        """The elements of these keys that exist and count; a table that is gone has none."""
        found: dict[Key, Counted] = {}
        wanted = list(keys)
        for start in range(0, len(wanted), _CHUNK):
            found |= self._read(family, table, name, wanted[start : start + _CHUNK])
        return found

    def _read(self, family: str, table: str, name: str, keys: list[Key]) -> dict[Key, Counted]:
        parts: list[bytes] = []
        sent: set[int] = set()
        for key in keys:
            for _, body in bodies(Change(family, table, name, delete=(key,))):
                seq = self._next_seq()
                sent.add(seq)
                message = nfnl.message(_GETSETELEM, nl.NLM_F_REQUEST, seq, FAMILIES[family], body)
                parts.append(message)
        messages: list[bytes] = []
        for kind, flags, seq, body in self._exchange(b"".join(parts)):
            if seq not in sent:
                continue
            if kind == nl.NLMSG_ERROR:
                code, words = decode.error_of(flags, body)
                if code not in (0, errno.ENOENT):
                    raise KernelError(f"{self.what}: {family} {table} {name}: {words}", errno=code)
                continue
            messages.append(body[4:])
        return _parse(messages)

    def read_all(self, family: str, table: str, name: str) -> dict[Key, Counted]:
        """Every element of a set without intervals that counts: about 10 us each."""
        return _parse(self._elements(family, table, name)[1])

    def named(self, family: str, table: str) -> dict[str, tuple[int, int]]:
        """(packets, bytes) of every named counter of the table."""
        found: dict[str, tuple[int, int]] = {}
        where = nfnl.text(TABLE, table)
        for message in self._dump(_GETOBJ, FAMILIES[family], where):
            attributes = decode.attrs(message)
            if int.from_bytes(attributes.get(_OBJECT_TYPE, b""), "big") != _COUNTER:
                continue
            values = decode.attrs(attributes[_OBJECT_DATA])
            name = attributes[_OBJECT_NAME].rstrip(b"\0").decode()
            packets, octets = (int.from_bytes(values[n], "big") for n in (2, 1))
            found[name] = packets, octets
        return found

    def rule_handles(self, family: str, table: str, chain: str) -> list[int]:
        """The handles of a chain's rules, in their order: what a trace names them by."""
        where = nfnl.text(TABLE, table) + nfnl.text(_RULE_CHAIN, chain)
        found = []
        for message in self._dump(_GETRULE, FAMILIES[family], where):
            attributes = decode.attrs(message)
            # Kernels before 5.6 ignore the wish for one table and chain.
            names = attributes.get(TABLE, b""), attributes.get(_RULE_CHAIN, b"")
            if names == (table.encode() + b"\0", chain.encode() + b"\0"):
                found.append(int.from_bytes(attributes[_RULE_HANDLE], "big"))
        return found


def _parse(messages: Iterable[bytes]) -> dict[Key, Counted]:
    found: dict[Key, Counted] = {}
    for key, element in parse_keyed(list(messages)):
        counter = parse_counter(element)
        if counter is not None:
            found[key] = Counted(parse_data(element.get(DATA)), *counter)
    return found
