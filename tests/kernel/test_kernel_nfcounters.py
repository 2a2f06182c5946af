"""Counters read one by one and by name; traces of one packet, and nothing left of them."""

from __future__ import annotations

import os
import signal
import socket

import pytest

from podwire.errors import KernelError
from podwire.kernel import nft
from podwire.kernel.nfcounters import Counted, NfCounters
from podwire.kernel.nfelements import Change, NfElements
from podwire.kernel.nfpack import ACCEPT, Key, pack_u32
from podwire.kernel.nft import Nft
from podwire.kernel.nftrace import TraceMonitor, render_trace_table
from podwire.kernel.rtnl import Rtnl, loopback_up

TABLE = """
table ip t {
  counter named {}
  map v { type mark : verdict; counter; }
  set plain { type mark; }
  chain output {
    type filter hook output priority 0;
    udp dport 9 meta mark set 7 counter name "named"
    udp dport 9 meta mark vmap @v
    meta mark 5 accept
  }
}
"""
SEVEN: Key = pack_u32(7)


def send(port: int = 9, source: int = 0) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        if source:
            sock.bind(("127.0.0.1", source))
        sock.sendto(b"x", ("127.0.0.1", port))


def prepared() -> None:
    with Rtnl() as rtnl:
        rtnl.apply([loopback_up()])
    nft.apply(TABLE)
    with NfElements() as elements:
        add = tuple((pack_u32(number), ACCEPT) for number in range(300))
        elements.apply([Change("ip", "t", "v", add=add)])


def test_chosen_elements_are_read_with_their_data() -> None:
    prepared()
    send()
    send()
    with NfCounters() as counters:
        found = counters.read("ip", "t", "v", [SEVEN, pack_u32(8), pack_u32(999)])
        assert found == {SEVEN: Counted(ACCEPT, 2, 58), pack_u32(8): Counted(ACCEPT, 0, 0)}
        everything: list[Key] = [pack_u32(number) for number in range(300)]
        assert len(counters.read("ip", "t", "v", everything)) == 300
        assert counters.read_all("ip", "t", "v")[SEVEN] == Counted(ACCEPT, 2, 58)


def test_what_is_not_there_has_no_counters() -> None:
    prepared()
    with NfCounters() as counters:
        assert counters.read("ip", "none", "v", [SEVEN]) == {}
        assert counters.read("ip", "t", "plain", [SEVEN]) == {}
        assert counters.read("ip", "t", "v", []) == {}
        with pytest.raises(KernelError):
            counters.read_all("ip", "t", "none")


def test_named_counters() -> None:
    prepared()
    send()
    nft.apply("add counter ip t other\nadd table ip6 t\nadd counter ip6 t named\n")
    with NfCounters() as counters:
        assert counters.named("ip", "t") == {"named": (1, 29), "other": (0, 0)}
        assert counters.named("ip6", "t") == {"named": (0, 0)}


def test_handles_come_in_the_order_of_the_rules() -> None:
    prepared()
    nft.apply("insert rule ip t output meta mark 6 accept\n")
    with NfCounters() as counters:
        handles = counters.rule_handles("ip", "t", "output")
        assert len(handles) == 4
        assert handles[0] == max(handles)
        assert counters.rule_handles("ip", "t", "none") == []


def trace_table(port: int) -> str:
    return render_trace_table(4, "127.0.0.1", port, "127.0.0.1", 9, "udp")


def test_only_the_packet_with_the_source_port_is_traced() -> None:
    prepared()
    with TraceMonitor() as monitor, Nft() as handle:
        handle.apply(trace_table(61000))
        send(source=61001)
        assert monitor.read() == []
        send(source=61000)
        hits = [hit for hit in monitor.read() if hit.table == "t"]
    with NfCounters() as counters:
        handles = counters.rule_handles("ip", "t", "output")
    assert [hit.handle for hit in hits[:2]] == handles[:2]
    assert hits[1].verdict == "accept"
    assert len({hit.packet for hit in hits}) == 1
    assert (hits[0].family, hits[0].chain, hits[0].kind) == ("ip", "output", "rule")


def test_a_packet_that_meets_no_rule_meets_the_policy() -> None:
    prepared()
    with TraceMonitor() as monitor, Nft() as handle:
        handle.apply(render_trace_table(4, "127.0.0.1", 61000, "127.0.0.1", 10, "udp"))
        send(port=10, source=61000)
        kinds = [hit.kind for hit in monitor.read() if hit.table == "t"]
    assert kinds[-1] == "policy"


def test_the_table_goes_with_its_socket() -> None:
    prepared()
    with Nft() as handle:
        handle.apply(trace_table(61000))
        assert "podwire-trace" in nft.list_ruleset()
    assert "podwire-trace" not in nft.list_ruleset()


def test_the_table_goes_with_a_killed_process() -> None:
    prepared()
    made, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        handle = Nft()
        handle.apply(trace_table(61000))
        os.write(tell, b"x")
        signal.pause()
    os.read(made, 1)
    assert "podwire-trace" in nft.list_ruleset()
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert "podwire-trace" not in nft.list_ruleset()
