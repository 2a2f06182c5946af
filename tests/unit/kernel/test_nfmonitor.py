"""Notifications parse to events, and the socket filter names the ports it drops."""

from __future__ import annotations

import struct

from podwire.kernel import nfmonitor
from podwire.kernel.fake_nf import FakeNfMonitor
from podwire.kernel.nfmonitor import Event, Transaction
from podwire.kernel.nfnl import GENMSG, attr, nest, text


def body(*attributes: bytes) -> bytes:
    return GENMSG.pack(2, 0, 0) + b"".join(attributes)


def test_events() -> None:
    parse = nfmonitor.parse_event
    assert parse(2, body(text(1, "t"))) == Event("delete", "table", "ip", "t", "t")
    assert parse(5, body(text(1, "t"), text(3, "c"))) == Event("delete", "chain", "ip", "t", "c")
    assert parse(8, body(text(1, "t"), text(2, "c"))) == Event("delete", "rule", "ip", "t", "c")
    element = nest(3, nest(1, nest(1, attr(1, b"abcd"))))
    assert parse(14, body(text(1, "t"), text(2, "s"), element)) == Event(
        "delete", "element", "ip", "t", "s", (b"abcd",)
    )
    assert parse(17, body()) is None


def test_a_transaction_names_its_maker() -> None:
    made = body(attr(1, struct.pack("!I", 7)), attr(2, struct.pack("!I", 42)), text(3, "nft"))
    event = Event("delete", "table", "ip", "t", "t")
    transaction = nfmonitor.parse_generation(made, [event])
    assert transaction == Transaction((event,), 7, 42, "nft")
    assert str(transaction) == "nft[42]: delete table ip t"


def run(program: bytes, message: bytes) -> int:
    """A classic BPF interpreter of the three instructions in use."""
    steps = list(struct.iter_unpack("=HBBI", program))
    at, loaded = 0, 0
    while True:
        code, yes, no, k = steps[at]
        if code == 0x06:
            return int(k)
        if code == 0x20:
            (loaded,) = struct.unpack_from("!I", message, k)
            at += 1
        else:
            assert code == 0x15
            at += 1 + (yes if loaded == k else no)


def test_the_filter_drops_these_ports_and_no_other() -> None:
    for ports in ([7], [7, 0x12345678, 0xFFFFF000]):
        program = nfmonitor._drop_ports(ports)
        for port in (*ports, 1, 0x78563412):
            message = struct.pack("=IHHII", 16, 0, 0, 0, port)
            assert bool(run(program, message)) is (port not in ports)


def test_the_fake_tells_what_it_was_told() -> None:
    monitor = FakeNfMonitor()
    monitor.tell(Transaction(lost=True))
    assert monitor.read() == [Transaction(lost=True)]
    assert monitor.read() == []
    monitor.close()
