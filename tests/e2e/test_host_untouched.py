"""The root namespace before and after a whole lab life with everything in it."""

from __future__ import annotations

import importlib.util
import os
import signal
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from podwire.lab import Lab

TOOL = Path(__file__).parents[2] / "tools/host_state.py"


@pytest.fixture
def host_state() -> ModuleType:
    spec = importlib.util.spec_from_file_location("host_state", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.rootless
@pytest.mark.parametrize("network", ["routed", "kubenet"])
def test_host_is_untouched(host_state: ModuleType, tools: Any, network: Any) -> None:
    before = host_state.read()
    with Lab("ghost", nodes=2, network=network, overlay="vxlan", ip_family="dual") as lab:
        lab.apply_text(
            """
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: each}
spec:
  selector: {matchLabels: {app: each}}
  template:
    metadata: {labels: {app: each}}
    spec:
      containers: [{name: main, image: x, ports: [{containerPort: 8080}]}]
"""
        )
        lab.publish("0:each-none:8080")
        lab.link("node-1", "node-2", "rate", "10mbit")
        lab.link("node-1", "node-2", "up")
        lab.add_node()
        assert lab.reach().all_allowed
        during = host_state.read()
        pids = tools.pids(lab)
        for name in ("agent-node-1", "standin-node-2", "apiserver"):
            os.kill(pids[name], signal.SIGKILL)
        tools.wait(lambda: lab.wait_ready(20).complete)
        os.kill(pids["holder"], signal.SIGKILL)
    after = host_state.read()
    for state in (during, after):
        # Other tests' labs run beside this one; their cgroups are not ours.
        state["cgroups"] = [c for c in state["cgroups"] if "ghost" in c]
        problems = host_state.compare(before | {"cgroups": []}, state)
        assert problems == []
