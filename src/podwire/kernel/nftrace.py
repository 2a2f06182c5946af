"""The rules one packet met, told by the kernel.

    `meta nftrace set 1` on a packet -> NFNLGRP_NFTRACE: a message per rule and chain -> TraceHit

The rule that marks the packets stands in a table of its own with `flags owner`: the kernel deletes
it when the netlink socket that made it closes, so nothing stays behind even after SIGKILL
(Linux 5.12). It matches one source port, hence one probe; everybody else's packets pass unmarked.
Source: include/uapi/linux/netfilter/nf_tables.h (nft_trace_attributes), nf_tables_trace.c.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import Final

from msgspec import Struct

from podwire.errors import KernelError
from podwire.kernel import decode, hooks, nfnl
from podwire.kernel.nfpack import FAMILY_NAMES
from podwire.kernel.nfparse import parse_verdict

_GROUP: Final = 9  # NFNLGRP_NFTRACE
_TRACE: Final = nfnl.SUBSYS_NFTABLES << 8 | 17
_BUFFER: Final = 1 << 20
_RECEIVE: Final = 1 << 16
_TYPES: Final = {1: "policy", 2: "return", 3: "rule"}


class TraceHit(Struct, frozen=True, omit_defaults=True):
    """One step of one packet: `kind` is rule, return or policy; `packet` tells packets apart.

    `verdict` is `accept`, `drop`, `continue`, `goto CHAIN` and the like; `handle` names the rule,
    and `rule` is its text where somebody knows it.
    """

    family: str
    table: str
    chain: str
    kind: str
    packet: int
    verdict: str = ""
    handle: int = 0
    rule: str = ""

    def __str__(self) -> str:
        place = f"{self.family} {self.table} {self.chain}"
        what = self.rule or (f"handle {self.handle}" if self.handle else self.kind)
        return f"{place}: {what}" + (f" -> {self.verdict}" if self.verdict else "")


def render_trace_table(
    version: int, src: str, sport: int, dst: str, dport: int, protocol: str
) -> str:
    """The table that marks one probe's packets, on their way in and out of this node."""
    family = "ip" if version == 4 else "ip6"
    match = (
        f"{family} saddr {src} {family} daddr {dst} {protocol} sport {sport} "
        f"{protocol} dport {dport} meta nftrace set 1"
    )
    chains = "".join(
        f"  chain {hook.chain} {{\n    {hook.render()}\n    {match}\n  }}\n"
        for hook in hooks.TRACE
        if hook.family == family
    )
    return f"table {family} {hooks.TRACE_TABLE} {{\n  flags owner;\n{chains}}}\n"


class TraceMonitor(nfnl.NfSocket):
    """A subscription to the traces of one network namespace; open it before the packet is sent."""

    what = "nftables trace"

    def __init__(self) -> None:
        super().__init__()
        self._receive_buffer(_BUFFER)
        self._join(_GROUP, count_losses=True)
        self.lost = False

    def read(self) -> list[TraceHit]:
        """What was told since the last call, in order; never blocks. `lost` tells of an overrun."""
        return list(self._read())

    def _read(self) -> Iterator[TraceHit]:
        while True:
            try:
                data = self._socket.recv(_RECEIVE)
            except BlockingIOError:
                return
            except OSError as e:
                if e.errno != errno.ENOBUFS:
                    raise KernelError(self.what, errno=e.errno or 0) from e
                self.lost = True
                continue
            for kind, _flags, _seq, body in decode.messages(data):
                if kind == _TRACE:
                    yield parse_trace(body)


def parse_trace(body: bytes) -> TraceHit:
    """One message of the trace group, nfgenmsg first."""
    found = decode.attrs(body, 4)
    verdict = str(parse_verdict(found[5])) if 5 in found else ""
    if 16 in found and not verdict:
        verdict = "drop" if int.from_bytes(found[16], "big") == 0 else "accept"
    return TraceHit(
        FAMILY_NAMES.get(body[0], str(body[0])),
        _string(found.get(1)),
        _string(found.get(2)),
        _TYPES.get(int.from_bytes(found.get(4, b""), "big"), "rule"),
        int.from_bytes(found.get(6, b""), "big"),
        verdict,
        int.from_bytes(found.get(3, b""), "big"),
    )


def _string(raw: bytes | None) -> str:
    return (raw or b"").rstrip(b"\0").decode(errors="replace")
