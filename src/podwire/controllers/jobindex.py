"""Completion indexes of Indexed Jobs: as text, of pods, and as success policies ask for them.

A pod carries its index, and with backoffLimitPerIndex how often the index failed before it, in
annotations: the count lives from pod to pod, so that nothing has to remember removed ones.
Source: pkg/controller/job/indexed_job_utils.go and success_policy.go (KEP-3850, KEP-3998).
"""

from __future__ import annotations

from collections.abc import Iterable, Set

from podwire.controllers.views import Pod
from podwire.objects.apps import Job

INDEX = "batch.kubernetes.io/job-completion-index"
FAILURES = "batch.kubernetes.io/job-index-failure-count"
IGNORED_FAILURES = "batch.kubernetes.io/job-index-ignored-failure-count"


def parse_indexes(text: str, completions: int | None = None) -> set[int]:
    """`1,3-5` as a set, without what `completions` leaves no room for."""
    found: set[int] = set()
    for part in text.split(","):
        low, _, high = part.partition("-")
        if low.isdigit() and (not high or high.isdigit()):
            last = int(high or low)
            end = last + 1 if completions is None else min(last + 1, completions)
            found.update(range(int(low), end))
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


def valid_index(job: Job, pod: Pod) -> int | None:
    """The pod's index if the Job has it."""
    index = index_of(pod)
    return index if index is not None and index < (job.spec.completions or 0) else None


def failures_of(pod: Pod) -> tuple[int, int]:
    """(counted, ignored) failures of the pod's index before this pod."""
    texts = (pod.metadata.annotations.get(key, "") for key in (FAILURES, IGNORED_FAILURES))
    counted, ignored = (int(text) if text.isdigit() else 0 for text in texts)
    return counted, ignored


def met_success_policy(job: Job, succeeded: Set[int]) -> str:
    """Which rule of the Job's successPolicy is met, as upstream's message; "" for none."""
    if not succeeded:
        return ""
    for number, rule in enumerate(job.spec.success_policy.get("rules") or ()):
        enough = rule.get("succeededCount")
        if rule.get("succeededIndexes") is None:
            met = enough is not None and len(succeeded) >= enough
        else:
            wanted = parse_indexes(rule["succeededIndexes"], job.spec.completions)
            have = len(wanted & succeeded)
            met = bool(wanted) and (have == len(wanted) or (enough is not None and have >= enough))
        if met:
            return f"Matched rules at index {number}"
    return ""
