"""Where a lab's files are: `RUN/LAB/...`, readable by its owner only.

The folder is on a short path because unix socket paths end at 107 bytes.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

from podwire.errors import LabError, UsageError

_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,30}[a-z0-9])?")


def run_root() -> Path:
    """`$PODWIRE_RUN_DIR`, else `/tmp/podwire-UID`."""
    configured = os.environ.get("PODWIRE_RUN_DIR")
    return Path(configured) if configured else Path(f"/tmp/podwire-{os.getuid()}")


def is_name(name: str) -> bool:
    """Whether it is one DNS label, short enough for the paths of unix sockets."""
    return _NAME.fullmatch(name) is not None


def check_name(name: str) -> None:
    """Raise `UsageError` for what is not one DNS label: a name becomes a folder, a host, a key."""
    if not is_name(name):
        raise UsageError(
            f"lab name {name!r}: up to 32 of a-z, 0-9 and '-', not starting or ending with '-'"
        )


@dataclass(frozen=True)
class LabPaths:
    root: Path

    @staticmethod
    def of(name: str) -> LabPaths:
        """The one way from a name to a folder: `down` removes it, so `..` must never get here."""
        check_name(name)
        return LabPaths(run_root() / name)

    @property
    def spec(self) -> Path:
        return self.root / "lab.json"

    @property
    def holder(self) -> Path:
        return self.root / "holder.json"

    @property
    def control_socket(self) -> Path:
        return self.root / "control.sock"

    @property
    def api_socket(self) -> Path:
        return self.root / "api.sock"

    @property
    def kubeconfig(self) -> Path:
        return self.root / "kubeconfig"

    @property
    def images(self) -> Path:
        return self.root / "images"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def namespaces(self) -> Path:
        """Mount point of the lab's private tmpfs; empty as seen from the host."""
        return self.root / "ns"

    @property
    def node_pins(self) -> Path:
        return self.namespaces / "nodes"

    @property
    def pod_pins(self) -> Path:
        return self.namespaces / "pods"

    def volatile(self, node: str) -> Path:
        """A node's files on the lab's tmpfs: they end with the namespaces they belong to."""
        return self.namespaces / "volatile" / node

    def node(self, name: str) -> Path:
        return self.root / "nodes" / name

    def state(self, state_dir: str) -> Path:
        """What `--state DIR` keeps (store, keys); the lab's own folder otherwise."""
        return Path(state_dir) if state_dir else self.root

    def create(self) -> None:
        """Make the folders; refuse a root that somebody else owns or can write."""
        root = self.root.parent
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = root.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
            raise LabError(f"{root}: is not a folder of yours; set PODWIRE_RUN_DIR to one")
        if len(os.fsencode(self.control_socket)) > 107 - len("/nodes//standin.sock") - 16:
            raise LabError(f"{root}: path too long for unix sockets; set PODWIRE_RUN_DIR")
        for folder in (self.root, self.logs, self.namespaces, self.images, self.root / "nodes"):
            folder.mkdir(mode=0o700, exist_ok=True)
