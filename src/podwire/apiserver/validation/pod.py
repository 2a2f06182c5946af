"""Rules of pods and pod templates.

Source: pkg/apis/core/validation/validation.go (ValidatePodSpec, ValidatePodUpdate).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from podwire.apiserver import names
from podwire.apiserver.fields import (
    FieldError,
    duplicate,
    forbidden,
    invalid_value,
    not_found,
    not_supported,
    required,
)
from podwire.apiserver.quantity import QuantityError, parse_quantity
from podwire.apiserver.validation.meta import (
    NEGATIVE,
    Raw,
    each,
    invalid_each,
    non_negative,
    validate_labels,
    validate_selector,
)

PROTOCOLS = ("SCTP", "TCP", "UDP")
_PULL_POLICIES = ("Always", "IfNotPresent", "Never")
_HANDLERS = ("exec", "grpc", "httpGet", "sleep", "tcpSocket")
_CONTAINER_LISTS = ("initContainers", "containers", "ephemeralContainers")
_STANDARD_RESOURCES = frozenset({"cpu", "memory", "ephemeral-storage"})
_EFFECTS = ("NoSchedule", "PreferNoSchedule", "NoExecute")
_MAX_ID = 2**31 - 1


def validate_pod(pod: Raw) -> list[FieldError]:
    spec = pod.get("spec") or {}
    out = validate_pod_spec(spec, "spec")
    if spec.get("ephemeralContainers"):
        out.append(forbidden("spec.ephemeralContainers", "cannot be set on create"))
    return out


def validate_pod_spec(spec: Raw, path: str) -> list[FieldError]:
    out: list[FieldError] = []
    volumes, errors = _volumes(spec, path)
    out += errors
    if not spec.get("containers"):
        out.append(required(f"{path}.containers"))
    out += _containers(spec, path, volumes)
    out += _enum(spec, path, "restartPolicy", ("Always", "OnFailure", "Never"))
    out += _enum(spec, path, "dnsPolicy", _DNS_POLICIES)
    out += validate_labels(spec.get("nodeSelector"), f"{path}.nodeSelector")
    out += _host_namespaces(spec, path)
    for at, secret in each(spec, "imagePullSecrets", path):
        if not secret.get("name"):
            out.append(required(f"{at}.name"))
    out += _affinity(spec.get("affinity") or {}, f"{path}.affinity")
    out += _dns_config(spec, path)
    for key in ("serviceAccountName", "nodeName", "priorityClassName", "runtimeClassName"):
        if spec.get(key):
            out += invalid_each(f"{path}.{key}", spec[key], names.is_dns_subdomain(spec[key]))
    for key in ("hostname", "subdomain"):
        if spec.get(key):
            out += invalid_each(f"{path}.{key}", spec[key], names.is_dns_label(spec[key]))
    out += _tolerations(spec, path)
    out += _host_aliases(spec, path)
    out += _spread_constraints(spec, path)
    deadline = spec.get("activeDeadlineSeconds")
    if deadline is not None and not 1 <= deadline <= _MAX_ID:
        text = names.in_range(1, _MAX_ID)
        out.append(invalid_value(f"{path}.activeDeadlineSeconds", deadline, text))
    return out


_DNS_POLICIES = ("ClusterFirstWithHostNet", "ClusterFirst", "Default", "None")


def _enum(
    obj: Raw, path: str, key: str, supported: tuple[str, ...], *, needed: bool = True
) -> list[FieldError]:
    value = obj.get(key) or ""
    if not value:
        return [required(f"{path}.{key}")] if needed else []
    return [] if value in supported else [not_supported(f"{path}.{key}", value, supported)]


# --- containers ------------------------------------------------------------------------------


def _containers(spec: Raw, path: str, volumes: set[str]) -> list[FieldError]:
    out: list[FieldError] = []
    seen: set[str] = set()
    host_ports: set[str] = set()
    for kind in _CONTAINER_LISTS:
        for at, container in each(spec, kind, path):
            name = container.get("name") or ""
            if not name:
                out.append(required(f"{at}.name"))
            elif name in seen:
                out.append(duplicate(f"{at}.name", name))
            else:
                out += invalid_each(f"{at}.name", name, names.is_dns_label(name))
            seen.add(name)
            out += _container(container, at, volumes)
            if kind == "initContainers":
                out += _init_container(container, at)
            else:
                # Init containers run one after another, so they never clash.
                out += _host_ports(container, at, host_ports)
            if spec.get("hostNetwork"):
                out += _host_network_ports(container, at)
    return out


def _container(container: Raw, path: str, volumes: set[str]) -> list[FieldError]:
    out: list[FieldError] = []
    image = container.get("image") or ""
    if not image:
        out.append(required(f"{path}.image"))
    elif image != image.strip():
        text = "must not have leading or trailing whitespace"
        out.append(invalid_value(f"{path}.image", image, text))
    out += _lifecycle(container, path)
    for key in ("livenessProbe", "readinessProbe", "startupProbe"):
        if isinstance(container.get(key), dict):
            out += _probe(container[key], f"{path}.{key}", key)
    out += _enum(container, path, "terminationMessagePolicy", ("File", "FallbackToLogsOnError"))
    out += _ports(container, path)
    out += _env(container, path)
    out += _env_from(container, path)
    out += _mounts(container, path, volumes)
    out += _enum(container, path, "imagePullPolicy", _PULL_POLICIES)
    out += validate_resources(container.get("resources") or {}, f"{path}.resources")
    return out + _security(container.get("securityContext") or {}, f"{path}.securityContext")


def _init_container(container: Raw, path: str) -> list[FieldError]:
    policy = container.get("restartPolicy")
    if policy is not None and policy != "Always":
        return [not_supported(f"{path}.restartPolicy", policy, ["Always"])]
    if policy == "Always":
        return []
    text = "may not be set for init containers without restartPolicy=Always"
    keys = ("lifecycle", "livenessProbe", "readinessProbe", "startupProbe")
    return [forbidden(f"{path}.{key}", text) for key in keys if container.get(key)]


def _ports(container: Raw, path: str) -> list[FieldError]:
    out: list[FieldError] = []
    seen: set[str] = set()
    for at, port in each(container, "ports", path):
        name = port.get("name") or ""
        if name:
            problems = names.is_port_name(name)
            out += invalid_each(f"{at}.name", name, problems)
            if not problems and name in seen:
                out.append(duplicate(f"{at}.name", name))
            seen.add(name)
        number = port.get("containerPort") or 0
        if number == 0:
            out.append(required(f"{at}.containerPort"))
        else:
            out += invalid_each(f"{at}.containerPort", number, names.is_port_number(number))
        host = port.get("hostPort") or 0
        if host:
            out += invalid_each(f"{at}.hostPort", host, names.is_port_number(host))
        if port.get("hostIP"):
            out += invalid_each(f"{at}.hostIP", port["hostIP"], names.is_ip(port["hostIP"]))
        out += _enum(port, at, "protocol", PROTOCOLS)
    return out


def _host_ports(container: Raw, path: str, taken: set[str]) -> list[FieldError]:
    out: list[FieldError] = []
    for at, port in each(container, "ports", path):
        if port.get("hostPort"):
            key = f"{port.get('protocol', 'TCP')}/{port.get('hostIP') or ''}/{port['hostPort']}"
            if key in taken:
                out.append(duplicate(f"{at}.hostPort", key))
            taken.add(key)
    return out


def _host_network_ports(container: Raw, path: str) -> list[FieldError]:
    return [
        invalid_value(
            f"{at}.containerPort",
            port.get("containerPort") or 0,
            "must match `hostPort` when `hostNetwork` is true",
        )
        for at, port in each(container, "ports", path)
        if port.get("hostPort") != port.get("containerPort")
    ]


_ENV_SOURCES = ("fieldRef", "resourceFieldRef", "configMapKeyRef", "secretKeyRef", "fileKeyRef")


def _env(container: Raw, path: str) -> list[FieldError]:
    out: list[FieldError] = []
    for at, env in each(container, "env", path):
        name = env.get("name") or ""
        if not name:
            out.append(required(f"{at}.name"))
        else:
            out += invalid_each(f"{at}.name", name, names.is_env_var_name(name))
        source = env.get("valueFrom")
        if isinstance(source, dict):
            out += _env_source(env, source, f"{at}.valueFrom")
    return out


def _env_source(env: Raw, source: Raw, path: str) -> list[FieldError]:
    out: list[FieldError] = []
    given = [key for key in _ENV_SOURCES if isinstance(source.get(key), dict)]
    for key in given:
        out += _env_reference(key, source[key], f"{path}.{key}")
    if not given:
        text = (
            "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef` or "
            "`secretKeyRef`"
        )
        out.append(invalid_value(path, "", text))
    elif env.get("value"):
        out.append(invalid_value(path, "", "may not be specified when `value` is not empty"))
    elif len(given) > 1:
        text = "may not have more than one field specified at a time"
        out.append(invalid_value(path, "", text))
    return out


_FIELD_REFS = frozenset(
    {
        *("metadata.name", "metadata.namespace", "metadata.uid", "spec.nodeName"),
        *("spec.serviceAccountName", "status.hostIP", "status.hostIPs"),
        *("status.podIP", "status.podIPs"),
    }
)


def _env_reference(key: str, ref: Raw, path: str) -> list[FieldError]:
    if key == "fieldRef":
        return _field_ref(ref, path)
    out: list[FieldError] = []
    if key == "resourceFieldRef":
        return [] if ref.get("resource") else [required(f"{path}.resource")]
    if key in ("configMapKeyRef", "secretKeyRef"):
        if not ref.get("name"):
            out.append(required(f"{path}.name"))
        if not ref.get("key"):
            out.append(required(f"{path}.key"))
        else:
            out += invalid_each(f"{path}.key", ref["key"], names.is_config_map_key(ref["key"]))
    return out


def _field_ref(ref: Raw, path: str) -> list[FieldError]:
    field = ref.get("fieldPath") or ""
    if not field:
        return [required(f"{path}.fieldPath")]
    subscript = field.startswith(("metadata.labels['", "metadata.annotations['"))
    if field in _FIELD_REFS or (subscript and field.endswith("']")):
        return []
    if field.startswith(("metadata.", "spec.", "status.")):
        return [not_supported(f"{path}.fieldPath", field, sorted(_FIELD_REFS))]
    text = f"error converting fieldPath: field label not supported: {field}"
    return [invalid_value(f"{path}.fieldPath", field, text)]


def _env_from(container: Raw, path: str) -> list[FieldError]:
    out: list[FieldError] = []
    for at, source in each(container, "envFrom", path):
        if source.get("prefix"):
            problems = names.is_env_var_name(source["prefix"])
            out += invalid_each(f"{at}.prefix", source["prefix"], problems)
        given = [key for key in ("configMapRef", "secretRef") if isinstance(source.get(key), dict)]
        if not given:
            text = "must specify one of: `configMapRef` or `secretRef`"
            out.append(invalid_value(at, "", text))
        elif len(given) > 1:
            text = "may not have more than one field specified at a time"
            out.append(invalid_value(at, "", text))
        out += [required(f"{at}.{key}.name") for key in given if not source[key].get("name")]
    return out


def _mounts(container: Raw, path: str, volumes: set[str]) -> list[FieldError]:
    out: list[FieldError] = []
    seen: set[str] = set()
    for at, mount in each(container, "volumeMounts", path):
        name, where = mount.get("name") or "", mount.get("mountPath") or ""
        if not name:
            out.append(required(f"{at}.name"))
        elif name not in volumes:
            out.append(not_found(f"{at}.name", name))
        if not where:
            out.append(required(f"{at}.mountPath"))
        elif where in seen:
            out.append(invalid_value(f"{at}.mountPath", where, "must be unique"))
        seen.add(where)
        for key in ("subPath", "subPathExpr"):
            out += _local_path(mount.get(key) or "", f"{at}.{key}")
        if mount.get("subPath") and mount.get("subPathExpr"):
            text = "subPathExpr and subPath are mutually exclusive"
            out.append(invalid_value(f"{at}.subPathExpr", mount["subPathExpr"], text))
    return out


def _local_path(value: str, path: str) -> list[FieldError]:
    if value.startswith("/"):
        return [invalid_value(path, value, "must be a relative path")]
    if ".." in value.split("/"):
        return [invalid_value(path, value, "must not contain '..'")]
    return []


def validate_resources(resources: Raw, path: str) -> list[FieldError]:
    """Requests and limits of a container."""
    out: list[FieldError] = []
    limits, requests = resources.get("limits") or {}, resources.get("requests") or {}
    for kind, values in (("limits", limits), ("requests", requests)):
        for name, text in values.items():
            at = f"{path}.{kind}[{name}]"
            out += _resource_name(name, at)
            number = _number(text)
            if number is not None and number < 0:
                out.append(invalid_value(at, text, NEGATIVE))
            elif number is not None and "/" in name and number.denominator != 1:
                out.append(invalid_value(at, text, "must be an integer"))
    for name, text in requests.items():
        request, limit = _number(text), _number(limits.get(name))
        if request is not None and limit is not None:
            out += _request_within(name, text, limits[name], request > limit, f"{path}.requests")
    return out


def _request_within(name: str, request: str, limit: str, over: bool, at: str) -> list[FieldError]:
    if over:
        text = f"must be less than or equal to {name} limit of {limit}"
        return [invalid_value(at, request, text)]
    if request != limit and ("/" in name or name.startswith("hugepages-")):
        return [invalid_value(at, request, f"must be equal to {name} limit of {limit}")]
    return []


def _number(text: Any) -> Any:
    try:
        return None if text is None else parse_quantity(str(text))
    except QuantityError:
        return None


def _resource_name(name: str, path: str) -> list[FieldError]:
    out = invalid_each(path, name, names.is_qualified_name(name))
    standard = name in _STANDARD_RESOURCES or name.startswith("hugepages-")
    if out or "/" in name or standard:
        return out
    return [
        invalid_value(path, name, "must be a standard resource type or fully qualified"),
        invalid_value(path, name, "must be a standard resource for containers"),
    ]


# --- probes and hooks ------------------------------------------------------------------------


def _probe(probe: Raw, path: str, kind: str) -> list[FieldError]:
    out = _handler(probe, path)
    out += non_negative(
        probe,
        path,
        *("initialDelaySeconds", "timeoutSeconds", "periodSeconds"),
        *("successThreshold", "failureThreshold"),
    )
    grace = probe.get("terminationGracePeriodSeconds")
    if kind != "readinessProbe":
        if (probe.get("successThreshold") or 1) != 1:
            threshold = probe["successThreshold"]
            out.append(invalid_value(f"{path}.successThreshold", threshold, "must be 1"))
        if grace is not None and grace <= 0:
            text = "must be greater than 0"
            out.append(invalid_value(f"{path}.terminationGracePeriodSeconds", grace, text))
    elif grace is not None:
        text = "must not be set for readinessProbes"
        out.append(invalid_value(f"{path}.terminationGracePeriodSeconds", grace, text))
    return out


def _lifecycle(container: Raw, path: str) -> list[FieldError]:
    out: list[FieldError] = []
    for name in ("postStart", "preStop"):
        hook = (container.get("lifecycle") or {}).get(name)
        if isinstance(hook, dict):
            out += _handler(hook, f"{path}.lifecycle.{name}")
    return out


def _handler(obj: Raw, path: str) -> list[FieldError]:
    given = [key for key in _HANDLERS if isinstance(obj.get(key), dict)]
    if not given:
        return [required(path, "must specify a handler type")]
    out = [
        forbidden(f"{path}.{key}", "may not specify more than 1 handler type") for key in given[1:]
    ]
    return _action(given[0], obj[given[0]], f"{path}.{given[0]}") + out


def _action(kind: str, action: Raw, path: str) -> list[FieldError]:
    out: list[FieldError] = []
    match kind:
        case "exec":
            if not action.get("command"):
                out.append(required(f"{path}.command"))
        case "httpGet":
            if not action.get("path"):
                out.append(required(f"{path}.path"))
            out += validate_port_or_name(action.get("port", 0), f"{path}.port")
            out += _enum(action, path, "scheme", ("HTTP", "HTTPS"))
        case "tcpSocket":
            out += validate_port_or_name(action.get("port", 0), f"{path}.port")
        case "grpc":
            port = action.get("port") or 0
            out += invalid_each(f"{path}.port", port, names.is_port_number(port))
    return out


def validate_port_or_name(port: Any, path: str) -> list[FieldError]:
    """An IntOrString port: a number, or the name of a container port."""
    if isinstance(port, str):
        return invalid_each(path, port, names.is_port_name(port))
    return invalid_each(path, port, names.is_port_number(port))


# --- volumes ---------------------------------------------------------------------------------

_NEEDED_IN_VOLUME = {
    "secret": "secretName",
    "configMap": "name",
    "hostPath": "path",
    "persistentVolumeClaim": "claimName",
    "nfs": "server",
    "csi": "driver",
}


def _volumes(spec: Raw, path: str) -> tuple[set[str], list[FieldError]]:
    out: list[FieldError] = []
    seen: set[str] = set()
    for at, volume in each(spec, "volumes", path):
        name = volume.get("name") or ""
        if not name:
            out.append(required(f"{at}.name"))
        else:
            out += invalid_each(f"{at}.name", name, names.is_dns_label(name))
        if name and name in seen:
            out.append(duplicate(f"{at}.name", name))
        seen.add(name)
        sources = [key for key, value in volume.items() if key != "name" and value is not None]
        if not sources:
            out.append(required(at, "must specify a volume type"))
        for key in sources[1:]:
            text = "may not specify more than 1 volume type"
            out.append(forbidden(f"{at}.{key}", text))
        for key in sources[:1]:
            needed = _NEEDED_IN_VOLUME.get(key)
            if needed and not volume[key].get(needed):
                out.append(required(f"{at}.{key}.{needed}"))
            out += _items(volume[key], f"{at}.{key}")
    return seen, out


def _items(source: Any, path: str) -> list[FieldError]:
    out: list[FieldError] = []
    if not isinstance(source, dict):
        return out
    mode = source.get("defaultMode")
    if mode is not None and not 0 <= mode <= 0o777:
        text = "must be a number between 0 and 0777 (octal), both inclusive"
        out.append(invalid_value(f"{path}.defaultMode", mode, text))
    for at, item in each(source, "items", path):
        if "fieldRef" not in item and "resourceFieldRef" not in item and not item.get("key"):
            out.append(required(f"{at}.key"))
        if not item.get("path"):
            out.append(required(f"{at}.path"))
        else:
            out += _local_path(item["path"], f"{at}.path")
    return out


# --- scheduling ------------------------------------------------------------------------------


def _tolerations(spec: Raw, path: str) -> list[FieldError]:
    out: list[FieldError] = []
    for at, row in each(spec, "tolerations", path):
        key, operator, value = row.get("key") or "", row.get("operator") or "", row.get("value")
        if key:
            out += invalid_each(f"{at}.key", key, names.is_qualified_name(key))
        elif operator != "Exists":
            text = (
                'operator must be Exists when `key` is empty, which means "match all values and '
                'all keys"'
            )
            out.append(invalid_value(f"{at}.operator", operator, text))
        if row.get("tolerationSeconds") is not None and row.get("effect") != "NoExecute":
            text = "effect must be 'NoExecute' when `tolerationSeconds` is set"
            out.append(invalid_value(f"{at}.effect", row.get("effect") or "", text))
        if operator in ("Equal", ""):
            out += invalid_each(f"{at}.operator", value or "", names.is_label_value(value or ""))
        elif operator == "Exists":
            if value:
                text = "value must be empty when `operator` is 'Exists'"
                out.append(invalid_value(f"{at}.operator", row, text))
        else:
            out.append(not_supported(f"{at}.operator", operator, ("Equal", "Exists")))
        out += _enum(row, at, "effect", _EFFECTS, needed=False)
    return out


def _affinity(affinity: Raw, path: str) -> list[FieldError]:
    out: list[FieldError] = []
    node = affinity.get("nodeAffinity") or {}
    hard, soft = "requiredDuringSchedulingIgnoredDuringExecution", _SOFT
    at = f"{path}.nodeAffinity"
    if isinstance(node.get(hard), dict):
        terms = node[hard].get("nodeSelectorTerms")
        if not terms:
            text = "must have at least one node selector term"
            out.append(required(f"{at}.{hard}.nodeSelectorTerms", text))
        for below, term in each(node[hard], "nodeSelectorTerms", f"{at}.{hard}"):
            out += _node_term(term, below)
    for below, row in each(node, soft, at):
        out += _weight(row, below) + _node_term(row.get("preference") or {}, f"{below}.preference")
    for kind in ("podAffinity", "podAntiAffinity"):
        rules = affinity.get(kind) or {}
        for below, term in each(rules, hard, f"{path}.{kind}"):
            out += _pod_term(term, below)
        for below, row in each(rules, soft, f"{path}.{kind}"):
            out += _weight(row, below)
            out += _pod_term(row.get("podAffinityTerm") or {}, f"{below}.podAffinityTerm")
    return out


_SOFT = "preferredDuringSchedulingIgnoredDuringExecution"


def _weight(row: Raw, path: str) -> list[FieldError]:
    weight = row.get("weight") or 0
    if 1 <= weight <= 100:
        return []
    return [invalid_value(f"{path}.weight", weight, "must be in the range 1-100")]


def _node_term(term: Raw, path: str) -> list[FieldError]:
    out: list[FieldError] = []
    for at, row in each(term, "matchExpressions", path):
        operator, values = row.get("operator") or "", row.get("values")
        if operator in ("In", "NotIn"):
            if not values:
                text = "must be specified when `operator` is 'In' or 'NotIn'"
                out.append(required(f"{at}.values", text))
        elif operator in ("Exists", "DoesNotExist"):
            if values:
                text = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'"
                out.append(forbidden(f"{at}.values", text))
        elif operator in ("Gt", "Lt"):
            if len(values or ()) != 1:
                text = "must be specified single value when `operator` is 'Lt' or 'Gt'"
                out.append(required(f"{at}.values", text))
        else:
            out.append(invalid_value(f"{at}.operator", operator, "not a valid selector operator"))
        key = row.get("key") or ""
        out += invalid_each(f"{at}.key", key, names.is_qualified_name(key))
    return out


def _pod_term(term: Raw, path: str) -> list[FieldError]:
    out = validate_selector(term.get("labelSelector"), f"{path}.labelSelector")
    out += validate_selector(term.get("namespaceSelector"), f"{path}.namespaceSelector")
    for index, name in enumerate(term.get("namespaces") or ()):
        out += invalid_each(f"{path}.namespaces[{index}]", name, names.is_dns_label(name))
    key = term.get("topologyKey") or ""
    if not key:
        out.append(required(f"{path}.topologyKey", "can not be empty"))
        return out
    return out + invalid_each(f"{path}.topologyKey", key, names.is_qualified_name(key))


def _spread_constraints(spec: Raw, path: str) -> list[FieldError]:
    out: list[FieldError] = []
    for at, row in each(spec, "topologySpreadConstraints", path):
        if (row.get("maxSkew") or 0) <= 0:
            text = "must be greater than zero"
            out.append(invalid_value(f"{at}.maxSkew", row.get("maxSkew") or 0, text))
        if not row.get("topologyKey"):
            out.append(required(f"{at}.topologyKey", "can not be empty"))
        actions = ("DoNotSchedule", "ScheduleAnyway")
        if row.get("whenUnsatisfiable") not in actions:
            value = row.get("whenUnsatisfiable") or ""
            out.append(not_supported(f"{at}.whenUnsatisfiable", value, actions))
        out += validate_selector(row.get("labelSelector"), f"{at}.labelSelector")
    return out


# --- the rest of the spec --------------------------------------------------------------------


def _host_namespaces(spec: Raw, path: str) -> list[FieldError]:
    context = spec.get("securityContext") or {}
    out = _ids(context, f"{path}.securityContext")
    if spec.get("shareProcessNamespace") and spec.get("hostPID"):
        text = "ShareProcessNamespace and HostPID cannot both be enabled"
        out.append(invalid_value(f"{path}.shareProcessNamespace", True, text))
    return out


def _ids(context: Raw, path: str) -> list[FieldError]:
    return [
        invalid_value(f"{path}.{key}", context[key], names.in_range(0, _MAX_ID))
        for key in ("runAsUser", "runAsGroup", "fsGroup")
        if context.get(key) is not None and not 0 <= context[key] <= _MAX_ID
    ]


def _security(context: Raw, path: str) -> list[FieldError]:
    out = _ids(context, path)
    if context.get("allowPrivilegeEscalation") is False and context.get("privileged"):
        text = "cannot set `allowPrivilegeEscalation` to false and `privileged` to true"
        out.append(invalid_value(path, context, text))
    return out


def _dns_config(spec: Raw, path: str) -> list[FieldError]:
    config = spec.get("dnsConfig")
    at = f"{path}.dnsConfig"
    out: list[FieldError] = []
    if spec.get("dnsPolicy") == "None":
        if not isinstance(config, dict):
            text = "must provide `dnsConfig` when `dnsPolicy` is None"
            return [required(at, text)]
        if not config.get("nameservers"):
            text = "must provide at least one DNS nameserver when `dnsPolicy` is None"
            return [required(f"{at}.nameservers", text)]
    if not isinstance(config, dict):
        return out
    servers, searches = config.get("nameservers") or [], config.get("searches") or []
    if len(servers) > 3:
        text = "must not have more than 3 nameservers"
        out.append(invalid_value(f"{at}.nameservers", servers, text))
    for index, server in enumerate(servers):
        out += invalid_each(f"{at}.nameservers[{index}]", server, names.is_ip(server))
    if len(searches) > 32:
        text = "must not have more than 32 search paths"
        out.append(invalid_value(f"{at}.searches", searches, text))
    if len(" ".join(searches)) > 2048:
        text = "must not have more than 2048 characters (including spaces) in the search list"
        out.append(invalid_value(f"{at}.searches", searches, text))
    for index, search in enumerate(searches):
        # A lone dot is the root; underscores may begin a label (RFC 2782 names).
        bare = search.removesuffix(".").replace("_", "a")
        if search != ".":
            out += invalid_each(f"{at}.searches[{index}]", search, names.is_dns_subdomain(bare))
    for below, option in each(config, "options", at):
        if not option.get("name"):
            out.append(required(below, "must not be empty"))
    return out


def _host_aliases(spec: Raw, path: str) -> list[FieldError]:
    out: list[FieldError] = []
    for at, alias in each(spec, "hostAliases", path):
        out += invalid_each(f"{at}.ip", alias.get("ip") or "", names.is_ip(alias.get("ip") or ""))
        for index, name in enumerate(alias.get("hostnames") or ()):
            out += invalid_each(f"{at}.hostnames[{index}]", name, names.is_dns_subdomain(name))
    return out


# --- updates ---------------------------------------------------------------------------------

_MUTABLE = (
    "pod updates may not change fields other than `spec.containers[*].image`,"
    "`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only "
    "additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set "
    "to 1 if it was previously negative)"
)


def validate_pod_update(new: Raw, old: Raw) -> list[FieldError]:
    """What an update of a pod itself may change; status and binding have their own ways."""
    fresh, before = new.get("spec") or {}, old.get("spec") or {}
    out: list[FieldError] = []
    for kind in ("containers", "initContainers"):
        if len(fresh.get(kind) or ()) != len(before.get(kind) or ()):
            text = "pod updates may not add or remove containers"
            return [forbidden(f"spec.{kind}", text)]
        for at, container in each(fresh, kind, "spec"):
            if not container.get("image"):
                out.append(required(f"{at}.image"))
    out += _deadline_update(fresh, before) + _toleration_update(fresh, before)
    if out:
        return out
    changed = list(_differences(_masked(fresh, before), before, ""))
    return [forbidden("spec", f"{_MUTABLE}\n{chr(10).join(changed)}\n")] if changed else []


def _masked(fresh: Raw, before: Raw) -> Raw:
    """The new spec with everything that may change set back."""
    out = copy.deepcopy(fresh)
    for kind in ("containers", "initContainers"):
        for container, old in zip(out.get(kind) or (), before.get(kind) or (), strict=True):
            _copy_key(container, old, "image")
    for key in ("activeDeadlineSeconds", "tolerations"):
        _copy_key(out, before, key)
    if (before.get("terminationGracePeriodSeconds") or 0) < 0:
        _copy_key(out, before, "terminationGracePeriodSeconds")
    if out.get("schedulingGates") != before.get("schedulingGates"):
        kept = before.get("schedulingGates") or []
        if all(gate in kept for gate in out.get("schedulingGates") or ()):
            _copy_key(out, before, "schedulingGates")
    return out


def _copy_key(to: Raw, source: Raw, key: str) -> None:
    if key in source:
        to[key] = source[key]
    else:
        to.pop(key, None)


def _deadline_update(fresh: Raw, before: Raw) -> list[FieldError]:
    new, old = fresh.get("activeDeadlineSeconds"), before.get("activeDeadlineSeconds")
    path = "spec.activeDeadlineSeconds"
    if new is None:
        if old is None:
            return []
        return [invalid_value(path, None, "must not update from a positive integer to nil value")]
    if not 0 <= new <= _MAX_ID:
        return [invalid_value(path, new, names.in_range(0, _MAX_ID))]
    if old is not None and old < new:
        return [invalid_value(path, new, "must be less than or equal to previous value")]
    return []


def _toleration_update(fresh: Raw, before: Raw) -> list[FieldError]:
    def bare(row: Raw) -> Raw:
        return {key: value for key, value in row.items() if key != "tolerationSeconds"}

    kept = [bare(row) for row in fresh.get("tolerations") or ()]
    if all(bare(row) in kept for row in before.get("tolerations") or ()):
        return _tolerations(fresh, "spec")
    text = "existing toleration can not be modified except its tolerationSeconds"
    return [forbidden("spec.tolerations", text)]


def _differences(new: Any, old: Any, path: str) -> Iterator[str]:
    """Changed fields, one line each way: `- old` and `+ new`."""
    if isinstance(new, dict) and isinstance(old, dict):
        for key in sorted(new.keys() | old.keys()):
            yield from _differences(new.get(key), old.get(key), f"{path}.{key}" if path else key)
    elif isinstance(new, list) and isinstance(old, list) and len(new) == len(old):
        for index, (left, right) in enumerate(zip(new, old, strict=True)):
            yield from _differences(left, right, f"{path}[{index}]")
    elif (new or None) != (old or None):
        yield f"- {path}: {old}"
        yield f"+ {path}: {new}"
