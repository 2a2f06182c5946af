"""The probe engine: thousands of small questions a second, asked from inside pods.

    Probe (a source, an address, a port) -> a socket in the source's namespace -> ProbeResult

One engine runs per node, inside the node's agent, in a thread of its own. The agent registers
`ProbeService.handle` on its kubelet HTTP socket as `POST /probe`; the API server's node proxy makes
that `POST /api/v1/nodes/NODE/proxy/probe`. Bodies are the JSON of `ProbeRequest` and
`ProbeResponse`.

The engine needs Linux; its words (`wire`) do not, so it is loaded on first use: who only computes
what packets would do runs anywhere.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

from podwire.explain.probes.wire import (
    Identity,
    Probe,
    ProbeRequest,
    ProbeResponse,
    ProbeResult,
    Protocol,
    Verdict,
)

if TYPE_CHECKING:
    from podwire.explain.probes.engine import ProbeEngine
    from podwire.explain.probes.service import ProbeService

_LATE: Final = {"ProbeEngine": "engine", "ProbeService": "service"}

__all__ = [
    "Identity",
    "Probe",
    "ProbeEngine",
    "ProbeRequest",
    "ProbeResponse",
    "ProbeResult",
    "ProbeService",
    "Protocol",
    "Verdict",
]


def __getattr__(name: str) -> Any:
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LATE[name]}"), name)
