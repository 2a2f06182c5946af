"""What an Announcer makes of Services, slices and nodes: which address, from where, and when."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace
from service_worlds import make_service, make_slice
from virtual_time import run

from podwire.agents.announcer import Announcer, Wanted
from podwire.agents.progressing import Watchers
from podwire.client import Api, Change, Endpoint, Informer
from podwire.errors import KernelError
from podwire.objects import kinds
from podwire.objects.core import Node, Service
from podwire.objects.discovery import SERVICE_NAME_LABEL, EndpointSlice
from podwire.objects.meta import Key, T
from podwire.services.election import Member
from podwire.services.pools import Address, make_pools

VIP, SIX = ip_address("172.30.0.200"), ip_address("fd00:30::200")
POOLS = make_pools(["172.30.0.200-172.30.0.250", "fd00:30::200-fd00:30::250"], [])
LOCAL = {"externalTrafficPolicy": "Local"}


class Feed(Informer[T]):
    """An informer that hears what the test says."""

    def say(self, obj: T) -> None:
        key = obj.key
        old, self._objects[key] = self._objects.get(key), obj
        self._notify(Change(old, obj))

    def drop(self, key: Key) -> None:
        self._notify(Change(self._objects.pop(key), None))


def feed(kind: Any) -> Any:
    made: Feed[Any] = Feed(Api(Endpoint(unix_socket=Path("/run/nobody.sock"))), kind)
    made.synced.set()
    return made


class Served:
    """A node's Services, in the kernel unless `behind` names them."""

    def __init__(self) -> None:
        self.synced = asyncio.Event()
        self.services: Feed[Service] = feed(kinds.SERVICE)
        self.slices: Feed[EndpointSlice] = feed(kinds.ENDPOINT_SLICE)
        self.pools = POOLS
        self.watchers = Watchers()
        self.behind: set[str] = set()

    def slices_of(self, service: Key) -> list[EndpointSlice]:
        return [
            piece for piece in self.slices.objects.values() if piece.service_name == service.name
        ]

    def serves(self, service: Service, addresses: Iterable[Address]) -> bool:
        return service.metadata.name not in self.behind


class Told:
    """An `Announcement`."""

    def __init__(self) -> None:
        self.announced: frozenset[Address] = frozenset()
        self.wanted: Wanted = {}
        self.members: Mapping[str, Member] = {}
        self.times = 0
        self.refusing = False

    async def run(self) -> None:
        await asyncio.Event().wait()

    def set(self, wanted: Wanted, members: Mapping[str, Member]) -> None:
        self.times += 1
        if self.refusing:
            raise KernelError("announce: refused")
        self.wanted, self.members = wanted, members
        self.announced = frozenset(wanted)

    def close(self) -> None: ...


class Room:
    def __init__(self) -> None:
        self.served = Served()
        self.nodes: Feed[Node] = feed(kinds.NODE)
        self.told = Told()
        self.announcer = Announcer(self.served, self.nodes, self.told)
        self.served.synced.set()


@asynccontextmanager
async def announcing() -> AsyncIterator[Room]:
    room = Room()
    task = asyncio.ensure_future(room.announcer.run())
    await settle()
    try:
        yield room
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def settle() -> None:
    await asyncio.sleep(0.1)


def balanced(name: str = "web", *addresses: Address, **spec: Any) -> Service:
    ingress = [{"ip": str(a), "ipMode": "VIP"} for a in addresses or (VIP,)]
    return make_service(name, type="LoadBalancer", ingress=ingress, **spec)


def on(*nodes: str, service: str = "web", name: str = "web-1") -> EndpointSlice:
    piece = make_slice(
        *({"ip": f"10.244.1.{i}", "node": node} for i, node in enumerate(nodes, 2)), name=name
    )
    piece.metadata.labels[SERVICE_NAME_LABEL] = service
    return piece


def node(name: str, address: str, **more: Any) -> Node:
    status = {
        "addresses": [{"type": "InternalIP", "address": address}],
        "conditions": [{"type": "Ready", "status": "True"}],
    }
    return msgspec.convert({"metadata": {"name": name, **more}, "status": status}, Node)


def test_both_families_are_announced_and_taken_back() -> None:
    async def body() -> None:
        async with announcing() as room:
            room.served.services.say(balanced("web", VIP, SIX))
            room.served.services.say(balanced("cloud", VIP, loadBalancerClass="example.com/other"))
            await settle()
            assert room.told.wanted == {VIP: None, SIX: None}
            room.served.services.say(make_service())
            await settle()
            assert room.told.wanted == {}

    run(body())


def test_an_address_that_is_nobodys_pool_is_not_ours() -> None:
    async def body() -> None:
        async with announcing() as room:
            room.served.services.say(balanced("web", ip_address("192.0.2.1")))
            await settle()
            assert room.told.wanted == {}

    run(body())


def test_what_is_not_in_the_kernel_waits_for_it() -> None:
    async def body() -> None:
        async with announcing() as room:
            room.served.behind.add("web")
            room.served.services.say(balanced())
            await settle()
            assert room.told.wanted == {}
            room.served.behind.clear()
            room.served.watchers.moved()
            await settle()
            assert room.told.wanted == {VIP: None}
            times = room.told.times
            room.served.watchers.moved()
            await settle()
            assert room.told.times == times

    run(body())


def test_with_policy_local_endpoints_say_where() -> None:
    async def body() -> None:
        async with announcing() as room:
            room.served.services.say(balanced(**LOCAL))
            await settle()
            assert room.told.wanted == {VIP: None}
            room.served.slices.say(on("node-2"))
            await settle()
            assert room.told.wanted == {VIP: frozenset({"node-2"})}
            room.served.slices.say(on("node-2", "node-3"))
            await settle()
            assert room.told.wanted == {VIP: frozenset({"node-2", "node-3"})}
            room.served.slices.drop(Key("ns1", "web-1"))
            await settle()
            assert room.told.wanted == {VIP: None}

    run(body())


def test_a_slice_that_goes_over_to_another_service_says_no_more() -> None:
    async def body() -> None:
        async with announcing() as room:
            room.served.services.say(balanced(**LOCAL))
            room.served.slices.say(on("node-2"))
            room.served.slices.say(on("node-3", name="web-2"))
            await settle()
            assert room.told.wanted == {VIP: frozenset({"node-2", "node-3"})}
            room.served.slices.say(on("node-2", service="other"))
            await settle()
            assert room.told.wanted == {VIP: frozenset({"node-3"})}

    run(body())


def test_of_two_that_share_an_address_both_say_where() -> None:
    async def body() -> None:
        async with announcing() as room:
            room.served.services.say(balanced(**LOCAL))
            room.served.services.say(balanced("other", clusterIP="10.96.0.2", **LOCAL))
            room.served.slices.say(on("node-1", "node-2"))
            room.served.slices.say(on("node-2", "node-3", service="other", name="other-1"))
            await settle()
            assert room.told.wanted == {VIP: frozenset({"node-2"})}
            room.served.services.drop(Key("ns1", "other"))
            await settle()
            assert room.told.wanted == {VIP: frozenset({"node-1", "node-2"})}

    run(body())


def test_endpoints_of_policy_cluster_wake_nobody() -> None:
    async def body() -> None:
        async with announcing() as room:
            room.served.services.say(balanced())
            await settle()
            times = room.told.times
            room.served.slices.say(on("node-2"))
            await settle()
            assert room.told.times == times

    run(body())


def test_nodes_come_late_and_leave() -> None:
    async def body() -> None:
        async with announcing() as room:
            room.served.services.say(balanced())
            one, six = node("node-1", "172.30.0.2"), node("node-2", "fd00:30::2")
            for each in (one, six, node("node-3", "not an address")):
                room.nodes.say(each)
            await settle()
            assert room.told.members == {
                "node-1": Member(ip_address("172.30.0.2")),
                "node-2": Member(ip_address("fd00:30::2")),
            }
            labels = {"node.kubernetes.io/exclude-from-external-load-balancers": ""}
            room.nodes.say(node("node-1", "172.30.0.2", labels=labels))
            await settle()
            assert set(room.told.members) == {"node-2"}
            times = room.told.times
            room.nodes.say(replace(six, metadata=replace(six.metadata, resource_version="7")))
            await settle()
            assert room.told.times == times

    run(body())


def test_what_the_kernel_refuses_is_tried_again() -> None:
    async def body() -> None:
        async with announcing() as room:
            room.told.refusing = True
            room.served.services.say(balanced())
            await settle()
            assert room.told.wanted == {}
            room.told.refusing = False
            await asyncio.sleep(1.1)
            assert room.told.wanted == {VIP: None}

    run(body())
