"""The user's kubeconfig: what `up` puts in, `down` takes out, and nothing else changes."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import pytest
import yaml

from podwire.errors import LabError
from podwire.lab import kubeconfig


def config(lab: str) -> dict[str, Any]:
    name = kubeconfig.context_name(lab)
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": name, "cluster": {"server": "https://127.0.0.1:1"}}],
        "users": [{"name": name, "user": {}}],
        "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
        "current-context": name,
    }


THEIRS = {
    "apiVersion": "v1",
    "kind": "Config",
    "clusters": [{"name": "prod", "cluster": {"server": "https://203.0.113.9"}}],
    "users": [{"name": "me", "user": {"token": "t"}}],
    "contexts": [{"name": "prod", "context": {"cluster": "prod", "user": "me"}}],
    "current-context": "prod",
    "preferences": {"colors": True},
}


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "config"
    path.write_text(yaml.safe_dump(THEIRS))
    return path


def test_merge_and_back(path: Path) -> None:
    kubeconfig.merge(path, config("a"))
    found = read(path)
    assert found["current-context"] == "podwire-a"
    assert [c["name"] for c in found["clusters"]] == ["prod", "podwire-a"]
    assert found["preferences"] == {"colors": True}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    kubeconfig.unmerge(path, "a")
    assert read(path) == THEIRS
    assert [p.name for p in path.parent.iterdir()] == ["config"]


def test_merging_twice_is_merging_once(path: Path) -> None:
    kubeconfig.merge(path, config("a"))
    once = read(path)
    kubeconfig.merge(path, config("a"))
    assert read(path) == once


@pytest.mark.parametrize("order", ["ab", "ba"])
def test_two_labs_in_either_order(path: Path, order: str) -> None:
    for lab in "ab":
        kubeconfig.merge(path, config(lab))
    for lab in order:
        kubeconfig.unmerge(path, lab)
    assert read(path) == THEIRS


def test_a_context_the_user_chose_since_stays(path: Path) -> None:
    kubeconfig.merge(path, config("a"))
    found = read(path)
    path.write_text(yaml.safe_dump(found | {"current-context": "other"}))
    kubeconfig.unmerge(path, "a")
    assert read(path)["current-context"] == "other"


def test_a_file_that_was_not_there(tmp_path: Path) -> None:
    path = tmp_path / "new/config"
    kubeconfig.merge(path, config("a"))
    assert read(path)["current-context"] == "podwire-a"
    kubeconfig.unmerge(path, "a")
    assert read(path)["clusters"] == []
    kubeconfig.unmerge(tmp_path / "none", "a")


def test_a_stranger_is_left_alone(path: Path) -> None:
    before = path.read_bytes()
    kubeconfig.unmerge(path, "never-merged")
    assert path.read_bytes() == before


@pytest.mark.parametrize("text", ["{", "- a list\n", "word\n"])
def test_what_is_no_kubeconfig_is_refused_and_kept(path: Path, text: str) -> None:
    path.write_text(text)
    with pytest.raises(LabError, match="podwire leaves it alone"):
        kubeconfig.merge(path, config("a"))
    assert path.read_text() == text


def test_the_first_file_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", ":/a/b:/c")
    assert kubeconfig.user_file() == Path("/a/b")
    monkeypatch.setenv("KUBECONFIG", "")
    monkeypatch.setenv("HOME", "/h")
    assert kubeconfig.user_file() == Path("/h/.kube/config")
