"""The probe engine: thousands of small questions a second, asked from inside pods.

    Probe (a source, an address, a port) -> a socket in the source's namespace -> ProbeResult

One engine runs per node, inside the node's agent, in a thread of its own. The agent registers
`ProbeService.handle` on its kubelet HTTP socket as `POST /probe`; the API server's node proxy makes
that `POST /api/v1/nodes/NODE/proxy/probe`. Bodies are the JSON of `ProbeRequest` and
`ProbeResponse`.
"""

from podwire.explain.probes.engine import ProbeEngine
from podwire.explain.probes.service import ProbeService
from podwire.explain.probes.wire import (
    Identity,
    Probe,
    ProbeRequest,
    ProbeResponse,
    ProbeResult,
    Protocol,
    Verdict,
)

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
