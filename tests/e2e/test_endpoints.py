"""Endpoints as users see them: a whole lab, kubectl, and the environment of containers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from podwire.lab import Lab

MANIFEST = """
apiVersion: v1
kind: Service
metadata: {name: web, labels: {team: shop}}
spec:
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: http}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 3
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers: [{name: c, image: web:1, ports: [{name: http, containerPort: 8080}]}]
---
apiVersion: v1
kind: Service
metadata: {name: db}
spec: {ports: [{name: pg, port: 5432}]}
---
apiVersion: v1
kind: Endpoints
metadata: {name: db}
subsets: [{addresses: [{ip: 203.0.113.10}], ports: [{name: pg, port: 5432}]}]
---
apiVersion: v1
kind: Pod
metadata: {name: plain}
spec:
  enableServiceLinks: false
  containers: [{name: c, image: plain:1}]
"""


@pytest.fixture(scope="module")
def lab(run_dir: Any) -> Iterator[Lab]:
    with Lab("endpoints", nodes=2, zones=["a", "b"]) as lab:
        lab.apply_text(MANIFEST)
        yield lab


def listed(tools: Any, lab: Lab, *words: str) -> Any:
    return json.loads(tools.kubectl(lab, "get", *words, "-o", "json"))


def ready_addresses(tools: Any, lab: Lab, service: str) -> list[str]:
    found = listed(tools, lab, "endpointslices", "-l", f"kubernetes.io/service-name={service}")
    return sorted(
        address
        for piece in found["items"]
        for endpoint in piece["endpoints"] or ()
        if endpoint["conditions"]["ready"]
        for address in endpoint["addresses"]
    )


def pod_addresses(tools: Any, lab: Lab) -> list[str]:
    pods = listed(tools, lab, "pods", "-l", "app=web")["items"]
    return sorted(p["status"]["podIP"] for p in pods if "deletionTimestamp" not in p["metadata"])


def test_slices_follow_the_pods(lab: Lab, tools: Any) -> None:
    tools.wait(lambda: len(ready_addresses(tools, lab, "web")) == 3)
    assert ready_addresses(tools, lab, "web") == pod_addresses(tools, lab)
    (piece,) = listed(tools, lab, "endpointslices", "-l", "team=shop")["items"]
    assert piece["ports"] == [{"name": "http", "port": 8080, "protocol": "TCP"}]
    nodes = {n["metadata"]["name"]: n for n in listed(tools, lab, "nodes")["items"]}
    for endpoint in piece["endpoints"]:
        labels = nodes[endpoint["nodeName"]]["metadata"]["labels"]
        assert endpoint["zone"] == labels["topology.kubernetes.io/zone"]
    table = tools.kubectl(lab, "get", "endpointslices", "-l", "team=shop")
    assert "IPv4" in table
    assert "8080" in table
    tools.kubectl(lab, "scale", "deployment/web", "--replicas=1")
    tools.wait(lambda: len(ready_addresses(tools, lab, "web")) == 1)
    tools.wait(lambda: ready_addresses(tools, lab, "web") == pod_addresses(tools, lab))
    described = tools.wait(lambda: tools.kubectl(lab, "describe", "service", "web"))
    assert f"{pod_addresses(tools, lab)[0]}:8080" in described


def test_endpoints_by_hand_are_mirrored_and_the_servers_own_are_there(lab: Lab, tools: Any) -> None:
    tools.wait(lambda: ready_addresses(tools, lab, "db") == ["203.0.113.10"])
    assert ready_addresses(tools, lab, "kubernetes") == ["172.30.0.1"]
    assert "172.30.0.1:6443" in tools.kubectl(lab, "get", "endpoints", "kubernetes")


def test_containers_are_told_of_services(lab: Lab, tools: Any) -> None:
    address = listed(tools, lab, "service", "web")["spec"]["clusterIP"]
    pod = listed(tools, lab, "pods", "-l", "app=web")["items"][0]["metadata"]["name"]
    env = tools.inside(lab, pod, "env").splitlines()
    assert f"WEB_SERVICE_HOST={address}" in env
    assert "WEB_SERVICE_PORT_HTTP=80" in env
    assert "KUBERNETES_SERVICE_PORT=443" in env
    without = tools.inside(lab, "plain", "env")
    assert "KUBERNETES_SERVICE_HOST=10.96.0.1" in without
    assert "WEB_SERVICE_HOST" not in without
