"""The controllers' own view of a Pod: what scheduling and counting read, and nothing else.

Every pod change in the cluster is decoded into it, so that it leaves out what makes the full view
dear: probes, environments, volumes. All other kinds are those of `objects.kinds`.
"""

from __future__ import annotations

from typing import Any

from msgspec import field, to_builtins

from podwire.objects.core import (
    Affinity,
    Condition,
    ContainerPort,
    ContainerStateTerminated,
    IpEntry,
    ResourceRequirements,
    Toleration,
    TopologySpreadConstraint,
)
from podwire.objects.meta import Kind, Object, View
from podwire.objects.quantity import Quantity

Quantities = dict[str, Quantity]


class Container(View):
    name: str = ""
    image: str = ""
    ports: list[ContainerPort] = []
    resources: ResourceRequirements = ResourceRequirements()
    restart_policy: str = ""


class PodSpec(View):
    containers: list[Container] = []
    init_containers: list[Container] = []
    node_name: str = ""
    node_selector: dict[str, str] = {}
    affinity: Affinity | None = None
    tolerations: list[Toleration] = []
    topology_spread_constraints: list[TopologySpreadConstraint] = []
    scheduler_name: str = "default-scheduler"
    scheduling_gates: list[dict[str, str]] = []
    restart_policy: str = "Always"
    host_network: bool = False
    hostname: str = ""
    subdomain: str = ""
    overhead: Quantities = {}
    priority: int = 0
    termination_grace_period_seconds: int = 30


class ContainerState(View):
    terminated: ContainerStateTerminated | None = None


class ContainerStatus(View):
    name: str = ""
    restart_count: int = 0
    state: ContainerState = ContainerState()


class PodStatus(View):
    phase: str = "Pending"
    reason: str = ""
    message: str = ""
    pod_ips: list[IpEntry] = field(default_factory=list, name="podIPs")
    conditions: list[Condition] = []
    container_statuses: list[ContainerStatus] = []
    init_container_statuses: list[ContainerStatus] = []
    start_time: str | None = None


class Pod(Object):
    spec: PodSpec = PodSpec()
    status: PodStatus = PodStatus()

    @property
    def ready(self) -> bool:
        return any(c.type == "Ready" and c.status == "True" for c in self.status.conditions)

    @property
    def finished(self) -> bool:
        return self.status.phase in ("Succeeded", "Failed")


POD = Kind("", "v1", "Pod", "pods", True, Pod)
# Answers to pod writes: only the metadata is read.
POD_WRITE: Kind[Object] = Kind("", "v1", "Pod", "pods", True, Object)


def raw(view: View) -> Any:
    """The wire form of a view, for fields that are written whole (owner references, conditions)."""
    return to_builtins(view)
