"""What nodes saw of connections, in whole labs: the flow log, policies that are only tried, and
policies recommended from what was seen."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from podwire.explain.probes.wire import Probe
from podwire.lab import Lab

ALL = os.environ.get("PODWIRE_ALL") == "1"
POD = """
---
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: {namespace}, labels: {{app: {name}}}}}
spec:
  nodeName: {node}
  terminationGracePeriodSeconds: 0
  containers:
  - {{name: c, image: nginx, ports: [{{containerPort: 8080}}, {{containerPort: 9090}}]}}
"""
NAMESPACE = """
---
apiVersion: v1
kind: Namespace
metadata: {{name: {name}}}
"""
PODS = {
    "shop/web": "node-1",
    "shop/api": "node-2",
    "shop/db": "node-1",
    "other/alien": "node-2",
}
WORLD = "".join(NAMESPACE.format(name=name) for name in ("shop", "other")) + "".join(
    POD.format(namespace=key.split("/")[0], name=key.split("/")[1], node=node)
    for key, node in PODS.items()
)
DB = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db, namespace: shop}
spec:
  podSelector: {matchLabels: {app: db}}
  ingress: [{from: [{podSelector: {matchLabels: {app: api}}}], ports: [{port: 8080}]}]
"""
CLOSED_API = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: closed, namespace: shop}
spec: {podSelector: {matchLabels: {app: api}}, policyTypes: [Ingress]}
"""
OPEN_API = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: opened, namespace: shop}
spec:
  podSelector: {matchLabels: {app: api}}
  ingress: [{from: [{podSelector: {matchLabels: {app: web}}}]}]
"""
CALLS = (("shop/web", "shop/api", 8080), ("shop/api", "shop/db", 8080))


class World:
    """The lab's pods, who talks to whom, and the command line."""

    def __init__(self, lab: Lab, tools: Any) -> None:
        self.lab = lab
        self._tools = tools
        self.ips = {str(pod.key): pod.status.pod_ip for pod in lab.pods()}

    def apply(self, text: str) -> None:
        self.lab.apply_text(text)
        self.lab.wait_policies()

    def reaches(self, source: str, target: str, port: int = 8080) -> bool:
        probe = Probe(source=source, address=self.ips[target], port=port, timeout_s=0.3)
        (result,) = self._tools.ask(self.lab, PODS[source], probe)
        assert result.verdict in ("allowed", "dropped", "refused"), result
        return result.verdict == "allowed"

    def policy(self, *words: str | Path, check: bool = True) -> Any:
        return self._tools.podwire("policy", *words, "--lab", self.lab.name, check=check)

    def flows(self, *words: str) -> dict[tuple[str, str, int], dict[str, Any]]:
        """The newest record of each connection."""
        found = json.loads(self.policy("flows", *words, "-o", "json").stdout)
        return {
            (_end(record["source"]), _end(record["destination"]), record["port"]): record
            for record in found["records"]
        }

    def flow(self, source: str, target: str, port: int = 8080, verdict: str = "") -> dict[str, Any]:
        """Once it is noted: what the kernel copies is read a moment later."""

        def find() -> dict[str, Any] | None:
            record = self.flows().get((source, target, port))
            return record if record and verdict in ("", record["verdict"]) else None

        found: dict[str, Any] = self._tools.wait(find)
        return found


def _end(end: dict[str, Any]) -> str:
    return f"{end['namespace']}/{end['name']}" if end.get("namespace") else str(end["ip"])


@pytest.fixture(params=["routed", "kubenet"] if ALL else ["routed"])
def world(request: pytest.FixtureRequest, tools: Any) -> Iterator[World]:
    with Lab(f"np-flows-{request.param}", nodes=2, network=request.param, dns="none") as lab:
        lab.apply_text(WORLD)
        lab.wait_ready(30)
        yield World(lab, tools)


@pytest.mark.rootless
def test_flows_tell_who_decided_and_what_almost_did(
    world: World, tools: Any, tmp_path: Path
) -> None:
    world.apply(DB)
    assert not world.reaches("shop/web", "shop/db")
    assert not world.reaches("shop/api", "shop/db", 9090)
    assert world.reaches("shop/api", "shop/db")

    denied = world.flow("shop/web", "shop/db")
    assert denied["verdict"] == denied["ingress"]["verdict"] == "denied"
    assert denied["egress"]["verdict"] == "allowed"
    assert denied["ingress"]["isolating"] == ["NetworkPolicy shop/db"]
    assert denied["ingress"]["nearest"] == "NetworkPolicy shop/db spec.ingress[0]"
    (differs,) = denied["ingress"]["differs"]
    assert "podSelector: wants app=api, is app=web" in differs
    (differs,) = world.flow("shop/api", "shop/db", 9090)["ingress"]["differs"]
    assert "wants 8080, is 9090" in differs
    # What passes is nobody's business until somebody asks.
    assert ("shop/api", "shop/db", 8080) not in world.flows()
    table = world.policy("flows", "--denied")
    assert "isolated by NetworkPolicy shop/db; nearest NetworkPolicy shop/db" in table.stdout
    assert "podwire policy observe on" in table.stderr
    (tmp_path / "db.yaml").write_text(DB.lstrip())
    table = world.policy("flows", "--denied", "-f", tmp_path)
    rule = f"NetworkPolicy shop/db spec.ingress[0] ({tmp_path}/db.yaml:6)"
    assert f"isolated by NetworkPolicy shop/db ({tmp_path}/db.yaml:1); nearest {rule}" in (
        " ".join(table.stdout.split())
    )

    world.policy("observe", "on")
    tools.wait(lambda: json.loads(world.policy("flows", "-o", "json").stdout)["passed"])
    assert world.reaches("shop/api", "shop/db")
    passed = world.flow("shop/api", "shop/db")
    assert passed["verdict"] == "allowed"
    assert passed["ingress"]["rule"] == "NetworkPolicy shop/db spec.ingress[0]"
    assert ("shop/api", "shop/db", 8080) not in world.flows("--denied")


@pytest.mark.rootless
def test_what_is_staged_blocks_nothing_until_it_is_promoted(world: World, tmp_path: Path) -> None:
    world.apply(CLOSED_API)
    assert not world.reaches("shop/web", "shop/api")
    file = tmp_path / "staged.yaml"
    file.write_text(f"{DB}---{OPEN_API}")
    world.policy("stage", "-f", file)
    world.lab.wait_policies()
    for source, target in (("shop/web", "shop/db"), ("shop/api", "shop/db")):
        assert world.reaches(source, target)
    assert not world.reaches("shop/web", "shop/api")
    assert not world.reaches("other/alien", "shop/api")

    assert world.flow("shop/web", "shop/db", verdict="allowed")["staged"] == "denied"
    assert world.flow("shop/api", "shop/db", verdict="allowed")["staged"] == "allowed"
    assert world.flow("shop/web", "shop/api")["staged"] == "allowed"
    assert world.flow("other/alien", "shop/api")["staged"] == "denied"
    told = world.policy("staged", "-o", "json", check=False)
    assert told.returncode == 1  # some would be denied
    report = json.loads(told.stdout)
    assert [(f["change"], f["source"], f["destination"], f["by"]) for f in report["flows"]] == [
        ("newly denied", "shop/web", "shop/db", ["NetworkPolicy shop/db"]),
        (
            "newly allowed",
            "shop/web",
            "shop/api",
            ["NetworkPolicy shop/opened spec.ingress[0]"],
        ),
    ]
    assert (report["unchanged"], report["lost"], report["silent"]) == (2, 0, {})
    assert report["nodes"] == ["node-1", "node-2"]

    world.policy("promote", "--all")
    world.lab.wait_policies()
    assert not world.reaches("shop/web", "shop/db")
    assert world.reaches("shop/api", "shop/db")
    assert world.reaches("shop/web", "shop/api")
    assert not world.reaches("other/alien", "shop/api")


def test_what_is_refused_is_told_beside_what_was_done(world: World, tmp_path: Path) -> None:
    bad = DB.replace("{name: db,", "{name: bad,").replace("port: 8080", "port: 0")
    (tmp_path / "some.yaml").write_text(f"{DB}---{bad}")
    told = world.policy("stage", "-f", tmp_path, check=False)
    assert told.returncode == 1
    assert "must be between 1 and 65535" in told.stderr
    assert "note: done all the same: networkpolicy.networking.k8s.io/db created" in told.stderr
    world.lab.kubectl("delete", "netpol", "-n", "shop", "db")


def test_a_namespace_stages_all_of_its_policies(world: World) -> None:
    stage = "policy.podwire.dev/stage=true"
    world.lab.kubectl("annotate", "namespace", "shop", stage)
    world.apply(DB)
    assert world.reaches("shop/web", "shop/db")
    assert world.flow("shop/web", "shop/db")["staged"] == "denied"
    assert world.policy("promote", "-n", "shop").stdout == "Namespace shop promoted\n"
    world.lab.wait_policies()
    assert not world.reaches("shop/web", "shop/db")
    assert world.reaches("shop/api", "shop/db")


def test_what_is_recommended_leaves_open_what_was_seen(
    world: World, tools: Any, tmp_path: Path
) -> None:
    world.policy("observe", "on")
    tools.wait(lambda: json.loads(world.policy("flows", "-o", "json").stdout)["passed"])
    for call in CALLS:
        assert world.reaches(*call)
    for call in CALLS:
        world.flow(*call)
    recommended = world.policy("recommend", "--live", "--only", "shop", "--direction", "ingress")
    world.apply(recommended.stdout)
    for call in CALLS:
        assert world.reaches(*call), recommended.stdout
    for source, target, port in (
        ("shop/web", "shop/db", 8080),
        ("shop/api", "shop/db", 9090),
        ("other/alien", "shop/api", 8080),
        ("other/alien", "shop/db", 8080),
    ):
        assert not world.reaches(source, target, port), recommended.stdout
