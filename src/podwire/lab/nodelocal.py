"""Node-local DNS: a cache on every node, at the same address everywhere, which its pods ask.

    pod -> 169.254.20.10 of its own node -> cached | kube-dns by TCP | the upstream

A query leaves the node once, by TCP, and never as a translated datagram: that is what the cache is
for (KEP-1024). Address and sockets belong to the holder: a cache that dies is started anew with the
sockets it had, and what was asked meanwhile waits in them.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Final

from podwire.cni.links import interface
from podwire.kernel import netns
from podwire.kernel.requests import Add, Address, Request
from podwire.kernel.rtnl import Rtnl
from podwire.kernel.sockets import open_socket
from podwire.lab.spec import NODE_LOCAL_DNS, LabSpec

# Of the loopback device, because not every kernel has dummy ones; to the pods it is the same.
DEVICE: Final = "lo"
_PORT: Final = 53
_METRICS_PORT, _HEALTH_PORT = 9253, 8080
# Zones of the cluster, as kubernetes/kubernetes cluster/addons/dns/nodelocaldns has them.
_CLUSTER: Final = ("cluster.local", "in-addr.arpa", "ip6.arpa")


def link_requests(spec: LabSpec) -> list[Request]:
    """The address, as one of the node's own."""
    addresses = [NODE_LOCAL_DNS[family] for family in spec.families]
    return [Add(Address(DEVICE, interface(a, a.max_prefixlen))) for a in addresses]


def open_node_local(spec: LabSpec, pin: Path) -> tuple[socket.socket, ...]:
    """Make the address in the node's namespace; the sockets on it."""
    fd = netns.open_pin(pin)
    try:
        with Rtnl.in_ns(fd) as rtnl:
            rtnl.apply(link_requests(spec))
        with netns.entered(fd):
            return tuple(
                open_socket(str(NODE_LOCAL_DNS[family]), _PORT, kind)
                for family in spec.families
                for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM)
            )
    finally:
        os.close(fd)


def render_corefile(spec: LabSpec) -> str:
    """What the cache is told: the cluster's zones to kube-dns, everything else to the upstream."""
    kube_dns = " ".join(map(str, spec.cluster_dns))
    upstream = " ".join(map(str, spec.outside_addresses))
    first = NODE_LOCAL_DNS[spec.families[0]]
    shown = f"[{first}]" if first.version == 6 else str(first)
    addresses = " ".join(str(NODE_LOCAL_DNS[family]) for family in spec.families)
    common = f"    bind {addresses}\n    prometheus {shown}:{_METRICS_PORT}\n"
    blocks = [
        f"{zone}:{_PORT} {{\n    errors\n"
        "    cache 30 {\n        success 9984 30\n        denial 9984 5\n    }\n"
        f"{common}    forward . {kube_dns} {{\n        force_tcp\n    }}\n}}\n"
        for zone in _CLUSTER
    ]
    rest = (
        f".:{_PORT} {{\n    errors\n    cache 30\n{common}"
        f"    health {shown}:{_HEALTH_PORT}\n    forward . {upstream}\n}}\n"
    )
    return "".join([*blocks, rest])
