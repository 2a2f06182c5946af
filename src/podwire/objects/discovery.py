"""discovery.k8s.io and the networking kinds about Service addresses.

An absent condition of an endpoint means: ready and serving are true, terminating is false
(discovery/v1 EndpointConditions).
"""

from __future__ import annotations

from podwire.objects.core import Condition, ObjectReference
from podwire.objects.meta import Object, View

SERVICE_NAME_LABEL = "kubernetes.io/service-name"
MANAGED_BY_LABEL = "endpointslice.kubernetes.io/managed-by"
IP_FAMILY_LABEL = "ipaddress.kubernetes.io/ip-family"
IP_MANAGED_BY_LABEL = "ipaddress.kubernetes.io/managed-by"
IP_ALLOCATOR = "ipallocator.k8s.io"
"""Who the API server's allocator is in `IP_MANAGED_BY_LABEL`."""


class EndpointConditions(View):
    ready: bool | None = None
    serving: bool | None = None
    terminating: bool | None = None


class HintName(View):
    """ForZone and ForNode."""

    name: str


class EndpointHints(View):
    for_zones: list[HintName] = []
    for_nodes: list[HintName] = []


class Endpoint(View):
    addresses: list[str] = []
    conditions: EndpointConditions = EndpointConditions()
    hostname: str | None = None
    node_name: str | None = None
    zone: str | None = None
    hints: EndpointHints | None = None
    target_ref: ObjectReference | None = None

    @property
    def ready(self) -> bool:
        return self.conditions.ready is not False

    @property
    def serving(self) -> bool:
        """Absent, it follows `ready`."""
        serving = self.conditions.serving
        return self.ready if serving is None else serving

    @property
    def terminating(self) -> bool:
        return self.conditions.terminating is True


class SlicePort(View):
    """EndpointPort of discovery/v1; `port` None means any port, which no proxy can serve."""

    name: str = ""
    protocol: str = "TCP"
    port: int | None = None
    app_protocol: str | None = None


class EndpointSlice(Object):
    address_type: str = "IPv4"
    endpoints: list[Endpoint] = []
    ports: list[SlicePort] = []

    @property
    def service_name(self) -> str:
        return self.metadata.labels.get(SERVICE_NAME_LABEL, "")


class ServiceCidrSpec(View):
    cidrs: list[str] = []


class ServiceCidrStatus(View):
    conditions: list[Condition] = []


class ServiceCidr(Object):
    """networking.k8s.io/v1 ServiceCIDR (KEP-1880)."""

    spec: ServiceCidrSpec = ServiceCidrSpec()
    status: ServiceCidrStatus = ServiceCidrStatus()


class ParentReference(View):
    group: str = ""
    resource: str = ""
    namespace: str = ""
    name: str = ""


class IpAddressSpec(View):
    parent_ref: ParentReference = ParentReference()


class IpAddress(Object):
    """networking.k8s.io/v1 IPAddress: named by the address, canonical form."""

    spec: IpAddressSpec = IpAddressSpec()
