"""What the server adds to objects and does by itself: tokens in pods, its Service, Events' end."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from .conftest import PODS, SERVICES, Api, config_for, open_watch, pod, serving

TOKEN_PATH = "/var/run/secrets/kubernetes.io/serviceaccount"
ACCOUNTS = "/api/v1/namespaces/default/serviceaccounts"


async def test_pods_get_a_token(api: Api) -> None:
    containers = [
        {"name": "main", "image": "i", "volumeMounts": [{"name": "w", "mountPath": "/w"}]},
        {"name": "own", "image": "i", "volumeMounts": [{"name": "w", "mountPath": TOKEN_PATH}]},
    ]
    inits = [{"name": "init", "image": "i"}]
    work = [{"name": "w", "emptyDir": {}}]
    body = pod("a", containers=containers, initContainers=inits, volumes=work)
    spec = (await api.post(PODS, body))["spec"]
    _, token = spec["volumes"]
    assert re.fullmatch("kube-api-access-[a-z0-9]{5}", token["name"])
    kinds = [next(iter(source)) for source in token["projected"]["sources"]]
    assert kinds == ["serviceAccountToken", "configMap", "downwardAPI"]
    assert token["projected"]["defaultMode"] == 420
    mount = {"name": token["name"], "readOnly": True, "mountPath": TOKEN_PATH}
    assert [c["volumeMounts"] for c in (*spec["initContainers"], *spec["containers"])] == [
        [mount],
        [{"name": "w", "mountPath": "/w"}, mount],
        [{"name": "w", "mountPath": TOKEN_PATH}],
    ]
    refused = await api.post(PODS, {**body, "spec": {}}, 422)
    assert refused["details"]["causes"][0]["field"] == "spec.containers"


async def test_tokens_are_not_mounted_where_nobody_wants_them(api: Api) -> None:
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "quiet"}}
    secrets = [{"name": "registry"}]
    settings = {"automountServiceAccountToken": False, "imagePullSecrets": secrets}
    await api.post(ACCOUNTS, account | settings)
    for name, spec, volumes in (
        ("own", {"automountServiceAccountToken": False}, 0),
        ("account", {"serviceAccountName": "quiet"}, 0),
        ("asked", {"serviceAccountName": "quiet", "automountServiceAccountToken": True}, 1),
    ):
        made = (await api.post(PODS, pod(name, **spec)))["spec"]
        assert len(made.get("volumes", ())) == volumes, name
        assert made.get("imagePullSecrets") == (None if name == "own" else secrets)
    refused = await api.post(PODS, pod("b", serviceAccountName="nobody"), 403)
    assert refused["message"] == (
        'pods "b" is forbidden: error looking up service account default/nobody: '
        'serviceaccount "nobody" not found'
    )


async def test_the_clusters_own_service_comes_back(api: Api) -> None:
    version = (await api.get(SERVICES))["metadata"]["resourceVersion"]
    watch = f"{SERVICES}?watch=1&resourceVersion={version}"
    async with await open_watch(api, watch) as stream:
        await api.delete(f"{SERVICES}/kubernetes")
        assert (await stream.next())[0] == "DELETED"
        type_, made = await stream.next()
    assert (type_, made["metadata"]["name"]) == ("ADDED", "kubernetes")
    assert made["spec"]["clusterIP"] == "10.96.0.1"


EVENTS = "/api/v1/namespaces/default/events"


def event(name: str, at: str = "") -> dict[str, Any]:
    involved = {"kind": "Pod", "namespace": "default", "name": "a"}
    body = {"apiVersion": "v1", "kind": "Event", "metadata": {"name": name}, "reason": "R"}
    return body | {"involvedObject": involved} | ({"lastTimestamp": at} if at else {})


async def test_events_end(tmp_path: Path) -> None:
    config = config_for(tmp_path)
    async with serving(config) as api:
        await api.post(EVENTS, event("old", "2020-01-01T00:00:00Z"))
        await api.post(EVENTS, event("new"))
    async with serving(config) as api:
        # Written more than an hour ago: the other one went with the first turn of the loop.
        assert [e["metadata"]["name"] for e in (await api.get(EVENTS))["items"]] == ["new"]
    async with serving(replace(config, event_ttl_s=0.05)) as api:
        await api.post(EVENTS, event("brief"))
        listed = await api.get(EVENTS)
        left = {item["metadata"]["name"] for item in listed["items"]}
        version = listed["metadata"]["resourceVersion"]
        async with await open_watch(api, f"{EVENTS}?watch=1&resourceVersion={version}") as stream:
            while left:
                type_, obj = await stream.next()
                assert type_ == "DELETED"
                left.discard(obj["metadata"]["name"])
        assert (await api.get(EVENTS))["items"] == []
