"""What cluster DNS reads of Services, EndpointSlices, Namespaces and Pods, and nothing more.

A cluster has a hundred thousand endpoints and every replica keeps them all: a field that is not
here costs no memory. `gc=False`: these trees have no cycles, and the collector need not walk them.
"""

from __future__ import annotations

from msgspec import field

from podwire.objects.meta import Kind, Object, View

TRIGGER_TIME_ANNOTATION = "endpoints.kubernetes.io/last-change-trigger-time"
SERVICE_NAME_LABEL = "kubernetes.io/service-name"


class Port(View, gc=False):
    """A port of a Service or of a slice; a slice's `port` None means any."""

    name: str | None = ""
    protocol: str | None = "TCP"
    port: int | None = None


class ServiceSpec(View, gc=False):
    type: str = "ClusterIP"
    cluster_ip: str = field(default="", name="clusterIP")
    cluster_ips: tuple[str, ...] = field(default=(), name="clusterIPs")
    external_name: str = ""
    ports: tuple[Port, ...] = ()
    selector: dict[str, str] | None = None

    @property
    def headless(self) -> bool:
        return self.cluster_ip == "None"

    @property
    def addresses(self) -> tuple[str, ...]:
        """The cluster IPs, the primary family's first; none for a headless Service."""
        listed = self.cluster_ips or (self.cluster_ip,)
        return tuple(address for address in listed if address not in ("", "None"))


class Service(Object, gc=False):
    spec: ServiceSpec = ServiceSpec()


class Conditions(View, gc=False):
    ready: bool | None = None


class Target(View, gc=False):
    name: str = ""


class Endpoint(View, gc=False):
    addresses: tuple[str, ...] = ()
    conditions: Conditions = Conditions()
    hostname: str | None = None
    target_ref: Target | None = None

    @property
    def ready(self) -> bool:
        """Absent means ready (discovery/v1 EndpointConditions)."""
        return self.conditions.ready is not False


class Slice(Object, gc=False):
    address_type: str = "IPv4"
    endpoints: tuple[Endpoint, ...] = ()
    ports: tuple[Port, ...] | None = None

    @property
    def service_name(self) -> str:
        return self.metadata.labels.get(SERVICE_NAME_LABEL, "")


class Namespace(Object, gc=False):
    pass


class PodIp(View, gc=False):
    ip: str = ""


class PodStatus(View, gc=False):
    phase: str = ""
    pod_ip: str = field(default="", name="podIP")
    pod_ips: tuple[PodIp, ...] = field(default=(), name="podIPs")


class Pod(Object, gc=False):
    status: PodStatus = PodStatus()

    @property
    def addresses(self) -> frozenset[str]:
        """What the pod may be asked for by: nothing once it ends or has ended."""
        if self.metadata.deletion_timestamp or self.status.phase in ("Succeeded", "Failed"):
            return frozenset()
        listed = {pod_ip.ip for pod_ip in self.status.pod_ips} | {self.status.pod_ip}
        return frozenset(listed - {""})


SERVICE = Kind("", "v1", "Service", "services", True, Service)
SLICE = Kind("discovery.k8s.io", "v1", "EndpointSlice", "endpointslices", True, Slice)
NAMESPACE = Kind("", "v1", "Namespace", "namespaces", False, Namespace)
POD = Kind("", "v1", "Pod", "pods", True, Pod)
