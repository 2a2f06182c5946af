"""What attaches a pod to the network, as the runtime sees it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from podwire.cni.config import Address


@dataclass(frozen=True)
class Attachment:
    """One pod sandbox to attach. Identity is `sandbox_id`, never the pod's name (k/k#75441)."""

    sandbox_id: str
    namespace: str
    name: str
    uid: str
    netns: Path
    annotations: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class PodAddresses:
    """The pod's addresses, the primary family first, and its interface's MTU."""

    ips: tuple[Address, ...]
    mtu: int


class PodNetwork(Protocol):
    """Synchronous and short (about 2 ms); the runtime calls it from one dedicated thread."""

    def add(self, attachment: Attachment) -> PodAddresses:
        """Create the namespace at `netns` (with its pin) and wire it; idempotent per sandbox.

        Raises `ExhaustedError` when no address is left and `KernelError` otherwise; on failure
        nothing is left behind.
        """

    def delete(self, sandbox_id: str) -> None:
        """Release addresses, routes and the namespace; succeeds when they are gone already."""

    def check(self, attachment: Attachment) -> PodAddresses | None:
        """The addresses of a sandbox that still stands as it was made, else None."""

    def sweep(self, valid: set[str]) -> list[str]:
        """Delete every attachment whose sandbox is not in `valid`; returns their ids (CNI GC)."""
