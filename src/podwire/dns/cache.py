"""Answers of upstreams, kept for their TTL: a success and a denial cache. Pure; time is passed in.

    response -> Entry: the message cut at its TTLs -> ttl.join(pieces) with the client's ID and case

An entry is found by name (lower case), type, class, DO and CD. All its records have one TTL, the
least of the message within the configured bounds, counted down. What a change on the watch touches
is evicted at once, and an answer that was asked for before the change is not stored after it.
Source: coredns plugin/cache/{cache,handler,item}.go, plugin/pkg/{dnsutil/ttl,response/typify}.go.
"""

from __future__ import annotations

import math
import struct
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Final, Literal

from podwire.dns import config, packet
from podwire.dns.packet import Record
from podwire.dns.plugins.loadbalance import Run, find_run
from podwire.dns.request import name_from_text

MAX_TTL: Final = 3600
MIN_TTL: Final = 5
_TTL: Final = struct.Struct(">I")
# Upstream's cache has 256 shards of equal size.
_SHARDS: Final = 256
_CAPACITY_MIN: Final = 1024

Kind = Literal["success", "denial", "failure"]


def classify(message: bytes, found: Sequence[Record], qtype: int) -> Kind | None:
    """Which cache a response belongs into; None: into none."""
    bits = packet.flags(message)
    if bits & packet.TC or bits & packet.OPCODE or qtype in (packet.AXFR, packet.IXFR):
        return None
    rcode = packet.rcode(message)
    answers = [r for r in found if r.section == 1]
    if rcode == packet.NOERROR and any(r.rtype == qtype for r in answers):
        return "success"
    authority = {r.rtype for r in found if r.section == 2}
    if packet.SOA in authority and rcode in (packet.NOERROR, packet.NXDOMAIN):
        return "denial"
    if rcode in (packet.SERVFAIL, packet.NOTIMP):
        return "failure"
    if rcode == packet.NOERROR:
        # A CNAME without its target, a delegation, or nothing at all.
        return "success"
    return None


def least_ttl(message: bytes, found: Sequence[Record], kind: Kind) -> int:
    """The message's TTL; that of a denial is at most its SOA's minimum (RFC 2308 section 5)."""
    ttls = [r.ttl for r in found if r.rtype != packet.OPT]
    if not ttls:
        return MIN_TTL
    # A TTL with the highest bit set is 0 (RFC 2181 section 8).
    least = min(0 if ttl >> 31 else ttl for ttl in ttls)
    if kind == "denial":
        least = min([least, *_soa_minima(message, found)])
    return min(least, MAX_TTL)


def _soa_minima(message: bytes, found: Sequence[Record]) -> list[int]:
    return [
        int.from_bytes(message[r.end - 4 : r.end], "big")
        for r in found
        if r.section == 2 and r.rtype == packet.SOA and r.end - r.data >= 22
    ]


class Entry:
    """One response, cut where its TTLs are; times are the cache's seconds."""

    __slots__ = (
        "bits", "counts", "hits", "key", "kind", "last_s", "name", "pieces", "refreshing", "run",
        "stored_s", "ttl",
    )  # fmt: skip

    def __init__(
        self, key: bytes, name: bytes, message: bytes, found: Sequence[Record], kind: Kind
    ) -> None:
        self.key = key
        self.name = name
        self.kind: Kind = kind
        message = packet.without_opt(message, list(found))
        kept = [r for r in found if r.ttl_at < len(message)]
        end = 12 + len(name) + 4
        cuts = [r.ttl_at for r in kept if r.rtype != packet.OPT]
        starts = [end, *(at + 4 for at in cuts)]
        self.pieces = [message[a:b] for a, b in zip(starts, [*cuts, len(message)], strict=True)]
        self.bits = packet.flags(message)
        self.counts = message[4:12]
        self.run: Run | None = find_run(message, kept)
        self.ttl = 0
        self.stored_s = 0.0
        self.hits = 0
        self.last_s = 0.0
        self.refreshing = False

    def remaining(self, now: float) -> int:
        """Whole seconds; negative once it is stale."""
        return self.ttl - int(now - self.stored_s)

    def render(
        self, query: bytes, end: int, ttl: int, *, keep_ad: bool, more: int = packet.AA
    ) -> bytes:
        """The response to `query`, whose question ends at `end`; without an OPT record.

        AA is set as CoreDNS does, because some clients drop what is not authoritative.
        """
        bits = self.bits & ~(packet.RD | packet.CD) | packet.QR | more
        bits |= packet.flags(query) & (packet.RD | packet.CD)
        if not keep_ad:
            bits &= ~packet.AD
        return b"".join(
            (query[:2], bits.to_bytes(2, "big"), self.counts, query[12:end])
        ) + _TTL.pack(ttl).join(self.pieces)

    def popular(self, now: float, gap_s: float) -> int:
        """One more query: how many there were without a gap."""
        self.hits = self.hits + 1 if now - self.last_s <= gap_s else 1
        self.last_s = now
        return self.hits


class Ticket:
    """An answer being asked for; void once a change has touched its name."""

    __slots__ = ("key", "name", "void")

    def __init__(self, key: bytes, name: bytes) -> None:
        self.key = key
        self.name = name
        self.void = False


class Cache:
    """Both caches of one server block. `now` is any monotonic clock's seconds."""

    def __init__(self, settings: config.Cache) -> None:
        self.settings = settings
        self.success: OrderedDict[bytes, Entry] = OrderedDict()
        self.denial: OrderedDict[bytes, Entry] = OrderedDict()
        self._capacity = {
            id(self.success): _capacity(settings.success_capacity),
            id(self.denial): _capacity(settings.denial_capacity),
        }
        self._no_success = [name_from_text(zone) for zone in settings.disable_success]
        self._no_denial = [name_from_text(zone) for zone in settings.disable_denial]
        # Every name with entries at or below it -> their keys; the root is left out: it is all.
        self._below: dict[bytes, set[bytes]] = {}
        self._denials_at: dict[bytes, set[bytes]] = {}
        self._tickets: set[Ticket] = set()
        self.hits = {"success": 0, "denial": 0}
        self.misses = 0
        self.prefetches = 0
        self.stale = 0
        self.drops = 0
        self.evictions = {"success": 0, "denial": 0}
        self.evicted_names = 0

    def lookup(self, key: bytes, now: float) -> Entry | None:
        """A fresh entry, or a stale one where that is allowed; denials first, as upstream."""
        entry = self._usable(self.denial, key, now)
        if entry is not None:
            self.hits["denial"] += 1
            return entry
        entry = self._usable(self.success, key, now)
        if entry is not None:
            self.hits["success"] += 1
            return entry
        self.misses += 1
        return None

    def fresh(self, key: bytes, now: float) -> Entry | None:
        """One that needs no leave to be served; not counted as a look-up."""
        entry = self.denial.get(key) or self.success.get(key)
        return entry if entry is not None and entry.remaining(now) > 0 else None

    def _usable(self, table: OrderedDict[bytes, Entry], key: bytes, now: float) -> Entry | None:
        entry = table.get(key)
        if entry is None:
            return None
        left = entry.ttl - int(now - entry.stored_s)
        if left <= 0 and -left >= self.settings.stale_s:
            return None
        table.move_to_end(key)
        return entry

    def wants_prefetch(self, entry: Entry, now: float) -> bool:
        """Whether this hit should renew the entry behind the client's back."""
        prefetch = self.settings.prefetch
        if prefetch is None or entry.refreshing:
            return False
        popular = entry.popular(now, prefetch.gap_s) >= prefetch.amount
        threshold = math.ceil(prefetch.percentage / 100 * entry.ttl)
        return popular and entry.remaining(now) <= threshold

    def begin(self, key: bytes, name: bytes) -> Ticket:
        """To be taken before an upstream is asked, and given to `store` or `drop`."""
        ticket = Ticket(key, name)
        self._tickets.add(ticket)
        return ticket

    def drop(self, ticket: Ticket) -> None:
        self._tickets.discard(ticket)

    def store(self, ticket: Ticket, message: bytes, qtype: int, now: float) -> Entry | None:
        """Keep a response (if it may be kept); as its client sees it, None for unchanged.

        The message's question has to be the ticket's.
        """
        self._tickets.discard(ticket)
        end = 12 + len(ticket.name) + 4
        found = packet.records(message, end)
        if found is None or any(r.rtype == packet.OPT for r in found[:-1]):
            self.drops += 1
            return None
        kind = classify(message, found, qtype)
        if kind is None:
            return None
        entry = Entry(ticket.key, ticket.name, message, found, kind)
        entry.ttl = self._bounded(least_ttl(message, found, kind), kind)
        entry.stored_s = now
        if entry.ttl > 0 and not ticket.void and self._kept(entry, now):
            self._insert(entry)
        return entry

    def _bounded(self, ttl: int, kind: Kind) -> int:
        settings = self.settings
        if kind == "failure":
            return int(settings.servfail_s)
        if kind == "denial":
            return min(max(ttl, settings.denial_min_ttl), settings.denial_ttl)
        return min(max(ttl, settings.success_min_ttl), settings.success_ttl)

    def _kept(self, entry: Entry, now: float) -> bool:
        # An upstream that fails does not take away what can still be served (RFC 8767 section 5).
        if entry.kind == "failure" and self._usable(self.success, entry.key, now):
            return False
        zones = self._no_success if entry.kind == "success" else self._no_denial
        return not zones or not set(packet.parents(entry.name)).intersection(zones)

    def _insert(self, entry: Entry) -> None:
        table = self.success if entry.kind == "success" else self.denial
        old = self._remove(table, entry.key)
        if old is not None:
            entry.hits, entry.last_s = old.hits, old.last_s
        # The other answer was right before, and must not come back when this one is over.
        if entry.kind != "failure":
            self._remove(self.denial if table is self.success else self.success, entry.key)
        table[entry.key] = entry
        if table is self.denial:
            self._denials_at.setdefault(entry.name, set()).add(entry.key)
        for name in packet.parents(entry.name)[:-1]:
            self._below.setdefault(name, set()).add(entry.key)
        if len(table) > self._capacity[id(table)]:
            self._remove(table, next(iter(table)))
            self.evictions["success" if table is self.success else "denial"] += 1

    def _remove(self, table: OrderedDict[bytes, Entry], key: bytes) -> Entry | None:
        entry = table.pop(key, None)
        if entry is None:
            return None
        if table is self.denial:
            _discard(self._denials_at, entry.name, key)
        if key not in self.success and key not in self.denial:
            for name in packet.parents(entry.name)[:-1]:
                _discard(self._below, name, key)
        return entry

    def evict(self, names: Iterable[bytes]) -> int:
        """Forget what changed names may have made wrong; how many entries that were.

        `names` are lower-case wire form. All entries at and below a name go; above it, the
        denials, because a name that comes or goes makes those above it exist or not.
        """
        changed = set(names)
        if b"\0" in changed:
            return self.clear()
        gone = 0
        above: set[bytes] = set()
        for name in changed:
            for key in tuple(self._below.get(name, ())):
                gone += self._forget(key)
            above.update(packet.parents(name)[1:-1])
        for name in above:
            for key in tuple(self._denials_at.get(name, ())):
                gone += self._remove(self.denial, key) is not None
        self._void(changed, above)
        self.evicted_names += len(changed)
        return gone

    def _forget(self, key: bytes) -> int:
        removed = (self._remove(self.success, key), self._remove(self.denial, key))
        return sum(entry is not None for entry in removed)

    def _void(self, changed: set[bytes], above: set[bytes]) -> None:
        for ticket in self._tickets:
            if ticket.name in above or not changed.isdisjoint(packet.parents(ticket.name)):
                ticket.void = True

    def clear(self) -> int:
        gone = len(self.success) + len(self.denial)
        self.success.clear()
        self.denial.clear()
        self._below.clear()
        self._denials_at.clear()
        for ticket in self._tickets:
            ticket.void = True
        return gone


def _discard(index: dict[bytes, set[bytes]], name: bytes, key: bytes) -> None:
    keys = index.get(name)
    if keys is not None:
        keys.discard(key)
        if not keys:
            del index[name]


def _capacity(wanted: int) -> int:
    return max(wanted // _SHARDS * _SHARDS, _CAPACITY_MIN)


def cache_key(name: bytes, rest: bytes, *, dnssec: bool, checking_disabled: bool) -> bytes:
    """`rest` are the question's type and class as they stand in the query."""
    return name + rest + _FLAGS[dnssec + 2 * checking_disabled]


_FLAGS: Final = (b"\0", b"\1", b"\2", b"\3")
