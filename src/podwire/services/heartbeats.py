"""The datagram that nodes send each other while there are load balancer addresses. Pure.

    Heartbeat -> pack_heartbeat -> UDP -> parse_heartbeat -> Heartbeat

Who announces says what, at a steady pace and in the same bytes. Who doubts that another lives asks,
and who is asked answers with how long ago it heard of the others itself: a node that only one
neighbour still hears is alive for all, so nodes with different wires agree. (`liveness`)

    "pwlb" version:u8 name:u8+bytes asking:u8
        announced:u16 x digest[4] heard:u16 x (digest[4] age_ms:u16)
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

_MAGIC: Final = b"pwlb\2"
_HEAD: Final = struct.Struct(">BH")
_COUNT: Final = struct.Struct(">H")
_HEARD: Final = struct.Struct(">4sH")
_AGE_MAX_MS: Final = 0xFFFF


@dataclass(frozen=True)
class Heartbeat:
    """`announced` and the keys of `heard_ms` are digests; `asking` wants an answer."""

    node: str
    announced: frozenset[bytes] = frozenset()
    heard_ms: Mapping[bytes, int] = field(default_factory=dict)
    asking: bool = False


def pack_heartbeat(beat: Heartbeat) -> bytes:
    name = beat.node.encode()
    parts = [_MAGIC, bytes([len(name)]), name, _HEAD.pack(beat.asking, len(beat.announced))]
    parts += sorted(beat.announced)
    parts.append(_COUNT.pack(len(beat.heard_ms)))
    parts += [_HEARD.pack(who, min(age, _AGE_MAX_MS)) for who, age in beat.heard_ms.items()]
    return b"".join(parts)


def parse_heartbeat(data: bytes) -> Heartbeat | None:
    """None for what is no heartbeat: the port is open to everybody on the network."""
    try:
        return _parse(data)
    except (struct.error, UnicodeDecodeError, IndexError):
        return None


def _parse(data: bytes) -> Heartbeat | None:
    if not data.startswith(_MAGIC):
        return None
    at = len(_MAGIC) + 1
    end = at + data[at - 1]
    name = data[at:end].decode()
    asking, count = _HEAD.unpack_from(data, end)
    at = end + _HEAD.size
    end = at + 4 * count
    announced = frozenset(data[i : i + 4] for i in range(at, end, 4))
    (heard,) = _COUNT.unpack_from(data, end)
    at = end + _COUNT.size
    if not name or asking > 1 or len(data) != at + heard * _HEARD.size:
        return None
    ages: dict[bytes, int] = dict(_HEARD.iter_unpack(data[at:]))
    return Heartbeat(name, announced, ages, bool(asking))
