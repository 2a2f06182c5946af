"""Views that only controllers need: a slim Pod, and the statuses controllers write.

The pod view names what scheduling and counting read and nothing else, because every pod change in
the cluster is decoded into it.
"""

from __future__ import annotations

from typing import Any

from msgspec import field, to_builtins

from podwire.objects import apps
from podwire.objects.core import (
    Affinity,
    Condition,
    ContainerPort,
    ContainerStateTerminated,
    Node,
    ResourceRequirements,
    Toleration,
    TopologySpreadConstraint,
)
from podwire.objects.meta import Kind, LabelSelector, Object, View

Quantities = dict[str, str | int | float]


class Container(View):
    name: str = ""
    image: str = ""
    ports: list[ContainerPort] = []
    resources: ResourceRequirements = ResourceRequirements()
    restart_policy: str = ""


class SpreadConstraint(TopologySpreadConstraint):
    min_domains: int | None = None
    node_affinity_policy: str = "Honor"
    node_taints_policy: str = "Ignore"
    match_label_keys: list[str] = []


class PodSpec(View):
    containers: list[Container] = []
    init_containers: list[Container] = []
    node_name: str = ""
    node_selector: dict[str, str] = {}
    affinity: Affinity | None = None
    tolerations: list[Toleration] = []
    topology_spread_constraints: list[SpreadConstraint] = []
    scheduler_name: str = "default-scheduler"
    scheduling_gates: list[dict[str, str]] = []
    restart_policy: str = "Always"
    host_network: bool = False
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
    conditions: list[Condition] = []
    container_statuses: list[ContainerStatus] = []
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


class TimedCondition(Condition):
    """DeploymentCondition and JobCondition: they also say when they were last looked at."""

    last_update_time: str | None = None
    last_probe_time: str | None = None


class DeploymentStatus(View):
    observed_generation: int = 0
    replicas: int = 0
    updated_replicas: int = 0
    ready_replicas: int = 0
    available_replicas: int = 0
    unavailable_replicas: int = 0
    collision_count: int = 0
    conditions: list[TimedCondition] = []


class Deployment(Object):
    spec: apps.DeploymentSpec = apps.DeploymentSpec()
    status: DeploymentStatus = DeploymentStatus()


class ReplicaSetStatus(View):
    observed_generation: int = 0
    replicas: int = 0
    fully_labeled_replicas: int = 0
    ready_replicas: int = 0
    available_replicas: int = 0
    conditions: list[Condition] = []


class ReplicaSet(Object):
    spec: apps.ReplicaSetSpec = apps.ReplicaSetSpec()
    status: ReplicaSetStatus = ReplicaSetStatus()


class StatefulSetStatus(apps.StatefulSetStatus):
    collision_count: int = 0


class StatefulSet(Object):
    spec: apps.StatefulSetSpec = apps.StatefulSetSpec()
    status: StatefulSetStatus = StatefulSetStatus()


class DaemonSetStatus(apps.DaemonSetStatus):
    collision_count: int = 0


class DaemonSet(Object):
    spec: apps.DaemonSetSpec = apps.DaemonSetSpec()
    status: DaemonSetStatus = DaemonSetStatus()


class Uncounted(View):
    """UncountedTerminatedPods: uids already finished but not yet in the counters."""

    succeeded: list[str] = []
    failed: list[str] = []


class JobStatus(View):
    active: int = 0
    ready: int = 0
    terminating: int = 0
    succeeded: int = 0
    failed: int = 0
    start_time: str | None = None
    completion_time: str | None = None
    completed_indexes: str = ""
    uncounted_terminated_pods: Uncounted | None = None
    conditions: list[TimedCondition] = []


class Job(Object):
    spec: apps.JobSpec = apps.JobSpec()
    status: JobStatus = JobStatus()

    @property
    def finished(self) -> bool:
        return self.outcome != ""

    @property
    def outcome(self) -> str:
        """Complete, Failed or "" while it runs."""
        for c in self.status.conditions:
            if c.type in ("Complete", "Failed") and c.status == "True":
                return c.type
        return ""


class DisruptionBudgetSpec(View):
    min_available: int | str | None = None
    max_unavailable: int | str | None = None
    selector: LabelSelector | None = None


class DisruptionBudgetStatus(View):
    observed_generation: int = 0
    disruptions_allowed: int = 0
    current_healthy: int = 0
    desired_healthy: int = 0
    expected_pods: int = 0
    conditions: list[Condition] = []


class DisruptionBudget(Object):
    spec: DisruptionBudgetSpec = DisruptionBudgetSpec()
    status: DisruptionBudgetStatus = DisruptionBudgetStatus()


class ConfigMap(Object):
    data: dict[str, str] = field(default_factory=dict)


POD = Kind("", "v1", "Pod", "pods", True, Pod)
NODE = Kind("", "v1", "Node", "nodes", False, Node)
CONFIG_MAP = Kind("", "v1", "ConfigMap", "configmaps", True, ConfigMap)
DEPLOYMENT = Kind("apps", "v1", "Deployment", "deployments", True, Deployment)
REPLICA_SET = Kind("apps", "v1", "ReplicaSet", "replicasets", True, ReplicaSet)
STATEFUL_SET = Kind("apps", "v1", "StatefulSet", "statefulsets", True, StatefulSet)
DAEMON_SET = Kind("apps", "v1", "DaemonSet", "daemonsets", True, DaemonSet)
JOB = Kind("batch", "v1", "Job", "jobs", True, Job)
DISRUPTION_BUDGET = Kind(
    "policy", "v1", "PodDisruptionBudget", "poddisruptionbudgets", True, DisruptionBudget
)
# Answers to pod writes: only the metadata is read.
POD_WRITE: Kind[Object] = Kind("", "v1", "Pod", "pods", True, Object)


def raw(view: View) -> Any:
    """The wire form of a view, for fields that are written whole (owner references, conditions)."""
    return to_builtins(view)
