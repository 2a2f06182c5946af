"""Every test here runs in a forked child with namespaces of its own.

The child unshares the network and mount namespaces (as an ordinary user also a user namespace),
puts a tmpfs on /run and runs the test; its outcome travels back through a pipe. The test process
itself never leaves its namespaces, and nothing done in the child can outlive it.

A failure in the child is raised here as `ChildFailure` with the child's traceback; skips stay
skips. A test that hangs is killed after `TIMEOUT_S`. Tests take the fixture `scratch` for a
directory on the private tmpfs.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import select
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

import pytest

from podwire.kernel import guard, libc, userns

# An emulated processor takes its time.
TIMEOUT_S = int(os.environ.get("PODWIRE_TEST_TIMEOUT_S", "60"))
HERE = Path(__file__).parent


class ChildFailure(Exception):  # noqa: N818 - shown to people as the outcome of a test
    """The test failed in its namespaces; the message is the child's traceback."""


def enter_fresh_namespaces() -> None:
    """Move this (forked) process into namespaces of its own, root or not."""
    userns.unshare_as_root(libc.CLONE_NEWNET | libc.CLONE_NEWNS)
    libc.mount("tmpfs", "/run", "tmpfs")
    assert not guard.in_host_network()


def run_isolated(test: Any, arguments: dict[str, Any]) -> None:
    """Run `test(**arguments)` in a forked child; raise what became of it."""
    receive, send = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(receive)
        status = 1
        try:
            outcome = _outcome(test, arguments)
            with os.fdopen(send, "wb") as pipe:
                pickle.dump(outcome, pipe)
            status = 0
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    os.close(send)
    try:
        outcome = _receive(receive, pid)
    finally:
        os.close(receive)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)
    kind, text = outcome
    if kind == "skip":
        pytest.skip(text)
    if kind != "passed":
        raise ChildFailure(f"in its own namespaces:\n{text}")


def _outcome(test: Any, arguments: dict[str, Any]) -> tuple[str, str]:
    try:
        libc.set_pdeathsig(signal.SIGKILL)
        enter_fresh_namespaces()
        test(**arguments)
    except pytest.skip.Exception as e:
        return "skip", str(e)
    except BaseException:
        return "failed", traceback.format_exc()
    return "passed", ""


def _receive(fd: int, pid: int) -> tuple[str, str]:
    data = b""
    while True:
        ready, _, _ = select.select([fd], [], [], TIMEOUT_S)
        if not ready:
            os.kill(pid, signal.SIGKILL)
            return "failed", f"no result after {TIMEOUT_S} s; killed"
        block = os.read(fd, 1 << 16)
        if not block:
            break
        data += block
    if not data:
        return "failed", "the child died without a result"
    outcome: tuple[str, str] = pickle.loads(data)
    return outcome


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Send plain test functions of this directory into a child; `host` marks those that stay."""
    if HERE not in pyfuncitem.path.parents or pyfuncitem.get_closest_marker("stays_on_host"):
        return None
    wanted = pyfuncitem._fixtureinfo.argnames
    run_isolated(pyfuncitem.obj, {name: pyfuncitem.funcargs[name] for name in wanted})
    return True


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "stays_on_host: not run in namespaces of its own")


@pytest.fixture(autouse=True, scope="session")
def may_unshare() -> None:
    """Skip everything, saying so, where namespaces cannot be made."""
    pid = os.fork()
    if pid == 0:
        try:
            enter_fresh_namespaces()
            os._exit(0)
        except BaseException:
            os._exit(1)
    if os.waitpid(pid, 0)[1]:
        pytest.skip("needs root or user namespaces")


@pytest.fixture
def scratch() -> Path:
    """A directory on the child's private tmpfs."""
    return Path("/run")
