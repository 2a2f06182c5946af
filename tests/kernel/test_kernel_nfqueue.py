"""Packets wait until they were seen; nobody's are lost where nobody reads."""

from __future__ import annotations

import contextlib
import select
import socket
import subprocess
import time
from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from podwire.errors import HostNamespaceError, KernelError
from podwire.kernel.copied import CopiedPacket
from podwire.kernel.nfqueue import NfQueue
from podwire.kernel.rtnl import Rtnl, loopback_up

# iptables' form of the rule: not every kernel has nft's.
_SO_RCVBUFFORCE = 33
TARGET = ("-j", "NFQUEUE", "--queue-num", "7", "--queue-bypass")
RULE = ("-A", "INPUT", "-p", "udp", "--dport", "1000:2000", *TARGET)


@pytest.mark.stays_on_host
def test_the_host_is_refused() -> None:
    with pytest.raises(HostNamespaceError):
        NfQueue(7, 100)


@contextlib.contextmanager
def _ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    """(who sends, who receives), the rule between them."""
    with Rtnl() as rtnl:
        rtnl.apply([loopback_up()])
    subprocess.run(["iptables", "-w", *RULE], check=True)
    kind = socket.AF_INET, socket.SOCK_DGRAM
    with socket.socket(*kind) as sender, socket.socket(*kind) as receiver:
        receiver.bind(("127.0.0.1", 1234))
        receiver.settimeout(5)
        sender.connect(("127.0.0.1", 1234))
        yield sender, receiver


def _collect(queue: NfQueue, count: int) -> list[CopiedPacket]:
    found: list[CopiedPacket] = []
    end = time.monotonic() + 5
    while len(found) < count and time.monotonic() < end:
        select.select([queue], [], [], 1)
        found += queue.read()
    return found


def _nothing_came(sock: socket.socket) -> bool:
    return not select.select([sock], [], [], 0.05)[0]


def test_packets_wait_until_they_are_released() -> None:
    with _ends() as (sender, receiver), NfQueue(7, 30) as queue:
        for text in (b"one", b"two"):
            sender.send(text)
        first, _second = _collect(queue, 2)
        own = ip_address("127.0.0.1").packed
        assert (first.src, first.dst, first.protocol, first.dport) == (own, own, 17, 1234)
        assert first.transport[8:] == b"on", "30 bytes were asked for"
        assert _nothing_came(receiver)
        sender.send(b"three")
        queue.release()
        assert [receiver.recv(10) for _ in range(2)] == [b"one", b"two"]
        assert _nothing_came(receiver), "what was not read yet goes on waiting"
        _collect(queue, 1)
        queue.release()
        assert receiver.recv(10) == b"three"
        queue.release()


def test_what_nobody_reads_passes() -> None:
    with _ends() as (sender, receiver):
        NfQueue(7, 100).close()
        sender.send(b"one")
        assert receiver.recv(10) == b"one"


def test_a_queue_that_is_full_lets_pass() -> None:
    with _ends() as (sender, receiver), NfQueue(7, 100) as queue:
        receiver.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 1 << 22)
        for _ in range(1500):
            sender.send(b"x")
        passed = 0
        while not _nothing_came(receiver):
            receiver.recv(10)
            passed += 1
        assert passed > 100
        waiting = len(_collect(queue, 1500 - passed))
        assert waiting + passed == 1500
        queue.release()
        for _ in range(waiting):
            receiver.recv(10)


def test_a_queue_has_one_reader() -> None:
    with NfQueue(9, 100), pytest.raises(KernelError, match="queue 9"):
        NfQueue(9, 100)
    NfQueue(9, 100).close()
