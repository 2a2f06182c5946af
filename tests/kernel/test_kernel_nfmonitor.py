"""What others do to the ruleset is noticed, what we do is not, and losses are told."""

from __future__ import annotations

import select
import socket
import subprocess

import pytest

from podwire.errors import HostNamespaceError
from podwire.kernel import nft
from podwire.kernel.nfelements import Change, NfElements
from podwire.kernel.nfmonitor import NfMonitor

TABLE = """
table ip podwire-t {
  set s { type ipv4_addr; }
  chain c { ip saddr @s drop; }
}
"""


@pytest.mark.stays_on_host
def test_the_host_is_refused() -> None:
    with pytest.raises(HostNamespaceError):
        NfMonitor()


def foreign(text: str) -> None:
    """Another process changes the ruleset."""
    subprocess.run(["nft", "-f", "-"], input=text, text=True, check=True)


def told(monitor: NfMonitor) -> list[list[str]]:
    return [[str(event) for event in transaction.events] for transaction in monitor.read()]


def test_a_foreign_change_is_told_with_its_program() -> None:
    nft.apply(TABLE)
    with NfMonitor() as monitor:
        assert not select.select([monitor], [], [], 0)[0]
        foreign("add element ip podwire-t s { 10.0.0.1, 10.0.0.2 }\n")
        assert select.select([monitor], [], [], 0)[0]
        (transaction,) = monitor.read()
        assert transaction.program == "nft"
        assert transaction.pid > 0
        with NfElements() as elements:
            assert transaction.generation == elements.generation()
        keys = sorted(key for event in transaction.events for key in event.keys)
        assert keys == [b"\x0a\0\0\1", b"\x0a\0\0\2"]
        assert monitor.read() == []


WAYS = {
    "delete element ip podwire-t s { 10.0.0.9 }": ["delete element ip podwire-t s (1)"],
    "flush set ip podwire-t s": ["delete element ip podwire-t s (1)"],
    "flush chain ip podwire-t c": ["delete rule ip podwire-t c"],
    "delete table ip podwire-t": [
        "delete rule ip podwire-t c",
        "delete set ip podwire-t s",
        "delete chain ip podwire-t c",
        "delete table ip podwire-t",
    ],
    "flush ruleset": [
        "delete rule ip podwire-t c",
        "delete set ip podwire-t s",
        "delete chain ip podwire-t c",
        "delete table ip podwire-t",
    ],
    "add chain ip podwire-t d": ["new chain ip podwire-t d"],
    "add rule ip podwire-t c accept": ["new rule ip podwire-t c"],
}


@pytest.mark.parametrize("command", WAYS)
def test_every_way_to_lose_something(command: str) -> None:
    nft.apply(TABLE)
    with NfElements() as elements, NfMonitor() as monitor:
        elements.apply([Change("ip", "podwire-t", "s", add=[(b"\x0a\0\0\x09", None)])])
        foreign(command + "\n")
        assert told(monitor) == [WAYS[command]]


def test_our_own_changes_are_not_told() -> None:
    with NfElements() as elements, NfMonitor() as monitor:
        nft.apply(TABLE)
        elements.apply([Change("ip", "podwire-t", "s", add=[(b"\x0a\0\0\1", None)])])
        nft.apply("delete table ip podwire-t\n")
        assert monitor.read() == []


def test_a_large_change_of_ours_is_dropped_before_the_buffer() -> None:
    nft.apply(TABLE)
    with NfElements() as elements, NfMonitor() as monitor:
        monitor.ignore(elements.port, 12345)
        # Too small for the notifications of what follows.
        monitor._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        many = [((n + (10 << 24)).to_bytes(4, "big"), None) for n in range(20_000)]
        elements.apply([Change("ip", "podwire-t", "s", add=many)])
        assert monitor.read() == []
        foreign("delete element ip podwire-t s { 10.0.0.1 }\n")
        assert told(monitor) == [["delete element ip podwire-t s (1)"]]


def test_an_overrun_is_told() -> None:
    nft.apply(TABLE)
    with NfElements() as elements, NfMonitor() as monitor:
        monitor._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        many = [((n + (10 << 24)).to_bytes(4, "big"), None) for n in range(20_000)]
        elements.apply([Change("ip", "podwire-t", "s", add=many)])
        lost = [transaction for transaction in monitor.read() if transaction.lost]
        assert [str(transaction) for transaction in lost] == ["unknown changes of the ruleset"]
        foreign("flush chain ip podwire-t c\n")
        assert told(monitor)[-1] == ["delete rule ip podwire-t c"]
        assert monitor.read() == []


def test_only_wanted_tables() -> None:
    with NfMonitor(lambda family, table: table.startswith("podwire-")) as monitor:
        foreign("add table ip other\nadd chain ip other c\n")
        assert monitor.read() == []
        foreign("add table ip6 podwire-x\nadd table ip other2\n")
        assert told(monitor) == [["new table ip6 podwire-x"]]
