"""Zones as a Corefile writes them: names, ports, and address ranges that mean reverse zones. Pure.

example.org   .:53   dns://example.org:1053   10.96.0.0/12 -> 96.10.in-addr.arpa. ... 111.10...
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence

import dns.exception
import dns.name

_PREFIXES = ("dns://",)


def parse_zone_key(text: str) -> tuple[tuple[str, ...], int | None]:
    """Zones and port of a server block's key; ValueError says what is wrong with it."""
    for prefix in _PREFIXES:
        text = text.removeprefix(prefix)
    if "://" in text:
        raise ValueError(f"transport {text.split('://')[0]}:// is not supported; use dns://")
    text, port = _split_port(text)
    return parse_zone(text), port


def _split_port(text: str) -> tuple[str, int | None]:
    """An IPv6 range has colons too: only what follows `]` or the mask's digits is a port."""
    head, colon, tail = text.rpartition(":")
    if not colon or (":" in head and "/" not in head) or "/" in tail:
        return text, None
    if not tail.isdigit() or not 0 < int(tail) < 65536:
        raise ValueError(f"{tail!r} is not a port; write a number from 1 to 65535")
    return head or ".", int(tail)


def parse_zone(text: str) -> tuple[str, ...]:
    """A name in its normal form, or the reverse zones of a range; ValueError otherwise."""
    if "/" in text:
        return _reverse(text)
    return (parse_name(text),)


def parse_name(text: str) -> str:
    """Lower case, final dot; ValueError for what is no domain name."""
    try:
        name = dns.name.from_text(text.lower() or ".")
    except (dns.exception.DNSException, UnicodeError, ValueError) as e:
        raise ValueError(f"{text!r} is not a domain name ({e})") from e
    return name.to_text().lower()


def _reverse(text: str) -> tuple[str, ...]:
    """A range that ends inside an octet (or nibble) is several zones, one per next octet."""
    try:
        network = ipaddress.ip_network(text, strict=False)
    except ValueError as e:
        raise ValueError(f"{text!r} is no address range ({e})") from e
    bits = 8 if network.version == 4 else 4
    whole = -(-network.prefixlen // bits) * bits
    return tuple(
        _reverse_zone(subnet, whole // bits) for subnet in network.subnets(new_prefix=whole)
    )


def _reverse_zone(network: ipaddress.IPv4Network | ipaddress.IPv6Network, labels: int) -> str:
    pointer = network.network_address.reverse_pointer.split(".")
    return ".".join(pointer[-2 - labels :]) + "."


def matching_zone(name: str, zones: Iterable[str]) -> str | None:
    """The longest of the zones that `name` is in; all in their normal form."""
    best: str | None = None
    for zone in zones:
        if in_zone(name, zone) and (best is None or len(zone) > len(best)):
            best = zone
    return best


def in_zone(name: str, zone: str) -> bool:
    return zone == "." or name == zone or name.endswith("." + zone)


def falls_through(name: str, zones: Sequence[str] | None) -> bool:
    """As `fallthrough [ZONES...]`: None is off, no zones are all."""
    if zones is None:
        return False
    return not zones or any(in_zone(name, zone) for zone in zones)
