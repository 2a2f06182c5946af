"""Every numbered example runs by itself: as a user would start it, in a lab folder of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
SCRIPTS = sorted([*EXAMPLES.glob("[0-9][0-9]-*.py"), *EXAMPLES.glob("[0-9][0-9]-*.sh")])
TIMEOUT_S = 180
MAX_LINES = 40


@pytest.fixture
def environment() -> Iterator[dict[str, str]]:
    """A HOME, kubeconfig and lab folder that are the example's alone; no lab outlives it."""
    # Not tmp_path: paths of unix sockets end at 107 bytes.
    with tempfile.TemporaryDirectory(prefix="pw-ex-", ignore_cleanup_errors=True) as folder:
        found = _environment(Path(folder))
        yield found
        _run([sys.executable, "-m", "podwire", "down", "--all"], found)


def _environment(home: Path) -> dict[str, str]:
    found = os.environ | {
        "HOME": str(home),
        "KUBECONFIG": str(home / "kubeconfig"),
        "PODWIRE_RUN_DIR": str(home / "run"),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin:/sbin",
        "PODWIRE": str(Path(sys.executable).parent / "podwire"),
        # What the surrounding pytest tells its children must not reach the example's own.
        "PYTEST_ADDOPTS": "",
    }
    found.pop("PYTEST_XDIST_WORKER", None)
    return found


def _run(command: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        env=environment,
        cwd=EXAMPLES,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_example(script: Path, environment: dict[str, str]) -> None:
    start = ["bash"] if script.suffix == ".sh" else [sys.executable]
    done = _run([*start, str(script)], environment)
    assert done.returncode == 0, done.stdout


def test_examples_are_numbered_without_a_gap_and_short() -> None:
    assert [script.name[:2] for script in SCRIPTS] == [
        f"{number:02}" for number in range(1, len(SCRIPTS) + 1)
    ]
    for script in SCRIPTS:
        assert len(script.read_text().splitlines()) < MAX_LINES, f"{script.name} is too long"
