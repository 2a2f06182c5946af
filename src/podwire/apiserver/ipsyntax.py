"""How addresses and CIDRs may be written in a manifest (KEP-4858), and what to say of them.

    legacy field (clusterIPs, externalIPs, ...)   lenient form accepted, ambiguous ones refused:
                                                  leading zeros, IPv4-mapped IPv6, host bits
    new field (IPAddress names, ServiceCIDRs)     canonical form only

An update may keep what the stored object has (`kept`), however it is written. What is accepted but
not canonical earns a warning.
Source: apimachinery pkg/util/validation/ip.go, pkg/apis/core/validation (ValidateEndpointIP).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from podwire.apiserver.fields import FieldError, go_value, invalid_value

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_ZEROS = re.compile(r"(?<![0-9a-fA-F:.])0+(?=[0-9])|(?<=[.])0+(?=[0-9])|(?<=:)0+(?=[0-9]+[.])")
"""Zeros before the digits of an octet, also of an IPv4 tail in an IPv6 address."""
_BAD_IP = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"
_BAD_CIDR = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)"


@lru_cache(maxsize=4096)
def parse_ip(text: str) -> Address | None:
    """As upstream's ParseIPSloppy: leading zeros are decimal, an IPv4-mapped address is IPv4."""
    if "%" in text:
        return None
    try:
        address = ipaddress.ip_address(_ZEROS.sub("", text) if "." in text else text)
    except ValueError:
        return None
    return _unmapped(address)


def _unmapped(address: Address) -> Address:
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address


def parse_cidr(text: str) -> tuple[Address, Network] | None:
    """The address as written and its network (ParseCIDRSloppy)."""
    host, slash, length = text.partition("/")
    address = parse_ip(host)
    if not slash or address is None or not (length.isascii() and length.isdigit()):
        return None
    bits = int(length)
    if ":" in host and isinstance(address, IPv4Address):
        bits -= 96
    if not 0 <= bits <= address.max_prefixlen:
        return None
    return address, ipaddress.ip_network((address, bits), strict=False)


def family_of(text: str) -> str:
    """IPv6 for what parses as such, IPv4 for everything else (netutils.IsIPv6String)."""
    return "IPv6" if isinstance(parse_ip(text), IPv6Address) else "IPv4"


def _has_zeros(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return True
    return False


def _is_mapped(text: str) -> bool:
    return ":" in text and isinstance(parse_ip(text), IPv4Address)


# -- rules -------------------------------------------------------------------------------------


def validate_legacy_ip(field: str, text: str, kept: Collection[str] = ()) -> list[FieldError]:
    problem = "" if text in kept else _ambiguous_ip(text)
    return [invalid_value(field, text, problem)] if problem else []


def validate_ip(field: str, text: str) -> list[FieldError]:
    return [invalid_value(field, text, problem) for problem in ip_problems(text)]


def ip_problems(text: str) -> list[str]:
    """What keeps a text from being an address in canonical form."""
    problem, canonical = _ambiguous_ip(text), str(parse_ip(text))
    if not problem and canonical != text:
        problem = f"must be in canonical form ({go_value(canonical)})"
    return [problem] if problem else []


def _ambiguous_ip(text: str) -> str:
    if parse_ip(text) is None:
        return _BAD_IP
    if _has_zeros(text):
        return "must not have leading 0s"
    return "must not be an IPv4-mapped IPv6 address" if _is_mapped(text) else ""


def validate_legacy_cidr(
    field: str, text: str, kept: Collection[str] = (), *, host_bits: bool = False
) -> list[FieldError]:
    """`host_bits`: bits beyond the prefix length are let pass."""
    if text in kept:
        return []
    parsed = parse_cidr(text)
    if parsed is None:
        return [invalid_value(field, text, _BAD_CIDR)]
    host, _, length = text.partition("/")
    if _has_zeros(host) or length != str(int(length)):
        return [invalid_value(field, text, "must not have leading 0s in IP or prefix length")]
    if _is_mapped(host):
        return [invalid_value(field, text, "must not have an IPv4-mapped IPv6 address")]
    if parsed[0] != parsed[1].network_address and not host_bits:
        return [invalid_value(field, text, "must not have bits set beyond the prefix length")]
    return []


def validate_cidr(field: str, text: str) -> list[FieldError]:
    problems = validate_legacy_cidr(field, text)
    parsed = parse_cidr(text)
    if problems or parsed is None or str(parsed[1]) == text:
        return problems
    return [invalid_value(field, text, f"must be in canonical form ({go_value(str(parsed[1]))})")]


def validate_endpoint_ip(field: str, text: str) -> list[FieldError]:
    """Addresses that no endpoint can have; an external IP may not have them either."""
    address = parse_ip(text)
    if address is None:
        return [invalid_value(field, text, "must be a valid IP address")]
    out: list[FieldError] = []
    if address.is_unspecified:
        out.append(invalid_value(field, text, f"may not be unspecified ({text})"))
    if address.is_loopback:
        why = "may not be in the loopback range (127.0.0.0/8, ::1/128)"
        out.append(invalid_value(field, text, why))
    if address.is_link_local:
        why = "may not be in the link-local range (169.254.0.0/16, fe80::/10)"
        out.append(invalid_value(field, text, why))
    if any(_within(address, network) for network in _LINK_LOCAL_MULTICAST):
        why = "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)"
        out.append(invalid_value(field, text, why))
    return out


def _within(address: Address, network: Network) -> bool:
    return address.version == network.version and address in network


_LINK_LOCAL_MULTICAST: tuple[Network, ...] = (
    IPv4Network("224.0.0.0/24"),
    # Any ffX2:: (Go's IsLinkLocalMulticast looks at the scope only).
    *(IPv6Network(f"ff{flags:x}2::/16") for flags in range(16)),
)


# -- warnings ----------------------------------------------------------------------------------

_FUTURE = "will be considered invalid in a future Kubernetes release"


def ip_warnings(field: str, text: str) -> list[str]:
    address = parse_ip(text)
    if address is None:
        return []
    value, better = go_value(text), go_value(str(address))
    if _has_zeros(text) or _is_mapped(text):
        return [f"{field}: non-standard IP address {value} {_FUTURE}: use {better}"]
    if isinstance(address, IPv6Address) and str(address) != text:
        return [f"{field}: IPv6 address {value} should be in RFC 5952 canonical format ({better})"]
    return []


def cidr_warnings(field: str, text: str) -> list[str]:
    parsed = parse_cidr(text)
    if parsed is None:
        return []
    address, network = parsed
    host, _, length = text.partition("/")
    value, better = go_value(text), go_value(str(network))
    out: list[str] = []
    if address != network.network_address:
        alone = go_value(f"{address}/{address.max_prefixlen}")
        out.append(
            f"{field}: CIDR value {value} is ambiguous in this context "
            f"(should be {better} or {alone}?)"
        )
    if _has_zeros(host) or length != str(int(length)) or _is_mapped(host):
        out.append(f"{field}: non-standard CIDR value {value} {_FUTURE}: use {better}")
    if not out and isinstance(address, IPv6Address) and str(network) != text:
        out.append(
            f"{field}: IPv6 CIDR value {value} should be in RFC 5952 canonical format ({better})"
        )
    return out
