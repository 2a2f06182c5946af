"""Other people's manifests, as they are: every pod Ready, every pair reached, in both modes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from podwire.explain.reach import ReachOptions
from podwire.lab import Lab, launch

BOUTIQUE = "samples/online-boutique/kubernetes-manifests.yaml"
BOOKINFO = "samples/bookinfo/kube-bookinfo.yaml"


@pytest.mark.rootless
@pytest.mark.parametrize("network", ["routed", "kubenet"])
@pytest.mark.parametrize(("name", "sample", "pods"), [("ob", BOUTIQUE, 12), ("bi", BOOKINFO, 6)])
def test_sample_in_both_modes(
    name: str, sample: str, pods: int, network: str, shared: Path, tools: Any
) -> None:
    manifest = shared / sample
    lab_name = f"{name}-{network}"
    try:
        done = tools.podwire(
            "up", lab_name, "--nodes", 3, "--network", network, "-f", manifest, "--no-kubeconfig"
        )
        assert f"lab {lab_name} is up" in done.stdout
        lab = Lab(lab_name)
        found = lab.pods()
        assert len(found) == pods
        assert all(pod.ready for pod in found)
        assert len({pod.spec.node_name for pod in found}) == 3
        matrix = lab.reach(ReachOptions(icmp=True, timeout_s=10.0))
        assert len(matrix.sources) == pods
        assert {a.source for a in matrix.answers} == set(range(pods))
        assert len(matrix.answers) >= pods * (pods - 1)
        assert matrix.all_allowed, [a for a in matrix.answers if a.verdict != "allowed"]
        wide = tools.kubectl(lab, "get", "pods", "-o", "wide")
        for pod in found:
            (line,) = [row for row in wide.splitlines() if row.startswith(pod.metadata.name)]
            for word in ("1/1", "Running", pod.status.pod_ip, pod.spec.node_name):
                assert word in line.split()
        again = tools.podwire("apply", "--lab", lab_name, "-f", manifest).stdout.splitlines()
        assert all(line.endswith(" unchanged") for line in again)
        shown = tools.podwire("reach", "--lab", lab_name, "--live").stdout
        assert f"{len(lab.reach().answers)}" in shown
    finally:
        tools.podwire("down", lab_name)
    assert lab_name not in launch.labs()
