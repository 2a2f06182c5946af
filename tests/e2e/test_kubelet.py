"""The kubelet's part of a node against a real API server, in namespaces of its own.

Each test forks a child that unshares its namespaces, starts an API server, a stand-in process and
an agent as processes, and drives them through the API. Nothing outlives the child.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import time
import traceback
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from pathlib import Path
from typing import Any, NoReturn

import aiohttp
import pytest
import uvloop

from podwire.apiserver.app import ApiServer, ServerConfig
from podwire.client import Api, Endpoint, Informer, PatchType
from podwire.cni import NetworkConfig
from podwire.cni.attach import KernelPodNetwork, NodeLinks
from podwire.cni.ipam import LeaseStore
from podwire.errors import ContainerError
from podwire.kernel import libc, userns
from podwire.kernel.requests import AddLink, Address, Replace, SetLink, Veth
from podwire.kernel.rtnl import Rtnl
from podwire.objects import kinds
from podwire.objects.core import Pod
from podwire.runtime import EXIT_NODE_REMOVED, standin
from podwire.runtime.config import KubeletConfig
from podwire.runtime.containers import (
    ContainerSpec,
    ExecProcess,
    ExitStatus,
    Image,
    RunningContainer,
)
from podwire.runtime.kubelet import Kubelet
from podwire.runtime.server import KubeletServer

RUN = Path("/run/podwire")
NODE_IP = IPv4Address("172.30.0.2")
TIMEOUT_S = 20.0
Scenario = Callable[["World"], Awaitable[None]]


# --- processes ------------------------------------------------------------------------------------


def fork(work: Callable[[], int]) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        libc.set_pdeathsig(signal.SIGKILL)
        code = work()
    except BaseException:
        traceback.print_exc()
    os._exit(code)


async def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    await asyncio.to_thread(os.waitpid, pid, 0)


def run_loop(main: Callable[[], Awaitable[int]]) -> int:
    async def go() -> int:
        return await main()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(go())


async def serve_api() -> NoReturn:
    config = ServerConfig(RUN / "store.db", RUN / "pki", unix_socket=RUN / "api.sock")
    async with ApiServer(config):
        await asyncio.Event().wait()
    raise AssertionError


def endpoint() -> Api:
    return Api(Endpoint(unix_socket=RUN / "api.sock"))


class RealContainer:
    """What a runtime would have started: runs until it is killed."""

    def __init__(self, spec: ContainerSpec) -> None:
        self.id = f"test://{spec.pod_uid}/{spec.name}/{spec.attempt}"
        self.name, self.attempt, self.image_id = spec.name, spec.attempt, ""
        self.log_path, self.started_at = spec.log_path, time.time()
        self._ended: asyncio.Future[ExitStatus] = asyncio.get_running_loop().create_future()

    async def wait(self) -> ExitStatus:
        return await asyncio.shield(self._ended)

    async def kill(self, signal: int) -> None:
        if not self._ended.done():
            self._ended.set_result(ExitStatus(128 + signal, signal))

    async def exec(
        self, command: Sequence[str], *, tty: bool = False, stdin: bool = False
    ) -> ExecProcess:
        raise ContainerError(f"container {self.name}: nothing to run {command} in")

    async def attach(self) -> ExecProcess:
        raise ContainerError(f"container {self.name}: nothing to attach to")

    async def remove(self) -> None:
        pass


class RealRuntime:
    """A `ContainerRuntime` that has every image `real/...`; volumes are the kubelet's part."""

    name, version = "test", "1"

    async def find_image(self, reference: str) -> Image | None:
        return Image(reference, "sha256:1") if reference.startswith("real/") else None

    async def list_images(self) -> list[Image]:
        return []

    async def create_and_start(self, spec: ContainerSpec) -> RunningContainer:
        return RealContainer(spec)

    async def recover(self, pod_uid: str) -> Sequence[RunningContainer]:
        return []

    async def remove_pod(self, pod_uid: str) -> None:
        pass


async def serve_agent() -> int:
    node_dir = RUN / "nodes/node-1"
    config = KubeletConfig("node-1", (NODE_IP,), node_dir, RUN / "pods", RUN / "images", "boot")
    network = KernelPodNetwork(NetworkConfig(), LeaseStore(RUN / "ipam.db", "boot"), RUN / "pods")
    network.configure([IPv4Network("10.244.1.0/29")], NodeLinks(1500, (NODE_IP,)))
    async with endpoint() as api:
        kubelet = Kubelet(config, api, network, runtime=RealRuntime())
        async with KubeletServer(kubelet):
            return await kubelet.run()


def serve_standins() -> int:
    return standin.main(standin.StandinConfig("node-1", RUN / "nodes/node-1/standin.sock"))


# --- one world per test ---------------------------------------------------------------------------


@dataclass
class World:
    api: Api
    agent: int = 0
    standins: int = 0
    changed: list[str] = field(default_factory=list)

    def start_agent(self) -> None:
        self.agent = fork(lambda: run_loop(serve_agent))

    def start_standins(self) -> None:
        self.standins = fork(serve_standins)

    async def create(self, name: str, spec: dict[str, Any], **annotations: str) -> None:
        marks = {f"standin.podwire.dev/{k.replace('_', '-')}": v for k, v in annotations.items()}
        meta = {"name": name, "namespace": "default", "annotations": marks}
        await self.api.create(kinds.POD, {"metadata": meta, "spec": {"nodeName": "node-1", **spec}})

    async def pod(self, name: str) -> Pod:
        return await self.api.get(kinds.POD, name, "default")

    async def until(self, name: str, holds: Callable[[Pod], bool]) -> Pod:
        """Follow the pod's watch until `holds`; the pod as it then was."""
        pods, version = await self.api.list(kinds.POD, "default")
        for pod in pods:
            if pod.metadata.name == name and holds(pod):
                return pod
        decode = _event_decoder()
        try:
            async with asyncio.timeout(TIMEOUT_S):
                async for lines in self.api.watch_lines(kinds.POD, version, namespace="default"):
                    for line in filter(None, lines):
                        kind, pod = decode(line)
                        if pod.metadata.name != name:
                            continue
                        if kind != "BOOKMARK" and holds(pod):
                            return pod
        except TimeoutError:
            raise AssertionError(f"pod {name}: {(await self.pod(name)).status}") from None
        raise AssertionError("the watch ended")

    async def until_event(self, reason: str, name: str) -> None:
        """Until an Event with that reason is about the pod."""
        said = asyncio.Event()
        events = Informer(self.api, kinds.EVENT, field_selector=f"reason={reason}")
        task = asyncio.create_task(events.run())
        events.on_change(
            lambda change: (
                said.set()
                if change.new is not None and change.new.involved_object["name"] == name
                else None
            )
        )
        async with asyncio.timeout(TIMEOUT_S):
            await said.wait()
        task.cancel()

    async def until_gone(self, name: str) -> None:
        gone = asyncio.Event()
        pods = Informer(self.api, kinds.POD, field_selector=f"metadata.name={name}")
        task = asyncio.create_task(pods.run())
        await pods.synced.wait()
        pods.on_change(lambda change: gone.set() if change.new is None else None)
        async with asyncio.timeout(TIMEOUT_S):
            if pods.objects:
                await gone.wait()
        task.cancel()


def _event_decoder() -> Callable[[bytes], tuple[str, Pod]]:
    import msgspec

    event = msgspec.defstruct("Event", [("type", str), ("object", Pod)])
    decoder = msgspec.json.Decoder(event)

    def decode(line: bytes) -> tuple[str, Pod]:
        found: Any = decoder.decode(line)
        return found.type, found.object

    return decode


def build_node() -> None:
    userns.unshare_as_root(libc.CLONE_NEWNET | libc.CLONE_NEWNS)
    libc.mount("tmpfs", "/run", "tmpfs")
    (RUN / "pods").mkdir(parents=True)
    rtnl = Rtnl()
    address = IPv4Interface(f"{NODE_IP}/24")
    rtnl.apply(
        [
            SetLink(device="lo", up=True),
            AddLink(name="eth0", kind=Veth(peer="uplink"), up=True),
            Replace(Address("eth0", address)),
        ]
    )
    rtnl.close()


def in_world(scenario: Scenario) -> None:
    """Run a scenario in a child with its own node; its traceback becomes the failure here."""
    receive, send = os.pipe()

    def child() -> int:
        os.close(receive)
        try:
            build_node()
            fork(lambda: run_loop(serve_api))
            asyncio.run(_drive(scenario))
        except BaseException:
            os.write(send, traceback.format_exc().encode()[-60000:])
            return 1
        return 0

    pid = fork(child)
    os.close(send)
    with os.fdopen(receive, "rb") as pipe:
        words = pipe.read().decode()
    _, status = os.waitpid(pid, 0)
    assert status == 0, words


async def _drive(scenario: Scenario) -> None:
    async with endpoint() as api:
        await api.wait_healthy()
        world = World(api)
        world.start_standins()
        world.start_agent()
        await _until_node(api)
        await scenario(world)


async def _until_node(api: Api) -> None:
    nodes = Informer(api, kinds.NODE)
    found = asyncio.Event()
    nodes.on_change(lambda _: found.set())
    task = asyncio.create_task(nodes.run())
    async with asyncio.timeout(TIMEOUT_S):
        await found.wait()
    task.cancel()


@pytest.fixture(autouse=True, scope="module")
def may_unshare() -> None:
    pid = os.fork()
    if pid == 0:
        try:
            build_node()
            os._exit(0)
        except BaseException:
            os._exit(1)
    if os.waitpid(pid, 0)[1]:
        pytest.skip("needs root or user namespaces")


def container(name: str = "c", *ports: int, **more: Any) -> dict[str, Any]:
    declared = [{"containerPort": port} for port in ports]
    return {"name": name, "image": "example.com/app:1", "ports": declared, **more}


HEAVY = {"requests": {"cpu": "9000"}}


def is_ready(pod: Pod) -> bool:
    return pod.ready


def restarts(pod: Pod) -> int:
    return sum(status.restart_count for status in pod.status.container_statuses)


def ended(sock: socket.socket) -> bool:
    """Whether the peer is gone: a reset, or an end without an answer."""
    try:
        return sock.recv(4096) == b""
    except ConnectionResetError:
        return True


def get(address: str, port: int, path: str) -> str:
    with socket.create_connection((address, port), timeout=5) as sock:
        sock.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
        data = b""
        while block := sock.recv(65536):
            data += block
    return data.partition(b"\r\n\r\n")[2].decode()


# --- scenarios ------------------------------------------------------------------------------------


async def _one_patch(world: World) -> None:
    probe = {"httpGet": {"path": "/healthz", "port": "web"}, "initialDelaySeconds": 30}
    web = container("c", readinessProbe=probe)
    web["ports"] = [{"containerPort": 8080, "name": "web"}]
    _, version = await world.api.list(kinds.POD, "default")
    await world.create("web", {"containers": [web]})
    pod = await world.until("web", is_ready)
    decode = _event_decoder()
    phases = []
    async for lines in world.api.watch_lines(kinds.POD, version, namespace="default"):
        phases += [decode(line)[1].status.phase for line in lines if line]
        if "Running" in phases:
            break
    assert phases == ["Pending", "Running"]
    assert pod.status.phase == "Running"
    answer = json.loads(get(pod.status.pod_ip, 8080, "/who"))
    assert (answer["pod"], answer["address"], answer["client"]) == (
        "web",
        pod.status.pod_ip,
        str(NODE_IP),
    )


async def _init_containers_and_jobs(world: World) -> None:
    inits = [container("one"), {**container("side", 81), "restartPolicy": "Always"}]
    await world.create("app", {"containers": [container("c", 80)], "initContainers": inits})
    pod = await world.until("app", is_ready)
    (one, side) = pod.status.init_container_statuses
    assert one.state.terminated is not None
    assert one.state.terminated.exit_code == 0
    assert side.state.running is not None
    await world.create(
        "failed", {"containers": [container()], "restartPolicy": "Never"}, exit_code="3"
    )
    failed = await world.until("failed", lambda pod: pod.status.phase == "Failed")
    (status,) = failed.status.container_statuses
    assert status.state.terminated is not None
    assert status.state.terminated.exit_code == 3


async def _port_clash(world: World) -> None:
    await world.create("clash", {"containers": [container("a", 80), container("b", 80)]})

    pod = await world.until("clash", waits_for("CrashLoopBackOff"))
    a, b = pod.status.container_statuses
    assert a.ready
    assert b.last_state.terminated is not None
    assert b.last_state.terminated.message == "bind: address already in use"


def on_host_port(port: int, **spec: Any) -> dict[str, Any]:
    return {"hostNetwork": True, "containers": [container("c", port)], **spec}


def failed_for(reason: str) -> Callable[[Pod], bool]:
    return lambda pod: (pod.status.phase, pod.status.reason) == ("Failed", reason)


async def _admission(world: World) -> None:
    """A pod that is placed where it may not run fails for upstream's reason, without a sandbox."""
    await world.create("first", on_host_port(8080))
    await world.until("first", is_ready)
    await world.create("second", on_host_port(8080))
    refused = await world.until("second", failed_for("NodePorts"))
    assert refused.status.message == (
        "Pod was rejected: Predicate NodePorts failed: "
        "node(s) didn't have free ports for the requested pod ports"
    )
    assert refused.status.start_time
    assert refused.status.container_statuses == refused.status.pod_ips == []
    assert not (RUN / "nodes/node-1/pods" / refused.metadata.uid).exists()
    await world.until_event("NodePorts", "second")
    await world.create("elsewhere", {"containers": [container()], "nodeSelector": {"disk": "ssd"}})
    await world.until("elsewhere", failed_for("NodeAffinity"))
    await world.create("heavy", {"containers": [{**container(), "resources": HEAVY}]})
    heavy = await world.until("heavy", failed_for("OutOfcpu"))
    assert "Node didn't have enough resource: cpu, requested: 9000000, used: 0, capacity: " in (
        heavy.status.message
    )
    # What was admitted stays so, over a new taint and a new agent; its port stays taken.
    taint = {"key": "k", "effect": "NoExecute"}
    await world.api.patch(kinds.NODE, "node-1", {"spec": {"taints": [taint]}})
    await kill(world.agent)
    world.start_agent()
    everywhere = {"tolerations": [{"operator": "Exists"}]}
    await world.create("third", on_host_port(8080, **everywhere))
    await world.until("third", failed_for("NodePorts"))
    await world.create("fourth", on_host_port(8081))
    await world.until("fourth", failed_for("TaintToleration"))
    first = await world.pod("first")
    assert first.ready
    assert restarts(first) == 0
    # Its port is free for others as soon as it is gone from the API.
    await world.api.delete(kinds.POD, "first", "default")
    await world.until_gone("first")
    await world.create("fifth", on_host_port(8080, **everywhere))
    await world.until("fifth", is_ready)


async def _port_of_a_finished_pod(world: World) -> None:
    spec = on_host_port(8080, restartPolicy="Never")
    await world.create("job", spec, exit_after="0.2")
    await world.until("job", lambda pod: pod.status.phase == "Succeeded")
    await world.create("next", on_host_port(8080))
    await world.until("next", is_ready)


async def _agent_killed(world: World) -> None:
    await world.create("web", {"containers": [container("c", 8080)]})
    before = await world.until("web", is_ready)
    address = before.status.pod_ip
    with socket.create_connection((address, 8080), timeout=5) as sock:
        await kill(world.agent)
        sock.sendall(b"hello\n")
        assert b'"pod":"web"' in sock.recv(4096)
        assert get(address, 8080, "/hostname") == "web"
        world.start_agent()
        await world.create("other", {"containers": [container("c", 8080)]})
        await world.until("other", is_ready)
        sock.sendall(b"still\n")
        assert b"still" in sock.recv(4096)
    after = await world.pod("web")
    assert after.metadata.resource_version == before.metadata.resource_version
    await world.api.delete(kinds.POD, "web", "default")
    await world.until_gone("web")


async def _standins_killed(world: World) -> None:
    await world.create("web", {"containers": [container("c", 8080)]})
    pod = await world.until("web", is_ready)
    with socket.create_connection((pod.status.pod_ip, 8080), timeout=5) as sock:
        sock.sendall(b"hello\n")
        assert sock.recv(4096)
        await kill(world.standins)
        assert ended(sock)
    world.start_standins()
    pod = await world.until("web", lambda pod: pod.ready and restarts(pod) == 1)
    assert pod.status.container_statuses[0].last_state.terminated is not None
    assert get(pod.status.pod_ip, 8080, "/hostname") == "web"


async def _liveness(world: World) -> None:
    probe = {"httpGet": {"port": 80}, "periodSeconds": 1, "failureThreshold": 1}
    spec = {"containers": [container("c", 80, livenessProbe=probe)]}
    await world.create("bad", spec, http_status="500")
    await world.until("bad", lambda pod: restarts(pod) >= 1)


async def _new_image(world: World) -> None:
    """Kubelet restarts a container whose image changed, whatever the restart policy says."""
    await world.create("web", {"containers": [container("c", 80)], "restartPolicy": "Never"})
    await world.until("web", is_ready)
    image = {"spec": {"containers": [{"name": "c", "image": "example.com/app:2"}]}}
    await world.api.patch(kinds.POD, "web", image, "default", patch_type=PatchType.STRATEGIC)
    pod = await world.until("web", lambda pod: pod.ready and restarts(pod) == 1)
    (status,) = pod.status.container_statuses
    assert status.image == "example.com/app:2"
    assert get(pod.status.pod_ip, 80, "/hostname") == "web"


async def _readiness_by_annotation(world: World) -> None:
    probe = {"httpGet": {"port": 80}, "periodSeconds": 1, "failureThreshold": 1}
    await world.create("web", {"containers": [container("c", 80, readinessProbe=probe)]})
    await world.until("web", is_ready)
    for status, ready in (("503", False), (None, True)):
        annotations = {"standin.podwire.dev/http-status": status}
        patch = {"metadata": {"annotations": annotations}}
        await world.api.patch(kinds.POD, "web", patch, "default")
        pod = await world.until("web", lambda pod, ready=ready: pod.ready is ready)
        assert restarts(pod) == 0


async def _out_of_addresses(world: World) -> None:
    for number in range(6):
        await world.create(f"p{number}", {"containers": [container()]})
    pods = []

    def told(pod: Pod) -> bool:
        return pod.ready or any(
            condition.type == "PodReadyToStartContainers"
            and condition.reason == "FailedCreatePodSandBox"
            for condition in pod.status.conditions
        )

    for number in range(6):
        pods.append(await world.until(f"p{number}", told))
    assert [pod.ready for pod in pods].count(False) >= 1
    starved = next(pod for pod in pods if not pod.ready)
    assert starved.status.phase == "Pending"
    told_by_event = asyncio.Event()
    events = Informer(world.api, kinds.EVENT)
    events.on_change(
        lambda change: (
            told_by_event.set()
            if change.new is not None and change.new.reason == "FailedCreatePodSandBox"
            else None
        )
    )
    task = asyncio.create_task(events.run())
    async with asyncio.timeout(TIMEOUT_S):
        await told_by_event.wait()
    task.cancel()
    # An address given back goes to one that waits for it.
    served = next(pod for pod in pods if pod.ready)
    await world.api.delete(kinds.POD, served.metadata.name, "default", grace_period_s=0)
    fed = await world.until(starved.metadata.name, is_ready)
    assert [c.reason for c in fed.status.conditions if c.status == "True" and c.reason] == []


async def _kubelet_api(world: World) -> None:
    await world.create("web", {"containers": [container("c", 8080)]})
    pod = await world.until("web", is_ready)
    get(pod.status.pod_ip, 8080, "/one")
    connector = aiohttp.UnixConnector(str(RUN / "nodes/node-1/kubelet.sock"))
    async with aiohttp.ClientSession("http://kubelet", connector=connector) as session:
        log = "/containerLogs/default/web/c?follow=true&limitBytes=20"
        async with session.get(log, timeout=aiohttp.ClientTimeout(TIMEOUT_S)) as response:
            assert (await response.text()) == f"{NODE_IP} GET /one 200"[:20]
        async with session.get("/containerLogs/default/web/c?previous=true") as response:
            assert response.status == 400
            assert "previous terminated container" in await response.text()
        async with session.get("/metrics") as response:
            assert "kubelet_running_pods 1" in await response.text()
        async with session.get("/pods") as response:
            assert (await response.json())["items"][0]["metadata"]["name"] == "web"


async def _node_deleted(world: World) -> None:
    await world.create("web", {"containers": [container("c", 8080)]})
    await world.until("web", is_ready)
    await world.api.delete(kinds.NODE, "node-1")
    _, status = await asyncio.to_thread(os.waitpid, world.agent, 0)
    assert os.waitstatus_to_exitcode(status) == EXIT_NODE_REMOVED
    assert not list((RUN / "pods").iterdir())
    assert not list((RUN / "nodes/node-1/pods").iterdir())


async def _graceful_termination(world: World) -> None:
    hook = {"preStop": {"sleep": {"seconds": 1}}}
    await world.create("slow", {"containers": [container("c", 80, lifecycle=hook)]})
    pod = await world.until("slow", is_ready)
    await world.api.delete(kinds.POD, "slow", "default")
    assert get(pod.status.pod_ip, 80, "/hostname") == "slow"
    await world.until_gone("slow")
    assert not list((RUN / "pods").iterdir())


async def _ready_is_asserted_again(world: World) -> None:
    """Node life cycle says Ready=False while a node is silent; the node knows better."""
    await world.create("web", {"containers": [container("c", 8080)]})
    await world.until("web", is_ready)
    for said in ({"conditions": [{"type": "Ready", "status": "False"}]}, {"phase": "Pending"}):
        version = (await world.pod("web")).metadata.resource_version
        await world.api.patch(
            kinds.POD,
            "web",
            {"status": said},
            "default",
            subresource="status",
            patch_type=PatchType.STRATEGIC,
        )
        await world.until(
            "web",
            lambda pod, version=version: (  # type: ignore[misc]
                pod.ready
                and pod.status.phase == "Running"
                and int(pod.metadata.resource_version) >= int(version) + 2
            ),
        )


def volume(pod: Pod, name: str) -> Path:
    return RUN / "nodes/node-1/pods" / pod.metadata.uid / "volumes" / name


async def until_file(path: Path, holds: Callable[[bytes], bool]) -> None:
    """Wait for a file of the node; another process writes it, and nothing else tells of it."""
    async with asyncio.timeout(TIMEOUT_S):
        while not path.is_file() or not holds(path.read_bytes()):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def waits_for(reason: str) -> Callable[[Pod], bool]:
    def holds(pod: Pod) -> bool:
        return any(
            status.state.waiting is not None and status.state.waiting.reason == reason
            for status in pod.status.container_statuses
        )

    return holds


async def _references_are_followed(world: World) -> None:
    mounts = [{"name": "conf", "mountPath": "/conf"}, {"name": "labels", "mountPath": "/labels"}]
    real = {**container("c", env=[env_from("late", "key")]), "image": "real/app:1"}
    label = {"path": "tier", "fieldRef": {"fieldPath": "metadata.labels['tier']"}}
    volumes = [
        {"name": "conf", "configMap": {"name": "conf"}},
        {"name": "labels", "downwardAPI": {"items": [label]}},
    ]
    spec = {
        "containers": [{**real, "volumeMounts": mounts}],
        "volumes": volumes,
        "automountServiceAccountToken": False,
    }
    await world.create("app", spec)
    await world.until("app", waits_for("CreateContainerConfigError"))
    await world.api.create(kinds.CONFIG_MAP, config_map("late", key="v"), "default")
    await world.until("app", waits_for("FailedMount"))
    await world.api.create(kinds.CONFIG_MAP, config_map("conf", file="one"), "default")
    pod = await world.until("app", is_ready)
    assert (volume(pod, "conf") / "file").read_text() == "one"
    # What changes while the container runs is seen in it, labels included.
    await world.api.patch(kinds.CONFIG_MAP, "conf", {"data": {"file": "two"}}, "default")
    await until_file(volume(pod, "conf") / "file", lambda data: data == b"two")
    await world.api.patch(kinds.POD, "app", {"metadata": {"labels": {"tier": "x"}}}, "default")
    await until_file(volume(pod, "labels") / "tier", lambda data: data == b"x")
    await world.api.delete(kinds.POD, "app", "default", grace_period_s=0)
    await world.until_gone("app")


def env_from(name: str, key: str) -> dict[str, Any]:
    return {"name": "X", "valueFrom": {"configMapKeyRef": {"name": name, "key": key}}}


def config_map(name: str, **data: str) -> dict[str, Any]:
    return {"metadata": {"name": name, "namespace": "default"}, "data": data}


async def _tokens_only_for_real_containers(world: World) -> None:
    """A token is requested for a program that can read it, never for a stand-in."""
    account = {"metadata": {"name": "robot", "namespace": "default"}}
    token = {"name": "t", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}}
    mount = [{"name": "t", "mountPath": "/var/run/secrets"}]

    def spec(image: str) -> dict[str, Any]:
        one = {"name": "c", "image": image, "volumeMounts": mount}
        return {
            "containers": [one],
            "volumes": [token],
            "serviceAccountName": "robot",
            "automountServiceAccountToken": False,
        }

    await world.api.create(kinds.SERVICE_ACCOUNT, account, "default")
    await world.create("standin", spec("example.com/app:1"))
    pod = await world.until("standin", is_ready)
    assert not volume(pod, "t").exists()
    await world.create("real", spec("real/app:1"))
    pod = await world.until("real", is_ready)
    assert (volume(pod, "t") / "token").read_bytes().count(b".") == 2


async def _logs_and_attach_of_what_has_none(world: World) -> None:
    """What `kubectl logs`, `logs -p` and `attach` are told where there is nothing to show."""
    waiting = container("c", env=[env_from("nowhere", "key")])
    await world.create("waiting", {"containers": [{**waiting, "image": "real/app:1"}]})
    await world.until("waiting", waits_for("CreateContainerConfigError"))
    ready = {"exec": {"command": ["/no/such/program"]}}
    await world.create("web", {"containers": [container("c", readinessProbe=ready)]})
    await world.until("web", is_ready)
    clash = {"containers": [container("a", 80), container("b", 80)]}
    await world.create("clash", clash)
    await world.until("clash", waits_for("CrashLoopBackOff"))
    connector = aiohttp.UnixConnector(str(RUN / "nodes/node-1/kubelet.sock"))
    async with aiohttp.ClientSession("http://kubelet", connector=connector) as session:

        async def ask(path: str) -> tuple[int, str]:
            async with session.get(path) as response:
                return response.status, await response.text()

        code, text = await ask("/containerLogs/default/waiting/c")
        assert (code, text) == (
            400,
            'container "c" in pod "waiting" is waiting to start: CreateContainerConfigError',
        )
        # A container between two attempts shows its last words, and those before them.
        for path in ("clash/b", "clash/b?previous=true"):
            code, text = await ask(f"/containerLogs/default/{path}")
            assert (code, text) == (200, "bind: address already in use\n")
        code, text = await ask("/containerLogs/default/web/nope")
        assert (code, "nope" in text) == (404, True)
    address = "ws://kubelet/attach/default/web/c?stdout=true"
    async with (
        aiohttp.ClientSession(
            connector=aiohttp.UnixConnector(str(RUN / "nodes/node-1/kubelet.sock"))
        ) as session,
        session.ws_connect(address, protocols=["v4.channel.k8s.io"]) as socket_,
    ):
        said = b"".join([message.data async for message in socket_ if message.data])
        assert b"use exec" in said, said


@pytest.mark.parametrize(
    "scenario",
    [
        _one_patch,
        _init_containers_and_jobs,
        _port_clash,
        _admission,
        _port_of_a_finished_pod,
        _agent_killed,
        _standins_killed,
        _liveness,
        _new_image,
        _readiness_by_annotation,
        _out_of_addresses,
        _kubelet_api,
        _node_deleted,
        _graceful_termination,
        _ready_is_asserted_again,
        _references_are_followed,
        _tokens_only_for_real_containers,
        _logs_and_attach_of_what_has_none,
    ],
    ids=lambda scenario: scenario.__name__.strip("_"),
)
def test_kubelet(scenario: Scenario) -> None:
    in_world(scenario)
