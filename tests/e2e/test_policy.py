"""Policies in whole labs, with real packets: in force when said so, before a pod's first packet,
through kills of the agent, and cut from connections that stand."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from podwire.explain.probes.wire import Probe
from podwire.lab import Lab
from podwire.objects import kinds

PODS = """
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {team: blue}}
---
apiVersion: v1
kind: Namespace
metadata: {name: other, labels: {team: red}}
"""
POD = """
---
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: {namespace}, labels: {{app: {app}}}}}
spec:
  nodeName: {node}
  terminationGracePeriodSeconds: 0
  containers:
  - name: c
    image: nginx
    ports: [{{name: web, containerPort: 8080}}, {{name: dgram, containerPort: 8081, protocol: UDP}}]
"""
WORLD = PODS + "".join(
    POD.format(name=name, namespace=namespace, app=name.partition("-")[0], node=node)
    for name, namespace, node in (
        ("server-1", "shop", "node-1"),
        ("server-2", "shop", "node-2"),
        ("client-1", "shop", "node-1"),
        ("client-2", "shop", "node-2"),
        ("alien-1", "other", "node-1"),
    )
)
DENY = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: deny, namespace: shop}
spec: {podSelector: {matchLabels: {app: server}}, policyTypes: [Ingress]}
"""
FROM_CLIENTS = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: clients, namespace: shop}
spec:
  podSelector: {matchLabels: {app: server}}
  ingress:
  - from: [{podSelector: {matchLabels: {app: client}}}]
    ports: [{port: web}]
"""
NO_EGRESS = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: no-egress, namespace: shop}
spec: {podSelector: {matchLabels: {app: box}}, policyTypes: [Egress]}
"""


ITSELF = """
apiVersion: v1
kind: Pod
metadata: {name: lone, namespace: shop, labels: {app: lone}}
spec:
  nodeName: node-1
  terminationGracePeriodSeconds: 0
  containers: [{name: c, image: nginx, ports: [{containerPort: 8080}]}]
---
apiVersion: v1
kind: Service
metadata: {name: lone, namespace: shop}
spec: {selector: {app: lone}, ports: [{port: 80, targetPort: 8080}]}
"""
ISOLATED = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: lone, namespace: shop}}
spec: {{podSelector: {{matchLabels: {{app: lone}}}}, policyTypes: [{0}]}}
"""
OPENED = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: itself, namespace: shop}
spec:
  podSelector: {matchLabels: {app: lone}}
  policyTypes: [Ingress, Egress]
  ingress: [{from: [{podSelector: {matchLabels: {app: lone}}}]}]
  egress: [{to: [{podSelector: {matchLabels: {app: lone}}}]}]
"""


@pytest.fixture(scope="module", params=["routed", "kubenet"])
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    with Lab(f"np-{request.param}", nodes=2, network=request.param, dns="none") as lab:
        lab.apply_text(WORLD)
        lab.wait_ready(30)
        yield lab


@pytest.fixture
def policies(lab: Lab) -> Iterator[Any]:
    """Applied policies are in force when the call returns, and gone after the test."""

    def apply(text: str) -> None:
        lab.apply_text(text)
        lab.wait_policies()

    yield apply
    for kind in ("networkpolicies", "clusternetworkpolicies"):
        lab.kubectl("delete", kind, "-A", "--all")
    lab.wait_policies()


def reached(lab: Lab, tools: Any, source: str, target: str, port: int = 8080, udp: bool = False):
    """Whether a packet of `source` (a pod, or a node) gets an answer of pod `target`."""
    pods = {f"{p.metadata.namespace}/{p.metadata.name}": p for p in lab.pods()}
    node = pods[source].spec.node_name if source in pods else source
    probe = Probe(
        source=source if source in pods else "",
        address=pods[target].status.pod_ip,
        port=port,
        protocol="udp" if udp else "tcp",
        timeout_s=0.3,
    )
    (result,) = tools.ask(lab, node, probe)
    assert result.verdict in ("allowed", "dropped"), result
    return result.verdict == "allowed"


CLIENTS = ("shop/client-1", "shop/client-2", "other/alien-1")
SERVERS = ("shop/server-1", "shop/server-2")


@pytest.mark.rootless
def test_on_one_node_and_across(lab: Lab, tools: Any, policies: Any) -> None:
    for source in CLIENTS:
        assert all(reached(lab, tools, source, target) for target in SERVERS)
    policies(DENY)
    for source in CLIENTS:
        assert not any(reached(lab, tools, source, target) for target in SERVERS)
        assert not any(reached(lab, tools, source, target, 8081, udp=True) for target in SERVERS)
    policies(FROM_CLIENTS)
    for source in CLIENTS:
        for target in SERVERS:
            assert reached(lab, tools, source, target) == source.startswith("shop/client")
            assert not reached(lab, tools, source, target, 8081, udp=True)
    rows = json.loads(tools.podwire("status", "policies", "--lab", lab.name, "-o", "json").stdout)
    (row,) = [row for row in rows if row["name"] == "clients"]
    assert row["accepted"] >= 4
    assert row["denied"] >= 2
    assert row["subjects"] == 2


def test_a_node_always_reaches_its_own_pods_and_no_others(
    lab: Lab, tools: Any, policies: Any
) -> None:
    policies(DENY)
    assert reached(lab, tools, "node-1", "shop/server-1")
    assert not reached(lab, tools, "node-1", "shop/server-2")


BANNED = """
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: banned}
spec:
  tier: Admin
  priority: 7
  subject:
    pods:
      namespaceSelector: {matchLabels: {team: blue}}
      podSelector: {matchLabels: {app: server}}
  ingress:
  - {action: Accept, from: [{namespaces: {matchLabels: {team: blue}}}]}
  - {action: Deny, from: [{namespaces: {matchLabels: {team: red}}}]}
"""


def test_what_a_rule_denies_counts_as_denied(lab: Lab, tools: Any, policies: Any) -> None:
    policies(BANNED)
    assert reached(lab, tools, "shop/client-1", "shop/server-1")
    assert not reached(lab, tools, "other/alien-1", "shop/server-1")
    rows = json.loads(tools.podwire("status", "policies", "--lab", lab.name, "-o", "json").stdout)
    (row,) = [row for row in rows if row["name"] == "banned"]
    assert (row["accepted"] > 0, row["denied"] > 0) == (True, True)
    shown = tools.podwire("status", "policies", "banned", "--lab", lab.name).stdout
    assert "spec.ingress[1] Deny" in " ".join(shown.split())


def test_a_pod_that_meets_itself_through_a_service_is_judged(
    lab: Lab, tools: Any, policies: Any
) -> None:
    """Both directions are; by its own address a pod always reaches itself (README, profiles)."""
    lab.apply_text(ITSELF)
    lab.wait_ready(30)
    service = lab.call(lambda api: api.get(kinds.SERVICE, "lone", "shop"))

    def through_service() -> bool:
        address = service.spec.cluster_ip
        probe = Probe(source="shop/lone", address=address, port=80, timeout_s=0.3)
        (result,) = tools.ask(lab, "node-1", probe)
        return result.verdict == "allowed"

    assert through_service()
    for direction in ("Ingress", "Egress"):
        policies(ISOLATED.format(direction))
        assert not through_service(), direction
        assert reached(lab, tools, "shop/lone", "shop/lone")
    policies(OPENED)
    assert through_service()


def test_a_label_opens_and_closes(lab: Lab, tools: Any, policies: Any) -> None:
    policies(FROM_CLIENTS)
    lab.kubectl("-n", "shop", "label", "pod", "client-1", "app=visitor", "--overwrite")
    tools.wait(lambda: not reached(lab, tools, "shop/client-1", "shop/server-1"))
    lab.kubectl("-n", "shop", "label", "pod", "client-1", "app=client", "--overwrite")
    tools.wait(lambda: reached(lab, tools, "shop/client-1", "shop/server-1"))


def test_what_is_deleted_is_gone_when_said_so(lab: Lab, tools: Any, policies: Any) -> None:
    for _ in range(3):
        policies(DENY)
        assert not reached(lab, tools, "shop/client-2", "shop/server-1")
        lab.call(lambda api: api.delete(kinds.NETWORK_POLICY, "deny", "shop"))
        lab.wait_policies()
        assert reached(lab, tools, "shop/client-2", "shop/server-1")


TALK = """
import http.client, sys, time
connection = http.client.HTTPConnection(sys.argv[1], 8080, timeout=1)
while True:
    try:
        connection.request("GET", "/hostname")
        connection.getresponse().read()
        print("ok", flush=True)
    except OSError as error:
        print("lost", error, flush=True)
        break
    time.sleep(0.05)
"""


class Printer:
    """A program that prints lines until it is closed."""

    def __init__(self, words: list[str]) -> None:
        self._process = subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.lines.append(line.strip())

    @property
    def lost(self) -> bool:
        return any(not line.startswith("ok") for line in self.lines)

    def __enter__(self) -> Printer:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join()
        assert self._process.stdout is not None
        self._process.stdout.close()


def _enter(lab: Lab, holder: int, ip: str) -> list[str]:
    """How to run a command in the pod that has this address."""
    inside = ["nsenter", f"--mount=/proc/{holder}/ns/mnt"]
    pins = lab.paths.pod_pins
    listed = subprocess.run([*inside, "ls", pins], capture_output=True, text=True, check=True)
    for name in listed.stdout.split():
        words = [*inside, "nsenter", f"--net={pins}/{name}"]
        found = subprocess.run([*words, "ip", "addr"], capture_output=True, text=True, check=True)
        if f"inet {ip}/" in found.stdout:
            return words
    raise AssertionError(f"no pod has {ip}")


@pytest.fixture
def talker(lab: Lab, tools: Any, root: None) -> Iterator[Printer]:
    """One connection that is used over and over, and what became of it.

    Not by `podwire exec`, which ends with the agent.
    """
    inside = _enter(lab, tools.pids(lab)["holder"], lab.pod("client-1", "shop").ip)
    address = lab.pod("server-2", "shop").ip
    with Printer([*inside, "python3", "-c", TALK, address]) as talker:
        tools.wait(lambda: len(talker.lines) > 3)
        yield talker


def test_a_connection_that_stands_is_cut(
    lab: Lab, tools: Any, policies: Any, talker: Printer
) -> None:
    policies(FROM_CLIENTS)
    before = len(talker.lines)
    tools.wait(lambda: len(talker.lines) > before + 3)
    assert not talker.lost
    lab.kubectl("-n", "shop", "delete", "networkpolicy", "clients")
    policies(DENY)
    tools.wait(lambda: talker.lost)
    cut = [
        lab.call(lambda api, node=node: _policies_of(api, node))["cut"]
        for node in ("node-1", "node-2")
    ]
    assert sum(cut) >= 1


def test_a_connection_that_stands_may_be_kept(tools: Any, root: None) -> None:
    """With --denied-flows keep, as Calico and Antrea do; new ones are denied all the same."""
    with Lab("np-keep", nodes=2, dns="none", denied_flows="keep") as lab:
        lab.apply_text(WORLD)
        lab.wait_ready(30)
        inside = _enter(lab, tools.pids(lab)["holder"], lab.pod("client-1", "shop").ip)
        address = lab.pod("server-2", "shop").ip
        with Printer([*inside, "python3", "-c", TALK, address]) as talker:
            tools.wait(lambda: len(talker.lines) > 3)
            lab.apply_text(DENY)
            lab.wait_policies()
            assert not reached(lab, tools, "shop/client-1", "shop/server-2")
            before = len(talker.lines)
            tools.wait(lambda: len(talker.lines) > before + 10)
            assert not talker.lost


async def _policies_of(api: Any, node: str) -> dict[str, Any]:
    body = await api.request("GET", f"/api/v1/nodes/{node}/proxy/policies")
    found: dict[str, Any] = json.loads(body)
    return found


def test_killed_agents_lose_nothing(lab: Lab, tools: Any, policies: Any, talker: Printer) -> None:
    policies(FROM_CLIENTS)
    for _ in range(3):
        for name, pid in tools.pids(lab).items():
            if name.startswith("agent-"):
                os.kill(pid, signal.SIGKILL)
        ends = time.monotonic() + 1.0
        while time.monotonic() < ends:
            # Nobody is asked while agents are down: what was denied must stay so by itself.
            assert not talker.lost
            time.sleep(0.05)
        tools.wait(lambda: not reached(lab, tools, "other/alien-1", "shop/server-1"))
        lab.wait_policies()
    assert reached(lab, tools, "shop/client-2", "shop/server-1")
    assert not talker.lost


SENDER = """
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: shop, labels: {{app: {app}}}}}
spec:
  nodeName: node-1
  restartPolicy: Never
  terminationGracePeriodSeconds: 0
  initContainers:
  - name: first
    image: box
    command: &send
    - sh
    - -c
    - for i in 1 2 3 4 5; do busybox tftp -g -r {name} {address} 9999 & done; sleep 0.5
  containers:
  - name: c
    image: box
    command: *send
"""
LISTEN = """
import socket
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.bind(("0.0.0.0", 9999))
print("ready", flush=True)
while True:
    print(sock.recv(100).split(b"\\0")[1][1:].decode(), flush=True)  # a file's name
"""


def test_policy_is_in_force_before_the_first_instruction(
    lab: Lab, tools: Any, policies: Any, busybox_image: Path
) -> None:
    """An init container and a container send at once, by TFTP's first datagram."""
    lab.load_image(busybox_image)
    policies(NO_EGRESS)
    ear = lab.pod("alien-1", "other").ip
    holder = tools.pids(lab)["holder"]
    names = [f"{app}-{number}" for app in ("free", "held") for number in range(3)]
    with Printer([*_enter(lab, holder, ear), "python3", "-c", LISTEN]) as heard:
        tools.wait(lambda: "ready" in heard.lines)
        for name in names:
            app = "box" if name.startswith("held") else "free"
            lab.apply_text(SENDER.format(name=name, app=app, address=ear))
        tools.wait(lambda: all(lab.pod(name, "shop").object.finished for name in names))
        assert {"free-0", "free-1", "free-2"} <= set(heard.lines)
        assert not [line for line in heard.lines if line.startswith("held")]
    rows = json.loads(tools.podwire("status", "policies", "--lab", lab.name, "-o", "json").stdout)
    (row,) = [row for row in rows if row["name"] == "no-egress"]
    assert row["denied"] >= 3 * 10
