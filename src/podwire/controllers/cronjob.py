"""CronJobs: a Job for every time of the schedule, as the concurrency policy allows.

The queue's timer is the only clock: each pass says when the next time is due.
Source: pkg/controller/cronjob/cronjob_controllerv2.go.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

from podwire.client import Change, WorkQueue
from podwire.controllers.cluster import Cluster
from podwire.controllers.podcontrol import controller_ref, is_namespace_going
from podwire.errors import AlreadyExistsError, ApiError
from podwire.objects import kinds
from podwire.objects.apps import CronJob, Job
from podwire.objects.meta import JsonObject, Key, format_time, parse_time

_COMPONENT = "cronjob-controller"
SCHEDULED = "batch.kubernetes.io/cronjob-scheduled-timestamp"
_MACROS = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}


class ScheduleError(ValueError):
    """The schedule or time zone cannot be used; the text is for an Event."""


@dataclass(frozen=True)
class Times:
    """`due`: the latest time missed since `since`, if any; `next`: the one after now."""

    due: dt.datetime | None
    next: dt.datetime


def plan_times(schedule: str, zone: str | None, since: dt.datetime, now: dt.datetime) -> Times:
    """When the schedule was last due after `since`, and when it is due next."""
    try:
        local = now.astimezone(ZoneInfo(zone) if zone else dt.UTC)
        expression = _MACROS.get(schedule.strip(), schedule)
        # cronsim walks away from the given moment; a second more makes `now` itself count.
        past = next(CronSim(expression, local + dt.timedelta(seconds=1), reverse=True), None)
        future = next(CronSim(expression, local), None)
    except (CronSimError, ZoneInfoNotFoundError, ValueError) as error:
        raise ScheduleError(f"unparseable schedule {schedule!r}: {error}") from error
    if future is None:
        raise ScheduleError(f"schedule {schedule!r} is never due")
    due = past.astimezone(dt.UTC) if past is not None and since < past <= now else None
    return Times(due, future.astimezone(dt.UTC))


@dataclass
class CronPlan:
    start: dt.datetime | None = None
    replace: list[Job] = field(default_factory=list)
    forget: list[Job] = field(default_factory=list)
    """Finished Jobs beyond the history limits."""
    active: list[Job] = field(default_factory=list)
    succeeded_at: str | None = None
    skipped: str = ""
    requeue_s: float | None = None


def plan_cron_job(cron: CronJob, jobs: Sequence[Job], now: dt.datetime) -> CronPlan:
    """Raises ScheduleError."""
    plan = CronPlan(active=[j for j in jobs if not j.finished])
    spec = cron.spec
    done = [j for j in jobs if j.outcome == "Complete"]
    failed = [j for j in jobs if j.outcome == "Failed"]
    plan.forget = _excess(done, spec.successful_jobs_history_limit)
    plan.forget += _excess(failed, spec.failed_jobs_history_limit)
    plan.succeeded_at = max((j.status.completion_time or "" for j in done), default="") or None
    if spec.suspend or cron.deleting:
        return plan
    since = parse_time(cron.status.last_schedule_time or cron.metadata.creation_timestamp or "")
    deadline = spec.starting_deadline_seconds
    if deadline is not None:
        since = max(since, now - dt.timedelta(seconds=deadline))
    times = plan_times(spec.schedule, spec.time_zone, since, now)
    plan.requeue_s = (times.next - now).total_seconds() + 0.05
    if times.due is None:
        return plan
    running = [j for j in plan.active if not j.deleting]
    if running and spec.concurrency_policy == "Forbid":
        plan.skipped = (
            "Not starting job because prior execution is running and concurrency policy is Forbid"
        )
        return plan
    if spec.concurrency_policy == "Replace":
        plan.replace = running
    plan.start = times.due
    return plan


def _excess(jobs: Sequence[Job], limit: int) -> list[Job]:
    oldest = sorted(jobs, key=lambda j: (j.status.start_time or "", j.metadata.name))
    return [j for j in oldest[: max(0, len(jobs) - limit)] if not j.deleting]


def job_body(cron: CronJob, due: dt.datetime) -> JsonObject:
    """The Job of one scheduled time; the name makes starting it twice impossible."""
    template = cron.spec.job_template
    meta = template.get("metadata") or {}
    return {
        "metadata": {
            "name": f"{cron.metadata.name}-{int(due.timestamp()) // 60}",
            "namespace": cron.metadata.namespace,
            "labels": meta.get("labels") or {},
            "annotations": {**(meta.get("annotations") or {}), SCHEDULED: format_time(due)},
            "ownerReferences": [controller_ref(kinds.CRON_JOB, cron)],
        },
        "spec": template.get("spec") or {},
    }


class CronJobController:
    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._queue: WorkQueue[Key] = WorkQueue(_COMPONENT, self._reconcile)
        self._objects = cluster.informer(kinds.CRON_JOB).objects
        self._jobs = cluster.owned(kinds.JOB)
        cluster.informer(kinds.CRON_JOB).on_change(self._changed)
        cluster.informer(kinds.JOB).on_change(self._job_changed)

    async def run(self) -> None:
        await self._queue.run()

    def _changed(self, change: Change[CronJob]) -> None:
        if change.new is not None:
            self._queue.add(change.key)

    def _job_changed(self, change: Change[Job]) -> None:
        job = change.new or change.old
        assert job is not None
        ref = job.metadata.controller
        if ref is None or ref.kind != "CronJob":
            return
        key = Key(job.metadata.namespace, ref.name)
        self._queue.add(key)
        cron = self._objects.get(key)
        ended = change.new is not None and not (change.old and change.old.finished)
        if cron is None or not job.outcome or not ended:
            return
        if any(a.get("uid") == job.metadata.uid for a in cron.status.active):
            text = f"Saw completed job: {job.metadata.name}, condition: {job.outcome}"
            self._say(cron, "Normal", "SawCompletedJob", text)

    async def _reconcile(self, key: Key) -> float | None:
        cron = self._objects.get(key)
        if cron is None:
            return None
        jobs = self._jobs.owned(cron.metadata.uid)
        try:
            plan = plan_cron_job(cron, jobs, self._cluster.now())
        except ScheduleError as error:
            self._say(cron, "Warning", "UnparseableSchedule", str(error))
            return None
        for job in plan.forget:
            await self._cluster.delete(kinds.JOB, job, propagation="Background")
            self._say(cron, "Normal", "SuccessfulDelete", f"Deleted job {job.metadata.name}")
        if plan.skipped:
            self._say(cron, "Normal", "JobAlreadyActive", plan.skipped)
        for job in plan.replace:
            await self._cluster.delete(kinds.JOB, job, propagation="Background")
            plan.active = [j for j in plan.active if j is not job]
            self._say(cron, "Normal", "SuccessfulDelete", f"Deleted job {job.metadata.name}")
        refs = [_reference(job) for job in plan.active]
        if plan.start is not None:
            started = await self._start(cron, plan.start)
            if started is not None and all(r["uid"] != started["uid"] for r in refs):
                refs.append(started)
        await self._write_status(cron, plan, refs)
        return plan.requeue_s

    async def _start(self, cron: CronJob, due: dt.datetime) -> JsonObject | None:
        body = job_body(cron, due)
        name = body["metadata"]["name"]
        try:
            job = await self._cluster.api.create(kinds.JOB, body)
        except AlreadyExistsError:
            return None  # started in an earlier pass whose status write was lost
        except ApiError as error:
            if not is_namespace_going(error):
                self._say(cron, "Warning", "FailedCreate", f"Error creating job: {error.message}")
            raise
        self._say(cron, "Normal", "SuccessfulCreate", f"Created job {name}")
        return _reference(job)

    async def _write_status(self, cron: CronJob, plan: CronPlan, refs: list[JsonObject]) -> None:
        body: dict[str, Any] = {}
        if {r["uid"] for r in refs} != {r.get("uid") for r in cron.status.active}:
            body["active"] = refs or None
        if plan.start is not None:
            body["lastScheduleTime"] = format_time(plan.start)
        if plan.succeeded_at and plan.succeeded_at > (cron.status.last_successful_time or ""):
            body["lastSuccessfulTime"] = plan.succeeded_at
        if body:
            await self._cluster.patch_status(kinds.CRON_JOB, cron, body)

    def _say(self, cron: CronJob, event_type: str, reason: str, message: str) -> None:
        self._cluster.events.say(_COMPONENT, kinds.CRON_JOB, cron, event_type, reason, message)


def _reference(job: Job) -> JsonObject:
    meta = job.metadata
    return {
        "apiVersion": kinds.JOB.api_version,
        "kind": kinds.JOB.kind,
        "name": meta.name,
        "namespace": meta.namespace,
        "uid": meta.uid,
        "resourceVersion": meta.resource_version,
    }
