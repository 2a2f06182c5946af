"""How much observed traffic a change of connections concerns. Pure.

    changes + flow records -> per change the records it would newly deny or allow

A connection that nothing uses may be closed; one that a weekly job uses must not. What was not
watched is not in the records, so a document's window and losses are told beside the numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from ipaddress import ip_address
from typing import NamedTuple

from podwire.policy import intervals, ports
from podwire.policy.classviews import EXTERNAL, parse_outside
from podwire.policy.diff import Change
from podwire.policy.flowlog import End, FlowRecord
from podwire.policy.model import PROTOCOLS


class Weight(NamedTuple):
    """Of one change: records seen allowed that it denies, seen denied that it allows, and when the
    last of them was (seconds since the epoch)."""

    denied: tuple[FlowRecord, ...] = ()
    allowed: tuple[FlowRecord, ...] = ()

    @property
    def last_seen(self) -> float:
        return max((record.last_seen for record in (*self.denied, *self.allowed)), default=0.0)


def weigh(
    changes: Sequence[Change], records: Iterable[FlowRecord], name_of: Callable[[End], str]
) -> list[Weight]:
    """In the order of changes; `name_of` gives the label a pod's changes have, "" for unknown."""
    by_ends: dict[tuple[str, str], list[FlowRecord]] = {}
    for record in records:
        ends = _label(record.source, name_of), _label(record.destination, name_of)
        by_ends.setdefault(ends, []).append(record)
    return [_weight(change, by_ends) for change in changes]


def _label(end: End, name_of: Callable[[End], str]) -> str:
    return end.ip if end.kind == "External" else name_of(end)


def _weight(change: Change, by_ends: dict[tuple[str, str], list[FlowRecord]]) -> Weight:
    concerned = by_ends.get((change.source, change.destination), [])
    if EXTERNAL in change.source or EXTERNAL in change.destination:
        concerned = [
            record
            for (source, destination), found in by_ends.items()
            if _is_end(change.source, source) and _is_end(change.destination, destination)
            for record in found
        ]
    return Weight(
        denied=tuple(r for r in concerned if r.verdict == "allowed" and _in(change.closed, r)),
        allowed=tuple(r for r in concerned if r.verdict == "denied" and _in(change.opened, r)),
    )


def _in(found: intervals.Intervals, record: FlowRecord) -> bool:
    protocol = PROTOCOLS.get(record.protocol, 0)
    return intervals.contains(found, ports.point(protocol, record.port))


def _is_end(label: str, seen: str) -> bool:
    """A range means the addresses in it."""
    if label == seen:
        return True
    outside = parse_outside(label)
    if outside is None:
        return False
    try:
        address = ip_address(seen)
    except ValueError:
        return False
    return address.version == outside.version and outside.first <= int(address) <= outside.last
