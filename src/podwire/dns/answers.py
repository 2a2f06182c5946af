"""Responses encoded once per question and kept until what they were derived from changes.

query[2:] -> hot | cold -> response[2:]      one look-up: flags, question and OPT are all in the key
otherwise -> parse -> Zone.lookup -> encode -> keep -> response

A query that repeats is answered by one dictionary look-up and one concatenation: its own identifier
before the kept bytes. Questions there are only as many of as there are objects are kept in `hot`;
those anybody can invent (unknown names, insecure pods) in `cold`, so that a flood of them pushes
out only each other. What a datagram has no room for is kept in `wide` for TCP, which is asked for
it because of that. All forget everything when they are full, and what a change names at once.

Two spellings of a name share nothing here: one not in lower case is encoded each time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import dns.opcode
import dns.rcode
import dns.rdatatype

from podwire.dns import packet, rdatas, wire
from podwire.dns.index import Changes
from podwire.dns.names import Labels, parse_wire
from podwire.dns.rdatas import Record
from podwire.dns.records import Answer, Zone
from podwire.dns.seam import Client
from podwire.dns.wire import MalformedError, Query, Reply

DROP = b""
_HOT_BYTES, _COLD_BYTES, _WIDE_BYTES = 64 << 20, 16 << 20, 16 << 20
_ENTRY_BYTES = 400  # key and value objects, dictionary slots, the owner's set
_TRANSFERS = (dns.rdatatype.AXFR, dns.rdatatype.IXFR)

Counter = list[int]
"""One number, shared by all entries of a kind: the hot path counts without a look-up."""


class Rotation:
    """The same response with its addresses starting one further each time (round robin)."""

    __slots__ = ("_at", "_block", "_head", "_length", "_rest", "_size")

    def __init__(self, encoded: wire.Encoded) -> None:
        place = encoded.rotating
        assert place is not None
        tail = encoded.tail
        self._head, self._rest = tail[: place.start], tail[place.end :]
        self._length = place.end - place.start
        self._block = encoded.wide or tail[place.start : place.end]
        self._size = place.size
        self._at = 0

    def next(self) -> bytes:
        at, block = self._at, self._block
        self._at = (at + self._size) % len(block)
        turned = block[at:] + block[:at]
        return self._head + turned[: self._length] + self._rest


Entry = tuple[bytes, Counter, Rotation | None, bool]
"""What follows the identifier, what to count, what makes the next such bytes if they turn, and
whether that is all there is to say: it may be for a datagram only."""


class _Kept:
    """Entries by key, and the keys by the subtrees they depend on."""

    def __init__(self, limit_bytes: int) -> None:
        self.entries: dict[bytes, Entry] = {}
        self._owned: dict[bytes, set[bytes]] = {}
        # The subtrees of what depends on several: an alias, and where it leads.
        self._shared: dict[bytes, frozenset[bytes]] = {}
        self._limit = self._room = limit_bytes

    def put(self, key: bytes, entry: Entry, roots: frozenset[bytes]) -> None:
        size = len(key) + 2 * len(entry[0]) + _ENTRY_BYTES
        if size > self._room:
            self.clear()
        self._room -= size
        self.entries[key] = entry
        for root in roots:
            self._owned.setdefault(root, set()).add(key)
        if len(roots) > 1:
            self._shared[key] = roots

    def evict(self, roots: Iterable[bytes]) -> None:
        for root in roots:
            for key in self._owned.pop(root, ()):
                gone = self.entries.pop(key)
                self._room += len(key) + 2 * len(gone[0]) + _ENTRY_BYTES
                for other in self._shared.pop(key, frozenset()) - {root}:
                    self._disown(other, key)

    def _disown(self, root: bytes, key: bytes) -> None:
        keys = self._owned[root]
        keys.remove(key)
        if not keys:
            del self._owned[root]

    def clear(self) -> None:
        # The server holds on to these very dictionaries.
        self.entries.clear()
        self._owned.clear()
        self._shared.clear()
        self._room = self._limit


class Answers:
    """`FastAnswers` over a zone. `synced` is False until the zone is whole: SERVFAIL till then.

    `max_udp`: the largest UDP response sent, whatever the client says it can take, and what our
    OPT says of us. `rotate`: addresses take turns at being first.
    """

    def __init__(self, zone: Zone, *, max_udp: int = packet.OWN_SIZE, rotate: bool = True) -> None:
        self.zone = zone
        self.max_udp = max_udp
        self.synced = False
        self._rotate = rotate
        self._hot, self._cold, self._wide = map(_Kept, (_HOT_BYTES, _COLD_BYTES, _WIDE_BYTES))
        self.hot, self.cold = self._hot.entries, self._cold.entries
        self.counts: dict[tuple[str, str], Counter] = {}
        self._soas: dict[tuple[Labels, int], bytes] = {}
        self._soa_serial = 0
        self._listeners: list[Callable[[Changes], None]] = []

    # --- changes ------------------------------------------------------------------------------

    def on_evict(self, listener: Callable[[Changes], None]) -> None:
        """Other caches: called with what changed, after our own entries are gone."""
        self._listeners.append(listener)

    def evict(self, changes: Changes) -> None:
        """Forget what `changes` touches, before the next query is looked at."""
        if not changes:
            return
        for kept in (self._hot, self._cold, self._wide):
            if changes.everything:
                kept.clear()
            else:
                kept.evict(changes.subtrees)
        for listener in self._listeners:
            listener(changes)

    def mark_synced(self) -> None:
        self.synced = True
        self.evict(Changes(everything=True))

    # --- questions ----------------------------------------------------------------------------

    def owns(self, qname: bytes) -> bool:
        return self.zone.owns(qname)

    def answer(self, query: bytes, client: Client) -> bytes | None:
        """The response; `DROP` for what gets none, None for what the slow path answers."""
        key = query[2:]
        entry = self.hot.get(key) or self.cold.get(key)
        if client.tcp and (entry is None or not entry[3]):
            entry = self._wide.entries.get(key)
        if entry is not None:
            tail, count, rotation, _ = entry
            count[0] += 1
            return query[:2] + (tail if rotation is None else rotation.next())
        return self._derive(query, client.tcp)

    def _derive(self, data: bytes, tcp: bool) -> bytes | None:
        if len(data) < packet.HEADER.size:
            return DROP
        flags = int.from_bytes(data[2:4], "big")
        if flags & packet.QR:
            return DROP
        if flags & packet.OPCODE:
            return self._refuse(data, dns.rcode.NOTIMP, None)
        try:
            query = wire.parse_query(data)
        except MalformedError:
            return self._refuse(data, dns.rcode.FORMERR, None)
        return self._answer_query(data, query, tcp)

    def _answer_query(self, data: bytes, query: Query, tcp: bool) -> bytes | None:
        if query.edns and query.edns.version:
            return self._refuse(data, dns.rcode.BADVERS, query)
        if query.rclass != wire.CLASS_IN:
            return self._refuse(data, dns.rcode.REFUSED, query)
        labels = query.labels
        zone = self.zone.zone_of(labels)
        if zone is None:
            return None
        if query.rtype in _TRANSFERS:
            return self._refuse(data, dns.rcode.REFUSED, query)
        if not self.synced:
            answer = Answer(zone, dns.rcode.SERVFAIL)
        else:
            found = self.zone.lookup(labels, query.rtype)
            assert found is not None
            answer = found
        if answer.external is not None or self._falls_through(answer, labels):
            return None
        return data[:2] + self._encode(data, query, answer, tcp)

    def _falls_through(self, answer: Answer, labels: Labels) -> bool:
        return (
            answer.rcode == dns.rcode.NXDOMAIN
            and not answer.records
            and self.zone.falls_through(labels)
        )

    def _encode(self, data: bytes, query: Query, answer: Answer, tcp: bool) -> bytes:
        limit = query.limit(tcp, self.max_udp)
        if answer.records or answer.additional:
            encoded = wire.encode(query, self.reply(query, answer), limit, self.max_udp)
        else:
            encoded = self._negative(query, answer)
        count = self._counter(query.rtype, answer.rcode)
        count[0] += 1
        turns = self._rotate and encoded.rotating is not None
        entry = (encoded.tail, count, Rotation(encoded) if turns else None, encoded.whole)
        self._keep(data, query, answer, entry)
        return entry[0] if entry[2] is None else entry[2].next()

    def _keep(self, data: bytes, query: Query, answer: Answer, entry: Entry) -> None:
        """By TCP or not: what fits a datagram whole is the same by both."""
        plain = query.exact and query.raw_name == query.name
        if not plain or not answer.roots or (query.edns and query.edns.options):
            return
        if len(entry[0]) + 2 > query.limit(False, self.max_udp):
            kept = self._wide
        else:
            kept = self._hot if answer.bounded and query.rtype < 256 else self._cold
        kept.put(data[2:], entry, answer.roots)

    def _negative(self, query: Query, answer: Answer) -> wire.Encoded:
        """Names nobody has are asked for most and first: their SOA differs only by where in the
        question the zone's name begins, and is encoded once for each such place."""
        serial = self.zone.index.serial
        if serial != self._soa_serial:
            self._soas.clear()
            self._soa_serial = serial
        place = (answer.zone, len(query.raw_name))
        soa = self._soas.get(place)
        if soa is None:
            bare = replace(query, edns=None)
            tail = wire.encode(bare, self.reply(bare, answer), wire.MAX_TCP, self.max_udp).tail
            soa = self._soas[place] = tail[packet.HEADER.size - 2 + len(query.question) :]
        return wire.encode_negative(query, answer.rcode, soa, self.max_udp)

    def reply(self, query: Query, answer: Answer) -> Reply:
        """The sections of a response: a negative one has the zone's SOA."""
        soa = (self.zone.soa(answer.zone),)
        negative = answer.negative or _ends_in_alias(answer, query.rtype)
        spelt = parse_wire(query.raw_name)[-len(answer.zone) or len(query.raw_name) :]

        def as_asked(records: tuple[Record, ...]) -> Sequence[Record]:
            if spelt == answer.zone:
                return records
            return [
                record._replace(rdata=rdatas.recased(record.rdata, spelt)) for record in records
            ]

        return Reply(
            answer.rcode,
            as_asked(answer.records),
            soa if negative else (),
            as_asked(answer.additional),
        )

    def _refuse(self, data: bytes, rcode: dns.rcode.Rcode, query: Query | None) -> bytes:
        self._counter(query.rtype if query else 0, rcode)[0] += 1
        return wire.refusal(data, rcode, query, self.max_udp)

    def _counter(self, rtype: int, rcode: dns.rcode.Rcode) -> Counter:
        """Types nobody uses share a counter: the metric must not grow by what clients invent."""
        named = rtype in dns.rdatatype.RdataType._value2member_map_
        name = dns.rdatatype.to_text(dns.rdatatype.RdataType(rtype)) if named else "other"
        return self.counts.setdefault((name, dns.rcode.to_text(rcode)), [0])


def _ends_in_alias(answer: Answer, rtype: int) -> bool:
    """A chain whose end has no such record: the SOA says that this was looked for (RFC 2308 2)."""
    if not answer.records or rtype in (dns.rdatatype.CNAME, dns.rdatatype.ANY):
        return False
    return rdatas.alias_target(answer.records[-1].rdata) is not None


def truncated(query: bytes) -> bytes | None:
    """An empty response with TC: ask again by TCP. None where the query cannot be read."""
    try:
        parsed = wire.parse_query(query)
    except MalformedError:
        return None
    flags = wire.response_flags(parsed.flags, 0, authoritative=False) | packet.TC
    opt = wire.opt_record(parsed.edns, packet.OWN_SIZE) if parsed.edns else b""
    head = packet.HEADER.pack(int.from_bytes(query[:2], "big"), flags, 1, 0, 0, 1 if opt else 0)
    return head + parsed.question + opt
