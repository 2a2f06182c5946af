"""A whole lab with --service-proxy iptables: somebody else's manifests through every cluster IP."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from podwire.kernel import features, hooks
from podwire.lab import Lab

BOUTIQUE = "samples/online-boutique/kubernetes-manifests.yaml"
NODES = ("node-1", "node-2", "node-3")
EXTRA = """
apiVersion: v1
kind: Service
metadata: {name: nobody}
spec: {selector: {app: nobody}, ports: [{port: 80}]}
"""


@pytest.fixture(scope="module")
def lab(run_dir: Path, shared: Path) -> Iterator[Lab]:
    if not features.probe().iptables:
        pytest.skip(features.EXPLAIN["iptables"])
    with Lab("chains", nodes=3, service_proxy="iptables") as built:
        built.apply(shared / BOUTIQUE)
        built.apply_text(EXTRA)
        yield built


def services(lab: Lab) -> dict[str, dict[str, Any]]:
    found = json.loads(lab.kubectl("get", "services", "-o", "json").stdout)
    return {item["metadata"]["name"]: item["spec"] for item in found["items"]}


def connects(tools: Any, lab: Lab, where: str, targets: list[str]) -> list[bool]:
    """Whether TCP connections are made, all from one process in that place at once."""
    words = ["-o", "/dev/null"] * len(targets)
    urls = [f"http://{target}" for target in targets]
    format_ = "%{time_connect}\\n"
    done = tools.inside(
        lab, where, "curl", "-s", "-Z", "-m", "5", "-w", format_, *words, *urls, check=False
    )
    return [float(line) > 0 for line in done.split()]


def saved(tools: Any, lab: Lab, node: str) -> str:
    text = tools.inside(lab, node, "iptables-save")
    return re.sub(r"^#.*\n|\[\d+:\d+\]", "", text, flags=re.MULTILINE)


def test_every_pod_reaches_every_cluster_ip(lab: Lab, tools: Any) -> None:
    targets = [
        f"{spec['clusterIP']}:{port['port']}"
        for name, spec in services(lab).items()
        if name not in ("nobody", "kubernetes")
        for port in spec["ports"]
    ]
    assert len(targets) >= 11
    places = [*NODES, *(pod.metadata.name for pod in lab.pods("default"))]
    for place in places:
        assert connects(tools, lab, place, targets) == [True] * len(targets), place


def test_the_frontend_from_outside_of_the_cluster(lab: Lab, tools: Any) -> None:
    (port,) = services(lab)["frontend-external"]["ports"]
    targets = [f"172.30.0.{host}:{port['nodePort']}" for host in (2, 3, 4)]
    assert connects(tools, lab, "outside", targets) == [True] * 3


def test_nobody_is_refused_at_once(lab: Lab, tools: Any) -> None:
    address = services(lab)["nobody"]["clusterIP"]
    done = tools.podwire(
        "exec", "--lab", lab.name, "node-1", "--", "curl", "-s", "-m", "5", address, check=False
    )
    assert done.returncode == 7, "connection refused"


def test_only_registered_hooks(lab: Lab, tools: Any) -> None:
    known = {(h.family, h.table, h.chain, h.hook, h.type, h.priority) for h in hooks.HOOKS}
    listed = tools.inside_json(lab, "node-1", "nft", "-j", "list", "ruleset")["nftables"]
    tables = {entry["table"]["name"] for entry in listed if "table" in entry}
    assert hooks.SERVICES_TABLE not in tables
    for entry in listed:
        chain = entry.get("chain", {})
        if "hook" in chain:
            keys = ("family", "table", "name", "hook", "type", "prio")
            assert tuple(chain[key] for key in keys) in known


def test_connections_are_counted_by_conntrack(lab: Lab, tools: Any) -> None:
    """Per endpoint too; refused ones are not known."""
    address = services(lab)["frontend"]["clusterIP"]
    for _ in range(5):
        assert connects(tools, lab, "node-1", [f"{address}:80"]) == [True]

    def counted() -> dict[str, Any] | None:
        done = tools.podwire("status", "services", "frontend", "--lab", lab.name, "-o", "json")
        row: dict[str, Any] = json.loads(done.stdout)
        return row if row["connections"] >= 5 else None

    row = tools.wait(counted)
    assert row["refused"] is None
    (here,) = (node["report"] for node in row["nodes"] if node["node"] == "node-1")
    (frontend,) = here["frontends"]
    assert frontend["connections"] >= 5
    assert frontend["connections"] == sum(e["connections"] for e in frontend["endpoints"])


def test_a_killed_agent_leaves_the_rules_and_finds_them_again(lab: Lab, tools: Any) -> None:
    before = saved(tools, lab, "node-1")
    address = services(lab)["frontend"]["clusterIP"]
    (pid,) = (node.pid for node in lab.status().nodes if node.name == "node-1")
    os.kill(pid, signal.SIGKILL)
    assert connects(tools, lab, "node-1", [f"{address}:80"]) == [True]
    tools.wait(lambda: pid not in {node.pid for node in lab.status().nodes if node.pid})
    lab.wait_nodes()
    assert saved(tools, lab, "node-1") == before


def test_a_flush_is_mended(lab: Lab, tools: Any) -> None:
    before = saved(tools, lab, "node-2")
    tools.inside(lab, "node-2", "iptables", "-t", "nat", "-F")
    tools.wait(lambda: saved(tools, lab, "node-2") == before)


def test_a_running_lab_keeps_its_proxy(lab: Lab, tools: Any) -> None:
    words = ("up", lab.name, "--no-kubeconfig")
    refused = tools.podwire(*words, "--service-proxy", "nftables", check=False)
    assert refused.returncode == 1
    assert "runs with service-proxy iptables, not nftables" in refused.stderr
    tools.podwire(*words)  # what was not said is remembered
