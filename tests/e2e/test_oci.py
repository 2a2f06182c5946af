"""Containers through crun and runc, as root and as an ordinary user, in namespaces of their own.

Every scenario runs in a process tree under `unshare --pid --kill-child`: whatever a test leaves
behind ends with it. See oci_scenarios.py for what is checked.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from podwire.kernel import guard

_SCENARIOS = Path(__file__).parent / "oci_scenarios.py"
_NAMES = re.findall(r"^    (\w+),$", _SCENARIOS.read_text(), re.MULTILINE)
_NOBODY = 65534


@pytest.fixture(params=["root", "rootless"])
def identity(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Arguments for subprocess.run that make it that user."""
    if request.param == "root":
        if os.geteuid() != 0:
            pytest.skip("needs root")
        return {}
    if os.geteuid() != 0:
        return {"rootless": True}
    return {"rootless": True, "user": _NOBODY, "group": _NOBODY, "extra_groups": []}


@pytest.fixture
def directory() -> Iterator[Path]:
    # pytest's own directories are closed to other users.
    path = Path(tempfile.mkdtemp(prefix="podwire-test-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(params=["crun", "runc"])
def flavour(request: pytest.FixtureRequest) -> str:
    if not shutil.which(request.param) or not shutil.which("busybox"):
        pytest.skip(f"needs {request.param} and busybox-static")
    return str(request.param)


def test_every_scenario_is_listed() -> None:
    assert len(_NAMES) >= 11


@pytest.mark.parametrize("scenario", _NAMES)
def test_scenario(scenario: str, identity: dict[str, Any], flavour: str, directory: Path) -> None:
    user = dict(identity)
    rootless = user.pop("rootless", False)
    if "user" in user:
        os.chown(directory, user["user"], user["group"])
    flags = ["--net", "--mount", "--pid", "--ipc", "--uts", "--cgroup", "--fork", "--kill-child"]
    flags += ["--mount-proc", *(["--user", "--map-root-user"] if rootless else [])]
    done = subprocess.run(
        ["unshare", *flags, sys.executable, "-B", str(_SCENARIOS), scenario, directory, flavour],
        env=os.environ | guard.environment() | {"HOME": str(directory)},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=120,
        **user,
    )
    if done.returncode and "unshare" in done.stderr and "Operation not permitted" in done.stderr:
        pytest.skip(f"no user namespaces here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stdout + done.stderr
