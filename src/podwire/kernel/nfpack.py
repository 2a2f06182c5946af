"""Set and map elements of nf_tables, as values and as bytes. Pure; `nfelements` sends them, and
`nfparse` is the way back.

    Change -> NEWSETELEM, DELSETELEM messages: table, set, elements [key, key end, data], ...

Keys and values are the bytes of nft's registers: the fields of a concatenation in order, each
padded to 4 bytes; addresses and ports in network order, `mark` and `numgen` in the machine's
(`pack_*` below). An element is mostly constant: for one set only the key and the value change, so
each element costs a few references in a list that is joined once.

Kernel 6.18, declared as text with nft 1.0.6 (tests/kernel/test_kernel_nfelements.py shows each):
- verdict maps, data maps, plain and interval sets take elements from here; so do maps with
  `flags dynamic,timeout` (an element added without a timeout of its own gets the map's);
- `counter;` is valid in the declaration of any of them, maps included, and counts: each element
  made afterwards has its counter, and a look-up that hits it adds the packet (in a dynamic map or
  set so does each `update`). An element cannot have a counter where the declaration has none.

Source: include/uapi/linux/netfilter/nf_tables.h, net/netfilter/nf_tables_api.c.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from socket import AF_INET, AF_INET6
from typing import Final, NamedTuple, TypeAlias

from podwire.kernel import encode as nl
from podwire.kernel import nfnl

FAMILIES: Final[Mapping[str, int]] = {
    "inet": 1,
    "ip": AF_INET,
    "arp": 3,
    "netdev": 5,
    "bridge": 7,
    "ip6": AF_INET6,
}
FAMILY_NAMES: Final[Mapping[int, str]] = {number: name for name, number in FAMILIES.items()}

TABLE: Final = 1  # NFTA_SET_ELEM_LIST_*
SET: Final = 2
ELEMENTS: Final = 3
_ELEM: Final = 1  # NFTA_LIST_ELEM
KEY: Final = 1  # NFTA_SET_ELEM_*
DATA: Final = 2
FLAGS: Final = 3
KEY_END: Final = 10
VALUE: Final = 1  # NFTA_DATA_*
VERDICT: Final = 2
INTERVAL_END: Final = b"\0\0\0\1"

# An attribute's length has 16 bits, and one attribute holds a message's elements.
_MAX_LIST: Final = 65_500
_ATTR: Final = nl.ATTR


# -- values --------------------------------------------------------------------------------------


class Verdict(str):
    """The data of a verdict map, in nft's words. Make one per chain and share it."""

    __slots__ = ()


class Goto(Verdict):
    """goto CHAIN."""

    __slots__ = ()

    def __new__(cls, chain: str) -> Goto:
        return super().__new__(cls, f"goto {chain}")

    def __getnewargs__(self) -> tuple[str]:
        return (self.chain,)

    @property
    def chain(self) -> str:
        return self[5:]


class Jump(Verdict):
    """jump CHAIN."""

    __slots__ = ()

    def __new__(cls, chain: str) -> Jump:
        return super().__new__(cls, f"jump {chain}")

    def __getnewargs__(self) -> tuple[str]:
        return (self.chain,)

    @property
    def chain(self) -> str:
        return self[5:]


ACCEPT: Final = Verdict("accept")
DROP: Final = Verdict("drop")
RETURN: Final = Verdict("return")
CONTINUE: Final = Verdict("continue")

CODE_GOTO: Final = -4
CODE_JUMP: Final = -3
_PLAIN_VERDICTS: Final = {DROP: 0, ACCEPT: 1, CONTINUE: -1, RETURN: -5}
VERDICT_NAMES: Final = {code: verdict for verdict, code in _PLAIN_VERDICTS.items()}

Key: TypeAlias = bytes | tuple[bytes, bytes]
Data: TypeAlias = bytes | Verdict | None
Element: TypeAlias = tuple[Key, Data]


@dataclass(frozen=True, slots=True)
class Change:
    """A step of a transaction on one set: empty it if `flush`, then delete, then add.

    Keys of interval sets are (first, last), both inclusive. The data of an element that is there
    changes by deleting and adding its key in one step: no packet sees it missing. Adding what is
    there with the same data is fine, with other data EEXIST; deleting what is not there is ENOENT.
    """

    family: str
    table: str
    set: str
    delete: Sequence[Key] = ()
    add: Sequence[Element] = ()
    flush: bool = False

    def __str__(self) -> str:
        return f"set {self.family} {self.table} {self.set}"


# -- fields --------------------------------------------------------------------------------------

_PROTO_PORT: Final = struct.Struct("!B3xH2x")
_PORT: Final = struct.Struct("!H2x")
_HOST32: Final = struct.Struct("=I")


def pack_ip_proto_port(ip: bytes, proto: int, port: int) -> bytes:
    """`ip daddr . meta l4proto . th dport`; the address packed, of either family."""
    return ip + _PROTO_PORT.pack(proto, port)


def pack_ip_port(ip: bytes, port: int) -> bytes:
    """`ip daddr . th dport`, as key or as the data of a dnat map."""
    return ip + _PORT.pack(port)


def pack_proto_port(proto: int, port: int) -> bytes:
    """`meta l4proto . th dport`."""
    return _PROTO_PORT.pack(proto, port)


def pack_u32(value: int) -> bytes:
    """A mark, or an index of numgen or jhash: the machine's byte order."""
    return _HOST32.pack(value)


def pack_ip_proto_port_index(ip: bytes, proto: int, port: int, index: int) -> bytes:
    """`ip daddr . meta l4proto . th dport . numgen ...`; also with `meta mark` at the end."""
    return ip + _PROTO_PORT.pack(proto, port) + _HOST32.pack(index)


@functools.cache
def _indices(count: int) -> tuple[bytes, ...]:
    return tuple(map(_HOST32.pack, range(count)))


def indexed(key: bytes, count: int) -> list[bytes]:
    """`key . 0` to `key . count-1`: the keys of one Service's endpoints."""
    return [key + index for index in _indices(count)]


# -- elements to bytes ---------------------------------------------------------------------------


def _pad(length: int) -> bytes:
    return b"\0" * (-length % 4)


def _value(kind: int, length: int) -> tuple[bytes, bytes]:
    """What goes before and after `length` bytes of a key or a value."""
    return (
        _ATTR.pack(8 + length + len(_pad(length)), kind | nfnl.NESTED)
        + _ATTR.pack(4 + length, VALUE),
        _pad(length),
    )


def _verdict_bytes(verdict: Verdict) -> bytes:
    if isinstance(verdict, Goto | Jump):
        code = CODE_GOTO if isinstance(verdict, Goto) else CODE_JUMP
        chain = nfnl.text(2, verdict.chain)
    else:
        code, chain = _PLAIN_VERDICTS[verdict], b""
    body = nfnl.attr(1, struct.pack("!i", code)) + chain
    return nfnl.nest(DATA, nfnl.nest(VERDICT, body))


class _Shape(NamedTuple):
    """The constant bytes of an element: head KEY middle LAST-KEY tail DATA end."""

    head: bytes
    middle: bytes
    tail: bytes
    end: bytes
    size: int


@functools.lru_cache(maxsize=4096)
def _shape(length: int, ranged: bool, data: int | Verdict | None, flags: bytes = b"") -> _Shape:
    """The shape of elements with keys of `length` bytes and data of so many, or this very verdict.

    `ranged`: with a last key, as concatenations of intervals have it.
    """
    before, after = _value(KEY, length)
    middle = b""
    if ranged:
        last, after_last = _value(KEY_END, length)
        middle, after = after + last, after_last
    tail, end, variable = after, b"", length * (2 if ranged else 1)
    if isinstance(data, Verdict):
        tail += _verdict_bytes(data)
    elif data is not None:
        opening, end = _value(DATA, data)
        tail += opening
        variable += data
    before = (nfnl.attr(FLAGS, flags) if flags else b"") + before
    size = 4 + len(before) + len(middle) + len(tail) + len(end) + variable
    return _Shape(
        _ATTR.pack(size, _ELEM | nfnl.NESTED) + before,
        middle,
        tail,
        end,
        size,
    )


def _data_shape(data: Data) -> int | Verdict | None:
    return len(data) if isinstance(data, bytes) else data


def _plain(keys: Sequence[bytes], data: Sequence[Data]) -> Iterator[bytes]:
    """Lists of elements of a set without intervals, each list as long as an attribute may be."""
    lengths = set(map(len, keys))
    if len(lengths) > 1:
        raise ValueError(f"keys of {sorted(lengths)} bytes in one set")
    (length,) = lengths
    shapes = {d: _shape(length, False, d) for d in set(map(_data_shape, data))}
    step = _MAX_LIST // max(shape.size for shape in shapes.values())
    only = next(iter(shapes.values())) if len(shapes) == 1 else None
    for start in range(0, len(keys), step):
        some, their = keys[start : start + step], data[start : start + step]
        if only is None:
            pairs = [(shapes[_data_shape(d)], k, d) for k, d in zip(some, their, strict=True)]
            parts = [p for s, k, d in pairs for p in (s.head, k, s.tail, _bytes(d), s.end)]
        elif isinstance(their[0], bytes):
            head, _, tail, end, _ = only
            values = [d for d in their if isinstance(d, bytes)]
            parts = [p for k, d in zip(some, values, strict=True) for p in (head, k, tail, d, end)]
        else:
            head, tail = only.head, only.tail
            parts = [p for k in some for p in (head, k, tail)]
        yield b"".join(parts)


def _bytes(data: Data) -> bytes:
    return data if isinstance(data, bytes) else b""


def _successor(last: bytes) -> bytes | None:
    """The key after `last`, None after the very last one."""
    number = int.from_bytes(last, "big") + 1
    return None if number >> (8 * len(last)) else number.to_bytes(len(last), "big")


def _range(first: bytes, last: bytes, data: Data, concatenated: bool) -> bytes:
    """One interval: an element with two keys, or (of one field) a begin and an end element."""
    shape = _shape(len(first), concatenated, _data_shape(data))
    if concatenated:
        return b"".join(
            (shape.head, first, shape.middle, last, shape.tail, _bytes(data), shape.end)
        )
    begin = b"".join((shape.head, first, shape.tail, _bytes(data), shape.end))
    after = _successor(last)
    if after is None:
        return begin
    end = _shape(len(after), False, None, INTERVAL_END)
    return b"".join((begin, end.head, after, end.tail))


def _ranges(elements: Sequence[Element], concatenated: bool) -> Iterator[bytes]:
    parts: list[bytes] = []
    size = 0
    for key, data in elements:
        first, last = key if isinstance(key, tuple) else (key, key)
        part = _range(first, last, data, concatenated)
        if size + len(part) > _MAX_LIST:
            yield b"".join(parts)
            parts, size = [], 0
        parts.append(part)
        size += len(part)
    yield b"".join(parts)


def is_ranged(change: Change) -> bool:
    """Whether a key of the change is an interval: then the kind of the set has to be known."""
    return any(isinstance(key, tuple) for key in change.delete) or any(
        isinstance(key, tuple) for key, _ in change.add
    )


def _lists(elements: Sequence[Element], ranged: bool, concatenated: bool) -> Iterator[bytes]:
    if not elements:
        return iter(())
    if ranged:
        return _ranges(elements, concatenated)
    keys = [key for key, _ in elements if isinstance(key, bytes)]
    return _plain(keys, [data for _, data in elements])


def bodies(change: Change, concatenated: bool = False) -> Iterator[tuple[bool, bytes]]:
    """(is a deletion, attributes) of each message of the change, in order.

    `concatenated` says of an interval set that its keys have several fields.
    """
    where = nfnl.text(TABLE, change.table) + nfnl.text(SET, change.set)
    ranged = is_ranged(change)
    if change.flush:
        yield True, where
    for body in _lists([(key, None) for key in change.delete], ranged, concatenated):
        yield True, where + nfnl.nest(ELEMENTS, body)
    for body in _lists(change.add, ranged, concatenated):
        yield False, where + nfnl.nest(ELEMENTS, body)
