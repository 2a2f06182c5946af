"""What other processes do to the nftables ruleset, told by the kernel and not by polling.

    transaction of anybody -> NFNLGRP_NFTABLES: what it did..., NEWGEN (who) -> Transaction

Every transaction is announced after it was committed, message by message, the last being the new
generation with the process that made it. Ours are told apart twice: a socket filter drops what
comes from the netlink ports of our `NfElements` in the kernel (so that loading 100,000 elements
does not overrun the buffer here), and the process number in NEWGEN covers text through
libnftables, which hides its port. A table changed by the `nft` program counts as foreign even when
podwire ran it, as it does where libnftables is missing. Elements that expire, and those packets
add (`update @set`), are not announced.

When the kernel had more to say than the buffer holds, that is told too: `Transaction.lost`, and the
cure is to look at everything.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import socket
import struct
from collections.abc import Callable, Iterable, Iterator
from typing import Final, Literal, TypeAlias

from msgspec import Struct

from podwire.errors import KernelError
from podwire.kernel import decode, nfnl
from podwire.kernel import encode as nl
from podwire.kernel.nfpack import FAMILY_NAMES, Key
from podwire.kernel.nfparse import parse_keyed

Noun: TypeAlias = Literal["table", "chain", "rule", "set", "element", "object", "flowtable"]

# NFT_MSG_* -> (verb, noun, attribute of the name)
_KINDS: Final[dict[int, tuple[Literal["new", "delete"], Noun, int]]] = {
    0: ("new", "table", 1),
    2: ("delete", "table", 1),
    3: ("new", "chain", 3),
    5: ("delete", "chain", 3),
    6: ("new", "rule", 2),
    8: ("delete", "rule", 2),
    9: ("new", "set", 2),
    11: ("delete", "set", 2),
    12: ("new", "element", 2),
    14: ("delete", "element", 2),
    18: ("new", "object", 2),
    20: ("delete", "object", 2),
    22: ("new", "flowtable", 2),
    24: ("delete", "flowtable", 2),
}
_NEWGEN: Final = 15
_BUFFER: Final = 16 << 20
_RECEIVE: Final = 1 << 16
_SO_ATTACH_FILTER: Final = 26
_LOAD_PORT: Final = (0x20, 0, 0, 12)  # BPF_LD | BPF_W | BPF_ABS: nlmsg_pid
_JUMP_EQUAL: Final = 0x15
_ACCEPT: Final = (0x06, 0, 0, 0xFFFFFFFF)
_DROP: Final = (0x06, 0, 0, 0)


class Event(Struct, frozen=True):
    """One thing that was done. `name` is the chain's for a rule, the set's for elements."""

    verb: Literal["new", "delete"]
    noun: Noun
    family: str
    table: str
    name: str
    keys: tuple[Key, ...] = ()

    def __str__(self) -> str:
        name = "" if self.noun == "table" else f" {self.name}"
        count = f" ({len(self.keys)})" if self.keys else ""
        return f"{self.verb} {self.noun} {self.family} {self.table}{name}{count}"


class Transaction(Struct, frozen=True):
    """What one process did at once; with `lost`, unknown things happened before."""

    events: tuple[Event, ...] = ()
    generation: int = 0
    pid: int = 0
    program: str = ""
    lost: bool = False

    def __str__(self) -> str:
        if self.lost:
            return "unknown changes of the ruleset"
        return f"{self.program}[{self.pid}]: " + ", ".join(map(str, self.events))


class NfMonitor(nfnl.NfSocket):
    """A subscription to the ruleset of one network namespace.

    `wanted` chooses tables by family and name. `read` whenever `fileno` is readable.
    """

    what = "nftables monitor"

    def __init__(self, wanted: Callable[[str, str], bool] = lambda _family, _table: True) -> None:
        super().__init__()
        self._wanted = wanted
        self._own_pids = {self._generation()[1]}
        self._own_ports: set[int] = set()
        self._pending: list[tuple[int, Event]] = []
        self._receive_buffer(_BUFFER)
        self._join(nfnl.GROUP_NFTABLES, count_losses=True)

    def fileno(self) -> int:
        """For `loop.add_reader`."""
        return self._socket.fileno()

    def own_thread(self, pid: int) -> None:
        """Transactions of this thread too (`NfElements.own_pid`) are ours; the opener's are."""
        self._own_pids.add(pid)

    def ignore(self, *ports: int) -> None:
        """Transactions from these netlink ports (`NfElements.port`) are ours."""
        self._own_ports.update(ports)
        self._filter(self._own_ports)

    @contextlib.contextmanager
    def ignoring(self) -> Iterator[Callable[[int], None]]:
        """For the time of a program of ours: give it that one's port."""
        try:
            yield lambda port: self._filter(self._own_ports | {port})
        finally:
            self._filter(self._own_ports)

    def _filter(self, ports: Iterable[int]) -> None:
        program = _drop_ports(sorted(ports))
        buffer = ctypes.create_string_buffer(program)
        fprog = struct.pack("@HP", len(program) // 8, ctypes.addressof(buffer))
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, fprog)

    def read(self) -> list[Transaction]:
        """The foreign transactions since the last call, oldest first; never blocks."""
        found: list[Transaction] = []
        while True:
            try:
                data = self._socket.recv(_RECEIVE)
            except BlockingIOError:
                return found
            except OSError as e:
                if e.errno != errno.ENOBUFS:
                    raise KernelError("nftables monitor", errno=e.errno or 0) from e
                self._pending.clear()
                found.append(Transaction(lost=True))
                continue
            for kind, port, body in _messages(data):
                self._take(kind, port, body, found)

    def _take(self, kind: int, port: int, body: bytes, found: list[Transaction]) -> None:
        if kind >> 8 != nfnl.SUBSYS_NFTABLES:
            return
        if kind & 0xFF != _NEWGEN:
            event = parse_event(kind & 0xFF, body)
            if event is not None and self._wanted(event.family, event.table):
                self._pending.append((port, event))
            return
        # After a loss there may be events whose own NEWGEN is gone; the port tells them.
        events = [event for owner, event in self._pending if owner == port]
        self._pending = []
        transaction = parse_generation(body, events)
        if transaction.events and transaction.pid not in self._own_pids:
            found.append(transaction)


def _messages(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """(type, port, body) of each message: who sent it is what `decode.messages` leaves out."""
    offset = 0
    while offset + 16 <= len(data):
        size, kind, _flags, _seq, port = nl.HEADER.unpack_from(data, offset)
        if size < 16:
            return
        yield kind, port, data[offset + 16 : offset + size]
        offset += size + 3 & ~3


def parse_event(operation: int, body: bytes) -> Event | None:
    """A notification's meaning; None for kinds that are not told (traces)."""
    if operation not in _KINDS:
        return None
    verb, noun, name = _KINDS[operation]
    attributes = decode.attrs(body, 4)
    keys: Iterable[Key] = ()
    if noun == "element":
        keys = [key for key, _ in parse_keyed([body[4:]])]
    return Event(
        verb,
        noun,
        FAMILY_NAMES.get(body[0], str(body[0])),
        _string(attributes.get(1)),
        _string(attributes.get(name)),
        tuple(keys),
    )


def parse_generation(body: bytes, events: Iterable[Event]) -> Transaction:
    """The end of a transaction: its number and who made it."""
    attributes = decode.attrs(body, 4)
    return Transaction(
        tuple(events),
        int.from_bytes(attributes.get(1, b""), "big"),
        int.from_bytes(attributes.get(2, b""), "big"),
        _string(attributes.get(3)),
    )


def _string(raw: bytes | None) -> str:
    return (raw or b"").rstrip(b"\0").decode(errors="replace")


def _drop_ports(ports: list[int]) -> bytes:
    """A classic BPF program: drop datagrams whose first message is from one of the ports."""
    steps = [_LOAD_PORT]
    for left, port in zip(range(len(ports), 0, -1), ports, strict=True):
        # BPF loads big-endian, a netlink header is in the machine's order.
        value = int.from_bytes(struct.pack("=I", port), "big")
        steps.append((_JUMP_EQUAL, left, 0, value))
    return b"".join(struct.pack("=HBBI", *step) for step in [*steps, _ACCEPT, _DROP])
