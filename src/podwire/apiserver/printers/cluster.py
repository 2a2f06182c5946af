"""Tables of nodes, namespaces, configuration, storage, RBAC, events and admission kinds."""

from __future__ import annotations

from podwire.apiserver.printers.columns import (
    AGE,
    CREATED,
    NAME,
    NONE,
    UNKNOWN,
    UNSET,
    CellOf,
    at,
    count,
    get,
    join,
    name,
    since,
    spec,
)
from podwire.objects.meta import JsonObject

_ROLE = "node-role.kubernetes.io/"
_DEFAULT_CLASS = "storageclass.kubernetes.io/is-default-class"
_MODES = {
    "ReadWriteOnce": "RWO",
    "ReadOnlyMany": "ROX",
    "ReadWriteMany": "RWX",
    "ReadWriteOncePod": "RWOP",
}


def _node_status(node: JsonObject) -> str:
    ready = [c for c in get(node, "status", "conditions", default=()) if c["type"] == "Ready"]
    if not ready:
        status = "Unknown"
    else:
        status = "Ready" if ready[0]["status"] == "True" else "NotReady"
    if get(node, "spec", "unschedulable"):
        status += ",SchedulingDisabled"
    return status


def _roles(node: JsonObject) -> str:
    found = set()
    for key, value in get(node, "metadata", "labels", default={}).items():
        if key.startswith(_ROLE) and len(key) > len(_ROLE):
            found.add(key.removeprefix(_ROLE))
        elif key == "kubernetes.io/role" and value:
            found.add(value)
    return join(sorted(found), NONE)


def _address(kind: str) -> CellOf:
    def cell(node: JsonObject) -> str:
        addresses = get(node, "status", "addresses", default=())
        return next((a["address"] for a in addresses if a["type"] == kind), NONE)

    return cell


def _info(key: str) -> CellOf:
    return lambda node: get(node, "status", "nodeInfo", key) or UNKNOWN


def _event_object(event: JsonObject) -> str:
    ref = event.get("involvedObject") or {}
    kind, target = ref.get("kind", ""), ref.get("name", "")
    return f"{kind.lower()}/{target}" if target else kind.lower()


def _event_times(event: JsonObject) -> tuple[str, str]:
    """First and last seen: series, then deprecated stamps, then eventTime."""
    first = event.get("firstTimestamp") or event.get("eventTime")
    last = get(event, "series", "lastObservedTime") or event.get("lastTimestamp") or first
    return since(first), since(last)


def _event_count(event: JsonObject) -> int:
    return int(get(event, "series", "count") or event.get("count") or 1)


def _event_source(event: JsonObject) -> str:
    source = event.get("source") or {}
    parts = [source.get("component") or event.get("reportingComponent", ""), source.get("host", "")]
    return join(part for part in parts if part)


def _modes(*path: str) -> CellOf:
    return lambda obj: join(_MODES.get(m, m) for m in get(obj, *path, default=()))


def _claim(volume: JsonObject) -> str:
    ref = get(volume, "spec", "claimRef")
    return f"{ref.get('namespace', '')}/{ref.get('name', '')}" if ref else ""


def _deleting_or(*path: str) -> CellOf:
    def cell(obj: JsonObject) -> str:
        if get(obj, "metadata", "deletionTimestamp"):
            return "Terminating"
        return str(get(obj, *path, default=""))

    return cell


def _subjects(kind: str) -> CellOf:
    def cell(obj: JsonObject) -> str:
        subjects = [s for s in obj.get("subjects") or () if s["kind"] == kind]
        if kind == "ServiceAccount":
            return ", ".join(f"{s.get('namespace', '')}/{s['name']}" for s in subjects)
        return ", ".join(s["name"] for s in subjects)

    return cell


def _role_ref(obj: JsonObject) -> str:
    ref = obj.get("roleRef") or {}
    return f"{ref.get('kind', '')}/{ref.get('name', '')}"


def _storage_class_name(obj: JsonObject) -> str:
    default = get(obj, "metadata", "annotations", _DEFAULT_CLASS) == "true"
    return f"{name(obj)} (default)" if default else name(obj)


def _quota(prefix_limits: bool) -> CellOf:
    def cell(obj: JsonObject) -> str:
        hard, used = get(obj, "status", "hard", default={}), get(obj, "status", "used", default={})
        return ", ".join(
            f"{key}: {used.get(key, '0')}/{hard[key]}"
            for key in sorted(hard)
            if key.startswith("limits.") is prefix_limits
        )

    return cell


def _csr_condition(obj: JsonObject) -> str:
    kinds = {c["type"] for c in get(obj, "status", "conditions", default=())}
    words = [word for word in ("Denied", "Approved") if word in kinds][:1] or ["Pending"]
    if "Failed" in kinds:
        words.append("Failed")
    if get(obj, "status", "certificate"):
        words.append("Issued")
    return ",".join(words)


_BINDING = spec(
    NAME,
    ("Role", _role_ref),
    AGE,
    ("Users", _subjects("User"), "wide"),
    ("Groups", _subjects("Group"), "wide"),
    ("ServiceAccounts", _subjects("ServiceAccount"), "wide"),
)
_ROLE_TABLE = spec(NAME, CREATED)
_WEBHOOKS = spec(NAME, ("Webhooks", count("webhooks"), "integer"), AGE)
_EVENT = spec(
    ("Last Seen", lambda e: _event_times(e)[1]),
    ("Type", at("type")),
    ("Reason", at("reason")),
    ("Object", _event_object),
    ("Subobject", at("involvedObject", "fieldPath"), "wide"),
    ("Source", _event_source, "wide"),
    ("Message", lambda e: str(e.get("message") or "").strip()),
    ("First Seen", lambda e: _event_times(e)[0], "wide"),
    ("Count", _event_count, "wide integer"),
    ("Name", name, "wide"),
)
TABLES = {
    ("", "Node"): spec(
        NAME,
        ("Status", _node_status),
        ("Roles", _roles),
        AGE,
        ("Version", at("status", "nodeInfo", "kubeletVersion")),
        ("Internal-IP", _address("InternalIP"), "wide"),
        ("External-IP", _address("ExternalIP"), "wide"),
        ("OS-Image", _info("osImage"), "wide"),
        ("Kernel-Version", _info("kernelVersion"), "wide"),
        ("Container-Runtime", _info("containerRuntimeVersion"), "wide"),
    ),
    ("", "Namespace"): spec(NAME, ("Status", at("status", "phase")), AGE),
    ("", "ConfigMap"): spec(
        NAME,
        ("Data", lambda o: len(o.get("data") or ()) + len(o.get("binaryData") or ()), "integer"),
        AGE,
    ),
    ("", "Secret"): spec(NAME, ("Type", at("type")), ("Data", count("data"), "integer"), AGE),
    ("", "ServiceAccount"): spec(NAME, ("Secrets", count("secrets"), "integer"), AGE),
    ("", "Event"): _EVENT,
    ("events.k8s.io", "Event"): _EVENT,
    ("", "LimitRange"): _ROLE_TABLE,
    ("", "ResourceQuota"): spec(NAME, ("Request", _quota(False)), ("Limit", _quota(True)), AGE),
    ("", "PersistentVolume"): spec(
        NAME,
        ("Capacity", at("spec", "capacity", "storage")),
        ("Access Modes", _modes("spec", "accessModes")),
        ("Reclaim Policy", at("spec", "persistentVolumeReclaimPolicy")),
        ("Status", _deleting_or("status", "phase")),
        ("Claim", _claim),
        ("StorageClass", at("spec", "storageClassName")),
        ("VolumeAttributesClass", at("spec", "volumeAttributesClassName", default=UNSET)),
        ("Reason", at("status", "reason")),
        AGE,
        ("VolumeMode", at("spec", "volumeMode", default=UNSET), "wide"),
    ),
    ("", "PersistentVolumeClaim"): spec(
        NAME,
        ("Status", _deleting_or("status", "phase")),
        ("Volume", at("spec", "volumeName")),
        ("Capacity", at("status", "capacity", "storage")),
        ("Access Modes", _modes("status", "accessModes")),
        ("StorageClass", at("spec", "storageClassName")),
        ("VolumeAttributesClass", at("spec", "volumeAttributesClassName", default=UNSET)),
        AGE,
        ("VolumeMode", at("spec", "volumeMode", default=UNSET), "wide"),
    ),
    ("", "ComponentStatus"): spec(
        NAME,
        ("Status", lambda o: "Healthy"),
        ("Message", lambda o: get((o.get("conditions") or [{}])[0], "message", default="")),
        ("Error", lambda o: ""),
    ),
    ("rbac.authorization.k8s.io", "Role"): _ROLE_TABLE,
    ("rbac.authorization.k8s.io", "ClusterRole"): _ROLE_TABLE,
    ("rbac.authorization.k8s.io", "RoleBinding"): _BINDING,
    ("rbac.authorization.k8s.io", "ClusterRoleBinding"): _BINDING,
    ("storage.k8s.io", "StorageClass"): spec(
        ("Name", _storage_class_name),
        ("Provisioner", at("provisioner")),
        ("ReclaimPolicy", at("reclaimPolicy", default="Delete")),
        ("VolumeBindingMode", at("volumeBindingMode", default=UNSET)),
        ("AllowVolumeExpansion", lambda o: bool(o.get("allowVolumeExpansion"))),
        AGE,
    ),
    ("storage.k8s.io", "CSINode"): spec(
        NAME, ("Drivers", count("spec", "drivers"), "integer"), AGE
    ),
    ("storage.k8s.io", "VolumeAttachment"): spec(
        NAME,
        ("Attacher", at("spec", "attacher"), "wide"),
        ("PV", at("spec", "source", "persistentVolumeName"), "wide"),
        ("Node", at("spec", "nodeName"), "wide"),
        ("Attached", lambda o: bool(get(o, "status", "attached")), "wide"),
        AGE,
    ),
    ("apiextensions.k8s.io", "CustomResourceDefinition"): _ROLE_TABLE,
    ("scheduling.k8s.io", "PriorityClass"): spec(
        NAME,
        ("Value", at("value", default=0), "integer"),
        ("Global-Default", lambda o: bool(o.get("globalDefault"))),
        AGE,
        ("PreemptionPolicy", at("preemptionPolicy")),
    ),
    ("node.k8s.io", "RuntimeClass"): spec(NAME, ("Handler", at("handler")), AGE),
    ("admissionregistration.k8s.io", "MutatingWebhookConfiguration"): _WEBHOOKS,
    ("admissionregistration.k8s.io", "ValidatingWebhookConfiguration"): _WEBHOOKS,
    ("admissionregistration.k8s.io", "ValidatingAdmissionPolicy"): spec(
        NAME,
        ("Validations", count("spec", "validations"), "integer"),
        ("ParamKind", lambda o: get(o, "spec", "paramKind", "kind", default=UNSET)),
        AGE,
    ),
    ("admissionregistration.k8s.io", "ValidatingAdmissionPolicyBinding"): spec(
        NAME,
        ("PolicyName", at("spec", "policyName")),
        ("ParamRef", lambda o: get(o, "spec", "paramRef", "name", default=UNSET)),
        AGE,
    ),
    ("certificates.k8s.io", "CertificateSigningRequest"): spec(
        NAME,
        AGE,
        ("SignerName", at("spec", "signerName", default=NONE)),
        ("Requestor", at("spec", "username")),
        ("RequestedDuration", lambda o: str(get(o, "spec", "expirationSeconds", default=NONE))),
        ("Condition", _csr_condition),
    ),
}
