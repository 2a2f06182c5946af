"""Telling a link who answers for an address now: a load balancer's address that moved to this node.

    address, MAC -> frames (pure) -> packet socket on the device

IPv4: gratuitous ARP, once as a request (the ARP announcement of RFC 5227 section 3) and once as a
reply (RFC 826; target hardware address as in RFC 5944 section 4.6), because neighbours exist that
heed only one. IPv6: an unsolicited neighbour advertisement to all nodes with the override flag (RFC
4861 section 7.2.6). Both only change caches that have the address already.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from podwire.errors import KernelError
from podwire.kernel import guard, netns
from podwire.kernel.requests import IPAddress

_ETH_P_ARP: Final = 0x0806
_ETH_P_IPV6: Final = 0x86DD
_BROADCAST: Final = b"\xff" * 6
_ALL_NODES: Final = IPv6Address("ff02::1").packed
_ALL_NODES_MAC: Final = b"\x33\x33\0\0\0\1"
_ICMPV6: Final = 58
_ADVERTISEMENT: Final = 136
_ROUTER: Final = 0x80000000
_OVERRIDE: Final = 0x20000000
_TARGET_LINK_LAYER: Final = 2
_ARP: Final = struct.Struct("!HHBBH6s4s6s4s")
_IPV6: Final = struct.Struct("!IHBB16s16s")


def arp_announcement(address: IPv4Address, mac: bytes, *, reply: bool = False) -> bytes:
    """The Ethernet frame of a gratuitous ARP request, or of a reply."""
    operation, target = (2, mac) if reply else (1, b"\0" * 6)
    arp = _ARP.pack(1, 0x0800, 6, 4, operation, mac, address.packed, target, address.packed)
    return _BROADCAST + mac + _ETH_P_ARP.to_bytes(2, "big") + arp


def neighbour_advertisement(address: IPv6Address, mac: bytes, *, router: bool = False) -> bytes:
    """The Ethernet frame of an unsolicited neighbour advertisement with the override flag."""
    flags = _OVERRIDE | (_ROUTER if router else 0)
    option = bytes([_TARGET_LINK_LAYER, 1]) + mac
    body = struct.pack("!I16s", flags, address.packed) + option
    size = 4 + len(body)
    pseudo = address.packed + _ALL_NODES + struct.pack("!II", size, _ICMPV6)
    kind = bytes([_ADVERTISEMENT, 0])
    check = checksum(pseudo + kind + b"\0\0" + body)
    # Hop limit 255 proves that no router forwarded it.
    header = _IPV6.pack(6 << 28, size, _ICMPV6, 255, address.packed, _ALL_NODES)
    frame = _ALL_NODES_MAC + mac + _ETH_P_IPV6.to_bytes(2, "big") + header
    return frame + kind + check.to_bytes(2, "big") + body


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071) of an even number of bytes."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def frames(address: IPAddress, mac: bytes, *, router: bool = False) -> tuple[bytes, ...]:
    """What has to be sent to announce an address."""
    if isinstance(address, IPv6Address):
        return (neighbour_advertisement(address, mac, router=router),)
    return arp_announcement(address, mac), arp_announcement(address, mac, reply=True)


def announce(
    device: str,
    addresses: Iterable[IPAddress],
    ns: int | None = None,
    *,
    mac: str | None = None,
    router: bool = False,
) -> None:
    """Announce the addresses on a device of the namespace `ns` (None: the calling thread's).

    `mac` None is the device's own. Errors: `KernelError` ENODEV without such a device, ENETDOWN
    while it is down.
    """
    with netns.maybe_entered(ns):
        guard.assert_not_host("announcement")
        try:
            # Protocol 0: it sends only, nothing is queued for it.
            with socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0) as sock:
                sock.bind((device, 0))
                own = bytes.fromhex(mac.replace(":", "")) if mac else sock.getsockname()[4]
                for address in addresses:
                    for frame in frames(address, own, router=router):
                        sock.send(frame)
        except OSError as e:
            raise KernelError(f"announcement on {device}", errno=e.errno or 0) from e
