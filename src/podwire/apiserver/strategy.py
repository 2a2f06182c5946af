"""What the server itself decides about an object, per kind: identity, status, generation.

Every kind goes through `begin_create` and `begin_update`; a kind with ways of its own has a row in
`_CREATE` (and nothing anywhere else). Source: pkg/registry/*/strategy.go, apiserver
pkg/registry/rest/{create,update,meta}.go of Kubernetes 1.33.
"""

from __future__ import annotations

import base64
import datetime as dt
import random
import uuid
from collections.abc import Callable
from typing import Any

from podwire.apiserver.registry import Resource
from podwire.objects.meta import JsonObject, format_time

_NAME_ALPHABET = "bcdfghjklmnpqrstvwxz2456789"
MAX_GENERATED_BASE = 58
CRD_CLEANUP = "customresourcecleanup.apiextensions.k8s.io"

COUNTED = frozenset(
    {
        "apps/daemonsets",
        "apps/deployments",
        "apps/replicasets",
        "apps/statefulsets",
        "batch/cronjobs",
        "batch/jobs",
        "discovery.k8s.io/endpointslices",
        "networking.k8s.io/ingresses",
        "networking.k8s.io/ingressclasses",
        "networking.k8s.io/networkpolicies",
        "policy/poddisruptionbudgets",
        "pods",
        "replicationcontrollers",
        "admissionregistration.k8s.io/mutatingwebhookconfigurations",
        "admissionregistration.k8s.io/validatingwebhookconfigurations",
        "admissionregistration.k8s.io/validatingadmissionpolicies",
        "admissionregistration.k8s.io/validatingadmissionpolicybindings",
        "apiextensions.k8s.io/customresourcedefinitions",
        "flowcontrol.apiserver.k8s.io/flowschemas",
        "flowcontrol.apiserver.k8s.io/prioritylevelconfigurations",
        "scheduling.k8s.io/priorityclasses",
    }
)
"""Storage names of built-in kinds that have a generation; custom kinds all do."""

_NEVER_BLIND = frozenset(
    {
        "admissionregistration.k8s.io/mutatingwebhookconfigurations",
        "admissionregistration.k8s.io/validatingwebhookconfigurations",
        "admissionregistration.k8s.io/validatingadmissionpolicies",
        "admissionregistration.k8s.io/validatingadmissionpolicybindings",
        "apiextensions.k8s.io/customresourcedefinitions",
        "apiregistration.k8s.io/apiservices",
        "coordination.k8s.io/leases",
        "node.k8s.io/runtimeclasses",
        "policy/poddisruptionbudgets",
        "storage.k8s.io/csidrivers",
        "storage.k8s.io/csinodes",
        "storage.k8s.io/volumeattachments",
    }
)
"""Built-in kinds that are updated only by who names the version it knows
(AllowUnconditionalUpdate)."""

_STATUS_FROM_CLIENT = frozenset({"nodes", "events", "networking.k8s.io/servicecidrs"})
"""Kinds whose status a create may carry."""

_STATUS_KEEPS_METADATA = frozenset({"pods", "nodes", "services", "namespaces", "persistentvolumes"})
"""Kinds whose labels and annotations a status update may change, too."""

_SLICES = "discovery.k8s.io/endpointslices"

_SYSTEM_META = (
    "uid",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "generation",
    "namespace",
)


def now_text() -> str:
    return format_time(dt.datetime.now(dt.UTC))


def generated_name(base: str) -> str:
    """`base` cut to 58 characters, then five random ones without vowels."""
    return base[:MAX_GENERATED_BASE] + "".join(random.choices(_NAME_ALPHABET, k=5))


def has_generation(resource: Resource) -> bool:
    return resource.is_custom or resource.storage in COUNTED


def may_update_blindly(resource: Resource) -> bool:
    """Whether an update may leave out the resourceVersion."""
    return not resource.is_custom and resource.storage not in _NEVER_BLIND


def begin_create(resource: Resource, obj: JsonObject, namespace: str) -> None:
    """Give a new object what only the server gives: uid, time, generation, an empty status."""
    meta = obj["metadata"]
    for key in ("deletionTimestamp", "deletionGracePeriodSeconds", "selfLink", "managedFields"):
        meta.pop(key, None)
    if namespace:
        meta["namespace"] = namespace
    else:
        meta.pop("namespace", None)
    meta["uid"] = str(uuid.uuid4())
    meta["creationTimestamp"] = now_text()
    meta.pop("generation", None)
    if has_generation(resource):
        meta["generation"] = 1
    if "status" in resource.subresources and resource.storage not in _STATUS_FROM_CLIENT:
        obj.pop("status", None)
    prepare = _CREATE.get(resource.storage)
    if prepare is not None:
        prepare(obj)


def begin_update(resource: Resource, new: JsonObject, old: JsonObject, subresource: str) -> None:
    """Keep of `old` what this kind of update may not change."""
    meta, old_meta = new["metadata"], old["metadata"]
    for key in ("selfLink", "managedFields"):
        meta.pop(key, None)
    for key in _SYSTEM_META:
        if key in old_meta:
            meta[key] = old_meta[key]
        else:
            meta.pop(key, None)
    if subresource == "status":
        _only_status(resource, new, old)
    elif "status" in resource.subresources and subresource != "binding":
        _keep(new, old, "status")
    if resource.storage == "services":
        default_ip_mode(new)
    if resource.storage == _SLICES and new.get("endpoints") != old.get("endpoints"):
        _drop_topology(new)
    if resource.storage == "secrets":
        _merge_string_data(new)
    if resource.storage == "namespaces":
        if not subresource:
            _keep(new.setdefault("spec", {}), old.get("spec") or {}, "finalizers")
        _label_namespace(new)


def _only_status(resource: Resource, new: JsonObject, old: JsonObject) -> None:
    for key in (set(new) | set(old)) - {"status", "metadata"}:
        _keep(new, old, key)
    meta = dict(old["metadata"])
    if resource.storage in _STATUS_KEEPS_METADATA:
        for key in ("labels", "annotations", "finalizers"):
            _keep(meta, new["metadata"], key)
    if "resourceVersion" in new["metadata"]:
        meta["resourceVersion"] = new["metadata"]["resourceVersion"]
    new["metadata"] = meta


def _keep(new: JsonObject, old: JsonObject, key: str) -> None:
    if key in old:
        new[key] = old[key]
    else:
        new.pop(key, None)


def same(new: JsonObject, old: JsonObject) -> bool:
    """Whether an update changes nothing: the object then keeps its resourceVersion."""
    return _without_version(new) == _without_version(old)


def _without_version(obj: JsonObject) -> JsonObject:
    meta = {k: v for k, v in obj["metadata"].items() if k != "resourceVersion"}
    return {**obj, "metadata": meta}


def count_generation(resource: Resource, new: JsonObject, old: JsonObject) -> None:
    """generation + 1 where anything but metadata and status differs."""
    if not has_generation(resource):
        return
    ignored = {"metadata", "status"}
    before = {k: v for k, v in old.items() if k not in ignored}
    after = {k: v for k, v in new.items() if k not in ignored}
    if resource.storage == _SLICES and not before.keys() ^ after.keys():
        # Proxies group slices by label, so a change of labels counts.
        before["labels"] = old["metadata"].get("labels") or {}
        after["labels"] = new["metadata"].get("labels") or {}
    if before != after:
        new["metadata"]["generation"] = old["metadata"].get("generation", 0) + 1


# -- kinds with ways of their own -------------------------------------------------------------


def _create_pod(pod: JsonObject) -> None:
    pod["status"] = {"phase": "Pending", "qosClass": qos_class(pod["spec"])}
    if pod["spec"].get("schedulingGates"):
        # `kubectl get` prints SchedulingGated for it, so that nobody waits for the scheduler.
        pod["status"]["conditions"] = [
            {
                "type": "PodScheduled",
                "status": "False",
                "lastProbeTime": None,
                "lastTransitionTime": None,
                "reason": "SchedulingGated",
                "message": "Scheduling is blocked due to non-empty scheduling gates",
            }
        ]


_COMPUTE = ("cpu", "memory")


def qos_class(spec: JsonObject) -> str:
    """Guaranteed, Burstable or BestEffort. Source: pkg/apis/core/v1/helper/qos."""
    guaranteed, any_set = True, False
    for container in (*(spec.get("containers") or ()), *(spec.get("initContainers") or ())):
        resources = container.get("resources") or {}
        limits, requests = resources.get("limits") or {}, resources.get("requests") or {}
        any_set = any_set or any(name in limits or name in requests for name in _COMPUTE)
        for name in _COMPUTE:
            if name not in limits or requests.get(name, limits[name]) != limits[name]:
                guaranteed = False
    if not any_set:
        return "BestEffort"
    return "Guaranteed" if guaranteed else "Burstable"


def _create_namespace(namespace: JsonObject) -> None:
    namespace["status"] = {"phase": "Active"}
    finalizers = namespace.setdefault("spec", {}).setdefault("finalizers", [])
    if "kubernetes" not in finalizers:
        finalizers.append("kubernetes")
    _label_namespace(namespace)


def _label_namespace(namespace: JsonObject) -> None:
    meta = namespace["metadata"]
    meta["labels"] = (meta.get("labels") or {}) | {"kubernetes.io/metadata.name": meta["name"]}


def _create_service(service: JsonObject) -> None:
    service["status"] = {"loadBalancer": {}}


def default_ip_mode(service: JsonObject) -> None:
    """An address of a load balancer is a VIP unless said otherwise (KEP-1860)."""
    if service["spec"].get("type") != "LoadBalancer":
        return
    balancer = (service.get("status") or {}).get("loadBalancer") or {}
    for row in balancer.get("ingress") or ():
        if row.get("ip") and row.get("ipMode") is None:
            row["ipMode"] = "VIP"


def _drop_topology(endpoint_slice: JsonObject) -> None:
    """`deprecatedTopology` is of v1beta1: v1 clears it without a word."""
    for endpoint in endpoint_slice.get("endpoints") or ():
        endpoint.pop("deprecatedTopology", None)


def _pending(obj: JsonObject) -> None:
    obj["status"] = {"phase": "Pending"}


def _empty_status(obj: JsonObject) -> None:
    obj["status"] = {}


def _create_job(job: JsonObject) -> None:
    """The selector and labels that tie pods to this very Job (`generateSelector`)."""
    job["status"] = {}
    spec = job.get("spec") or {}
    if spec.get("manualSelector"):
        return
    uid, name = job["metadata"]["uid"], job["metadata"]["name"]
    template = spec.setdefault("template", {}).setdefault("metadata", {})
    template["labels"] = (template.get("labels") or {}) | {
        "batch.kubernetes.io/controller-uid": uid,
        "batch.kubernetes.io/job-name": name,
        "controller-uid": uid,
        "job-name": name,
    }
    selector = spec.get("selector") or {}
    labels = (selector.get("matchLabels") or {}) | {"batch.kubernetes.io/controller-uid": uid}
    spec["selector"] = {**selector, "matchLabels": labels}


def _merge_string_data(secret: JsonObject) -> None:
    """`stringData` is write-only: it is encoded into `data`."""
    plain = secret.pop("stringData", None)
    if plain:
        data = {k: base64.b64encode(v.encode()).decode() for k, v in plain.items()}
        secret["data"] = (secret.get("data") or {}) | data


def _create_crd(crd: JsonObject) -> None:
    crd["status"] = {"acceptedNames": {"kind": "", "plural": ""}, "conditions": []}
    crd["status"]["storedVersions"] = [
        version["name"] for version in crd["spec"]["versions"] if version.get("storage")
    ]
    finalizers: list[Any] = crd["metadata"].setdefault("finalizers", [])
    if CRD_CLEANUP not in finalizers:
        finalizers.append(CRD_CLEANUP)


_CREATE: dict[str, Callable[[JsonObject], None]] = {
    "pods": _create_pod,
    "namespaces": _create_namespace,
    "services": _create_service,
    _SLICES: _drop_topology,
    "persistentvolumes": _pending,
    "persistentvolumeclaims": _pending,
    "apps/daemonsets": _empty_status,
    "apps/deployments": _empty_status,
    "apps/replicasets": _empty_status,
    "apps/statefulsets": _empty_status,
    "batch/cronjobs": _empty_status,
    "batch/jobs": _create_job,
    "secrets": _merge_string_data,
    "apiextensions.k8s.io/customresourcedefinitions": _create_crd,
}
