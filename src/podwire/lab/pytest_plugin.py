"""pytest fixtures for tests of somebody's manifests.

    def test_web_reaches_api(lab):
        lab.apply("app/")
        assert lab.pod("web").can_reach("api", port=8080)

`lab` is fresh for every test, `session_lab` is shared by the session. `--podwire-keep` leaves the
labs running afterwards and says how to look at them; `--podwire-nodes` sets their size.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from podwire.lab import Lab


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("podwire")
    group.addoption("--podwire-keep", action="store_true", help="keep labs after the tests")
    group.addoption("--podwire-nodes", type=int, default=2, help="nodes of the fixtures' labs")


def _lab(request: pytest.FixtureRequest, scope: str) -> Iterator[Lab]:
    # Imported late: a test session that uses no lab pays nothing.
    from podwire.lab import Lab

    keep = bool(request.config.getoption("--podwire-keep"))
    worker = os.environ.get("PYTEST_XDIST_WORKER", "main")
    name = f"pytest-{scope}-{worker}-{os.getpid()}"[:32].rstrip("-")
    with Lab(name, nodes=int(request.config.getoption("--podwire-nodes")), keep=keep) as lab:
        yield lab
        if keep:
            print(f"\npodwire: kept; export KUBECONFIG={lab.paths.kubeconfig}; podwire down {name}")


@pytest.fixture
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """A lab of this test alone."""
    yield from _lab(request, "test")


@pytest.fixture(scope="session")
def session_lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """One lab for the whole session."""
    yield from _lab(request, "session")
