"""Set and map elements reach the kernel, read back, change under traffic and count packets."""

from __future__ import annotations

import errno
import re
import socket
import threading
import time
from ipaddress import ip_address
from pathlib import Path

import pytest

from podwire.errors import HostNamespaceError, KernelError
from podwire.kernel import netns, nfelements, nft
from podwire.kernel.nfelements import Change, Data, Goto, Key, NfElements
from podwire.kernel.nfpack import (
    ACCEPT,
    DROP,
    indexed,
    pack_ip_port,
    pack_ip_proto_port,
    pack_ip_proto_port_index,
    pack_u32,
)
from podwire.kernel.rtnl import Rtnl, loopback_up

TABLE = """
table ip t {
  chain lb {}
  chain lb2 {}
  map v { typeof ip daddr . meta l4proto . th dport : verdict; }
  map vsized { typeof ip daddr . meta l4proto . th dport : verdict; size 4096; }
  map d { typeof ip daddr . meta l4proto . th dport . numgen random mod 10 : ip daddr . th dport; }
  map mk { typeof ip daddr . th dport : meta mark; }
  set port { type inet_service; }
  set i { type ipv4_addr; flags interval; }
  map im { type ipv4_addr : verdict; flags interval; }
  set p { typeof ip daddr . th dport; flags interval; }
  map pm { typeof ip daddr . th dport : verdict; flags interval; }
  map dyn { typeof ip saddr . ip daddr : meta mark; flags dynamic,timeout; timeout 3h; size 65535; }
}
table ip6 t {
  set m6 { typeof ip6 saddr . meta l4proto . th dport; }
}
"""
TCP, UDP = socket.IPPROTO_TCP, socket.IPPROTO_UDP
HTTP = pack_ip_proto_port(b"\x0a\0\0\1", TCP, 80)


def ip(text: str) -> bytes:
    return ip_address(text).packed


@pytest.mark.stays_on_host
def test_the_host_is_refused() -> None:
    with pytest.raises(HostNamespaceError):
        NfElements()


# (family, set, key, data, what `nft list` prints of it)
KINDS: list[tuple[str, str, Key, Data, str]] = [
    ("ip", "v", HTTP, Goto("lb"), "10.0.0.1 . tcp . 80 : goto lb"),
    ("ip", "vsized", HTTP, DROP, "10.0.0.1 . tcp . 80 : drop"),
    (
        "ip",
        "d",
        pack_ip_proto_port_index(ip("10.0.0.1"), UDP, 53, 3),
        pack_ip_port(ip("10.0.0.2"), 8080),
        "10.0.0.1 . udp . 53 . 3 : 10.0.0.2 . 8080",
    ),
    (
        "ip",
        "mk",
        pack_ip_port(ip("10.0.0.1"), 80),
        pack_u32(0x1020304),
        "10.0.0.1 . 80 : 0x01020304",
    ),
    ("ip", "port", (8080).to_bytes(2, "big"), None, "8080"),
    ("ip", "i", (ip("10.0.0.0"), ip("10.0.0.255")), None, "10.0.0.0/24"),
    ("ip", "i", (ip("10.0.0.7"), ip("10.0.0.9")), None, "10.0.0.7-10.0.0.9"),
    ("ip", "i", (ip("255.0.0.0"), ip("255.255.255.255")), None, "255.0.0.0/8"),
    ("ip", "im", (ip("10.0.0.0"), ip("10.0.0.255")), Goto("lb"), "10.0.0.0/24 : goto lb"),
    (
        "ip",
        "p",
        (pack_ip_port(ip("10.0.0.0"), 80), pack_ip_port(ip("10.0.0.255"), 90)),
        None,
        "10.0.0.0/24 . 80-90",
    ),
    (
        "ip",
        "pm",
        (pack_ip_port(ip("10.0.0.0"), 80), pack_ip_port(ip("10.0.0.255"), 90)),
        ACCEPT,
        "10.0.0.0/24 . 80-90 : accept",
    ),
    ("ip6", "m6", pack_ip_proto_port(ip("fd00::1"), UDP, 53), None, "fd00::1 . udp . 53"),
]


@pytest.mark.parametrize(("family", "name", "key", "data", "text"), KINDS)
def test_each_kind_of_set(family: str, name: str, key: Key, data: Data, text: str) -> None:
    nft.apply(TABLE)
    with NfElements() as elements:
        elements.apply([Change(family, "t", name, add=[(key, data)])])
        assert elements.dump(family, "t", name) == {key: data}
        assert f"elements = {{ {text} }}" in nft.list_table(family, "t")
        elements.apply([Change(family, "t", name, delete=[key])])
        assert elements.dump(family, "t", name) == {}
        elements.apply([Change(family, "t", name, add=[(key, data)])])
        elements.flush(family, "t", name)
        assert elements.dump(family, "t", name) == {}


def test_elements_of_a_map_with_timeouts_get_the_maps() -> None:
    nft.apply(TABLE)
    key = ip("10.0.0.1") + ip("10.0.0.2")
    with NfElements() as elements:
        elements.apply([Change("ip", "t", "dyn", add=[(key, pack_u32(5))])])
        assert elements.dump("ip", "t", "dyn") == {key: pack_u32(5)}
    assert "10.0.0.1 . 10.0.0.2 expires" in nft.list_table("ip", "t")


def test_intervals_that_touch() -> None:
    nft.apply(TABLE)
    ranges: list[Key] = [
        (ip("10.0.0.5"), ip("10.0.0.10")),
        (ip("10.0.0.11"), ip("10.0.0.20")),
        (ip("0.0.0.0"), ip("0.0.0.0")),
    ]
    with NfElements() as elements:
        elements.apply([Change("ip", "t", "i", add=[(key, None) for key in ranges])])
        assert elements.dump("ip", "t", "i") == dict.fromkeys(sorted(ranges))  # type: ignore[type-var]
        elements.apply([Change("ip", "t", "i", delete=ranges[:1])])
        assert set(elements.dump("ip", "t", "i")) == set(ranges[1:])
        with pytest.raises(KernelError) as caught:
            elements.apply(
                [Change("ip", "t", "i", add=[((ip("10.0.0.15"), ip("10.0.0.30")), None)])]
            )
        assert caught.value.errno == errno.EEXIST


@pytest.mark.parametrize("name", ["v", "vsized"])
def test_data_is_replaced_in_one_transaction(name: str) -> None:
    nft.apply(TABLE)
    with NfElements() as elements:
        elements.apply([Change("ip", "t", name, add=[(HTTP, Goto("lb"))])])
        before = elements.generation()
        elements.apply([Change("ip", "t", name, add=[(HTTP, Goto("lb"))])])
        elements.apply([Change("ip", "t", name, delete=[HTTP], add=[(HTTP, Goto("lb2"))])])
        assert elements.dump("ip", "t", name) == {HTTP: Goto("lb2")}
        assert elements.generation() == before + 1  # adding what is there changes nothing
        elements.apply([Change("ip", "t", name, flush=True, add=[(HTTP, ACCEPT)])])
        assert elements.dump("ip", "t", name) == {HTTP: ACCEPT}


OTHER = pack_ip_proto_port(b"\x0a\0\0\2", TCP, 80)
FAILURES: dict[str, tuple[Change, int, str]] = {
    "other data": (
        Change("ip", "t", "v", add=[(OTHER, ACCEPT), (HTTP, Goto("lb2"))]),
        errno.EEXIST,
        f"set ip t v: add {HTTP.hex()}",
    ),
    "missing": (
        Change("ip", "t", "v", delete=[HTTP, OTHER]),
        errno.ENOENT,
        f"set ip t v: delete {OTHER.hex()}",
    ),
    "no chain": (
        Change("ip", "t", "v", add=[(OTHER, Goto("nope"))]),
        errno.ENOENT,
        f"set ip t v: add {OTHER.hex()}",
    ),
    "no set": (Change("ip", "t", "nope", add=[(OTHER, None)]), errno.ENOENT, "set ip t nope: add"),
    "no table": (Change("ip6", "x", "v", delete=[HTTP]), errno.ENOENT, "set ip6 x v: delete"),
    "short key": (Change("ip", "t", "v", add=[(b"abcd", ACCEPT)]), errno.EINVAL, "add 61626364"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_failure_names_the_key_and_nothing_happens(name: str) -> None:
    change, code, words = FAILURES[name]
    nft.apply(TABLE)
    with NfElements() as elements:
        elements.apply([Change("ip", "t", "v", add=[(HTTP, Goto("lb"))])])
        with pytest.raises(KernelError, match=words) as caught:
            elements.apply([Change("ip", "t", "port", add=[(b"\0\1", None)]), change])
        assert caught.value.errno == code
        assert elements.dump("ip", "t", "v") == {HTTP: Goto("lb")}
        assert elements.dump("ip", "t", "port") == {}


def many(count: int) -> list[tuple[Key, Data]]:
    return [
        (key, pack_ip_port((0x0AF40000 + n).to_bytes(4, "big"), 8080))
        for n in range(count // 10)
        for key in indexed(pack_ip_proto_port((0x0A600000 + n).to_bytes(4, "big"), TCP, 80), 10)
    ]


def test_a_hundred_thousand_elements_arrive_and_every_one_is_dumped() -> None:
    """The dump follows at once: the hash table still grows in the background then."""
    nft.apply(TABLE)
    wanted = dict(many(100_000))
    with NfElements() as elements:
        change = Change("ip", "t", "d", add=list(wanted.items()))
        began = time.perf_counter()
        for batch in nfelements.split([change], elements.max_batch):
            elements.apply(batch)
        # Measured 0.2 s; what is guarded here is the order of magnitude on a busy machine.
        assert time.perf_counter() - began < 5
        assert elements.dump("ip", "t", "d") == wanted


def test_a_batch_too_large_says_so() -> None:
    nft.apply(TABLE)
    with NfElements() as elements:
        elements.max_batch = 4000
        change = Change("ip", "t", "d", add=many(1000))
        with pytest.raises(KernelError, match="this socket takes 4000: split it") as caught:
            elements.apply([change])
        assert caught.value.errno == errno.EMSGSIZE
        for batch in nfelements.split([change], elements.max_batch):
            elements.apply(batch)
        assert len(elements.dump("ip", "t", "d")) == 1000


def test_in_another_namespace(scratch: Path) -> None:
    fd = netns.create(scratch / "other")
    nft.apply(TABLE, ns=fd)
    with NfElements.in_ns(fd) as elements:
        elements.apply([Change("ip", "t", "v", add=[(HTTP, ACCEPT)])])
    assert "tcp . 80 : accept" in nft.list_table("ip", "t", ns=fd)


# -- with packets --------------------------------------------------------------------------------

TRAFFIC = """
table ip t {
  counter a {}
  counter b {}
  counter miss {}
  chain a { counter name a accept; }
  chain b { counter name b accept; }
  map v { typeof ip daddr . meta l4proto . th dport : verdict; counter; }
  map d { typeof ip daddr . th dport : ip daddr . th dport; counter; }
  set s { typeof ip daddr . th dport; counter; }
  set r { typeof ip daddr . th dport; flags interval; counter; }
  chain out {
    type filter hook output priority 0
    ip daddr . th dport @s
    ip daddr . th dport @r
    ip daddr . meta l4proto . th dport vmap @v
    udp dport 9000 counter name miss
  }
  chain nat {
    type nat hook output priority -100
    meta l4proto { tcp, udp } dnat ip to ip daddr . th dport map @d
  }
}
"""
LOCAL = pack_ip_proto_port(ip("127.0.0.1"), UDP, 9000)


def counted(name: str) -> int:
    found = re.search(rf"counter {name} {{\s+packets (\d+)", nft.list_table("ip", "t"))
    assert found
    return int(found[1])


def udp_socket(port: int = 0) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", port))
    sock.settimeout(5)
    return sock


def with_traffic_rules() -> None:
    with Rtnl() as rtnl:
        rtnl.apply([loopback_up()])
    nft.apply(TRAFFIC)


def test_no_packet_sees_a_verdict_missing_while_it_is_replaced() -> None:
    with_traffic_rules()
    stop = threading.Event()
    sent = 0

    def send() -> None:
        nonlocal sent
        with udp_socket() as sock:
            while not stop.is_set():
                sock.sendto(b"x", ("127.0.0.1", 9000))
                sent += 1

    with NfElements() as elements, udp_socket(9000):
        elements.apply([Change("ip", "t", "v", add=[(LOCAL, Goto("a"))])])
        thread = threading.Thread(target=send)
        thread.start()
        while sent < 5000 or not (counted("a") and counted("b")):
            for goto in (Goto("b"), Goto("a")) * 100:
                elements.apply([Change("ip", "t", "v", delete=[LOCAL], add=[(LOCAL, goto)])])
        stop.set()
        thread.join()
    assert counted("miss") == 0
    assert counted("a") + counted("b") == sent


def test_elements_count_packets_in_maps_and_sets() -> None:
    with_traffic_rules()
    pair = pack_ip_port(ip("127.0.0.1"), 9000)
    with NfElements() as elements, udp_socket(9000) as server, udp_socket() as client:
        elements.apply(
            [
                Change("ip", "t", "v", add=[(LOCAL, Goto("a"))]),
                Change("ip", "t", "s", add=[(pair, None)]),
                Change("ip", "t", "r", add=[((pair, pack_ip_port(ip("127.0.0.1"), 9009)), None)]),
                Change("ip", "t", "d", add=[(pack_ip_port(ip("127.0.0.2"), 80), pair)]),
            ]
        )
        for _ in range(3):
            client.sendto(b"four", ("127.0.0.1", 9000))
            server.recv(100)
        with udp_socket() as other:
            other.sendto(b"four", ("127.0.0.2", 80))
            assert server.recv(100) == b"four"
        # 20 bytes of IPv4, 8 of UDP, 4 of data; the translated packet passes the filter hook too.
        assert elements.dump_counters("ip", "t", "v") == {LOCAL: (4, 4 * 32)}
        assert elements.dump_counters("ip", "t", "s") == {pair: (4, 4 * 32)}
        assert set(elements.dump_counters("ip", "t", "r").values()) == {(4, 4 * 32)}
        # Only the first packet of a flow meets a nat chain.
        assert set(elements.dump_counters("ip", "t", "d").values()) == {(1, 32)}
        assert elements.dump("ip", "t", "v") == {LOCAL: Goto("a")}
        assert elements.dump_counters("ip", "t", "v") == {LOCAL: (4, 4 * 32)}


DYNAMIC = """
table ip t {
  map m {
    typeof ip saddr . ip daddr : meta mark
    flags dynamic,timeout; timeout 3h; size 65535; counter;
  }
  chain hit { accept; }
  chain out {
    type filter hook output priority 0
    udp dport != 9000 accept
    meta mark set ip saddr . ip daddr map @m jump hit
    meta mark set 7
    update @m { ip saddr . ip daddr : meta mark }
  }
}
"""


def test_a_dynamic_map_counts_and_is_read() -> None:
    with Rtnl() as rtnl:
        rtnl.apply([loopback_up()])
    nft.apply(DYNAMIC)
    key = ip("127.0.0.1") * 2
    with NfElements() as elements, udp_socket(9000), udp_socket() as client:
        for _ in range(3):
            client.sendto(b"four", ("127.0.0.1", 9000))
        assert elements.dump("ip", "t", "m") == {key: pack_u32(7)}
        # One update by the first packet, one look-up by each of the others.
        assert elements.dump_counters("ip", "t", "m") == {key: (3, 3 * 32)}


def test_nat_follows_replaced_data_and_no_flow_is_missed() -> None:
    with_traffic_rules()
    service = pack_ip_port(ip("127.0.0.2"), 80)
    backends = [udp_socket(), udp_socket()]
    data = [pack_ip_port(ip("127.0.0.1"), s.getsockname()[1]) for s in backends]
    with NfElements() as elements:
        elements.apply([Change("ip", "t", "d", add=[(service, data[0])])])
        for turn in range(20):
            with udp_socket() as client:
                client.sendto(b"%d" % turn, ("127.0.0.2", 80))
            assert backends[turn % 2].recv(100) == b"%d" % turn
            new = data[(turn + 1) % 2]
            elements.apply([Change("ip", "t", "d", delete=[service], add=[(service, new)])])
    for backend in backends:
        backend.close()
