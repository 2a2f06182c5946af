"""A Job's podFailurePolicy: what one failed pod means for the Job. Pure.

Source: pkg/controller/job/pod_failure_policy.go.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from podwire.controllers.views import Pod
from podwire.objects.apps import Job

COUNT, IGNORE, FAIL_JOB, FAIL_INDEX = "Count", "Ignore", "FailJob", "FailIndex"


class Judgement(NamedTuple):
    """`why` is the Job's message when the action is FailJob."""

    action: str = COUNT
    why: str = ""


def judge(job: Job, pod: Pod) -> Judgement:
    """The first rule that matches decides; without one a failure counts."""
    for number, rule in enumerate(job.spec.pod_failure_policy.get("rules") or ()):
        what = _matched(rule, pod)
        if what:
            action = rule.get("action", COUNT)
            return Judgement(action, f"{what} matching {action} rule at index {number}")
    return Judgement()


def _matched(rule: dict[str, Any], pod: Pod) -> str:
    if rule.get("onExitCodes"):
        return _by_exit_code(rule["onExitCodes"], pod)
    for pattern in rule.get("onPodConditions") or ():
        wanted = (pattern.get("type"), pattern.get("status", "True"))
        if any((c.type, c.status) == wanted for c in pod.status.conditions):
            return f"Pod {pod.key} has condition {wanted[0]}"
    return ""


def _by_exit_code(rule: dict[str, Any], pod: Pod) -> str:
    name, values = rule.get("containerName"), rule.get("values") or ()
    for status in (*pod.status.container_statuses, *pod.status.init_container_statuses):
        ended = status.state.terminated
        if ended is None or ended.exit_code == 0 or name not in (None, "", status.name):
            continue
        if (ended.exit_code in values) == (rule.get("operator") == "In"):
            return (
                f"Container {status.name} for pod {pod.key} failed with exit code {ended.exit_code}"
            )
    return ""
