"""Rules of containers. Source: pkg/apis/core/validation/validation.go (validateContainers)."""

from __future__ import annotations

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
from podwire.apiserver.validation.env import validate_env, validate_env_from
from podwire.apiserver.validation.meta import (
    NEGATIVE,
    PROTOCOLS,
    Raw,
    check_enum,
    each,
    invalid_each,
)
from podwire.apiserver.validation.probes import validate_lifecycle, validate_probe
from podwire.apiserver.validation.volumes import validate_local_path

_MESSAGE_POLICIES = ("File", "FallbackToLogsOnError")
_PULL_POLICIES = ("Always", "IfNotPresent", "Never")
_CONTAINER_LISTS = ("initContainers", "containers", "ephemeralContainers")
_STANDARD_RESOURCES = frozenset({"cpu", "memory", "ephemeral-storage"})
_MAX_ID = 2**31 - 1


def validate_containers(spec: Raw, path: str, volumes: set[str]) -> list[FieldError]:
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
    out += validate_lifecycle(container, path)
    for key in ("livenessProbe", "readinessProbe", "startupProbe"):
        if isinstance(container.get(key), dict):
            out += validate_probe(container[key], f"{path}.{key}", key)
    out += check_enum(
        container, path, "terminationMessagePolicy", ("File", "FallbackToLogsOnError")
    )
    out += _ports(container, path)
    out += validate_env(container, path)
    out += validate_env_from(container, path)
    out += _mounts(container, path, volumes)
    out += check_enum(container, path, "imagePullPolicy", _PULL_POLICIES)
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
        out += check_enum(port, at, "protocol", PROTOCOLS)
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
            out += validate_local_path(mount.get(key) or "", f"{at}.{key}")
        if mount.get("subPath") and mount.get("subPathExpr"):
            text = "subPathExpr and subPath are mutually exclusive"
            out.append(invalid_value(f"{at}.subPathExpr", mount["subPathExpr"], text))
    return out


# --- resources, security ---------------------------------------------------------------------


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


def _security(context: Raw, path: str) -> list[FieldError]:
    out = validate_ids(context, path)
    if context.get("allowPrivilegeEscalation") is False and context.get("privileged"):
        text = "cannot set `allowPrivilegeEscalation` to false and `privileged` to true"
        out.append(invalid_value(path, context, text))
    return out


def validate_ids(context: Raw, path: str) -> list[FieldError]:
    return [
        invalid_value(f"{path}.{key}", context[key], names.in_range(0, _MAX_ID))
        for key in ("runAsUser", "runAsGroup", "fsGroup")
        if context.get(key) is not None and not 0 <= context[key] <= _MAX_ID
    ]
