"""Rules of Deployment, ReplicaSet, StatefulSet, DaemonSet, Job and CronJob.

Source: pkg/apis/apps/validation, pkg/apis/batch/validation.
"""

from __future__ import annotations

import datetime as dt
import re
import zoneinfo
from typing import Any

from cronsim import CronSim, CronSimError

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


# --- jobs ------------------------------------------------------------------------------------


def validate_job(obj: Raw, old: Raw | None = None) -> list[FieldError]:
    spec = obj.get("spec") or {}
    out = _job_spec(spec, "spec")
    selector = spec.get("selector")
    if selector is not None:
        labels = ((spec.get("template") or {}).get("metadata") or {}).get("labels") or {}
        out += validate_selector(selector, "spec.selector")
        if not selector_matches(selector, labels):
            shown = GoValue(go_string_map(labels or None))
            text = "`selector` does not match template `labels`"
            out.append(invalid_value("spec.template.metadata.labels", shown, text))
    if old is not None:
        out += _job_update(spec, old.get("spec") or {})
    return out


def _job_spec(spec: Raw, path: str) -> list[FieldError]:
    out = non_negative(
        spec,
        path,
        *("parallelism", "completions", "activeDeadlineSeconds", "backoffLimit"),
        *("ttlSecondsAfterFinished", "backoffLimitPerIndex", "maxFailedIndexes"),
    )
    mode = spec.get("completionMode")
    if mode not in (None, "Indexed", "NonIndexed"):
        out.append(not_supported(f"{path}.completionMode", mode, ("Indexed", "NonIndexed")))
    if mode == "Indexed" and spec.get("completions") is None:
        text = "when completion mode is Indexed"
        out.append(required(f"{path}.completions", text))
    template = spec.get("template") or {}
    out += validate_template(template, f"{path}.template")
    policy = (template.get("spec") or {}).get("restartPolicy") or ""
    at = f"{path}.template.spec.restartPolicy"
    # Always is what the defaults make of none, so both are answered as upstream answers them.
    if policy in ("", "Always"):
        out.append(required(at, 'valid values: "OnFailure", "Never"'))
    elif policy not in ("OnFailure", "Never"):
        out.append(not_supported(at, policy, ("OnFailure", "Never")))
    if spec.get("podFailurePolicy") and policy != "Never":
        text = 'only "Never" is supported when podFailurePolicy is specified'
        out.append(invalid_value(at, policy, text))
    return out


_SUSPENDED_MUTABLE = ("nodeSelector", "affinity", "tolerations", "schedulingGates")


def _job_update(new: Raw, old: Raw) -> list[FieldError]:
    out: list[FieldError] = []
    elastic = new.get("completionMode") == "Indexed" and new.get("completions") == new.get(
        "parallelism"
    )
    if not elastic:
        out += immutable("spec.completions", new.get("completions"), old.get("completions"))
    fresh, before = new.get("selector"), old.get("selector")
    out += immutable("spec.selector", fresh, before, go_label_selector(fresh))
    template, previous = new.get("template") or {}, old.get("template") or {}
    if old.get("suspend"):
        # A suspended job that never started may still be told where to run.
        template, previous = (_without_scheduling(each) for each in (template, previous))
    out += immutable("spec.template", template, previous)
    for key in ("completionMode", "podFailurePolicy", "backoffLimitPerIndex"):
        out += immutable(f"spec.{key}", new.get(key), old.get(key))
    return out


def _without_scheduling(template: Raw) -> Raw:
    spec = {k: v for k, v in (template.get("spec") or {}).items() if k not in _SUSPENDED_MUTABLE}
    return {"spec": spec}


def validate_cron_job(obj: Raw, old: Raw | None = None) -> list[FieldError]:
    spec = obj.get("spec") or {}
    out: list[FieldError] = []
    name = (obj.get("metadata") or {}).get("name") or ""
    # The controller appends 11 characters to name its jobs.
    if old is None and len(name) > 52:
        out.append(invalid_value("metadata.name", name, names.max_length(52)))
    schedule = spec.get("schedule") or ""
    if not schedule:
        out.append(required("spec.schedule"))
    elif problem := schedule_problem(schedule):
        out.append(invalid_value("spec.schedule", schedule, problem))
    out += _time_zone(spec.get("timeZone"))
    out += non_negative(spec, "spec", "startingDeadlineSeconds")
    policies = ("Allow", "Forbid", "Replace")
    if spec.get("concurrencyPolicy") not in policies:
        value = spec.get("concurrencyPolicy") or ""
        out.append(not_supported("spec.concurrencyPolicy", value, policies))
    out += non_negative(spec, "spec", "successfulJobsHistoryLimit", "failedJobsHistoryLimit")
    template = spec.get("jobTemplate") or {}
    metadata = template.get("metadata") or {}
    out += validate_labels(metadata.get("labels"), "spec.jobTemplate.labels")
    out += validate_annotations(metadata.get("annotations"), "spec.jobTemplate.annotations")
    return out + _job_spec(template.get("spec") or {}, "spec.jobTemplate.spec")


def _time_zone(zone: str | None) -> list[FieldError]:
    if zone is None:
        return []
    if not zone:
        return [invalid_value("spec.timeZone", zone, "timeZone must be nil or non-empty string")]
    if zone.lower() == "local":
        text = (
            "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones"
        )
        return [invalid_value("spec.timeZone", zone, text)]
    try:
        zoneinfo.ZoneInfo(zone)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        return [invalid_value("spec.timeZone", zone, f"unknown time zone {zone}")]
    return []


_DESCRIPTORS = frozenset(
    {"@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "@hourly"}
)
_DURATION = re.compile(r"([0-9]+(\.[0-9]*)?(ns|us|µs|ms|s|m|h))+", re.ASCII)


def schedule_problem(schedule: str) -> str | None:
    """Why a cron schedule cannot be used, None for a good one."""
    if "TZ" in schedule:
        return "cannot use TZ or CRON_TZ in schedule, use timeZone field instead"
    if schedule.startswith("@every "):
        duration = schedule.removeprefix("@every ")
        if _DURATION.fullmatch(duration):
            return None
        return f'failed to parse duration @every {duration}: time: invalid duration "{duration}"'
    if schedule.startswith("@"):
        return None if schedule in _DESCRIPTORS else f"unrecognized descriptor: {schedule}"
    parts = schedule.split()
    if len(parts) != 5:
        return f"expected exactly 5 fields, found {len(parts)}: [{' '.join(parts)}]"
    try:
        # `?` means any, and cronsim's own extensions (L, #) are not Kubernetes'.
        if any(char in "L#W" for part in parts[:3] for char in part):
            raise CronSimError("L, W and # are not supported")
        CronSim(" ".join(parts).replace("?", "*"), dt.datetime(2024, 1, 1, tzinfo=dt.UTC))
    except CronSimError as err:
        return f"failed to parse {schedule!r}: {err}"
    return None
