"""The kinds podwire's own clients speak of, each with its place in the API and its view."""

from __future__ import annotations

from podwire.objects import apps, core, discovery, policy
from podwire.objects.meta import Kind

POD = Kind("", "v1", "Pod", "pods", True, core.Pod)
PEER_POD = Kind("", "v1", "Pod", "pods", True, policy.PeerPod)
"""Pods, with what policies read of them."""
NODE = Kind("", "v1", "Node", "nodes", False, core.Node)
NAMESPACE = Kind("", "v1", "Namespace", "namespaces", False, core.Namespace)
SERVICE = Kind("", "v1", "Service", "services", True, core.Service)
ENDPOINTS = Kind("", "v1", "Endpoints", "endpoints", True, core.Endpoints)
ENDPOINT_SLICE = Kind(
    "discovery.k8s.io", "v1", "EndpointSlice", "endpointslices", True, discovery.EndpointSlice
)
SERVICE_CIDR = Kind(
    "networking.k8s.io", "v1", "ServiceCIDR", "servicecidrs", False, discovery.ServiceCidr
)
IP_ADDRESS = Kind("networking.k8s.io", "v1", "IPAddress", "ipaddresses", False, discovery.IpAddress)
CONFIG_MAP = Kind("", "v1", "ConfigMap", "configmaps", True, core.ConfigMap)
SECRET = Kind("", "v1", "Secret", "secrets", True, core.Secret)
SERVICE_ACCOUNT = Kind("", "v1", "ServiceAccount", "serviceaccounts", True, core.ServiceAccount)
EVENT = Kind("", "v1", "Event", "events", True, core.Event)
DEPLOYMENT = Kind("apps", "v1", "Deployment", "deployments", True, apps.Deployment)
REPLICA_SET = Kind("apps", "v1", "ReplicaSet", "replicasets", True, apps.ReplicaSet)
STATEFUL_SET = Kind("apps", "v1", "StatefulSet", "statefulsets", True, apps.StatefulSet)
DAEMON_SET = Kind("apps", "v1", "DaemonSet", "daemonsets", True, apps.DaemonSet)
CONTROLLER_REVISION = Kind(
    "apps", "v1", "ControllerRevision", "controllerrevisions", True, apps.ControllerRevision
)
JOB = Kind("batch", "v1", "Job", "jobs", True, apps.Job)
CRON_JOB = Kind("batch", "v1", "CronJob", "cronjobs", True, apps.CronJob)
DISRUPTION_BUDGET = Kind(
    "policy", "v1", "PodDisruptionBudget", "poddisruptionbudgets", True, apps.DisruptionBudget
)
LEASE = Kind("coordination.k8s.io", "v1", "Lease", "leases", True, apps.Lease)
NETWORK_POLICY = Kind(
    "networking.k8s.io", "v1", "NetworkPolicy", "networkpolicies", True, policy.NetworkPolicy
)
_POLICY = "policy.networking.k8s.io"
CLUSTER_NETWORK_POLICY = Kind(
    _POLICY,
    "v1alpha2",
    "ClusterNetworkPolicy",
    "clusternetworkpolicies",
    False,
    policy.ClusterPolicy,
)
ADMIN_NETWORK_POLICY = Kind(
    _POLICY, "v1alpha1", "AdminNetworkPolicy", "adminnetworkpolicies", False, policy.ClusterPolicy
)
BASELINE_ADMIN_NETWORK_POLICY = Kind(
    _POLICY,
    "v1alpha1",
    "BaselineAdminNetworkPolicy",
    "baselineadminnetworkpolicies",
    False,
    policy.ClusterPolicy,
)
