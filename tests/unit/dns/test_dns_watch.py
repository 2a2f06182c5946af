"""The watch behind the zone, over an API that is a list and a script of events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import dns.message
import dns.rcode
import msgspec
import pytest
from dns_worlds import UDP, cluster_ip, endpoint, headless, meta, pod, slice_of

from podwire.client import Api
from podwire.dns import views
from podwire.dns.answers import Answers
from podwire.dns.index import Changes, Index, PodMode, ZoneOptions
from podwire.dns.metrics import Metrics
from podwire.dns.records import Zone
from podwire.dns.watch import DnsWatch
from podwire.objects.meta import Kind, Object

NAME = "web.shop.svc.cluster.local."
MOMENT = 1_700_000_000.0


class ScriptedApi(Api):
    """What `Informer` needs of an API. Lists wait until `listed[plural]` is set."""

    def __init__(self, **objects: list[Object]) -> None:
        self._objects = objects
        self.listed = {plural: asyncio.Event() for plural in objects}
        self._events: dict[str, asyncio.Queue[bytes]] = {name: asyncio.Queue() for name in objects}

    async def list(self, kind: Kind[Any], namespace: str = "", **selectors: str) -> Any:
        await self.listed[kind.plural].wait()
        return self._objects[kind.plural], "1"

    async def watch_lines(  # type: ignore[override]
        self, kind: Kind[Any], resource_version: str, **more: Any
    ) -> AsyncIterator[list[bytes]]:
        while True:
            yield [await self._events[kind.plural].get()]
            self._events[kind.plural].task_done()

    def expire(self, plural: str) -> None:
        """End the watch as an API server does that has forgotten where it was."""
        self.listed[plural].clear()
        status = {"kind": "Status", "metadata": {}, "status": "Failure", "message": "too old",
                  "reason": "Expired", "code": 410}  # fmt: skip
        self._events[plural].put_nowait(msgspec.json.encode({"type": "ERROR", "object": status}))

    def garble(self, plural: str) -> None:
        self._events[plural].put_nowait(b'{"type":"MODIFIED","object":{"metadata":{"name":7}}}')

    def now(self, plural: str, *objects: Object) -> None:
        self._objects[plural] = list(objects)
        self.listed[plural].set()

    async def tell(self, plural: str, obj: Object, event: str = "MODIFIED") -> None:
        """Return when the watcher has dealt with it."""
        line = msgspec.json.encode({"type": event, "object": obj})
        self._events[plural].put_nowait(line)
        await asyncio.wait_for(self._events[plural].join(), 5)


def answers(options: ZoneOptions | None = None) -> Answers:
    return Answers(Zone(Index(options)))


def ask(at: Answers, name: str = NAME) -> dns.message.Message:
    response = at.answer(dns.message.make_query(name, "A").to_wire(), UDP)
    assert response
    return dns.message.from_wire(response)


def shop() -> views.Namespace:
    return views.Namespace(metadata=meta("shop"))


async def test_server_failure_until_all_is_listed() -> None:
    at = answers()
    api = ScriptedApi(
        services=[cluster_ip("shop", "web", "10.96.0.1")],
        namespaces=[shop()],
        endpointslices=[],
    )
    watch = DnsWatch(api, at)
    task = asyncio.ensure_future(watch.run())
    for plural in ("services", "namespaces", "endpointslices"):
        assert ask(at).rcode() == dns.rcode.SERVFAIL
        assert not watch.synced.is_set()
        api.listed[plural].set()
    await asyncio.wait_for(watch.synced.wait(), 5)
    assert ask(at).rcode() == dns.rcode.NOERROR
    task.cancel()


async def _watching(at: Answers, api: ScriptedApi, **more: Any) -> DnsWatch:
    for event in api.listed.values():
        event.set()
    watch = DnsWatch(api, at, **more)
    watch.task = asyncio.ensure_future(watch.run())  # type: ignore[attr-defined]
    await asyncio.wait_for(watch.synced.wait(), 5)
    return watch


async def test_an_event_is_in_the_next_answer_and_forgets_the_negative_one() -> None:
    at = answers()
    api = ScriptedApi(services=[], namespaces=[shop()], endpointslices=[])
    await _watching(at, api)
    assert ask(at).rcode() == dns.rcode.NXDOMAIN
    service = cluster_ip("shop", "web", "10.96.0.1")
    await api.tell("services", service, "ADDED")
    assert ask(at).answer[0][0].to_text() == "10.96.0.1"
    await api.tell("services", service, "DELETED")
    assert ask(at).rcode() == dns.rcode.NXDOMAIN


async def test_endpoints_come_and_go() -> None:
    at = answers()
    api = ScriptedApi(services=[headless("shop", "web")], namespaces=[shop()], endpointslices=[])
    await _watching(at, api)
    assert ask(at).rcode() == dns.rcode.NXDOMAIN
    await api.tell("endpointslices", slice_of("shop", "web", endpoint("10.1.0.1")), "ADDED")
    assert ask(at).rcode() == dns.rcode.NOERROR
    await api.tell("endpointslices", slice_of("shop", "web", endpoint("10.1.0.1", ready=False)))
    assert ask(at).rcode() == dns.rcode.NXDOMAIN


async def test_verified_pods_are_watched() -> None:
    at = answers(ZoneOptions(pods=PodMode.VERIFIED, endpoints=False))
    api = ScriptedApi(services=[], namespaces=[shop()], pods=[pod("shop", "a", "10.1.0.1")])
    await _watching(at, api)
    assert ask(at, "10-1-0-1.shop.pod.cluster.local.").answer
    await api.tell("pods", pod("shop", "a", "10.1.0.1", phase="Succeeded"))
    name = "10-1-0-1.shop.pod.cluster.local."
    assert ask(at, name).rcode() == dns.rcode.NXDOMAIN


async def test_dns_programming_latency_endpoints() -> None:
    at = answers()
    selecting = headless("shop", "web")
    spec = msgspec.structs.replace(selecting.spec, selector={"app": "web"})
    selecting = msgspec.structs.replace(selecting, spec=spec)
    api = ScriptedApi(services=[selecting], namespaces=[shop()], endpointslices=[])
    metrics = Metrics()
    await _watching(at, api, programmed=metrics.programmed, clock=lambda: MOMENT + 0.5)

    def dated(address: str, when: str) -> views.Slice:
        item = slice_of("shop", "web", endpoint(address))
        annotations = {views.TRIGGER_TIME_ANNOTATION: when}
        metadata = msgspec.structs.replace(item.metadata, annotations=annotations)
        return msgspec.structs.replace(item, metadata=metadata)

    when = "2023-11-14T22:13:20Z"  # MOMENT
    await api.tell("endpointslices", dated("10.1.0.1", when), "ADDED")
    assert ask(at).rcode() == dns.rcode.NOERROR
    # The same time again is an older change; no time is nobody's change.
    await api.tell("endpointslices", dated("10.1.0.2", when))
    await api.tell("endpointslices", slice_of("shop", "web", endpoint("10.1.0.3")))
    assert ask(at).answer[0][0].to_text() == "10.1.0.3"
    name = "coredns_kubernetes_dns_programming_duration_seconds"
    lines = [line.removeprefix(name) for line in metrics.render().splitlines()]
    assert '_sum{service_kind="headless_with_selector"} 0.5' in lines
    assert '_bucket{le="0.256",service_kind="headless_with_selector"} 0' in lines
    assert '_bucket{le="0.512",service_kind="headless_with_selector"} 1' in lines
    assert '_count{service_kind="headless_with_selector"} 1' in lines


async def test_after_an_expired_watch_what_changed_meanwhile_is_told() -> None:
    """A Status is no Pod: what it calls `status` is a word."""
    at = answers(ZoneOptions(pods=PodMode.VERIFIED))
    old, new = pod("shop", "a", "10.1.0.1"), pod("shop", "b", "10.1.0.2")
    web = cluster_ip("shop", "web", "10.96.0.1")
    api = ScriptedApi(services=[web], namespaces=[shop()], endpointslices=[], pods=[old])
    await _watching(at, api)
    told: asyncio.Queue[Changes] = asyncio.Queue()
    at.on_evict(told.put_nowait)
    names = [f"10-1-0-{n}.shop.pod.cluster.local." for n in (1, 2)]
    assert [ask(at, name).rcode() for name in names] == [dns.rcode.NOERROR, dns.rcode.NXDOMAIN]
    for plural in ("pods", "services"):
        api.expire(plural)
    api.now("pods", new)
    api.now("services", cluster_ip("shop", "web", "10.96.0.2"))
    for _ in ("the old pod", "the new one", "the Service"):
        await asyncio.wait_for(told.get(), 5)
    assert ask(at).answer[0][0].to_text() == "10.96.0.2"
    assert [ask(at, name).rcode() for name in names] == [dns.rcode.NXDOMAIN, dns.rcode.NOERROR]


async def test_slices_as_real_api_servers_write_them() -> None:
    """An empty list is null there (kubernetes#135968)."""
    at = answers()
    item = slice_of("shop", "web", endpoint("10.1.0.1"))
    api = ScriptedApi(
        services=[headless("shop", "web")], namespaces=[shop()], endpointslices=[item]
    )
    await _watching(at, api)
    assert ask(at).answer
    empty = {**msgspec.to_builtins(item), "endpoints": None, "ports": None}
    empty["metadata"]["resourceVersion"] = "9999"
    await api.tell("endpointslices", empty)  # type: ignore[arg-type]
    assert ask(at).rcode() == dns.rcode.NXDOMAIN


async def test_what_cannot_be_read_at_all_is_listed_again(caplog: pytest.LogCaptureFixture) -> None:
    at = answers()
    api = ScriptedApi(services=[], namespaces=[shop()], endpointslices=[])
    await _watching(at, api)
    changed = asyncio.Event()
    at.on_evict(lambda changes: changed.set())
    api.now("services", cluster_ip("shop", "web", "10.96.0.1"))
    api.garble("services")
    await asyncio.wait_for(changed.wait(), 5)
    assert ask(at).answer
    assert "what the API says is not read: Expected `str`, got `int`" in caplog.text
