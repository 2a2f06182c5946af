"""ServiceCIDRs and IPAddresses: ranges that come and go, what mends a torn relation (KEP-1880)."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Any

import pytest

from podwire import client
from podwire.controllers.cluster import Cluster, utc_now
from podwire.controllers.config import ControllerConfig
from podwire.controllers.discovery import discover
from podwire.controllers.servicecidrs import FINALIZER, ServiceCidrs
from podwire.controllers.serviceips import ServiceIps

from .conftest import SERVICES, Api, config_for, open_watch, service, serving

CIDRS = "/apis/networking.k8s.io/v1/servicecidrs"
ADDRESSES = "/apis/networking.k8s.io/v1/ipaddresses"
EVENTS = "/api/v1/namespaces/default/events"
TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io"


def cidr(name: str, *cidrs: str) -> dict[str, Any]:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "ServiceCIDR",
        "metadata": {"name": name},
        "spec": {"cidrs": list(cidrs)},
    }


def ready(name: str, *cidrs: str) -> dict[str, Any]:
    return {**cidr(name, *cidrs), "status": {"conditions": [condition("True")]}}


def condition(status: str) -> dict[str, str]:
    return {
        "type": "Ready",
        "status": status,
        "reason": "",
        "message": "",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }


def ip_address(name: str) -> dict[str, Any]:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "IPAddress",
        "metadata": {"name": name},
        "spec": {"parentRef": {"group": "example.com", "resource": "lbs", "name": "a"}},
    }


@pytest.fixture
async def small(tmp_path: Path) -> AsyncIterator[Api]:
    """A cluster whose own range has six addresses."""
    config = replace(config_for(tmp_path), service_cidrs=(IPv4Network("10.9.0.0/29"),))
    async with serving(config) as api:
        yield api


async def test_the_cluster_has_its_own_range_and_first_address(api: Api) -> None:
    found = await api.get(f"{CIDRS}/kubernetes")
    assert found["spec"] == {"cidrs": ["10.96.0.0/16"]}
    (told,) = found["status"]["conditions"]
    assert (told["type"], told["status"]) == ("Ready", "True")
    assert told["message"] == "Kubernetes default Service CIDR is ready"
    first = await api.get(f"{ADDRESSES}/10.96.0.1")
    assert first["spec"]["parentRef"] == {
        "resource": "services",
        "namespace": "default",
        "name": "kubernetes",
    }
    assert first["metadata"]["labels"] == {
        "ipaddress.kubernetes.io/ip-family": "IPv4",
        "ipaddress.kubernetes.io/managed-by": "ipallocator.k8s.io",
    }


async def test_an_address_comes_and_goes_with_its_service(api: Api) -> None:
    async with await open_watch(api, f"{ADDRESSES}?watch=1&resourceVersion=0") as stream:
        assert (await stream.next())[1]["metadata"]["name"] == "10.96.0.1"
        made = await api.post(SERVICES, service("a"))
        address = made["spec"]["clusterIP"]
        assert address == "10.96.1.1", "the first one above the band that users choose from"
        kind, seen = await stream.next()
        assert (kind, seen["metadata"]["name"]) == ("ADDED", address)
        numbers = [int(o["metadata"]["resourceVersion"]) for o in (seen, made)]
        assert numbers[1] == numbers[0] + 1, "one after the other in one transaction"
        await api.delete(f"{SERVICES}/a")
        kind, seen = await stream.next()
        assert (kind, seen["metadata"]["name"]) == ("DELETED", address)


async def test_tables(api: Api) -> None:
    shown = await api.get(ADDRESSES, TABLE)
    assert [row["cells"] for row in shown["rows"]] == [["10.96.0.1", "services/default/kubernetes"]]
    shown = await api.get(CIDRS, TABLE)
    assert [c["name"] for c in shown["columnDefinitions"]] == ["Name", "CIDRs", "Age"]
    assert shown["rows"][0]["cells"][:2] == ["kubernetes", "10.96.0.0/16"]


async def test_an_address_made_by_hand_is_not_given_out(small: Api) -> None:
    await small.post(ADDRESSES, ip_address("10.9.0.2"))
    refused = await small.post(SERVICES, service("a", clusterIP="10.9.0.2"), 422)
    assert "failed to allocate IP 10.9.0.2: provided IP is already allocated" in refused["message"]
    given = {(await small.post(SERVICES, service(f"s{n}")))["spec"]["clusterIP"] for n in range(4)}
    assert given == {f"10.9.0.{n}" for n in range(3, 7)}
    full = await small.post(SERVICES, service("x"), 500)
    assert full["message"] == (
        "Internal error occurred: failed to allocate a serviceIP: range is full"
    )
    assert full["reason"] == "InternalError"
    await small.delete(f"{ADDRESSES}/10.9.0.2")
    assert (await small.post(SERVICES, service("x")))["spec"]["clusterIP"] == "10.9.0.2"


async def test_another_range_extends_the_first(small: Api) -> None:
    await small.post(CIDRS, cidr("later", "10.9.1.0/30"))
    outside = await small.post(SERVICES, service("a", clusterIP="10.9.1.1"), 422)
    assert outside["message"].endswith("the provided network does not match the current range")
    status = {"status": {"conditions": [condition("True")]}}
    await small.merge(f"{CIDRS}/later/status", status)
    await small.post(CIDRS, ready("inside", "10.9.0.0/30"))
    given = [(await small.post(SERVICES, service(f"s{n}")))["spec"]["clusterIP"] for n in range(7)]
    assert sorted(given) == [*(f"10.9.0.{n}" for n in range(2, 7)), "10.9.1.1", "10.9.1.2"]
    await small.post(SERVICES, service("x"), 500)


async def test_both_families(tmp_path: Path) -> None:
    ranges = (IPv4Network("10.9.0.0/24"), IPv6Network("fd00:96::/112"))
    config = replace(config_for(tmp_path), service_cidrs=ranges)
    async with serving(config) as api:
        made = await api.post(SERVICES, service("a", ipFamilyPolicy="PreferDualStack"))
        assert made["spec"]["clusterIPs"] == ["10.9.0.17", "fd00:96::101"]
        assert made["spec"]["ipFamilies"] == ["IPv4", "IPv6"]
        named = [i["metadata"]["name"] for i in (await api.get(ADDRESSES))["items"]]
        assert named == ["10.9.0.1", "10.9.0.17", "fd00:96::101"]
        six = await api.post(SERVICES, service("b", clusterIP="FD00:96:0::A"))
        assert six["spec"]["ipFamilies"] == ["IPv6"]
        assert api.headers["warning"] == (
            '299 - "spec.clusterIPs[0]: IPv6 address \\"FD00:96:0::A\\" should be in RFC 5952 '
            'canonical format (\\"fd00:96::a\\")"'
        )
        assert (await api.get(f"{ADDRESSES}/fd00:96::a"))["spec"]["parentRef"]["name"] == "b"
        down = await api.merge(f"{SERVICES}/a", {"spec": {"ipFamilyPolicy": "SingleStack"}})
        assert down["spec"]["clusterIPs"] == ["10.9.0.17"]
        assert (await api.call("GET", f"{ADDRESSES}/fd00:96::101"))[0] == 404
        up = await api.merge(f"{SERVICES}/a", {"spec": {"ipFamilyPolicy": "RequireDualStack"}})
        assert up["spec"]["clusterIPs"] == ["10.9.0.17", "fd00:96::102"]


async def test_a_second_family_joins_at_a_restart(tmp_path: Path) -> None:
    config = config_for(tmp_path)
    async with serving(config) as api:
        kept = (await api.post(SERVICES, service("a", ipFamilyPolicy="PreferDualStack")))["spec"]
        assert kept["clusterIPs"] == ["10.96.1.1"]
    both = (*config.service_cidrs, IPv6Network("fd00:96::/112"))
    async with serving(replace(config, service_cidrs=both)) as api:
        found = await api.get(f"{CIDRS}/kubernetes")
        assert found["spec"]["cidrs"] == ["10.96.0.0/16", "fd00:96::/112"]
        same = await api.merge(f"{SERVICES}/a", {"metadata": {"labels": {"a": "b"}}})
        assert same["spec"] == kept, "PreferDualStack does not change by itself"


async def test_every_answer_about_endpoints_says_what_to_use(api: Api) -> None:
    path = "/api/v1/namespaces/default/endpoints"
    told = '299 - "v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice"'
    await api.get(path)
    assert api.headers["warning"] == told
    body = {
        "apiVersion": "v1",
        "kind": "Endpoints",
        "metadata": {"name": "e"},
        "subsets": [{"addresses": [{"ip": "FD00::1"}], "ports": [{"port": 80}]}],
    }
    async with api.session.post(f"http://x{path}", json=body) as answer:
        shape, deprecated = answer.headers.getall("Warning")
        assert deprecated == told
        assert shape == (
            '299 - "subsets[0].addresses[0].ip: IPv6 address \\"FD00::1\\" should be in RFC 5952 '
            'canonical format (\\"fd00::1\\")"'
        )
    async with await open_watch(api, f"{path}?watch=1") as stream:
        assert stream.response.headers["Warning"] == told
    await api.get(SERVICES)
    assert "warning" not in api.headers


async def test_slices_count_their_changes(api: Api) -> None:
    path = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices"
    body: dict[str, Any] = {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": "e"},
        "addressType": "IPv4",
        "endpoints": [{"addresses": ["10.0.0.1"], "deprecatedTopology": {"a": "b"}}],
        "ports": [{"port": 80}],
    }
    made = await api.post(path, body)
    assert made["endpoints"] == [{"addresses": ["10.0.0.1"]}]
    assert made["ports"] == [{"name": "", "port": 80, "protocol": "TCP"}]
    assert made["metadata"]["generation"] == 1
    labels = {"metadata": {"labels": {"kubernetes.io/service-name": "a"}}}
    assert (await api.merge(f"{path}/e", labels))["metadata"]["generation"] == 2
    notes = {"metadata": {"annotations": {"a": "b"}}}
    assert (await api.merge(f"{path}/e", notes))["metadata"]["generation"] == 2


# -- with the controllers ------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def controlling(
    api: Api, tmp_path: Path, now: Callable[[], dt.datetime] = utc_now
) -> AsyncIterator[None]:
    config = ControllerConfig(event_quiet_s=0.0)
    async with client.Api(client.Endpoint(unix_socket=tmp_path / "api.sock")) as connected:
        cluster = Cluster(connected, config, await discover(connected), now)
        controllers = [ServiceCidrs(cluster), ServiceIps(cluster)]
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(cluster.events.run())]
            await cluster.follow(group)
            tasks += [group.create_task(each.run()) for each in controllers]
            try:
                yield
            finally:
                for task in (*tasks, *cluster._following.values()):
                    task.cancel()


async def wait_for(
    api: Api, path: str, wanted: Callable[[str, dict[str, Any]], bool]
) -> dict[str, Any]:
    """The first object of a watch that is wanted."""
    async with await open_watch(api, f"{path}?watch=1&resourceVersion=0") as stream:
        while True:
            kind, obj = await asyncio.wait_for(stream.next(), 10)
            if wanted(kind, obj):
                return obj


def named(name: str) -> Callable[[str, dict[str, Any]], bool]:
    return lambda kind, obj: kind != "DELETED" and obj["metadata"]["name"] == name


def is_ready(name: str, status: str) -> Callable[[str, dict[str, Any]], bool]:
    def check(kind: str, obj: dict[str, Any]) -> bool:
        told = (obj.get("status") or {}).get("conditions") or [{}]
        return obj["metadata"]["name"] == name and told[0].get("status") == status

    return check


async def gone(api: Api, path: str, name: str) -> None:
    """Wait until the object does not exist."""
    version = (await api.get(path))["metadata"]["resourceVersion"]
    async with await open_watch(api, f"{path}?watch=1&resourceVersion={version}") as stream:
        while (await api.call("GET", f"{path}/{name}"))[0] != 404:
            await asyncio.wait_for(stream.next(), 10)


async def test_a_range_is_ready_and_held_while_a_service_needs_it(api: Api, tmp_path: Path) -> None:
    async with controlling(api, tmp_path):
        await api.post(CIDRS, cidr("more", "10.97.0.0/24"))
        made = await wait_for(api, CIDRS, is_ready("more", "True"))
        assert made["metadata"]["finalizers"] == [FINALIZER]
        assert made["status"]["conditions"][0]["message"] == "Kubernetes Service CIDR is ready"
        await api.post(SERVICES, service("a", clusterIP="10.97.0.9"))
        await api.delete(f"{CIDRS}/more")
        held = await wait_for(api, CIDRS, is_ready("more", "False"))
        assert held["status"]["conditions"][0]["reason"] == "Terminating"
        refused = await api.post(SERVICES, service("b", clusterIP="10.97.0.10"), 422)
        assert "does not match the current range" in refused["message"]
        await api.delete(f"{SERVICES}/a")
        await gone(api, CIDRS, "more")


async def test_a_range_may_go_when_another_covers_it(api: Api, tmp_path: Path) -> None:
    async with controlling(api, tmp_path):
        await api.post(CIDRS, cidr("more", "10.97.0.0/24"))
        await wait_for(api, CIDRS, is_ready("more", "True"))
        await api.post(SERVICES, service("a", clusterIP="10.97.0.9"))
        await api.delete(f"{CIDRS}/more")
        await wait_for(api, CIDRS, is_ready("more", "False"))
        await api.post(CIDRS, cidr("wider", "10.97.0.0/16"))
        await gone(api, CIDRS, "more")


async def test_what_is_deleted_by_hand_is_made_again(api: Api, tmp_path: Path) -> None:
    made = await api.post(SERVICES, service("a"))
    address = made["spec"]["clusterIP"]
    async with controlling(api, tmp_path):
        await api.delete(f"{ADDRESSES}/{address}")
        taken = await api.post(SERVICES, service("b", clusterIP=address), 422)
        assert "already allocated" in taken["message"], "the Service still has it"
        again = await wait_for(api, ADDRESSES, named(address))
        assert again["spec"]["parentRef"]["name"] == "a"
        told = await wait_for(api, EVENTS, lambda _, e: e["reason"] == "ClusterIPNotAllocated")
        assert told["type"] == "Warning"
        assert told["message"] == f"Cluster IP [IPv4]: {address} is not allocated; repairing"


async def test_an_address_of_something_else_is_taken_back(api: Api, tmp_path: Path) -> None:
    address = (await api.post(SERVICES, service("a")))["spec"]["clusterIP"]
    await api.delete(f"{ADDRESSES}/{address}")
    await api.post(ADDRESSES, ip_address(address))
    async with controlling(api, tmp_path):
        told = await wait_for(api, EVENTS, lambda _, e: e["reason"] == "ClusterIPNotAllocated")
        assert told["message"].endswith("for Service default/a has a wrong reference; repairing")
        parent = {"resource": "services", "namespace": "default", "name": "a"}
        await wait_for(
            api,
            ADDRESSES,
            lambda _, o: o["metadata"]["name"] == address and o["spec"]["parentRef"] == parent,
        )


async def test_orphans_go_after_a_minute(api: Api, tmp_path: Path) -> None:
    orphan = ip_address("10.96.5.5")
    orphan["spec"]["parentRef"] = {"resource": "services", "namespace": "default", "name": "no"}
    orphan["metadata"]["labels"] = {
        "ipaddress.kubernetes.io/ip-family": "IPv4",
        "ipaddress.kubernetes.io/managed-by": "ipallocator.k8s.io",
    }
    await api.post(ADDRESSES, orphan)
    await api.post(ADDRESSES, ip_address("10.96.6.6"))
    later = utc_now() + dt.timedelta(seconds=90)
    async with controlling(api, tmp_path, lambda: later):
        await gone(api, ADDRESSES, "10.96.5.5")
        told = await wait_for(api, EVENTS, lambda _, e: e["reason"] == "IPAddressNotAllocated")
        assert told["message"] == (
            "IPAddress: 10.96.5.5 for Service default/no appears to have leaked: cleaning up"
        )
    assert (await api.get(f"{ADDRESSES}/10.96.6.6"))["spec"]["parentRef"]["resource"] == "lbs"


async def test_a_service_outside_every_range_is_told(small: Api, tmp_path: Path) -> None:
    await small.post(CIDRS, ready("more", "10.9.1.0/24"))
    await small.post(SERVICES, service("a", clusterIP="10.9.1.7"))
    await small.delete(f"{CIDRS}/more")
    async with controlling(small, tmp_path):
        told = await wait_for(small, EVENTS, lambda _, e: e["reason"] == "ClusterIPOutOfRange")
        assert told["message"] == (
            "Cluster IP [IPv4]: 10.9.1.7 is not within any configured Service CIDR; please "
            "recreate service"
        )
