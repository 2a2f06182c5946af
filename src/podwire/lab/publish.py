"""Published ports: connections to a loopback port of the host, relayed to a pod.

    client on the host -> socket opened by `podwire up` -> this relay -> socket in the node's
    namespace -> pod

The listening sockets were opened in the host's namespace and inherited; the connection onwards is
opened in the namespace of the pod's node, so the pod sees its node's address, as with a hostPort.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from podwire.client import Api, Informer
from podwire.errors import KernelError, UsageError
from podwire.kernel import netns
from podwire.objects import kinds
from podwire.objects.core import Pod, Service
from podwire.objects.meta import Key

_LOG = logging.getLogger(__name__)
_CHUNK = 1 << 16
_CONNECT_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class Target:
    """`svc/shop/web:80` or `shop/web-0:8080`; the port is a number or a port's name."""

    service: bool
    key: Key
    port: str


def parse_target(text: str) -> Target:
    path, _, port = text.rpartition(":")
    parts = path.split("/")
    service = parts[0] in ("svc", "service")
    if service:
        parts = parts[1:]
    if parts and parts[0] in ("pod", "pods"):
        parts = parts[1:]
    if not parts or len(parts) > 2 or not all(parts) or not port:
        raise UsageError(f"target {text!r}: expected [svc/][NAMESPACE/]NAME:PORT")
    return Target(service, Key(*(["default", *parts][-2:])), port)


@dataclass(frozen=True)
class Backend:
    node: str
    address: str
    port: int


def find_backends(
    target: Target, pods: Mapping[Key, Pod], services: Mapping[Key, Service]
) -> list[Backend]:
    """Ready pods behind the target: a pod by its name, or all that a Service selects."""
    if target.service:
        service = services.get(target.key)
        if service is None or not service.spec.selector:
            return []
        wanted = service.spec.selector.items()
        chosen = [
            pod
            for pod in pods.values()
            if pod.metadata.namespace == target.key.namespace
            and wanted <= pod.metadata.labels.items()
        ]
        port = _service_target_port(service, target.port)
    else:
        chosen = [pod for key, pod in pods.items() if _names(key, target.key, pod)]
        port = target.port
    return [
        Backend(pod.spec.node_name, pod.status.pod_ip, number)
        for pod in chosen
        if pod.ready and pod.status.pod_ip and (number := _pod_port(pod, port))
    ]


def _names(key: Key, wanted: Key, pod: Pod) -> bool:
    """A pod by its own name, or by its workload's (`web` for `web-5d8c9-x7k2p`)."""
    if key.namespace != wanted.namespace:
        return False
    owner = pod.metadata.controller
    return key.name == wanted.name or (
        owner is not None
        and owner.name.removesuffix("-" + pod.metadata.labels.get("pod-template-hash", ""))
        == wanted.name
    )


def _service_target_port(service: Service, port: str) -> str:
    for entry in service.spec.ports:
        if port in (str(entry.port), entry.name):
            return str(entry.target_port or entry.port)
    return port


def _pod_port(pod: Pod, port: str) -> int:
    if port.isdigit():
        return int(port)
    for container in pod.spec.containers:
        for entry in container.ports:
            if entry.name == port:
                return entry.container_port
    return 0


class Relay:
    def __init__(self, pins: Path, pods: Informer[Pod], services: Informer[Service]) -> None:
        self._pins = pins
        self._pods = pods
        self._services = services
        self._turn = 0

    async def serve(self, listener: socket.socket, target: Target) -> None:
        async def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await self._relay(target, reader, writer)

        # Not closed by us: another relay may take it over after a restart.
        server = await asyncio.start_server(
            accepted, sock=socket.socket(fileno=os.dup(listener.fileno()))
        )
        async with server:
            await server.serve_forever()

    async def _relay(
        self, target: Target, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        backends = find_backends(target, self._pods.objects, self._services.objects)
        self._turn += 1
        try:
            if not backends:
                _LOG.info("publish %s: no ready pod", target)
                return
            backend = backends[self._turn % len(backends)]
            far_reader, far_writer = await self._connect(backend)
            await asyncio.gather(
                _copy(reader, far_writer), _copy(far_reader, writer), return_exceptions=True
            )
        except (OSError, KernelError, TimeoutError) as error:
            _LOG.info("publish %s: %s", target, error)
        finally:
            writer.close()

    async def _connect(self, backend: Backend) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        family = socket.AF_INET6 if ":" in backend.address else socket.AF_INET
        fd = netns.open_pin(self._pins / backend.node)
        try:
            sock = netns.socket_in(fd, family)
        finally:
            os.close(fd)
        sock.setblocking(False)
        try:
            async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                await asyncio.get_running_loop().sock_connect(sock, (backend.address, backend.port))
            return await asyncio.open_connection(sock=sock)
        except BaseException:
            sock.close()
            raise


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(_CHUNK):
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()
    except OSError:
        writer.close()


async def run(api: Api, pins: Path, listener: socket.socket, target: Target) -> None:
    """Relay until cancelled."""
    pods: Informer[Pod] = Informer(api, kinds.POD, namespace=target.key.namespace)
    services: Informer[Service] = Informer(api, kinds.SERVICE, namespace=target.key.namespace)
    relay = Relay(pins, pods, services)
    async with asyncio.TaskGroup() as group:
        group.create_task(pods.run())
        group.create_task(services.run())
        # Connections wait in the listener's backlog until it is known where they can go.
        await pods.synced.wait()
        await services.synced.wait()
        group.create_task(relay.serve(listener, target))
