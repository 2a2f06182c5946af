"""Connection tracking of one namespace: read, deleted from exactly, and listened to.

When an endpoint goes, flows of UDP that lead to it would go on leading there: their entries have to
be deleted (kube-proxy's conntrack cleaning). An entry is deleted by where it leads and by its id:
a successor that leads elsewhere is not hit. Values and their bytes: `flows`.

The settings are ordinary sysctls of the namespace (`sysctl`, names below), except the table's size:
nf_conntrack_max belongs to the machine. Events need nf_conntrack_events, on by default; with its
"auto" (Linux 5.19) only entries made while somebody listened announce their end.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterable, Sequence
from typing import Final, Literal

from podwire.errors import KernelError
from podwire.kernel import decode, flows, nfnl
from podwire.kernel import encode as nl
from podwire.kernel.flows import EVERY, Flow, FlowEvent, Match

ACCT: Final = "net/netfilter/nf_conntrack_acct"
"""Count packets and bytes of flows made from now on (0, 1)."""
TCP_CLOSE_WAIT_S: Final = "net/netfilter/nf_conntrack_tcp_timeout_close_wait"
TCP_ESTABLISHED_S: Final = "net/netfilter/nf_conntrack_tcp_timeout_established"
TCP_BE_LIBERAL: Final = "net/netfilter/nf_conntrack_tcp_be_liberal"
"""Only RST outside of the window is invalid (kube-proxy's conntrack.tcpBeLiberal)."""
COUNT: Final = "net/netfilter/nf_conntrack_count"
MAX: Final = "net/netfilter/nf_conntrack_max"

_NEW: Final = nfnl.SUBSYS_CTNETLINK << 8
_GET: Final = _NEW | 1
_DELETE: Final = _NEW | 2
_GET_STATS: Final = _NEW | 5
_GROUPS: Final[dict[str, int]] = {"new": 1, "update": 2, "destroy": 3}
_CHUNK: Final = 200  # as in `rtnl`: so many answers surely fit into the receive buffer
_RECEIVE: Final = 1 << 16
_SO_MEMINFO: Final = 55
_MEMINFO: Final = struct.Struct("=9I")


class Conntrack(nfnl.NfSocket):
    """The connection tracking table of one network namespace."""

    what = "conntrack"

    def dump(self, family: int = socket.AF_INET, match: Match = EVERY) -> list[Flow]:
        """The flows of a family that match. 50,000 take about 0.3 s, fewer what they are."""
        bodies = self._dump(_GET, family, flows.pack_match(match))
        return list(flows.parse_flows(bodies, match))

    def count(self) -> int:
        """How many entries there are, of all families."""
        return self._stats()[0]

    def maximum(self) -> int:
        """How many there may be (nf_conntrack_max)."""
        return self._stats()[1]

    def _stats(self) -> tuple[int, int]:
        (answer,) = self._ask(_GET_STATS, 0, b"")
        found = decode.attrs(answer, 4)
        return int.from_bytes(found[1], "big"), int.from_bytes(found.get(2, b""), "big")

    def delete(self, flow: Flow) -> bool:
        """Delete this very entry; False when it is gone already."""
        return self.delete_many([flow]) == 1

    def delete_many(self, wanted: Iterable[Flow]) -> int:
        """Delete these very entries; returns how many were still there.

        Errors: `KernelError` with the first flow that could not be deleted; the rest is done.
        """
        every = list(wanted)
        gone = 0
        failure: tuple[Flow, int] | None = None
        for start in range(0, len(every), _CHUNK):
            for flow, code in self._delete(every[start : start + _CHUNK]):
                if code == errno.ENOENT:
                    gone += 1
                elif failure is None:
                    failure = flow, code
        if failure is not None:
            raise KernelError(f"conntrack: delete {failure[0]}", errno=failure[1])
        return len(every) - gone

    def _delete(self, some: Sequence[Flow]) -> list[tuple[Flow, int]]:
        """(flow, errno) of those that failed: without NLM_F_ACK only errors are answered."""
        sent: dict[int, Flow] = {}
        parts: list[bytes] = []
        for flow in some:
            seq = self._next_seq()
            sent[seq] = flow
            body = flows.pack_exact(flow)
            parts.append(nfnl.message(_DELETE, nl.NLM_F_REQUEST, seq, flow.family, body))
        return [
            (sent[seq], decode.error_of(flags, body)[0])
            for kind, flags, seq, body in self._exchange(b"".join(parts))
            if kind == nl.NLMSG_ERROR and seq in sent
        ]


class ConntrackEvents(nfnl.NfSocket):
    """A subscription to the beginnings and ends of flows.

    `read` whenever `fileno` is readable. What does not fit into the buffer is lost and counted.
    """

    what = "conntrack events"

    def __init__(
        self,
        kinds: Iterable[Literal["new", "update", "destroy"]] = ("new", "destroy"),
        buffer: int = 1 << 20,
    ) -> None:
        super().__init__()
        self._receive_buffer(buffer)
        for kind in kinds:
            self._join(_GROUPS[kind], count_losses=True)

    def fileno(self) -> int:
        """For `loop.add_reader`."""
        return self._socket.fileno()

    @property
    def lost(self) -> int:
        """How many events were lost since the subscription."""
        raw = self._socket.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _MEMINFO.size)
        drops: int = _MEMINFO.unpack(raw)[8]
        return drops

    def read(self, limit: int = 10_000) -> list[FlowEvent]:
        """The events since the last call, oldest first, about `limit` at most; never blocks."""
        found: list[FlowEvent] = []
        while len(found) < limit:
            try:
                data = self._socket.recv(_RECEIVE)
            except BlockingIOError:
                break
            except OSError as e:
                if e.errno != errno.ENOBUFS:
                    raise KernelError("conntrack events", errno=e.errno or 0) from e
                continue  # `lost` has grown
            for kind, flags, _seq, body in decode.messages(data):
                event = _event(kind, flags, body)
                if event is not None:
                    found.append(event)
        return found


def _event(kind: int, flags: int, body: bytes) -> FlowEvent | None:
    if kind == _DELETE:
        return FlowEvent("destroy", flows.parse_flow(body))
    if kind == _NEW:
        made = flags & (nl.NLM_F_CREATE | nl.NLM_F_EXCL)
        return FlowEvent("new" if made else "update", flows.parse_flow(body))
    return None
