"""What a Job is to do next, from its pods and its counters. Pure.

    pods, status -> count (`jobcount`) -> verdict? -> finish | manage -> JobPlan

Source: pkg/controller/job/job_controller.go and backoff_utils.go.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from podwire.controllers.conditions import Board
from podwire.controllers.jobcount import FINALIZER, Counts, count, ended_at
from podwire.controllers.jobindex import (
    failures_of,
    format_indexes,
    index_of,
    met_success_policy,
    valid_index,
)
from podwire.controllers.podfailure import IGNORE, judge
from podwire.controllers.podstate import rank_for_deletion, since_s
from podwire.controllers.views import Pod
from podwire.objects.apps import Job, TimedCondition
from podwire.objects.meta import JsonObject, format_time

_BACKOFF_S, _MAX_BACKOFF_S = 10.0, 600.0


# --- planning -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class NewPod:
    """A pod to create: its index if the Job has any, and how often that failed before."""

    index: int | None = None
    failures: int = 0
    ignored: int = 0


@dataclass
class JobPlan:
    """`status` is the part to write. Finalizers come off `release` before `delete` is deleted, so a
    pod in both is not counted."""

    status: JsonObject
    conditions: list[TimedCondition]
    create: list[NewPod] = field(default_factory=list)
    delete: list[Pod] = field(default_factory=list)
    release: list[Pod] = field(default_factory=list)
    requeue_s: float | None = None
    outcome: str = ""

    def drop(self, pods: Sequence[Pod]) -> None:
        """Delete pods that are not needed; that is no failure of theirs."""
        self.delete = list(pods)
        self.release = [*self.release, *(p for p in pods if FINALIZER in p.metadata.finalizers)]


def plan_job(job: Job, pods: Sequence[Pod], now: dt.datetime) -> JobPlan:
    counts = count(job, pods)
    over = job.finished or job.deleting
    verdict = None if over else _verdict(job, counts, now)
    if over or verdict is not None:
        counts.let_go()
    plan = JobPlan(_numbers(job, counts), list(job.status.conditions), release=counts.release)
    if over:
        plan.delete = counts.active if job.finished else []
        return plan
    board = Board(plan.conditions, now, looked="last_probe_time")
    _suspend(job, plan, board)
    if verdict is not None:
        if verdict.condition == "Complete":
            plan.drop(counts.active)
        else:
            plan.delete = counts.active
        _finish(plan, board, verdict, counts)
    elif job.spec.suspend:
        plan.drop(counts.active)
    else:
        _manage(job, counts, plan, now)
    plan.conditions = board.conditions
    return plan


def _numbers(job: Job, counts: Counts) -> JsonObject:
    """The counters with everything settled moved in."""
    done = counts.settled & counts.succeeded
    lost = counts.settled & counts.failed
    succeeded = job.status.succeeded + len(done)
    if job.spec.completion_mode == "Indexed":
        succeeded = len(counts.completed)
    per_index = job.spec.backoff_limit_per_index is not None
    return {
        "active": len(counts.active),
        "ready": counts.ready,
        "terminating": len(counts.terminating),
        "succeeded": succeeded,
        "failed": job.status.failed + len(lost),
        "completedIndexes": format_indexes(counts.completed),
        "failedIndexes": format_indexes(counts.lost) if per_index else None,
        "uncountedTerminatedPods": {
            "succeeded": sorted(counts.succeeded - counts.settled) or None,
            "failed": sorted(counts.failed - counts.settled) or None,
        },
    }


@dataclass(frozen=True)
class _Verdict:
    target: str
    condition: str
    reason: str
    message: str


def _done(reason: str, message: str) -> _Verdict:
    return _Verdict("SuccessCriteriaMet", "Complete", reason, message)


def _failed(reason: str, message: str) -> _Verdict:
    return _Verdict("FailureTarget", "Failed", reason, message)


def _verdict(job: Job, counts: Counts, now: dt.datetime) -> _Verdict | None:
    for known in job.status.conditions:
        if known.type == "FailureTarget" and known.status == "True":
            return _failed(known.reason, known.message)
        if known.type == "SuccessCriteriaMet" and known.status == "True":
            return _done(known.reason, known.message)
    if counts.fatal:
        return _failed("PodFailurePolicy", counts.fatal)
    failed = job.status.failed + len(counts.failed) + len(counts.held_failed)
    limit = job.spec.backoff_limit
    if failed > limit or _restarts_exceeded(job, counts, limit):
        return _failed("BackoffLimitExceeded", "Job has reached the specified backoff limit")
    deadline = job.spec.active_deadline_seconds
    started = job.status.start_time
    counting = deadline is not None and started and not job.spec.suspend
    if counting and since_s(started, now) >= (deadline or 0):
        return _failed("DeadlineExceeded", "Job was active longer than specified deadline")
    return _index_verdict(job, counts) or _completion(job, counts)


def _index_verdict(job: Job, counts: Counts) -> _Verdict | None:
    spec = job.spec
    if spec.completion_mode != "Indexed":
        return None
    if spec.backoff_limit_per_index is not None:
        most, lost = spec.max_failed_indexes, len(counts.lost)
        if most is not None and lost > most:
            text = "Job has exceeded the specified maximal number of failed indexes"
            return _failed("MaxFailedIndexesExceeded", text)
        if lost and lost + len(counts.completed) >= (spec.completions or 0):
            return _failed("FailedIndexes", "Job has failed indexes")
    met = met_success_policy(job, counts.completed)
    return _done("SuccessPolicy", met) if met else None


def _completion(job: Job, counts: Counts) -> _Verdict | None:
    succeeded = _succeeded(job, counts)
    if job.spec.completions is None:
        complete = succeeded > 0 and not counts.active
    else:
        complete = succeeded >= job.spec.completions
    if not complete:
        return None
    return _done("CompletionsReached", "Reached expected number of succeeded pods")


def _succeeded(job: Job, counts: Counts) -> int:
    if job.spec.completion_mode == "Indexed":
        return len(counts.completed)
    return job.status.succeeded + len(counts.succeeded)


def _restarts_exceeded(job: Job, counts: Counts, limit: int) -> bool:
    """With restartPolicy OnFailure, containers' restarts count as failures."""
    if (job.spec.template.get("spec") or {}).get("restartPolicy") != "OnFailure":
        return False
    restarts = sum(
        status.restart_count
        for pod in (*counts.active, *counts.terminating)
        for status in (*pod.status.init_container_statuses, *pod.status.container_statuses)
    )
    return restarts > 0 if limit == 0 else restarts >= limit


def _suspend(job: Job, plan: JobPlan, board: Board) -> None:
    now = format_time(board.now)
    if job.spec.suspend:
        if board.put("Suspended", "True", "JobSuspended", "Job suspended"):
            plan.status["startTime"] = None
        return
    if (said := board.get("Suspended")) is not None and said.status == "True":
        board.put("Suspended", "False", "JobResumed", "Job resumed")
        plan.status["startTime"] = now
    elif job.status.start_time is None:
        plan.status["startTime"] = now


def _finish(plan: JobPlan, board: Board, verdict: _Verdict, counts: Counts) -> None:
    board.put(verdict.target, "True", verdict.reason, verdict.message)
    uncounted = plan.status["uncountedTerminatedPods"]
    if counts.active or counts.terminating or any(uncounted.values()):
        return
    board.put(verdict.condition, "True", verdict.reason, verdict.message)
    plan.outcome = verdict.condition
    if verdict.condition == "Complete":
        plan.status["completionTime"] = format_time(board.now)


# --- pods wanted ----------------------------------------------------------------------------------


def _manage(job: Job, counts: Counts, plan: JobPlan, now: dt.datetime) -> None:
    spec = job.spec
    active, succeeded = len(counts.active), _succeeded(job, counts)
    if spec.completions is None:
        wanted = active if succeeded else spec.parallelism
    else:
        wanted = max(0, min(spec.parallelism, spec.completions - succeeded))
    surplus = _surplus(job, counts, active - wanted, now)
    if spec.pod_replacement_policy == "Failed":
        active += len(counts.terminating)
    if surplus:
        plan.drop(surplus)
    elif active < wanted:
        _replace(job, counts, plan, wanted - active, now)
    if spec.active_deadline_seconds is not None:
        started = plan.status.get("startTime") or job.status.start_time
        due = spec.active_deadline_seconds - since_s(started, now)
        plan.requeue_s = min(max(due, 0.0), plan.requeue_s or math.inf)


def _surplus(job: Job, counts: Counts, least: int, now: dt.datetime) -> list[Pod]:
    """Pods to remove: doubles of an index, those of no index the Job has, then the least useful."""
    order = list(rank_for_deletion(counts.active, (), now))
    out: list[Pod] = []
    if job.spec.completion_mode == "Indexed":
        best: dict[int | None, Pod] = {valid_index(job, pod): pod for pod in order}
        best.pop(None, None)
        kept = {pod.metadata.uid for pod in best.values()}
        out = [pod for pod in order if pod.metadata.uid not in kept]
        order = [pod for pod in order if pod.metadata.uid in kept]
    return out + order[: max(0, least - len(out))]


def _replace(job: Job, counts: Counts, plan: JobPlan, number: int, now: dt.datetime) -> None:
    """Create pods whose back-off is over; look again when the next one's is."""
    if job.spec.backoff_limit_per_index is None:
        delay_s = _backoff_s(counts, now)
        if delay_s > 0:
            plan.requeue_s = delay_s
        elif job.spec.completion_mode == "Indexed":
            plan.create = [NewPod(index) for index in _free_indexes(job, counts, number)]
        else:
            plan.create = [NewPod()] * number
        return
    waits = []
    for index in _free_indexes(job, counts, number):
        new, delay_s = _again(job, index, counts.held.get(index), now)
        if delay_s > 0:
            waits.append(delay_s)
        else:
            plan.create.append(new)
    plan.requeue_s = min(waits, default=None)


def _free_indexes(job: Job, counts: Counts, number: int) -> list[int]:
    busy = [*counts.active]
    if job.spec.pod_replacement_policy == "Failed":
        busy += counts.terminating
    taken = counts.completed | counts.lost | {index_of(pod) for pod in busy}
    free = (i for i in range(job.spec.completions or 0) if i not in taken)
    return [i for i, _ in zip(free, range(number), strict=False)]


def _again(job: Job, index: int, last: Pod | None, now: dt.datetime) -> tuple[NewPod, float]:
    """The next pod of an index, and how long it still has to wait."""
    if last is None:
        return NewPod(index), 0.0
    counted, ignored = failures_of(last)
    delay_s = _delay_s(counted + ignored + 1, ended_at(last), now)
    if judge(job, last).action == IGNORE:
        return NewPod(index, counted, ignored + 1), delay_s
    return NewPod(index, counted + 1, ignored), delay_s


def _backoff_s(counts: Counts, now: dt.datetime) -> float:
    """Seconds until the next try, for all failures since the last success."""
    ends = sorted(counts.finished_at, reverse=True)
    failures = next((i for i, (_, failed) in enumerate(ends) if not failed), len(ends))
    return _delay_s(failures, ends[0][0], now) if failures else 0.0


def _delay_s(failures: int, last: dt.datetime, now: dt.datetime) -> float:
    """10 s doubled for every failure after the first, from the last one on."""
    delay = min(_BACKOFF_S * 2.0 ** min(failures - 1, 10), _MAX_BACKOFF_S)
    return max(0.0, delay - (now - last).total_seconds())
