"""What Kubernetes fills in: defaulting per kind, as `pkg/apis/*/v1/defaults.go` of 1.33.

A rule is a function over one raw object, changing it in place; `_RULES` names the rules of each
(group, kind). Pod specs are one rule wherever they stand. A value that Go would leave out (null,
"", 0 where it means unset) counts as absent. What a cluster assigns (clusterIP, nodePort, service
account tokens, tolerations of node failure) is admission and allocation, not defaulting.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from podwire.apiserver.schema import Schema, apply_schema_defaults

Raw = dict[str, Any]
Rule = Callable[[Raw], None]


def apply_defaults(
    group: str, kind: str, obj: dict[str, Any], schema: Schema | None = None
) -> None:
    """Set defaults in place: Kubernetes' own for built-in kinds, the schema's for custom ones."""
    rule = _RULES.get((group, kind))
    if rule is not None:
        rule(obj)
    if schema is not None and schema.custom:
        apply_schema_defaults(obj, schema)


def _default(obj: Raw, **values: Any) -> None:
    for key, value in values.items():
        current = obj.get(key)
        if current is None or current == "":
            obj[key] = value


def _each(obj: Raw, *keys: str) -> Iterator[Raw]:
    """The objects in the lists under `keys`."""
    for key in keys:
        for item in obj.get(key) or ():
            if isinstance(item, dict):
                yield item


def _at(obj: Raw, key: str) -> Raw:
    """The object under `key`, made where absent."""
    value = obj.get(key)
    if not isinstance(value, dict):
        value = obj[key] = {}
    return value


# --- pods ------------------------------------------------------------------------------------


def default_pod(pod: Raw) -> None:
    default_pod_spec(_at(pod, "spec"))
    spec = pod["spec"]
    _default(spec, enableServiceLinks=True)
    for container in _each(spec, "initContainers", "containers"):
        _limits_become_requests(container)
    if spec.get("hostNetwork"):
        _host_ports(spec)


def default_pod_spec(spec: Raw) -> None:
    """A pod's or a pod template's spec."""
    _default(
        spec,
        dnsPolicy="ClusterFirst",
        restartPolicy="Always",
        schedulerName="default-scheduler",
        terminationGracePeriodSeconds=30,
    )
    _at(spec, "securityContext")
    if spec.get("hostNetwork"):
        _host_ports(spec)
    # The deprecated alias and its successor are always written together.
    account = spec.get("serviceAccountName") or spec.get("serviceAccount")
    if account:
        spec["serviceAccountName"] = spec["serviceAccount"] = account
    for container in _each(spec, "initContainers", "containers", "ephemeralContainers"):
        _default_container(container)
    for volume in _each(spec, "volumes"):
        _default_volume(volume)


def _default_container(container: Raw) -> None:
    image = container.get("image") or ""
    latest = _tag(image) in ("", "latest") and "@" not in image
    _default(
        container,
        imagePullPolicy="Always" if latest else "IfNotPresent",
        terminationMessagePath="/dev/termination-log",
        terminationMessagePolicy="File",
    )
    _at(container, "resources")
    for port in _each(container, "ports"):
        _default(port, protocol="TCP")
    for name in ("livenessProbe", "readinessProbe", "startupProbe"):
        if isinstance(container.get(name), dict):
            _default_probe(container[name])
    for hook in (container.get("lifecycle") or {}).values():
        if isinstance(hook, dict) and isinstance(hook.get("httpGet"), dict):
            _default_http_get(hook["httpGet"])
    for env in _each(container, "env"):
        _default_field_ref((env.get("valueFrom") or {}).get("fieldRef"))


def _tag(image: str) -> str:
    return image.rpartition("/")[2].partition("@")[0].partition(":")[2]


def _default_field_ref(ref: Any) -> None:
    if isinstance(ref, dict):
        _default(ref, apiVersion="v1")


def _default_probe(probe: Raw) -> None:
    for key, value in _PROBE.items():
        if not probe.get(key):
            probe[key] = value
    if isinstance(probe.get("httpGet"), dict):
        _default_http_get(probe["httpGet"])
    if isinstance(probe.get("grpc"), dict):
        probe["grpc"].setdefault("service", "")


_PROBE = {"timeoutSeconds": 1, "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3}


def _default_http_get(action: Raw) -> None:
    _default(action, path="/", scheme="HTTP")


def _host_ports(spec: Raw) -> None:
    for container in _each(spec, "initContainers", "containers"):
        for port in _each(container, "ports"):
            if not port.get("hostPort") and port.get("containerPort"):
                port["hostPort"] = port["containerPort"]


def _limits_become_requests(container: Raw) -> None:
    limits = container["resources"].get("limits")
    if limits:
        requests = _at(container["resources"], "requests")
        for name, value in limits.items():
            requests.setdefault(name, value)


_VOLUME_SOURCES: dict[str, Raw] = {
    "secret": {"defaultMode": 420},
    "configMap": {"defaultMode": 420},
    "downwardAPI": {"defaultMode": 420},
    "projected": {"defaultMode": 420},
    "hostPath": {"type": ""},
    "iscsi": {"iscsiInterface": "default"},
    "rbd": {"pool": "rbd", "user": "admin", "keyring": "/etc/ceph/keyring"},
    "azureDisk": {"cachingMode": "ReadWrite", "fsType": "ext4", "kind": "Shared"},
    "scaleIO": {"storageMode": "ThinProvisioned", "fsType": "xfs"},
}


def _default_volume(volume: Raw) -> None:
    sources = [key for key, value in volume.items() if key != "name" and value is not None]
    if not sources:
        volume["emptyDir"] = {}
        return
    for source in sources:
        if source in _VOLUME_SOURCES and isinstance(volume[source], dict):
            for key, value in _VOLUME_SOURCES[source].items():
                volume[source].setdefault(key, value)
    for item in _each(volume.get("downwardAPI") or {}, "items"):
        _default_field_ref(item.get("fieldRef"))
    for projection in _each(volume.get("projected") or {}, "sources"):
        token = projection.get("serviceAccountToken")
        if isinstance(token, dict):
            _default(token, expirationSeconds=3600)
        for item in _each(projection.get("downwardAPI") or {}, "items"):
            _default_field_ref(item.get("fieldRef"))
    template = (volume.get("ephemeral") or {}).get("volumeClaimTemplate")
    if isinstance(template, dict):
        _default(_at(template, "spec"), volumeMode="Filesystem")


def _default_template(spec: Raw) -> Raw:
    """The pod spec of a workload's template, defaulted."""
    template = _at(spec, "template")
    _at(template, "metadata")
    pod_spec = _at(template, "spec")
    default_pod_spec(pod_spec)
    return pod_spec


# --- workloads -------------------------------------------------------------------------------


def _rolling(strategy: Raw, **values: Any) -> None:
    _default(strategy, type="RollingUpdate")
    if strategy["type"] == "RollingUpdate":
        _default(_at(strategy, "rollingUpdate"), **values)


def _deployment(obj: Raw) -> None:
    spec = _at(obj, "spec")
    _default(spec, replicas=1, revisionHistoryLimit=10, progressDeadlineSeconds=600)
    _rolling(_at(spec, "strategy"), maxSurge="25%", maxUnavailable="25%")
    _default_template(spec)


def _replica_set(obj: Raw) -> None:
    spec = _at(obj, "spec")
    _default(spec, replicas=1)
    _default_template(spec)
    _labels_from_template(obj, spec)


def _labels_from_template(obj: Raw, spec: Raw) -> None:
    labels = spec["template"]["metadata"].get("labels")
    metadata = _at(obj, "metadata")
    if labels and not metadata.get("labels"):
        metadata["labels"] = dict(labels)


def _replication_controller(obj: Raw) -> None:
    spec = _at(obj, "spec")
    _default(spec, replicas=1)
    _default_template(spec)
    labels = spec["template"]["metadata"].get("labels")
    if labels and not spec.get("selector"):
        spec["selector"] = dict(labels)
    _labels_from_template(obj, spec)


def _stateful_set(obj: Raw) -> None:
    spec = _at(obj, "spec")
    _default(spec, podManagementPolicy="OrderedReady", replicas=1, revisionHistoryLimit=10)
    _rolling(_at(spec, "updateStrategy"), partition=0)
    retention = _at(spec, "persistentVolumeClaimRetentionPolicy")
    _default(retention, whenDeleted="Retain", whenScaled="Retain")
    _default_template(spec)
    for claim in _each(spec, "volumeClaimTemplates"):
        claim.setdefault("apiVersion", "v1")
        claim.setdefault("kind", "PersistentVolumeClaim")
        _claim(claim)


def _daemon_set(obj: Raw) -> None:
    spec = _at(obj, "spec")
    _default(spec, revisionHistoryLimit=10)
    _rolling(_at(spec, "updateStrategy"), maxSurge=0, maxUnavailable=1)
    _default_template(spec)


def _job(obj: Raw) -> None:
    spec = _at(obj, "spec")
    _job_spec(spec)
    _labels_from_template(obj, spec)


def _job_spec(spec: Raw) -> None:
    _default(spec, completionMode="NonIndexed", suspend=False)
    if spec.get("completions") is None and spec.get("parallelism") is None:
        spec["completions"] = 1
    _default(spec, parallelism=1)
    indexed = spec.get("backoffLimitPerIndex") is not None
    _default(spec, backoffLimit=2**31 - 1 if indexed else 6)
    policy = spec.get("podFailurePolicy")
    _default(spec, podReplacementPolicy="Failed" if policy else "TerminatingOrFailed")
    for rule in _each(policy or {}, "rules"):
        for pattern in _each(rule, "onPodConditions"):
            _default(pattern, status="True")
    _default_template(spec)


def _cron_job(obj: Raw) -> None:
    spec = _at(obj, "spec")
    _default(
        spec,
        concurrencyPolicy="Allow",
        suspend=False,
        successfulJobsHistoryLimit=3,
        failedJobsHistoryLimit=1,
    )
    template = _at(spec, "jobTemplate")
    _at(template, "metadata")
    # A CronJob's template is defaulted when its Jobs are made, its pod template already here.
    _default_template(_at(template, "spec"))


def _pod_template(obj: Raw) -> None:
    _default_template(obj)


def _autoscaler(obj: Raw) -> None:
    spec = _at(obj, "spec")
    _default(spec, minReplicas=1)
    if not spec.get("metrics"):
        target = {"type": "Utilization", "averageUtilization": 80}
        spec["metrics"] = [{"type": "Resource", "resource": {"name": "cpu", "target": target}}]
    if isinstance(spec.get("behavior"), dict):
        _scaling_rules(_at(spec["behavior"], "scaleUp"), _SCALE_UP)
        _scaling_rules(_at(spec["behavior"], "scaleDown"), _SCALE_DOWN)


_SCALE_UP: Raw = {
    "stabilizationWindowSeconds": 0,
    "selectPolicy": "Max",
    "policies": [
        {"type": "Pods", "value": 4, "periodSeconds": 15},
        {"type": "Percent", "value": 100, "periodSeconds": 15},
    ],
}
_SCALE_DOWN: Raw = {
    "selectPolicy": "Max",
    "policies": [{"type": "Percent", "value": 100, "periodSeconds": 15}],
}


def _scaling_rules(rules: Raw, defaults: Raw) -> None:
    for key, value in defaults.items():
        if not rules.get(key):
            rules[key] = [dict(item) for item in value] if isinstance(value, list) else value


def _autoscaler_v1(obj: Raw) -> None:
    if str(obj.get("apiVersion")).endswith("/v1"):
        _default(_at(obj, "spec"), minReplicas=1)
    else:
        _autoscaler(obj)


# --- network ---------------------------------------------------------------------------------


def _service(obj: Raw) -> None:
    spec = _at(obj, "spec")
    _default(spec, sessionAffinity="None", type="ClusterIP")
    if spec["sessionAffinity"] == "None":
        spec.pop("sessionAffinityConfig", None)
    elif spec["sessionAffinity"] == "ClientIP":
        _default(_at(_at(spec, "sessionAffinityConfig"), "clientIP"), timeoutSeconds=10800)
    kind = spec["type"]
    exposed = kind in ("NodePort", "LoadBalancer") or (
        kind == "ClusterIP" and bool(spec.get("externalIPs"))
    )
    for port in _each(spec, "ports"):
        _default(port, protocol="TCP")
        if not port.get("targetPort"):
            port["targetPort"] = port.get("port", 0)
    if exposed:
        _default(spec, externalTrafficPolicy="Cluster")
    if kind in ("ClusterIP", "NodePort", "LoadBalancer"):
        _default(spec, internalTrafficPolicy="Cluster")
    if kind == "LoadBalancer":
        _default(spec, allocateLoadBalancerNodePorts=True)
    _at(_at(obj, "status"), "loadBalancer")


def _endpoints(obj: Raw) -> None:
    for subset in _each(obj, "subsets"):
        for port in _each(subset, "ports"):
            _default(port, protocol="TCP")


def _endpoint_slice(obj: Raw) -> None:
    for port in _each(obj, "ports"):
        port.setdefault("name", "")
        _default(port, protocol="TCP")


def _network_policy(obj: Raw) -> None:
    spec = _at(obj, "spec")
    spec.setdefault("podSelector", {})
    for rule in _each(spec, "ingress", "egress"):
        for port in _each(rule, "ports"):
            _default(port, protocol="TCP")
    if not spec.get("policyTypes"):
        spec["policyTypes"] = ["Ingress", "Egress"] if spec.get("egress") else ["Ingress"]


def _ingress(obj: Raw) -> None:
    for rule in _each(_at(obj, "spec"), "rules"):
        for path in _each(rule.get("http") or {}, "paths"):
            if path.get("pathType") == "":
                del path["pathType"]
    _at(_at(obj, "status"), "loadBalancer")


def _ingress_class(obj: Raw) -> None:
    parameters = _at(obj, "spec").get("parameters")
    if isinstance(parameters, dict):
        _default(parameters, scope="Cluster")


# --- the rest --------------------------------------------------------------------------------


def _namespace(obj: Raw) -> None:
    labels = _at(_at(obj, "metadata"), "labels")
    name = obj["metadata"].get("name")
    if name:
        labels["kubernetes.io/metadata.name"] = name
    elif not labels:
        del obj["metadata"]["labels"]
    finalizers = _at(obj, "spec").setdefault("finalizers", ["kubernetes"])
    if not finalizers and "deletionTimestamp" not in obj["metadata"]:
        obj["spec"]["finalizers"] = ["kubernetes"]
    _default(_at(obj, "status"), phase="Active")


def _node(obj: Raw) -> None:
    _at(obj, "spec")
    status = obj.get("status")
    if isinstance(status, dict) and status.get("capacity") and not status.get("allocatable"):
        status["allocatable"] = dict(status["capacity"])


def _secret(obj: Raw) -> None:
    _default(obj, type="Opaque")


def _claim(obj: Raw) -> None:
    _default(_at(obj, "status"), phase="Pending")
    _default(_at(obj, "spec"), volumeMode="Filesystem")


def _volume(obj: Raw) -> None:
    _default(_at(obj, "status"), phase="Pending")
    _default(_at(obj, "spec"), persistentVolumeReclaimPolicy="Retain", volumeMode="Filesystem")


def _storage_class(obj: Raw) -> None:
    _default(obj, reclaimPolicy="Delete", volumeBindingMode="Immediate")


def _limit_range(obj: Raw) -> None:
    for item in _each(_at(obj, "spec"), "limits"):
        if item.get("type") == "Container":
            default = dict(item.get("max") or {}) | dict(item.get("default") or {})
            requests = (
                dict(item.get("min") or {}) | default | dict(item.get("defaultRequest") or {})
            )
            item.update(
                {k: v for k, v in (("default", default), ("defaultRequest", requests)) if v}
            )


def _priority_class(obj: Raw) -> None:
    _default(obj, preemptionPolicy="PreemptLowerPriority")
    obj.setdefault("globalDefault", False)


def _role_binding(obj: Raw) -> None:
    _default(_at(obj, "roleRef"), apiGroup="rbac.authorization.k8s.io")
    for subject in _each(obj, "subjects"):
        if subject.get("kind") in ("User", "Group"):
            _default(subject, apiGroup="rbac.authorization.k8s.io")


def _custom_resource_definition(obj: Raw) -> None:
    spec = _at(obj, "spec")
    names = _at(spec, "names")
    _default(spec, scope="Namespaced")
    if names.get("kind"):
        _default(names, listKind=names["kind"] + "List", singular=names["kind"].lower())
    _default(_at(spec, "conversion"), strategy="None")
    webhook = (spec["conversion"].get("webhook") or {}).get("clientConfig") or {}
    if isinstance(webhook.get("service"), dict):
        _default(webhook["service"], port=443)


def _webhook_configuration(obj: Raw) -> None:
    mutating = obj.get("kind") == "MutatingWebhookConfiguration"
    for hook in _each(obj, "webhooks"):
        _default(hook, failurePolicy="Fail", matchPolicy="Equivalent", timeoutSeconds=10)
        hook.setdefault("namespaceSelector", {})
        hook.setdefault("objectSelector", {})
        if mutating:
            _default(hook, reinvocationPolicy="Never")
        service = _at(hook, "clientConfig").get("service")
        if isinstance(service, dict):
            _default(service, port=443)
        for rule in _each(hook, "rules"):
            _default(rule, scope="*")


_RULES: dict[tuple[str, str], Rule] = {
    ("", "Pod"): default_pod,
    ("", "PodTemplate"): _pod_template,
    ("", "ReplicationController"): _replication_controller,
    ("", "Service"): _service,
    ("", "Endpoints"): _endpoints,
    ("", "Namespace"): _namespace,
    ("", "Node"): _node,
    ("", "Secret"): _secret,
    ("", "PersistentVolumeClaim"): _claim,
    ("", "PersistentVolume"): _volume,
    ("", "LimitRange"): _limit_range,
    ("apps", "Deployment"): _deployment,
    ("apps", "ReplicaSet"): _replica_set,
    ("apps", "StatefulSet"): _stateful_set,
    ("apps", "DaemonSet"): _daemon_set,
    ("batch", "Job"): _job,
    ("batch", "CronJob"): _cron_job,
    ("autoscaling", "HorizontalPodAutoscaler"): _autoscaler_v1,
    ("networking.k8s.io", "NetworkPolicy"): _network_policy,
    ("networking.k8s.io", "Ingress"): _ingress,
    ("networking.k8s.io", "IngressClass"): _ingress_class,
    ("discovery.k8s.io", "EndpointSlice"): _endpoint_slice,
    ("storage.k8s.io", "StorageClass"): _storage_class,
    ("scheduling.k8s.io", "PriorityClass"): _priority_class,
    ("rbac.authorization.k8s.io", "RoleBinding"): _role_binding,
    ("rbac.authorization.k8s.io", "ClusterRoleBinding"): _role_binding,
    ("apiextensions.k8s.io", "CustomResourceDefinition"): _custom_resource_definition,
    ("admissionregistration.k8s.io", "MutatingWebhookConfiguration"): _webhook_configuration,
    ("admissionregistration.k8s.io", "ValidatingWebhookConfiguration"): _webhook_configuration,
}
