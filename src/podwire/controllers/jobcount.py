"""A Job's pods sorted and counted, each exactly once. Pure.

A finished pod counts while it has the finalizer (`job` says how it comes off). With
backoffLimitPerIndex the last failed pod of an index keeps it until its replacement is there, which
inherits the count of failures from it.
Source: pkg/controller/job/job_controller.go and indexed_job_utils.go.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass, field

from podwire.controllers.jobindex import failures_of, index_of, parse_indexes, valid_index
from podwire.controllers.podfailure import FAIL_INDEX, FAIL_JOB, IGNORE, Judgement, judge
from podwire.controllers.podstate import condition, is_active
from podwire.controllers.views import Pod
from podwire.objects.apps import Job, Uncounted
from podwire.objects.meta import parse_time

FINALIZER = "batch.kubernetes.io/job-tracking"


@dataclass
class Counts:
    """`settled`: uncounted uids whose finalizer is off, ready for the counters."""

    active: list[Pod] = field(default_factory=list)
    terminating: list[Pod] = field(default_factory=list)
    ready: int = 0
    succeeded: set[str] = field(default_factory=set)
    failed: set[str] = field(default_factory=set)
    completed: set[int] = field(default_factory=set)
    lost: set[int] = field(default_factory=set)
    """Indexes that failed for good."""
    settled: set[str] = field(default_factory=set)
    release: list[Pod] = field(default_factory=list)
    held: dict[int, Pod] = field(default_factory=dict)
    """By index, the failed pod that waits for its replacement."""
    held_failed: set[str] = field(default_factory=set)
    """Uids of those that count as failures."""
    finished_at: list[tuple[dt.datetime, bool]] = field(default_factory=list)
    """(time, failed) of finished pods."""
    fatal: str = ""
    """Why a pod's failure ends the Job, by its podFailurePolicy."""

    def let_go(self) -> None:
        """The Job is over: nothing waits for a replacement."""
        self.release += self.held.values()
        self.failed |= self.held_failed
        self.held, self.held_failed = {}, set()


def count(job: Job, pods: Sequence[Pod]) -> Counts:
    """Sort pods; `succeeded` and `failed` are the uids not yet in the counters."""
    known = job.status.uncounted_terminated_pods or Uncounted()
    counts = Counts(succeeded=set(known.succeeded), failed=set(known.failed))
    counts.completed = parse_indexes(job.status.completed_indexes, job.spec.completions)
    counts.lost = parse_indexes(job.status.failed_indexes or "", job.spec.completions)
    tracked: set[str] = set()
    for pod in pods:
        if FINALIZER in pod.metadata.finalizers:
            tracked.add(pod.metadata.uid)
        if is_active(pod):
            counts.active.append(pod)
            counts.ready += pod.ready
        else:
            _count_ended(job, pod, counts)
    if job.spec.backoff_limit_per_index is not None:
        _hold_back(job, counts)
    counts.settled = (set(known.succeeded) | set(known.failed)) - tracked
    return counts


def _count_ended(job: Job, pod: Pod, counts: Counts) -> None:
    tracked = FINALIZER in pod.metadata.finalizers
    if not pod.finished:
        counts.terminating.append(pod)
        if tracked and _condition_true(job, "SuccessCriteriaMet"):
            counts.release.append(pod)  # not needed any more: no failure
            return
        if job.spec.pod_replacement_policy == "Failed":
            return  # judged by how it ends
    failed = pod.status.phase != "Succeeded"
    judgement = judge(job, pod) if failed else Judgement()
    if judgement.action != IGNORE:
        counts.finished_at.append((ended_at(pod), failed))
    if not tracked:
        return
    counts.release.append(pod)
    if job.finished:
        return
    if judgement.action == FAIL_JOB:
        counts.fatal = counts.fatal or judgement.why
    index = valid_index(job, pod)
    if failed and _index_is_lost(job, pod, judgement) and index is not None:
        counts.lost.add(index)
    if judgement.action == IGNORE:
        return
    if job.spec.completion_mode == "Indexed" and index is None:
        return
    (counts.failed if failed else counts.succeeded).add(pod.metadata.uid)
    if not failed and index is not None:
        counts.completed.add(index)


def _index_is_lost(job: Job, pod: Pod, judgement: Judgement) -> bool:
    limit = job.spec.backoff_limit_per_index
    if limit is None or judgement.action == IGNORE:
        return False
    return judgement.action == FAIL_INDEX or failures_of(pod)[0] >= limit


def _hold_back(job: Job, counts: Counts) -> None:
    """Of each index that is to be tried again, the last failed pod stays until it has been."""
    settled = counts.completed | counts.lost | {index_of(pod) for pod in counts.active}
    for pod in counts.release:
        index = valid_index(job, pod)
        if index is None or index in settled or pod.status.phase == "Succeeded":
            continue
        last = counts.held.get(index)
        if last is None or _tried(last) <= _tried(pod):
            counts.held[index] = pod
    held = {pod.metadata.uid for pod in counts.held.values()}
    # What is on record as failed already stays there.
    on_record = set((job.status.uncounted_terminated_pods or Uncounted()).failed)
    counts.held_failed = (counts.failed & held) - on_record
    counts.failed -= counts.held_failed
    counts.release = [pod for pod in counts.release if pod.metadata.uid not in held]


def _tried(pod: Pod) -> tuple[int, dt.datetime]:
    return sum(failures_of(pod)), ended_at(pod)


def _condition_true(job: Job, kind: str) -> bool:
    return any(c.type == kind and c.status == "True" for c in job.status.conditions)


def ended_at(pod: Pod) -> dt.datetime:
    """When the pod finished; of one that never ran, when it was refused, deleted or made."""
    sidecars = {c.name for c in pod.spec.init_containers if c.restart_policy == "Always"}
    statuses = [s for s in pod.status.init_container_statuses if s.name in sidecars]
    ends = [
        s.state.terminated.finished_at if s.state.terminated else None
        for s in (*pod.status.container_statuses, *statuses)
    ]
    if ends and all(ends):
        return max(parse_time(end) for end in ends if end)
    ready = condition(pod.status.conditions, "Ready")
    if ready is not None and ready.status == "False" and ready.last_transition_time:
        return parse_time(ready.last_transition_time)
    meta = pod.metadata
    if meta.deletion_timestamp:
        grace = dt.timedelta(seconds=meta.deletion_grace_period_seconds or 0)
        return parse_time(meta.deletion_timestamp) - grace
    if meta.creation_timestamp:
        return parse_time(meta.creation_timestamp)
    return dt.datetime.fromtimestamp(0, dt.UTC)
