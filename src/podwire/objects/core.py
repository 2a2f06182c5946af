"""core/v1 views: pods, nodes, namespaces, services, events and what pods mount."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

from msgspec import field

from podwire.objects.meta import LabelSelector, Object, Requirement, View

# --- pods -------------------------------------------------------------------------------------


class ContainerPort(View):
    container_port: int
    name: str = ""
    protocol: str = "TCP"
    host_port: int = 0
    host_ip: str = field(default="", name="hostIP")


class ObjectFieldSelector(View):
    field_path: str
    api_version: str = "v1"


class KeySelector(View):
    """ConfigMapKeySelector and SecretKeySelector."""

    name: str = ""
    key: str = ""
    optional: bool = False


class ResourceFieldSelector(View):
    resource: str
    container_name: str = ""
    divisor: str | int | None = None


class EnvVarSource(View):
    field_ref: ObjectFieldSelector | None = None
    config_map_key_ref: KeySelector | None = None
    secret_key_ref: KeySelector | None = None
    resource_field_ref: ResourceFieldSelector | None = None


class EnvVar(View):
    name: str
    value: str = ""
    value_from: EnvVarSource | None = None


class LocalRef(View):
    """A reference by name within the namespace; `optional` where the API has it."""

    name: str = ""
    optional: bool = False


class EnvFromSource(View):
    prefix: str = ""
    config_map_ref: LocalRef | None = None
    secret_ref: LocalRef | None = None


class HttpHeader(View):
    name: str
    value: str = ""


class HttpGetAction(View):
    port: int | str
    path: str = "/"
    host: str = ""
    scheme: str = "HTTP"
    http_headers: list[HttpHeader] = []


class TcpSocketAction(View):
    port: int | str
    host: str = ""


class GrpcAction(View):
    port: int
    service: str = ""


class ExecAction(View):
    command: list[str] = []


class SleepAction(View):
    seconds: int


class Probe(View):
    http_get: HttpGetAction | None = None
    tcp_socket: TcpSocketAction | None = None
    grpc: GrpcAction | None = None
    exec: ExecAction | None = None
    initial_delay_seconds: int = 0
    timeout_seconds: int = 1
    period_seconds: int = 10
    success_threshold: int = 1
    failure_threshold: int = 3
    termination_grace_period_seconds: int | None = None


class LifecycleHandler(View):
    exec: ExecAction | None = None
    http_get: HttpGetAction | None = None
    tcp_socket: TcpSocketAction | None = None
    sleep: SleepAction | None = None


class Lifecycle(View):
    post_start: LifecycleHandler | None = None
    pre_stop: LifecycleHandler | None = None


class VolumeMount(View):
    name: str
    mount_path: str
    read_only: bool = False
    sub_path: str = ""
    sub_path_expr: str = ""


class Capabilities(View):
    add: list[str] = []
    drop: list[str] = []


class SecurityContext(View):
    run_as_user: int | None = None
    run_as_group: int | None = None
    run_as_non_root: bool | None = None
    privileged: bool = False
    read_only_root_filesystem: bool = False
    allow_privilege_escalation: bool | None = None
    capabilities: Capabilities | None = None


class Sysctl(View):
    name: str
    value: str


class PodSecurityContext(View):
    run_as_user: int | None = None
    run_as_group: int | None = None
    run_as_non_root: bool | None = None
    fs_group: int | None = None
    supplemental_groups: list[int] = []
    sysctls: list[Sysctl] = []


class ResourceRequirements(View):
    requests: dict[str, str | int | float] = {}
    limits: dict[str, str | int | float] = {}


class Container(View):
    name: str
    image: str = ""
    image_pull_policy: str = ""
    command: list[str] = []
    args: list[str] = []
    working_dir: str = ""
    ports: list[ContainerPort] = []
    env: list[EnvVar] = []
    env_from: list[EnvFromSource] = []
    volume_mounts: list[VolumeMount] = []
    resources: ResourceRequirements = ResourceRequirements()
    liveness_probe: Probe | None = None
    readiness_probe: Probe | None = None
    startup_probe: Probe | None = None
    lifecycle: Lifecycle | None = None
    security_context: SecurityContext | None = None
    restart_policy: str = ""
    stdin: bool = False
    tty: bool = False
    termination_message_path: str = "/dev/termination-log"


class Toleration(View):
    key: str = ""
    operator: str = "Equal"
    value: str = ""
    effect: str = ""
    toleration_seconds: int | None = None


class NodeSelectorTerm(View):
    match_expressions: list[Requirement] = []
    match_fields: list[Requirement] = []


class NodeSelector(View):
    node_selector_terms: list[NodeSelectorTerm] = []


class PreferredSchedulingTerm(View):
    weight: int
    preference: NodeSelectorTerm


class NodeAffinity(View):
    required_during_scheduling_ignored_during_execution: NodeSelector | None = None
    preferred_during_scheduling_ignored_during_execution: list[PreferredSchedulingTerm] = []


class PodAffinityTerm(View):
    topology_key: str
    label_selector: LabelSelector | None = None
    namespaces: list[str] = []
    namespace_selector: LabelSelector | None = None


class WeightedPodAffinityTerm(View):
    weight: int
    pod_affinity_term: PodAffinityTerm


class PodAffinity(View):
    """PodAffinity and PodAntiAffinity."""

    required_during_scheduling_ignored_during_execution: list[PodAffinityTerm] = []
    preferred_during_scheduling_ignored_during_execution: list[WeightedPodAffinityTerm] = []


class Affinity(View):
    node_affinity: NodeAffinity | None = None
    pod_affinity: PodAffinity | None = None
    pod_anti_affinity: PodAffinity | None = None


class TopologySpreadConstraint(View):
    max_skew: int
    topology_key: str
    when_unsatisfiable: str
    label_selector: LabelSelector | None = None
    min_domains: int | None = None
    node_affinity_policy: str = "Honor"
    node_taints_policy: str = "Ignore"
    match_label_keys: list[str] = []


class HostAlias(View):
    ip: str
    hostnames: list[str] = []


class DnsOption(View):
    name: str = ""
    value: str | None = None


class PodDnsConfig(View):
    nameservers: list[str] = []
    searches: list[str] = []
    options: list[DnsOption] = []


class Volume(View):
    """A pod's volume; the source stays a raw mapping (`{"emptyDir": {}}` without the name)."""

    name: str
    empty_dir: dict[str, Any] | None = None
    config_map: dict[str, Any] | None = None
    secret: dict[str, Any] | None = None
    projected: dict[str, Any] | None = None
    downward_api: dict[str, Any] | None = field(default=None, name="downwardAPI")
    host_path: dict[str, Any] | None = None
    persistent_volume_claim: dict[str, Any] | None = None


class PodOs(View):
    name: str = ""


class PodSpec(View):
    containers: list[Container] = []
    init_containers: list[Container] = []
    volumes: list[Volume] = []
    node_name: str = ""
    node_selector: dict[str, str] = {}
    affinity: Affinity | None = None
    tolerations: list[Toleration] = []
    topology_spread_constraints: list[TopologySpreadConstraint] = []
    service_account_name: str = ""
    automount_service_account_token: bool | None = None
    scheduler_name: str = "default-scheduler"
    restart_policy: str = "Always"
    termination_grace_period_seconds: int = 30
    active_deadline_seconds: int | None = None
    host_network: bool = False
    share_process_namespace: bool = False
    hostname: str = ""
    hostname_override: str | None = None
    subdomain: str = ""
    set_hostname_as_fqdn: bool = field(default=False, name="setHostnameAsFQDN")
    host_aliases: list[HostAlias] = []
    dns_policy: str = "ClusterFirst"
    dns_config: PodDnsConfig | None = None
    enable_service_links: bool = True
    security_context: PodSecurityContext | None = None
    readiness_gates: list[dict[str, str]] = []
    priority: int = 0
    overhead: dict[str, str | int | float] = {}
    os: PodOs | None = None


class Condition(View):
    """PodCondition, NodeCondition, DeploymentCondition...: the common part."""

    type: str
    status: str
    reason: str = ""
    message: str = ""
    last_transition_time: str | None = None


class ContainerStateTerminated(View):
    exit_code: int = 0
    signal: int = 0
    reason: str = ""
    message: str = ""
    started_at: str | None = None
    finished_at: str | None = None


class ContainerStateRunning(View):
    started_at: str | None = None


class ContainerStateWaiting(View):
    reason: str = ""
    message: str = ""


class ContainerState(View):
    waiting: ContainerStateWaiting | None = None
    running: ContainerStateRunning | None = None
    terminated: ContainerStateTerminated | None = None


class ContainerStatus(View):
    name: str
    image: str = ""
    ready: bool = False
    started: bool | None = None
    restart_count: int = 0
    container_id: str = field(default="", name="containerID")
    image_id: str = field(default="", name="imageID")
    state: ContainerState = ContainerState()
    last_state: ContainerState = ContainerState()


class IpEntry(View):
    """PodIP and HostIP."""

    ip: str


class PodStatus(View):
    phase: str = "Pending"
    reason: str = ""
    message: str = ""
    pod_ip: str = field(default="", name="podIP")
    pod_ips: list[IpEntry] = field(default_factory=list, name="podIPs")
    host_ip: str = field(default="", name="hostIP")
    conditions: list[Condition] = []
    container_statuses: list[ContainerStatus] = []
    init_container_statuses: list[ContainerStatus] = []
    start_time: str | None = None
    nominated_node_name: str = ""


class Pod(Object):
    spec: PodSpec = PodSpec()
    status: PodStatus = PodStatus()

    @property
    def ready(self) -> bool:
        return any(c.type == "Ready" and c.status == "True" for c in self.status.conditions)

    @property
    def finished(self) -> bool:
        """Succeeded or Failed: its address is released and no rule may select it any more."""
        return self.status.phase in ("Succeeded", "Failed")


# --- nodes and namespaces ---------------------------------------------------------------------


class Taint(View):
    key: str
    effect: str
    value: str = ""


class NodeSpec(View):
    pod_cidr: str = field(default="", name="podCIDR")
    pod_cidrs: list[str] = field(default_factory=list, name="podCIDRs")
    unschedulable: bool = False
    taints: list[Taint] = []


class NodeAddress(View):
    type: str
    address: str


class NodeStatus(View):
    addresses: list[NodeAddress] = []
    capacity: dict[str, str | int] = {}
    allocatable: dict[str, str | int] = {}
    conditions: list[Condition] = []


class Node(Object):
    spec: NodeSpec = NodeSpec()
    status: NodeStatus = NodeStatus()

    @property
    def internal_ips(self) -> list[str]:
        """What is no address is left out: the API takes any text (ValidateNode looks at none)."""
        found = [a.address for a in self.status.addresses if a.type == "InternalIP"]
        return [text for text in found if _is_address(text)]

    @property
    def ips(self) -> list[str]:
        """Internal and external ones, and whatever else is an address."""
        return [a.address for a in self.status.addresses if _is_address(a.address)]

    @property
    def ready(self) -> bool:
        return any(c.type == "Ready" and c.status == "True" for c in self.status.conditions)


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


class NamespaceSpec(View):
    finalizers: list[str] = []


class NamespaceStatus(View):
    phase: str = ""


class Namespace(Object):
    spec: NamespaceSpec = NamespaceSpec()
    status: NamespaceStatus = NamespaceStatus()


# --- services, configuration, events ------------------------------------------------------------


class ServicePort(View):
    port: int
    name: str = ""
    protocol: str = "TCP"
    target_port: int | str | None = None
    node_port: int = 0
    app_protocol: str = ""


class ClientIpConfig(View):
    timeout_seconds: int | None = None


class SessionAffinityConfig(View):
    client_ip: ClientIpConfig | None = field(default=None, name="clientIP")


class ServiceSpec(View):
    type: str = "ClusterIP"
    cluster_ip: str = field(default="", name="clusterIP")
    cluster_ips: list[str] = field(default_factory=list, name="clusterIPs")
    ports: list[ServicePort] = []
    selector: dict[str, str] = {}
    external_name: str = ""
    external_ips: list[str] = field(default_factory=list, name="externalIPs")
    ip_families: list[str] = []
    ip_family_policy: str = ""
    session_affinity: str = "None"
    session_affinity_config: SessionAffinityConfig | None = None
    internal_traffic_policy: str = "Cluster"
    external_traffic_policy: str = "Cluster"
    health_check_node_port: int = 0
    load_balancer_class: str | None = None
    load_balancer_ip: str = field(default="", name="loadBalancerIP")
    load_balancer_source_ranges: list[str] = []
    allocate_load_balancer_node_ports: bool | None = None
    publish_not_ready_addresses: bool = False
    traffic_distribution: str | None = None

    @property
    def headless(self) -> bool:
        return self.cluster_ip == "None"


class PortStatus(View):
    port: int
    protocol: str = "TCP"
    error: str | None = None


class LoadBalancerIngress(View):
    ip: str = ""
    hostname: str = ""
    ip_mode: str | None = None
    ports: list[PortStatus] = []


class LoadBalancerStatus(View):
    ingress: list[LoadBalancerIngress] = []


class ServiceStatus(View):
    load_balancer: LoadBalancerStatus = LoadBalancerStatus()
    conditions: list[Condition] = []


class Service(Object):
    spec: ServiceSpec = ServiceSpec()
    status: ServiceStatus = ServiceStatus()


class ObjectReference(View):
    kind: str = ""
    namespace: str = ""
    name: str = ""
    uid: str = ""


class EndpointAddress(View):
    ip: str = ""
    hostname: str = ""
    node_name: str | None = None
    target_ref: ObjectReference | None = None


class EndpointPort(View):
    port: int = 0
    name: str = ""
    protocol: str = "TCP"
    app_protocol: str | None = None


class EndpointSubset(View):
    addresses: list[EndpointAddress] = []
    not_ready_addresses: list[EndpointAddress] = []
    ports: list[EndpointPort] = []


class Endpoints(Object):
    """core/v1 Endpoints: written by hand for selector-less Services, then mirrored to slices."""

    subsets: list[EndpointSubset] = []


class ConfigMap(Object):
    data: dict[str, str] = {}
    binary_data: dict[str, str] = {}


class Secret(Object):
    type: str = "Opaque"
    data: dict[str, str] = {}


class ServiceAccount(Object):
    automount_service_account_token: bool | None = None


class Event(Object):
    involved_object: dict[str, Any] = {}
    reason: str = ""
    message: str = ""
    type: str = "Normal"
    count: int = 1
