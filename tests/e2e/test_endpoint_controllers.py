"""Endpoints of Services against the real API server in process; pods are written as a kubelet
would write them, and nothing is looked at before it is there."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest

from podwire.apiserver.app import ApiServer, ServerConfig
from podwire.client import Api, Change, Endpoint, Informer, PatchType
from podwire.controllers.cluster import Cluster
from podwire.controllers.config import ControllerConfig
from podwire.controllers.discovery import discover
from podwire.controllers.endpoints import mirror, slices
from podwire.controllers.endpoints.controller import ServiceEndpoints
from podwire.controllers.garbage import GarbageCollector
from podwire.objects import kinds
from podwire.objects.core import Endpoints
from podwire.objects.discovery import EndpointSlice
from podwire.objects.meta import JsonObject, Key, Kind

WAIT_S = 15.0
ZONES = {"n1": "a", "n2": "b"}


@dataclass
class World:
    api: Api
    slices: Informer[EndpointSlice]
    endpoints: Informer[Endpoints]
    events: Informer[Any]
    history: list[Change[EndpointSlice]] = field(default_factory=list)

    async def until(self, condition: Callable[[], Any]) -> None:
        changed = asyncio.Event()
        for informer in (self.slices, self.endpoints, self.events):
            informer.on_change(lambda _: changed.set())
        async with asyncio.timeout(WAIT_S):
            while not condition():
                changed.clear()
                await changed.wait()

    def of(self, name: str, manager: str = slices.MANAGER) -> list[EndpointSlice]:
        return [
            piece
            for piece in self.slices.objects.values()
            if piece.service_name == name
            and piece.metadata.labels.get("endpointslice.kubernetes.io/managed-by") == manager
        ]

    def listed(self, name: str, *managers: str, ready: bool = True) -> list[str]:
        """The addresses of a Service's slices that are ready (or not)."""
        return sorted(
            endpoint.addresses[0]
            for manager in managers or (slices.MANAGER,)
            for piece in self.of(name, manager)
            for endpoint in piece.endpoints
            if endpoint.ready == ready
        )

    def legacy(self, name: str) -> Endpoints | None:
        return self.endpoints.objects.get(Key("default", name))

    def legacy_ips(self, name: str) -> list[str]:
        found = self.legacy(name)
        return [a.ip for s in found.subsets for a in s.addresses] if found else []

    async def service(self, name: str, selector: dict[str, str] | None = None, **spec: Any) -> None:
        ports = [{"name": "http", "port": 80, "targetPort": 8080}]
        body = {"ports": ports} | ({"selector": selector} if selector else {}) | spec
        await self.api.create(kinds.SERVICE, {"metadata": {"name": name}, "spec": body}, "default")

    async def pod(
        self, name: str, ip: str, app: str = "web", node: str = "n1", **meta: Any
    ) -> None:
        body = {
            "metadata": {"name": name, "labels": {"app": app}, **meta},
            "spec": {
                "nodeName": node,
                "terminationGracePeriodSeconds": 30,
                "containers": [{"name": "c", "image": "x"}],
            },
        }
        await self.api.create(kinds.POD, body, "default")
        await self.status(name, ip)

    async def status(
        self, name: str, ip: str, *, ready: bool = True, phase: str = "Running"
    ) -> None:
        condition = {
            "type": "Ready",
            "status": "True" if ready else "False",
            "lastTransitionTime": "2024-01-01T00:00:00Z",
        }
        await self.patch(
            kinds.POD,
            name,
            {
                "status": {
                    "phase": phase,
                    "podIP": ip,
                    "podIPs": [{"ip": ip}],
                    "conditions": [condition],
                }
            },
            subresource="status",
        )

    async def patch(self, kind: Kind[Any], name: str, body: JsonObject, **options: Any) -> None:
        options = {"patch_type": PatchType.MERGE} | options
        await self.api.patch(kind, name, body, "default", **options)

    async def hand_written(self, name: str, ips: Iterable[str], **meta: Any) -> None:
        subset = {"addresses": [{"ip": ip} for ip in ips], "ports": [{"port": 5432}]}
        body = {"metadata": {"name": name, **meta}, "subsets": [subset]}
        await self.api.create(kinds.ENDPOINTS, body, "default")


async def _node(api: Api, name: str, zone: str) -> None:
    labels = {"topology.kubernetes.io/zone": zone}
    await api.create(kinds.NODE, {"metadata": {"name": name, "labels": labels}})
    ready = {"type": "Ready", "status": "True"}
    status = {"conditions": [ready], "allocatable": {"cpu": "4"}, "capacity": {"cpu": "4"}}
    await api.patch(kinds.NODE, name, {"status": status}, subresource="status")


async def _run(api: Api) -> None:
    config = ControllerConfig(event_quiet_s=0.01)
    cluster = Cluster(api, config, await discover(api))
    controllers = [ServiceEndpoints(cluster), GarbageCollector(cluster)]
    async with asyncio.TaskGroup() as group:
        group.create_task(cluster.events.run())
        await cluster.follow(group)
        for controller in controllers:
            group.create_task(controller.run())


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    socket = tmp_path / "api.sock"
    server = ServerConfig(
        tmp_path / "store.db",
        tmp_path / "pki",
        unix_socket=socket,
        advertised=((IPv4Address("172.30.0.1"), 6443),),
    )
    endpoint = Endpoint(unix_socket=socket)
    async with ApiServer(server), Api(endpoint) as api, Api(endpoint) as mine:
        account = {"metadata": {"name": "default"}}
        await api.create(kinds.SERVICE_ACCOUNT, account, "default")
        for name, zone in ZONES.items():
            await _node(api, name, zone)
        world = World(
            api,
            Informer(api, kinds.ENDPOINT_SLICE),
            Informer(api, kinds.ENDPOINTS),
            Informer(api, kinds.EVENT),
        )
        world.slices.on_change(world.history.append)
        running = [
            asyncio.ensure_future(work)
            for work in (_run(mine), world.slices.run(), world.endpoints.run(), world.events.run())
        ]
        try:
            yield world
            for task in running:
                assert not task.done(), task.exception()
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)


async def test_pods_come_become_unready_end_and_go(world: World) -> None:
    await world.service("web", {"app": "web"})
    await world.until(lambda: [p.endpoints for p in world.of("web")] == [[]])
    await world.pod("a", "10.244.0.2")
    await world.pod("b", "10.244.1.2", node="n2")
    await world.pod("other", "10.244.1.3", app="other")
    await world.until(lambda: world.listed("web") == ["10.244.0.2", "10.244.1.2"])
    (piece,) = world.of("web")
    assert piece.metadata.name.startswith("web-")
    assert {e.node_name: e.zone for e in piece.endpoints} == ZONES
    await world.until(lambda: world.legacy_ips("web") == ["10.244.0.2", "10.244.1.2"])
    legacy = world.legacy("web")
    assert legacy is not None
    assert legacy.metadata.labels == {"endpoints.kubernetes.io/managed-by": "endpoint-controller"}
    await world.status("a", "10.244.0.2", ready=False)
    await world.until(lambda: world.listed("web", ready=False) == ["10.244.0.2"])
    await world.until(lambda: world.legacy_ips("web") == ["10.244.1.2"])
    await world.api.delete(kinds.POD, "b", "default")
    await world.until(lambda: world.listed("web") == [])
    terminating = next(e for e in world.of("web")[0].endpoints if e.terminating)
    assert terminating.serving
    await world.api.delete(kinds.POD, "b", "default", grace_period_s=0)
    await world.until(lambda: world.listed("web", ready=False) == ["10.244.0.2"])
    await world.status("a", "10.244.0.2", phase="Failed")
    await world.until(lambda: world.listed("web", ready=False) == [])
    await world.api.delete(kinds.SERVICE, "web", "default")
    await world.until(lambda: not world.of("web") and world.legacy("web") is None)


async def test_labels_move_a_pod_between_services(world: World) -> None:
    for name in ("blue", "green"):
        await world.service(name, {"app": name})
    await world.pod("a", "10.244.0.2", app="blue")
    await world.until(lambda: world.listed("blue") == ["10.244.0.2"])
    await world.patch(kinds.POD, "a", {"metadata": {"labels": {"app": "green"}}})
    await world.until(lambda: world.listed("green") == ["10.244.0.2"] and not world.listed("blue"))
    await world.patch(kinds.SERVICE, "blue", {"spec": {"selector": {"app": "green"}}})
    await world.until(lambda: world.listed("blue") == ["10.244.0.2"])


async def test_one_pod_that_changes_is_one_write(world: World) -> None:
    await world.service("web", {"app": "web"})
    for number in range(120):
        await world.pod(f"p{number}", f"10.244.0.{number + 1}")
    await world.until(lambda: len(world.listed("web")) == 120)
    assert len(world.of("web")) == 2
    await world.until(lambda: len(world.legacy_ips("web")) == 120)
    world.history.clear()
    await world.status("p7", "10.244.0.8", ready=False)
    await world.until(lambda: len(world.listed("web")) == 119)
    await world.until(lambda: len(world.legacy_ips("web")) == 119)
    assert len(world.history) == 1


async def test_what_others_do_to_slices_and_endpoints_is_put_right(world: World) -> None:
    await world.service("web", {"app": "web"})
    await world.pod("a", "10.244.0.2")
    await world.until(lambda: world.listed("web") == ["10.244.0.2"])
    name = world.of("web")[0].metadata.name
    await world.patch(kinds.ENDPOINT_SLICE, name, {"endpoints": [{"addresses": ["10.9.9.9"]}]})
    await world.until(lambda: world.listed("web") == ["10.9.9.9"])
    await world.until(lambda: world.listed("web") == ["10.244.0.2"])
    await world.api.delete(kinds.ENDPOINT_SLICE, name, "default")
    await world.until(lambda: [p.metadata.name for p in world.of("web")] not in ([], [name]))
    await world.until(lambda: world.legacy_ips("web") == ["10.244.0.2"])
    await world.api.delete(kinds.ENDPOINTS, "web", "default")
    await world.until(lambda: world.legacy("web") is None)
    await world.until(lambda: world.legacy_ips("web") == ["10.244.0.2"])


async def test_hints_weights_and_zones(world: World) -> None:
    await world.service("near", {"app": "web"}, trafficDistribution="PreferClose")
    await world.service("auto", {"app": "web"})
    auto = {"service.kubernetes.io/topology-mode": "Auto"}
    weight = {"networking.podwire.dev/weight": "10"}
    await world.pod("a", "10.244.0.2", annotations=weight)
    await world.pod("b", "10.244.1.2", node="n2")
    bad = {"networking.podwire.dev/weight": "heavy"}
    await world.pod("c", "10.244.1.3", node="n2", annotations=bad)

    def zones(service: str) -> dict[str, list[str]]:
        return {
            e.addresses[0]: [h.name for h in e.hints.for_zones] if e.hints else []
            for piece in world.of(service)
            for e in piece.endpoints
        }

    await world.pod("d", "10.244.0.3")
    hinted = {"10.244.0.2": ["a"], "10.244.0.3": ["a"], "10.244.1.2": ["b"], "10.244.1.3": ["b"]}
    await world.until(lambda: zones("near") == hinted)
    weights = world.of("near")[0].metadata.annotations[slices.WEIGHTS_ANNOTATION]
    assert json.loads(weights) == {"10.244.0.2": 10}
    await world.until(
        lambda: any(e.reason == "InvalidWeight" for e in world.events.objects.values())
    )
    await world.until(lambda: zones("auto") == {ip: [] for ip in hinted})
    await world.patch(kinds.SERVICE, "auto", {"metadata": {"annotations": auto}})
    await world.until(lambda: zones("auto") == hinted)
    labels = {"topology.kubernetes.io/zone": "c"}
    await world.api.patch(kinds.NODE, "n1", {"metadata": {"labels": labels}})
    await world.until(lambda: zones("near")["10.244.0.2"] == ["c"])
    await world.until(lambda: zones("auto")["10.244.0.2"] == ["c"])


async def test_a_database_outside_first_and_inside_later(world: World) -> None:
    """Never a moment without an address in some slice."""
    await world.service("db")
    await world.hand_written("db", ["203.0.113.10"], labels={"team": "a"})
    await world.until(lambda: world.listed("db", mirror.MANAGER) == ["203.0.113.10"])
    (piece,) = world.of("db", mirror.MANAGER)
    assert piece.metadata.labels["team"] == "a"
    update = {"subsets": [{"addresses": [{"ip": "203.0.113.11"}], "ports": [{"port": 5432}]}]}
    await world.patch(kinds.ENDPOINTS, "db", update)
    await world.until(lambda: world.listed("db", mirror.MANAGER) == ["203.0.113.11"])
    empty: list[str] = []
    both = (mirror.MANAGER, slices.MANAGER)

    def look(_: Change[EndpointSlice]) -> None:
        if not world.listed("db", *both):
            empty.append("a moment without addresses")

    world.slices.on_change(look)
    empty.clear()
    await world.pod("db-0", "10.244.0.9", app="db")
    await world.patch(kinds.SERVICE, "db", {"spec": {"selector": {"app": "db"}}})
    await world.until(lambda: world.listed("db", *both) == ["10.244.0.9"])
    await world.until(lambda: world.legacy_ips("db") == ["10.244.0.9"])
    assert not world.of("db", mirror.MANAGER)
    await world.patch(kinds.SERVICE, "db", {"spec": {"selector": None}})
    await world.until(
        lambda: world.listed("db", mirror.MANAGER) == ["10.244.0.9"] and not world.of("db")
    )
    assert not empty


async def test_mirrored_slices_go_with_their_reason(world: World) -> None:
    skip = {"metadata": {"labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}}}
    for name in ("skipped", "deleted", "orphan"):
        await world.service(name)
        await world.hand_written(name, ["203.0.113.10"])
        await world.until(lambda name=name: world.of(name, mirror.MANAGER))
    await world.patch(kinds.ENDPOINTS, "skipped", skip)
    await world.api.delete(kinds.ENDPOINTS, "deleted", "default")
    await world.api.delete(kinds.SERVICE, "orphan", "default")
    await world.until(
        lambda: not any(world.of(n, mirror.MANAGER) for n in ("skipped", "deleted", "orphan"))
    )
    await world.until(lambda: world.legacy("orphan") is None)
    assert world.legacy("skipped") is not None


async def test_endpoints_written_before_their_service_are_kept_and_mirrored(world: World) -> None:
    await world.hand_written("early", ["203.0.113.10"])
    await world.until(lambda: world.legacy("early"))
    await world.service("early")
    await world.until(lambda: world.listed("early", mirror.MANAGER) == ["203.0.113.10"])


async def test_the_servers_own_service(world: World) -> None:
    def own() -> tuple[list[str], list[str]]:
        piece = world.slices.objects.get(Key("default", "kubernetes"))
        addresses = [e.addresses[0] for e in piece.endpoints] if piece is not None else []
        return addresses, world.legacy_ips("kubernetes")

    right = (["172.30.0.1"], ["172.30.0.1"])
    await world.until(lambda: own() == right)
    piece = world.slices.objects[Key("default", "kubernetes")]
    assert piece.metadata.labels == {"kubernetes.io/service-name": "kubernetes"}
    assert [(p.name, p.port) for p in piece.ports] == [("https", 6443)]
    await world.patch(kinds.ENDPOINTS, "kubernetes", {"subsets": None})
    await world.patch(kinds.ENDPOINT_SLICE, "kubernetes", {"endpoints": None})
    await world.until(lambda: own() == right)
    world.history.clear()
    for kind in (kinds.SERVICE, kinds.ENDPOINTS, kinds.ENDPOINT_SLICE):
        await world.api.delete(kind, "kubernetes", "default")
    await world.until(lambda: any(c.new is None for c in world.history) and own() == right)
    service = await world.api.get(kinds.SERVICE, "kubernetes", "default")
    assert [(p.port, p.target_port) for p in service.spec.ports] == [(443, 6443)]
    assert not world.of("kubernetes", mirror.MANAGER)


async def test_a_rolling_update_never_lists_nobody(world: World) -> None:
    await world.service("web", {"app": "web"})
    for number in range(3):
        await world.pod(f"old{number}", f"10.244.0.{number + 1}")
    await world.until(lambda: len(world.listed("web")) == 3)
    world.history.clear()
    for number in range(3):
        await world.pod(f"new{number}", f"10.244.1.{number + 1}")
        await world.until(lambda number=number: f"10.244.1.{number + 1}" in world.listed("web"))
        await world.api.delete(kinds.POD, f"old{number}", "default")
        await world.status(f"old{number}", f"10.244.0.{number + 1}", ready=False)
        with contextlib.suppress(Exception):
            await world.api.delete(kinds.POD, f"old{number}", "default", grace_period_s=0)
    await world.until(lambda: world.listed("web") == [f"10.244.1.{n + 1}" for n in range(3)])
    states = [c.new for c in world.history if c.new is not None]
    assert all(any(e.ready for e in state.endpoints) for state in states)
