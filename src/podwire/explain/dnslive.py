"""`dns explain`, asked: the pod's node sends the queries, the objects give the reasons."""

from __future__ import annotations

import asyncio

import msgspec

from podwire.client import Api
from podwire.errors import UsageError
from podwire.explain.dnsexplain import DnsExplanation, explain_dns, make_world
from podwire.explain.dnswire import DnsRequest, DnsResponse
from podwire.objects import kinds
from podwire.objects.meta import Key

# Three servers, five seconds each, twice, for every name of a long search list.
_TIMEOUT_S = 600.0


async def explain_live(
    api: Api, pod: Key, name: str, types: tuple[str, ...], domain: str = "cluster.local"
) -> DnsExplanation:
    """Raises `NotFoundError` for a pod that is not there, `UsageError` for one that runs nowhere
    or a name or type that is none."""
    found = await api.get(kinds.POD, pod.name, pod.namespace)
    node = found.spec.node_name
    if not node:
        raise UsageError(f"pod {pod}: is on no node yet; wait until it is scheduled")
    request = DnsRequest(source=str(pod), name=name, types=types)
    body, (services, _), (slices, _), (namespaces, _) = await asyncio.gather(
        api.request(
            "POST",
            f"/api/v1/nodes/{node}/proxy/dns",
            body=msgspec.json.encode(request),
            timeout_s=_TIMEOUT_S,
        ),
        api.list(kinds.SERVICE),
        api.list(kinds.ENDPOINT_SLICE),
        api.list(kinds.NAMESPACE),
    )
    response = msgspec.json.decode(body, type=DnsResponse)
    return explain_dns(str(pod), name, response, make_world(services, slices, namespaces, domain))
