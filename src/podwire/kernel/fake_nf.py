"""Netfilter in memory: set elements, ruleset monitor and connection tracking without a kernel.

Sets exist when the text given to the fake's nft declares them, and so do the chains verdicts name.
Elements are kept as they are; no packet meets them, so counters stay at nothing. Intervals of one
field may not overlap, as in the kernel; those of concatenations are not looked at.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Self, TypeAlias

from podwire.errors import KernelError
from podwire.kernel.fake_rtnl import Namespace
from podwire.kernel.flows import EVERY, Flow, Match
from podwire.kernel.nfelements import MAX_BATCH, Change, Data, Goto, Jump, Key, size_of
from podwire.kernel.nfmonitor import Transaction

SetId: TypeAlias = tuple[str, str, str]
Elements: TypeAlias = dict[SetId, dict[Key, Data]]

_IN_BLOCK: Final = re.compile(r"\b(set|map|chain)\s+([\w-]+)\s*\{([^{}]*)")
_COMMAND: Final = re.compile(
    r"^(add|create|delete|flush)\s+(set|map|chain|table)\s+(?:(ip6?|inet|arp|bridge|netdev)\s+)?"
    r"([\w-]+)(?:\s+([\w-]+))?(?:\s*\{([^{}]*))?"
)


def declared(commands: Sequence[str]) -> tuple[dict[str, str], set[str]]:
    """(sets and maps with their declarations, chains) of one table's commands. Pure."""
    sets: dict[str, str] = {}
    chains: set[str] = set()
    for command in commands:
        found = _COMMAND.match(command)
        if found and found[2] != "table":
            verb, noun, _family, _table, name, body = found.groups()
            if noun == "chain":
                (chains.discard if verb == "delete" else chains.add)(name)
            elif verb == "delete":
                sets.pop(name, None)
            elif verb != "flush":
                sets.setdefault(name, body or "")
            continue
        for noun, name, body in _IN_BLOCK.findall(command):
            if noun == "chain":
                chains.add(name)
            else:
                sets.setdefault(name, body)
    return sets, chains


def forget(elements: Elements, command: str) -> None:
    """Take out the elements that a text command takes away."""
    found = _COMMAND.match(command)
    if not found or found[1] not in ("delete", "flush") or found[2] == "chain":
        return
    _verb, noun, family, table, name, _body = found.groups()
    for key in list(elements):
        if key[:2] == (family or "ip", table) and (noun == "table" or key[2] == name):
            del elements[key]


class FakeNfElements:
    """`nfelements.NfElements` on a `Namespace`."""

    def __init__(self, namespace: Namespace) -> None:
        self._ns = namespace
        self.max_batch = MAX_BATCH
        self.port = id(self) & 0x7FFFFFFF

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        pass

    def _declared(self, family: str, table: str, name: str, error: str) -> tuple[str, set[str]]:
        sets, chains = declared(self._ns.tables.get((family, table), []))
        if name not in sets:
            raise KernelError(error, errno=errno.ENOENT)
        return sets[name], chains

    def apply(self, changes: Sequence[Change]) -> None:
        size = size_of(changes)
        if size > self.max_batch:
            raise KernelError(
                f"nftables: a transaction of {size} bytes, this socket takes {self.max_batch}: "
                "split it",
                errno=errno.EMSGSIZE,
            )
        after = {key: dict(value) for key, value in self._ns.elements.items()}
        for change in changes:
            self._perform(change, after)
        before = {key: value for key, value in self._ns.elements.items() if value}
        self._ns.generation += before != {key: value for key, value in after.items() if value}
        self._ns.elements = after

    def _perform(self, change: Change, after: Elements) -> None:
        if not (change.flush or change.delete or change.add):
            return
        verb = "delete" if change.flush or change.delete else "add"
        where = (change.family, change.table, change.set)
        _text, chains = self._declared(*where, f"nftables: {change}: {verb}")
        held = after.setdefault(where, {})
        if change.flush:
            held.clear()
        for key in change.delete:
            if key not in held:
                raise _failure(change, "delete", key, errno.ENOENT)
            del held[key]
        for key, data in change.add:
            if isinstance(data, Goto | Jump) and data.chain not in chains:
                raise _failure(change, "add", key, errno.ENOENT)
            if held.get(key, data) != data or (key not in held and _overlaps(held, key)):
                raise _failure(change, "add", key, errno.EEXIST)
            held[key] = data

    def flush(self, family: str, table: str, name: str) -> None:
        self.apply([Change(family, table, name, flush=True)])

    def dump(self, family: str, table: str, name: str) -> dict[Key, Data]:
        self._declared(family, table, name, f"nftables: set {family} {table} {name}")
        return dict(self._ns.elements.get((family, table, name), {}))

    def dump_counters(self, family: str, table: str, name: str) -> dict[Key, tuple[int, int]]:
        error = f"nftables: set {family} {table} {name}"
        text, _chains = self._declared(family, table, name, error)
        if not re.search(r"\bcounter\b", text):
            return {}
        return dict.fromkeys(self._ns.elements.get((family, table, name), {}), (0, 0))

    def generation(self) -> int:
        return self._ns.generation

    def own_pid(self) -> int:
        return os.getpid()


def _overlaps(held: Mapping[Key, Data], key: Key) -> bool:
    # Fields of a concatenation are compared one by one, and their borders are not known here.
    if not isinstance(key, tuple) or len(key[0]) not in (1, 2, 4, 16):
        return False
    return any(
        isinstance(other, tuple) and other[0] <= key[1] and key[0] <= other[1] for other in held
    )


def _failure(change: Change, verb: str, key: Key, code: int) -> KernelError:
    first = key[0] if isinstance(key, tuple) else key
    return KernelError(f"nftables: {change}: {verb} {first.hex()}", errno=code)


class FakeNfMonitor:
    """`nfmonitor.NfMonitor` that is told by the test what others did."""

    def __init__(self) -> None:
        self._told: list[Transaction] = []
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def tell(self, transaction: Transaction) -> None:
        """Another process did this."""
        self._told.append(transaction)
        os.eventfd_write(self._fd, 1)

    def fileno(self) -> int:
        return self._fd

    def own_thread(self, pid: int) -> None:
        pass

    def ignore(self, *ports: int) -> None:
        pass

    def read(self) -> list[Transaction]:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._fd)
        told, self._told = self._told, []
        return told

    def close(self) -> None:
        os.close(self._fd)


class FakeConntrack:
    """`conntrack.Conntrack` on the flows a test put into a `Namespace`."""

    def __init__(self, namespace: Namespace) -> None:
        self._ns = namespace

    def dump(self, family: int = socket.AF_INET, match: Match = EVERY) -> list[Flow]:
        return [f for f in self._ns.flows if f.family == family and match.accepts(f)]

    def count(self) -> int:
        return len(self._ns.flows)

    def maximum(self) -> int:
        return 262_144

    def delete(self, flow: Flow) -> bool:
        return self.delete_many([flow]) == 1

    def delete_many(self, wanted: Iterable[Flow]) -> int:
        meant = {(flow.reply, flow.id, flow.zone) for flow in wanted}
        left = [f for f in self._ns.flows if (f.reply, f.id, f.zone) not in meant]
        deleted = len(self._ns.flows) - len(left)
        self._ns.flows = left
        return deleted

    def close(self) -> None:
        pass
