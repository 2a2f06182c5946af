"""The processes of a lab: what the holder forks, each started with a `Context`.

Here the rooms meet; nothing is decided. Every function runs one component until it is told to stop
and never returns otherwise.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import uvloop

from podwire.agents import node as node_agent
from podwire.apiserver.app import ApiServer, ServerConfig
from podwire.client import Api, Endpoint
from podwire.controllers.config import ControllerConfig
from podwire.controllers.manager import run as run_controllers
from podwire.dns import main as dns
from podwire.dns.answers import Answers
from podwire.dns.index import Index, ZoneOptions
from podwire.dns.podfiles import PodFiles
from podwire.dns.records import Zone
from podwire.dns.server import Server, bind
from podwire.lab import fabric, nodelocal
from podwire.lab import publish as relay
from podwire.lab.outsidezone import OutsideZone, default_zone
from podwire.lab.podroutes import PodRoutes
from podwire.lab.spec import API_PORT, OUTSIDE
from podwire.lab.supervised import Context
from podwire.lab.wire import ForkSpawner
from podwire.runtime.config import KubeletConfig
from podwire.runtime.oci import OciRuntime
from podwire.runtime.poddns import ResolvConf
from podwire.runtime.standin import StandinConfig
from podwire.runtime.standin import main as standin_main

# Requests and events make many objects and few cycles: the default (700, 10, 10) spends a fifth of
# a busy component's time looking for them.
_GC_THRESHOLD = (20_000, 20, 50)
# Images that are programs of podwire, forked from the holder into the pod.
_BUILTINS = {"dns": "podwire.dns.main:builtin"}
_DNS_PORT = 53
_NODE_LABELS = {
    "kubernetes.io/os": "linux",
    "beta.kubernetes.io/os": "linux",
}


def _run(main: Coroutine[Any, Any, int | None]) -> None:
    """Run one component's coroutine; SIGTERM cancels it."""

    async def supervised() -> int:
        task = asyncio.ensure_future(main)
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        with contextlib.suppress(asyncio.CancelledError):
            return await task or 0
        return 0

    gc.freeze()
    gc.set_threshold(*_GC_THRESHOLD)
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(name)s %(levelname)s %(message)s",
        force=True,
    )
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)
    raise SystemExit(uvloop.run(supervised()))


def _api(context: Context, name: str) -> Api:
    return Api(Endpoint(unix_socket=context.paths.api_socket), user_agent=name)


def apiserver(context: Context) -> None:
    _run(_apiserver(context))


async def _apiserver(context: Context) -> None:
    spec, paths = context.spec, context.paths
    state = paths.state(spec.state_dir)
    server = ApiServer(
        ServerConfig(
            store=state / "store.db",
            pki_dir=state / "pki",
            unix_socket=paths.api_socket,
            tls_sockets=(context.api_socket,),
            tls_addresses=((str(spec.api_address), API_PORT),),
            service_cidrs=spec.service_networks(),
            advertised=((spec.api_address, API_PORT),),
            kubelet_socket=lambda node: paths.node(node) / "kubelet.sock",
        )
    )
    await server.start()
    try:
        await asyncio.Event().wait()
    finally:
        await server.stop()


def controllers(context: Context) -> None:
    _run(_controllers(context))


async def _controllers(context: Context) -> None:
    spec = context.spec
    ca = context.paths.state(spec.state_dir) / "pki" / "ca.crt"
    async with _api(context, "podwire-controllers") as api:
        await api.wait_healthy()
        config = ControllerConfig(
            cluster_cidrs=spec.pod_networks(),
            node_masks=spec.node_masks(),
            ca_text=ca.read_text(),
            service_cidrs=spec.service_networks(),
            load_balancer_pools=spec.pools(),
        )
        async with asyncio.TaskGroup() as group:
            group.create_task(PodRoutes(api, fabric.BRIDGE).run())
            group.create_task(run_controllers(api, config))


def standin(context: Context) -> None:
    assert context.node is not None
    standin_main(
        StandinConfig(
            socket_path=context.paths.node(context.node.name) / "standin.sock",
            node_name=context.node.name,
        )
    )


def agent(context: Context) -> None:
    _run(_agent(context))


async def _agent(context: Context) -> int:
    assert context.node is not None
    spec, paths, node = context.spec, context.paths, context.node
    zone = {"topology.kubernetes.io/zone": node.zone} if node.zone else {}
    kubelet = KubeletConfig(
        node_name=node.name,
        node_ips=spec.node_addresses(node),
        node_dir=paths.node(node.name),
        pins_dir=paths.pod_pins,
        images_dir=paths.images,
        boot_id=context.incarnation,
        labels=_NODE_LABELS | {"kubernetes.io/hostname": node.name} | zone,
        cluster_dns=tuple(map(str, spec.pod_dns)),
        probe_delays=spec.probe_delays,
        max_pods=spec.max_pods,
        families=spec.families,
        volatile_dir=paths.volatile(node.name),
    )
    async with _api(context, f"podwire-agent-{node.name}") as api:
        await api.wait_healthy()
        return await node_agent.run(
            api,
            kubelet,
            spec.network_config(),
            spec.service_config(),
            spec.policy_config(),
            spawner=ForkSpawner(paths.control_socket),
            runtime=await OciRuntime.probe(kubelet.node_dir / "oci", paths.images),
            outside=paths.node_pins / OUTSIDE,
            builtins=_BUILTINS,
            node_dns=ResolvConf(tuple(map(str, spec.outside_addresses))),
        )


def publish(context: Context) -> None:
    _run(_publish(context))


async def _publish(context: Context) -> None:
    assert context.published is not None
    async with _api(context, "podwire-publish") as api:
        await api.wait_healthy()
        published = context.published
        target = relay.parse_target(published.spec.target)
        await relay.run(api, context.paths.node_pins, published.listener, target)


def node_local_dns(context: Context) -> None:
    """The node's DNS cache: the same program as the cluster's, with another Corefile."""
    assert context.node is not None
    folder = context.paths.node(context.node.name) / "dns"
    folder.mkdir(mode=0o700, exist_ok=True)
    corefile = folder / "Corefile"
    corefile.write_text(nodelocal.render_corefile(context.spec))
    fds = [sock.detach() for sock in context.sockets]
    raise SystemExit(dns.start(["-conf", str(corefile)], PodFiles(), fds, None))


def outside_dns(context: Context) -> None:
    _run(_outside_dns(context))


async def _outside_dns(context: Context) -> None:
    """Everybody's resolver beyond the router; it knows its zone file and nothing else."""
    spec = context.spec
    text = (
        Path(spec.outside_zone).read_text(encoding="utf-8")
        if spec.outside_zone
        else default_zone(spec.outside_addresses)
    )
    server = Server(Answers(Zone(Index(ZoneOptions(zones=())))), OutsideZone(text))
    sockets = [bind(str(address), _DNS_PORT) for address in spec.outside_addresses]
    await server.start([udp for udp, _ in sockets], [tcp for _, tcp in sockets])
    await asyncio.Event().wait()
