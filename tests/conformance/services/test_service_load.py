"""No connection is lost: rolling updates and killed agents under constant load.

Two clients that share no process with the lab connect every 10 ms, one from a node to the cluster
IP and one from beyond the cluster to a node port; every single connection has to be answered.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from outsideclient import Drum, drum
from serviceslab import (
    NODE_IPS,
    PROXIES,
    Case,
    World,
    service_world,
)

ROUNDS = 10 if os.environ.get("PODWIRE_ALL") == "1" else 1
REPLICAS = 10
# Pods honour termination: they serve on while the world learns that they end.
DEPLOYMENT = """
apiVersion: apps/v1
kind: Deployment
metadata: {{name: web, namespace: {namespace}}}
spec:
  replicas: {replicas}
  strategy: {{rollingUpdate: {{maxUnavailable: 25%, maxSurge: 25%}}}}
  selector: {{matchLabels: {{app: web}}}}
  template:
    metadata: {{labels: {{app: web}}}}
    spec:
      terminationGracePeriodSeconds: 10
      containers:
      - name: main
        image: example.com/web:1
        ports: [{{containerPort: 8080}}]
        readinessProbe: {{httpGet: {{path: /readyz, port: 8080}}, periodSeconds: 1}}
        lifecycle: {{preStop: {{sleep: {{seconds: 2}}}}}}
"""


@pytest.fixture(scope="module", params=PROXIES)
def world(request: pytest.FixtureRequest, tools: Any) -> Iterator[World]:
    yield from service_world(request.param, "load", tools)


@pytest.fixture
def t(world: World) -> Iterator[Case]:
    with world.test() as case:
        text = DEPLOYMENT.format(namespace=case.namespace, replicas=REPLICAS)
        case.lab.apply_text(text)
        yield case
        case.tools.kubectl(case.lab, "-n", case.namespace, "delete", "deployment", "web")


class Load:
    """Both drums."""

    def __init__(self, *drums: Drum) -> None:
        self._drums = drums

    def flow(self, beats: int) -> None:
        for one in self._drums:
            one.flow(beats)

    def lost(self) -> list[list[tuple[float, float]]]:
        """Of each client: when its unanswered connections began, and how long they took."""
        found = []
        for one in self._drums:
            beats = one.stop()
            assert len(beats) > 100
            first = beats[0].began
            found.append([(b.began - first, b.ended - b.began) for b in beats if not b.answered])
        return found


@contextlib.contextmanager
def load(t: Case) -> Iterator[Load]:
    service = t.service(type="NodePort")
    vip, number = service.spec.cluster_ip, service.spec.ports[0].node_port
    names = {pod.metadata.name for pod in t.lab.pods(t.namespace)}
    assert len(names) == REPLICAS
    for source, address, port in (
        ("node-1", vip, 80),
        ("outside", NODE_IPS["node-2"], number),
    ):
        t.reached(source, address, port, names)
    with (
        drum(t.lab, vip, 80, host="node-1", timeout_s=5) as inside,
        drum(t.lab, NODE_IPS["node-2"], number, timeout_s=5) as outside,
    ):
        both = Load(inside, outside)
        both.flow(20)
        yield both


def test_rolling_update(t: Case) -> None:
    """Every pod of ten is replaced."""
    with load(t) as clients:
        for _ in range(ROUNDS):
            before = {pod.metadata.uid for pod in t.lab.pods(t.namespace)}
            t.tools.kubectl(t.lab, "-n", t.namespace, "rollout", "restart", "deployment/web")
            t.tools.kubectl(
                t.lab, "-n", t.namespace, "rollout", "status", "deployment/web", "--timeout=100s"
            )
            t.tools.wait(
                lambda before=before: (
                    not before & {pod.metadata.uid for pod in t.lab.pods(t.namespace)}
                )
            )
        clients.flow(50)
        assert clients.lost() == [[], []]


def test_agents_are_killed(t: Case) -> None:
    """Those of both nodes the clients come through, again and again, while endpoints change."""
    with load(t) as clients:
        for number in range(3 * ROUNDS):
            for name in ("agent-node-1", "agent-node-2"):
                before = t.tools.pids(t.lab)[name]
                os.kill(before, signal.SIGKILL)
                clients.flow(20)
                t.tools.wait(
                    lambda name=name, before=before: t.tools.pids(t.lab)[name] not in (0, before)
                )
            replicas = REPLICAS if number % 2 else REPLICAS - 3
            scale = ("scale", "deployment/web", f"--replicas={replicas}")
            t.tools.kubectl(t.lab, "-n", t.namespace, *scale)
            clients.flow(50)
        t.lab.wait_ready()
        clients.flow(50)
        assert clients.lost() == [[], []]
