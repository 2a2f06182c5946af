"""Addresses of domain names, as cluster DNS answered them to pods. Pure.

    DNS answer a pod got -> addresses_of -> NameTable.learn -> `World.names`

A `domainNames` peer means the addresses that DNS gives for the name (network-policy-api,
DomainName: "the resolved addresses"). What a pod was told is what it connects to, so the answers
themselves are read. An address is kept `GRACE_S` beyond its TTL: clients do so, too. After that no
connection may be opened to it; those that stand go on (NPEP-133).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from ipaddress import ip_address
from typing import Final, NamedTuple

import dns.exception
import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype

from podwire.policy.evaluate import matches_domain
from podwire.policy.model import Address

GRACE_S: Final = 60.0
_MOST: Final = 10_000
"""Addresses kept in all; a server that invents more makes the oldest be forgotten."""


class Answer(NamedTuple):
    """What one response says of a name; `ttl_s` is the least on the way to the addresses."""

    name: str
    addresses: frozenset[Address]
    ttl_s: float


def addresses_of(wire: bytes) -> list[Answer]:
    """Of the name that was asked, and of every alias on the way. Nothing for what is no answer."""
    try:
        message = dns.message.from_wire(wire, ignore_trailing=True)
    except (dns.exception.DNSException, ValueError):
        return []
    if not message.flags & dns.flags.QR or message.rcode() != dns.rcode.NOERROR:
        return []
    if not message.question:
        return []
    aliases: dict[str, tuple[str, float]] = {}
    found: dict[str, tuple[set[Address], float]] = {}
    for rrset in message.answer:
        owner = _text(rrset.name)
        if rrset.rdtype == dns.rdatatype.CNAME:
            aliases[owner] = _text(rrset[0].target), float(rrset.ttl)
        elif rrset.rdtype in (dns.rdatatype.A, dns.rdatatype.AAAA):
            addresses, ttl_s = found.get(owner, (set(), float(rrset.ttl)))
            addresses |= {ip_address(rdata.address) for rdata in rrset}
            found[owner] = addresses, min(ttl_s, float(rrset.ttl))
    return _follow(_text(message.question[0].name), aliases, found)


def _follow(
    name: str,
    aliases: Mapping[str, tuple[str, float]],
    found: Mapping[str, tuple[set[Address], float]],
) -> list[Answer]:
    chain = [name]
    ttls = []
    while (alias := aliases.get(chain[-1])) is not None and alias[0] not in chain:
        chain.append(alias[0])
        ttls.append(alias[1])
    end = found.get(chain[-1])
    if end is None:
        return []
    return [Answer(each, frozenset(end[0]), min([*ttls, end[1]])) for each in chain]


def _text(name: object) -> str:
    return str(name).rstrip(".").lower()


class NameTable:
    """Names that some pattern means, and until when each of their addresses counts."""

    def __init__(self) -> None:
        self._patterns: frozenset[str] = frozenset()
        self._until: dict[tuple[str, Address], float] = {}
        self._former: dict[tuple[str, Address], None] = {}

    @property
    def names(self) -> dict[str, frozenset[Address]]:
        return _by_name(self._until)

    @property
    def ever(self) -> dict[str, frozenset[Address]]:
        """With what has ended: what connections may stand to."""
        return _by_name([*self._until, *self._former])

    @property
    def next_end(self) -> float | None:
        """When the first address ends to count."""
        return min(self._until.values(), default=None)

    def want(self, patterns: Iterable[str]) -> bool:
        """The names that policies speak of; whether known ones fell away."""
        self._patterns = frozenset(patterns)
        for key in [key for key in self._former if not self.wanted(key[0])]:
            del self._former[key]
        return self._drop(name for name, _ in self._until if not self.wanted(name))

    def learn(self, answers: Iterable[Answer], now: float) -> bool:
        """Whether an address is new."""
        changed = False
        for answer in answers:
            if not self.wanted(answer.name):
                continue
            for address in answer.addresses:
                key = answer.name, address
                changed = changed or key not in self._until
                # What was told last goes to the end.
                until = max(self._until.pop(key, 0.0), now + answer.ttl_s + GRACE_S)
                self._until[key] = until
                self._former.pop(key, None)
        while len(self._until) > _MOST:
            del self._until[next(iter(self._until))]
        return changed

    def expire(self, now: float) -> bool:
        """Whether an address ended."""
        ended = [key for key, until in self._until.items() if until <= now]
        for key in ended:
            del self._until[key]
            self._former[key] = None
        while len(self._former) > _MOST:
            del self._former[next(iter(self._former))]
        return bool(ended)

    def wanted(self, name: str) -> bool:
        """Whether a policy speaks of it."""
        return any(matches_domain(pattern, name) for pattern in self._patterns)

    def _drop(self, names: Iterable[str]) -> bool:
        gone = set(names)
        for key in [key for key in self._until if key[0] in gone]:
            del self._until[key]
        return bool(gone)


def _by_name(keys: Iterable[tuple[str, Address]]) -> dict[str, frozenset[Address]]:
    found: dict[str, set[Address]] = {}
    for name, address in keys:
        found.setdefault(name, set()).add(address)
    return {name: frozenset(addresses) for name, addresses in found.items()}
