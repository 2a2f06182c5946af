"""The plugin as its users have it: ten lines of test, the `lab` fixture, `--podwire-keep`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from podwire.lab import Lab, launch

USER_TEST = '''
MANIFEST = """
{apiVersion: v1, kind: Pod, metadata: {name: %s}, spec: {containers: [
  {name: c, image: x, ports: [{containerPort: 8080}]}]}}
"""

def test_web_reaches_api(lab):
    lab.apply_text(MANIFEST % "web" + "---" + MANIFEST % "api")
    assert lab.pod("web").can_reach("api", port=8080)
    assert not lab.pod("web").can_reach("api", port=8081)

def test_fresh_for_every_test(lab):
    assert lab.pods() == []

def test_session(session_lab):
    session_lab.apply_text(MANIFEST % "web")

def test_session_again(session_lab):
    assert [pod.metadata.name for pod in session_lab.pods()] == ["web"]
    assert len(session_lab.spec.nodes) == 3
'''


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    (folder / "test_user.py").write_text(USER_TEST)
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", *words],
        cwd=folder,
        env={**os.environ, "PYTEST_ADDOPTS": "", "PYTEST_XDIST_WORKER": ""},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.rootless
def test_ten_lines(tmp_path: Path) -> None:
    before = launch.labs()
    done = run(tmp_path, "--podwire-nodes=3")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 passed" in done.stdout
    assert launch.labs() == before


def test_keep(tmp_path: Path, tools: Any) -> None:
    before = set(launch.labs())
    done = run(tmp_path, "--podwire-keep", "-k", "reaches")
    kept = set(launch.labs()) - before
    try:
        assert done.returncode == 0, done.stdout + done.stderr
        (name,) = kept
        assert f"podwire: kept; export KUBECONFIG={Lab(name).paths.kubeconfig}" in done.stdout
        assert f"podwire down {name}" in done.stdout
        assert sorted(pod.metadata.name for pod in Lab(name).pods()) == ["api", "web"]
    finally:
        for name in kept:
            tools.podwire("down", name)
