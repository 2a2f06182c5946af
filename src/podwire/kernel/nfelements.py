"""Elements of nf_tables sets and maps by netlink: rules are text (`nft`), elements are bytes.

    changes -> BATCH_BEGIN, NEWSETELEM..., BATCH_END -> one sendmsg -> done, or nothing was done

The kernel reads the whole batch in one system call and commits it as one generation: a packet sees
all of it or nothing. An error names its message by sequence number and, by the extended
acknowledgement, the element; only the last message asks for an acknowledgement of success, so a
batch of any size is answered with one. Values and packing: `nfpack`; ADR 2 says why not text.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from podwire.errors import KernelError
from podwire.kernel import decode, nfnl
from podwire.kernel import encode as nl
from podwire.kernel.nfpack import (
    ACCEPT,
    CONTINUE,
    DROP,
    FAMILIES,
    RETURN,
    SET,
    TABLE,
    Change,
    Data,
    Element,
    Goto,
    Jump,
    Key,
    Verdict,
    bodies,
    is_ranged,
)
from podwire.kernel.nfpack import DATA as _DATA
from podwire.kernel.nfparse import (
    count_elements,
    key_at,
    parse_counter,
    parse_data,
    parse_elements,
    parse_intervals,
    parse_keyed,
)

__all__ = [
    "ACCEPT",
    "CONTINUE",
    "DROP",
    "MAX_BATCH",
    "RETURN",
    "Change",
    "Data",
    "Element",
    "Goto",
    "Jump",
    "Key",
    "NfElements",
    "Verdict",
    "size_of",
    "split",
]

MAX_BATCH: Final = 128 << 20
"""Bytes of one transaction for a process with CAP_NET_ADMIN of the initial user namespace; others
get net.core.wmem_max (`NfElements.max_batch` is what this socket really takes)."""

_NEWSETELEM: Final = nfnl.SUBSYS_NFTABLES << 8 | 12
_GETSETELEM: Final = nfnl.SUBSYS_NFTABLES << 8 | 13
_DELSETELEM: Final = nfnl.SUBSYS_NFTABLES << 8 | 14
_GETSET: Final = nfnl.SUBSYS_NFTABLES << 8 | 10
_SET_NAME: Final = 2
_SET_FLAGS: Final = 3
_SET_COUNT: Final = 20
_FLAG_INTERVAL: Final = 0x4
_FLAG_CONCAT: Final = 0x80
_INCOMPLETE_RETRIES: Final = 10
_FRAME: Final = 20  # nlmsghdr and nfgenmsg
# An element's key, data and attributes are less than this.
_ELEMENT_BYTES: Final = 200


def size_of(changes: Sequence[Change]) -> int:
    """The bytes of the transaction on the wire, rounded up a little."""
    return 2 * _FRAME + sum(
        _FRAME + len(body) for change in changes for _, body in bodies(change, True)
    )


def _cut_anywhere(_change: Change) -> bool:
    return False


def split(
    changes: Sequence[Change], limit: int, whole: Callable[[Change], bool] = _cut_anywhere
) -> Iterator[list[Change]]:
    """Cut changes into transactions of at most about `limit` bytes, in order.

    A replaced element is deleted and added in the same one, and what is `whole` (ranges of one
    map, which may not overlap for a moment) is never cut: no packet meets the state in between.
    """
    most = max(1, limit // _ELEMENT_BYTES)
    batch: list[Change] = []
    room = most
    for change in changes:
        for piece in [change] if whole(change) else _pieces(change, most):
            size = len(piece.delete) + len(piece.add)
            if size > room and batch:
                yield batch
                batch, room = [], most
            batch.append(piece)
            room -= size
    if batch:
        yield batch


def _pieces(change: Change, most: int) -> Iterator[Change]:
    if len(change.delete) + len(change.add) <= most:
        yield change
        return
    where = (change.family, change.table, change.set)
    if change.flush:
        yield Change(*where, flush=True)
    replaced = set(change.delete) & {key for key, _ in change.add}
    pairs = [element for element in change.add if element[0] in replaced]
    half = most // 2 or 1
    for start in range(0, len(pairs), half):
        some = tuple(pairs[start : start + half])
        yield Change(*where, tuple(key for key, _ in some), some)
    deletes = [key for key in change.delete if key not in replaced]
    for start in range(0, len(deletes), most):
        yield Change(*where, tuple(deletes[start : start + most]))
    adds = [element for element in change.add if element[0] not in replaced]
    for start in range(0, len(adds), most):
        yield Change(*where, (), tuple(adds[start : start + most]))


class NfElements(nfnl.NfSocket):
    """The set elements of one network namespace."""

    what = "nftables"

    def __init__(self) -> None:
        super().__init__()
        self.max_batch = self._send_buffer(MAX_BATCH // 2)  # the kernel doubles what it is told
        self._receive_buffer(1 << 20)

    # -- changes ---------------------------------------------------------------------------------

    def apply(self, changes: Sequence[Change]) -> None:
        """Perform the changes in order, as one transaction.

        Errors: `KernelError` naming the set and the key that failed, EMSGSIZE for a batch larger
        than `max_batch`; nothing was done then.
        """
        sent: dict[int, tuple[Change, bytes]] = {}
        begin = self._next_seq()
        for change in changes:
            concatenated = is_ranged(change) and self._is_concatenated(change)
            for deletes, body in bodies(change, concatenated):
                kind, flags = (_DELSETELEM, 0) if deletes else (_NEWSETELEM, nl.NLM_F_CREATE)
                seq = self._next_seq()
                flags |= nl.NLM_F_REQUEST
                family = FAMILIES[change.family]
                sent[seq] = (change, nfnl.message(kind, flags, seq, family, body))
        if sent:
            self._commit(begin, sent)

    def flush(self, family: str, table: str, name: str) -> None:
        """Remove every element of the set."""
        self.apply([Change(family, table, name, flush=True)])

    def _commit(self, begin: int, sent: dict[int, tuple[Change, bytes]]) -> None:
        last = next(reversed(sent))
        change, message = sent[last]
        # Flags are bytes 6 and 7 of a message.
        sent[last] = (change, message[:6] + bytes([message[6] | nl.NLM_F_ACK]) + message[7:])
        batch = b"".join(
            [
                _batch(nfnl.MSG_BATCH_BEGIN, begin),
                *(message for _, message in sent.values()),
                _batch(nfnl.MSG_BATCH_END, self._next_seq()),
            ]
        )
        if len(batch) > self.max_batch:
            raise KernelError(
                f"nftables: a transaction of {len(batch)} bytes, this socket takes "
                f"{self.max_batch}: split it",
                errno=errno.EMSGSIZE,
            )
        acknowledged = False
        failure: KernelError | None = None
        for kind, flags, seq, body in self._exchange(batch):
            if kind != nl.NLMSG_ERROR or not (seq == begin or seq in sent):
                continue
            code, words = decode.error_of(flags, body)
            if code and failure is None:
                failure = _failure(code, words, decode.error_offset(flags, body), sent.get(seq))
            acknowledged = acknowledged or seq == last
        if failure is not None:
            raise failure
        if not acknowledged:
            raise KernelError("nftables: the kernel did not answer a transaction", errno=errno.EIO)

    # -- questions -------------------------------------------------------------------------------

    def _set(self, family: str, table: str, name: str) -> dict[int, bytes]:
        """The attributes of a set; `KernelError` ENOENT when there is none."""
        body = nfnl.text(TABLE, table) + nfnl.text(_SET_NAME, name)
        try:
            (answer,) = self._ask(_GETSET, FAMILIES[family], body)
        except KernelError as e:
            raise KernelError(f"nftables: set {family} {table} {name}", errno=e.errno) from e
        return decode.attrs(answer, 4)

    def _is_concatenated(self, change: Change) -> bool:
        attributes = self._set(change.family, change.table, change.set)
        return bool(_number(attributes.get(_SET_FLAGS)) & _FLAG_CONCAT)

    def _elements(self, family: str, table: str, name: str) -> tuple[bool, list[bytes]]:
        """(is an interval set, messages) of a complete dump.

        A hash set declared without `size` grows in the background, and meanwhile the kernel dumps
        some elements twice and others not at all (seen on 6.18, without NLM_F_DUMP_INTR). So no key
        may come twice, and the number has to be the set's own (told since 6.16, expired elements
        included) or that of another dump.
        """
        where = nfnl.text(TABLE, table) + nfnl.text(SET, name)
        former = -1
        for _ in range(_INCOMPLETE_RETRIES):
            try:
                messages = self._dump(_GETSETELEM, FAMILIES[family], where)
            except KernelError as e:
                raise KernelError(f"nftables: set {family} {table} {name}", errno=e.errno) from e
            attributes = self._set(family, table, name)
            ranged = bool(_number(attributes.get(_SET_FLAGS)) & _FLAG_INTERVAL)
            found, distinct = count_elements(messages)
            if ranged or (
                found == distinct and found in (former, _number(attributes.get(_SET_COUNT), -1))
            ):
                return ranged, messages
            former = found
        return False, messages

    def dump(self, family: str, table: str, name: str) -> dict[Key, Data]:
        """The elements; of an interval set by (first, last).

        The catch-all element has no key and is left out.
        """
        ranged, messages = self._elements(family, table, name)
        if not ranged:
            return parse_elements(messages)
        return {key: parse_data(a.get(_DATA)) for key, a in parse_intervals(messages)}

    def dump_counters(self, family: str, table: str, name: str) -> dict[Key, tuple[int, int]]:
        """(packets, bytes) by key, of the elements that count."""
        ranged, messages = self._elements(family, table, name)
        pairs = parse_intervals(messages) if ranged else parse_keyed(messages)
        counted = ((key, parse_counter(element)) for key, element in pairs)
        return {key: counter for key, counter in counted if counter is not None}

    def generation(self) -> int:
        """The number of the ruleset's generation: grows with every transaction of anybody."""
        return self._generation()[0]

    def own_pid(self) -> int:
        """The calling thread, as `NfMonitor` is told who did something."""
        return self._generation()[1]


def _number(raw: bytes | None, absent: int = 0) -> int:
    return absent if raw is None else int.from_bytes(raw, "big")


def _batch(kind: int, seq: int) -> bytes:
    return nfnl.message(kind, nl.NLM_F_REQUEST, seq, 0, b"", nfnl.SUBSYS_NFTABLES)


def _failure(code: int, words: str, offset: int, of: tuple[Change, bytes] | None) -> KernelError:
    if of is None:
        return KernelError("nftables: the transaction was refused", errno=code)
    change, message = of
    verb = "delete" if message[4] == _DELSETELEM & 0xFF else "add"
    key = key_at(message, offset)
    which = f": {verb} {key.hex()}" if key is not None else f": {verb}"
    return KernelError(f"nftables: {change}{which}{': ' if words else ''}{words}", errno=code)
