"""Packets as the kernel copies them to user space: whose they are, between whom. Pure."""

from __future__ import annotations

import struct
from typing import Final

from msgspec import Struct

_EXTENSIONS: Final = frozenset({0, 43, 60})  # hop-by-hop, routing, destination options


class CopiedPacket(Struct, frozen=True, gc=False):
    """`sport` and `dport` are 0 where the protocol has no ports; addresses are packed.

    `transport` is what was copied of the packet from its transport header on.
    """

    prefix: str
    src: bytes
    dst: bytes
    protocol: int
    sport: int = 0
    dport: int = 0
    in_index: int = 0
    out_index: int = 0
    transport: bytes = b""


def parse_copied(
    payload: bytes, prefix: str = "", in_index: int = 0, out_index: int = 0
) -> CopiedPacket | None:
    """From its IP header on; None for what is not IP or is cut too short."""
    header = _addresses(payload)
    if header is None:
        return None
    src, dst, protocol, offset = header
    sport = dport = 0
    if protocol in (6, 17, 132) and len(payload) >= offset + 4:
        sport, dport = struct.unpack_from("!HH", payload, offset)
    return CopiedPacket(
        prefix, src, dst, protocol, sport, dport, in_index, out_index, payload[offset:]
    )


def _addresses(payload: bytes) -> tuple[bytes, bytes, int, int] | None:
    """(source, destination, protocol, where the transport header begins)."""
    if len(payload) >= 20 and payload[0] >> 4 == 4:
        return payload[12:16], payload[16:20], payload[9], (payload[0] & 15) * 4
    if len(payload) >= 40 and payload[0] >> 4 == 6:
        protocol, offset = payload[6], 40
        while protocol in _EXTENSIONS and len(payload) >= offset + 8:
            protocol, offset = payload[offset], offset + (payload[offset + 1] + 1) * 8
        return payload[8:24], payload[24:40], protocol, offset
    return None
