"""The probe engine with real packets between routed pods."""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from podwire.errors import UsageError
from podwire.explain.probes import (
    Probe,
    ProbeEngine,
    ProbeRequest,
    ProbeResponse,
    ProbeResult,
    ProbeService,
    protocols,
)
from podwire.explain.probes.engine import Limits
from podwire.explain.probes.rawsctp import RawSctpSession, crc32c, init_packet
from podwire.explain.probes.wire import encode, parse_response
from podwire.kernel import netns

if TYPE_CHECKING:
    InWorld = Callable[[Callable[[Any], None]], None]

ADDRESSES = {4: "10.244.0.{}", 6: "fd00:244::{}"}


@contextmanager
def served(target: Callable[[], None]) -> Iterator[None]:
    threading.Thread(target=target, daemon=True).start()
    yield


def listener(world: Any, pod: str, kind: int, port: int, family: int) -> socket.socket:
    sock = netns.socket_in(world.fds[pod], family, kind)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("", port))
    if kind == socket.SOCK_STREAM:
        sock.listen(512)
    return sock


def identity(client: str) -> bytes:
    return json.dumps(
        {"namespace": "shop", "pod": "api-0", "node": "node-1", "client": client}
    ).encode()


def serve_http(sock: socket.socket) -> None:
    while True:
        conn, peer = sock.accept()
        with conn, suppress(ConnectionError):
            if not conn.recv(4096):
                continue
            host = f"[{peer[0]}]:{peer[1]}" if ":" in peer[0] else f"{peer[0]}:{peer[1]}"
            body = identity(host)
            head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n"
            conn.sendall(head.encode() + body)


def serve_udp(sock: socket.socket) -> None:
    while True:
        _data, peer = sock.recvfrom(4096)
        sock.sendto(identity(peer[0]), peer)


def ask(*probes: Probe, limits: Limits | None = None) -> list[ProbeResult]:
    return ProbeEngine(limits=limits or Limits()).run(probes)


@pytest.mark.parametrize("version", [4, 6])
def test_every_protocol_and_verdict(in_world: InWorld, version: int) -> None:
    def body(world: Any) -> None:
        one, two = world.pod(2), world.pod(3)
        family = socket.AF_INET6 if version == 6 else socket.AF_INET
        source, target = ADDRESSES[version].format(2), ADDRESSES[version].format(3)
        pin = str(world.pin(one))
        web = listener(world, two, socket.SOCK_STREAM, 8080, family)
        silent = listener(world, two, socket.SOCK_STREAM, 8081, family)
        dns = listener(world, two, socket.SOCK_DGRAM, 5353, family)
        mute = listener(world, two, socket.SOCK_DGRAM, 5354, family)
        kind = "icmpv6" if version == 6 else "icmp"
        world.nft(
            "table inet t { chain forward { type filter hook forward priority 0;"
            " tcp dport 1001 drop\n udp dport 1001 drop\n"
            " tcp dport 1002 reject with tcp reset\n"
            " meta l4proto { tcp, udp } th dport 1003 reject with icmpx admin-prohibited\n"
            " meta l4proto { tcp, udp } th dport 1004 reject\n"
            f" meta l4proto {kind} meta mark 7 drop\n"
            "}\n}\n"
        )

        def probe(protocol: Any, port: int = 0, timeout_s: float = 1.0) -> Probe:
            return Probe(
                netns=pin, address=target, port=port, protocol=protocol, timeout_s=timeout_s
            )

        with served(lambda: serve_http(web)), served(lambda: serve_udp(dns)):
            table = [
                (probe("tcp", 8080), "allowed"),
                (probe("tcp", 8081), "allowed"),
                (probe("tcp", 9), "refused"),
                (probe("tcp", 1001, 0.3), "dropped"),
                (probe("tcp", 1002), "refused"),
                (probe("tcp", 1003), "rejected"),
                (probe("tcp", 1004), "rejected"),
                (probe("http", 8080), "allowed"),
                (probe("http", 8081, 0.3), "dropped"),
                (probe("http", 9), "refused"),
                (probe("udp", 5353), "allowed"),
                (probe("udp", 5354, 0.3), "dropped"),
                (probe("udp", 9), "refused"),
                (probe("udp", 1001, 0.3), "dropped"),
                (probe("udp", 1003), "rejected"),
                (probe("udp", 1004), "rejected"),
                (probe("icmp"), "allowed"),
            ]
            results = ask(*(row[0] for row in table))
        for (asked, wanted), found in zip(table, results, strict=True):
            assert found.verdict == wanted, (asked, found)
        by_name = {(p.protocol, p.port): r for (p, _), r in zip(table, results, strict=True)}
        for key in (("http", 8080), ("udp", 5353)):
            assert by_name[key].client == source
            assert by_name[key].peer == "shop/api-0"
            assert by_name[key].peer_node == "node-1"
        assert by_name["http", 8080].status == 200
        assert by_name["tcp", 1001].tries == 2
        assert by_name["udp", 1001].tries == 3
        assert "prohibited" in by_name["tcp", 1003].detail
        assert 0 < by_name["tcp", 8080].latency_us < 1_000_000
        del silent, mute

    in_world(body)


@pytest.mark.parametrize("version", [4, 6])
def test_icmp_echoes_of_many_sources_do_not_mix(in_world: InWorld, version: int) -> None:
    def body(world: Any) -> None:
        pods = [world.pod(number) for number in range(2, 8)]
        kind = "icmpv6" if version == 6 else "icmp"
        words = "ip6" if version == 6 else "ip"
        blocked = ADDRESSES[version].format(7)
        world.nft(
            "table inet t { chain forward { type filter hook forward priority 0;"
            f" {words} daddr {blocked} {words} saddr {ADDRESSES[version].format(2)}"
            f" {kind} type echo-request drop; }}\n}}\n"
        )
        probes = [
            Probe(
                netns=str(world.pin(pod)),
                address=ADDRESSES[version].format(number),
                protocol="icmp",
                timeout_s=0.5,
            )
            for pod in pods
            for number in range(2, 8)
        ]
        results = ask(*probes)
        dropped = [p for p, r in zip(probes, results, strict=True) if r.verdict == "dropped"]
        assert [(p.netns, p.address) for p in dropped] == [(str(world.pin(pods[0])), blocked)]
        assert all(r.verdict in ("allowed", "dropped") for r in results)

    in_world(body)


@pytest.mark.parametrize("version", [4, 6])
def test_sctp_is_judged_by_what_icmp_says(in_world: InWorld, version: int) -> None:
    """Pods ask one another at the same time; one port is dropped, one refused by a firewall."""

    def body(world: Any) -> None:
        pods = [world.pod(number) for number in range(2, 5)]
        words = "ip6" if version == 6 else "ip"
        target = ADDRESSES[version].format(4)
        world.nft(
            "table inet t { chain forward { type filter hook forward priority 0;"
            f" {words} daddr {target} sctp dport 81 drop; {words} daddr {target} sctp dport 82"
            " reject with icmpx type admin-prohibited; }\n}\n"
        )
        probes = [
            Probe(
                netns=str(world.pin(pod)),
                address=ADDRESSES[version].format(number),
                port=port,
                protocol="sctp",
                timeout_s=0.5,
            )
            for pod in pods
            for number in range(2, 5)
            for port in (80, 81, 82)
            if pod != f"pod{number}"
        ]
        for probe, result in zip(probes, ask(*probes), strict=True):
            wanted = {81: "dropped", 82: "rejected"} if probe.address == target else {}
            assert result.verdict == wanted.get(probe.port, "refused"), (probe, result)
        assert ask(probes[0])[0].detail == "the host does not know SCTP"

    if protocols.sessions()["sctp"] is not RawSctpSession:
        pytest.skip("this kernel has SCTP: sockets are asked")
    in_world(body)


def test_the_checksum_of_sctp_is_castagnolis() -> None:
    assert crc32c(b"123456789") == 0xE3069283
    packet = init_packet(50000, 80, 7)
    assert packet[:4] == struct.pack("!HH", 50000, 80)
    (said,) = struct.unpack_from("<I", packet, 8)
    assert said == crc32c(packet[:8] + bytes(4) + packet[12:])


def test_a_path_too_narrow_is_told_by_its_mtu(in_world: InWorld) -> None:
    def body(world: Any) -> None:
        one, _two = world.pod(2), world.pod(3)
        world.sh("ip link set v3 mtu 1400")
        pin = str(world.pin(one))
        wide, narrow = ask(
            Probe(netns=pin, address="10.244.0.3", protocol="icmp", size=1500),
            Probe(netns=pin, address="10.244.0.3", protocol="icmp", size=1400),
        )
        assert wide.verdict == "error"
        assert "10.244.0.1 allows 1400 bytes" in wide.detail
        assert narrow.verdict == "allowed"
        (own,) = ask(Probe(netns=pin, address="10.244.0.3", protocol="icmp", size=1501))
        assert "interface allows 1500 bytes" in own.detail

    in_world(body)


def test_the_node_itself_and_a_chosen_source_address(in_world: InWorld) -> None:
    def body(world: Any) -> None:
        two = world.pod(3)
        world.sh("ip addr add 192.0.2.7/32 dev lo")
        dns = listener(world, two, socket.SOCK_DGRAM, 5353, socket.AF_INET)
        web = listener(world, two, socket.SOCK_STREAM, 8080, socket.AF_INET)
        with served(lambda: serve_udp(dns)), served(lambda: serve_http(web)):
            results = ask(
                *(
                    Probe(
                        address="10.244.0.3",
                        port=port,
                        protocol=protocol,
                        source_address="192.0.2.7",
                    )
                    for protocol, port in (("udp", 5353), ("http", 8080), ("icmp", 0))
                )
            )
        assert [r.verdict for r in results] == ["allowed"] * 3
        assert [r.client for r in results] == ["192.0.2.7", "192.0.2.7", ""]

    in_world(body)


def test_what_cannot_be_sent_is_an_error_with_words(in_world: InWorld) -> None:
    def body(world: Any) -> None:
        one = world.pod(2)
        world.sh("ip route del default via 10.244.0.1 dev eth0 onlink", one)
        no_route, no_pin, no_pod, bad_source = ask(
            Probe(netns=str(world.pin(one)), address="10.244.0.3", port=80),
            Probe(netns=str(world.pin("gone")), address="10.244.0.3", port=80),
            Probe(source="shop/web", address="10.244.0.3", port=80),
            Probe(address="127.0.0.1", port=80, source_address="192.0.2.9"),
        )
        assert (no_route.verdict, no_route.detail) == ("error", "Network is unreachable")
        assert "cannot open" in no_pin.detail
        assert no_pod.detail == "shop/web: no such pod runs on this node"
        assert bad_source.detail == "Cannot assign requested address"

    in_world(body)


def test_thousands_of_probes_leave_nothing_behind(in_world: InWorld) -> None:
    def body(world: Any) -> None:
        pods = [world.pod(number) for number in range(2, 6)]
        socks = [listener(world, pod, socket.SOCK_STREAM, 8080, socket.AF_INET) for pod in pods]

        def swallow(sock: socket.socket) -> None:
            while True:
                sock.accept()[0].close()

        for sock in socks:
            threading.Thread(target=swallow, args=(sock,), daemon=True).start()
        probes = [
            Probe(netns=str(world.pin(pod)), address=f"10.244.0.{2 + i % 4}", port=8080)
            for pod in pods
            for i in range(1000)
        ]
        before = len(os.listdir("/proc/self/fd"))
        results = ask(*probes, limits=Limits(concurrency=200, per_destination=40))
        assert {r.verdict for r in results} == {"allowed"}
        assert len(os.listdir("/proc/self/fd")) <= before + 8  # what the listeners still close
        for pod in pods:
            with netns.entered(world.fds[pod]):
                text = Path("/proc/thread-self/net/sockstat").read_text()
            # Of 1,000 accepted connections each; a listener that closes first may keep a few.
            assert int(text.split(" tw ")[1].split()[0]) < 20, text

    in_world(body)


def test_the_service_answers_bytes_without_blocking_the_loop(in_world: InWorld) -> None:
    def body(world: Any) -> None:
        pods = {"shop/web-0": world.pin(world.pod(2)), "shop/web-1": world.pin(world.pod(3))}

        async def serve_and_ask() -> tuple[ProbeResponse, int]:
            service = ProbeService(pods.__getitem__)
            probes = tuple(
                Probe(source=source, address="10.244.0.3", port=9, timeout_s=0.2)
                for source in ("shop/web-0", "shop/web-1", "shop/gone")
            )
            silent = Probe(source="shop/web-0", address="10.244.0.9", port=9, timeout_s=0.2)
            world.sh("ip route add blackhole 10.244.0.9/32")
            turns = 0
            task = asyncio.create_task(
                service.handle(encode(ProbeRequest(probes=(*probes, silent))))
            )
            while not task.done():
                await asyncio.wait([task], timeout=0.01)
                turns += 1
            with pytest.raises(UsageError):
                await service.handle(b"{}")
            service.close()
            return parse_response(await task), turns

        response, turns = asyncio.run(serve_and_ask())
        assert [r.verdict for r in response.results] == ["refused", "refused", "error", "dropped"]
        assert turns > 3

    in_world(body)


@pytest.mark.stays_on_host
def test_the_host_is_never_probed() -> None:
    (result,) = ask(Probe(address="192.0.2.1", port=80, timeout_s=0.1))
    assert result.verdict == "error"
    assert "refused in the network namespace podwire was started in" in result.detail


CAP_NET_RAW = 13


def give_up_raw_sockets() -> None:
    """Take CAP_NET_RAW from this thread for good (capabilities(7), version 3 of the structure)."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = struct.pack("=Ii", 0x20080522, 0)
    sets = ctypes.create_string_buffer(24)
    assert libc.capget(header, sets) == 0
    words = list(struct.unpack("=6I", sets.raw))
    for index in range(3):
        words[index] &= ~(1 << CAP_NET_RAW)
    assert libc.capset(header, struct.pack("=6I", *words)) == 0


@pytest.mark.parametrize("version", [4, 6])
def test_echoes_without_raw_sockets(in_world: InWorld, version: int) -> None:
    """Who may not open raw sockets uses ping sockets, where the kernel lets its group."""

    def body(world: Any) -> None:
        one, two = world.pod(2), world.pod(3)
        with netns.maybe_entered(world.fds[one]):
            Path("/proc/sys/net/ipv4/ping_group_range").write_text("0 0")
        world.sh("ip link set v3 mtu 1400")
        give_up_raw_sockets()
        with pytest.raises(PermissionError):
            socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)

        def echo(pod: str, number: int, size: int = 0) -> Probe:
            address = ADDRESSES[version].format(number)
            return Probe(netns=str(world.pin(pod)), address=address, protocol="icmp", size=size)

        while ask(echo(one, 3))[0].verdict != "allowed":
            pass  # the kernel may take a second to let a new link carry anything
        results = ask(echo(one, 3), echo(one, 3, 1400), echo(one, 3, 1500), echo(one, 1))
        assert [r.verdict for r in results] == ["allowed", "allowed", "error", "allowed"]
        assert "allows 1400 bytes" in results[2].detail
        (refused,) = ask(echo(two, 2))
        assert refused.verdict == "error"
        assert "it takes CAP_NET_RAW" in refused.detail

    in_world(body)
