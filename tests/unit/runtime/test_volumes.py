"""Projected trees: what is in them, and that a change is seen whole."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from podwire.errors import ConfigError, ContainerError
from podwire.runtime.volumes import File, pick, write_tree


def visible(directory: Path) -> dict[str, bytes]:
    found = {}
    for name in os.listdir(directory):
        if not name.startswith(".."):
            path = directory / name
            files = [path] if path.is_file() else sorted(path.rglob("*"))
            found |= {str(f.relative_to(directory)): f.read_bytes() for f in files if f.is_file()}
    return found


def test_tree_is_replaced_by_one_rename(tmp_path: Path) -> None:
    write_tree(tmp_path, {"a": File(b"1"), "d/b": File(b"2", 0o600)})
    assert visible(tmp_path) == {"a": b"1", "d/b": b"2"}
    assert (tmp_path / "d/b").stat().st_mode & 0o777 == 0o600
    first = os.readlink(tmp_path / "..data")
    write_tree(tmp_path, {"a": File(b"3"), "c": File(b"4")})
    assert visible(tmp_path) == {"a": b"3", "c": b"4"}
    assert not (tmp_path / first).exists()


def test_tree_that_is_there_already_is_left_alone(tmp_path: Path) -> None:
    files = {"a": File(b"1"), "d/b": File(b"2", 0o600)}
    write_tree(tmp_path, files)
    first = os.readlink(tmp_path / "..data")
    write_tree(tmp_path, dict(files))
    assert os.readlink(tmp_path / "..data") == first
    write_tree(tmp_path, files | {"a": File(b"1", 0o600)})
    assert os.readlink(tmp_path / "..data") != first


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a/../../x"])
def test_paths_stay_inside(tmp_path: Path, path: str) -> None:
    with pytest.raises(ContainerError, match="inside the volume"):
        write_tree(tmp_path, {path: File(b"")})


def test_items_choose_and_rename() -> None:
    data = {"k": b"v", "other": b"w"}
    chosen = pick(data, {"defaultMode": 0o400, "items": [{"key": "k", "path": "p/k"}]}, "missing")
    assert chosen == {"p/k": File(b"v", 0o400)}
    with pytest.raises(ConfigError, match="missing: nope"):
        pick(data, {"items": [{"key": "nope", "path": "x"}]}, "missing")
    assert pick(data, {"optional": True, "items": [{"key": "nope", "path": "x"}]}, "m") == {}
