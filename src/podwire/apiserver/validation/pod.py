"""Rules of pods and pod templates.

Source: pkg/apis/core/validation/validation.go (ValidatePodSpec).
"""

from __future__ import annotations

from podwire.apiserver import names
from podwire.apiserver.fields import FieldError, forbidden, invalid_value, required, too_long
from podwire.apiserver.validation.containers import validate_containers, validate_ids
from podwire.apiserver.validation.meta import (
    PROTOCOLS,
    Raw,
    check_enum,
    each,
    invalid_each,
    validate_labels,
    validate_port_or_name,
)
from podwire.apiserver.validation.scheduling import (
    validate_affinity,
    validate_spread,
    validate_tolerations,
)
from podwire.apiserver.validation.volumes import validate_volumes

__all__ = ["PROTOCOLS", "validate_pod", "validate_pod_spec", "validate_port_or_name"]

_MAX_ID = 2**31 - 1
_MAX_HOSTNAME_OVERRIDE = 64


def validate_pod(pod: Raw) -> list[FieldError]:
    spec = pod.get("spec") or {}
    out = validate_pod_spec(spec, "spec")
    if spec.get("ephemeralContainers"):
        out.append(forbidden("spec.ephemeralContainers", "cannot be set on create"))
    return out


def validate_pod_spec(spec: Raw, path: str) -> list[FieldError]:
    out: list[FieldError] = []
    volumes, errors = validate_volumes(spec, path)
    out += errors
    if not spec.get("containers"):
        out.append(required(f"{path}.containers"))
    out += validate_containers(spec, path, volumes)
    out += check_enum(spec, path, "restartPolicy", ("Always", "OnFailure", "Never"))
    out += check_enum(spec, path, "dnsPolicy", _DNS_POLICIES)
    out += validate_labels(spec.get("nodeSelector"), f"{path}.nodeSelector")
    out += _host_namespaces(spec, path)
    for at, secret in each(spec, "imagePullSecrets", path):
        if not secret.get("name"):
            out.append(required(f"{at}.name"))
    out += validate_affinity(spec.get("affinity") or {}, f"{path}.affinity")
    out += _dns_config(spec, path)
    for key in ("serviceAccountName", "nodeName", "priorityClassName", "runtimeClassName"):
        if spec.get(key):
            out += invalid_each(f"{path}.{key}", spec[key], names.is_dns_subdomain(spec[key]))
    for key in ("hostname", "subdomain"):
        if spec.get(key):
            out += invalid_each(f"{path}.{key}", spec[key], names.is_dns_label(spec[key]))
    out += _hostname_override(spec, path)
    out += validate_tolerations(spec, path)
    out += _host_aliases(spec, path)
    out += validate_spread(spec, path)
    deadline = spec.get("activeDeadlineSeconds")
    if deadline is not None and not 1 <= deadline <= _MAX_ID:
        text = names.in_range(1, _MAX_ID)
        out.append(invalid_value(f"{path}.activeDeadlineSeconds", deadline, text))
    return out


_DNS_POLICIES = ("ClusterFirstWithHostNet", "ClusterFirst", "Default", "None")


# --- the rest of the spec --------------------------------------------------------------------


def _host_namespaces(spec: Raw, path: str) -> list[FieldError]:
    context = spec.get("securityContext") or {}
    out = validate_ids(context, f"{path}.securityContext")
    if spec.get("shareProcessNamespace") and spec.get("hostPID"):
        text = "ShareProcessNamespace and HostPID cannot both be enabled"
        out.append(invalid_value(f"{path}.shareProcessNamespace", True, text))
    return out


def _hostname_override(spec: Raw, path: str) -> list[FieldError]:
    """KEP-4762: the whole name, so nothing may add to it; a node's own name is not replaced."""
    name, at = spec.get("hostnameOverride"), f"{path}.hostnameOverride"
    if name is None:
        return []
    out = invalid_each(at, name, names.is_dns_subdomain(name))
    if len(name) > _MAX_HOSTNAME_OVERRIDE:
        out.append(too_long(at, _MAX_HOSTNAME_OVERRIDE))
    if spec.get("hostNetwork"):
        text = "may not be set when hostnameOverride is specified"
        out.append(forbidden(f"{path}.hostNetwork", text))
    if spec.get("setHostnameAsFQDN"):
        text = "may not be true when hostnameOverride is specified"
        out.append(forbidden(f"{path}.setHostnameAsFQDN", text))
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
