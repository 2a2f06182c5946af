"""Every kind Kubernetes 1.33 serves, one row each: data only, read by `registry`.

A row: group, version, kind, plural, short names, scope, subresources, categories. Virtual rows
(reviews) are answered, never stored. `storage` joins two API versions on one store.
"""

from __future__ import annotations

from typing import NamedTuple

ALL = ("create", "delete", "deletecollection", "get", "list", "patch", "update", "watch")
CREATE = ("create",)
_ALL = ("all",)
_API = ("api-extensions",)
S = ("status",)
SCALED = ("status", "scale")


class Row(NamedTuple):
    group: str
    version: str
    kind: str
    plural: str
    short: tuple[str, ...] = ()
    namespaced: bool = True
    subresources: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    verbs: tuple[str, ...] = ALL
    storage: str = ""


_POD_SUBRESOURCES = (
    "attach",
    "binding",
    "ephemeralcontainers",
    "eviction",
    "exec",
    "log",
    "portforward",
    "status",
)
_ADMISSION = "admissionregistration.k8s.io"
_AUTHZ = "authorization.k8s.io"
_RBAC = "rbac.authorization.k8s.io"
_STORAGE = "storage.k8s.io"

ROWS: tuple[Row, ...] = (
    Row("", "v1", "Binding", "bindings", verbs=CREATE),
    Row("", "v1", "ComponentStatus", "componentstatuses", ("cs",), False, verbs=("get", "list")),
    Row("", "v1", "ConfigMap", "configmaps", ("cm",)),
    Row("", "v1", "Endpoints", "endpoints", ("ep",)),
    Row("", "v1", "Event", "events", ("ev",), storage="events"),
    Row("", "v1", "LimitRange", "limitranges", ("limits",)),
    Row("", "v1", "Namespace", "namespaces", ("ns",), False, ("finalize", "status")),
    Row("", "v1", "Node", "nodes", ("no",), False, ("proxy", "status")),
    Row("", "v1", "PersistentVolume", "persistentvolumes", ("pv",), False, S),
    Row("", "v1", "PersistentVolumeClaim", "persistentvolumeclaims", ("pvc",), True, S),
    Row("", "v1", "Pod", "pods", ("po",), True, _POD_SUBRESOURCES, _ALL),
    Row("", "v1", "PodTemplate", "podtemplates"),
    Row(
        "", "v1", "ReplicationController", "replicationcontrollers", ("rc",), True, SCALED, _ALL
    ),
    Row("", "v1", "ResourceQuota", "resourcequotas", ("quota",), True, S),
    Row("", "v1", "Secret", "secrets"),
    Row("", "v1", "Service", "services", ("svc",), True, S, _ALL),
    Row("", "v1", "ServiceAccount", "serviceaccounts", ("sa",), True, ("token",)),
    Row("apps", "v1", "ControllerRevision", "controllerrevisions"),
    Row("apps", "v1", "DaemonSet", "daemonsets", ("ds",), True, S, _ALL),
    Row("apps", "v1", "Deployment", "deployments", ("deploy",), True, SCALED, _ALL),
    Row("apps", "v1", "ReplicaSet", "replicasets", ("rs",), True, SCALED, _ALL),
    Row("apps", "v1", "StatefulSet", "statefulsets", ("sts",), True, SCALED, _ALL),
    Row("batch", "v1", "CronJob", "cronjobs", ("cj",), True, S, _ALL),
    Row("batch", "v1", "Job", "jobs", (), True, S, _ALL),
    Row(
        "autoscaling", "v2", "HorizontalPodAutoscaler", "horizontalpodautoscalers", ("hpa",),
        True, S, _ALL,
    ),
    Row(
        "autoscaling", "v1", "HorizontalPodAutoscaler", "horizontalpodautoscalers", ("hpa",),
        True, S, _ALL,
    ),
    Row("networking.k8s.io", "v1", "Ingress", "ingresses", ("ing",), True, S),
    Row("networking.k8s.io", "v1", "IngressClass", "ingressclasses", (), False),
    Row("networking.k8s.io", "v1", "IPAddress", "ipaddresses", ("ip",), False),
    Row("networking.k8s.io", "v1", "NetworkPolicy", "networkpolicies", ("netpol",)),
    Row("networking.k8s.io", "v1", "ServiceCIDR", "servicecidrs", (), False, S),
    Row("discovery.k8s.io", "v1", "EndpointSlice", "endpointslices"),
    Row("policy", "v1", "PodDisruptionBudget", "poddisruptionbudgets", ("pdb",), True, S),
    Row(_RBAC, "v1", "ClusterRole", "clusterroles", (), False),
    Row(_RBAC, "v1", "ClusterRoleBinding", "clusterrolebindings", (), False),
    Row(_RBAC, "v1", "Role", "roles"),
    Row(_RBAC, "v1", "RoleBinding", "rolebindings"),
    Row(_STORAGE, "v1", "CSIDriver", "csidrivers", (), False),
    Row(_STORAGE, "v1", "CSINode", "csinodes", (), False),
    Row(_STORAGE, "v1", "CSIStorageCapacity", "csistoragecapacities"),
    Row(_STORAGE, "v1", "StorageClass", "storageclasses", ("sc",), False),
    Row(_STORAGE, "v1", "VolumeAttachment", "volumeattachments", (), False, S),
    Row("coordination.k8s.io", "v1", "Lease", "leases"),
    Row("events.k8s.io", "v1", "Event", "events", ("ev",), storage="events"),
    Row(
        "apiextensions.k8s.io", "v1", "CustomResourceDefinition", "customresourcedefinitions",
        ("crd", "crds"), False, S, _API,
    ),
    Row(
        "apiregistration.k8s.io", "v1", "APIService", "apiservices", (), False, S, _API
    ),
    Row("scheduling.k8s.io", "v1", "PriorityClass", "priorityclasses", ("pc",), False),
    Row("node.k8s.io", "v1", "RuntimeClass", "runtimeclasses", (), False),
    Row(
        _ADMISSION, "v1", "MutatingWebhookConfiguration", "mutatingwebhookconfigurations", (),
        False, (), _API,
    ),
    Row(
        _ADMISSION, "v1", "ValidatingWebhookConfiguration", "validatingwebhookconfigurations", (),
        False, (), _API,
    ),
    Row(
        _ADMISSION, "v1", "ValidatingAdmissionPolicy", "validatingadmissionpolicies", (),
        False, S, _API,
    ),
    Row(
        _ADMISSION, "v1", "ValidatingAdmissionPolicyBinding",
        "validatingadmissionpolicybindings", (), False, (), _API,
    ),
    Row(
        "certificates.k8s.io", "v1", "CertificateSigningRequest", "certificatesigningrequests",
        ("csr",), False, ("approval", "status"),
    ),
    Row(
        "flowcontrol.apiserver.k8s.io", "v1", "FlowSchema", "flowschemas", (), False, S
    ),
    Row(
        "flowcontrol.apiserver.k8s.io", "v1", "PriorityLevelConfiguration",
        "prioritylevelconfigurations", (), False, S,
    ),
    Row("authentication.k8s.io", "v1", "SelfSubjectReview", "selfsubjectreviews", (), False,
        verbs=CREATE),
    Row("authentication.k8s.io", "v1", "TokenReview", "tokenreviews", (), False, verbs=CREATE),
    Row(_AUTHZ, "v1", "LocalSubjectAccessReview", "localsubjectaccessreviews", verbs=CREATE),
    Row(_AUTHZ, "v1", "SelfSubjectAccessReview", "selfsubjectaccessreviews", (), False,
        verbs=CREATE),
    Row(_AUTHZ, "v1", "SelfSubjectRulesReview", "selfsubjectrulesreviews", (), False,
        verbs=CREATE),
    Row(_AUTHZ, "v1", "SubjectAccessReview", "subjectaccessreviews", (), False, verbs=CREATE),
)  # fmt: skip

GROUP_ORDER = (
    "",
    "apiregistration.k8s.io",
    "apps",
    "events.k8s.io",
    "authentication.k8s.io",
    _AUTHZ,
    "autoscaling",
    "batch",
    "certificates.k8s.io",
    "networking.k8s.io",
    "policy",
    _RBAC,
    _STORAGE,
    _ADMISSION,
    "apiextensions.k8s.io",
    "scheduling.k8s.io",
    "coordination.k8s.io",
    "node.k8s.io",
    "discovery.k8s.io",
    "flowcontrol.apiserver.k8s.io",
)

DEPRECATED: dict[str, str] = {
    "componentstatuses": "v1 ComponentStatus is deprecated in v1.19+",
    "endpoints": "v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice",
}
"""What every answer about a kind warns of (KEP-1693, KEP-4974)."""

SELECTABLE: dict[str, tuple[str, ...]] = {
    "pods": (
        "spec.nodeName",
        "spec.restartPolicy",
        "spec.schedulerName",
        "spec.serviceAccountName",
        "spec.hostNetwork",
        "status.phase",
        "status.podIP",
        "status.podIPs",
        "status.nominatedNodeName",
    ),
    "events": (
        "involvedObject.kind",
        "involvedObject.namespace",
        "involvedObject.name",
        "involvedObject.uid",
        "involvedObject.apiVersion",
        "involvedObject.resourceVersion",
        "involvedObject.fieldPath",
        "reason",
        "reportingComponent",
        "source",
        "type",
    ),
    "namespaces": ("status.phase",),
    "nodes": ("spec.unschedulable",),
    "secrets": ("type",),
    "services": ("spec.clusterIP", "spec.type"),
    "apps/replicasets": ("status.replicas",),
    "replicationcontrollers": ("status.replicas",),
    "batch/jobs": ("status.successful",),
    "certificates.k8s.io/certificatesigningrequests": ("spec.signerName",),
    "storage.k8s.io/volumeattachments": ("spec.attacher", "spec.nodeName"),
}
"""Paths that field selectors read, by storage name, besides metadata.name and .namespace."""
