"""Real kubectl, every version found beside the one on PATH, against the embedded API server.

There is no kubelet here: pod status is fed by hand through the unix socket, as agents do it. Each
version gets a server, a HOME and a cache directory of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from socket import AF_UNIX, socket
from typing import Any

import pytest

from podwire.apiserver.app import ApiServer, ServerConfig

BOUTIQUE = Path("/work/shared/samples/online-boutique/kubernetes-manifests.yaml")
SHARED = Path(__file__).parents[3] / "shared/samples/online-boutique/kubernetes-manifests.yaml"
TIMEOUT_S = 60
TYPED_PROTOBUF = 32
"""From this minor on typed Go clients send protobuf, which gets a 415 that says so."""


def kubectls() -> list[Path]:
    """`kubectl.1.NN` beside the resolved path of kubectl; else kubectl itself."""
    found = shutil.which("kubectl")
    if found is None:
        return []
    beside = sorted(Path(found).resolve().parent.glob("kubectl.1.*"))
    return [p for p in beside if re.fullmatch(r"kubectl\.1\.\d+", p.name)] or [Path(found)]


class Cluster:
    """A server on a thread of its own, and a kubectl that talks to it."""

    def __init__(self, directory: Path, kubectl: Path) -> None:
        self.directory, self.path = directory, kubectl
        self.socket = directory / "api.sock"
        self._env = {
            "PATH": os.environ["PATH"],
            "HOME": str(directory / "home"),
            "KUBECONFIG": str(directory / "kubeconfig"),
            "KUBECACHEDIR": str(directory / "cache"),
        }

    @property
    def minor(self) -> int:
        version = json.loads(self.run("version", "--client", "-o", "json"))
        return int(version["clientVersion"]["minor"])

    def run(self, *words: str, check: bool = True, stdin: str | None = None) -> str:
        """stdout and stderr together."""
        done = subprocess.run(
            [self.path, *words],
            env=self._env,
            input=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        assert not check or done.returncode == 0, f"{words}: {done.stdout}"
        return done.stdout

    def start(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [self.path, *words],
            env=self._env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def api(self, method: str, path: str, body: Any = None, kind: str = "json") -> dict[str, Any]:
        """One request through the unix socket, as an agent makes it."""
        connection = HTTPConnection("localhost", timeout=TIMEOUT_S)
        connection.sock = socket(AF_UNIX)
        connection.sock.connect(str(self.socket))
        with contextlib.closing(connection):
            content = {"Content-Type": f"application/{kind}"}
            data = None if body is None else json.dumps(body)
            connection.request(method, path, data, content)
            answer: dict[str, Any] = json.loads(connection.getresponse().read())
            assert answer.get("status") != "Failure", answer
            return answer

    def set_status(self, path: str, status: dict[str, Any]) -> None:
        self.api("PATCH", f"{path}/status", {"status": status}, "merge-patch+json")


@pytest.fixture(params=kubectls(), ids=lambda path: path.name)
def cluster(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Cluster]:
    started, loop = threading.Event(), asyncio.new_event_loop()
    config = ServerConfig(
        store=tmp_path / "store.db",
        pki_dir=tmp_path / "pki",
        unix_socket=tmp_path / "api.sock",
        tls_addresses=[("127.0.0.1", 0)],
    )
    server = ApiServer(config)

    async def main() -> None:
        async with server:
            (tmp_path / "kubeconfig").write_text(server.kubeconfig())
            over.append(asyncio.Event())
            started.set()
            await over[0].wait()

    over: list[asyncio.Event] = []
    thread = threading.Thread(target=loop.run_until_complete, args=(main(),))
    thread.start()
    assert started.wait(TIMEOUT_S)
    try:
        yield Cluster(tmp_path, request.param)
    finally:
        loop.call_soon_threadsafe(over[0].set)
        thread.join()
        loop.close()


DEPLOYMENT = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, labels: {app: web}}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - {name: web, image: "nginx:1", ports: [{containerPort: 80}]}
"""
POD = """
apiVersion: v1
kind: Pod
metadata: {name: solo, labels: {run: solo}}
spec:
  nodeName: node-1
  terminationGracePeriodSeconds: 0
  containers:
  - {name: main, image: "busybox:1"}
  - {name: side, image: "busybox:2"}
"""
CONFIG_MAP = '{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x"}}'
RUNNING = {
    "phase": "Running",
    "podIP": "10.244.1.7",
    "podIPs": [{"ip": "10.244.1.7"}],
    "conditions": [{"type": "Ready", "status": "True"}],
    "containerStatuses": [
        {
            "name": name,
            "ready": True,
            "restartCount": 1,
            "image": "busybox",
            "imageID": "",
            "state": {"running": {"startedAt": "2024-01-01T00:00:00Z"}},
        }
        for name in ("main", "side")
    ],
}
WEB = "/apis/apps/v1/namespaces/default/deployments/web"
SOLO = "/api/v1/namespaces/default/pods/solo"


def test_boutique_twice(cluster: Cluster) -> None:
    manifest = BOUTIQUE if BOUTIQUE.exists() else SHARED
    if not manifest.exists():
        pytest.skip(f"{manifest} is not here")
    first = cluster.run("apply", "-f", str(manifest)).splitlines()
    assert len(first) == 35
    assert all(line.endswith(" created") for line in first)
    second = cluster.run("apply", "-f", str(manifest)).splitlines()
    assert all(line.endswith(" unchanged") for line in second)
    assert len(second) == 35


def test_deployment_life(cluster: Cluster) -> None:
    assert "deployment.apps/web created" in cluster.run("apply", "-f", "-", stdin=DEPLOYMENT)
    changed = DEPLOYMENT.replace("nginx:1", "nginx:2")
    assert "deployment.apps/web configured" in cluster.run("apply", "-f", "-", stdin=changed)
    assert "scaled" in cluster.run("scale", "deployment/web", "--replicas=3")
    assert cluster.api("GET", WEB)["spec"]["replicas"] == 3
    assert "patched" in cluster.run("patch", "deploy", "web", "-p", '{"spec":{"paused":true}}')
    merge = '{"spec":{"paused":null}}'
    assert "patched" in cluster.run("patch", "deploy", "web", "--type=merge", "-p", merge)
    operations = '[{"op":"add","path":"/metadata/labels/tier","value":"front"}]'
    assert "patched" in cluster.run("patch", "deploy", "web", "--type=json", "-p", operations)
    assert "labeled" in cluster.run("label", "deploy", "web", "team=shop")
    assert "annotate" in cluster.run("annotate", "deploy", "web", "note=x")
    assert "restarted" in cluster.run("rollout", "restart", "deploy/web")
    live = cluster.api("GET", WEB)
    assert live["metadata"]["labels"] == {"app": "web", "tier": "front", "team": "shop"}
    waiting = cluster.start("rollout", "status", "deploy/web", "--timeout=30s")
    status = dict.fromkeys(("replicas", "updatedReplicas", "readyReplicas", "availableReplicas"), 3)
    generation = live["metadata"]["generation"]
    cluster.set_status(WEB, {**status, "observedGeneration": generation})
    output, _ = waiting.communicate(timeout=TIMEOUT_S)
    assert waiting.returncode == 0, output
    assert "successfully rolled out" in output
    row = cluster.run("get", "deploy", "web", "-o", "wide", "--no-headers").split()
    assert row[:4] == ["web", "3/3", "3", "3"]
    assert row[5:] == ["web", "nginx:2", "app=web"]
    assert "3 desired | 3 updated" in cluster.run("describe", "deploy", "web")
    assert "deleted" in cluster.run("delete", "deploy", "web")
    assert "NotFound" in cluster.run("get", "deploy", "web", check=False)


def test_pod_life(cluster: Cluster) -> None:
    cluster.run("create", "-f", "-", stdin=POD)
    assert 'pods "solo" already exists' in cluster.run("create", "-f", "-", stdin=POD, check=False)
    watching = cluster.start("get", "pods", "-w", "--no-headers")
    assert watching.stdout is not None
    assert watching.stdout.readline().split()[:4] == ["solo", "0/2", "Pending", "0"]
    cluster.set_status(SOLO, RUNNING)
    assert watching.stdout.readline().split()[:4] == ["solo", "2/2", "Running", "2"]
    watching.terminate()
    watching.communicate(timeout=TIMEOUT_S)
    wide = cluster.run("get", "pods", "-o", "wide", "--no-headers").split()
    assert wide[5:7] == ["10.244.1.7", "node-1"]
    assert "condition met" in cluster.run("wait", "pod/solo", "--for=condition=Ready")
    described = cluster.run("describe", "pod", "solo")
    assert "Restart Count:  1" in described
    assert re.search(r"QoS Class: +BestEffort", described)
    assert cluster.run("get", "pods", "-l", "run=solo", "-o", "name").strip() == "pod/solo"
    selector = "--field-selector=spec.nodeName=node-2"
    assert "No resources found" in cluster.run("get", "pods", selector)
    assert cluster.run("get", "pod", "solo", "-o", "jsonpath={.status.podIP}") == "10.244.1.7"
    assert "solo" in cluster.run("get", "all", "-A")
    assert "deleted" in cluster.run("delete", "pod", "solo")


def test_refusals(cluster: Cluster) -> None:
    typo = DEPLOYMENT.replace("replicas:", "replicaz:")
    told = cluster.run("apply", "-f", "-", stdin=typo, check=False)
    assert re.search(r'unknown field "(spec\.)?replicaz"', told)
    absent = cluster.run("-n", "nowhere", "create", "-f", "-", stdin=CONFIG_MAP, check=False)
    assert 'namespaces "nowhere" not found' in absent
    assert "forbidden: this namespace may not be deleted" in cluster.run(
        "delete", "ns", "default", check=False
    )
    assert "doesn't have a resource type" in cluster.run("get", "gizmos", check=False)
    if cluster.minor < TYPED_PROTOBUF:
        assert cluster.run("auth", "can-i", "create", "pods").strip().endswith("yes")


CRD = """
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: gizmos.example.com}
spec:
  group: example.com
  scope: Namespaced
  names: {plural: gizmos, singular: gizmo, kind: Gizmo, shortNames: [gz]}
  versions:
  - name: v1
    served: true
    storage: true
    additionalPrinterColumns:
    - {name: Size, type: integer, jsonPath: .spec.size}
    subresources:
      status: {}
      scale: {specReplicasPath: .spec.size, statusReplicasPath: .status.size}
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec: {type: object, properties: {size: {type: integer, default: 3}}}
          status: {type: object, x-kubernetes-preserve-unknown-fields: true}
"""
GIZMO = """
apiVersion: example.com/v1
kind: Gizmo
metadata: {name: g}
spec: {}
"""


def test_custom_kind(cluster: Cluster) -> None:
    cluster.run("apply", "-f", "-", stdin=CRD)
    cluster.run("wait", "--for=condition=established", "crd/gizmos.example.com")
    assert "created" in cluster.run("apply", "-f", "-", stdin=GIZMO)
    assert "unchanged" in cluster.run("apply", "-f", "-", stdin=GIZMO)
    assert cluster.run("get", "gz", "--no-headers").split() == ["g", "3"]
    assert "scaled" in cluster.run("scale", "gizmo/g", "--replicas=5")
    assert cluster.run("get", "gz", "--no-headers").split() == ["g", "5"]
    cluster.run("delete", "crd", "gizmos.example.com")
    gone = cluster.run("get", "gizmos", check=False)
    assert re.search("doesn't have a resource type|could not find the requested resource", gone)
