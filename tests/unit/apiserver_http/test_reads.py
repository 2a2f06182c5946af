"""GET, LIST and WATCH: versions, pages, selectors, tables."""

from __future__ import annotations

import asyncio

from .conftest import MAPS, PODS, Api, config_map, open_watch, pod

TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json"
PARTIAL = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"


async def test_list_shape(api: Api) -> None:
    empty = await api.get(MAPS)
    assert (empty["kind"], empty["apiVersion"], empty["items"]) == ("ConfigMapList", "v1", [])
    made = await api.post(MAPS, config_map("a"))
    listed = await api.get(MAPS)
    assert listed["metadata"]["resourceVersion"] == made["metadata"]["resourceVersion"]
    assert "kind" not in listed["items"][0]
    assert listed["items"][0]["metadata"] == made["metadata"]


async def test_pages_are_one_snapshot(api: Api) -> None:
    for index in range(5):
        await api.post(MAPS, config_map(f"m{index}", v="old"))
    first = await api.get(f"{MAPS}?limit=2")
    assert first["metadata"]["remainingItemCount"] == 3
    await api.post(MAPS, config_map("m22"))
    await api.delete(f"{MAPS}/m3")
    await api.merge(f"{MAPS}/m4", {"data": {"v": "new"}})
    second = await api.get(f"{MAPS}?limit=2&continue={first['metadata']['continue']}")
    third = await api.get(f"{MAPS}?limit=2&continue={second['metadata']['continue']}")
    rest = [*second["items"], *third["items"]]
    assert [item["metadata"]["name"] for item in rest] == ["m2", "m3", "m4"]
    assert {item["data"]["v"] for item in rest} == {"old"}
    assert "continue" not in third["metadata"]
    versions = {page["metadata"]["resourceVersion"] for page in (first, second, third)}
    assert len(versions) == 1


async def test_expired_page_offers_a_fresh_token(api: Api) -> None:
    for name in ("a", "b", "c"):
        await api.post(MAPS, config_map(name))
    first = await api.get(f"{MAPS}?limit=1")
    await api.post(MAPS, config_map("d"))
    table = next(t for t in api.server.context.store.tables() if t.name == "configmaps")
    table.floor = api.server.context.store.rv
    code, expired = await api.call(
        "GET", f"{MAPS}?limit=1&continue={first['metadata']['continue']}"
    )
    assert (code, expired["reason"]) == (410, "Expired")
    fresh = await api.get(f"{MAPS}?continue={expired['metadata']['continue']}")
    assert [item["metadata"]["name"] for item in fresh["items"]] == ["b", "c", "d"]


async def test_resource_version_rules(api: Api) -> None:
    made = await api.post(MAPS, config_map("a"))
    version = made["metadata"]["resourceVersion"]
    await api.post(MAPS, config_map("b"))
    exact = await api.get(f"{MAPS}?resourceVersion={version}&resourceVersionMatch=Exact")
    assert [item["metadata"]["name"] for item in exact["items"]] == ["a"]
    newer = await api.get(f"{MAPS}?resourceVersion={version}&resourceVersionMatch=NotOlderThan")
    assert len(newer["items"]) == 2
    code, future = await api.call("GET", f"{MAPS}?resourceVersion=999999")
    assert (code, future["reason"]) == (504, "Timeout")
    assert future["details"]["causes"][0]["reason"] == "ResourceVersionTooLarge"
    assert (await api.call("GET", f"{MAPS}?resourceVersionMatch=Exact"))[0] == 422
    assert (await api.call("GET", f"{MAPS}?resourceVersion=x"))[0] == 400


async def test_selectors(api: Api) -> None:
    await api.post(PODS, pod("a", nodeName="n1"))
    await api.post(PODS, pod("b"))

    async def names(query: str) -> list[str]:
        return [i["metadata"]["name"] for i in (await api.get(f"/api/v1/pods?{query}"))["items"]]

    assert await names("labelSelector=app%3Da") == ["a"]
    assert await names("labelSelector=app%20in%20(a,b)") == ["a", "b"]
    assert await names("fieldSelector=spec.nodeName%3Dn1") == ["a"]
    assert await names("fieldSelector=spec.nodeName%3D") == ["b"]
    assert await names("fieldSelector=metadata.name%3Db,metadata.namespace%3Ddefault") == ["b"]
    assert (await api.call("GET", f"{PODS}?fieldSelector=spec.nope%3D1"))[0] == 400


async def test_table_and_partial(api: Api) -> None:
    await api.post(PODS, pod("a"))
    table = await api.get(PODS, TABLE)
    assert table["kind"] == "Table"
    assert [c["name"] for c in table["columnDefinitions"]][:5] == [
        "Name",
        "Ready",
        "Status",
        "Restarts",
        "Age",
    ]
    (row,) = table["rows"]
    assert row["cells"][:4] == ["a", "0/1", "Pending", "0"]
    assert row["object"]["kind"] == "PartialObjectMetadata"
    whole = await api.get(f"{PODS}?includeObject=Object", TABLE)
    assert whole["rows"][0]["object"]["spec"]["containers"]
    partial = await api.get(PODS, PARTIAL)
    assert partial["kind"] == "PartialObjectMetadataList"
    assert set(partial["items"][0]) == {"kind", "apiVersion", "metadata"}
    code, refused = await api.call("GET", PODS, accept="application/xml")
    assert (code, refused["reason"]) == (406, "NotAcceptable")
    assert "apiVersion: v1" in await api.get(f"{PODS}/a", "application/yaml")


async def test_watch_follows_a_selection(api: Api) -> None:
    version = (await api.get(MAPS))["metadata"]["resourceVersion"]
    path = f"{MAPS}?watch=1&resourceVersion={version}&labelSelector=on%3Dyes"
    async with await open_watch(api, path) as stream:
        await api.post(MAPS, config_map("a"))
        entered = await api.merge(f"{MAPS}/a", {"metadata": {"labels": {"on": "yes"}}})
        assert await stream.next() == ("ADDED", entered)
        changed = await api.merge(f"{MAPS}/a", {"data": {"k": "v"}})
        assert await stream.next() == ("MODIFIED", changed)
        left = await api.merge(f"{MAPS}/a", {"metadata": {"labels": None}})
        kind, obj = await stream.next()
        assert kind == "DELETED"
        assert obj["metadata"]["labels"] == {"on": "yes"}
        assert obj["metadata"]["resourceVersion"] == left["metadata"]["resourceVersion"]


async def test_watch_from_history_and_delete(api: Api) -> None:
    made = await api.post(MAPS, config_map("a"))
    await api.delete(f"{MAPS}/a")
    version = int(made["metadata"]["resourceVersion"])
    async with await open_watch(api, f"{MAPS}?watch=1&resourceVersion={version - 1}") as stream:
        assert await stream.next() == ("ADDED", made)
        kind, gone = await stream.next()
        assert kind == "DELETED"
        assert int(gone["metadata"]["resourceVersion"]) > version


async def test_no_op_update_is_silent(api: Api) -> None:
    made = await api.post(MAPS, config_map("a"))
    version = made["metadata"]["resourceVersion"]
    async with await open_watch(api, f"{MAPS}?watch=1&resourceVersion={version}") as stream:
        await api.merge(f"{MAPS}/a", {"data": None})
        after = await api.post(MAPS, config_map("b"))
        assert await stream.next() == ("ADDED", after)


async def test_watch_list(api: Api) -> None:
    made = await api.post(MAPS, config_map("a"))
    query = "watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan"
    assert (await api.call("GET", f"{MAPS}?watch=1&sendInitialEvents=true"))[0] == 422
    async with await open_watch(api, f"{MAPS}?{query}&allowWatchBookmarks=true") as stream:
        assert await stream.next() == ("ADDED", made)
        kind, mark = await stream.next()
        assert kind == "BOOKMARK"
        assert mark["kind"] == "ConfigMap"
        assert mark["metadata"]["annotations"] == {"k8s.io/initial-events-end": "true"}
        live = await api.post(MAPS, config_map("b"))
        assert await stream.next() == ("ADDED", live)


async def test_old_watch_is_expired(api: Api) -> None:
    await api.post(MAPS, config_map("a"))
    table = next(t for t in api.server.context.store.tables() if t.name == "configmaps")
    table.floor = api.server.context.store.rv
    async with await open_watch(api, f"{MAPS}?watch=1&resourceVersion=2") as stream:
        kind, status = await stream.next()
        assert (kind, status["code"], status["reason"]) == ("ERROR", 410, "Expired")
        assert await stream.ended()


async def test_watch_timeout_ends_with_a_bookmark(api: Api) -> None:
    query = "watch=1&resourceVersion=1&timeoutSeconds=1&allowWatchBookmarks=1"
    namespace = "/api/v1/namespaces/default/endpoints"
    table_version = (await api.get(namespace))["metadata"]["resourceVersion"]
    query = query.replace("resourceVersion=1", f"resourceVersion={table_version}")
    async with await open_watch(api, f"{namespace}?{query}") as stream:
        assert (await stream.next())[0] == "BOOKMARK"
        assert await stream.ended()


async def test_table_watch_sends_columns_once(api: Api) -> None:
    async with await open_watch(api, f"{PODS}?watch=1", TABLE) as stream:
        await api.post(PODS, pod("a"))
        await api.post(PODS, pod("b"))
        _, first = await stream.next()
        _, second = await stream.next()
        assert first["columnDefinitions"][0]["name"] == "Name"
        assert second["columnDefinitions"] is None
        assert second["rows"][0]["cells"][0] == "b"


async def test_many_watchers_hear_one_encoding(api: Api) -> None:
    streams = await asyncio.gather(*(open_watch(api, f"{MAPS}?watch=1") for _ in range(20)))
    made = await api.post(MAPS, config_map("a"))
    for stream in streams:
        assert await stream.next() == ("ADDED", made)
        stream.response.close()


async def test_events_in_both_versions(api: Api) -> None:
    body = {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": "e", "namespace": "default"},
        "involvedObject": {"kind": "Pod", "name": "a", "namespace": "default"},
        "reason": "Started",
        "message": "hello",
        "type": "Normal",
    }
    await api.post("/api/v1/namespaces/default/events", body)
    new = await api.get("/apis/events.k8s.io/v1/namespaces/default/events/e")
    assert (new["apiVersion"], new["note"], new["regarding"]["name"]) == (
        "events.k8s.io/v1",
        "hello",
        "a",
    )
    selector = "fieldSelector=involvedObject.name%3Da,reason%3DStarted"
    assert len((await api.get(f"/api/v1/events?{selector}"))["items"]) == 1
