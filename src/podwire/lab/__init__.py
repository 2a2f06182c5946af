"""Nodes as namespaces on one machine: a Kubernetes network in about a second.

with podwire.Lab(nodes=3) as lab:
    lab.apply("app/")
    assert lab.pod("web").can_reach("api", port=8080)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from podwire.lab.lab import ExecResult as ExecResult
    from podwire.lab.lab import Lab as Lab
    from podwire.lab.lab import LabPod as LabPod

__all__ = ["ExecResult", "Lab", "LabPod"]


def __getattr__(name: str) -> Any:
    # On first use: the holder imports this package too and must not wait for an HTTP client.
    if name in __all__:
        from podwire.lab import lab

        return getattr(lab, name)
    raise AttributeError(f"module 'podwire.lab' has no attribute {name!r}")
