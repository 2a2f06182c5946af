"""What a node says about its Services: the documents of `/services` on its kubelet API. Pure.

    ServiceAgent -> NodeReport -> JSON -> `podwire status services`, `wait`, `why`

Connections are counted where they are made: on the node a client's first packet meets.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from podwire.objects.meta import Key, View
from podwire.services.endpoints import Backend
from podwire.services.model import PROTOCOL_NAMES, CompiledService, Frontend, FrontendKey


class EndpointReport(View):
    """One backend; `connections` were sent to it by this node."""

    address: str
    local: bool = False
    weight: int = 1
    connections: int = 0


class FrontendReport(View):
    """`internal` is what clients in the cluster get instead, None the same. `refused` connections
    found no endpoint (None: the back end cannot tell), `owner` is who has the address where
    somebody else does."""

    address: str
    port: int
    protocol: str
    role: str
    port_name: str = ""
    endpoints: tuple[EndpointReport, ...] = ()
    internal: tuple[EndpointReport, ...] | None = None
    empty: str = "refuse"
    affinity_s: int = 0
    balancing: str = "random"
    masquerade: bool = False
    limited: bool = False
    connections: int = 0
    refused: int | None = 0
    owner: str = ""


class ServiceReport(View):
    """What one node does for one Service, or a pod with hostPorts (`kind` says which).

    `revision` is the newest resourceVersion compiled in; with `error` the kernel refused a newer
    state and this one still works.
    """

    namespace: str
    name: str
    kind: str = "Service"
    revision: int = 0
    error: str = ""
    problems: tuple[str, ...] = ()
    frontends: tuple[FrontendReport, ...] = ()
    health_check_node_port: int = 0
    local_endpoints: int = 0

    @property
    def key(self) -> Key:
        return Key(self.namespace, self.name)


class NodeReport(View):
    """Everything of one node. Every change up to `revision` it was told of is in the kernel.

    `pools` are (first, last) load balancer addresses that belong to Services alone; `announced` are
    those the network is told to send here.
    """

    node: str
    revision: int = 0
    pending: int = 0
    refused: dict[str, str] = {}
    synced: bool = False
    backend: str = ""
    external_ips: bool = False
    service_cidrs: tuple[str, ...] = ()
    cluster_cidrs: tuple[str, ...] = ()
    pools: tuple[tuple[str, str], ...] = ()
    announced: tuple[str, ...] = ()
    mended: int = 0
    flows_deleted: dict[str, int] = {}
    services: tuple[ServiceReport, ...] = ()

    def find(self, key: Key, kind: str = "Service") -> ServiceReport | None:
        return next((s for s in self.services if s.key == key and s.kind == kind), None)


class Counts(msgspec.Struct, frozen=True):
    """Connections of one frontend since it stood: `accepted`, and those that met no endpoint,
    where the back end can tell."""

    accepted: int = 0
    refused: int | None = 0
    endpoints: Mapping[tuple[bytes, int], int] = {}


NO_COUNTS = Counts()


def describe_service(
    kind: str,
    revision: int,
    error: str,
    compiled: CompiledService,
    counts: Mapping[FrontendKey, Counts],
    lost: Mapping[FrontendKey, str],
) -> ServiceReport:
    """The report of one owner; `lost` are its addresses that belong to somebody else."""
    health = compiled.health_check
    return ServiceReport(
        namespace=compiled.key.namespace,
        name=compiled.key.name,
        kind=kind,
        revision=revision,
        error=error,
        problems=compiled.problems,
        frontends=tuple(
            _describe(f, counts.get(f.key, NO_COUNTS), lost.get(f.key, ""))
            for f in compiled.frontends
        ),
        health_check_node_port=health.port if health else 0,
        local_endpoints=health.local_ready if health else 0,
    )


def _describe(frontend: Frontend, counts: Counts, owner: str) -> FrontendReport:
    internal = frontend.internal
    return FrontendReport(
        address=address_text(frontend.key.ip),
        port=frontend.key.port,
        protocol=PROTOCOL_NAMES[frontend.key.protocol],
        role=frontend.role,
        port_name=frontend.port_name,
        endpoints=_endpoints(frontend, frontend.backends, counts),
        internal=None if internal is None else _endpoints(frontend, internal, counts),
        empty=frontend.empty,
        affinity_s=frontend.affinity_s,
        balancing=frontend.balancing,
        masquerade=frontend.masquerade,
        limited=frontend.ranges is not None,
        connections=counts.accepted,
        refused=counts.refused,
        owner=owner,
    )


def _endpoints(
    frontend: Frontend, backends: Iterable[Backend], counts: Counts
) -> tuple[EndpointReport, ...]:
    weights = frontend.weights or {}
    return tuple(
        EndpointReport(
            address=str(backend),
            local=backend.local,
            weight=weights.get(backend.ip, 1),
            connections=counts.endpoints.get((backend.ip, backend.port), 0),
        )
        for backend in backends
    )


def address_text(ip: bytes) -> str:
    """A packed address in its usual form."""
    return str(Backend(ip, 0)).rpartition(":")[0].strip("[]")
