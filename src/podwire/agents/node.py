"""One node's agent process: its network and, in a lab, the kubelet's part.

The process runs in the node's network namespace. Its rooms are wired here and nowhere else.
"""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import msgspec
from aiohttp import web

from podwire.agents.announcer import Announcement, Announcer
from podwire.agents.bgp import BgpAnnouncement
from podwire.agents.config import ServiceConfig
from podwire.agents.l2 import L2Announcement, L2Kernel
from podwire.agents.network import NodeNetworkAgent
from podwire.agents.pathmtu import PathMtuCheck
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
from podwire.runtime.server import KubeletServer

_WAITING = "container runtime network not ready: waiting for the node's podCIDR"


async def run(
    api: Api,
    config: KubeletConfig,
    network: NetworkConfig,
    services: ServiceConfig,
    *,
    spawner: Spawner,
    runtime: ContainerRuntime | None = None,
    outside: Path | None = None,
) -> int:
    """Run until cancelled, or until the Node is deleted: then the exit status says so.

    `outside` is the pin of a host beyond the cluster, where there is one: probes may start there.
    """
    leases = LeaseStore(config.node_dir / "ipam.db", config.boot_id)
    pods = KernelPodNetwork(network, leases, config.pins_dir)
    node = NodeNetworkAgent(api, config.node_name, network, pods)
    kubelet = Kubelet(config, api, pods, spawner=spawner, runtime=runtime)
    balancing = ServiceAgent(api, config.node_name, services, node.nodes, kubelet.pod_informer)
    announcer = Announcer(balancing, node.nodes, _announcement(config, network, services))
    status = ServiceStatus(
        api, config.node_name, balancing, lambda: _pod_pins(kubelet), lambda: announcer.announced
    )
    probes = ProbeService(lambda source: _source_pin(kubelet, source, outside))
    server = KubeletServer(kubelet)
    server.add_route("POST", "/probe", lambda request: _probe(probes, request))
    server.add_route("POST", "/routes", lambda request: _routes(node, request))
    server.add_route("POST", "/trace", Tracer(probes).handle)
    server.add_route("GET", "/services", status.get_all)
    server.add_route("POST", "/services/wait", status.wait)
    server.add_route("GET", "/services/{namespace}/{name}", status.get_one)
    server.add_metrics(status.metrics)
    try:
        async with server, asyncio.TaskGroup() as group:
            following = [
                group.create_task(node.run()),
                group.create_task(PathMtuCheck(api, config.node_name, node, probes).run()),
                group.create_task(balancing.run()),
                group.create_task(status.run()),
                group.create_task(announcer.run()),
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
        status.close()
        balancing.close()
        announcer.close()
        with contextlib.suppress(OSError):
            leases.close()


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


class _RoutesTo(msgspec.Struct, rename="camel"):
    """Asks for routes to these nodes; answered when they stand."""

    nodes: list[str]
    timeout_seconds: float = 10.0


async def _routes(network: NodeNetworkAgent, request: web.Request) -> web.Response:
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
