"""Rules of CronJobs: schedules and time zones. Source: pkg/apis/batch/validation."""

from __future__ import annotations

import datetime as dt
import re
import zoneinfo

from cronsim import CronSim, CronSimError

from podwire.apiserver import names
from podwire.apiserver.fields import FieldError, invalid_value, not_supported, required
from podwire.apiserver.validation.jobs import validate_job_spec
from podwire.apiserver.validation.meta import (
    Raw,
    non_negative,
    validate_annotations,
    validate_labels,
)


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
    return out + validate_job_spec(template.get("spec") or {}, "spec.jobTemplate.spec")


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
