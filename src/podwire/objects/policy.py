"""NetworkPolicy (networking.k8s.io/v1) and the cluster-scoped policies of network-policy-api.

Lists may be null here: files on disk were not defaulted by an API server, and `null` and `[]` mean
the same in all of them but for selectors, where null is "absent" and `{}` is "all".
Source: k/k:staging/src/k8s.io/api/networking/v1/types.go and
network-policy-api:apis/{v1alpha1,v1alpha2}.
"""

from __future__ import annotations

from typing import Any

from msgspec import field

from podwire.objects.core import Condition
from podwire.objects.meta import LabelSelector, Object, View

# --- networking.k8s.io/v1 -----------------------------------------------------------------------


class IpBlock(View):
    cidr: str = ""
    excepted: list[str] | None = field(default=None, name="except")


class NetworkPolicyPeer(View):
    pod_selector: LabelSelector | None = None
    namespace_selector: LabelSelector | None = None
    ip_block: IpBlock | None = None


class NetworkPolicyPort(View):
    protocol: str | None = None
    port: int | str | None = None
    end_port: int | None = None


class NetworkPolicyRule(View):
    """NetworkPolicyIngressRule and NetworkPolicyEgressRule: one has `from`, the other `to`."""

    ports: list[NetworkPolicyPort] | None = None
    sources: list[NetworkPolicyPeer] | None = field(default=None, name="from")
    destinations: list[NetworkPolicyPeer] | None = field(default=None, name="to")


class NetworkPolicySpec(View):
    pod_selector: LabelSelector | None = None
    policy_types: list[str] | None = None
    ingress: list[NetworkPolicyRule | None] | None = None
    egress: list[NetworkPolicyRule | None] | None = None


class NetworkPolicy(Object):
    spec: NetworkPolicySpec = NetworkPolicySpec()


# --- policy.networking.k8s.io -------------------------------------------------------------------


class NamespacedPods(View):
    """Both selectors are required in v1alpha1, `podSelector` only in v1alpha2."""

    namespace_selector: LabelSelector | None = None
    pod_selector: LabelSelector | None = None


class ClusterPolicySubject(View):
    namespaces: LabelSelector | None = None
    pods: NamespacedPods | None = None


class ClusterPolicyPeer(View):
    """A peer of either version; what a newer API adds stays visible as `unknown`."""

    namespaces: LabelSelector | None = None
    pods: NamespacedPods | None = None
    nodes: LabelSelector | None = None
    networks: list[str] | None = None
    domain_names: list[str] | None = None


class PortRange(View):
    start: int = 0
    end: int = 0


class PortNumber(View):
    """v1alpha1 AdminNetworkPolicyPort.portNumber."""

    protocol: str = "TCP"
    port: int = 0


class ProtocolPortRange(PortRange):
    """v1alpha1 AdminNetworkPolicyPort.portRange."""

    protocol: str = "TCP"


class AdminPort(View):
    """v1alpha1 AdminNetworkPolicyPort: exactly one is set."""

    port_number: PortNumber | None = None
    named_port: str | None = None
    port_range: ProtocolPortRange | None = None


class DestinationPort(View):
    """v1alpha2: exactly one is set."""

    number: int | None = None
    range: PortRange | None = None


class ProtocolPorts(View):
    destination_port: DestinationPort | None = None


class ClusterPolicyProtocol(View):
    """v1alpha2 ClusterNetworkPolicyProtocol: exactly one is set."""

    tcp: ProtocolPorts | None = None
    udp: ProtocolPorts | None = None
    sctp: ProtocolPorts | None = None
    destination_named_port: str | None = None


class ClusterPolicyRule(View):
    """An ingress or egress rule of either version; `ports` is v1alpha1, `protocols` v1alpha2."""

    name: str = ""
    action: str = ""
    sources: list[dict[str, Any]] | None = field(default=None, name="from")
    destinations: list[dict[str, Any]] | None = field(default=None, name="to")
    ports: list[AdminPort] | None = None
    protocols: list[dict[str, Any]] | None = None


class ClusterPolicySpec(View):
    """`tier` and `priority` are v1alpha2's; AdminNetworkPolicy has a priority only."""

    tier: str = ""
    priority: int = 0
    subject: ClusterPolicySubject = ClusterPolicySubject()
    ingress: list[ClusterPolicyRule] | None = None
    egress: list[ClusterPolicyRule] | None = None


class ClusterPolicyStatus(View):
    conditions: list[Condition] = []


class ClusterPolicy(Object):
    """ClusterNetworkPolicy, AdminNetworkPolicy or BaselineAdminNetworkPolicy."""

    spec: ClusterPolicySpec = ClusterPolicySpec()
    status: ClusterPolicyStatus = ClusterPolicyStatus()


# --- what policies read of a Pod ------------------------------------------------------------------


class PeerPort(View):
    container_port: int
    name: str = ""
    protocol: str = "TCP"


class PeerContainer(View):
    ports: list[PeerPort] = []
    restart_policy: str = ""


class PeerPodSpec(View):
    containers: list[PeerContainer] = []
    init_containers: list[PeerContainer] = []
    node_name: str = ""
    host_network: bool = False


class PeerPodIp(View):
    ip: str = ""


class PeerPodStatus(View):
    phase: str = ""
    pod_ip: str = field(default="", name="podIP")
    pod_ips: list[PeerPodIp] = field(default=[], name="podIPs")


class PeerPod(Object):
    """A Pod as every node needs it of every other: labels, addresses, named ports.

    Decoding it costs a fraction of a whole Pod, and each node hears of each pod's changes.
    """

    spec: PeerPodSpec = PeerPodSpec()
    status: PeerPodStatus = PeerPodStatus()

    @property
    def finished(self) -> bool:
        """Succeeded or Failed: its address is released and no rule may select it any more."""
        return self.status.phase in ("Succeeded", "Failed")
