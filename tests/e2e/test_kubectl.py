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

BOUTIQUE = "samples/online-boutique/kubernetes-manifests.yaml"
DEBIAN = Path(__file__).parents[2] / ".cache/kubectl-debian/usr/bin/kubectl"
"""Debian 12's own client (1.20.2), unpacked by `./test` where apt is."""
TIMEOUT_S = 60
OLDEST = 27
WHOAMI = 28
"""From this minor on `auth whoami` asks for the version that is stable."""


def kubectls() -> list[Path]:
    """`kubectl.1.NN` beside the resolved path of kubectl, else kubectl itself; and Debian's."""
    found = shutil.which("kubectl")
    if found is None:
        return []
    beside = sorted(Path(found).resolve().parent.glob("kubectl.1.*"))
    new = [p for p in beside if re.fullmatch(r"kubectl\.1\.\d+", p.name)] or [Path(found)]
    return [DEBIAN, *new] if DEBIAN.exists() else new


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

    def run(
        self, *words: str, check: bool = True, stdin: str | None = None, **environment: str
    ) -> str:
        """stdout and stderr together."""
        done = subprocess.run(
            [self.path, *words],
            env=self._env | environment,
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


@pytest.fixture
def needs_recent(cluster: Cluster) -> None:
    if cluster.minor < OLDEST:
        pytest.skip(
            f"kubectl 1.{cluster.minor} has other flags; 1.{OLDEST} is the oldest meant here"
        )


def ends() -> pytest.MarkDecorator:
    """For what hardly differs between versions: the oldest and the two newest.

    Debian's is too old for their flags: `needs_recent` skips it where there is no other.
    """
    found = [path for path in kubectls() if path != DEBIAN]
    chosen = dict.fromkeys((*found[:1], *found[-2:]))
    return pytest.mark.parametrize("cluster", chosen, indirect=True, ids=lambda path: path.name)


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


def test_boutique_twice(cluster: Cluster, shared: Path) -> None:
    manifest = shared / BOUTIQUE
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


# Typed commands: from 1.32 on kubectl writes them in protobuf. What they print must end so.
TYPED = {
    "create ns team": "namespace/team created",
    "-n team create configmap cfg --from-literal=a=b": "configmap/cfg created",
    "-n team create secret generic s --from-literal=p=w": "secret/s created",
    "-n team create deployment web --image=nginx:1 --port=80": "deployment.apps/web created",
    "-n team create service clusterip web --tcp=80:8080": "service/web created",
    "-n team create sa robot": "serviceaccount/robot created",
    "-n team create job once --image=busybox -- true": "job.batch/once created",
    "-n team create cronjob tick --image=busybox --schedule=@daily": "cronjob.batch/tick created",
    "-n team create role r --verb=get --resource=pods": "role.rbac.authorization.k8s.io/r created",
    "-n team create ingress i --rule=a.b/*=web:80": "ingress.networking.k8s.io/i created",
    "-n team create pdb p --selector=app=web --min-available=1": "p created",
    "-n team run solo --image=nginx --port=80": "pod/solo created",
    "-n team expose pod solo": "service/solo exposed",
    "-n team set image deployment/web nginx=nginx:2": "image updated",
    "-n team autoscale deployment web --max=4": "autoscaling/web autoscaled",
    "auth can-i create pods": "yes",
}


@ends()
@pytest.mark.usefixtures("needs_recent")
def test_typed_commands(cluster: Cluster) -> None:
    for command, said in TYPED.items():
        assert cluster.run(*command.split()).strip().endswith(said), command
    assert cluster.run("-n", "team", "create", "token", "robot").count(".") == 2
    if cluster.minor >= WHOAMI:
        assert "kubernetes-admin" in cluster.run("auth", "whoami")
    secret = cluster.api("GET", "/api/v1/namespaces/team/secrets/s")
    assert (secret["data"], secret["type"]) == ({"p": "dw=="}, "Opaque")
    scaler = cluster.api("GET", "/apis/autoscaling/v2/namespaces/team/horizontalpodautoscalers/web")
    assert (scaler["spec"]["minReplicas"], scaler["spec"]["maxReplicas"]) == (1, 4)


@ends()
@pytest.mark.usefixtures("needs_recent")
def test_typed_writes_equal_json(cluster: Cluster) -> None:
    command = ("create", "deployment", "web", "--image=nginx:1", "--replicas=0", "--port=80")
    cluster.run(*command)
    text = json.loads(cluster.run(*command, "--dry-run=client", "-o", "json"))
    text["metadata"]["name"] = "json"
    other = cluster.api("POST", "/apis/apps/v1/namespaces/default/deployments", text)
    assert cluster.api("GET", WEB)["spec"] == other["spec"]


@ends()
@pytest.mark.usefixtures("needs_recent")
def test_nodes(cluster: Cluster) -> None:
    node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-1"}}
    cluster.api("POST", "/api/v1/nodes", node)
    cluster.run("create", "-f", "-", stdin=POD)
    cluster.set_status(SOLO, RUNNING)
    assert "node/node-1 tainted" in cluster.run("taint", "node", "node-1", "k=v:NoSchedule")
    assert "node/node-1 cordoned" in cluster.run("cordon", "node-1")
    assert "node/node-1 uncordoned" in cluster.run("uncordon", "node-1")
    drained = cluster.run("drain", "node-1", "--force")
    assert "pod/solo evicted" in drained
    assert "node/node-1 drained" in drained
    assert "SchedulingDisabled" in cluster.run("get", "nodes", "--no-headers")


@ends()
@pytest.mark.usefixtures("needs_recent")
def test_everyday_commands(cluster: Cluster) -> None:
    cluster.run("create", "configmap", "cfg", "--from-literal=a=one")
    cluster.run("edit", "configmap", "cfg", EDITOR="sed -i s/one/two/")
    assert cluster.run("get", "configmap", "cfg", "-o", "jsonpath={.data.a}") == "two"
    live = cluster.run("get", "configmap", "cfg", "-o", "yaml")
    assert "replaced" in cluster.run("replace", "-f", "-", stdin=live.replace("a: two", "a: three"))
    raw = cluster.run("get", "--raw", "/api/v1/namespaces/default/configmaps/cfg")
    assert json.loads(raw)["data"] == {"a": "three"}
    applied = CONFIG_MAP.replace('"x"', '"%s", "labels": {"prune": "y"}')
    cluster.run("apply", "-f", "-", stdin=applied % "one")
    pruning = ("apply", "--prune", "-l", "prune=y", "--prune-allowlist=core/v1/ConfigMap")
    assert "configmap/one pruned" in cluster.run(*pruning, "-f", "-", stdin=applied % "two")
    assert "Periodic probe" in cluster.run("explain", "pod.spec.containers.livenessProbe")
    assert "networkpolicies" in cluster.run("api-resources")
    assert "v1.33" in cluster.run("version", "-o", "json")
    assert "https://127.0.0.1:" in cluster.run("cluster-info")
    assert "Metrics API not available" in cluster.run("top", "nodes", check=False)
    assert "No resources found" in cluster.run("get", "events")
    names = cluster.run("get", "configmaps", "--sort-by=.metadata.name", "-o", "name").split()
    assert names == ["configmap/cfg", "configmap/two"]
    assert cluster.run("delete", "configmaps", "--all").count("deleted") == 2


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


# -- network policies ----------------------------------------------------------------------------

CLUSTER_POLICY = """
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: no-metadata-server}
spec:
  tier: Admin
  priority: %d
  subject: {namespaces: {}}
  egress:
  - {name: metadata, action: Deny, to: [{networks: [169.254.169.254/32]}]}
"""
BASELINE = """
apiVersion: policy.networking.k8s.io/v1alpha1
kind: BaselineAdminNetworkPolicy
metadata: {name: default}
spec:
  subject: {namespaces: {}}
  ingress:
  - {action: Deny, from: [{namespaces: {}}], ports: [{portNumber: {protocol: TCP, port: 22}}]}
"""
NETWORK_POLICY = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web}
spec:
  podSelector: {matchLabels: {app: web}}
  ingress:
  - {from: [{podSelector: {}}, {ipBlock: {cidr: 10.1.2.3/8}}], ports: [{port: 80, endPort: 90}]}
"""


def test_network_policies(cluster: Cluster) -> None:
    cluster.run("wait", "--for=condition=established", "crd", "--all")
    assert "created" in cluster.run("apply", "-f", "-", stdin=CLUSTER_POLICY % 10)
    assert "unchanged" in cluster.run("apply", "-f", "-", stdin=CLUSTER_POLICY % 10)
    assert "configured" in cluster.run("apply", "-f", "-", stdin=CLUSTER_POLICY % 20)
    header, row = cluster.run("get", "cnp").splitlines()
    assert header.split() == ["NAME", "TIER", "PRIORITY", "AGE"]
    assert row.split()[:3] == ["no-metadata-server", "Admin", "20"]
    assert "169.254.169.254/32" in cluster.run("describe", "cnp", "no-metadata-server")
    bad = cluster.run("apply", "-f", "-", stdin=CLUSTER_POLICY % 1001, check=False)
    assert "spec.priority in body should be less than or equal to 1000" in bad
    assert "created" in cluster.run("apply", "-f", "-", stdin=BASELINE)
    assert cluster.run("get", "banp", "-o", "name").strip().endswith("/default")
    assert cluster.run("get", "anp").strip() == "No resources found"
    applied = cluster.run("apply", "-f", "-", stdin=NETWORK_POLICY)
    assert 'CIDR value "10.1.2.3/8" is ambiguous in this context' in applied
    assert cluster.run("get", "netpol", "--no-headers").split()[:2] == ["web", "app=web"]
    described = cluster.run("describe", "netpol", "web")
    assert "PodSelector:     app=web" in described
    assert "Policy Types: Ingress" in described


# -- Services ------------------------------------------------------------------------------------

SERVICES = "/api/v1/namespaces/default/services"
SLICE = """
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
endpoints: [{addresses: [10.244.1.7]}]
ports: [{name: http, port: 8080}]
"""
ENDPOINTS = """
apiVersion: v1
kind: Endpoints
metadata: {name: web}
subsets: [{addresses: [{ip: 10.244.1.7}], ports: [{name: http, port: 8080}]}]
"""
BALANCED = """
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: LoadBalancer
  externalTrafficPolicy: Local
  loadBalancerSourceRanges: [203.0.113.0/24]
  sessionAffinity: ClientIP
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: 8080, nodePort: 30080}]
"""
CREATED = {
    "clusterip a --tcp=80:8080": "service/a created",
    "clusterip b --clusterip=None": "service/b created",
    "nodeport c --tcp=80 --node-port=30081": "service/c created",
    "loadbalancer d --tcp=80:http": "service/d created",
    "externalname e --external-name=a.example.com": "service/e created",
}


@pytest.mark.usefixtures("needs_recent")
def test_services_are_created_and_shown(cluster: Cluster) -> None:
    for words, said in CREATED.items():
        assert cluster.run("create", "service", *words.split()).strip() == said
    told = cluster.run(
        "create", "service", "nodeport", "f", "--tcp=1", "--node-port=1", check=False
    )
    assert "Invalid value: 1: provided port is not in the valid range" in told
    lines = cluster.run("get", "svc", "-o", "wide").splitlines()
    assert lines[0].split() == [
        "NAME",
        "TYPE",
        "CLUSTER-IP",
        "EXTERNAL-IP",
        "PORT(S)",
        "AGE",
        "SELECTOR",
    ]
    shown = {row[0]: row for row in (line.split() for line in lines[1:])}
    assert shown["a"][1:5] == ["ClusterIP", "10.96.1.1", "<none>", "80/TCP"]
    assert shown["a"][6] == "app=a"
    assert shown["b"][1:4] == ["ClusterIP", "None", "<none>"]
    assert (shown["c"][1], shown["c"][4]) == ("NodePort", "80:30081/TCP")
    assert (shown["d"][1], shown["d"][3]) == ("LoadBalancer", "<pending>")
    assert shown["e"][1:5] == ["ExternalName", "<none>", "a.example.com", "<none>"]
    assert "services/default/a" in cluster.run("get", "ipaddresses")
    assert "10.96.0.0/16" in cluster.run("get", "servicecidrs")


@pytest.mark.usefixtures("needs_recent")
def test_a_service_is_exposed_described_and_changed(cluster: Cluster) -> None:
    cluster.run("apply", "-f", "-", stdin=DEPLOYMENT)
    assert "exposed" in cluster.run("expose", "deployment", "web", "--name=plain", "--port=80")
    told = cluster.run("apply", "-f", "-", stdin=BALANCED)
    assert "service/web created" in told
    cluster.run("apply", "-f", "-", stdin=SLICE)
    assert "EndpointSlice" in cluster.run("apply", "-f", "-", stdin=ENDPOINTS), "a Warning"
    ingress = {"loadBalancer": {"ingress": [{"ip": "203.0.113.9"}]}}
    cluster.set_status(f"{SERVICES}/web", ingress)
    event = {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": "web.1"},
        "involvedObject": {"kind": "Service", "namespace": "default", "name": "web"},
        "reason": "EnsuredLoadBalancer",
        "message": "Ensured load balancer",
        "type": "Normal",
        "source": {"component": "service-controller"},
    }
    event["involvedObject"]["uid"] = cluster.api("GET", f"{SERVICES}/web")["metadata"]["uid"]  # type: ignore[index]
    cluster.api("POST", "/api/v1/namespaces/default/events", event)
    described = cluster.run("describe", "svc", "web")
    facts = dict(re.findall(r"^([A-Z][^:\n]+): +(.*)$", described, re.MULTILINE))
    assert facts["Endpoints"] == "10.244.1.7:8080"
    assert facts["Selector"] == "app=web"
    assert facts["NodePort"] == "http  30080/TCP"
    assert facts["Session Affinity"] == "ClientIP"
    assert facts["External Traffic Policy"] == "Local"
    assert facts["LoadBalancer Ingress"].startswith("203.0.113.9")
    assert facts["HealthCheck NodePort"].isdigit()
    assert "Ensured load balancer" in described
    again = cluster.run("apply", "-f", "-", stdin=BALANCED)
    assert "service/web unchanged" in again
    plain = BALANCED.replace("LoadBalancer", "ClusterIP").replace(", nodePort: 30080", "")
    plain = re.sub(r"  (external|loadBalancer).*\n", "", plain)
    assert "service/web configured" in cluster.run("apply", "-f", "-", stdin=plain)
    spec = cluster.api("GET", f"{SERVICES}/web")["spec"]
    assert "nodePort" not in spec["ports"][0]
    assert "healthCheckNodePort" not in spec
    refused = cluster.run(
        "patch", "svc", "web", "-p", '{"spec":{"clusterIP":"10.96.0.9"}}', check=False
    )
    assert "may not change once set" in refused
