"""A pod's sandbox: its network namespace and the record that survives the agent.

`NODE_DIR/pods/UID/` holds `sandbox.json`, `hosts`, `resolv.conf`, `logs/` and `volumes/`. The
record is written once the network is attached: what a crash leaves without a record is unknown to
`PodNetwork.sweep`, which removes it.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

import msgspec
from msgspec import Struct

from podwire.cni import Attachment
from podwire.objects.core import Pod

_RECORD = "sandbox.json"
_encode = msgspec.json.Encoder().encode


class Sandbox(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`ips` is empty until the network is attached; `host_network` sandboxes have no namespace."""

    id: str
    uid: str
    namespace: str
    name: str
    boot_id: str
    created_at: float
    attempt: int = 0
    host_network: bool = False
    ips: tuple[str, ...] = ()

    def pin(self, pins_dir: Path) -> Path | None:
        return None if self.host_network else pins_dir / self.id

    def attachment(self, pins_dir: Path, annotations: dict[str, str]) -> Attachment:
        return Attachment(
            self.id, self.namespace, self.name, self.uid, pins_dir / self.id, annotations
        )


_decode = msgspec.json.Decoder(Sandbox).decode


def new_sandbox(pod: Pod, boot_id: str, attempt: int, now: float) -> Sandbox:
    meta = pod.metadata
    return Sandbox(
        id=secrets.token_hex(32),
        uid=meta.uid,
        namespace=meta.namespace,
        name=meta.name,
        boot_id=boot_id,
        created_at=now,
        attempt=attempt,
        host_network=pod.spec.host_network,
    )


def save(pods_dir: Path, sandbox: Sandbox) -> None:
    # Plain paths: this runs once per pod, a thousand times in a few seconds.
    directory = f"{pods_dir}/{sandbox.uid}"
    os.makedirs(f"{directory}/logs", exist_ok=True)
    temporary = f"{directory}/.sandbox.json"
    with open(temporary, "wb") as file:
        file.write(_encode(sandbox))
    os.replace(temporary, f"{directory}/{_RECORD}")


def load_all(pods_dir: Path) -> Iterator[Sandbox]:
    """Every record found; an unreadable one is left to `network.sweep` and removed."""
    for path in sorted(pods_dir.glob(f"*/{_RECORD}")):
        try:
            yield _decode(path.read_bytes())
        except (OSError, msgspec.MsgspecError):
            forget(pods_dir, path.parent.name)


def forget_sandbox(pods_dir: Path, uid: str) -> None:
    """Remove the record, keep the logs: the pod has ended but still exists."""
    with contextlib.suppress(FileNotFoundError):
        (pods_dir / uid / _RECORD).unlink()


def forget(pods_dir: Path, uid: str) -> None:
    """Remove everything of a pod."""
    shutil.rmtree(pods_dir / uid, ignore_errors=True)
