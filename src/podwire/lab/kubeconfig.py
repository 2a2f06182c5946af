"""The lab's kubeconfig, and its merge into the user's own, as kind does it.

The user's file is changed under a lock and replaced atomically; `down` takes out exactly what `up`
put in (cluster, user and context of that name) and restores the former current-context.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from podwire.errors import LabError

if TYPE_CHECKING:
    from podwire.apiserver.pki import Pki

_SECTIONS = ("clusters", "users", "contexts")


def context_name(lab: str) -> str:
    return f"podwire-{lab}"


def user_file() -> Path:
    """The first file of `$KUBECONFIG`, else `~/.kube/config`."""
    configured = [part for part in os.environ.get("KUBECONFIG", "").split(":") if part]
    return Path(configured[0]) if configured else Path.home() / ".kube" / "config"


def render(lab: str, port: int, pki: Pki) -> dict[str, Any]:
    text = pki.kubeconfig(f"https://127.0.0.1:{port}", name=context_name(lab))
    config: dict[str, Any] = yaml.load(text, yaml.CSafeLoader)
    return config


def write(path: Path, config: dict[str, Any]) -> None:
    _replace(path, config)


def merge(path: Path, config: dict[str, Any]) -> None:
    """Put the lab's entries into the user's file and make its context the current one."""
    with _locked(path):
        current = _read(path)
        for section in _SECTIONS:
            ours = config[section][0]
            kept = [e for e in current.get(section) or [] if e.get("name") != ours["name"]]
            current[section] = [*kept, ours]
        former = current.get("current-context")
        if former and former != config["current-context"]:
            current["x-podwire-former-context"] = current.get("x-podwire-former-context", former)
        current["current-context"] = config["current-context"]
        _replace(path, {"apiVersion": "v1", "kind": "Config", **current})


def unmerge(path: Path, lab: str) -> None:
    """Take the lab's entries out; a file that does not have them is left alone."""
    if not path.exists():
        return
    name = context_name(lab)
    with _locked(path):
        current = _read(path)
        if not any(
            entry.get("name") == name
            for section in _SECTIONS
            for entry in current.get(section) or []
        ):
            return
        for section in _SECTIONS:
            current[section] = [e for e in current.get(section) or [] if e.get("name") != name]
        if current.get("current-context") == name:
            current["current-context"] = current.pop("x-podwire-former-context", "")
        _replace(path, current)


def _read(path: Path) -> dict[str, Any]:
    try:
        found = yaml.load(path.read_text(), yaml.CSafeLoader)
    except FileNotFoundError:
        return {}
    except yaml.YAMLError as error:
        raise LabError(f"{path}: is not YAML; podwire leaves it alone (--no-kubeconfig)") from error
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise LabError(f"{path}: is not a kubeconfig; podwire leaves it alone (--no-kubeconfig)")
    return found


def _replace(path: Path, config: dict[str, Any]) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(fd, "w") as file:
        yaml.dump(config, file, Dumper=yaml.CSafeDumper, sort_keys=False)
    temporary.replace(path)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One podwire at a time; kubectl only reads the file, which is replaced whole."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with path.with_name(f"{path.name}.podwire-lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
    path.with_name(f"{path.name}.podwire-lock").unlink(missing_ok=True)
