"""Which connections that stand would not be opened any more. Pure.

    connection tracking entries + what now opens -> those to cut, each with the end that denies it

An entry is judged as its first packet was: between DNAT and SNAT, so from the original source to
where the answers come from. Entries that no forward hook ever judged (the node's own) are left out.
Source: S19; the API leaves it open what a change means for connections that stand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from socket import IPPROTO_ICMP, IPPROTO_ICMPV6
from typing import Final

from podwire.kernel.flows import Flow

_ICMP: Final = frozenset({IPPROTO_ICMP, IPPROTO_ICMPV6})
Opens = Callable[[bytes, bytes, int, int], bool]
"""(source, destination, protocol, destination port) -> whether such a connection may be opened."""


def flows_to_cut(flows: Iterable[Flow], opens: Opens, own: frozenset[bytes]) -> Iterator[Flow]:
    """`own` are the node's addresses, packed."""
    known: dict[tuple[bytes, bytes, int, int], bool] = {}
    for flow in flows:
        protocol = flow.orig.proto
        port = 0 if protocol in _ICMP else flow.reply.sport
        ends = (flow.orig.src, flow.reply.src, protocol, port)
        if ends[0] in own or ends[1] in own:
            continue
        if ends not in known:
            known[ends] = opens(*ends)
        if not known[ends]:
            yield flow
