"""Packets copied by `log group`: their addresses, ports and prefix; losses are counted."""

from __future__ import annotations

import contextlib
import select
import socket
import time
from ipaddress import ip_address

import pytest

from podwire.errors import HostNamespaceError, KernelError
from podwire.kernel import nft
from podwire.kernel.copied import CopiedPacket
from podwire.kernel.nflog import NfLog
from podwire.kernel.rtnl import Rtnl, loopback_up

RULES = """
table inet t {
  chain out {
    type filter hook output priority 0
    udp dport 1000-2000 log group 7 prefix "deny in 12" drop
    tcp dport 80 log group 7 prefix "syn" reject with tcp reset
  }
}
"""


@pytest.mark.stays_on_host
def test_the_host_is_refused() -> None:
    with pytest.raises(HostNamespaceError):
        NfLog(7)


def _send(sock: socket.socket, where: tuple[str, int]) -> None:
    """A packet that a rule drops on its way out is told to its sender."""
    with contextlib.suppress(PermissionError):
        sock.sendto(b"x", where)


def _collect(log: NfLog, count: int) -> list[CopiedPacket]:
    found: list[CopiedPacket] = []
    end = time.monotonic() + 5
    while len(found) < count and time.monotonic() < end:
        select.select([log], [], [], 1)
        found += log.read()
    return found


def test_packets_are_told_with_their_rule() -> None:
    with Rtnl() as rtnl:
        rtnl.apply([loopback_up()])
    nft.apply(RULES)
    with NfLog(7) as log:
        for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
            with socket.socket(family, socket.SOCK_DGRAM) as sock:
                sock.bind((host, 4444))
                _send(sock, (host, 1234))
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", 80), 2)
        first, second, third = _collect(log, 3)
        for packet, host in ((first, "127.0.0.1"), (second, "::1")):
            own = ip_address(host).packed
            assert (packet.src, packet.dst, packet.protocol) == (own, own, socket.IPPROTO_UDP)
            assert (packet.sport, packet.dport, packet.prefix) == (4444, 1234, "deny in 12")
            assert packet.out_index == 1
        assert (third.protocol, third.dport, third.prefix) == (socket.IPPROTO_TCP, 80, "syn")
        assert log.lost == 0


def test_a_group_has_one_reader() -> None:
    with NfLog(9), pytest.raises(KernelError, match="group 9"):
        NfLog(9)
    NfLog(9).close()


def test_losses_are_counted() -> None:
    with Rtnl() as rtnl:
        rtnl.apply([loopback_up()])
    nft.apply(RULES)
    sent = 60_000
    with NfLog(7) as log, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for _ in range(sent):
            _send(sock, ("127.0.0.1", 1500))
        # The next packet tells how many were missing before it.
        found = _collect(log, sent)
        _send(sock, ("127.0.0.1", 1500))
        found += _collect(log, 1)
    assert log.lost > 0
    assert len(found) + log.lost == sent + 1
