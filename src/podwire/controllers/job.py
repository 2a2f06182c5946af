"""Jobs: run pods until enough have succeeded, or too many have failed.

Every pod carries a finalizer until it is in the counters, so that a finished pod that somebody
deletes is still counted exactly once:

    finished -> uid into status.uncountedTerminatedPods -> finalizer off -> counter up, uid out

Status writes are exact (resourceVersion): a stale cache loses instead of counting twice.
Source: pkg/controller/job.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from podwire.client import Change
from podwire.controllers.cluster import Cluster
from podwire.controllers.conditions import Board
from podwire.controllers.podcontrol import PodTemplate, random_name
from podwire.controllers.podfailure import FAIL_JOB, IGNORE, Judgement, judge
from podwire.controllers.podowner import PodOwner
from podwire.controllers.podstate import is_active, since_s
from podwire.controllers.views import POD, Pod, raw
from podwire.errors import NotFoundError
from podwire.objects import kinds
from podwire.objects.apps import Job, TimedCondition, Uncounted
from podwire.objects.meta import JsonObject, Key, LabelSelector, format_time, parse_time

FINALIZER = "batch.kubernetes.io/job-tracking"
INDEX = "batch.kubernetes.io/job-completion-index"
_BACKOFF_S, _MAX_BACKOFF_S = 10.0, 600.0


# --- indexes --------------------------------------------------------------------------------------


def parse_indexes(text: str) -> set[int]:
    """`1,3-5` as a set."""
    found: set[int] = set()
    for part in text.split(","):
        low, _, high = part.partition("-")
        if low.isdigit():
            found.update(range(int(low), int(high or low) + 1))
    return found


def format_indexes(indexes: Iterable[int]) -> str:
    """A set as `1,3-5`: runs of three and more are ranges, of two are lists."""
    runs: list[list[int]] = []
    for index in sorted(indexes):
        if runs and runs[-1][1] == index - 1:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    return ",".join(
        str(low) if low == high else f"{low}{'-' if high - low > 1 else ','}{high}"
        for low, high in runs
    )


def index_of(pod: Pod) -> int | None:
    text = pod.metadata.annotations.get(INDEX, "")
    return int(text) if text.isdigit() else None


# --- counting -------------------------------------------------------------------------------------


@dataclass
class Counts:
    """`settled`: uncounted uids whose finalizer is off, ready for the counters."""

    active: list[Pod] = field(default_factory=list)
    terminating: int = 0
    ready: int = 0
    succeeded: set[str] = field(default_factory=set)
    failed: set[str] = field(default_factory=set)
    completed: set[int] = field(default_factory=set)
    settled: set[str] = field(default_factory=set)
    release: list[Pod] = field(default_factory=list)
    finished_at: list[tuple[str, bool]] = field(default_factory=list)
    """(time, failed) of finished pods."""
    fatal: str = ""
    """Why a pod's failure ends the Job, by its podFailurePolicy."""


def count(job: Job, pods: Sequence[Pod]) -> Counts:
    """Sort pods; `succeeded` and `failed` are the uids not yet in the counters."""
    known = job.status.uncounted_terminated_pods or Uncounted()
    counts = Counts(succeeded=set(known.succeeded), failed=set(known.failed))
    counts.completed = parse_indexes(job.status.completed_indexes)
    held: set[str] = set()
    for pod in pods:
        uid = pod.metadata.uid
        tracked = FINALIZER in pod.metadata.finalizers
        if is_active(pod):
            counts.active.append(pod)
            counts.ready += pod.ready
            continue
        if pod.deleting and not pod.finished:
            counts.terminating += 1
            if job.spec.pod_failure_policy:
                continue  # judged by how it ends
        failed = pod.status.phase != "Succeeded"
        judgement = judge(job, pod) if failed else Judgement()
        if judgement.action != IGNORE:
            counts.finished_at.append((_ended(pod), failed))
        if not tracked:
            continue
        held.add(uid)
        counts.release.append(pod)
        if job.finished:
            continue
        if judgement.action == IGNORE:
            continue
        if judgement.action == FAIL_JOB:
            counts.fatal = counts.fatal or judgement.why
        (counts.failed if failed else counts.succeeded).add(uid)
        index = index_of(pod)
        if not failed and index is not None:
            counts.completed.add(index)
    counts.settled = (set(known.succeeded) | set(known.failed)) - held
    return counts


def _ended(pod: Pod) -> str:
    ends = [
        c.state.terminated.finished_at
        for c in pod.status.container_statuses
        if c.state.terminated and c.state.terminated.finished_at
    ]
    return max(ends, default=pod.metadata.deletion_timestamp or "")


# --- planning -------------------------------------------------------------------------------------


@dataclass
class JobPlan:
    """`status` is the part to write; `create` holds indexes (or None) of new pods."""

    status: JsonObject
    conditions: list[TimedCondition]
    create: list[int | None] = field(default_factory=list)
    delete: list[Pod] = field(default_factory=list)
    release: list[Pod] = field(default_factory=list)
    requeue_s: float | None = None
    outcome: str = ""


def plan_job(job: Job, pods: Sequence[Pod], now: dt.datetime) -> JobPlan:
    counts = count(job, pods)
    plan = JobPlan(_numbers(job, counts), list(job.status.conditions), release=counts.release)
    if job.finished or job.deleting:
        plan.delete = counts.active if job.finished else []
        return plan
    board = Board(plan.conditions, now, looked="last_probe_time")
    _suspend(job, plan, board)
    verdict = _verdict(job, counts, now)
    if verdict is not None:
        plan.delete = counts.active
        _finish(plan, board, verdict, counts)
    elif job.spec.suspend:
        plan.delete = counts.active
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
    return {
        "active": len(counts.active),
        "ready": counts.ready,
        "terminating": counts.terminating,
        "succeeded": succeeded,
        "failed": job.status.failed + len(lost),
        "completedIndexes": format_indexes(counts.completed),
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


_DONE = _Verdict(
    "SuccessCriteriaMet",
    "Complete",
    "CompletionsReached",
    "Reached expected number of succeeded pods",
)


def _failed(reason: str, message: str) -> _Verdict:
    return _Verdict("FailureTarget", "Failed", reason, message)


def _verdict(job: Job, counts: Counts, now: dt.datetime) -> _Verdict | None:
    for known in job.status.conditions:
        if known.type == "FailureTarget" and known.status == "True":
            return _failed(known.reason, known.message)
        if known.type == "SuccessCriteriaMet" and known.status == "True":
            return _DONE
    if counts.fatal:
        return _failed("PodFailurePolicy", counts.fatal)
    failed = job.status.failed + len(counts.failed)
    limit = job.spec.backoff_limit
    if failed > limit or _restarts_exceeded(job, counts, limit):
        return _failed("BackoffLimitExceeded", "Job has reached the specified backoff limit")
    deadline = job.spec.active_deadline_seconds
    started = job.status.start_time
    counting = deadline is not None and started and not job.spec.suspend
    if counting and since_s(started, now) >= (deadline or 0):
        return _failed("DeadlineExceeded", "Job was active longer than specified deadline")
    succeeded = _succeeded(job, counts)
    if job.spec.completions is None:
        return _DONE if succeeded and not counts.active else None
    return _DONE if succeeded >= job.spec.completions else None


def _succeeded(job: Job, counts: Counts) -> int:
    if job.spec.completion_mode == "Indexed":
        return len(counts.completed)
    return job.status.succeeded + len(counts.succeeded)


def _restarts_exceeded(job: Job, counts: Counts, limit: int) -> bool:
    """With restartPolicy OnFailure, containers' restarts count as failures."""
    if (job.spec.template.get("spec") or {}).get("restartPolicy") != "OnFailure":
        return False
    restarts = sum(c.restart_count for p in counts.active for c in p.status.container_statuses)
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


def _manage(job: Job, counts: Counts, plan: JobPlan, now: dt.datetime) -> None:
    spec = job.spec
    active, succeeded = len(counts.active), _succeeded(job, counts)
    if spec.completions is None:
        wanted = active if succeeded else spec.parallelism
    else:
        wanted = min(spec.parallelism, spec.completions - succeeded)
    if active > wanted:
        plan.delete = sorted(counts.active, key=lambda p: p.ready)[: active - wanted]
    elif active < wanted:
        delay_s = _backoff_s(counts, now)
        if delay_s > 0:
            plan.requeue_s = delay_s
        elif spec.completion_mode == "Indexed":
            plan.create = list(_free_indexes(job, counts, wanted - active))
        else:
            plan.create = [None] * (wanted - active)
    if spec.active_deadline_seconds is not None:
        started = plan.status.get("startTime") or job.status.start_time
        due = spec.active_deadline_seconds - since_s(started, now)
        plan.requeue_s = min(max(due, 0.0), plan.requeue_s or math.inf)


def _free_indexes(job: Job, counts: Counts, number: int) -> list[int]:
    taken = counts.completed | {index_of(pod) for pod in counts.active}
    free = (i for i in range(job.spec.completions or 0) if i not in taken)
    return [i for i, _ in zip(free, range(number), strict=False)]


def _backoff_s(counts: Counts, now: dt.datetime) -> float:
    """Seconds until the next try: 10 s doubled for every failure since the last success."""
    failures, last = 0, ""
    for ended, failed in sorted(counts.finished_at, reverse=True):
        if not failed:
            break
        failures += 1
        last = last or ended
    if not failures or not last:
        return 0.0
    delay: float = min(_BACKOFF_S * 2.0 ** (failures - 1), _MAX_BACKOFF_S)
    return max(0.0, delay - since_s(last, now))


# --- pods -----------------------------------------------------------------------------------------


def job_template(job: Job, index: int | None) -> JsonObject:
    """The pod template with the Job's labels, the tracking finalizer and the index."""
    template = job.spec.template
    meta = dict(template.get("metadata") or {})
    labels = dict(meta.get("labels") or {})
    for name, value in (("controller-uid", job.metadata.uid), ("job-name", job.metadata.name)):
        labels.setdefault(name, value)
        labels.setdefault(f"batch.kubernetes.io/{name}", value)
    spec = dict(template.get("spec") or {})
    if index is not None:
        text = str(index)
        labels[INDEX] = text
        meta["annotations"] = {**(meta.get("annotations") or {}), INDEX: text}
        spec.setdefault("hostname", f"{job.metadata.name}-{index}")
        for group in ("initContainers", "containers"):
            if spec.get(group):
                spec[group] = [_with_index(container) for container in spec[group]]
    finalizers = [*(meta.get("finalizers") or []), FINALIZER]
    return {**template, "metadata": {**meta, "labels": labels, "finalizers": finalizers}} | {
        "spec": spec
    }


def _with_index(container: JsonObject) -> JsonObject:
    env = container.get("env") or []
    if any(e.get("name") == "JOB_COMPLETION_INDEX" for e in env):
        return container
    source = {"fieldRef": {"apiVersion": "v1", "fieldPath": f"metadata.labels['{INDEX}']"}}
    return {**container, "env": [*env, {"name": "JOB_COMPLETION_INDEX", "valueFrom": source}]}


class JobController(PodOwner[Job]):
    kind = kinds.JOB
    component = "job-controller"

    def selector(self, obj: Job) -> LabelSelector | None:
        return obj.spec.selector

    def __init__(self, cluster: Cluster) -> None:
        super().__init__(cluster)
        # Uids of Jobs that are gone and may have left pods with our finalizer.
        self._gone: dict[Key, set[str]] = {}

    def _pod_changed(self, change: Change[Pod]) -> None:
        super()._pod_changed(change)
        pod = change.new
        if pod is None or not pod.deleting or FINALIZER not in pod.metadata.finalizers:
            return
        # A Job that is gone will never count it: the pod must not wait for that.
        ref = pod.metadata.controller
        if ref is None:
            self._forsake(Key(change.key.namespace, ""), "")
        elif ref.kind == "Job" and Key(change.key.namespace, ref.name) not in self.objects:
            self._forsake(Key(change.key.namespace, ref.name), ref.uid)

    def gone(self, obj: Job) -> None:
        self._forsake(obj.key, obj.metadata.uid)

    def _forsake(self, key: Key, uid: str) -> None:
        self._gone.setdefault(key, set()).add(uid)
        self.queue.add(key)

    async def _reconcile(self, key: Key) -> float | None:
        for uid in list(self._gone.get(key, ())):
            left = self.pods.owned(uid) if uid else self.pods.orphans(key.namespace)
            for pod in left:
                if FINALIZER in pod.metadata.finalizers and (uid or pod.deleting):
                    await self._release(pod)
            self._gone[key].discard(uid)
        if not self._gone.get(key, True):
            del self._gone[key]
        job = self.objects.get(key)
        return None if job is None else await self.sync(job)

    async def sync(self, obj: Job) -> float | None:
        pods = await self.claimed(obj)
        if pods is None:
            return None
        now = self.cluster.now()
        plan = plan_job(obj, pods, now)
        waiting_s = self.expectations.pending_s(obj.metadata.uid)
        if waiting_s is not None:
            return waiting_s
        # Uncounted uids are on record before a finalizer comes off.
        if await self._write_status(obj, plan):
            self._say_outcome(obj, plan)
        for pod in plan.release:
            await self._release(pod)
        if plan.delete:
            await self.control.delete(self.owner(obj), plan.delete)
        if plan.create:
            await self._create(obj, plan.create)
        if obj.finished:
            return await self._expire(obj, now)
        return plan.requeue_s

    async def _create(self, obj: Job, indexes: Sequence[int | None]) -> None:
        owner = self.owner(obj)
        name = obj.metadata.name
        bodies = []
        for index in indexes:
            template = PodTemplate(job_template(obj, index), owner)
            prefix = f"{name}-" if index is None else f"{name}-{index}-"
            body = template.generated(prefix)
            body["metadata"].setdefault("name", random_name(prefix))
            bodies.append(body)
        await self.control.create_all(owner, bodies)

    async def _release(self, pod: Pod) -> None:
        left = [f for f in pod.metadata.finalizers if f != FINALIZER]
        body = {"metadata": {"finalizers": left or None}}
        await self.cluster.patch(POD, pod, body, exact=True)

    async def _write_status(self, obj: Job, plan: JobPlan) -> bool:
        was = raw(obj.status)
        uncounted = was.pop("uncountedTerminatedPods", {})
        body = {
            k: v
            for k, v in plan.status.items()
            if k != "uncountedTerminatedPods" and (was.get(k) or None) != (v or None)
        }
        mine = {k: v for k, v in plan.status["uncountedTerminatedPods"].items() if v}
        if mine != uncounted:
            body["uncountedTerminatedPods"] = plan.status["uncountedTerminatedPods"]
        if plan.conditions != obj.status.conditions:
            body["conditions"] = [raw(c) for c in plan.conditions]
        if not body:
            return False
        meta = obj.metadata
        patch = {"metadata": {"resourceVersion": meta.resource_version}, "status": body}
        try:
            await self.cluster.api.patch(
                kinds.JOB, meta.name, patch, meta.namespace, subresource="status"
            )
        except NotFoundError:
            return False
        return True

    def _say_outcome(self, obj: Job, plan: JobPlan) -> None:
        if plan.outcome == "Complete":
            self._say(obj, "Normal", "Completed", "Job completed")
        elif plan.outcome == "Failed":
            last = next(c for c in plan.conditions if c.type == "Failed")
            self._say(obj, "Warning", last.reason, last.message)

    def _say(self, obj: Job, event_type: str, reason: str, message: str) -> None:
        self.cluster.events.say(self.component, kinds.JOB, obj, event_type, reason, message)

    async def _expire(self, obj: Job, now: dt.datetime) -> float | None:
        ttl = obj.spec.ttl_seconds_after_finished
        if ttl is None or obj.deleting:
            return None
        ended = next(
            c.last_transition_time
            for c in obj.status.conditions
            if c.type == obj.outcome and c.status == "True"
        )
        left = ttl - (now - parse_time(ended)).total_seconds() if ended else 0.0
        if left > 0:
            return left
        await self.cluster.delete(kinds.JOB, obj, propagation="Foreground")
        return None
