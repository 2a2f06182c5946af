"""kill -9 of everything, one by one and at once, under live traffic; and a disk that is full.

The traffic runs in a pod's own network namespace, entered directly: it shares no process with the
lab, so only the data plane can disturb it.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from podwire.client import Api, Endpoint
from podwire.errors import ApiError, PodwireError
from podwire.lab import Lab, launch
from podwire.objects import kinds

RESTORED_WITHIN_S = 10.0

PODS = "".join(
    f"""
apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  nodeName: {node}
  terminationGracePeriodSeconds: 0
  containers:
  - {{name: main, image: example.com/x:1, ports: [{{containerPort: 8080}}]}}
---
"""
    for name, node in (("a1", "node-1"), ("a2", "node-1"), ("b1", "node-2"), ("b2", "node-2"))
)

TRAFFIC = """
import http.client, json, select, sys, time
failures = []
def ask(connection, what):
    try:
        connection.request("GET", "/hostname")
        assert connection.getresponse().read()
        return True
    except Exception as error:
        failures.append(f"{what}: {error!r}")
        return False
kept = {}
for host in sys.argv[1:]:
    kept[host] = http.client.HTTPConnection(host, 8080, timeout=20)
    kept[host].connect()
    kept[host].auto_open = 0
rounds = 0
while not select.select([sys.stdin], [], [], 0.01)[0]:
    for host, connection in kept.items():
        ask(connection, f"kept {host}")
        fresh = http.client.HTTPConnection(host, 8080, timeout=20)
        ask(fresh, f"new {host}")
        fresh.close()
    rounds += 1
    print(rounds, flush=True)
print(json.dumps(failures), flush=True)
"""


class Traffic:
    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def flow(self, rounds: int = 20) -> None:
        """Return when that many more rounds have been answered, or have failed."""
        assert self._process.stdout is not None
        for _ in range(rounds):
            assert self._process.stdout.readline(), "the traffic ended"

    def failures(self) -> list[str]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        *_, last = self._process.stdout.read().splitlines()
        found: list[str] = json.loads(last)
        return found


def enter(lab: Lab, holder: int) -> list[str]:
    """The words that lead into the lab's mounts (and users)."""
    words = ["nsenter", f"--target={holder}", "--mount"]
    return words if os.geteuid() == 0 else [*words, "--user", "--preserve-credentials"]


def pin_of(lab: Lab, holder: int, address: str) -> str:
    """The pinned namespace that has the address."""
    words = enter(lab, holder)
    script = (
        f"for pin in {lab.paths.pod_pins}/*; do "
        f"nsenter --net=$pin ip -o addr | grep -qF ' {address}/' && echo $pin; done; true"
    )
    done = subprocess.run([*words, "sh", "-c", script], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@contextlib.contextmanager
def traffic(lab: Lab, tools: Any, source: str, *targets: str) -> Iterator[Traffic]:
    holder = tools.pids(lab)["holder"]
    pin = pin_of(lab, holder, lab.pod(source).ip)
    command = [*enter(lab, holder), "nsenter", f"--net={pin}", sys.executable, "-c", TRAFFIC]
    with subprocess.Popen(
        [*command, *(lab.pod(name).ip for name in targets)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield Traffic(process)
        finally:
            process.kill()


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab("faults", nodes=2) as lab:
        lab.apply_text(PODS)
        yield lab


def facts(lab: Lab) -> dict[str, Any]:
    return {
        pod.metadata.name: (
            pod.metadata.uid,
            pod.status.pod_ip,
            [status.restart_count for status in pod.status.container_statuses],
        )
        for pod in lab.pods()
    }


def restarts(lab: Lab) -> dict[str, int]:
    return {
        pod.metadata.name: sum(s.restart_count for s in pod.status.container_statuses)
        for pod in lab.pods()
    }


def kill(lab: Lab, tools: Any, *names: str) -> None:
    """SIGKILL, then wait until the supervisor has put others in their place."""
    before = tools.pids(lab)
    for name in names:
        os.kill(before[name], signal.SIGKILL)
    started = time.monotonic()

    def restored() -> bool:
        now = tools.pids(lab)
        return all(now[name] not in (0, before[name]) for name in names)

    tools.wait(restored, RESTORED_WITHIN_S)
    assert time.monotonic() - started <= RESTORED_WITHIN_S


AGENTS = ("agent-node-1", "agent-node-2")
STANDINS = ("standin-node-1", "standin-node-2")


@pytest.mark.rootless
@pytest.mark.parametrize(
    "names",
    [("apiserver",), ("controllers",), ("agent-node-1",), ("apiserver", "controllers", *AGENTS)],
    ids=lambda names: names[0] if len(names) == 1 else "all",
)
def test_traffic_goes_on(lab: Lab, tools: Any, names: tuple[str, ...]) -> None:
    """Connections between surviving endpoints never notice, and the state is the same after."""
    before = facts(lab)
    with traffic(lab, tools, "a1", "a2", "b1") as live:
        live.flow()
        kill(lab, tools, *names)
        live.flow()
        tools.wait(lambda: lab.wait_ready(20).complete)
        live.flow()
        assert live.failures() == []
    assert facts(lab) == before
    # And all of them work: an object is accepted, scheduled, wired and reached.
    lab.apply_text(
        "{apiVersion: v1, kind: Pod, metadata: {name: fresh}, spec: {"
        "terminationGracePeriodSeconds: 0, containers: [{name: c, image: x, ports: "
        "[{containerPort: 8080}]}]}}"
    )
    assert lab.pod("a1").can_reach("fresh", port=8080)
    lab.call(lambda api: api.delete(kinds.POD, "fresh", "default"))
    tools.wait(lambda: "fresh" not in facts(lab))


def test_a_killed_standin_restarts_its_pods_only(lab: Lab, tools: Any) -> None:
    before = restarts(lab)
    with traffic(lab, tools, "a1", "a2") as same, traffic(lab, tools, "a1", "b1") as across:
        same.flow()
        across.flow()
        kill(lab, tools, "standin-node-2")
        tools.wait(lambda: restarts(lab)["b1"] > before["b1"])
        lab.wait_ready(30)
        same.flow()
        assert same.failures() == []
        broken = across.failures()
    assert any(failure.startswith("kept") for failure in broken), "they are reset"
    after = restarts(lab)
    assert after["b2"] > before["b2"]
    assert (after["a1"], after["a2"]) == (before["a1"], before["a2"])
    assert lab.reach().all_allowed


def test_everything_but_the_holder(lab: Lab, tools: Any) -> None:
    before = {name: fact[:2] for name, fact in facts(lab).items()}
    count = restarts(lab)
    kill(lab, tools, "apiserver", "controllers", *AGENTS, *STANDINS)
    tools.wait(lambda: all(restarts(lab)[name] > count[name] for name in count))
    lab.wait_ready(30)
    assert {name: fact[:2] for name, fact in facts(lab).items()} == before
    assert lab.reach().all_allowed


CHURN = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: churn}
spec:
  replicas: 4
  selector: {matchLabels: {app: churn}}
  template:
    metadata: {labels: {app: churn}}
    spec:
      terminationGracePeriodSeconds: 0
      containers: [{name: main, image: example.com/x:1, ports: [{containerPort: 8080}]}]
"""
# `./test --all` churns for ten minutes.
SOAK_S = 600.0 if os.environ.get("PODWIRE_ALL") == "1" else 20.0


def held(lab: Lab, tools: Any, node: str) -> tuple[set[str], int, int]:
    """What a node holds for its pods: addresses leased, veths, host routes."""
    with contextlib.closing(sqlite3.connect(lab.paths.node(node) / "ipam.db")) as leases:
        addresses = {row[0] for row in leases.execute("SELECT address FROM lease")}
    links = tools.inside_json(lab, node, "ip", "-j", "link", "show", "type", "veth")
    routes = tools.inside_json(lab, node, "ip", "-j", "route", "show", "proto", "112")
    veths = [link for link in links if link["ifname"].startswith("veth")]
    return addresses, len(veths), sum(route["dev"].startswith("veth") for route in routes)


def test_a_soak_of_churn_and_kills_leaks_nothing(lab: Lab, tools: Any) -> None:
    """Pods come and go, components are killed in turn; bystanders' traffic never notices."""
    lab.apply_text(CHURN)
    victims = itertools.cycle(("agent-node-1", "controllers", "apiserver", "agent-node-2"))
    sizes = itertools.cycle((12, 2, 8, 0, 4))
    deadline = time.monotonic() + SOAK_S
    with traffic(lab, tools, "a1", "a2", "b1") as flow:
        while time.monotonic() < deadline:
            tools.kubectl(lab, "scale", "deployment/churn", f"--replicas={next(sizes)}")
            kill(lab, tools, next(victims))
            flow.flow(5)
            lab.wait_ready(60)
        assert flow.failures() == []

    def settled() -> bool:
        pods = [*lab.pods(), *lab.pods("kube-system")]
        for node in ("node-1", "node-2"):
            wanted = {pod.status.pod_ip for pod in pods if pod.spec.node_name == node}
            assert held(lab, tools, node) == (wanted, len(wanted), len(wanted))
        return True

    tools.wait(settled)
    tools.kubectl(lab, "delete", "deployment/churn")


def test_no_accepted_object_is_lost(lab: Lab, tools: Any) -> None:
    """The API server is killed while it answers hundreds of creates: what it answered, it has."""
    server = tools.pids(lab)["apiserver"]
    accepted: list[str] = []

    async def create(api: Api, name: str) -> None:
        body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}}
        path = "/api/v1/namespaces/default/configmaps"
        with contextlib.suppress(ApiError, OSError, asyncio.TimeoutError, PodwireError):
            await api.request("POST", path, body=body)
            accepted.append(name)
            if len(accepted) == 200:
                os.kill(server, signal.SIGKILL)

    async def storm(_: Api) -> None:
        async with Api(Endpoint(unix_socket=lab.paths.api_socket), user_agent="storm") as api:
            await asyncio.gather(
                *(create(api, f"storm-{i}") for i in range(1000)), return_exceptions=True
            )

    lab.call(storm)
    assert len(accepted) >= 200

    def kept() -> set[str]:
        document = json.loads(
            lab.call(
                lambda api: api.request("GET", "/api/v1/namespaces/default/configmaps"),
                timeout_s=10,
            )
        )
        return {item["metadata"]["name"] for item in document["items"]}

    found = tools.wait(kept)
    assert set(accepted) <= found


# --- the whole lab ------------------------------------------------------------------------------


@pytest.mark.rootless
def test_a_killed_holder_is_rebuilt_from_state(tools: Any, tmp_path: Path) -> None:
    manifest = tmp_path / "pods.yaml"
    manifest.write_text(PODS)
    up = ("up", "phoenix", "--nodes", 2, "--state", tmp_path / "state", "--no-kubeconfig")
    try:
        tools.podwire(*up, "-f", manifest)
        lab = Lab("phoenix")
        before = {name: fact[0] for name, fact in facts(lab).items()}
        pids = tools.pids(lab)
        os.kill(pids["holder"], signal.SIGKILL)
        tools.wait(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids.values()))
        assert launch.holder_of(lab.paths) is None
        done = tools.podwire(*up)
        assert "is up (" in done.stdout
        assert {name: fact[0] for name, fact in facts(lab).items()} == before
        lab.wait_ready(30)
        assert lab.reach().all_allowed
    finally:
        tools.podwire("down", "phoenix")
    assert "phoenix" not in launch.labs()
    assert not lab.paths.root.exists()


def _of_namespace(inode: str) -> list[int]:
    """Every process in that pid namespace."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.readlink(folder / "ns/pid") == inode:
                found.append(int(folder.name))
    return found


@pytest.mark.rootless
@pytest.mark.parametrize("first", ["nothing", "kill -9 of everything"])
def test_down_leaves_nothing(tools: Any, run_dir: Path, first: str) -> None:
    links, files = sorted(os.listdir("/sys/class/net")), sorted(os.listdir(run_dir))
    with Lab("leak", nodes=2) as lab:
        lab.apply_text(PODS)
        holder = tools.pids(lab)["holder"]
        inode = os.readlink(f"/proc/{holder}/ns/pid")
        assert len(_of_namespace(inode)) >= 7
        if first != "nothing":
            for pid in _of_namespace(inode):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
    tools.wait(lambda: not _of_namespace(inode))
    assert sorted(os.listdir(run_dir)) == files
    assert "/leak/" not in Path("/proc/self/mountinfo").read_text()
    assert sorted(os.listdir("/sys/class/net")) == links


FULL_DISK = """
import json, os, signal, subprocess, sys, time
from pathlib import Path
from podwire.errors import ApiError
from podwire.lab import Lab

disk = Path(sys.argv[1])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "podwire-test", str(disk)], check=True)
path = "/api/v1/namespaces/default/configmaps"

def create(lab, name, size=1000):
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name},
            "data": {"x": "x" * size}}
    lab.call(lambda api: api.request("POST", path, body=body))

def names(lab):
    found = json.loads(lab.call(lambda api: api.request("GET", path)))
    return {item["metadata"]["name"] for item in found["items"]}

with Lab("disk", nodes=1, state_dir=str(disk / "state")) as lab:
    lab.wait_ready(30)
    create(lab, "before")
    accepted = {"before"}
    filler = os.open(disk / "filler", os.O_WRONLY | os.O_CREAT)
    try:
        while True:
            os.write(filler, b"x" * 4096)
    except OSError:
        os.close(filler)
    message = ""
    for i in range(200):
        try:
            create(lab, f"full-{i}", 20_000)
            accepted.add(f"full-{i}")
        except ApiError as error:
            message = f"{error.code} {error.reason}: {error.message}"
            break
    print("MESSAGE", message)
    assert accepted <= names(lab), "reads go on"
    (disk / "filler").unlink()
    deadline = time.monotonic() + 30
    while True:
        try:
            create(lab, "after")
            break
        except ApiError:
            assert time.monotonic() < deadline
            time.sleep(0.1)
    accepted.add("after")
    assert accepted <= names(lab)
    server = next(c.pid for c in lab.status().components if c.name == "apiserver")
    os.kill(server, signal.SIGKILL)
    while True:
        try:
            found = names(lab)
            break
        except Exception:
            assert time.monotonic() < deadline + 30
            time.sleep(0.1)
    assert accepted <= found, "nothing is lost"
    print("KEPT", len(found))
"""


def test_a_full_disk(root: None, tmp_path: Path) -> None:
    """Writes are refused with a clear error, reads go on, and with space all is as before."""
    disk = tmp_path / "disk"
    disk.mkdir()
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private"]  # noqa: RUF005
        + [sys.executable, "-c", FULL_DISK, str(disk)],
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    message = next(m for m in done.stdout.splitlines() if m.startswith("MESSAGE"))
    assert "full" in message, message
    assert "KEPT" in done.stdout
    assert not list(disk.iterdir())
