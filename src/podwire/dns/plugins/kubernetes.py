"""`kubernetes`, seen from the chain: the fast answers, aliases to the outside, and falling through.

    FastAnswers.answer -> the response; NXDOMAIN in a zone of `fallthrough` -> the next plugin
                       -> None -> External: an ExternalName's CNAME, completed by asking for its
                          target from the top of the server; what is no alias -> the next plugin

Source: coredns plugin/kubernetes/handler.go, plugin/backend_lookup.go (A, AAAA, CNAME).
"""

from __future__ import annotations

from collections.abc import Callable

from podwire.dns import config, packet
from podwire.dns.request import Failure, Handler, Reply, Request
from podwire.dns.seam import Client, FastAnswers, SlowPath
from podwire.dns.zones import falls_through, in_zone

# Makes a slow path that completes aliases, and gives everything else to the one it is made with.
External = Callable[[SlowPath], SlowPath]


class _Inner:
    """Resolves targets from the top; the query itself is not an alias if it comes back here."""

    def __init__(self, query: bytes, top: SlowPath) -> None:
        self._query = query
        self._top = top
        self.came_back = False

    async def resolve(self, query: bytes, client: Client) -> bytes | None:
        if query is self._query:
            self.came_back = True
            return None
        return await self._top.resolve(query, client)


def _uncounted(qtype: int, response: bytes) -> None:
    pass


class Kubernetes:
    def __init__(
        self,
        settings: config.Kubernetes,
        fast: FastAnswers,
        external: External | None,
        following: Handler,
        top: SlowPath,
        take: Callable[[int, bytes], None] = _uncounted,
    ) -> None:
        self.zones = settings.zones
        self._fallthrough = settings.fallthrough
        self._fast = fast
        self._external = external
        self._following = following
        self._top = top
        self._take = take

    def falls_through(self, name: str, response: bytes) -> bool:
        """Whether this response is another plugin's turn."""
        return packet.rcode(response) == packet.NXDOMAIN and falls_through(name, self._fallthrough)

    async def __call__(self, request: Request) -> Reply:
        if not any(in_zone(request.text, zone) for zone in self.zones):
            return await self._following(request)
        response = self._fast.answer(request.wire, request.client)
        if response is None:
            response = await self._alias(request)
        elif not response:
            raise Failure(packet.FORMERR, "the query cannot be read", "kubernetes")
        else:
            self._take(request.question.qtype, response)
        if response is None or self.falls_through(request.text, response):
            return (await self._following(request))._replace(owned=True)
        return Reply(response, "kubernetes", live=True)

    async def _alias(self, request: Request) -> bytes | None:
        """The completed response to an alias; None where the name is none."""
        if self._external is None:
            return None
        inner = _Inner(request.wire, self._top)
        # As the client asks, and not all of them by TCP: an upstream may have none.
        response = await self._external(inner).resolve(request.wire, request.client)
        return None if inner.came_back else response
