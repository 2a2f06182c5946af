"""Controllers against the real API server in process, with kubelets that only say "running"."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import shutil
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from podwire.apiserver.app import ApiServer, ServerConfig
from podwire.client import Api, Change, Endpoint, Informer, PatchType
from podwire.controllers import ControllerConfig, run
from podwire.controllers import views as v
from podwire.controllers.statefulclaims import CLAIM
from podwire.errors import NotFoundError
from podwire.objects import kinds
from podwire.objects.apps import Deployment
from podwire.objects.meta import JsonObject, Key, Kind, Object, format_micro_time

WAIT_S = 15.0
READY = {
    "type": "Ready",
    "status": "True",
    "reason": "KubeletReady",
    "lastTransitionTime": "2024-01-01T00:00:00Z",
}


class FakeKubelet:
    """Bound pods run and are Ready at once; `done` containers succeed, `fail` ones fail; deleted
    pods end. Nodes in `silent` do nothing."""

    def __init__(self, api: Api) -> None:
        self.api = api
        self.pods: Informer[v.Pod] = Informer(api, v.POD)
        self.silent: set[str] = set()
        self.hold: set[str] = set()
        """Names of pods that do not become Ready."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._slots = asyncio.Semaphore(64)
        self.pods.on_change(self._changed)

    def _changed(self, change: Change[v.Pod]) -> None:
        pod = change.new
        if pod is None or not pod.spec.node_name or pod.spec.node_name in self.silent:
            return
        if pod.deleting or (pod.status.phase == "Pending" and pod.metadata.name not in self.hold):
            task = asyncio.ensure_future(self._act(pod))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _act(self, pod: v.Pod) -> None:
        meta = pod.metadata
        with contextlib.suppress(NotFoundError):
            async with self._slots:
                if pod.deleting:
                    await self.api.delete(
                        v.POD_WRITE, meta.name, meta.namespace, grace_period_s=0, uid=meta.uid
                    )
                    return
                phase = {"done": "Succeeded", "fail": "Failed"}.get(
                    pod.spec.containers[0].name, "Running"
                )
                status = {"phase": phase, "conditions": [READY] if phase == "Running" else []}
                await self.api.patch(
                    v.POD_WRITE,
                    meta.name,
                    {"status": status},
                    meta.namespace,
                    subresource="status",
                    patch_type=PatchType.STRATEGIC,
                )


@dataclass
class World:
    api: Api
    kubelet: FakeKubelet
    watched: dict[str, Informer[Any]] = field(default_factory=dict)

    async def add_node(self, name: str, zone: str = "", **spec: Any) -> None:
        labels = {"kubernetes.io/hostname": name}
        if zone:
            labels["topology.kubernetes.io/zone"] = zone
        await self.api.create(
            kinds.NODE, {"metadata": {"name": name, "labels": labels}, "spec": spec}
        )
        capacity = {"cpu": "64", "memory": "64Gi", "pods": "1000"}
        status = {"conditions": [READY], "allocatable": capacity, "capacity": capacity}
        await self.api.patch(
            kinds.NODE,
            name,
            {"status": status},
            subresource="status",
            patch_type=PatchType.STRATEGIC,
        )
        await self.until(lambda: self.node(name) is not None and not self.node(name).spec.taints)

    def node(self, name: str) -> Any:
        return self.watched["nodes"].objects.get(Key("", name))

    def get(self, kind: Kind[Any], name: str, namespace: str = "default") -> Any:
        key = Key(namespace if kind.namespaced else "", name)
        return self.watched[kind.plural].objects.get(key)

    def pods(self, namespace: str = "default", **labels: str) -> list[v.Pod]:
        return sorted(
            (
                p
                for p in self.kubelet.pods.objects.values()
                if p.metadata.namespace == namespace and labels.items() <= p.metadata.labels.items()
            ),
            key=lambda p: p.metadata.name,
        )

    async def until(self, condition: Callable[[], Any], timeout_s: float = WAIT_S) -> None:
        """Wait for a condition over watched objects; each change is a look."""
        changed = asyncio.Event()
        informers = [self.kubelet.pods, *self.watched.values()]
        for informer in informers:
            informer.on_change(lambda _: changed.set())
        async with asyncio.timeout(timeout_s):
            while not condition():
                changed.clear()
                await changed.wait()


WATCHED = (
    kinds.NODE,
    kinds.NAMESPACE,
    kinds.DEPLOYMENT,
    kinds.REPLICA_SET,
    kinds.STATEFUL_SET,
    kinds.DAEMON_SET,
    kinds.JOB,
    kinds.CRON_JOB,
    kinds.CONFIG_MAP,
    kinds.SERVICE_ACCOUNT,
    kinds.DISRUPTION_BUDGET,
    kinds.SERVICE_CIDR,
    kinds.IP_ADDRESS,
)


@contextlib.asynccontextmanager
async def open_world(path: Path, **config: Any) -> AsyncIterator[World]:
    socket = path / "api.sock"
    server = ServerConfig(
        path / "store.db",
        path / "pki",
        unix_socket=socket,
        tls_addresses=[("127.0.0.1", 0)],
    )
    options = ControllerConfig(**{"node_grace_s": 3600.0, "ca_text": "CA", **config})
    async with ApiServer(server) as running_server, Api(Endpoint(unix_socket=socket)) as api:
        (path / "kubeconfig").write_text(running_server.kubeconfig())
        kubelet = FakeKubelet(api)
        watched = {kind.plural: Informer(api, kind) for kind in WATCHED}
        async with Api(Endpoint(unix_socket=socket)) as mine:
            running = [
                asyncio.ensure_future(work)
                for work in (
                    run(mine, options),
                    kubelet.pods.run(),
                    *(informer.run() for informer in watched.values()),
                )
            ]
            try:
                yield World(api, kubelet, watched)
                for task in running:
                    assert not task.done(), task.exception()
            finally:
                for task in running:
                    task.cancel()
                await asyncio.gather(*running, return_exceptions=True)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with open_world(tmp_path) as world:
        for name, zone in (("node-1", "a"), ("node-2", "a"), ("node-3", "b")):
            await world.add_node(name, zone)
        await world.until(lambda: world.get(kinds.SERVICE_ACCOUNT, "default"))
        yield world


def template(app: str, image: str = "nginx:1", container: str = "main", **spec: Any) -> JsonObject:
    return {
        "metadata": {"labels": {"app": app}},
        "spec": {"containers": [{"name": container, "image": image}], **spec},
    }


def workload(name: str, replicas: int = 3, **spec: Any) -> JsonObject:
    body = {
        "replicas": replicas,
        "selector": {"matchLabels": {"app": name}},
        "template": template(name),
        **spec,
    }
    return {"metadata": {"name": name}, "spec": body}


def rolled_out(d: Deployment | None, replicas: int) -> bool:
    return (
        d is not None
        and d.status.observed_generation >= d.metadata.generation
        and d.status.updated_replicas == d.status.replicas == replicas
        and d.status.available_replicas == replicas
        and any(c.reason == "NewReplicaSetAvailable" for c in d.status.conditions)
    )


async def test_deployment_rolls_out_updates_back_and_scales(world: World) -> None:
    await world.api.create(kinds.DEPLOYMENT, workload("web", 4), "default")
    await world.until(lambda: rolled_out(world.get(kinds.DEPLOYMENT, "web"), 4))
    assert {p.spec.node_name for p in world.pods(app="web")} == {"node-1", "node-2", "node-3"}
    update = {"spec": {"template": template("web", "nginx:2")}}
    await world.api.patch(kinds.DEPLOYMENT, "web", update, "default")
    await world.until(
        lambda: (
            rolled_out(world.get(kinds.DEPLOYMENT, "web"), 4)
            and {p.spec.containers[0].image for p in world.pods(app="web")} == {"nginx:2"}
        )
    )
    sets = list(world.watched["replicasets"].objects.values())
    revisions = {s.metadata.annotations["deployment.kubernetes.io/revision"] for s in sets}
    assert revisions == {"1", "2"}
    back = {"spec": {"template": template("web", "nginx:1"), "replicas": 2}}
    await world.api.patch(kinds.DEPLOYMENT, "web", back, "default")
    await world.until(
        lambda: (
            rolled_out(world.get(kinds.DEPLOYMENT, "web"), 2)
            and {p.spec.containers[0].image for p in world.pods(app="web")} == {"nginx:1"}
            and len(world.pods(app="web")) == 2
        )
    )
    d = world.get(kinds.DEPLOYMENT, "web")
    assert d.metadata.annotations["deployment.kubernetes.io/revision"] == "3"
    assert len(world.watched["replicasets"].objects) == 2


async def test_recreate_never_runs_two_versions(world: World) -> None:
    await world.api.create(
        kinds.DEPLOYMENT, workload("web", 2, strategy={"type": "Recreate"}), "default"
    )
    await world.until(lambda: rolled_out(world.get(kinds.DEPLOYMENT, "web"), 2))
    seen: list[set[str]] = []
    world.kubelet.pods.on_change(
        lambda _: seen.append({p.spec.containers[0].image for p in world.pods(app="web")})
    )
    update = {"spec": {"template": template("web", "nginx:2")}}
    await world.api.patch(kinds.DEPLOYMENT, "web", update, "default")
    await world.until(
        lambda: (
            rolled_out(world.get(kinds.DEPLOYMENT, "web"), 2)
            and {p.spec.containers[0].image for p in world.pods(app="web")} == {"nginx:2"}
        )
    )
    assert all(len(images) <= 1 for images in seen)


async def test_deleting_a_deployment_collects_everything_it_owns(world: World) -> None:
    await world.api.create(kinds.DEPLOYMENT, workload("web", 3), "default")
    await world.until(lambda: rolled_out(world.get(kinds.DEPLOYMENT, "web"), 3))
    await world.api.delete(kinds.DEPLOYMENT, "web", "default", propagation="Foreground")
    await world.until(
        lambda: (
            not world.pods(app="web")
            and not world.watched["replicasets"].objects
            and world.get(kinds.DEPLOYMENT, "web") is None
        )
    )
    await world.api.create(kinds.DEPLOYMENT, workload("kept", 2), "default")
    await world.until(lambda: rolled_out(world.get(kinds.DEPLOYMENT, "kept"), 2))
    await world.api.delete(kinds.DEPLOYMENT, "kept", "default", propagation="Orphan")
    await world.until(lambda: world.get(kinds.DEPLOYMENT, "kept") is None)
    (rs,) = world.watched["replicasets"].objects.values()
    await world.until(
        lambda: not world.get(kinds.REPLICA_SET, rs.metadata.name).metadata.owner_references
    )
    await world.api.delete(kinds.REPLICA_SET, rs.metadata.name, "default")
    await world.until(lambda: not world.pods(app="kept"))


async def test_replica_set_replaces_releases_and_adopts(world: World) -> None:
    await world.api.create(kinds.REPLICA_SET, workload("rs", 2), "default")
    await world.until(lambda: len([p for p in world.pods(app="rs") if p.ready]) == 2)
    name = world.pods(app="rs")[0].metadata.name
    await world.api.patch(v.POD_WRITE, name, {"metadata": {"labels": {"app": "out"}}}, "default")
    await world.until(
        lambda: (
            len(world.pods(app="rs")) == 2
            and world.pods(app="out")
            and not world.pods(app="out")[0].metadata.owner_references
        )
    )
    await world.api.patch(v.POD_WRITE, name, {"metadata": {"labels": {"app": "rs"}}}, "default")
    await world.until(
        lambda: (
            len(world.pods(app="rs")) == 2
            and all(p.metadata.controller for p in world.pods(app="rs"))
        )
    )


async def test_stateful_set_keeps_order(world: World) -> None:
    made: list[str] = []
    world.kubelet.pods.on_change(
        lambda c: made.append(c.key.name) if c.old is None and c.new else None
    )
    world.kubelet.hold.add("db-1")
    await world.api.create(kinds.STATEFUL_SET, workload("db", 3, serviceName="db"), "default")
    await world.until(lambda: len(world.pods(app="db")) == 2)
    world.kubelet.hold.clear()
    await world.kubelet._act(world.pods(app="db")[1])
    await world.until(
        lambda: (
            (s := world.get(kinds.STATEFUL_SET, "db")) is not None
            and s.status.available_replicas == 3
        )
    )
    assert made == ["db-0", "db-1", "db-2"]
    first = world.pods(app="db")[0].metadata.labels
    assert first["statefulset.kubernetes.io/pod-name"] == "db-0"
    assert first["apps.kubernetes.io/pod-index"] == "0"
    rolling = {"type": "RollingUpdate", "rollingUpdate": {"partition": 1}}
    update = {"spec": {"template": template("db", "nginx:2"), "updateStrategy": rolling}}
    await world.api.patch(kinds.STATEFUL_SET, "db", update, "default")
    await world.until(
        lambda: (
            [p.spec.containers[0].image for p in world.pods(app="db") if p.ready]
            == ["nginx:1", "nginx:2", "nginx:2"]
        )
    )
    rolling["rollingUpdate"] = {"partition": 0}
    await world.api.patch(
        kinds.STATEFUL_SET, "db", {"spec": {"updateStrategy": rolling, "replicas": 2}}, "default"
    )
    await world.until(
        lambda: (
            [p.spec.containers[0].image for p in world.pods(app="db") if p.ready] == ["nginx:2"] * 2
            and (s := world.get(kinds.STATEFUL_SET, "db")).status.current_revision
            == s.status.update_revision
            and s.status.replicas == 2
        )
    )


async def test_claims_of_a_stateful_set_go_as_its_policy_says(world: World) -> None:
    claims = Informer(world.api, CLAIM)
    world.watched["claims"] = claims
    task = asyncio.ensure_future(claims.run())
    template_ = {
        "metadata": {"name": "data"},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "1Gi"}},
        },
    }
    policy = {"whenDeleted": "Delete", "whenScaled": "Delete"}
    spec = {
        "serviceName": "db",
        "volumeClaimTemplates": [template_],
        "persistentVolumeClaimRetentionPolicy": policy,
    }
    await world.api.create(kinds.STATEFUL_SET, workload("db", 2, **spec), "default")

    def names() -> set[str]:
        return {key.name for key in claims.objects}

    def ready() -> int:
        return sum(pod.ready for pod in world.pods(app="db"))

    await world.until(lambda: ready() == 2)
    assert names() == {"data-db-0", "data-db-1"}
    await world.api.patch(kinds.STATEFUL_SET, "db", {"spec": {"replicas": 1}}, "default")
    await world.until(lambda: names() == {"data-db-0"})
    await world.api.patch(kinds.STATEFUL_SET, "db", {"spec": {"replicas": 2}}, "default")
    await world.until(lambda: ready() == 2 and len(names()) == 2)
    keep = {"whenDeleted": "Retain", "whenScaled": "Retain"}
    update = {"spec": {"persistentVolumeClaimRetentionPolicy": keep}}
    await world.api.patch(kinds.STATEFUL_SET, "db", update, "default")
    await world.until(lambda: not any(c.metadata.owner_references for c in claims.objects.values()))
    await world.api.delete(kinds.STATEFUL_SET, "db", "default")
    await world.until(lambda: not world.pods(app="db"))
    assert len(names()) == 2
    task.cancel()


async def test_daemon_set_follows_nodes(world: World) -> None:
    await world.api.create(
        kinds.DAEMON_SET,
        {
            "metadata": {"name": "agent"},
            "spec": {
                "selector": {"matchLabels": {"app": "agent"}},
                "template": template("agent"),
            },
        },
        "default",
    )
    await world.until(lambda: len([p for p in world.pods(app="agent") if p.ready]) == 3)
    await world.add_node("node-4")
    await world.until(
        lambda: (
            {p.spec.node_name for p in world.pods(app="agent") if p.ready}
            == {"node-1", "node-2", "node-3", "node-4"}
        )
    )
    await world.api.delete(kinds.NODE, "node-4")
    await world.until(
        lambda: (
            len(world.pods(app="agent")) == 3
            and world.get(kinds.DAEMON_SET, "agent").status.number_available == 3
        )
    )
    update = {"spec": {"template": template("agent", "nginx:2")}}
    await world.api.patch(kinds.DAEMON_SET, "agent", update, "default")
    await world.until(
        lambda: (
            [p.spec.containers[0].image for p in world.pods(app="agent") if p.ready]
            == ["nginx:2"] * 3
            and world.get(kinds.DAEMON_SET, "agent").status.updated_number_scheduled == 3
        )
    )


def job(name: str, container: str = "done", **spec: Any) -> JsonObject:
    body = template(name, container=container, restartPolicy="Never")
    return {"metadata": {"name": name}, "spec": {"template": body, **spec}}


async def test_jobs_complete_fail_and_expire(world: World) -> None:
    await world.api.create(
        kinds.JOB, job("idx", completions=5, parallelism=2, completionMode="Indexed"), "default"
    )
    await world.api.create(kinds.JOB, job("bad", "fail", backoffLimit=0), "default")
    await world.api.create(kinds.JOB, job("ttl", ttlSecondsAfterFinished=0), "default")
    await world.until(lambda: (j := world.get(kinds.JOB, "idx")) is not None and j.outcome)
    done = world.get(kinds.JOB, "idx")
    assert (done.outcome, done.status.succeeded) == ("Complete", 5)
    assert done.status.completed_indexes == "0-4"
    assert {
        p.metadata.annotations["batch.kubernetes.io/job-completion-index"]
        for p in world.pods(app="idx")
    } == set("01234")
    await world.until(lambda: (j := world.get(kinds.JOB, "bad")) is not None and j.outcome)
    bad = world.get(kinds.JOB, "bad")
    assert bad.outcome == "Failed"
    assert {c.reason for c in bad.status.conditions} == {"BackoffLimitExceeded"}
    await world.until(lambda: world.get(kinds.JOB, "ttl") is None and not world.pods(app="ttl"))


async def test_jobs_of_indexes_end_by_their_policies(world: World) -> None:
    indexed: JsonObject = {"completionMode": "Indexed", "completions": 3, "parallelism": 1}
    enough = {"rules": [{"succeededIndexes": "0-1"}]}
    await world.api.create(kinds.JOB, job("enough", successPolicy=enough, **indexed), "default")
    await world.api.create(
        kinds.JOB, job("lost", "fail", backoffLimitPerIndex=0, **indexed), "default"
    )
    many = {"backoffLimitPerIndex": 0, "maxFailedIndexes": 1}
    await world.api.create(kinds.JOB, job("many", "fail", **many, **indexed), "default")

    async def end(name: str) -> Any:
        await world.until(lambda: (j := world.get(kinds.JOB, name)) is not None and j.outcome)
        return world.get(kinds.JOB, name)

    done = await end("enough")
    assert (done.outcome, done.status.completed_indexes) == ("Complete", "0,1")
    assert {c.reason for c in done.status.conditions} == {"SuccessPolicy"}
    lost = await end("lost")
    assert (lost.outcome, lost.status.failed_indexes, lost.status.failed) == ("Failed", "0-2", 3)
    assert {c.reason for c in lost.status.conditions} == {"FailedIndexes"}
    too_many = await end("many")
    assert (too_many.outcome, too_many.status.failed_indexes) == ("Failed", "0,1")
    assert {c.reason for c in too_many.status.conditions} == {"MaxFailedIndexesExceeded"}


async def test_suspending_a_job_is_no_failure(world: World) -> None:
    await world.api.create(kinds.JOB, job("idle", "main", backoffLimit=0), "default")
    await world.until(lambda: any(p.ready for p in world.pods(app="idle")))
    await world.api.patch(kinds.JOB, "idle", {"spec": {"suspend": True}}, "default")
    await world.until(
        lambda: not world.pods(app="idle") and not world.get(kinds.JOB, "idle").status.active
    )
    idle = world.get(kinds.JOB, "idle")
    assert (idle.status.failed, idle.outcome) == (0, "")
    await world.api.patch(kinds.JOB, "idle", {"spec": {"suspend": False}}, "default")
    await world.until(lambda: any(p.ready for p in world.pods(app="idle")))


async def test_cron_job_starts_what_it_missed(world: World) -> None:
    spec = {"schedule": "* * * * *", "jobTemplate": {"spec": job("x")["spec"]}, "suspend": True}
    await world.api.create(kinds.CRON_JOB, {"metadata": {"name": "tick"}, "spec": spec}, "default")
    await world.api.patch(
        kinds.CRON_JOB,
        "tick",
        {"status": {"lastScheduleTime": "2024-01-01T00:00:00Z"}},
        "default",
        subresource="status",
    )
    await world.api.patch(kinds.CRON_JOB, "tick", {"spec": {"suspend": False}}, "default")
    await world.until(
        lambda: (
            (c := world.get(kinds.CRON_JOB, "tick")) is not None
            and c.status.last_successful_time
            and not c.status.active
        )
    )


async def test_namespace_goes_with_all_it_holds(world: World) -> None:
    await world.api.create(kinds.NAMESPACE, {"metadata": {"name": "shop"}})
    await world.until(lambda: world.get(kinds.SERVICE_ACCOUNT, "default", "shop"))
    await world.until(lambda: world.get(kinds.CONFIG_MAP, "kube-root-ca.crt", "shop"))
    await world.api.create(kinds.DEPLOYMENT, workload("web", 3), "shop")
    await world.api.create(kinds.JOB, job("run", "main"), "shop")
    await world.until(lambda: len([p for p in world.pods("shop") if p.ready]) == 4)
    await world.api.delete(kinds.NAMESPACE, "shop")
    await world.until(lambda: world.get(kinds.NAMESPACE, "shop") is None)
    assert world.pods("shop") == []


async def test_unschedulable_pod_is_told_why_and_retried(world: World) -> None:
    pod = template("lost", nodeSelector={"disk": "ssd"})
    await world.api.create(v.POD, {**pod, "metadata": {"name": "lost"}}, "default")
    want = "0/3 nodes are available: 3 node(s) didn't match Pod's node affinity/selector."
    await world.until(
        lambda: any(c.message == want for p in world.pods() for c in p.status.conditions)
    )
    await world.api.patch(kinds.NODE, "node-2", {"metadata": {"labels": {"disk": "ssd"}}})
    await world.until(lambda: world.pods()[0].spec.node_name == "node-2")


async def test_node_ranges_come_from_the_cluster_cidr(world: World) -> None:
    await world.until(lambda: all(world.node(f"node-{i}").spec.pod_cidrs for i in (1, 2, 3)))
    ranges = {world.node(f"node-{i}").spec.pod_cidr for i in (1, 2, 3)}
    assert ranges == {"10.244.0.0/24", "10.244.1.0/24", "10.244.2.0/24"}
    await world.api.delete(kinds.NODE, "node-1")
    await world.until(lambda: world.node("node-1") is None)
    await world.add_node("node-5")
    await world.until(lambda: world.node("node-5").spec.pod_cidr == "10.244.3.0/24")


async def test_a_service_range_is_held_while_a_service_needs_it(world: World) -> None:
    """As upstream's e2e "ServiceCIDR API operations": from creation to the last address."""

    def ready() -> str:
        found = world.get(kinds.SERVICE_CIDR, "more")
        return found.status.conditions[0].status if found and found.status.conditions else ""

    spec = {"cidrs": ["10.97.0.0/28"]}
    await world.api.create(kinds.SERVICE_CIDR, {"metadata": {"name": "more"}, "spec": spec})
    await world.until(lambda: ready() == "True")
    service = {
        "metadata": {"name": "s"},
        "spec": {"clusterIP": "10.97.0.3", "ports": [{"port": 80}], "selector": {"a": "b"}},
    }
    await world.api.create(kinds.SERVICE, service, "default")
    await world.until(lambda: world.get(kinds.IP_ADDRESS, "10.97.0.3"))
    await world.api.delete(kinds.IP_ADDRESS, "10.97.0.3")
    await world.until(lambda: world.get(kinds.IP_ADDRESS, "10.97.0.3") is None)
    await world.until(lambda: world.get(kinds.IP_ADDRESS, "10.97.0.3"))
    await world.api.delete(kinds.SERVICE_CIDR, "more")
    await world.until(lambda: ready() == "False")
    await world.api.delete(kinds.SERVICE, "s", "default")
    await world.until(lambda: world.get(kinds.SERVICE_CIDR, "more") is None)
    assert world.get(kinds.IP_ADDRESS, "10.97.0.3") is None


async def test_silent_node_is_tainted_evicted_and_comes_back(tmp_path: Path) -> None:
    async with open_world(tmp_path, node_grace_s=0.5) as world:
        renewing = asyncio.ensure_future(_renew(world.api, ["node-1"]))
        await world.add_node("node-1")
        taint = {
            "key": "node.kubernetes.io/unreachable",
            "effect": "NoExecute",
            "operator": "Exists",
        }
        pod = template("p", nodeName="node-1", tolerations=[{**taint, "tolerationSeconds": 1}])
        await world.api.create(v.POD, {**pod, "metadata": {"name": "p"}}, "default")
        await world.until(lambda: world.pods() and world.pods()[0].ready)
        renewing.cancel()
        await world.until(lambda: len(world.node("node-1").spec.taints) == 2)
        assert not world.node("node-1").ready
        await world.until(lambda: not world.pods())
        renewing = asyncio.ensure_future(_renew(world.api, ["node-1"]))
        await world.until(
            lambda: world.node("node-1").ready and not world.node("node-1").spec.taints
        )
        renewing.cancel()


async def _renew(api: Api, names: list[str]) -> None:
    while True:
        for name in names:
            now = format_micro_time(dt.datetime.now(dt.UTC))
            body = {"spec": {"renewTime": now, "holderIdentity": name}}
            try:
                await api.patch(kinds.LEASE, name, body, "kube-node-lease")
            except NotFoundError:
                await api.create(
                    kinds.LEASE, {"metadata": {"name": name}, **body}, "kube-node-lease"
                )
        await asyncio.sleep(0.1)


async def test_custom_kinds_are_collected_too(world: World) -> None:
    crd = {
        "metadata": {"name": "things.example.com"},
        "spec": {
            "group": "example.com",
            "scope": "Namespaced",
            "names": {"kind": "Thing", "plural": "things", "singular": "thing"},
            "versions": [
                {
                    "name": "v1",
                    "served": True,
                    "storage": True,
                    "schema": {"openAPIV3Schema": {"type": "object"}},
                }
            ],
        },
    }
    crds: Kind[Any] = Kind(
        "apiextensions.k8s.io",
        "v1",
        "CustomResourceDefinition",
        "customresourcedefinitions",
        False,
        Object,
    )
    things: Kind[Any] = Kind("example.com", "v1", "Thing", "things", True, Object)
    await world.api.create(crds, crd)
    async with asyncio.timeout(WAIT_S):
        while True:
            with contextlib.suppress(NotFoundError):
                thing = await world.api.create(things, {"metadata": {"name": "t"}}, "default")
                break
    owner = {
        "apiVersion": "example.com/v1",
        "kind": "Thing",
        "name": "t",
        "uid": thing.metadata.uid,
    }
    await world.api.create(
        kinds.CONFIG_MAP, {"metadata": {"name": "c", "ownerReferences": [owner]}}, "default"
    )
    await world.until(lambda: world.get(kinds.CONFIG_MAP, "c"))
    await world.api.delete(things, "t", "default")
    await world.until(lambda: world.get(kinds.CONFIG_MAP, "c") is None)


async def test_disruption_budget_counts_healthy_pods(world: World) -> None:
    budget = {
        "metadata": {"name": "web"},
        "spec": {"maxUnavailable": 1, "selector": {"matchLabels": {"app": "web"}}},
    }
    await world.api.create(kinds.DISRUPTION_BUDGET, budget, "default")
    await world.api.create(kinds.DEPLOYMENT, workload("web", 3), "default")
    await world.until(
        lambda: (
            (b := world.get(kinds.DISRUPTION_BUDGET, "web")) is not None
            and b.status.disruptions_allowed == 1
            and b.status.expected_pods == 3
        )
    )


async def _kubectl(path: Path, *args: str) -> str:
    process = await asyncio.create_subprocess_exec(
        "kubectl",
        f"--kubeconfig={path / 'kubeconfig'}",
        f"--cache-dir={path / 'cache'}",
        *args,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, output.decode()
    return output.decode()


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="no kubectl on PATH")
async def test_kubectl_follows_rollouts(world: World, tmp_path: Path) -> None:
    for kind, name in (
        (kinds.DEPLOYMENT, "web"),
        (kinds.STATEFUL_SET, "db"),
        (kinds.DAEMON_SET, "agent"),
    ):
        body = workload(name, 3)
        if kind is kinds.DAEMON_SET:
            del body["spec"]["replicas"]
        await world.api.create(kind, body, "default")
    for what in ("deployment/web", "statefulset/db", "daemonset/agent"):
        await _kubectl(tmp_path, "rollout", "status", what, "--timeout=20s")
        await _kubectl(tmp_path, "set", "image", what, "main=nginx:2")
        await _kubectl(tmp_path, "rollout", "status", what, "--timeout=20s")
        assert "2" in await _kubectl(tmp_path, "rollout", "history", what)
        await _kubectl(tmp_path, "rollout", "undo", what)
        await _kubectl(tmp_path, "rollout", "status", what, "--timeout=20s")
        app = what.partition("/")[2]
        assert {p.spec.containers[0].image for p in world.pods(app=app)} == {"nginx:1"}
    await _kubectl(tmp_path, "scale", "deployment/web", "--replicas=1")
    await world.until(lambda: rolled_out(world.get(kinds.DEPLOYMENT, "web"), 1))
