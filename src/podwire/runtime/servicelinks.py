"""The variables that tell a container which Services there are: `{SVC}_SERVICE_HOST` and the rest.

    Services of the pod's namespace, and `kubernetes` of default -> service_variables (pure)

The watch of Services starts with the first container whose environment is asked for: a node of
stand-ins that nobody runs `exec` in never has one. Source: pkg/kubelet/envvars,
pkg/kubelet/kubelet_pods.go (getServiceEnvVarMap).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Iterator

from podwire.client import Api, Informer
from podwire.objects import kinds
from podwire.objects.core import Pod, Service, ServicePort
from podwire.objects.meta import Key

_LOG = logging.getLogger(__name__)
_MASTER = Key("default", "kubernetes")


def linked_services(pod: Pod, services: Iterable[Service], until: str = "") -> list[Service]:
    """The Services a container of the pod is told of, by name. Those made later than `until` (an
    API time) are left out: a process does not learn of them."""
    links = pod.spec.enable_service_links
    chosen: dict[str, Service] = {}
    for service in services:
        if not service.spec.cluster_ip or service.spec.headless:
            continue
        if until and (service.metadata.creation_timestamp or "") > until:
            continue
        key = service.key
        if links and key.namespace == pod.metadata.namespace:
            chosen[key.name] = service
        elif key == _MASTER:
            chosen.setdefault(key.name, service)
    return [chosen[name] for name in sorted(chosen)]


def service_variables(services: Iterable[Service]) -> dict[str, str]:
    """Host, ports by name, and what Docker's links said."""
    return {name: value for service in services for name, value in _of_service(service)}


def _of_service(service: Service) -> Iterator[tuple[str, str]]:
    name, host, ports = variable(service.metadata.name), service.spec.cluster_ip, service.spec.ports
    yield f"{name}_SERVICE_HOST", host
    if not ports:
        return
    yield f"{name}_SERVICE_PORT", str(ports[0].port)
    for port in ports:
        if port.name:
            yield f"{name}_SERVICE_PORT_{variable(port.name)}", str(port.port)
    yield f"{name}_PORT", _url(host, ports[0])
    for port in ports:
        prefix = f"{name}_PORT_{port.port}_{port.protocol.upper()}"
        yield prefix, _url(host, port)
        yield f"{prefix}_PROTO", port.protocol.lower()
        yield f"{prefix}_PORT", str(port.port)
        yield f"{prefix}_ADDR", host


def _url(host: str, port: ServicePort) -> str:
    joined = f"[{host}]" if ":" in host else host
    return f"{port.protocol.lower()}://{joined}:{port.port}"


def variable(name: str) -> str:
    """A name as part of a variable's; one that begins with a digit gets an underscore."""
    text = name.replace(".", "_").replace("-", "_").upper()
    return f"_{text}" if text[:1].isdigit() else text


class ServiceLinks:
    """`variables` waits for the first list of Services; `close` ends the watch."""

    def __init__(self, api: Api) -> None:
        self._informer = Informer(api, kinds.SERVICE)
        self._watch: asyncio.Task[None] | None = None

    async def variables(self, pod: Pod, until: str = "") -> dict[str, str]:
        if self._watch is None:
            self._watch = asyncio.get_running_loop().create_task(self._informer.run())
            self._watch.add_done_callback(_log_end)
        await self._informer.synced.wait()
        return service_variables(linked_services(pod, self._informer.objects.values(), until))

    def close(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None


def _log_end(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        _LOG.error("the watch of Services ended: %s", error, exc_info=error)
