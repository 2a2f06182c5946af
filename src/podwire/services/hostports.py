"""hostPorts: a container's port on its node's address, as frontends with one backend. Pure.

What the CNI portmap plugin does for real runtimes; clients' addresses are kept, and a pod in the
node's own network needs nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address

from podwire.objects.core import ContainerPort, Pod
from podwire.services.endpoints import Backend
from podwire.services.model import PROTOCOLS, Frontend, FrontendKey, NodeView


def container_ports(pod: Pod) -> Iterator[ContainerPort]:
    """Ports of containers and of init containers that stay (restartPolicy Always)."""
    stay = [c for c in pod.spec.init_containers if c.restart_policy == "Always"]
    for container in (*pod.spec.containers, *stay):
        yield from container.ports


def compile_host_ports(pod: Pod, node: NodeView) -> tuple[Frontend, ...]:
    """One frontend per hostPort, node address and family the pod has."""
    if pod.finished or pod.spec.host_network:
        return ()
    addresses = [ip_address(entry.ip) for entry in pod.status.pod_ips if entry.ip]
    found: dict[FrontendKey, Frontend] = {}
    for port in container_ports(pod):
        protocol = PROTOCOLS.get(port.protocol)
        if not port.host_port or protocol is None:
            continue
        asked = ip_address(port.host_ip) if port.host_ip else None
        anywhere = asked is None or asked.is_unspecified
        for own in node.addresses if anywhere else (asked,):
            for address in addresses:
                if own is None or own.version != address.version:
                    continue
                key = FrontendKey(own.packed, protocol, port.host_port)
                backend = Backend(address.packed, port.container_port, local=True)
                found.setdefault(key, Frontend(key, pod.key, port.name, "HostPort", (backend,)))
    return tuple(found.values())
