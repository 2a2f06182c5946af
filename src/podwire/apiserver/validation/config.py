"""Rules of Namespace, Node, ConfigMap, Secret, ServiceAccount, claims and other small kinds.

Source: pkg/apis/core/validation/validation.go.
"""

from __future__ import annotations

import base64
import json

from podwire.apiserver import names
from podwire.apiserver.fields import (
    FieldError,
    duplicate,
    forbidden,
    invalid_value,
    not_supported,
    required,
    too_long,
)
from podwire.apiserver.validation.meta import Raw, each, immutable, invalid_each, validate_selector

_MAX_DATA = 1024 * 1024
_IMMUTABLE_SET = "field is immutable when `immutable` is set"


def validate_config_map(obj: Raw, old: Raw | None = None) -> list[FieldError]:
    out: list[FieldError] = []
    data, binary = obj.get("data") or {}, obj.get("binaryData") or {}
    size = 0
    for key, value in data.items():
        out += invalid_each(f"data[{key}]", key, names.is_config_map_key(key))
        if key in binary:
            out.append(invalid_value(f"data[{key}]", key, "duplicate of key present in binaryData"))
        size += len(value.encode())
    for key, value in binary.items():
        out += invalid_each(f"binaryData[{key}]", key, names.is_config_map_key(key))
        size += len(value) * 3 // 4
    if size > _MAX_DATA:
        out.append(too_long("[]", _MAX_DATA))
    return out + (_kept(obj, old, "data", "binaryData") if old is not None else [])


def _kept(obj: Raw, old: Raw, *keys: str) -> list[FieldError]:
    if not old.get("immutable"):
        return []
    out: list[FieldError] = []
    if not obj.get("immutable"):
        out.append(forbidden("immutable", _IMMUTABLE_SET))
    changed = [key for key in keys if (obj.get(key) or None) != (old.get(key) or None)]
    return out + [forbidden(key, _IMMUTABLE_SET) for key in changed]


_SECRET_KEYS = {
    "kubernetes.io/dockercfg": (".dockercfg",),
    "kubernetes.io/dockerconfigjson": (".dockerconfigjson",),
    "kubernetes.io/ssh-auth": ("ssh-privatekey",),
    "kubernetes.io/tls": ("tls.crt", "tls.key"),
}
_ACCOUNT = "kubernetes.io/service-account.name"


def validate_secret(obj: Raw, old: Raw | None = None) -> list[FieldError]:
    out: list[FieldError] = []
    data, kind = obj.get("data") or {}, obj.get("type") or ""
    size = 0
    for key, value in data.items():
        out += invalid_each(f"data[{key}]", key, names.is_config_map_key(key))
        size += len(value) * 3 // 4
    if size > _MAX_DATA:
        out.append(too_long("data", _MAX_DATA))
    out += [required(f"data[{key}]") for key in _SECRET_KEYS.get(kind, ()) if key not in data]
    if kind in ("kubernetes.io/dockercfg", "kubernetes.io/dockerconfigjson"):
        out += [
            invalid_value(f"data[{key}]", "<secret contents redacted>", "invalid JSON")
            for key in _SECRET_KEYS[kind]
            if key in data and not _is_json(data[key])
        ]
    elif kind == "kubernetes.io/basic-auth" and not {"username", "password"} & set(data):
        out += [required(f"data[{key}]") for key in ("username", "password")]
    annotations = (obj.get("metadata") or {}).get("annotations") or {}
    if kind == "kubernetes.io/service-account-token" and not annotations.get(_ACCOUNT):
        out.append(required(f"metadata.annotations[{_ACCOUNT}]"))
    if old is not None:
        out += immutable("type", obj.get("type"), old.get("type"))
        out += _kept(obj, old, "data")
    return out


def _is_json(encoded: str) -> bool:
    try:
        json.loads(base64.b64decode(encoded))
    except ValueError:
        return False
    return True


def validate_namespace(obj: Raw, old: Raw | None = None) -> list[FieldError]:
    out: list[FieldError] = []
    for index, name in enumerate((obj.get("spec") or {}).get("finalizers") or ()):
        at = f"spec.finalizers[{index}]"
        out += invalid_each(at, name, names.is_qualified_name(name))
        if "/" not in name and name not in ("kubernetes", "orphan", "foregroundDeletion"):
            text = "name is neither a standard finalizer name nor is it fully qualified"
            out.append(invalid_value(at, name, text))
    return out


_EFFECTS = ("NoSchedule", "PreferNoSchedule", "NoExecute")


def validate_node(obj: Raw, old: Raw | None = None) -> list[FieldError]:
    spec = obj.get("spec") or {}
    out: list[FieldError] = []
    seen: set[tuple[str, str]] = set()
    for at, taint in each(spec, "taints", "spec"):
        key, effect = taint.get("key") or "", taint.get("effect") or ""
        out += invalid_each(f"{at}.key", key, names.is_qualified_name(key))
        value = taint.get("value") or ""
        out += invalid_each(f"{at}.value", value, names.is_label_value(value))
        if not effect:
            out.append(required(f"{at}.effect"))
        elif effect not in _EFFECTS:
            out.append(not_supported(f"{at}.effect", effect, _EFFECTS))
        if (key, effect) in seen:
            out.append(duplicate(at, taint))
        seen.add((key, effect))
    for index, cidr in enumerate(spec.get("podCIDRs") or ()):
        out += invalid_each(f"spec.podCIDRs[{index}]", cidr, names.is_cidr(cidr))
    if old is not None:
        before = old.get("spec") or {}
        for key, shown in (("podCIDRs", "podCIDR"), ("providerID", "providerID")):
            if before.get(key) and before[key] != spec.get(key):
                text = f'node updates may not change {shown} except from "" to valid'
                out.append(forbidden(f"spec.{key}", text))
    return out


_ACCESS_MODES = ("ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod")


def validate_claim(obj: Raw, old: Raw | None = None) -> list[FieldError]:
    spec = obj.get("spec") or {}
    out: list[FieldError] = []
    if not spec.get("accessModes"):
        out.append(required("spec.accessModes", "at least 1 access mode is required"))
    out += [
        not_supported("spec.accessModes", mode, _ACCESS_MODES)
        for mode in spec.get("accessModes") or ()
        if mode not in _ACCESS_MODES
    ]
    if "storage" not in ((spec.get("resources") or {}).get("requests") or {}):
        out.append(required("spec.resources[storage]"))
    return out + validate_selector(spec.get("selector"), "spec.selector")


def validate_budget(obj: Raw, old: Raw | None = None) -> list[FieldError]:
    spec = obj.get("spec") or {}
    out: list[FieldError] = []
    if spec.get("minAvailable") is not None and spec.get("maxUnavailable") is not None:
        text = "minAvailable and maxUnavailable cannot be both set"
        out.append(invalid_value("spec", spec, text))
    return out + validate_selector(spec.get("selector"), "spec.selector")


def validate_lease(obj: Raw, old: Raw | None = None) -> list[FieldError]:
    spec = obj.get("spec") or {}
    out: list[FieldError] = []
    duration, changes = spec.get("leaseDurationSeconds"), spec.get("leaseTransitions")
    if duration is not None and duration <= 0:
        out.append(invalid_value("spec.leaseDurationSeconds", duration, "must be greater than 0"))
    if changes is not None and changes < 0:
        text = "must be greater than or equal to 0"
        out.append(invalid_value("spec.leaseTransitions", changes, text))
    return out


def validate_autoscaler(obj: Raw, old: Raw | None = None) -> list[FieldError]:
    spec = obj.get("spec") or {}
    low, high = spec.get("minReplicas"), spec.get("maxReplicas") or 0
    out: list[FieldError] = []
    if low is not None and low < 1:
        text = "must be greater than or equal to 1"
        out.append(invalid_value("spec.minReplicas", low, text))
    if high < 1:
        out.append(invalid_value("spec.maxReplicas", high, "must be greater than 0"))
    if low is not None and high < low:
        text = "must be greater than or equal to `minReplicas`"
        out.append(invalid_value("spec.maxReplicas", high, text))
    target = spec.get("scaleTargetRef") or {}
    out += [
        required(f"spec.scaleTargetRef.{key}") for key in ("kind", "name") if not target.get(key)
    ]
    return out
