"""What every node says about Services, put together; and waiting until all say the same.

    Services, EndpointSlices (list) -> the revision each Service should have
    NodeReport of every node                                            -> ServiceRow, rows

`compile_rows` and `wanted_revisions` are pure; `read_*` and `wait_services` ask the cluster.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from podwire.client import Api, Informer
from podwire.errors import NotFoundError
from podwire.explain.nodes import ask_node, ask_nodes, ready_nodes, wait_nodes
from podwire.objects import kinds
from podwire.objects.core import Pod, Service
from podwire.objects.discovery import EndpointSlice
from podwire.objects.meta import Key, Object, View
from podwire.services.model import HEADLESS_LABEL, PROXY_NAME_LABEL, ignored
from podwire.services.report import NodeReport, ServiceReport


class NodeProgrammed(View):
    """One node's part: `revision` is what it has, `problem` why it has no newer."""

    node: str
    revision: int = 0
    current: bool = False
    problem: str = ""
    report: ServiceReport | None = None


class ServiceRow(View):
    """One Service as `podwire status services -o json` prints it. `ready` of `total` endpoints."""

    namespace: str
    name: str
    type: str
    cluster_ips: tuple[str, ...] = ()
    external: tuple[str, ...] = ()
    ports: tuple[str, ...] = ()
    ready: int = 0
    total: int = 0
    revision: int = 0
    programmed: int = 0
    nodes: tuple[NodeProgrammed, ...] = ()
    served: bool = True
    note: str = ""
    problems: tuple[str, ...] = ()
    connections: int = 0
    refused: int | None = 0

    @property
    def key(self) -> Key:
        return Key(self.namespace, self.name)

    @property
    def complete(self) -> bool:
        return not self.served or self.programmed == len(self.nodes)


def revision_of(obj: Object) -> int:
    text = obj.metadata.resource_version
    return int(text) if text.isdigit() else 0


def slices_by_service(slices: Iterable[EndpointSlice]) -> dict[Key, list[EndpointSlice]]:
    found: dict[Key, list[EndpointSlice]] = {}
    for piece in slices:
        if piece.service_name:
            found.setdefault(Key(piece.metadata.namespace, piece.service_name), []).append(piece)
    return found


def agents_follow(obj: Object) -> bool:
    """Whether agents are told of the object at all."""
    labels = obj.metadata.labels
    return PROXY_NAME_LABEL not in labels and HEADLESS_LABEL not in labels


def wanted_revisions(
    services: Iterable[Service], slices: Iterable[EndpointSlice]
) -> dict[Key, int]:
    """The newest resourceVersion of each Service that agents follow and of its slices."""
    by_service = slices_by_service(piece for piece in slices if agents_follow(piece))
    return {
        service.key: max(revision_of(obj) for obj in (service, *by_service.get(service.key, ())))
        for service in services
        if agents_follow(service)
    }


def compile_rows(
    services: Iterable[Service],
    slices: Iterable[EndpointSlice],
    reports: Mapping[str, NodeReport | str],
) -> list[ServiceRow]:
    """One row per Service, sorted; a node that could not be asked has words instead of a report."""
    pieces = list(slices)
    wanted = wanted_revisions(services := list(services), pieces)
    by_service = slices_by_service(pieces)
    # One look-up table per node: `find` is linear, and there may be 10,000 Services.
    known = {
        node: {s.key: s for s in report.services if s.kind == "Service"}
        if isinstance(report, NodeReport)
        else report
        for node, report in sorted(reports.items())
    }
    return [
        _row(service, by_service.get(service.key, ()), wanted.get(service.key, 0), known)
        for service in sorted(services, key=lambda s: s.key)
    ]


_Known = Mapping[str, dict[Key, ServiceReport] | str]


def _row(
    service: Service, slices: Sequence[EndpointSlice], revision: int, known: _Known
) -> ServiceRow:
    spec = service.spec
    note = ignored(service)
    nodes = tuple(_node(node, found, service.key, revision) for node, found in known.items())
    reports = [n.report for n in nodes if n.report is not None]
    endpoints = {
        (e.addresses[0], p.name, p.port): e.ready
        for s in slices
        for e in s.endpoints
        for p in s.ports
        if e.addresses
    }
    return ServiceRow(
        namespace=service.metadata.namespace,
        name=service.metadata.name,
        type=spec.type,
        cluster_ips=tuple(spec.cluster_ips or ([spec.cluster_ip] if spec.cluster_ip else [])),
        external=tuple(
            [i.ip or i.hostname for i in service.status.load_balancer.ingress]
            + list(spec.external_ips)
            + ([spec.external_name] if spec.external_name else [])
        ),
        ports=tuple(
            f"{p.port}" + (f":{p.node_port}" if p.node_port else "") + f"/{p.protocol}"
            for p in spec.ports
        ),
        ready=sum(endpoints.values()),
        total=len(endpoints),
        revision=revision,
        programmed=sum(n.current for n in nodes),
        nodes=nodes,
        served=not note,
        note=note,
        problems=tuple(
            dict.fromkeys(
                [p for r in reports for p in r.problems]
                + [f"node {n.node}: {n.problem}" for n in nodes if n.problem]
                + [
                    f"{f.address}:{f.port}: belongs to {f.owner}"
                    for r in reports
                    for f in r.frontends
                    if f.owner
                ]
            )
        ),
        connections=sum(f.connections for r in reports for f in r.frontends),
        refused=_sum_known(f.refused for r in reports for f in r.frontends),
    )


def _sum_known(numbers: Iterable[int | None]) -> int | None:
    """None where any is unknown."""
    known = list(numbers)
    return None if None in known else sum(number or 0 for number in known)


def _node(
    node: str, found: dict[Key, ServiceReport] | str, key: Key, revision: int
) -> NodeProgrammed:
    if isinstance(found, str):
        return NodeProgrammed(node=node, problem=found)
    report = found.get(key)
    if report is None:
        return NodeProgrammed(node=node)
    current = report.revision >= revision and not report.error
    return NodeProgrammed(
        node=node, revision=report.revision, current=current, problem=report.error, report=report
    )


def unlisted_pods(
    services: Iterable[Service], slices: Iterable[EndpointSlice], pods: Iterable[Pod]
) -> list[str]:
    """Ready pods that a Service selects and whose addresses its EndpointSlices do not have yet."""
    listed: dict[Key, set[str]] = {}
    for piece in slices:
        key = Key(piece.metadata.namespace, piece.service_name)
        addresses = (a for e in piece.endpoints if e.ready for a in e.addresses)
        listed.setdefault(key, set()).update(addresses)
    by_namespace: dict[str, list[Pod]] = {}
    for pod in pods:
        if pod.ready and not pod.deleting and not pod.finished:
            by_namespace.setdefault(pod.metadata.namespace, []).append(pod)
    return [
        f"service {service.key}: pod {pod.metadata.name} is not in its EndpointSlices"
        for service in services
        if service.spec.selector and service.spec.type != "ExternalName"
        for pod in by_namespace.get(service.metadata.namespace, ())
        if service.spec.selector.items() <= pod.metadata.labels.items()
        and not listed.get(service.key, set()) & {entry.ip for entry in pod.status.pod_ips}
    ]


# --- asking the cluster -------------------------------------------------------------------------


async def read_reports(
    api: Api, nodes: Iterable[str], *, brief: bool = False
) -> dict[str, NodeReport | str]:
    """Every node's report, all asked at once; words for a node that cannot be asked."""
    return await ask_nodes(api, nodes, "services", NodeReport, {"brief": "1"} if brief else None)


async def _read_one(api: Api, node: str, key: Key) -> NodeReport | str:
    """A report with one Service alone, its endpoints counted."""
    try:
        found = await ask_node(api, node, f"services/{key.namespace}/{key.name}", ServiceReport)
    except NotFoundError:
        return NodeReport(node=node)
    return found if isinstance(found, str) else NodeReport(node=node, services=(found,))


async def read_rows(api: Api, namespace: str = "", name: str = "") -> list[ServiceRow]:
    """The rows of all Services of a namespace ("" for all), or of the one called `name`."""
    (services, _), (slices, _), (nodes, _) = await asyncio.gather(
        api.list(kinds.SERVICE, namespace),
        api.list(kinds.ENDPOINT_SLICE, namespace),
        api.list(kinds.NODE),
    )
    if name:
        services = [s for s in services if s.metadata.name == name]
        if not services:
            raise NotFoundError(f'services "{name}" not found in namespace {namespace}')
    # Agents are asked after the lists, so what they answer is not older.
    names = [node.metadata.name for node in nodes if node.ready]
    if name:
        answers = await asyncio.gather(*(_read_one(api, node, services[0].key) for node in names))
        return compile_rows(services, slices, dict(zip(names, answers, strict=True)))
    return compile_rows(services, slices, await read_reports(api, names))


async def wait_services(
    api: Api,
    keys: Collection[Key] = (),
    timeout_s: float = 30.0,
    *,
    nodes: Collection[str] = (),
    among: Callable[[Service], bool] = lambda _: True,
) -> dict[str, str]:
    """Return when every Ready node (or all of `nodes`) has programmed what there is now.

    `keys` names Services; without it `among` chooses. What changes afterwards is not waited for.
    Returns what is missing after `timeout_s`, by `NODE namespace/name`; nothing when all is done.
    Raises `NotFoundError` for a Service that is not there.
    """
    (services, _), (slices, _) = await asyncio.gather(
        api.list(kinds.SERVICE), api.list(kinds.ENDPOINT_SLICE)
    )
    names = list(nodes) or await ready_nodes(api)
    chosen = [s for s in services if (s.key in keys if keys else among(s))]
    if keys and (absent := set(keys) - {s.key for s in chosen}):
        raise NotFoundError(f'services "{min(absent)}" not found')
    revisions = {str(key): number for key, number in wanted_revisions(chosen, slices).items()}
    return await wait_nodes(api, names, "services", revisions, timeout_s)


async def wait_listed(api: Api, timeout_s: float) -> list[str]:
    """Return when every Ready pod is in the slices of the Services that select it.

    Returns who is missing after `timeout_s`: slices may be somebody else's business.
    """
    informers: tuple[Informer[Service], Informer[EndpointSlice], Informer[Pod]] = (
        Informer(api, kinds.SERVICE),
        Informer(api, kinds.ENDPOINT_SLICE),
        Informer(api, kinds.POD),
    )
    services, slices, pods = informers
    changed = asyncio.Event()
    tasks = []
    for informer in informers:
        informer.on_change(lambda _: changed.set())
        tasks.append(asyncio.create_task(informer.run()))
    found: list[str] = []
    try:
        async with asyncio.timeout(timeout_s):
            for informer in informers:
                await informer.synced.wait()
            while found := unlisted_pods(
                services.objects.values(), slices.objects.values(), pods.objects.values()
            ):
                changed.clear()
                await changed.wait()
    except TimeoutError:
        pass
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return found
