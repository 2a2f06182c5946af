"""A name becomes a folder that `down` removes: what is not a plain label never becomes a path.

Only the pure function is asked. No test may call `down` with such a name: were the check lost, the
test itself would remove what the name leads to.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from podwire.errors import UsageError
from podwire.lab.paths import LabPaths, run_root

BAD = ["..", ".", "", "/", "/tmp", "../x", "a/b", "a/../..", "-", "-x", "x-", "X", "a.b", "a b"]
BAD += ["é", "x" * 33, "x\n", "x\0", "~"]


@pytest.mark.parametrize("name", BAD)
def test_not_a_label_is_no_path(name: str) -> None:
    with pytest.raises(UsageError, match="lab name"):
        LabPaths.of(name)


@pytest.mark.parametrize("name", ["a", "podwire", "x" * 32, "a-b", "0"])
def test_a_label_lies_directly_below_the_run_folder(name: str) -> None:
    assert LabPaths.of(name).root == run_root() / name
    assert LabPaths.of(name).root.parent == run_root()


def test_run_folder_can_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PODWIRE_RUN_DIR", "/somewhere")
    assert LabPaths.of("x").root == Path("/somewhere/x")
