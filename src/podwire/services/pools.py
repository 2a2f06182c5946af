"""Ranges of addresses that load balancers are given from. Pure.

    "172.30.0.200-172.30.0.250", "192.0.2.0/28" -> parse_range -> AddressRange

An external address is for everybody, an internal one for clients that share the network with the
nodes: nobody routes to it from beyond.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
    summarize_address_range,
)
from typing import Final, Literal, TypeAlias

from podwire.errors import AddressError

Address: TypeAlias = IPv4Address | IPv6Address
Network: TypeAlias = IPv4Network | IPv6Network
Scope: TypeAlias = Literal["external", "internal"]


@dataclass(frozen=True)
class AddressRange:
    """`first` to `last`, both included and of one family."""

    first: Address
    last: Address

    @property
    def version(self) -> int:
        return self.first.version

    def __contains__(self, address: object) -> bool:
        if isinstance(address, IPv4Address) and isinstance(self.first, IPv4Address):
            return int(self.first) <= int(address) <= int(self.last)
        if isinstance(address, IPv6Address) and isinstance(self.first, IPv6Address):
            return int(self.first) <= int(address) <= int(self.last)
        return False

    def __iter__(self) -> Iterator[Address]:
        make = type(self.first)
        return (make(number) for number in range(int(self.first), int(self.last) + 1))

    def __len__(self) -> int:
        return int(self.last) - int(self.first) + 1

    def __str__(self) -> str:
        return f"{self.first}-{self.last}"

    def overlaps(self, other: AddressRange) -> bool:
        return self.version == other.version and (
            int(self.first) <= int(other.last) and int(other.first) <= int(self.last)
        )

    def networks(self) -> list[Network]:
        """The range as networks, for routes."""
        if isinstance(self.first, IPv4Address) and isinstance(self.last, IPv4Address):
            return list(summarize_address_range(self.first, self.last))
        return list(summarize_address_range(IPv6Address(self.first), IPv6Address(self.last)))


@dataclass(frozen=True)
class Pools:
    """What a cluster may give away; ranges do not overlap."""

    external: tuple[AddressRange, ...] = ()
    internal: tuple[AddressRange, ...] = ()

    def of(self, scope: Scope, version: int) -> list[AddressRange]:
        ranges = self.external if scope == "external" else self.internal
        return [r for r in ranges if r.version == version]

    def scope_of(self, address: Address) -> Scope | None:
        """Whose address it is; None where it is not ours."""
        if any(address in r for r in self.external):
            return "external"
        return "internal" if any(address in r for r in self.internal) else None

    def __contains__(self, address: object) -> bool:
        return any(address in r for r in (*self.external, *self.internal))

    def packed(self) -> tuple[tuple[bytes, bytes], ...]:
        """Every range as (first, last) packed addresses."""
        return tuple((r.first.packed, r.last.packed) for r in (*self.external, *self.internal))


NO_POOLS: Final = Pools()


def parse_range(text: str) -> AddressRange:
    """`FIRST-LAST`, a CIDR (all its addresses) or one address; `AddressError` for anything else."""
    try:
        if "-" in text:
            low, _, high = text.partition("-")
            first, last = ip_address(low.strip()), ip_address(high.strip())
        elif "/" in text:
            network = ip_network(text.strip())
            first, last = network[0], network[-1]
        else:
            first = last = ip_address(text.strip())
    except ValueError as error:
        raise AddressError(f"address range {text!r}: {error}") from error
    if first.version != last.version or int(first) > int(last):
        raise AddressError(f"address range {text!r}: the first address is not before the last")
    return AddressRange(first, last)


def make_pools(external: Iterable[str], internal: Iterable[str]) -> Pools:
    """Pools from their texts; `AddressError` where two ranges overlap."""
    outer = tuple(parse_range(text) for text in external)
    inner = tuple(parse_range(text) for text in internal)
    every = [*outer, *inner]
    for index, one in enumerate(every):
        for other in every[index + 1 :]:
            if one.overlaps(other):
                raise AddressError(f"load balancer pools: {one} overlaps {other}")
    return Pools(outer, inner)
