"""ExternalName Services that lead out of the cluster: the alias, and what it stands for outside.

query -> Zone.lookup: CNAME to an external name -> inner.resolve(that name) -> CNAME + its records

Stub resolvers do not follow aliases themselves: they expect the whole chain in one response.
"""

from __future__ import annotations

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset

from podwire.dns import wire
from podwire.dns.answers import Answers
from podwire.dns.rdatas import Record
from podwire.dns.records import Answer
from podwire.dns.seam import Client, SlowPath
from podwire.dns.wire import MalformedError, Query, Reply

_ASKED_SIZE = 4096  # what is asked for inside this process; the client's own limit cuts it later


class ExternalNames:
    """A `SlowPath` before another: completes aliases, and passes everything else on."""

    def __init__(self, answers: Answers, inner: SlowPath) -> None:
        self._answers = answers
        self._inner = inner

    async def resolve(self, query: bytes, client: Client) -> bytes | None:
        alias = self._alias(query)
        if alias is None:
            return await self._inner.resolve(query, client)
        parsed, answer, target = alias
        rtype = dns.rdatatype.RdataType.make(parsed.rtype)
        asked = dns.message.make_query(target, rtype, use_edns=0, payload=_ASKED_SIZE)
        asked.id = int.from_bytes(query[:2], "big")
        response = await self._inner.resolve(asked.to_wire(), client)
        reply = _completed(self._answers.reply(parsed, answer), response)
        encoded = wire.encode(
            parsed,
            reply,
            parsed.limit(client.tcp, self._answers.max_udp),
            self._answers.max_udp,
        )
        return query[:2] + encoded.tail

    def _alias(self, data: bytes) -> tuple[Query, Answer, dns.name.Name] | None:
        if not self._answers.synced:
            return None
        try:
            query = wire.parse_query(data)
        except MalformedError:
            return None
        answer = self._answers.zone.lookup(query.labels, query.rtype)
        if answer is None or answer.external is None or query.rclass != wire.CLASS_IN:
            return None
        return query, answer, answer.external


def _completed(reply: Reply, response: bytes | None) -> Reply:
    """The alias with what the outside said of its target; SERVFAIL where it said nothing of use."""
    failed = Reply(dns.rcode.SERVFAIL)
    if response is None:
        return failed
    try:
        message = dns.message.from_wire(response, raise_on_truncation=False)
    except dns.exception.DNSException:
        return failed
    if message.rcode() not in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN):
        return failed
    return Reply(
        message.rcode(),
        [*reply.answers, *_records(message.answer)],
        _records(message.authority),
        truncated=bool(message.flags & dns.flags.TC),
    )


def _records(section: list[dns.rrset.RRset]) -> list[Record]:
    return [Record(rrset.name, rrset.ttl, rdata) for rrset in section for rdata in rrset]
