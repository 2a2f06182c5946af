"""Connections as text, and two lists of them compared."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podwire.policy import intervals, ports
from podwire.policy.connlist import Connection, format_ports
from podwire.policy.diff import Change, diff_connections
from podwire.policy.intervals import EMPTY, Intervals
from podwire.policy.model import PortRange

TCP_80 = ports.of_ranges([PortRange(6, 80, 80)])
TCP = ports.of_ranges([PortRange(6)])


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (ports.ALL, "All Connections"),
        (ports.ALL_PORTS, "All Connections"),
        (EMPTY, "No Connections"),
        (
            [PortRange(6, 80, 80), PortRange(6, 443, 443), PortRange(6, 8000, 8080)],
            "TCP 80,443,8000-8080",
        ),
        ([PortRange(17, 53, 53), PortRange(6), PortRange(132, 9, 9)], "SCTP 9,TCP 1-65535,UDP 53"),
        ([PortRange(6, 65535, 65535), PortRange(17, 0, 1)], "TCP 65535,UDP 1"),
        ([PortRange(n, 1, 65535) for n in (6, 17, 132)], "All Connections"),
        (((ports.OTHER, ports.OTHER),), "No Connections"),
    ],
)
def test_ports_in_words(found: Intervals | list[PortRange], text: str) -> None:
    made = ports.of_ranges(found) if isinstance(found, list) else found
    assert format_ports(made) == text


def test_added_removed_changed() -> None:
    old = [Connection("a", "b", TCP_80), Connection("a", "c", TCP), Connection("b", "c", TCP)]
    new = [Connection("a", "c", TCP_80), Connection("b", "c", TCP), Connection("c", "a", TCP)]
    found = diff_connections(old, new)
    assert [(c.source, c.destination, c.kind) for c in found] == [
        ("a", "b", "removed"),
        ("a", "c", "changed"),
        ("c", "a", "added"),
    ]
    assert format_ports(found[1].closed) == "TCP 1-79,81-65535"
    assert found[1].opened == EMPTY


def test_ranges_cut_elsewhere_are_the_same_ranges() -> None:
    whole = [Connection("0.0.0.0-255.255.255.255[External]", "a", TCP)]
    halves = [
        Connection("0.0.0.0-127.255.255.255[External]", "a", TCP),
        Connection("128.0.0.0-255.255.255.255[External]", "a", TCP),
    ]
    assert diff_connections(whole, halves) == []
    hole = [halves[0], Connection("192.0.0.0-255.255.255.255[External]", "a", TCP)]
    assert diff_connections(halves, hole) == [
        Change("128.0.0.0-191.255.255.255[External]", "a", TCP_WIRED, EMPTY)
    ]


TCP_WIRED = ports.of_ranges([PortRange(6, 1, 65535)])
_spans = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3), st.booleans()), max_size=4)


def _outside(spans: list[tuple[int, int, bool]]) -> list[Connection]:
    """Disjoint: what an earlier span has, a later one has not."""
    taken: Intervals = EMPTY
    found = []
    for first, more, all_ports in spans:
        for low, high in intervals.subtract(((first, first + more),), taken):
            label = f"{ip_address(low)}-{ip_address(high)}[External]"
            found.append(Connection("web", label, TCP if all_ports else TCP_80))
        taken = intervals.union(taken, ((first, first + more),))
    return found


@given(_spans, _spans)
def test_every_address_that_changed_is_told_once(
    old: list[tuple[int, int, bool]], new: list[tuple[int, int, bool]]
) -> None:
    before, after = _outside(old), _outside(new)
    changes = diff_connections(before, after)
    for address in range(14):
        was, is_ = _at(before, address), _at(after, address)
        told = [(c.old, c.new) for c in changes if _covers(c.destination, address)]
        assert told == ([(was, is_)] if was != is_ else [])


def _at(found: list[Connection], address: int) -> Intervals:
    ports_ = next((c.ports for c in found if _covers(c.destination, address)), EMPTY)
    return intervals.intersect(ports_, TCP_WIRED)


def _covers(label: str, address: int) -> bool:
    first, _, last = label.removesuffix("[External]").partition("-")
    return int(ip_address(first)) <= address <= int(ip_address(last))
