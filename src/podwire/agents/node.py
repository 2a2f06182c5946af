"""One node's agent process: its network and, in a lab, the kubelet's part.

The process runs in the node's network namespace. Its rooms are wired here and nowhere else.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import msgspec
from aiohttp import ClientError, ClientSession, ClientTimeout, web

from podwire.agents.announcer import Announcement, Announcer
from podwire.agents.bgp import BgpAnnouncement
from podwire.agents.config import PolicyConfig, ServiceConfig
from podwire.agents.l2 import L2Announcement, L2Kernel
from podwire.agents.network import NodeNetworkAgent
from podwire.agents.pathmtu import PathMtuCheck
from podwire.agents.policy import PolicyAgent
from podwire.agents.policystatus import PolicyStatus
from podwire.agents.resolving import Place, Resolving
from podwire.agents.services import ServiceAgent
from podwire.agents.servicestatus import ServiceStatus
from podwire.agents.tracing import Tracer
from podwire.client import Api
from podwire.cni.attach import KernelPodNetwork
from podwire.cni.config import NetworkConfig
from podwire.cni.ipam import LeaseStore
from podwire.errors import NodeRemovedError, UsageError
from podwire.explain.probes import ProbeService
from podwire.explain.probes.wire import OUTSIDE
from podwire.runtime.config import KubeletConfig
from podwire.runtime.containers import ContainerRuntime, Spawner
from podwire.runtime.kubelet import Kubelet
from podwire.runtime.poddns import NO_RESOLVER, ResolvConf
from podwire.runtime.server import Handler, KubeletServer

_SCRAPE_S = 5.0
_WAITING = "container runtime network not ready: waiting for the node's podCIDR"


async def run(
    api: Api,
    config: KubeletConfig,
    network: NetworkConfig,
    services: ServiceConfig,
    policies: PolicyConfig,
    *,
    spawner: Spawner,
    runtime: ContainerRuntime | None = None,
    outside: Path | None = None,
    builtins: Mapping[str, str] | None = None,
    node_dns: ResolvConf = NO_RESOLVER,
) -> int:
    """Run until cancelled, or until the Node is deleted: then the exit status says so.

    `outside` is the pin of a host beyond the cluster, where there is one: probes may start there.
    `builtins` are the images that are programs of podwire (NAME -> "module:function"), `node_dns`
    is the node's own resolv.conf.
    """
    leases = LeaseStore(config.node_dir / "ipam.db", config.boot_id)
    pods = KernelPodNetwork(network, leases, config.pins_dir)
    node = NodeNetworkAgent(api, config.node_name, network, pods)
    policing = PolicyAgent(api, config.node_name, policies, node.nodes, config.node_dir)
    kubelet = Kubelet(
        config,
        api,
        pods,
        policy_ready=policing.admit,
        spawner=spawner,
        runtime=runtime,
        builtins=builtins,
        node_dns=node_dns,
    )
    balancing = ServiceAgent(api, config.node_name, services, node.nodes, kubelet.pod_informer)
    announcer = Announcer(balancing, node.nodes, _announcement(config, network, services))
    status = ServiceStatus(
        api, config.node_name, balancing, lambda: _pod_pins(kubelet), lambda: announcer.announced
    )
    kubelet.pod_informer.on_change(policing.sources.own_pod_changed)
    policy_status = PolicyStatus(api, config.node_name, policing)
    probes = ProbeService(lambda source: _source_pin(kubelet, source, outside))
    server = KubeletServer(kubelet)
    resolving = Resolving(partial(_place, kubelet))
    for method, path, handler in (
        *_routes(kubelet, node, probes, resolving, status),
        *_policy_routes(policy_status),
    ):
        server.add_route(method, path, handler)
    server.add_metrics(status.metrics)
    server.add_metrics(policy_status.metrics)
    try:
        async with server, asyncio.TaskGroup() as group:
            path_mtu = PathMtuCheck(api, config.node_name, node, probes)
            following = [
                group.create_task(part.run())
                for part in (node, path_mtu, balancing, status, announcer, policing, policy_status)
            ]
            # Pods of an earlier agent can only be recognised once the network is known again.
            with contextlib.suppress(NodeRemovedError):
                await kubelet.registration.register(not_ready=_WAITING)
                await node.configured.wait()
            code = await kubelet.run()
            for task in following:
                task.cancel()
            return code
    finally:
        probes.close()
        resolving.close()
        status.close()
        balancing.close()
        announcer.close()
        policing.close()
        with contextlib.suppress(OSError):
            leases.close()


def _routes(
    kubelet: Kubelet,
    node: NodeNetworkAgent,
    probes: ProbeService,
    resolving: Resolving,
    status: ServiceStatus,
) -> tuple[tuple[str, str, Handler], ...]:
    """What the kubelet API answers for other rooms."""
    return (
        ("POST", "/probe", partial(_probe, probes)),
        ("POST", "/trace", Tracer(probes).handle),
        ("POST", "/routes", partial(_routes_stand, node)),
        ("POST", "/dns", resolving.handle),
        ("GET", "/scrape/{namespace}/{name}/{port}", partial(_scrape, kubelet)),
        ("GET", "/services", status.get_all),
        ("POST", "/services/wait", status.wait),
        ("GET", "/services/{namespace}/{name}", status.get_one),
    )


def _policy_routes(status: PolicyStatus) -> tuple[tuple[str, str, Handler], ...]:
    return (
        ("GET", "/policies", status.get),
        ("POST", "/policies/wait", status.wait),
        ("GET", "/policies/flows", status.flows),
    )


def _pod_pins(kubelet: Kubelet) -> list[Path]:
    """The namespaces of this node's pods, those on the node's own network left out."""
    sandboxes = [worker.sandbox for worker in kubelet.pods.values()]
    return [kubelet.config.pins_dir / s.id for s in sandboxes if s and not s.host_network]


def _announcement(
    config: KubeletConfig, network: NetworkConfig, services: ServiceConfig
) -> Announcement:
    """How load balancer addresses are made known."""
    name = config.node_name
    if services.bgp is not None:
        return BgpAnnouncement(name, config.node_ips, services.bgp, services.pools, config.node_dir)
    delivered = services.backend == "ipvs"
    return L2Announcement(name, L2Kernel(network.uplink, services.families, delivered=delivered))


def _source_pin(kubelet: Kubelet, source: str, outside: Path | None) -> Path | None:
    """Where a probe's source lives; None is the node itself."""
    if not source:
        return None
    if source == OUTSIDE:
        if outside is None:
            raise LookupError("this cluster has no outside host")
        return outside
    namespace, _, name = source.partition("/")
    worker = kubelet.find(namespace, name)
    if worker is None or worker.sandbox is None:
        raise LookupError(f"pod {source} does not run on node {kubelet.config.node_name}")
    if worker.sandbox.host_network:
        return None
    return kubelet.config.pins_dir / worker.sandbox.id


def _place(kubelet: Kubelet, source: str) -> Place:
    """Where a pod's programs look names up."""
    namespace, _, name = source.partition("/")
    worker = kubelet.find(namespace, name)
    if worker is None or worker.sandbox is None:
        raise LookupError(f"pod {source} does not run on node {kubelet.config.node_name}")
    directory = kubelet.config.pods_dir / worker.sandbox.uid
    pin = worker.sandbox.pin(kubelet.config.pins_dir)
    return Place(pin, directory / "resolv.conf", directory / "hosts")


async def _scrape(kubelet: Kubelet, request: web.Request) -> web.Response:
    """The `/metrics` page of a pod of this node, from its node, as a Prometheus would get it."""
    where = request.match_info
    worker = kubelet.find(where["namespace"], where["name"])
    if worker is None or worker.sandbox is None:
        raise web.HTTPNotFound(text=f"pod {where['namespace']}/{where['name']} is not here")
    host = worker.sandbox.ips[0]
    shown = f"[{host}]" if ":" in host else host
    timeout = ClientTimeout(total=_SCRAPE_S)
    try:
        async with (
            ClientSession(timeout=timeout) as session,
            session.get(f"http://{shown}:{where['port']}/metrics") as page,
        ):
            return web.Response(body=await page.read(), status=page.status)
    except (ClientError, OSError, TimeoutError) as error:
        text = f"http://{shown}:{where['port']}/metrics: {error or type(error).__name__}"
        raise web.HTTPBadGateway(text=text) from error


class _RoutesTo(msgspec.Struct, rename="camel"):
    """Asks for routes to these nodes; answered when they stand."""

    nodes: list[str]
    timeout_seconds: float = 10.0


async def _routes_stand(network: NodeNetworkAgent, request: web.Request) -> web.Response:
    try:
        wanted = msgspec.json.decode(await request.read(), type=_RoutesTo)
    except msgspec.MsgspecError as error:
        raise web.HTTPBadRequest(text=f"routes: {error}") from error
    try:
        async with asyncio.timeout(wanted.timeout_seconds):
            await network.wait_routes(wanted.nodes)
    except TimeoutError as error:
        text = f"no routes yet to all of {', '.join(wanted.nodes)}"
        raise web.HTTPServiceUnavailable(text=text) from error
    return web.Response(text="ok")


async def _probe(service: ProbeService, request: web.Request) -> web.Response:
    try:
        body = await service.handle(await request.read())
    except UsageError as error:
        raise web.HTTPBadRequest(text=str(error)) from error
    return web.Response(body=body, content_type="application/json")
