"""Packets made by hand, sent into node-1 as if from anybody, and where conntrack put them.

    raw frame -> the node's eth0 (or a pod's veth) -> Services -> route -> conntrack entry

An entry tells all: its reply comes from the backend chosen, and goes to the client or, where the
client was masqueraded, to the node. No server is needed, and one source port is one connection: a
thousand new ones take milliseconds. Entries are taken from the table and from what the kernel told
when they began: one that is closed already is evicted as soon as the node's own connection to the
same backend has the port the other was masqueraded to (nf_nat_used_tuple_harder, Linux 6.6; DNAT to
one port allows itself that at once). Without an entry, the answer (or its absence) tells: TCP
reset, SCTP abort and ICMP unreachable mean refused, silence means dropped.
"""

from __future__ import annotations

import contextlib
import errno
import select
import socket
import struct
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

from service_net import HERE, ServiceNet, in_family

from podwire.kernel import netns
from podwire.kernel.conntrack import Conntrack, ConntrackEvents
from podwire.kernel.flows import Flow, Match, Tuple
from podwire.kernel.hooks import SERVICES_TABLE
from podwire.kernel.nfelements import NfElements
from podwire.services.endpoints import Backend
from podwire.services.evaluate import Packet, Verdict
from podwire.services.model import PROTOCOLS
from podwire.services.nftables import AFFINITY

TCP, UDP, SCTP = PROTOCOLS["TCP"], PROTOCOLS["UDP"], PROTOCOLS["SCTP"]
_FAMILIES = {4: socket.AF_INET, 16: socket.AF_INET6}
_MAC = bytes.fromhex("020000000001")
_ETHER = {4: _MAC + _MAC + b"\x08\x00", 16: _MAC + _MAC + b"\x86\xdd"}
# Not more: masquerading towards one backend finds it hard to get a free port among too many.
_FIRST_PORT, _LAST_PORT = 20_000, 32_000


class Result(NamedTuple):
    """One new connection. `masqueraded` means: the backend sees the node."""

    verdict: Verdict
    backend: Backend | None = None
    masqueraded: bool = False


class Injector:
    """Sends from beyond the node (the far end of eth0), from its pods (theirs) and from itself."""

    def __init__(self, net: ServiceNet) -> None:
        self._net = net
        self._conntrack = Conntrack()
        self._begun = ConntrackEvents(("new",), _EVENT_BUFFER)
        self._elements = NfElements()
        self._port = _FIRST_PORT
        self._wires: dict[bytes, _Wire] = {}
        for name, text in HERE.items():
            if name in net.hosts:
                wire = _Wire(net.hosts[name].fd, "eth0")
                for version in (4, 6):
                    self._wires[_packed(in_family(text, version))] = wire
        self._uplink = _Wire(net.fabric, "v-node")

    def __enter__(self) -> Injector:
        return self

    def __exit__(self, *_: object) -> None:
        for wire in {*self._wires.values(), self._uplink}:
            wire.close()
        self._elements.close()
        self._conntrack.close()
        self._begun.close()

    def _next_ports(self, count: int) -> range:
        """Source ports nobody had lately."""
        self._port += count
        return range(self._port - count, self._port)

    def _make_room(self, count: int) -> None:
        """The table is emptied before source ports begin anew."""
        if self._port + count > _LAST_PORT:
            self.forget()
            self._port = _FIRST_PORT

    def forget(self) -> None:
        for family in _FAMILIES.values():
            self._conntrack.delete_many(self._conntrack.dump(family))

    def rewind(self) -> None:
        """The next connections have the same source ports as the first had."""
        self.forget()
        self._port = _FIRST_PORT

    def forget_affinity(self) -> None:
        """No client is remembered: sticky clients choose anew."""
        for family in ("ip", "ip6"):
            self._elements.flush(family, SERVICES_TABLE, AFFINITY)

    def udp_flows(self) -> list[Flow]:
        match = Match(proto=UDP)
        return [flow for f in _FAMILIES.values() for flow in self._conntrack.dump(f, match)]

    def send(self, packet: Packet, count: int) -> list[Result]:
        """`count` connections that differ by their source port."""
        (results,) = self.send_all([(packet, count)])
        return results

    def send_all(self, wanted: Sequence[tuple[Packet, int]]) -> list[list[Result]]:
        """Many at once; one look at the table tells of all. At most 40,000 together."""
        self._make_room(sum(count for _, count in wanted))
        self._begun.read(_EVERYTHING)
        sent: list[list[Packet]] = []
        refused: set[_Key] = set()
        wires: set[_Wire] = set()
        for packet, count in wanted:
            group = [replace(packet, sport=port) for port in self._next_ports(count)]
            if packet.from_node:
                refused |= self._send_from_node(group)
            else:
                wire = self._wires.get(packet.src, self._uplink)
                wires.add(wire)
                for one in group:
                    wire.send(frame(one))
            sent.append(group)
        return self._read(sent, refused, wires)

    @staticmethod
    def _send_from_node(group: Iterable[Packet]) -> set[_Key]:
        refused = set()
        for packet in group:
            kind = socket.SOCK_STREAM if packet.protocol == TCP else socket.SOCK_DGRAM
            with socket.socket(_FAMILIES[len(packet.src)], kind) as sock:
                sock.setblocking(False)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.bind((_text(packet.src), packet.sport))
                try:
                    sock.connect((_text(packet.dst), packet.dport))
                    sock.send(b"who?")
                except (BlockingIOError, PermissionError):
                    pass
                except ConnectionError:
                    refused.add(_key(packet))
                # The answer to what leaves by loopback is here when the call returns.
                if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNREFUSED:
                    refused.add(_key(packet))
        return refused

    def _read(
        self, sent: Sequence[Sequence[Packet]], refused: set[_Key], wires: Iterable[_Wire]
    ) -> list[list[Result]]:
        table = self._table(sent)
        unknown = {_key(p): p for group in sent for p in group if _key(p) not in table}
        for wire in wires:
            refused |= wire.refusals(_QUIET_S if unknown else 0.0)
        silent = [p for key, p in unknown.items() if key not in refused]
        if silent:
            # A burst may overflow the queue of the receiving device: said again, as TCP would.
            refused |= self._send_from_node(p for p in silent if p.from_node)
            for packet in silent:
                if not packet.from_node:
                    self._wires.get(packet.src, self._uplink).send(frame(packet))
            for wire in wires:
                refused |= wire.refusals(_QUIET_S)
            table |= self._table(sent)
        return [[_result(p, table.get(_key(p)), refused) for p in group] for group in sent]

    def _table(self, sent: Sequence[Sequence[Packet]]) -> dict[_Key, Flow]:
        families = {_FAMILIES[len(group[0].dst)] for group in sent if group}
        begun = {event.flow.orig: event.flow for event in self._begun.read(_EVERYTHING)}
        there = {flow.orig: flow for f in families for flow in self._conntrack.dump(f, Match())}
        return begun | there


_Key = Tuple
_QUIET_S = 0.03
_EVENT_BUFFER = 1 << 25
_EVERYTHING = 1 << 20


def _key(packet: Packet) -> _Key:
    return _Key(packet.src, packet.dst, packet.sport, packet.dport, packet.protocol)


def _result(packet: Packet, flow: Flow | None, refused: set[_Key]) -> Result:
    # IPVS translates too, and `flow.dst_nat` is not set then.
    if flow is not None and (flow.reply.src, flow.reply.sport) != (packet.dst, packet.dport):
        backend = Backend(flow.reply.src, flow.reply.sport)
        return Result("dnat", backend, flow.reply.dst != packet.src)
    if flow is not None:
        return Result("pass")
    return Result("refuse" if _key(packet) in refused else "drop")


class _Wire:
    """One end of a veth pair, on which frames are written and refusals read."""

    def __init__(self, fd: int, device: str) -> None:
        with netns.entered(fd):
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ALL))
            self._socket.bind((device, _ALL))
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 1 << 26)
        self._socket.setblocking(False)

    def send(self, data: bytes) -> None:
        self._socket.send(data)

    def refusals(self, quiet_s: float) -> set[_Key]:
        """The connections that were answered by a reset or an ICMP unreachable."""
        found = set()
        while select.select([self._socket], [], [], quiet_s)[0]:
            data = self._socket.recv(256)
            with contextlib.suppress(struct.error, IndexError):
                key = refused_connection(data[14:])
                if key is not None:
                    found.add(key)
        return found

    def close(self) -> None:
        self._socket.close()


_ALL = 3  # ETH_P_ALL
_SO_RCVBUFFORCE = 33


def refused_connection(data: bytes) -> _Key | None:
    """The connection an answer refuses, None for all other packets."""
    if data[0] >> 4 == 4:
        proto, src, dst, body = data[9], data[12:16], data[16:20], data[20:]
        inner = 4
    else:
        proto, src, dst, body = data[6], data[8:24], data[24:40], data[40:]
        inner = 6
    if proto == TCP and body[13] & 4:
        sport, dport = struct.unpack_from("!HH", body)
        return _Key(dst, src, dport, sport, TCP)
    unreachable = {4: (1, 3), 6: (58, 1)}[inner]
    if (proto, body[0]) != unreachable:
        return None
    if inner == 4:
        proto, src, dst, ports = body[17], body[20:24], body[24:28], body[28:]
    else:
        proto, src, dst, ports = body[14], body[16:32], body[32:48], body[48:]
    sport, dport = struct.unpack_from("!HH", ports)
    return _Key(src, dst, sport, dport, proto)


def _text(packed: bytes) -> str:
    return socket.inet_ntop(_FAMILIES[len(packed)], packed)


def _packed(text: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)


# --- bytes --------------------------------------------------------------------------------------


def checksum(data: bytes) -> int:
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def frame(packet: Packet) -> bytes:
    """The Ethernet frame of the first packet of a connection."""
    body = _BODIES[packet.protocol](packet)
    if len(packet.src) == 4:
        head = struct.pack(
            "!BBHHHBBH4s4s",
            0x45,
            0,
            20 + len(body),
            0,
            0x4000,
            64,
            packet.protocol,
            0,
            packet.src,
            packet.dst,
        )
        head = head[:10] + struct.pack("!H", checksum(head)) + head[12:]
    else:
        head = struct.pack(
            "!IHBB16s16s", 6 << 28, len(body), packet.protocol, 64, packet.src, packet.dst
        )
    return _ETHER[len(packet.src)] + head + body


def _pseudo(packet: Packet, length: int) -> bytes:
    return packet.src + packet.dst + struct.pack("!II", length, packet.protocol)


def _tcp(packet: Packet) -> bytes:
    head = struct.pack("!HHIIBBHHH", packet.sport, packet.dport, 1, 0, 5 << 4, 2, 65535, 0, 0)
    return head[:16] + struct.pack("!H", checksum(_pseudo(packet, 20) + head)) + head[18:]


def _udp(packet: Packet) -> bytes:
    body = b"who?"
    head = struct.pack("!HHHH", packet.sport, packet.dport, 8 + len(body), 0)
    whole = checksum(_pseudo(packet, 8 + len(body)) + head + body) or 0xFFFF
    return head[:6] + struct.pack("!H", whole) + body


def _sctp(packet: Packet) -> bytes:
    """An INIT (RFC 9260 3.3.2) with its CRC32c."""
    chunk = struct.pack("!BBHIIHHI", 1, 0, 20, 7, 65536, 1, 1, 1)
    head = struct.pack("!HHII", packet.sport, packet.dport, 0, 0)
    return head[:8] + struct.pack("<I", crc32c(head + chunk)) + chunk


def _icmp(packet: Packet) -> bytes:
    """An echo request; its identifier is the source port."""
    head = struct.pack("!BBHHH", 8, 0, 0, packet.sport, 1)
    return head[:2] + struct.pack("!H", checksum(head)) + head[4:]


def _icmpv6(packet: Packet) -> bytes:
    head = struct.pack("!BBHHH", 128, 0, 0, packet.sport, 1)
    return head[:2] + struct.pack("!H", checksum(_pseudo(packet, 8) + head)) + head[4:]


_BODIES = {TCP: _tcp, UDP: _udp, SCTP: _sctp, 1: _icmp, 58: _icmpv6}


def _table() -> list[int]:
    found = []
    for value in range(256):
        for _ in range(8):
            value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
        found.append(value)
    return found


_CRC32C = _table()


def crc32c(data: bytes) -> int:
    value = 0xFFFFFFFF
    for byte in data:
        value = (value >> 8) ^ _CRC32C[(value ^ byte) & 0xFF]
    return value ^ 0xFFFFFFFF
