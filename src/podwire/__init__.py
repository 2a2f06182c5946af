"""podwire: Kubernetes networking, whole, in one Python package.

The public surface is what this module names; everything else is private and may move.
Names are loaded on first use, so that `podwire --help` does not pay for an API server.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from podwire.errors import PodwireError as PodwireError
    from podwire.lab import Lab as Lab

__version__ = "0.1.0"
__all__ = ["Lab", "PodwireError", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "Lab":
        from podwire.lab import Lab

        return Lab
    if name == "PodwireError":
        from podwire.errors import PodwireError

        return PodwireError
    raise AttributeError(f"module 'podwire' has no attribute {name!r}")
