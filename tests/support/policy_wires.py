"""A node whose pods are ends of wires: first packets are written at one end and read at another.

    the test's namespace = node-1                              fabric: a namespace, no addresses
      forward: podwire-policy ─ veth0..3 (or ports of cbr0) ─▶ x/a x/b y/a y/b
                              ─ eth0 ─▶ all other pods, nodes, outsiders
                              ─ last ─▶ nobody's address: what comes here says that all others came

Nobody answers, so no connection is ever established, and one source port is one first packet: a
world of policies costs milliseconds.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import time
from collections.abc import Iterable, Iterator, Sequence
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path

from policy_node_worlds import KEYS, addresses_of
from service_injector import frame

from podwire.kernel import netns, requests, sysctl
from podwire.kernel.conntrack import Conntrack
from podwire.kernel.requests import (
    Add,
    AddLink,
    Bridge,
    Neighbour,
    Request,
    Route,
    SetLink,
    Veth,
)
from podwire.kernel.rtnl import Rtnl
from podwire.policy.evaluate import Flow
from podwire.policy.model import Address
from podwire.services.evaluate import Packet

LOCAL = [key for key in KEYS if key.name in "ab"]
BRIDGE = "cbr0"
BRIDGE_NF = "net/bridge/bridge-nf-call-iptables"
_NODE_MAC = "02:00:00:00:00:01"
_LAST, _OUTSIDER = ip_address("192.0.2.1"), ip_address("203.0.113.1")
_NEXT_HOP = {4: ip_address("172.30.0.254"), 6: ip_address("fd00:30::fe")}
_UPLINK, _END = 0x40, 0x41
_EVERYTHING = {4: ip_network("0.0.0.0/0"), 6: ip_network("::/0")}
# A packet that comes late is not taken for one of the next.
_FIRST_PORT, _LAST_PORT = 20_000, 60_000
_ALL = 3  # ETH_P_ALL
_OUTGOING = 4  # PACKET_OUTGOING
_SO_RCVBUFFORCE = 33
_PATIENCE_S = 5.0
_AGAIN_S = 0.05


def _mac(number: int) -> str:
    return f"02:00:00:00:01:{number:02x}"


def _bytes(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


class Wires:
    """`bridged`: as kubenet has it, pods of the node are ports of one bridge."""

    def __init__(self, scratch: Path, *, bridged: bool) -> None:
        self.bridged = bridged
        self._number = _FIRST_PORT
        self._stack = contextlib.ExitStack()
        self._fabric = netns.create(scratch / "fabric")
        self._stack.callback(os.close, self._fabric)
        self._links = {ip: f"veth{i}" for i, key in enumerate(LOCAL) for ip in addresses_of(key)}
        self._macs = {ip: _mac(LOCAL.index(key)) for key in LOCAL for ip in addresses_of(key)}
        sysctl.write(_sysctls(bridged))
        self._build()
        with netns.entered(self._fabric):
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ALL))
        self._stack.callback(self._socket.close)
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 1 << 26)
        self._conntrack = Conntrack()
        self._stack.callback(self._conntrack.close)
        self._introduce()

    def __enter__(self) -> Wires:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    # --- wires ------------------------------------------------------------------------------------

    def _build(self) -> None:
        with Rtnl() as rtnl, Rtnl.in_ns(self._fabric) as far:
            rtnl.apply([SetLink(device="lo", up=True)])
            if self.bridged:
                rtnl.apply(self._bridge())
            for i, key in enumerate(LOCAL):
                rtnl.apply(self._wire(f"veth{i}", _mac(i)))
                if self.bridged:
                    rtnl.apply([SetLink(device=f"veth{i}", master=BRIDGE)])
                for ip in addresses_of(key):
                    device = BRIDGE if self.bridged else f"veth{i}"
                    if not self.bridged:
                        rtnl.apply([Add(Route(destination=ip_network(ip), device=device))])
                    rtnl.apply([Add(Neighbour(device, ip, _mac(i)))])
            rtnl.apply([*self._wire("eth0", _mac(_UPLINK)), *self._wire("last", _mac(_END))])
            for version, via in _NEXT_HOP.items():
                everything = _EVERYTHING[version]
                rtnl.apply(
                    [
                        Add(Neighbour("eth0", via, _mac(_UPLINK))),
                        Add(Route(destination=everything, via=via, device="eth0", onlink=True)),
                    ]
                )
            rtnl.apply(
                [
                    Add(Route(destination=ip_network(_LAST), device="last")),
                    Add(Neighbour("last", _LAST, _mac(_END))),
                ]
            )
            names = [*(f"veth{i}" for i in range(len(LOCAL))), "eth0", "last"]
            far.apply([SetLink(device=name, link_local=False) for name in names])
            far.apply([SetLink(device=name, up=True) for name in names])
            self._uplink_mac = rtnl.links()["eth0"].mac

    def _wire(self, name: str, mac: str) -> list[Request]:
        veth = Veth(peer=name, mac=mac, netns=self._fabric)
        return [
            AddLink(name=name, kind=veth, mac=_NODE_MAC if not self.bridged else None),
            SetLink(device=name, link_local=False),
            SetLink(device=name, up=True),
        ]

    @staticmethod
    def _bridge() -> list[Request]:
        gateways = [ip_interface("10.244.1.1/24"), ip_interface("fd00:244:0:1::1/64")]
        return [
            AddLink(name=BRIDGE, kind=Bridge(), mac=_NODE_MAC),
            SetLink(device=BRIDGE, link_local=False),
            SetLink(device=BRIDGE, up=True),
            *(Add(requests.Address(BRIDGE, gateway)) for gateway in gateways),
        ]

    # --- packets ----------------------------------------------------------------------------------

    def _introduce(self) -> None:
        """Everybody is heard once. A bridge floods what is for a pod it has not heard, and the
        forward hook sees, and counts, one packet at each of its ports.

        A device drops what it is given before the kernel has seen that its other end is up, so all
        is said again until it was heard.
        """
        everybody = [*(addresses_of(key)[0] for key in LOCAL), _OUTSIDER]
        silent = dict(enumerate(everybody, 1))
        until = time.monotonic() + _PATIENCE_S
        while silent:
            assert time.monotonic() < until, "the node forwards nothing"
            for number, source in silent.items():
                self._put_last(source, number)
            for number, link in self._arrivals(_AGAIN_S):
                if link == "last":
                    silent.pop(number, None)
                if not silent:
                    break

    def send(self, flows: Sequence[Flow]) -> list[bool]:
        """Whether the first packet of each came out where it should. At most 40,000 at once."""
        for family in (socket.AF_INET, socket.AF_INET6):
            self._conntrack.delete_many(self._conntrack.dump(family))
        if self._number + len(flows) >= _LAST_PORT:
            self._number = _FIRST_PORT
        numbered = [*enumerate(flows, self._number)]
        self._number += len(flows) + 1
        for number, flow in numbered:
            self._write(flow, number)
        came = self._read(self._number - 1)
        return [
            came.get(number) == self._links.get(flow.destination.ip, "eth0")
            for number, flow in numbered
        ]

    def _write(self, flow: Flow, number: int) -> None:
        source, destination = flow.source.ip, flow.destination.ip
        assert source is not None
        assert destination is not None
        packet = Packet(
            source.packed, destination.packed, flow.protocol, flow.port, number, from_node=False
        )
        target, origin = self._node_mac(source), self._macs.get(source, _mac(_UPLINK))
        if self.bridged and source in self._macs and destination in self._macs:
            target = self._macs[destination]
        self._put(self._links.get(source, "eth0"), target, origin, frame(packet))

    def _node_mac(self, source: Address) -> str:
        """Of the node's end: pods on the bridge know the bridge."""
        if not self.bridged or source in self._macs:
            return _NODE_MAC
        return self._uplink_mac

    def _put(self, link: str, target: str, origin: str, data: bytes) -> None:
        self._socket.sendto(_bytes(target) + _bytes(origin) + data[12:], (link, 0))

    def _put_last(self, source: Address, number: int) -> None:
        packet = Packet(source.packed, _LAST.packed, 17, 9, number, from_node=False)
        origin = self._macs.get(source, _mac(_UPLINK))
        self._put(self._links.get(source, "eth0"), self._node_mac(source), origin, frame(packet))

    def _read(self, last: int) -> dict[int, str]:
        """Where packets came out, by their numbers, until the one that is sent last is there."""
        self._put_last(_OUTSIDER, last)
        came: dict[int, str] = {}
        for number, link in self._arrivals(_PATIENCE_S):
            if link == "last" and number == last:
                return came
            came[number] = link
        raise AssertionError("the node forwards nothing")

    def _arrivals(self, patience_s: float) -> Iterator[tuple[int, str]]:
        """(number, link) of what comes out where it was meant to, until nothing comes any more."""
        while select.select([self._socket], [], [], patience_s)[0]:
            data, (link, _, kind, *_rest) = self._socket.recvfrom(256)
            # What a pod sent, or a bridge told all its ports (the kernel's own multicast).
            if kind == _OUTGOING or data[:6] != _bytes(_mac(_far_end(link))):
                continue
            number = _number(data[14:])
            if number is not None:
                yield number, link


def _far_end(link: str) -> int:
    return {"eth0": _UPLINK, "last": _END}.get(link) or int(link.removeprefix("veth"))


def _number(data: bytes) -> int | None:
    """The source port, or the identifier of an echo request; None for anything else."""
    if data[0] >> 4 == 4:
        protocol, body = data[9], data[20:]
    else:
        protocol, body = data[6], data[40:]
    if protocol in (1, 58):
        echo = {1: 8, 58: 128}[protocol]
        return struct.unpack_from("!H", body, 4)[0] if body[0] == echo else None
    return struct.unpack_from("!H", body)[0] if protocol in (6, 17, 132) else None


def _sysctls(bridged: bool) -> dict[str, int]:
    values = {
        "net/ipv4/ip_forward": 1,
        "net/ipv6/conf/all/forwarding": 1,
        "net/ipv4/conf/all/rp_filter": 0,
        "net/ipv4/conf/default/rp_filter": 0,
        "net/ipv4/conf/all/send_redirects": 0,
        "net/ipv4/conf/default/send_redirects": 0,
    }
    if bridged:
        values |= {
            "net/bridge/bridge-nf-call-iptables": 1,
            "net/bridge/bridge-nf-call-ip6tables": 1,
        }
    return values


def carried(flows: Iterable[Flow], *, bridged: bool) -> list[Flow]:
    """Those a wire can carry: a bridge gives no frame back to the port it came from."""
    return [f for f in flows if not bridged or f.source.ip != f.destination.ip]
