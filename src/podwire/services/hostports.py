"""hostPorts: a container's port on its node's address, as frontends with one backend. Pure.

What the CNI portmap plugin does for real runtimes; clients' addresses are kept, and a pod in the
node's own network needs nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from ipaddress import ip_address

from podwire.objects.core import ContainerPort, Pod
from podwire.services.endpoints import Backend
from podwire.services.model import PROTOCOLS, Address, Frontend, FrontendKey, NodeView


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
        for own in _addresses(port.host_ip, node):
            for address in addresses:
                if own.version != address.version:
                    continue
                key = FrontendKey(own.packed, protocol, port.host_port)
                backend = Backend(address.packed, port.container_port, local=True)
                found.setdefault(key, Frontend(key, pod.key, port.name, "HostPort", (backend,)))
    return tuple(found.values())


def _addresses(host_ip: str, node: NodeView) -> Sequence[Address]:
    """Where the port is: `0.0.0.0` and `::` are all addresses of their own family, no hostIP those
    of both (plugins/meta/portmap)."""
    if not host_ip:
        return node.addresses
    asked = ip_address(host_ip)
    if asked.is_unspecified:
        return [own for own in node.addresses if own.version == asked.version]
    return (asked,)
