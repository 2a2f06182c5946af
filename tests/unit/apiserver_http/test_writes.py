"""Create, update, patch, delete: what clients may and may not do, and what they are told."""

from __future__ import annotations

import asyncio
import datetime as dt
import io
from typing import Any

import pytest

from podwire.objects.meta import parse_time

from .conftest import MAPS, PODS, SERVICES, Api, config_map, pod, service

STRATEGIC = "application/strategic-merge-patch+json"
NODE = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}}


async def test_create_gives_identity(api: Api) -> None:
    made = await api.post(PODS, pod("a"))
    meta = made["metadata"]
    assert meta["uid"]
    assert meta["creationTimestamp"]
    assert int(meta["resourceVersion"]) > 0
    assert made["status"] == {"phase": "Pending", "qosClass": "BestEffort"}
    assert made["spec"]["serviceAccountName"] == "default"
    assert made["spec"]["priority"] == 0
    assert [t["tolerationSeconds"] for t in made["spec"]["tolerations"]] == [300, 300]
    assert await api.get(f"{PODS}/a") == made


async def test_a_gated_pod_says_so_until_it_is_bound(api: Api) -> None:
    gated = pod("a")
    gated["spec"]["schedulingGates"] = [{"name": "example.com/wait"}]
    (condition,) = (await api.post(PODS, gated))["status"]["conditions"]
    assert (condition["type"], condition["status"]) == ("PodScheduled", "False")
    assert condition["reason"] == "SchedulingGated"
    patch = [{"op": "remove", "path": "/spec/schedulingGates"}]
    assert (await api.call("PATCH", f"{PODS}/a", patch, content="application/json-patch+json"))[
        0
    ] == 200
    await api.post("/api/v1/nodes", NODE)
    await api.post(f"{PODS}/a/binding", {"target": {"kind": "Node", "name": "n1"}})
    (condition,) = (await api.get(f"{PODS}/a"))["status"]["conditions"]
    assert (condition["status"], condition.get("reason")) == ("True", None)


async def test_ephemeral_containers_are_refused_clearly(api: Api) -> None:
    """Accepted and never started, `kubectl debug` would wait for them for ever."""
    await api.post(PODS, pod("a"))
    debugger = {"spec": {"ephemeralContainers": [{"name": "d", "image": "busybox"}]}}
    path = f"{PODS}/a/ephemeralcontainers"
    code, answer = await api.call("PATCH", path, debugger, content=STRATEGIC)
    assert code == 403
    assert "nodes here run no ephemeral containers; `kubectl exec`" in answer["message"]
    assert "ephemeralContainers" not in (await api.get(f"{PODS}/a"))["spec"]


async def test_create_refusals(api: Api) -> None:
    await api.post(MAPS, config_map("a"))
    again = await api.post(MAPS, config_map("a"), 409)
    assert again["message"] == 'configmaps "a" already exists'
    assert again["reason"] == "AlreadyExists"
    wrong = config_map("b")
    wrong["metadata"]["resourceVersion"] = "7"
    assert "resourceVersion should not be set" in (await api.post(MAPS, wrong, 400))["message"]
    wrong = config_map("b")
    wrong["metadata"]["namespace"] = "other"
    assert "does not match the namespace" in (await api.post(MAPS, wrong, 400))["message"]
    nowhere = await api.post("/api/v1/namespaces/nowhere/configmaps", config_map("a"), 404)
    assert nowhere["message"] == 'namespaces "nowhere" not found'
    unnamed = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {}}
    assert (await api.post(MAPS, unnamed, 422))["reason"] == "Invalid"
    assert (await api.call("POST", "/api/v1/configmaps", config_map("z")))[0] == 404


async def test_generate_name(api: Api) -> None:
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"generateName": "x" * 70}}
    made = await api.post(MAPS, body)
    assert len(made["metadata"]["name"]) == 63
    assert made["metadata"]["name"].startswith("x" * 58)


async def test_update_conflict_and_no_op(api: Api) -> None:
    made = await api.post(MAPS, config_map("a", k="1"))
    code, same = await api.call("PUT", f"{MAPS}/a", made)
    assert (code, same["metadata"]["resourceVersion"]) == (200, made["metadata"]["resourceVersion"])
    changed = {**made, "data": {"k": "2"}}
    code, newer = await api.call("PUT", f"{MAPS}/a", changed)
    assert code == 200
    assert int(newer["metadata"]["resourceVersion"]) > int(made["metadata"]["resourceVersion"])
    code, refused = await api.call("PUT", f"{MAPS}/a", {**made, "data": {"k": "3"}})
    assert code == 409
    assert refused["message"] == (
        'Operation cannot be fulfilled on configmaps "a": the object has been modified; '
        "please apply your changes to the latest version and try again"
    )
    unconditional = config_map("a", k="4")
    assert (await api.call("PUT", f"{MAPS}/a", unconditional))[0] == 200
    assert (await api.call("PUT", f"{MAPS}/b", config_map("b")))[0] == 404


DEPLOYMENTS = "/apis/apps/v1/namespaces/default/deployments"


def deployment(replicas: int = 1) -> dict[str, object]:
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "web"},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [{"name": "c", "image": "nginx"}]},
            },
        },
    }


async def test_generation_counts_spec_only(api: Api) -> None:
    made = await api.post(DEPLOYMENTS, deployment())
    assert made["metadata"]["generation"] == 1
    labelled = await api.merge(f"{DEPLOYMENTS}/web", {"metadata": {"labels": {"a": "b"}}})
    assert labelled["metadata"]["generation"] == 1
    status = await api.merge(
        f"{DEPLOYMENTS}/web/status", {"spec": {"replicas": 9}, "status": {"replicas": 1}}
    )
    assert status["spec"]["replicas"] == 1
    assert status["status"] == {"replicas": 1}
    assert status["metadata"]["generation"] == 1
    scaled = await api.merge(
        f"{DEPLOYMENTS}/web", {"spec": {"replicas": 2}, "status": {"replicas": 7}}
    )
    assert scaled["metadata"]["generation"] == 2
    assert scaled["status"] == {"replicas": 1}


async def test_scale(api: Api) -> None:
    await api.post(DEPLOYMENTS, deployment(2))
    scale = await api.get(f"{DEPLOYMENTS}/web/scale")
    assert (scale["kind"], scale["spec"]["replicas"]) == ("Scale", 2)
    assert scale["status"]["selector"] == "app=web"
    code, answer = await api.call(
        "PUT", f"{DEPLOYMENTS}/web/scale", {**scale, "spec": {"replicas": 5}}
    )
    assert (code, answer["spec"]["replicas"]) == (200, 5)
    code, answer = await api.call("PUT", f"{DEPLOYMENTS}/web/scale", scale)
    assert code == 409
    answer = await api.merge(f"{DEPLOYMENTS}/web/scale", {"spec": {"replicas": 1}})
    assert answer["spec"]["replicas"] == 1


async def test_field_validation(api: Api) -> None:
    typo = {**config_map("a"), "dta": {}}
    strict = await api.post(f"{MAPS}?fieldValidation=Strict", typo, 400)
    assert 'unknown field "dta"' in strict["message"]
    made = await api.post(f"{MAPS}?fieldValidation=Warn", typo)
    assert "dta" not in made
    assert api.headers["warning"] == '299 - "unknown field \\"dta\\""'
    await api.post(f"{MAPS}?fieldValidation=Ignore", {**typo, "metadata": {"name": "b"}})
    assert "warning" not in api.headers


async def test_dry_run_stores_nothing(api: Api) -> None:
    before = int((await api.get(MAPS))["metadata"]["resourceVersion"])
    made = await api.post(f"{MAPS}?dryRun=All", config_map("a"))
    assert "resourceVersion" not in made["metadata"]
    assert (await api.call("GET", f"{MAPS}/a"))[0] == 404
    await api.post(SERVICES + "?dryRun=All", service("a", clusterIP="10.96.9.9"))
    await api.post(SERVICES, service("b", clusterIP="10.96.9.9"))
    # The Service and its IPAddress.
    assert int((await api.get(MAPS))["metadata"]["resourceVersion"]) == before + 2


async def test_patch_types(api: Api) -> None:
    await api.post(MAPS, config_map("a", k="1"))
    code, patched = await api.call(
        "PATCH",
        f"{MAPS}/a",
        [{"op": "test", "path": "/data/k", "value": "2"}],
        content="application/json-patch+json",
    )
    assert code == 422
    code, patched = await api.call("PATCH", f"{MAPS}/a", {"data": {"l": "2"}}, content=STRATEGIC)
    assert (code, patched["data"]) == (200, {"k": "1", "l": "2"})
    code, refused = await api.call(
        "PATCH", f"{MAPS}/a", {"data": {}}, content="application/apply-patch+yaml"
    )
    assert code == 415
    assert "application/merge-patch+json" in refused["message"]


PROTOBUF = "application/vnd.kubernetes.protobuf"
# ConfigMap {metadata {name: "a"}, data {"k": "1"}} in its envelope.
PROTOBUF_MAP = (
    b"k8s\0\x0a\x0f\x0a\x02v1\x12\x09ConfigMap\x12\x0d\x0a\x03\x0a\x01a\x12\x06\x0a\x01k\x12\x011"
)
PROTOBUF_DELETE = b"k8s\0\x0a\x13\x0a\x02v1\x12\x0dDeleteOptions\x12\x05\x12\x03\x0a\x01x"


async def test_protobuf_bodies_get_json_answers(api: Api) -> None:
    code, made = await api.call("POST", MAPS, PROTOBUF_MAP, content=PROTOBUF)
    assert (code, made["kind"], made["data"]) == (201, "ConfigMap", {"k": "1"})
    code, refused = await api.call("DELETE", f"{MAPS}/a", PROTOBUF_DELETE, content=PROTOBUF)
    assert (code, refused["reason"]) == (409, "Conflict")
    assert "the UID in the precondition (x)" in refused["message"]
    code, refused = await api.call("POST", PODS, PROTOBUF_MAP, content=PROTOBUF)
    assert (code, refused["reason"]) == (400, "BadRequest")
    code, refused = await api.call("PATCH", f"{MAPS}/a", PROTOBUF_MAP, content=PROTOBUF)
    assert (code, refused["reason"]) == (415, "UnsupportedMediaType")
    crds = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
    code, refused = await api.call("POST", crds, PROTOBUF_MAP, content=PROTOBUF)
    assert (code, refused["reason"]) == (415, "UnsupportedMediaType")
    code, refused = await api.call("POST", MAPS, b"\xa0", content="application/cbor")
    assert (code, refused["reason"]) == (415, "UnsupportedMediaType")


async def test_body_limit(api: Api) -> None:
    assert (await api.call("POST", MAPS, config_map("a", k="x" * 900_000)))[0] == 201
    code, refused = await api.call("POST", MAPS, io.BytesIO(b" " * (3 * 1024 * 1024 + 1)))
    assert (code, refused["reason"]) == (413, "RequestEntityTooLarge")


async def test_delete_answers(api: Api) -> None:
    made = await api.post(MAPS, config_map("a"))
    wrong = {"preconditions": {"uid": "other"}}
    assert (await api.delete(f"{MAPS}/a", wrong, 409))["reason"] == "Conflict"
    gone = await api.delete(f"{MAPS}/a", {"preconditions": {"uid": made["metadata"]["uid"]}})
    assert gone["status"] == "Success"
    assert gone["details"]["kind"] == "configmaps"
    missing = await api.delete(f"{MAPS}/a", code=404)
    assert missing["details"] == {"name": "a", "kind": "configmaps"}


async def test_pod_grace(api: Api) -> None:
    await api.post(PODS, pod("free"))
    assert (await api.delete(f"{PODS}/free"))["metadata"]["deletionGracePeriodSeconds"] == 0
    assert (await api.call("GET", f"{PODS}/free"))[0] == 404
    await api.post(PODS, pod("bound", nodeName="n1", terminationGracePeriodSeconds=20))
    marked = await api.delete(f"{PODS}/bound")
    assert marked["metadata"]["deletionGracePeriodSeconds"] == 20
    longer = await api.delete(f"{PODS}/bound", {"gracePeriodSeconds": 60})
    assert longer == marked
    shorter = await api.delete(f"{PODS}/bound", {"gracePeriodSeconds": 5})
    assert shorter["metadata"]["deletionGracePeriodSeconds"] == 5
    await api.delete(f"{PODS}/bound", {"gracePeriodSeconds": 0})
    assert (await api.call("GET", f"{PODS}/bound"))[0] == 404


async def test_a_second_delete_only_shortens_what_the_first_began(api: Api) -> None:
    body = pod("slow", nodeName="n1", terminationGracePeriodSeconds=30)
    await api.post(PODS, body)
    first = await api.delete(f"{PODS}/slow", {"gracePeriodSeconds": 300})
    began = parse_time(first["metadata"]["deletionTimestamp"]) - dt.timedelta(seconds=300)
    again = await api.delete(f"{PODS}/slow")
    assert again["metadata"]["deletionGracePeriodSeconds"] == 300
    assert again["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]
    shorter = (await api.delete(f"{PODS}/slow", {"gracePeriodSeconds": 100}))["metadata"]
    assert shorter["deletionGracePeriodSeconds"] == 100
    assert parse_time(shorter["deletionTimestamp"]) - began == dt.timedelta(seconds=100)


async def test_some_kinds_are_replaced_only_at_a_known_version(api: Api) -> None:
    leases = "/apis/coordination.k8s.io/v1/namespaces/default/leases"
    made = await api.post(leases, {"metadata": {"name": "l"}})
    body: dict[str, Any] = {"metadata": {"name": "l"}, "spec": {"holderIdentity": "me"}}
    code, refused = await api.call("PUT", f"{leases}/l", body)
    assert code == 422
    assert refused["message"] == (
        'Lease.coordination.k8s.io "l" is invalid: metadata.resourceVersion: Invalid value: 0x0: '
        "must be specified for an update"
    )
    body["metadata"]["resourceVersion"] = made["metadata"]["resourceVersion"]
    assert (await api.call("PUT", f"{leases}/l", body))[0] == 200
    await api.merge(f"{leases}/l", {"spec": {"holderIdentity": "you"}})
    await api.post(MAPS, config_map("c"))
    assert (await api.call("PUT", f"{MAPS}/c", config_map("c", a="b")))[0] == 200


@pytest.mark.parametrize(
    ("policy", "finalizer"), [("Foreground", "foregroundDeletion"), ("Orphan", "orphan")]
)
async def test_propagation(api: Api, policy: str, finalizer: str) -> None:
    await api.post(MAPS, config_map("a"))
    held = await api.delete(f"{MAPS}/a?propagationPolicy={policy}")
    assert held["metadata"]["finalizers"] == [finalizer]
    assert held["metadata"]["deletionTimestamp"]
    await api.merge(f"{MAPS}/a", {"metadata": {"finalizers": None}})
    assert (await api.call("GET", f"{MAPS}/a"))[0] == 404


async def test_delete_collection(api: Api) -> None:
    for name in ("a", "b", "c"):
        body = config_map(name)
        body["metadata"]["labels"] = {"keep": "yes" if name == "c" else "no"}
        await api.post(MAPS, body)
    gone = await api.delete(f"{MAPS}?labelSelector=keep=no")
    assert [item["metadata"]["name"] for item in gone["items"]] == ["a", "b"]
    assert [i["metadata"]["name"] for i in (await api.get(MAPS))["items"]] == ["c"]


async def test_namespace_life(api: Api) -> None:
    await api.post("/api/v1/namespaces", {"metadata": {"name": "shop"}})
    terminating = await api.delete("/api/v1/namespaces/shop")
    assert terminating["status"]["phase"] == "Terminating"
    maps = "/api/v1/namespaces/shop/configmaps"
    refused = await api.post(maps, config_map("a"), 403)
    assert refused["details"]["causes"][0]["reason"] == "NamespaceTerminating"
    assert "being terminated" in refused["message"]
    terminating["spec"] = {"finalizers": []}
    code, _ = await api.call("PUT", "/api/v1/namespaces/shop/finalize", terminating)
    assert code == 200
    assert (await api.call("GET", "/api/v1/namespaces/shop"))[0] == 404
    assert (await api.delete("/api/v1/namespaces/default", code=403))["reason"] == "Forbidden"


async def test_binding(api: Api) -> None:
    await api.post("/api/v1/nodes", NODE)
    await api.post(PODS, pod("a"))
    body = {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "a"}}
    body["target"] = {"kind": "Node", "name": "n1"}
    assert (await api.post(f"{PODS}/a/binding", body))["status"] == "Success"
    bound = await api.get(f"{PODS}/a")
    assert bound["spec"]["nodeName"] == "n1"
    assert bound["status"]["conditions"][0]["type"] == "PodScheduled"
    again = await api.post(f"{PODS}/a/binding", body, 409)
    assert 'already assigned to node "n1"' in again["message"]


async def test_eviction_respects_budgets(api: Api) -> None:
    await api.post(PODS, pod("a", nodeName="n1"))
    await api.merge(f"{PODS}/a/status", {"status": {"phase": "Running"}})
    budgets = "/apis/policy/v1/namespaces/default/poddisruptionbudgets"
    budget = {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {"name": "b"},
        "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "a"}}},
    }
    await api.post(budgets, budget)
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "a"}}
    refused = await api.post(f"{PODS}/a/eviction", eviction, 429)
    assert refused["message"].startswith("Cannot evict pod as it would violate")
    status = {
        "disruptionsAllowed": 1,
        "currentHealthy": 2,
        "desiredHealthy": 1,
        "expectedPods": 2,
    }
    await api.merge(f"{budgets}/b/status", {"status": status})
    await api.post(f"{PODS}/a/eviction", eviction)
    assert (await api.get(f"{PODS}/a"))["metadata"]["deletionTimestamp"]
    assert (await api.get(f"{budgets}/b"))["status"]["disruptionsAllowed"] == 0


async def test_parallel_creates_share_commits(api: Api) -> None:
    store = api.server.context.store
    before = store.commits
    await asyncio.gather(*(api.post(MAPS, config_map(f"m{i}")) for i in range(64)))
    versions = [i["metadata"]["resourceVersion"] for i in (await api.get(MAPS))["items"]]
    assert len(set(versions)) == 64
    assert store.commits - before < 64


async def test_secret_string_data(api: Api) -> None:
    secrets = "/api/v1/namespaces/default/secrets"
    body = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}}
    made = await api.post(secrets, {**body, "stringData": {"k": "v"}})
    assert made["data"] == {"k": "dg=="}
    assert "stringData" not in made
    patched = await api.merge(f"{secrets}/s", {"stringData": {"l": "w"}})
    assert patched["data"] == {"k": "dg==", "l": "dw=="}


async def test_job_labels_its_pods(api: Api) -> None:
    template = {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}}
    body = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "j"}}
    made = await api.post(
        "/apis/batch/v1/namespaces/default/jobs", {**body, "spec": {"template": template}}
    )
    uid = made["metadata"]["uid"]
    assert made["spec"]["selector"]["matchLabels"] == {"batch.kubernetes.io/controller-uid": uid}
    assert made["spec"]["template"]["metadata"]["labels"]["job-name"] == "j"


async def test_several_writers_of_one_status(api: Api) -> None:
    """Scheduler, kubelet and life cycle each own conditions: strategic patches merge by type."""
    await api.post(PODS, pod("a"))
    binding = {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "a"}}
    await api.post(f"{PODS}/a/binding", binding | {"target": {"kind": "Node", "name": "n1"}})
    ready = {"type": "Ready", "status": "True", "lastTransitionTime": "2024-01-01T00:00:00Z"}
    for status, wanted in (
        ({"phase": "Running", "conditions": [ready]}, {"Ready": "True"}),
        ({"conditions": [{"type": "Ready", "status": "False"}]}, {"Ready": "False"}),
        ({"conditions": [{"type": "Ready", "$patch": "delete"}]}, {}),
    ):
        body = {"spec": {"nodeName": "n2"}, "status": status}
        code, made = await api.call("PATCH", f"{PODS}/a/status", body, content=STRATEGIC)
        assert (code, made["spec"]["nodeName"]) == (200, "n1")
        found = {row["type"]: row["status"] for row in made["status"]["conditions"]}
        assert found == {"PodScheduled": "True", **wanted}
    assert made["status"]["phase"] == "Running"
    wrong = {"status": {"phase": 3}}
    code, refused = await api.call("PATCH", f"{PODS}/a/status", wrong, content=STRATEGIC)
    assert code == 400
    assert "PodStatus.status.phase" in refused["message"]
