"""The life of a lab: up, again, changed, published, kept, killed, gone."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from podwire.errors import (
    LabError,
    LabExistsError,
    LabNotFoundError,
    UnsupportedError,
    UsageError,
)
from podwire.explain.probes.wire import Probe
from podwire.kernel import features
from podwire.lab import Lab, launch

WEB = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 4
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - {name: web, image: "nginx:1", ports: [{name: http, containerPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {app: web}
  ports: [{port: 80, targetPort: http}]
"""


@pytest.fixture
def web(tmp_path: Path) -> Path:
    path = tmp_path / "web.yaml"
    path.write_text(WEB)
    return path


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab("life", nodes=2) as lab:
        lab.apply_text(WEB)
        yield lab


def uids(lab: Lab) -> dict[str, str]:
    return {str(pod.key): pod.metadata.uid for pod in lab.pods()}


def fetch(port: int, path: str = "/") -> dict[str, Any]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=20) as answer:
        found: dict[str, Any] = json.loads(answer.read())
        return found


# --- up, status, side by side -------------------------------------------------------------------


@pytest.mark.rootless
def test_two_labs_side_by_side(lab: Lab) -> None:
    with Lab("other", nodes=1) as other:
        other.apply_text(WEB)
        assert lab.paths.root != other.paths.root
        assert not set(uids(lab).values()) & set(uids(other).values())
        # One address plan, two worlds: each reaches its own only.
        assert lab.reach().all_allowed
        assert other.reach().all_allowed
        assert {"life", "other"} <= set(launch.labs())
    assert "other" not in launch.labs()
    assert lab.reach().all_allowed


@pytest.mark.rootless
def test_up_again_keeps_everything(lab: Lab, tools: Any, web: Path) -> None:
    before, pids = uids(lab), tools.pids(lab)
    done = tools.podwire("up", "life", "-f", web, "--no-kubeconfig")
    assert "was up already and is reconciled" in done.stdout
    assert uids(lab) == before
    assert tools.pids(lab) == pids


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("--network", "kubenet", "runs with network routed, not kubenet"),
        ("--overlay", "vxlan", "runs with overlay none, not vxlan"),
        ("--ip-family", "dual", "runs with ip-family ipv4, not dual"),
        ("--mtu", "1400", "runs with mtu default, not 1400"),
        ("--max-pods", "7", "runs with max-pods 1000, not 7"),
        ("--state", "/kept", "runs with state-dir default, not /kept"),
        ("--nodes", "1", "has 2 nodes; remove one with `kubectl delete node`"),
    ],
)
def test_what_is_fixed_stays(lab: Lab, tools: Any, option: str, value: str, says: str) -> None:
    before = uids(lab)
    done = tools.podwire("up", "life", option, value, "--no-kubeconfig", check=False)
    assert done.returncode in (1, 2)
    assert says in done.stderr
    assert uids(lab) == before


@pytest.mark.rootless
def test_status_names_pids_in_their_namespaces(lab: Lab, tools: Any) -> None:
    found = tools.status(lab)
    assert found["running"]
    assert {c["name"] for c in found["components"]} >= {"holder", "apiserver", "controllers"}
    assert all(c["healthy"] and Path(f"/proc/{c['pid']}").exists() for c in found["components"])
    assert [n["name"] for n in found["nodes"]] == ["node-1", "node-2"]
    for node in found["nodes"]:
        assert node["ready"]
        inode = os.stat(f"/proc/{node['pid']}/ns/net").st_ino
        pin = lab.paths.node_pins / node["name"]
        seen = subprocess.run(
            [*_into_mounts(found), "stat", "-L", "-c", "%i", str(pin)],
            capture_output=True,
            text=True,
            check=True,
        )
        assert int(seen.stdout) == inode != os.stat("/proc/self/ns/net").st_ino
        assert os.stat(node["netns"]).st_ino == inode


def _into_mounts(status: dict[str, Any]) -> list[str]:
    holder = next(c["pid"] for c in status["components"] if c["name"] == "holder")
    words = ["nsenter", f"--target={holder}", "--mount"]
    return words if os.geteuid() == 0 else [*words, "--user", "--preserve-credentials"]


# --- nodes --------------------------------------------------------------------------------------


def test_nodes_come_and_go(tools: Any) -> None:
    with Lab("nodes", nodes=2) as lab:
        lab.apply_text(WEB)
        assert lab.add_node() == "node-3"
        with pytest.raises(UsageError, match="exists already"):
            lab.add_node("node-3")
        lab.apply_text(
            "{apiVersion: v1, kind: Pod, metadata: {name: solo}, spec: {nodeName: node-3, "
            "containers: [{name: c, image: x, ports: [{containerPort: 81}]}]}}"
        )
        assert lab.reach().all_allowed
        agent = tools.pids(lab)["agent-node-2"]
        on_node_2 = {p.metadata.name for p in lab.pods() if p.spec.node_name == "node-2"}
        assert on_node_2
        tools.podwire("node", "remove", "node-2", "--lab", "nodes")
        tools.wait(lambda: lab.spec.node("node-2") is None)
        tools.wait(lambda: not Path(f"/proc/{agent}").exists())
        assert "agent-node-2" not in tools.pids(lab)
        pins = subprocess.run(
            [*_into_mounts(tools.status(lab)), "ls", str(lab.paths.node_pins)],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
        assert pins == ["node-1", "node-3", "outside", "router"]

        def rescheduled() -> bool:
            pods = [p for p in lab.pods() if p.metadata.name != "solo"]
            return len(pods) == 4 and all(p.ready and p.spec.node_name != "node-2" for p in pods)

        assert tools.wait(rescheduled)
        assert not on_node_2 & {p.metadata.name for p in lab.pods()}
        assert lab.reach().all_allowed
        # The freed number and name may be used again.
        assert lab.add_node() == "node-2"
        lab.apply_text(WEB.replace("replicas: 4", "replicas: 9"))
        assert {p.spec.node_name for p in lab.pods()} == {"node-1", "node-2", "node-3"}
        assert lab.reach().all_allowed


# --- links --------------------------------------------------------------------------------------


@pytest.fixture
def across(lab: Lab, tools: Any) -> Iterator[Any]:
    """Ask from a pod of node-1 to one of node-2: `across(number, timeout_s)` gives verdicts."""
    near, far = (
        next(p for p in lab.pods() if p.spec.node_name == node) for node in ("node-1", "node-2")
    )

    def ask(count: int = 1, timeout_s: float = 5.0, size: int = 0) -> list[Any]:
        probe = Probe(
            source=str(near.key),
            address=far.status.pod_ip,
            protocol="icmp",
            timeout_s=timeout_s,
            size=size,
        )
        return list(tools.ask(lab, "node-1", *[probe] * count))

    try:
        yield ask
    finally:
        lab.link("node-1", "node-2", "up")


def test_a_link_can_be_cut_and_mended(lab: Lab, across: Any, tools: Any) -> None:
    assert across()[0].verdict == "allowed"
    lab.link("node-1", "node-2", "down")
    assert across(timeout_s=0.5)[0].verdict == "dropped"
    assert [(i["a"], i["b"], i["down"]) for i in tools.status(lab)["impairments"]] == [
        ("node-1", "node-2", True)
    ]
    lab.link("node-2", "node-1", "up")
    assert across()[0].verdict == "allowed"
    assert tools.status(lab)["impairments"] == []


def test_a_link_can_lose_packets(lab: Lab, tools: Any, across: Any) -> None:
    """All, or one in ten thousand: what lies between is chance, which is no test."""
    lab.link("node-1", "node-2", "loss", "100%")
    assert across(timeout_s=0.5)[0].verdict == "dropped"
    lab.link("node-1", "node-2", "loss", "0.01%")
    assert across()[0].verdict == "allowed"


def test_a_link_can_be_slow(lab: Lab, tools: Any) -> None:
    """300 kbit/s: 60 kB in one direction take well over a second, which without it is nothing."""
    near, far = (
        next(p for p in lab.pods() if p.spec.node_name == node) for node in ("node-1", "node-2")
    )
    lab.link("node-1", "node-2", "rate", "300kbit")
    try:
        program = (
            "import socket, time\n"
            f"s = socket.create_connection(('{far.status.pod_ip}', 8080), 20)\n"
            "body = b'x' * 60000\n"
            "start = time.monotonic()\n"
            "s.sendall(b'POST /echo HTTP/1.1\\r\\nHost: a\\r\\nConnection: close\\r\\n'\n"
            "          b'Content-Length: 60000\\r\\n\\r\\n' + body)\n"
            "while s.recv(65536): pass\n"
            "print(time.monotonic() - start)\n"
        )
        took = float(tools.inside(lab, str(near.key), sys.executable, "-c", program))
        assert took > 1.0
    finally:
        lab.link("node-1", "node-2", "up")


def test_delay_works_or_says_why_not(lab: Lab, across: Any) -> None:
    if features.probe().netem:
        lab.link("node-1", "node-2", "delay", "50ms")
        assert across()[0].latency_us >= 50_000
        return
    with pytest.raises((LabError, UnsupportedError), match="netem"):
        lab.link("node-1", "node-2", "delay", "50ms")
    assert across()[0].verdict == "allowed"


@pytest.mark.parametrize("words", [("loss",), ("loss", "150%"), ("sideways",), ("rate", "fast")])
def test_bad_impairments_are_refused(lab: Lab, words: tuple[str, ...]) -> None:
    with pytest.raises(LabError, match="link"):
        lab.link("node-1", "node-2", *words)
    with pytest.raises(LabError, match="no node node-9"):
        lab.link("node-1", "node-9", "down")


# --- published ports ----------------------------------------------------------------------------


def test_published_ports_reach_pods(tools: Any) -> None:
    with contextlib.ExitStack() as stack:
        ports = []
        for _ in range(2):
            sock = stack.enter_context(socket.socket())
            sock.bind(("127.0.0.1", 0))
            ports.append(sock.getsockname()[1])
    try:
        tools.podwire(
            *("up", "pub", "--nodes", 2, "--no-kubeconfig"),
            *("--publish", f"{ports[0]}:svc/web:80", "--publish", f"127.0.0.1:{ports[1]}:web:8080"),
        )
        lab = Lab("pub")
        lab.apply_text(WEB)
        names = {pod.metadata.name for pod in lab.pods()}
        seen = {fetch(ports[0])["pod"] for _ in range(12)}
        assert seen == names
        answer = fetch(ports[1])
        assert answer["pod"] in names
        later = lab.publish("0:svc/default/web:80")
        assert later not in (0, *ports)
        tools.wait(lambda: fetch(later)["pod"] in names)
        tools.wait(lambda: fetch(ports[0])["pod"] in names)
        one = sorted(names)[0]
        direct = lab.publish(f"0:{one}:http")
        tools.wait(lambda: fetch(direct)["pod"] == one)
        shown = tools.podwire("status", "pub").stdout
        assert f"published 127.0.0.1:{later} -> svc/default/web:80" in shown
        with pytest.raises(LabError, match="is in use by another program"):
            lab.publish(f"{ports[0]}:svc/web:80")
        with pytest.raises(UsageError, match="not a loopback address"):
            lab.publish("0.0.0.0:0:svc/web:80")
        relay = tools.pids(lab)[f"publish-{ports[0]}"]
        os.kill(relay, signal.SIGKILL)
        tools.wait(lambda: fetch(ports[0])["pod"] in names)
    finally:
        tools.podwire("down", "pub")
    with pytest.raises(OSError):
        fetch(ports[0])


# --- kept state ---------------------------------------------------------------------------------


def _versions(lab: Lab) -> tuple[int, dict[str, str]]:
    document = json.loads(
        lab.call(lambda api: api.request("GET", "/api/v1/namespaces/default/configmaps"))
    )
    return int(document["metadata"]["resourceVersion"]), {
        item["metadata"]["name"]: item["metadata"]["resourceVersion"] for item in document["items"]
    }


def test_state_is_kept_and_resumed(tools: Any, web: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    up = ("up", "kept", "--nodes", 2, "--state", state, "--no-kubeconfig")
    try:
        tools.podwire(*up, "-f", web)
        lab = Lab("kept")
        lab.apply_text("{apiVersion: v1, kind: ConfigMap, metadata: {name: note}, data: {a: b}}")
        before, version = uids(lab), _versions(lab)
        config = yaml.safe_load(lab.paths.kubeconfig.read_text())
        tools.podwire("down", "kept")
        assert not lab.paths.root.exists()
        tools.podwire(*up)
        assert uids(lab) == before
        lab.wait_ready(30)
        assert lab.reach().all_allowed
        after = _versions(lab)
        assert after[0] > version[0]
        assert after[1] == version[1]
        resumed = yaml.safe_load(lab.paths.kubeconfig.read_text())
        assert resumed["clusters"] == config["clusters"], "port and CA are the same"
    finally:
        tools.podwire("down", "kept")


# --- down ---------------------------------------------------------------------------------------


@pytest.mark.rootless
def test_down_after_the_holder_was_killed(tools: Any) -> None:
    lab = Lab("orphan", nodes=2)
    lab.up()
    lab.apply_text(WEB)
    pids = tools.pids(lab)
    os.kill(pids["holder"], signal.SIGKILL)
    tools.wait(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids.values()))
    with pytest.raises(LabNotFoundError):
        lab.status()
    tools.podwire("down", "orphan")
    assert not lab.paths.root.exists()
    lab.close()


def test_down_of_what_is_not_there(tools: Any) -> None:
    done = tools.podwire("down", "nobody")
    assert done.stdout == "lab nobody: was not there\n"
    done = tools.podwire("status", "nobody", check=False)
    assert done.returncode == LabNotFoundError.exit_code
    assert "lab nobody: is not running" in done.stderr


def test_users_kubeconfig_is_merged_and_restored(tools: Any, tmp_path: Path) -> None:
    user = tmp_path / "config"
    theirs = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "prod", "cluster": {"server": "https://203.0.113.99"}}],
        "users": [{"name": "me", "user": {"token": "t"}}],
        "contexts": [{"name": "prod", "context": {"cluster": "prod", "user": "me"}}],
        "current-context": "prod",
    }
    user.write_text(yaml.safe_dump(theirs))
    env = {**os.environ, "KUBECONFIG": str(user)}
    try:
        tools.podwire("up", "merged", env=env)
        tools.podwire("up", "merged2", env=env)
        found = yaml.safe_load(user.read_text())
        assert found["current-context"] == "podwire-merged2"
        names = [c["name"] for c in found["contexts"]]
        assert names == ["prod", "podwire-merged", "podwire-merged2"]
        nodes = subprocess.run(
            ["kubectl", "get", "nodes", "-o", "name"],
            env=env,
            capture_output=True,
            text=True,
            check=False,
        )
        assert nodes.stdout == "node/node-1\n", nodes.stderr
        tools.podwire("down", "merged", env=env)
        assert yaml.safe_load(user.read_text())["current-context"] == "podwire-merged2"
    finally:
        tools.podwire("down", "merged", env=env)
        tools.podwire("down", "merged2", env=env)
    assert yaml.safe_load(user.read_text()) == theirs
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config"]


def test_two_ups_of_one_name(tools: Any) -> None:
    """One builds it; the other is told so, or finds it running. Never two holders."""
    command = [sys.executable, "-m", "podwire", "up", "race", "--no-kubeconfig"]
    runs = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    try:
        outcomes = [(run.wait(60), *run.communicate()) for run in runs]
        built = [out for code, out, _ in outcomes if code == 0 and "is up (" in out]
        assert len(built) == 1
        for code, out, err in outcomes:
            assert code == 0 or "another up or down of it is running" in err, (out, err)
        assert Lab("race").status().running
    finally:
        tools.podwire("down", "race")


def test_a_lab_that_cannot_start_leaves_nothing(tools: Any) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = tools.podwire("up", "broken", "--publish", f"{port}:svc/web:80", check=False)
    assert done.returncode == 1
    assert "is in use by another program" in done.stderr
    assert "broken" not in launch.labs()
    assert not Lab("broken").paths.root.exists()


def test_a_failing_enter_leaves_a_running_lab_alone(lab: Lab) -> None:
    with pytest.raises(LabExistsError), Lab("life", nodes=2, network="kubenet"):
        pass
    assert lab.reach().all_allowed
