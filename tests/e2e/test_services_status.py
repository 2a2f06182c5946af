"""What nodes tell of Services, waiting for them, and `why`: with real packets in a whole lab."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from podwire.errors import LabError
from podwire.explain.programmed import read_rows
from podwire.lab import Lab
from podwire.objects import kinds

MANIFEST = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - {name: c, image: nginx, ports: [{name: http, containerPort: 8080}]}
---
apiVersion: v1
kind: Pod
metadata: {name: client, labels: {app: client}}
spec:
  nodeName: node-1
  containers: [{name: c, image: busybox}]
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: NodePort
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: http, nodePort: 30080}]
---
apiVersion: v1
kind: Service
metadata: {name: wrong}
spec:
  selector: {app: weg}
  ports: [{port: 80}]
---
apiVersion: v1
kind: Service
metadata: {name: deaf}
spec:
  selector: {app: web}
  ports: [{port: 80, targetPort: 9}]
"""


@pytest.fixture(scope="module")
def lab(run_dir: Path) -> Iterator[Lab]:
    with Lab("told", nodes=2) as built:
        built.apply_text(MANIFEST)
        yield built


def ask(tools: Any, lab: Lab, *words: str, code: int = 0) -> Any:
    done = tools.podwire(*words, "--lab", lab.name, "-o", "json", check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return json.loads(done.stdout)


def metrics(lab: Lab, node: str, query: str = "") -> list[str]:
    path = f"/api/v1/nodes/{node}/proxy/metrics"
    asked = {"endpoints": "1"} if query else {}
    page = lab.call(lambda api: api.request("GET", path, query=asked))
    return page.decode().splitlines()


def value(lines: list[str], *parts: str) -> float:
    """The sum of all samples that hold these words."""
    return sum(float(x.split()[-1]) for x in lines if all(p in x for p in parts))


def test_apply_returns_when_every_node_has_every_service(lab: Lab) -> None:
    rows = lab.call(lambda api: read_rows(api))
    assert {row.name for row in rows} == {"kubernetes", "kube-dns", "web", "wrong", "deaf"}
    assert all(row.programmed == 2 == len(row.nodes) for row in rows)


def test_status_tells_every_service(tools: Any, lab: Lab) -> None:
    text = tools.podwire("status", "services", "--lab", lab.name).stdout
    (line,) = [x for x in text.splitlines() if " web " in x]
    assert "80:30080/TCP" in line
    assert "2/2" in line
    detail = ask(tools, lab, "status", "services", "web")
    assert detail["nodes"][0]["report"]["frontends"][1]["role"] == "NodePort"
    assert "10.244." in tools.podwire("status", "services", "web", "--lab", lab.name).stdout


def test_status_of_a_service_that_is_not_there(tools: Any, lab: Lab) -> None:
    done = tools.podwire("status", "services", "nope", "--lab", lab.name, check=False)
    assert done.returncode == 1
    assert 'services "nope" not found' in done.stderr


def test_wait_follows_a_change(tools: Any, lab: Lab) -> None:
    tools.kubectl(lab, "scale", "deployment", "web", "--replicas=3")
    lab.wait_ready()
    row = lab.call(lambda api: read_rows(api, "default", "web"))[0]
    assert (row.ready, row.programmed) == (3, 2)
    tools.kubectl(lab, "scale", "deployment", "web", "--replicas=2")
    lab.wait_ready()
    assert "programmed" in tools.podwire("wait", "services", "web", "--lab", lab.name).stdout


def test_wait_tells_who_is_behind(tools: Any, lab: Lab) -> None:
    """A stopped agent programs nothing: time runs out, with words."""
    pid = tools.pids(lab)["agent-node-2"]
    os.kill(pid, signal.SIGSTOP)
    try:
        tools.kubectl(lab, "annotate", "svc", "web", "x=1", "--overwrite")
        with pytest.raises(LabError, match="node-2"):
            lab.wait_services("web", timeout_s=0.3)
    finally:
        os.kill(pid, signal.SIGCONT)
    lab.wait_services("web")


def test_wait_for_a_service_that_is_not_there(tools: Any, lab: Lab) -> None:
    done = tools.podwire("wait", "services", "nope", "--lab", lab.name, check=False)
    assert done.returncode == 1


def test_nodes_and_services_carry_conditions_and_then_nobody_writes(tools: Any, lab: Lab) -> None:
    def told() -> bool:
        nodes, _ = lab.call(lambda api: api.list(kinds.NODE))
        services, _ = lab.call(lambda api: api.list(kinds.SERVICE))
        return all(
            any(c.type == "ServicesProgrammed" and c.status == "True" for c in n.status.conditions)
            for n in nodes
        ) and all(
            any(
                c.type == "networking.podwire.dev/Programmed" and c.status == "True"
                for c in s.status.conditions
            )
            for s in services
        )

    def versions() -> list[str]:
        services, _ = lab.call(lambda api: api.list(kinds.SERVICE))
        return [s.metadata.resource_version for s in services]

    tools.wait(told)
    before = versions()
    tools.kubectl(lab, "scale", "deployment", "web", "--replicas=1")
    lab.wait_ready()
    tools.kubectl(lab, "scale", "deployment", "web", "--replicas=2")
    lab.wait_ready()
    assert versions() == before, "endpoints that come and go write nothing to Services"


def test_connections_are_counted_and_survive_other_endpoints(tools: Any, lab: Lab) -> None:
    client = lab.pod("client")
    vip = lab.call(lambda api: api.get(kinds.SERVICE, "web", "default")).spec.cluster_ip
    words = ("podwire_service_connections_total", 'service="web"')
    before = value(metrics(lab, "node-1"), *words)
    for _ in range(5):
        assert client.can_reach(vip, 80)
    tools.wait(lambda: value(metrics(lab, "node-1"), *words) == before + 5)
    tools.kubectl(lab, "scale", "deployment", "web", "--replicas=3")
    lab.wait_ready()
    assert client.can_reach(vip, 80)
    tools.wait(lambda: value(metrics(lab, "node-1"), *words) == before + 6)
    lines = metrics(lab, "node-1", "endpoints")
    assert value(lines, "podwire_service_endpoint_connections_total", 'service="web"') > 0
    assert value(lines, "podwire_service_packets_total", 'service="web"', 'direction="out"') >= 6
    tools.kubectl(lab, "scale", "deployment", "web", "--replicas=2")
    lab.wait_ready()


def test_round_trips_of_open_connections_are_told(tools: Any, lab: Lab) -> None:
    vip = lab.call(lambda api: api.get(kinds.SERVICE, "web", "default")).spec.cluster_ip
    held = (
        "import socket,sys\n"
        f"sock = socket.create_connection(('{vip}', 80))\n"
        "print('open', flush=True)\n"
        "sys.stdin.read()\n"
    )
    words = [sys.executable, "-m", "podwire", "exec", "--lab", lab.name, "-i", "default/client"]
    with subprocess.Popen(
        [*words, "--", sys.executable, "-c", held], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as client:
        assert client.stdout is not None
        assert client.stdout.readline().strip() == b"open"
        line = tools.wait(
            lambda: [
                x
                for x in metrics(lab, "node-1")
                if x.startswith("podwire_service_rtt") and 'service="web"' in x
            ]
        )[0]
        assert 0 < float(line.split()[-1]) < 1
        client.communicate()


def test_refused_connections_are_counted(tools: Any, lab: Lab) -> None:
    vip = lab.call(lambda api: api.get(kinds.SERVICE, "wrong", "default")).spec.cluster_ip
    assert lab.pod("client").probe(vip, 80).verdict == "refused"
    words = ("podwire_service_refused_connections_total", 'service="wrong"')
    tools.wait(lambda: value(metrics(lab, "node-1"), *words) >= 1)


@pytest.mark.parametrize(
    ("source", "to", "code", "agreement", "words"),
    [
        ("default/client", "svc/web", 0, "agrees", "allowed"),
        ("default/client", "svc/wrong", 1, "agrees", "instead of weg"),
        ("default/client", "svc/deaf", 1, "endpoint", "do not answer either"),
        ("default/client", "svc/web:81", 1, "agrees", "no Service port there"),
        ("default/client", "10.96.200.200:80", 1, "agrees", "no Service has this address"),
        ("node/node-2", "svc/default/web:http", 0, "agrees", "allowed"),
        ("outside", "node/node-2:30080", 0, "agrees", "allowed"),
        ("outside", "10.96.200.200:80", 1, "unreached", "never came to node"),
        ("default/client", "node/node-2:30080", 0, "agrees", "allowed"),
        ("default/web", "default/client:7", 1, "agrees", "no Service has a part"),
    ],
)
def test_why(
    tools: Any, lab: Lab, source: str, to: str, code: int, agreement: str, words: str
) -> None:
    found = ask(tools, lab, "why", source, to, code=code)
    assert found["agreement"] == agreement, found
    assert words in found["summary"]


def test_why_shows_the_rules_the_packet_met(tools: Any, lab: Lab) -> None:
    found = ask(tools, lab, "why", "default/client", "svc/web")
    assert found["live"]["rules"] == found["model"]["rules"]
    assert "map @endpoints" in found["live"]["rules"][-1]
    text = tools.podwire("why", "default/client", "svc/web", "--lab", lab.name).stdout
    assert "podwire-services" in text
    rules = tools.inside(lab, "node-1", "nft", "list", "ruleset")
    assert "podwire-trace" not in rules


def test_why_of_what_is_not_there(tools: Any, lab: Lab) -> None:
    done = tools.podwire("why", "default/client", "svc/nope", "--lab", lab.name, check=False)
    assert done.returncode == 1
    assert "not found" in done.stderr


def test_why_from_outside_says_what_to_ask_for(tools: Any, lab: Lab) -> None:
    found = ask(tools, lab, "why", "outside", "svc/web", code=1)
    assert "from outside ask for node/NAME:30080" in found["summary"]


def test_the_adviser_reads_files(tools: Any, lab: Lab, tmp_path: Path) -> None:
    services = tools.kubectl(lab, "get", "svc,nodes", "-A", "-o", "yaml")
    (tmp_path / "cluster.yaml").write_text(services)
    (tmp_path / "dump").write_text("-A -t 10.96.0.1:443 -s sh\n")
    done = tools.podwire(
        "check", "-f", tmp_path / "cluster.yaml", "--node-dump", tmp_path / "dump", check=False
    )
    assert done.returncode == 1, done.stdout
    assert "kube-proxy mode ipvs" in done.stdout
    assert "service default/kubernetes (10.96.0.1:443)" in done.stdout
