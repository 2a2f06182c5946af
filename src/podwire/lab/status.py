"""What a lab says of itself: `podwire status -o json` is this, written out."""

from __future__ import annotations

import msgspec

from podwire.errors import LabNotFoundError
from podwire.lab import wire
from podwire.lab.paths import LabPaths
from podwire.lab.spec import LabSpec


class ComponentStatus(msgspec.Struct, frozen=True):
    """`pid` is the host's, 0 while the component is being restarted."""

    name: str
    pid: int
    healthy: bool
    restarts: int


class NodeStatus(msgspec.Struct, frozen=True):
    """`pid` is the node's agent, which lives in the node's network namespace (`netns`)."""

    name: str
    zone: str
    addresses: tuple[str, ...]
    pid: int
    netns: str
    ready: bool


class LabStatus(msgspec.Struct, frozen=True):
    lab: str
    running: bool
    network: str
    overlay: str
    ip_family: str
    kubeconfig: str
    components: tuple[ComponentStatus, ...]
    nodes: tuple[NodeStatus, ...]
    published: tuple[str, ...]
    impairments: tuple[dict[str, object], ...]
    unsupported: dict[str, str]


def read_status(paths: LabPaths, ready_nodes: set[str], unsupported: dict[str, str]) -> LabStatus:
    """Ask the holder; `ready_nodes` are the names the API server calls Ready."""
    answer = wire.call(paths.control_socket, {"op": "status"})
    spec = msgspec.convert(answer["spec"], LabSpec)
    components = answer["components"]
    agents = {c["node"]: c["pid"] for c in components if c["name"].startswith("agent-")}
    holder = ComponentStatus("holder", answer["holder"]["pid"], True, 0)
    if not holder.pid:
        raise LabNotFoundError(f"lab {spec.name}: the holder does not know its pid")
    return LabStatus(
        lab=spec.name,
        running=True,
        network=spec.network,
        overlay=spec.overlay,
        ip_family=spec.ip_family,
        kubeconfig=str(paths.kubeconfig),
        components=(
            holder,
            *(
                ComponentStatus(c["name"], c["pid"], c["running"], c["restarts"])
                for c in components
            ),
        ),
        nodes=tuple(
            NodeStatus(
                name=node.name,
                zone=node.zone,
                addresses=tuple(str(a) for a in spec.node_addresses(node)),
                pid=agents.get(node.name, 0),
                netns=_netns(agents.get(node.name, 0)),
                ready=node.name in ready_nodes,
            )
            for node in spec.nodes
        ),
        published=tuple(f"{p.host}:{p.port} -> {p.target}" for p in spec.publish),
        impairments=tuple(answer["impairments"]),
        unsupported=unsupported,
    )


def _netns(pid: int) -> str:
    return f"/proc/{pid}/ns/net" if pid else ""
