"""Services' addresses, custom kinds, discovery, reviews, durability and faults of the store."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from podwire.apiserver.app import ApiServer

from .conftest import MAPS, PODS, SERVICES, Api, config_for, config_map, open_watch, pod, service

AGGREGATED = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"


async def test_service_addresses(api: Api) -> None:
    first = await api.post(SERVICES, service("a"))
    address = first["spec"]["clusterIP"]
    assert first["spec"]["clusterIPs"] == [address]
    assert first["spec"]["ipFamilies"] == ["IPv4"]
    assert first["spec"]["ipFamilyPolicy"] == "SingleStack"
    taken = await api.post(SERVICES, service("b", clusterIP=address), 422)
    assert "provided IP is already allocated" in taken["message"]
    outside = await api.post(SERVICES, service("b", clusterIP="192.0.2.1"), 422)
    assert "the provided network does not match the current range" in outside["message"]
    code, kept = await api.call("PUT", f"{SERVICES}/a", service("a", ports=[{"port": 81}]))
    assert (code, kept["spec"]["clusterIP"]) == (200, address)
    await api.delete(f"{SERVICES}/a")
    again = await api.post(SERVICES, service("b", clusterIP=address))
    assert again["spec"]["clusterIP"] == address
    headless = await api.post(SERVICES, service("h", clusterIP="None"))
    assert headless["spec"]["clusterIPs"] == ["None"]
    named = {"type": "ExternalName", "externalName": "example.com"}
    external = {**service("x"), "spec": named}
    assert "clusterIP" not in (await api.post(SERVICES, external))["spec"]


async def test_node_ports(api: Api) -> None:
    made = await api.post(SERVICES, service("a", type="NodePort"))
    port = made["spec"]["ports"][0]["nodePort"]
    assert 30000 <= port <= 32767
    clash = service("b", type="NodePort", ports=[{"port": 80, "nodePort": port}])
    refused = await api.post(SERVICES, clash, 422)
    assert "provided port is already allocated" in refused["message"]
    wrong = service("b", type="NodePort", ports=[{"port": 80, "nodePort": 80}])
    assert "valid ports is 30000-32767" in (await api.post(SERVICES, wrong, 422))["message"]
    code, same = await api.call("PUT", f"{SERVICES}/a", service("a", type="NodePort"))
    assert (code, same["spec"]["ports"][0]["nodePort"]) == (200, port)
    await api.delete(f"{SERVICES}/a")
    assert (await api.post(SERVICES, clash))["spec"]["ports"][0]["nodePort"] == port


def crd(**version: Any) -> dict[str, Any]:
    schema = {
        "type": "object",
        "properties": {
            "spec": {
                "type": "object",
                "properties": {"size": {"type": "integer", "default": 3}},
            },
            "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
        },
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "gizmos.example.com"},
        "spec": {
            "group": "example.com",
            "scope": "Namespaced",
            "names": {"plural": "gizmos", "singular": "gizmo", "kind": "Gizmo"},
            "versions": [
                {
                    "name": "v1",
                    "served": True,
                    "storage": True,
                    "schema": {"openAPIV3Schema": schema},
                    **version,
                }
            ],
        },
    }


CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
GIZMOS = "/apis/example.com/v1/namespaces/default/gizmos"


def gizmo(name: str, **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "example.com/v1",
        "kind": "Gizmo",
        "metadata": {"name": name},
        "spec": spec,
    }


async def test_custom_kind(api: Api) -> None:
    columns = [{"name": "Size", "type": "integer", "jsonPath": ".spec.size"}]
    await api.post(CRDS, crd(subresources={"status": {}}, additionalPrinterColumns=columns))
    made = await api.post(f"{GIZMOS}?fieldValidation=Ignore", gizmo("g", junk=1))
    assert made["spec"] == {"size": 3}
    assert made["metadata"]["generation"] == 1
    status = await api.merge(f"{GIZMOS}/g/status", {"status": {"any": 1}, "spec": {"size": 9}})
    assert (status["spec"], status["status"]) == ({"size": 3}, {"any": 1})
    wrong = await api.post(GIZMOS, gizmo("h", size="x"), 422)
    assert "spec.size" in wrong["message"]
    table = await api.get(GIZMOS, "application/json;as=Table;v=v1;g=meta.k8s.io")
    assert table["rows"][0]["cells"] == ["g", 3]
    code, _ = await api.call(
        "PATCH", f"{GIZMOS}/g", {}, content="application/strategic-merge-patch+json"
    )
    assert code == 415
    conditions = (await api.get(f"{CRDS}/gizmos.example.com"))["status"]["conditions"]
    assert {c["type"]: c["status"] for c in conditions} == {
        "NamesAccepted": "True",
        "Established": "True",
    }
    groups = [g["name"] for g in (await api.get("/apis"))["groups"]]
    assert "example.com" in groups
    document = await api.get("/openapi/v3/apis/example.com/v1")
    assert any("Gizmo" in name for name in document["components"]["schemas"])


async def test_custom_kind_goes_with_its_objects(api: Api) -> None:
    await api.post(CRDS, crd())
    await api.post(GIZMOS, gizmo("g"))
    version = (await api.get(CRDS))["metadata"]["resourceVersion"]
    objects = await open_watch(api, f"{GIZMOS}?watch=1")
    assert (await objects.next())[0] == "ADDED"
    async with await open_watch(api, f"{CRDS}?watch=1&resourceVersion={version}") as stream:
        await api.delete(f"{CRDS}/gizmos.example.com")
        while (await stream.next())[0] != "DELETED":
            pass
    assert (await objects.next())[0] == "DELETED"
    assert await objects.ended()
    assert (await api.call("GET", GIZMOS))[0] == 404
    await api.post(CRDS, crd())
    assert (await api.get(GIZMOS))["items"] == []


async def test_discovery(api: Api) -> None:
    core = await api.get("/api/v1")
    names = {r["name"] for r in core["resources"]}
    assert {"pods", "pods/log", "pods/exec", "pods/eviction", "nodes/proxy"} <= names
    aggregated = await api.get("/apis", AGGREGATED)
    assert aggregated["kind"] == "APIGroupDiscoveryList"
    assert api.headers["content-type"] == AGGREGATED
    apps = next(g for g in aggregated["items"] if g["metadata"]["name"] == "apps")
    (version,) = apps["versions"]
    deployments = next(r for r in version["resources"] if r["resource"] == "deployments")
    assert deployments["shortNames"] == ["deploy"]
    beta = AGGREGATED.replace("v=v2", "v=v2beta1")
    assert (await api.get("/api", beta))["apiVersion"] == "apidiscovery.k8s.io/v2beta1"
    assert (await api.get("/version"))["gitVersion"].startswith("v1.33.")
    index = await api.get("/openapi/v3")
    url = index["paths"]["apis/apps/v1"]["serverRelativeURL"]
    assert (await api.get(url))["components"]
    for path in ("/api/v2", "/apis/nope", "/apis/apps/v9", "/nope", "/apis/apps/v1/nopes"):
        assert (await api.call("GET", path))[0] == 404


async def test_health_and_metrics(api: Api) -> None:
    assert await api.get("/readyz") == "ok"
    assert "[+]store ok" in await api.get("/readyz?verbose")
    await api.post(MAPS, config_map("a"))
    text = await api.get("/metrics")
    assert 'apiserver_storage_objects{resource="configmaps"} 1' in text
    assert 'code="201",group="",resource="configmaps",verb="CREATE"' in text


async def test_reviews_and_tokens(api: Api) -> None:
    body = {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview"}
    body |= {"spec": {"resourceAttributes": {"verb": "get", "resource": "pods"}}}  # type: ignore[dict-item]
    path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
    assert (await api.post(path, body))["status"]["allowed"] is True
    accounts = "/api/v1/namespaces/default/serviceaccounts"
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "bot"}}
    await api.post(accounts, account)
    request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
    token = (await api.post(f"{accounts}/bot/token", request))["status"]["token"]
    review = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview"}
    reviews = "/apis/authentication.k8s.io/v1/tokenreviews"
    told = await api.post(reviews, {**review, "spec": {"token": token}})
    assert told["status"]["user"]["username"] == "system:serviceaccount:default:bot"
    await api.delete(f"{accounts}/bot")
    told = await api.post(reviews, {**review, "spec": {"token": token}})
    assert told["status"]["authenticated"] is False


async def test_everything_survives_a_restart(tmp_path: Path) -> None:
    config = config_for(tmp_path)
    connector = aiohttp.UnixConnector(path=str(config.unix_socket), force_close=True)
    async with aiohttp.ClientSession(connector=connector) as session:
        async with ApiServer(config) as server:
            api = Api(session, server)
            await api.post(CRDS, crd())
            await api.post(GIZMOS, gizmo("g"))
            kept = await api.post(MAPS, config_map("a"))
            address = (await api.post(SERVICES, service("s")))["spec"]["clusterIP"]
            gone = await api.delete(f"{SERVICES}/kubernetes")
            version = int((await api.get(MAPS))["metadata"]["resourceVersion"])
        async with ApiServer(config) as server:
            api = Api(session, server)
            assert await api.get(f"{MAPS}/a") == kept
            assert (await api.get(f"{GIZMOS}/g"))["spec"] == {"size": 3}
            clash = await api.post(SERVICES, service("t", clusterIP=address), 422)
            assert "already allocated" in clash["message"]
            newer = await api.post(MAPS, config_map("b"))
            assert int(newer["metadata"]["resourceVersion"]) > version
            assert (await api.get(f"{SERVICES}/kubernetes"))["metadata"]["uid"] != (
                gone["metadata"]["uid"]
            )
            path = f"{MAPS}?watch=1&resourceVersion={kept['metadata']['resourceVersion']}"
            async with await open_watch(api, path) as stream:
                assert (await stream.next())[1]["code"] == 410


async def test_full_disk_changes_nothing(api: Api) -> None:
    """The store refuses whole batches, reads go on, and writing works again afterwards."""
    await api.post(MAPS, config_map("a"))
    store = api.server.context.store
    pages = store._db.execute("PRAGMA page_count").fetchone()[0]
    store._db.execute(f"PRAGMA max_page_count = {pages}")
    big = config_map("big", k="x" * 200_000)
    code, refused = await api.call("POST", MAPS, big)
    assert (code, refused["reason"]) == (507, "InsufficientStorage")
    assert "free disk space" in refused["message"]
    assert [i["metadata"]["name"] for i in (await api.get(MAPS))["items"]] == ["a"]
    store._db.execute("PRAGMA max_page_count = 1000000")
    assert (await api.call("POST", MAPS, big))[0] == 201


async def test_a_failed_service_gives_its_address_back(api: Api) -> None:
    store = api.server.context.store
    store._db.execute("PRAGMA query_only = 1")
    code, _ = await api.call("POST", SERVICES, service("a", clusterIP="10.96.7.7"))
    assert code == 500
    store._db.execute("PRAGMA query_only = 0")
    await api.post(SERVICES, service("a", clusterIP="10.96.7.7"))


async def test_store_file_is_sqlite_wal(api: Api, tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "store.db") as database:
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    database.close()


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("", "a container name must be specified for pod two, choose one of: [a b]"),
        ("container=c", "container c is not valid for pod two"),
        ("container=a", 'container "a" in pod "two" is waiting to start'),
    ],
)
async def test_log_refusals(api: Api, query: str, message: str) -> None:
    containers = [{"name": name, "image": "busybox"} for name in "ab"]
    await api.post(PODS, pod("two", containers=containers))
    code, refused = await api.call("GET", f"{PODS}/two/log?{query}")
    assert code == 400
    assert refused["message"].startswith(message)


async def test_openapi_v2_for_old_kubectl(api: Api) -> None:
    """The protobuf document names every kind, its merge keys included."""
    accept = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf"
    headers = {"Accept": accept}
    async with api.session.get("http://x/openapi/v2", headers=headers) as answer:
        body = await answer.read()
        assert answer.headers["Content-Type"] == (
            "application/com.github.proto-openapi.spec.v2.v1.0+protobuf"
        )
    assert body.startswith(b"\x0a\x032.0")
    assert b"#/definitions/io.k8s.api.core.v1.GRPCAction" in body
    assert b"x-kubernetes-patch-merge-key" in body
    assert (await api.call("GET", "/openapi/v2", accept="application/yaml"))[0] == 406
