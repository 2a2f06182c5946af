"""Finding free address blocks, and naming what a block collides with."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from typing import Final, TypeAlias

from podwire.errors import AddressError, ExhaustedError

Network: TypeAlias = IPv4Network | IPv6Network


@dataclass(frozen=True)
class Reserved:
    """A block somebody else uses; `fatal` when nothing works inside of it."""

    cidr: Network
    owner: str
    fatal: bool = False


def _reserved(text: str, owner: str, *, fatal: bool = False) -> Reserved:
    return Reserved(ipaddress.ip_network(text), owner, fatal)


LAB: Final = (
    _reserved("172.30.0.0/24", "podwire's lab: its nodes", fatal=True),
    _reserved("203.0.113.0/24", "podwire's lab: the outside host", fatal=True),
    _reserved("fd00:30::/64", "podwire's lab: its nodes", fatal=True),
    _reserved("2001:db8:113::/64", "podwire's lab: the outside host", fatal=True),
)
COMMON: Final = (
    _reserved("169.254.0.0/16", "link-local addresses (RFC 3927)", fatal=True),
    _reserved("127.0.0.0/8", "loopback", fatal=True),
    _reserved("224.0.0.0/4", "multicast", fatal=True),
    _reserved("0.0.0.0/8", "this network (RFC 1122)", fatal=True),
    _reserved("fe80::/10", "link-local addresses", fatal=True),
    _reserved("ff00::/8", "multicast", fatal=True),
    _reserved("192.0.2.0/24", "documentation (RFC 5737), inside AKS-reserved space", fatal=True),
    _reserved("172.17.0.0/16", "Docker's default bridge"),
    _reserved("172.18.0.0/15", "Docker's default address pools"),
    _reserved("172.20.0.0/14", "Docker's default address pools"),
    _reserved("172.24.0.0/13", "Docker's default address pools"),
    _reserved("192.168.0.0/16", "Docker's default address pools and home networks"),
    _reserved("100.64.0.0/10", "carrier-grade NAT (RFC 6598), also used by VPNs such as Tailscale"),
)
AKS: Final = (
    _reserved("172.30.0.0/16", "AKS itself (Microsoft Learn: CNI networking)", fatal=True),
    _reserved("172.31.0.0/16", "AKS itself (Microsoft Learn: CNI networking)", fatal=True),
)
# Where blocks are looked for: the least claimed space first.
_POOLS: Final[dict[int, tuple[Network, ...]]] = {
    4: tuple(map(IPv4Network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10"))),
    6: (IPv6Network("fd00::/16"),),
}


def parse_cidr(text: str) -> Network:
    """Raises `AddressError` also for host bits, saying which network was probably meant."""
    try:
        return ipaddress.ip_network(text)
    except ValueError as e:
        try:
            meant = f"; did you mean {ipaddress.ip_network(text, strict=False)}?"
        except ValueError:
            meant = ""
        raise AddressError(f"CIDR {text!r}: {e}{meant}") from e


def overlap(left: Network, right: Network) -> bool:
    return left.version == right.version and left.overlaps(right)


def find_block(
    version: int, prefix: int, taken: Iterable[Network], preferred: str = "", smallest: int = 0
) -> Network:
    """A free block of `/prefix`, or of the largest size down to `/smallest` there is.

    At the preferred address when that is free. Raises `ExhaustedError` when no pool has one.
    """
    busy = [network for network in taken if network.version == version]
    for length in range(prefix, max(prefix, smallest) + 1):
        for block in _candidates(version, length, busy, preferred):
            if not any(overlap(block, other) for other in busy):
                return block
    raise ExhaustedError(
        f"IPv{version} block /{max(prefix, smallest)}: private address space has none left beside "
        f"the {len(busy)} blocks to avoid; ask for fewer nodes or pods, or avoid less"
    )


def _candidates(
    version: int, prefix: int, busy: Sequence[Network], preferred: str
) -> Iterator[Network]:
    """The preferred block, then for each pool the first free one."""
    if preferred:
        yield ipaddress.ip_network(f"{preferred}/{prefix}", strict=False)
    for pool in _POOLS[version]:
        if pool.prefixlen <= prefix:
            free = _first_free(pool, prefix, busy)
            if free is not None:
                yield free


def _first_free(pool: Network, prefix: int, busy: Sequence[Network]) -> Network | None:
    """Jumps past whatever is in the way: cost follows the obstacles, not the pool."""
    size = 1 << (pool.max_prefixlen - prefix)
    start, end = int(pool.network_address), int(pool.broadcast_address)
    for other in sorted(busy, key=lambda network: int(network.network_address)):
        low, high = int(other.network_address), int(other.broadcast_address)
        if high < start:
            continue
        if low > start + size - 1:
            break
        start = -(-(high + 1) // size) * size
    if start + size - 1 > end:
        return None
    network = IPv4Network if pool.version == 4 else IPv6Network
    return network((start, prefix))
