"""Rules of Deployment, ReplicaSet, StatefulSet and DaemonSet. Source: pkg/apis/apps/validation."""

from __future__ import annotations

import re
from typing import Any

from podwire.apiserver import names
from podwire.apiserver.fields import (
    FieldError,
    GoValue,
    forbidden,
    go_label_selector,
    go_string_map,
    invalid_value,
    not_supported,
    required,
)
from podwire.apiserver.validation.meta import (
    Raw,
    empty_selector,
    immutable,
    non_negative,
    selector_matches,
    validate_annotations,
    validate_labels,
    validate_selector,
)
from podwire.apiserver.validation.pod import validate_pod_spec

_PERCENT = re.compile(r"[0-9]+%", re.ASCII)
_PERCENT_TEXT = names.regex_error(
    "a valid percent string must be a numeric string followed by an ending '%'",
    "[0-9]+%",
    "1%",
    "93%",
)


def validate_template(template: Raw, path: str) -> list[FieldError]:
    metadata = template.get("metadata") or {}
    out = validate_labels(metadata.get("labels"), f"{path}.labels")
    out += validate_annotations(metadata.get("annotations"), f"{path}.annotations")
    return out + validate_pod_spec(template.get("spec") or {}, f"{path}.spec")


def _selected_template(spec: Raw, kind: str) -> list[FieldError]:
    """Selector and template of a workload whose pods live for ever."""
    out: list[FieldError] = []
    selector, template = spec.get("selector"), spec.get("template") or {}
    if selector is None:
        out.append(required("spec.selector"))
    else:
        out += validate_selector(selector, "spec.selector")
        if empty_selector(selector):
            text = f"empty selector is invalid for {kind}"
            out.append(invalid_value("spec.selector", go_label_selector(selector), text))
        labels = (template.get("metadata") or {}).get("labels") or {}
        if not empty_selector(selector) and not selector_matches(selector, labels):
            shown = GoValue(go_string_map(labels or None))
            text = "`selector` does not match template `labels`"
            out.append(invalid_value("spec.template.metadata.labels", shown, text))
    out += validate_template(template, "spec.template")
    pod = template.get("spec") or {}
    policy = pod.get("restartPolicy")
    if policy and policy != "Always":
        out.append(not_supported("spec.template.spec.restartPolicy", policy, ["Always"]))
    if pod.get("activeDeadlineSeconds") is not None:
        text = "activeDeadlineSeconds in ReplicaSet is not Supported"
        out.append(forbidden("spec.template.spec.activeDeadlineSeconds", text))
    return out


def _selector_unchanged(new: Raw, old: Raw) -> list[FieldError]:
    fresh, before = (obj.get("spec", {}).get("selector") for obj in (new, old))
    return immutable("spec.selector", fresh, before, go_label_selector(fresh))


def validate_deployment(obj: Raw, old: Raw | None = None) -> list[FieldError]:
    spec = obj.get("spec") or {}
    out = non_negative(spec, "spec", "replicas") + _selected_template(spec, "deployment")
    out += _strategy(spec.get("strategy") or {}, "spec.strategy")
    out += non_negative(spec, "spec", "minReadySeconds", "revisionHistoryLimit")
    progress = spec.get("progressDeadlineSeconds")
    if progress is not None:
        out += non_negative(spec, "spec", "progressDeadlineSeconds")
        if progress <= (spec.get("minReadySeconds") or 0):
            text = "must be greater than minReadySeconds"
            out.append(invalid_value("spec.progressDeadlineSeconds", progress, text))
    return out + (_selector_unchanged(obj, old) if old is not None else [])


def _strategy(strategy: Raw, path: str) -> list[FieldError]:
    kind, rolling = strategy.get("type"), strategy.get("rollingUpdate")
    if kind == "Recreate":
        if rolling is None:
            return []
        text = "may not be specified when strategy `type` is 'Recreate'"
        return [forbidden(f"{path}.rollingUpdate", text)]
    if kind != "RollingUpdate":
        return [not_supported(f"{path}.type", kind or "", ("Recreate", "RollingUpdate"))]
    at = f"{path}.rollingUpdate"
    if not isinstance(rolling, dict):
        return [required(at, "this should be defaulted and never be nil")]
    unavailable, surge = rolling.get("maxUnavailable", 0), rolling.get("maxSurge", 0)
    out = _count_or_percent(unavailable, f"{at}.maxUnavailable")
    out += _count_or_percent(surge, f"{at}.maxSurge")
    if _is_zero(unavailable) and _is_zero(surge):
        text = "may not be 0 when `maxSurge` is 0"
        out.append(invalid_value(f"{at}.maxUnavailable", unavailable, text))
    return out + _at_most_all(unavailable, f"{at}.maxUnavailable")


def _count_or_percent(value: Any, path: str) -> list[FieldError]:
    if isinstance(value, str):
        return [] if _PERCENT.fullmatch(value) else [invalid_value(path, value, _PERCENT_TEXT)]
    if value < 0:
        return [invalid_value(path, value, "must be greater than or equal to 0")]
    return []


def _is_zero(value: Any) -> bool:
    return value in (0, "0%") or (isinstance(value, str) and not value.strip("0%"))


def _at_most_all(value: Any, path: str) -> list[FieldError]:
    over = isinstance(value, str) and _PERCENT.fullmatch(value) and int(value[:-1]) > 100
    return [invalid_value(path, value, "must not be greater than 100%")] if over else []


def validate_replica_set(obj: Raw, old: Raw | None = None) -> list[FieldError]:
    spec = obj.get("spec") or {}
    out = non_negative(spec, "spec", "replicas", "minReadySeconds")
    out += _selected_template(spec, "deployment")
    return out + (_selector_unchanged(obj, old) if old is not None else [])


def validate_daemon_set(obj: Raw, old: Raw | None = None) -> list[FieldError]:
    spec = obj.get("spec") or {}
    out = _selected_template(spec, "daemonset")
    out += non_negative(spec, "spec", "minReadySeconds", "revisionHistoryLimit")
    out += _daemon_strategy(spec.get("updateStrategy") or {}, "spec.updateStrategy")
    return out + (_selector_unchanged(obj, old) if old is not None else [])


def _daemon_strategy(strategy: Raw, path: str) -> list[FieldError]:
    kind, rolling = strategy.get("type"), strategy.get("rollingUpdate")
    if kind == "OnDelete":
        return []
    if kind != "RollingUpdate":
        return [not_supported(f"{path}.type", kind or "", ("RollingUpdate", "OnDelete"))]
    at = f"{path}.rollingUpdate"
    if not isinstance(rolling, dict):
        return [required(at)]
    unavailable, surge = rolling.get("maxUnavailable", 0), rolling.get("maxSurge", 0)
    out = _count_or_percent(unavailable, f"{at}.maxUnavailable")
    out += _count_or_percent(surge, f"{at}.maxSurge")
    if _is_zero(unavailable) and _is_zero(surge):
        text = "cannot be 0 when maxSurge is 0"
        out.append(invalid_value(f"{at}.maxUnavailable", unavailable, text))
    elif not _is_zero(unavailable) and not _is_zero(surge):
        text = "may not be set when maxUnavailable is non-zero"
        out.append(invalid_value(f"{at}.maxSurge", surge, text))
    return out + _at_most_all(unavailable, f"{at}.maxUnavailable")


_STATEFUL_MUTABLE = (
    "replicas",
    "ordinals",
    "template",
    "updateStrategy",
    "revisionHistoryLimit",
    "persistentVolumeClaimRetentionPolicy",
    "minReadySeconds",
)


def validate_stateful_set(obj: Raw, old: Raw | None = None) -> list[FieldError]:
    spec = obj.get("spec") or {}
    out: list[FieldError] = []
    management = spec.get("podManagementPolicy")
    if management not in ("OrderedReady", "Parallel"):
        text = "must be 'OrderedReady' or 'Parallel'"
        out.append(invalid_value("spec.podManagementPolicy", management or "", text))
    out += _stateful_strategy(spec.get("updateStrategy") or {})
    retention = spec.get("persistentVolumeClaimRetentionPolicy") or {}
    for key in ("whenDeleted", "whenScaled"):
        if retention.get(key) not in (None, "Retain", "Delete"):
            at = f"spec.persistentVolumeClaimRetentionPolicy.{key}"
            out.append(not_supported(at, retention[key], ("Delete", "Retain")))
    out += non_negative(spec, "spec", "replicas", "minReadySeconds", "revisionHistoryLimit")
    out += _selected_template(spec, "statefulset")
    if old is not None:
        before = old.get("spec") or {}
        fixed = (set(spec) | set(before)) - set(_STATEFUL_MUTABLE)
        if any((spec.get(key) or None) != (before.get(key) or None) for key in fixed):
            listed = ", ".join(f"'{key}'" for key in _STATEFUL_MUTABLE[:-1])
            text = (
                f"updates to statefulset spec for fields other than {listed} and "
                f"'{_STATEFUL_MUTABLE[-1]}' are forbidden"
            )
            out.append(forbidden("spec", text))
    return out


def _stateful_strategy(strategy: Raw) -> list[FieldError]:
    path, kind = "spec.updateStrategy", strategy.get("type")
    rolling = strategy.get("rollingUpdate")
    if kind == "RollingUpdate":
        return non_negative(rolling or {}, f"{path}.rollingUpdate", "partition")
    if kind == "OnDelete":
        if rolling is None:
            return []
        text = "only allowed for updateStrategy 'RollingUpdate'"
        return [invalid_value(f"{path}.rollingUpdate", rolling, text)]
    return [invalid_value(f"{path}.type", kind or "", "must be 'RollingUpdate' or 'OnDelete'")]
