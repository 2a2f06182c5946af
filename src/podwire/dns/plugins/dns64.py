"""`dns64`: AAAA records made of A records, for clients behind NAT64.

Source: coredns plugin/dns64/dns64.go, RFC 6147, RFC 6052 section 2.2.
"""

from __future__ import annotations

import ipaddress

import dns.rdatatype
import dns.rrset

from podwire.dns import config, packet
from podwire.dns.metrics import Metrics
from podwire.dns.request import Handler, Reply, Request, decode, encode


class Dns64:
    def __init__(
        self,
        settings: config.Dns64,
        following: Handler,
        metrics: Metrics,
        server: str = "dns://:53",
    ) -> None:
        self._settings = settings
        self._prefix = ipaddress.IPv6Network(settings.prefix)
        self._following = following
        self._metrics = metrics
        self._server = server

    def applies(self, request: Request) -> bool:
        if request.question.qtype != packet.AAAA or request.question.qclass != 1:
            return False
        if request.wire[3] & packet.CD:
            return False  # who checks signatures itself must see what was signed
        return self._settings.allow_ipv4 or ":" in request.client.address

    async def __call__(self, request: Request) -> Reply:
        reply = await self._following(request)
        if not self.applies(request) or not self._wanted(request, reply):
            return reply
        other = await self._following(request.asking(qtype=packet.A))
        made = decode(other.wire, "dns64")
        if not any(s.rdtype == dns.rdatatype.A for s in made.answer):
            return reply
        self._metrics.add("coredns_dns64_requests_translated_total", server=self._server)
        message = decode(reply.wire, "dns64")
        message.set_rcode(dns.rcode.NOERROR)
        message.authority = []
        message.answer = [self._translated(s) for s in made.answer]
        return Reply(encode(message, "dns64"), "dns64", reply.live or other.live)

    def _wanted(self, request: Request, reply: Reply) -> bool:
        if packet.rcode(reply.wire) == packet.NXDOMAIN:
            return False
        if self._settings.translate_all:
            return True
        found = packet.records(reply.wire, request.question.end) or []
        return not any(r.section == 1 and r.rtype == packet.AAAA for r in found)

    def _translated(self, rrset: dns.rrset.RRset) -> dns.rrset.RRset:
        if rrset.rdtype != dns.rdatatype.A:
            return rrset
        address = embed(ipaddress.IPv4Address(rrset[0].address), self._prefix)
        return dns.rrset.from_text(rrset.name, rrset.ttl, "IN", "AAAA", str(address))


def embed(v4: ipaddress.IPv4Address, prefix: ipaddress.IPv6Network) -> ipaddress.IPv6Address:
    """RFC 6052: the address behind the prefix, around the reserved bits 64 to 71."""
    octets = bytearray(prefix.network_address.packed)
    at = prefix.prefixlen // 8
    for byte in v4.packed:
        if at == 8:
            at += 1
        octets[at] = byte
        at += 1
    return ipaddress.IPv6Address(bytes(octets))
