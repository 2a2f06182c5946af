"""`autopath`: the client's search list, walked here instead of there.

    example.org.shop.svc.cluster.local. A from a pod of shop, which does not exist ->
        example.org.svc.cluster.local. -> example.org.cluster.local. -> example.org. ->
        example.org.shop.svc.cluster.local. CNAME example.org., and its addresses

Who asks is told from the address by the watch on Pods, so the list is that of the pod's own
namespace. If nothing is found the first answer is given, and the client goes on by itself.
Source: coredns plugin/autopath/{autopath,cname}.go, plugin/kubernetes/autopath.go.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import dns.name
import dns.rdataclass
import dns.rdatatype
import dns.rrset

from podwire.dns import config, packet
from podwire.dns.metrics import Metrics
from podwire.dns.request import Failure, Handler, Reply, Request, decode, encode, name_from_text
from podwire.dns.zones import in_zone

# Search list of the pod with this address, the root ("") last; None for who is no pod.
SearchOf = Callable[[str], Sequence[str] | None]


def search_list(namespace: str, zone: str, more: Sequence[str] = ()) -> list[str]:
    """What kubelet writes for a ClusterFirst pod, then what its node's resolv.conf has."""
    zone = zone.rstrip(".")
    return [f"{namespace}.svc.{zone}.", f"svc.{zone}.", f"{zone}.", *more, ""]


class Autopath:
    def __init__(
        self,
        settings: config.Autopath,
        following: Handler,
        search_of: SearchOf,
        metrics: Metrics,
        server: str = "dns://:53",
    ) -> None:
        self._zones = settings.zones
        self._following = following
        self._search_of = search_of
        self._metrics = metrics
        self._server = server

    def base(self, name: str, address: str) -> tuple[bytes, Sequence[str]] | None:
        """What was meant by a name that ends in the client's first search element."""
        if not any(in_zone(name, zone) for zone in self._zones):
            return None
        search = self._search_of(address)
        if not search or not in_zone(name, search[0]) or name == search[0]:
            return None
        return name_from_text(name[: -len(search[0])])[:-1], search

    async def __call__(self, request: Request) -> Reply:
        found = self.base(request.text, request.client.address)
        if found is None:
            return await self._following(request)
        base, search = found
        first: Reply | None = None
        live = False
        for element in search:
            try:
                asked = request.asking(base + name_from_text(element or "."))
            except ValueError:
                continue  # longer than a name can be
            reply = await self._following(asked)
            live = live or reply.live or reply.owned
            first = first or reply
            if packet.rcode(reply.wire) != packet.NXDOMAIN:
                if reply is not first:
                    self._metrics.add("coredns_autopath_success_total", server=self._server)
                # What this answer skipped was live: it is right only now.
                return Reply(aliased(reply.wire, request), reply.plugin, live)
        if first is None:
            raise Failure(packet.SERVFAIL, "no name of the search list is legal", "autopath")
        # Its question is in lower case, and the client's may not be.
        return first._replace(wire=aliased(first.wire, request))


def aliased(wire: bytes, request: Request) -> bytes:
    """The answer to another name, under the name of the request: a CNAME leads there."""
    message = decode(wire, "autopath")
    original = dns.name.from_wire(request.wire, 12)[0]
    asked = message.question[0].name
    message.question[0].name = original
    if asked != original and message.answer and all(s.name != original for s in message.answer):
        ttl = min(s.ttl for s in message.answer)
        target = asked.to_text()
        alias = dns.rrset.from_text(original, ttl, dns.rdataclass.IN, dns.rdatatype.CNAME, target)
        message.answer.insert(0, alias)
    return encode(message, "autopath")
