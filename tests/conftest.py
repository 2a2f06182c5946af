"""What all tests share: golden texts, and how many random worlds there are.

Golden texts are what planners plan, in the words their experts read. `pytest --update-golden`
writes them anew; the diff is then reviewed like code.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

# Random worlds: a hundred of each in `./test`, two thousand in `./test --all`. Never a deadline,
# because other programs of the machine may take the processor.
settings.register_profile("ci", deadline=None)
settings.register_profile("all", deadline=None, max_examples=2000)
settings.load_profile("all" if os.environ.get("PODWIRE_ALL") == "1" else "ci")

GOLDEN = Path(__file__).parent / "golden"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write tests/golden/ anew")


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """`golden("nodenet/routed.txt", text)`: the text is what the file holds."""

    def check(name: str, text: str) -> None:
        path = GOLDEN / name
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        assert path.exists(), f"{path}: is missing; run pytest --update-golden and review it"
        assert text == path.read_text(encoding="utf-8")

    return check
