"""Names between their forms: labels, lower-case wire bytes, reverse names and addresses.

A name's identity in this room is its lower-case wire form without compression (RFC 1035 3.1):
`\\x03svc\\x07cluster\\x05local\\x00`. A name below another ends with the other's bytes, and because
every such end starts at a label the test is one comparison per label.
"""

from __future__ import annotations

from socket import AF_INET, AF_INET6, inet_ntop, inet_pton

import dns.exception
import dns.name

Labels = tuple[bytes, ...]
"""A name's labels, lower case, without the root's empty one."""

_IN_ADDR = (b"in-addr", b"arpa")
_IP6 = (b"ip6", b"arpa")
_NIBBLES = frozenset(b"%x" % value for value in range(16))


def labels_of(text: str) -> Labels:
    """`cluster.local.` -> its labels; "" and "." are the root."""
    return tuple(label for label in text.lower().encode().split(b".") if label)


def wire_of(labels: Labels) -> bytes:
    return b"".join([bytes((len(label),)) + label for label in labels]) + b"\0"


def parse_wire(wire: bytes) -> Labels:
    """The labels of an uncompressed, complete wire name."""
    labels, at = [], 0
    while length := wire[at]:
        labels.append(wire[at + 1 : at + 1 + length])
        at += 1 + length
    return tuple(labels)


def name_of(labels: Labels) -> dns.name.Name:
    return dns.name.Name((*labels, b""))


def parse_target(text: str) -> dns.name.Name | None:
    """What an alias leads to; None for what is no name at all, or is an address."""
    if not text or packed(text) is not None:
        return None
    try:
        return dns.name.from_text(text)
    except dns.exception.DNSException:
        return None


def packed(text: str) -> bytes | None:
    """An address's 4 or 16 bytes; None for anything else.

    By the C library: a cluster's hundred thousand addresses take `ipaddress` a second.
    """
    try:
        return inet_pton(AF_INET6 if ":" in text else AF_INET, text)
    except (OSError, ValueError):  # UnicodeEncodeError is a ValueError
        return None


def _spelt(address: bytes) -> str:
    return inet_ntop(AF_INET if len(address) == 4 else AF_INET6, address)


def canonical(text: str) -> str | None:
    """The one spelling of an address; None for what is none. The very object where it is that."""
    parsed = packed(text)
    if parsed is None:
        return None
    if len(parsed) == 4:
        return text  # inet_pton takes no other spelling of it (RFC 3493 6.3)
    spelt = _spelt(parsed)
    return text if spelt == text else spelt


def reverse_wire(address: str) -> bytes:
    """The name of an address's PTR records (RFC 1035 3.5, RFC 3596 2.5)."""
    parsed = packed(address)
    if parsed is None:
        raise ValueError(f"{address!r} is not an address")
    if len(parsed) == 4:
        return wire_of((*[b"%d" % byte for byte in reversed(parsed)], *_IN_ADDR))
    nibbles = parsed.hex().encode()
    return wire_of((*[nibbles[at : at + 1] for at in range(31, -1, -1)], *_IP6))


def is_reverse(labels: Labels) -> bool:
    return labels[-2:] in (_IN_ADDR, _IP6)


def parse_reverse(labels: Labels) -> str | None:
    """The address a reverse name stands for, canonical; None for anything else."""
    head, suffix = labels[:-2], labels[-2:]
    if suffix == _IN_ADDR and len(head) == 4:
        return canonical(b".".join(reversed(head)).decode("latin-1"))
    if suffix == _IP6 and len(head) == 32 and _NIBBLES.issuperset(head):
        return _spelt(bytes.fromhex(b"".join(reversed(head)).decode()))
    return None


def dashed(address: str) -> str:
    """An endpoint's id where it has no hostname: `10-0-0-1`, `5678-abcd--1`.

    A label must not end with a dash, so an address that ends with `::` gets a 0 (CoreDNS,
    plugin/kubernetes endpointHostname).
    """
    text = address.replace(".", "-").replace(":", "-")
    return text + "0" if text.endswith("-") else text
