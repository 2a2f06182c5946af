"""Protocols and ports on one line, so that a set of connections is a set of integers. Pure.

    TCP 0-65535 | UDP 0-65535 | SCTP 0-65535 | everything else (ICMP, ...) as one point

A rule without ports means all of the line; only such a rule means its last point, since no
policy API can name other protocols.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from podwire.policy.intervals import Intervals, union
from podwire.policy.model import LAST_PORT, PortRange

_ORDER: Final = (6, 17, 132)
_BASE: Final = {protocol: i << 16 for i, protocol in enumerate(_ORDER)}
OTHER: Final = len(_ORDER) << 16
ALL: Final[Intervals] = ((0, OTHER),)
"""Every connection there is."""
ALL_PORTS: Final[Intervals] = ((0, OTHER - 1),)
"""Every connection that has a port."""


def point(protocol: int, port: int) -> int:
    """Where a connection lies on the line."""
    base = _BASE.get(protocol)
    return OTHER if base is None else base + port


def of_ranges(ranges: Iterable[PortRange]) -> Intervals:
    return union((_BASE[r.protocol] + r.first, _BASE[r.protocol] + r.last) for r in ranges)


def to_ranges(ports: Intervals) -> Iterator[PortRange]:
    """Split at protocols, TCP first; the last point has no range."""
    for first, last in ports:
        for i in range(first >> 16, min(last, OTHER - 1) // (LAST_PORT + 1) + 1):
            if i < len(_ORDER):
                base = i << 16
                yield PortRange(_ORDER[i], max(first - base, 0), min(last - base, LAST_PORT))
