"""Whole labs: each worker has its own run folder and kubeconfig, and leaves nothing in either.

The fixture `tools` is what tests hold in their hands: the command line, real kubectl, probes as
batches, waiting on a condition.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest
from msgspec.structs import replace

from podwire.explain.probes import wire
from podwire.lab import Lab, launch

T = TypeVar("T")
# A slow processor, such as an emulated one, has so many times as long to do what is awaited.
PATIENCE = float(os.environ.get("PODWIRE_TEST_PATIENCE", "1"))
TIMEOUT_S = 30.0 * PATIENCE


@dataclass
class Tools:
    """Verbs for tests; everything fails with what was printed."""

    run_dir: Path

    def podwire(self, *words: str | Path, check: bool = True, **options: Any) -> Any:
        """Run the command line; returns the finished process."""
        done = subprocess.run(
            [sys.executable, "-m", "podwire", *map(str, words)],
            capture_output=True,
            text=True,
            timeout=120 * PATIENCE,
            check=False,
            **options,
        )
        assert not check or done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done

    def inside(self, lab: Lab, where: str, *command: str, check: bool = True) -> str:
        """What a command prints in a pod, a node or `outside`."""
        done = self.podwire("exec", "--lab", lab.name, where, "--", *command, check=check)
        return str(done.stdout)

    def inside_json(self, lab: Lab, where: str, *command: str) -> Any:
        return json.loads(self.inside(lab, where, *command) or "[]")

    def kubectl(self, lab: Lab, *words: str, check: bool = True, stdin: str = "") -> str:
        if shutil.which("kubectl") is None:
            pytest.skip("kubectl is not on PATH")
        done = subprocess.run(
            ["kubectl", "--kubeconfig", str(lab.paths.kubeconfig), *words],
            input=stdin or None,
            capture_output=True,
            text=True,
            timeout=120 * PATIENCE,
            check=False,
        )
        assert not check or done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def ask(self, lab: Lab, node: str, *probes: wire.Probe) -> Sequence[wire.ProbeResult]:
        """Have a node's probe engine ask, in one batch."""
        patient = tuple(replace(p, timeout_s=p.timeout_s * PATIENCE) for p in probes)
        body = wire.encode(wire.ProbeRequest(probes=patient))
        path = f"/api/v1/nodes/{node}/proxy/probe"
        answer = lab.call(lambda api: api.request("POST", path, body=body))
        return wire.parse_response(answer).results

    def wait(self, condition: Callable[[], T], timeout_s: float = TIMEOUT_S) -> T:
        """The condition's first true value; what it raises counts as false until time is up."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                found = condition()
                if found:
                    return found
                problem: object = found
            except Exception as error:
                problem = error
            if time.monotonic() > deadline:
                raise AssertionError(f"not true after {timeout_s:g} s: {problem!r}")
            time.sleep(0.05)

    def status(self, lab: Lab) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.podwire("status", lab.name, "-o", "json").stdout)
        return found

    def pids(self, lab: Lab) -> dict[str, int]:
        """Component -> pid on the host."""
        return {c["name"]: c["pid"] for c in self.status(lab)["components"]}


@pytest.fixture(scope="session", autouse=True)
def run_dir() -> Iterator[Path]:
    """This worker's labs, and a kubeconfig that is not the user's."""
    folder = Path(tempfile.mkdtemp(prefix="pw-e2e-", dir="/tmp"))
    before = {name: os.environ.get(name) for name in ("PODWIRE_RUN_DIR", "KUBECONFIG")}
    os.environ["PODWIRE_RUN_DIR"] = str(folder)
    os.environ["KUBECONFIG"] = str(folder / "user-kubeconfig")
    try:
        yield folder
    finally:
        for name in launch.labs():
            with contextlib.suppress(Exception):
                launch.down(name)
        for key, value in before.items():
            os.environ.pop(key, None)
            if value is not None:
                os.environ[key] = value
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def tools(run_dir: Path) -> Tools:
    return Tools(run_dir)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of samples beside the checkout, or `$PODWIRE_SHARED`."""
    told = os.environ.get("PODWIRE_SHARED", "")
    folder = Path(told) if told else Path(__file__).resolve().parents[3] / "shared"
    if not folder.is_dir():
        pytest.skip(f"{folder}: not here; set PODWIRE_SHARED")
    return folder


@pytest.fixture(scope="session")
def root() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")


@pytest.fixture(scope="session")
def busybox_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image of busybox called `box`, as `docker save` writes it."""
    busybox = shutil.which("busybox")
    if busybox is None or not (shutil.which("crun") or shutil.which("runc")):
        pytest.skip("busybox, and crun or runc, are needed")
    path = Path(__file__).parents[1] / "unit/runtime/oci/image_builder.py"
    spec = importlib.util.spec_from_file_location("image_builder", path)
    assert spec is not None
    assert spec.loader is not None
    builder = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(builder)
    archive = tmp_path_factory.mktemp("image") / "box.tar"
    layers = builder.busybox_layers(Path(busybox).read_bytes())
    found: Path = builder.docker_save(archive, "box", layers, Cmd=["sh"])
    return found
