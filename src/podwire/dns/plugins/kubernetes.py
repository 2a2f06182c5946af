"""`kubernetes`, seen from the chain: the fast answers, aliases to the outside, and falling through.

    FastAnswers.answer -> the response; NXDOMAIN in a zone of `fallthrough` -> the next plugin
    Aliases.alias      -> the CNAME of an ExternalName, whose target is then asked for and appended

Source: coredns plugin/kubernetes/handler.go, plugin/backend_lookup.go (A, AAAA, CNAME).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

import dns.rdatatype

from podwire.dns import config, packet
from podwire.dns.request import Failure, Handler, Reply, Request, decode, encode
from podwire.dns.seam import FastAnswers
from podwire.dns.zones import falls_through, in_zone

# Asks for another name on behalf of a request, from the top of the server.
Resolve = Callable[[Request], Awaitable[Reply]]


class Aliases(Protocol):
    """What is known of names whose answer ends outside of the cluster."""

    def alias(self, query: bytes) -> bytes | None:
        """The response with the CNAME alone; None: no such name is an alias."""


class Kubernetes:
    def __init__(
        self,
        settings: config.Kubernetes,
        fast: FastAnswers,
        aliases: Aliases | None,
        following: Handler,
        resolve: Resolve,
    ) -> None:
        self.zones = settings.zones
        self._fallthrough = settings.fallthrough
        self._fast = fast
        self._aliases = aliases
        self._following = following
        self._resolve = resolve

    def falls_through(self, name: str, response: bytes) -> bool:
        """Whether this response is another plugin's turn."""
        return packet.rcode(response) == packet.NXDOMAIN and falls_through(name, self._fallthrough)

    async def __call__(self, request: Request) -> Reply:
        if not any(in_zone(request.text, zone) for zone in self.zones):
            return await self._following(request)
        response = self._fast.answer(request.wire, request.client)
        if response is None and self._aliases is not None:
            alias = self._aliases.alias(request.wire)
            if alias is not None:
                return Reply(await self._chased(request, alias), "kubernetes", live=True)
        if response is None or self.falls_through(request.text, response):
            reply = await self._following(request)
            # That it fell through is today's state: see Reply.live.
            return reply
        return Reply(response, "kubernetes", live=True)

    async def _chased(self, request: Request, alias: bytes) -> bytes:
        """The CNAME with what its target has; SERVFAIL if the target cannot be asked for."""
        message = decode(alias, "kubernetes")
        target = next(
            (s[0].target for s in message.answer if s.rdtype == dns.rdatatype.CNAME), None
        )
        if target is None or request.question.qtype == packet.CNAME:
            return alias
        reply = await self._resolve(request.asking(target.to_wire()))
        if packet.rcode(reply.wire) not in (packet.NOERROR, packet.NXDOMAIN):
            raise Failure(
                packet.rcode(reply.wire), f"target {target} could not be resolved", "kubernetes"
            )
        found = decode(reply.wire, "kubernetes")
        message.answer.extend(found.answer)
        return encode(message, "kubernetes")
