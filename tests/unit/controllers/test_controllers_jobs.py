"""Jobs: every pod counted once, indexes with their own limits, policies of failure and success."""

from __future__ import annotations

import datetime as dt
from typing import Any

import msgspec
import pytest

from podwire.controllers import jobindex
from podwire.controllers.job import job_template
from podwire.controllers.jobcount import FINALIZER
from podwire.controllers.jobplan import NewPod, plan_job
from podwire.controllers.views import Pod
from podwire.objects.apps import Job

NOW = dt.datetime(2024, 1, 1, 12, tzinfo=dt.UTC)
LONG_AGO = "2024-01-01T10:00:00Z"


def pod(name: str, *, phase: str = "Running", **meta: Any) -> Pod:
    raw = {
        "metadata": {"name": name, "namespace": "ns", "uid": name, **meta},
        "spec": {"nodeName": "n1"},
        "status": {"phase": phase},
    }
    return msgspec.convert(raw, Pod)


def a_job(status: Any = None, **spec: Any) -> Job:
    spec = {"completions": 3, "parallelism": 2, **spec}
    raw = {"metadata": {"name": "j", "uid": "j"}, "spec": spec, "status": status or {}}
    return msgspec.convert(raw, Job)


def tracked(name: str, phase: str, **meta: Any) -> Pod:
    return pod(name, phase=phase, finalizers=[FINALIZER], **meta)


def test_job_counts_each_pod_once() -> None:
    first = plan_job(a_job(), [tracked("a", "Succeeded")], NOW)
    assert first.status["uncountedTerminatedPods"]["succeeded"] == ["a"]
    assert (first.status["succeeded"], len(first.create)) == (0, 2)
    known = a_job(
        {"uncountedTerminatedPods": {"succeeded": ["a"]}, "startTime": "2024-01-01T11:00:00Z"}
    )
    second = plan_job(known, [pod("a", phase="Succeeded")], NOW)
    assert second.status["succeeded"] == 1
    assert second.status["uncountedTerminatedPods"]["succeeded"] is None


def test_job_fails_and_backs_off() -> None:
    failed = tracked("a", "Failed", deletionTimestamp="2024-01-01T11:59:58Z")
    assert plan_job(a_job(), [failed], NOW).requeue_s == pytest.approx(8)
    plan = plan_job(a_job(backoffLimit=0), [failed], NOW)
    assert [c.type for c in plan.conditions] == ["FailureTarget"]
    done = a_job({"failed": 1}, backoffLimit=0)
    plan = plan_job(done, [], NOW)
    assert {c.type for c in plan.conditions} == {"FailureTarget", "Failed"}


def exited(name: str, code: int) -> Pod:
    failed = tracked(name, "Failed")
    state = {"name": "c", "state": {"terminated": {"exitCode": code}}}
    status = msgspec.to_builtins(failed.status) | {"containerStatuses": [state]}
    return msgspec.convert(msgspec.to_builtins(failed) | {"status": status}, Pod)


def by_code(action: str, operator: str = "In") -> dict[str, Any]:
    rule = {"action": action, "onExitCodes": {"operator": operator, "values": [42]}}
    return {"podFailurePolicy": {"rules": [rule]}}


def test_pod_failure_policy_fails_the_job_at_once() -> None:
    plan = plan_job(a_job(**by_code("FailJob")), [exited("a", 42)], NOW)
    (target,) = plan.conditions
    assert (target.type, target.reason) == ("FailureTarget", "PodFailurePolicy")
    assert target.message == (
        "Container c for pod ns/a failed with exit code 42 matching FailJob rule at index 0"
    )
    assert plan.create == []


def test_pod_failure_policy_ignores_a_failure() -> None:
    plan = plan_job(a_job(backoffLimit=0, **by_code("Ignore")), [exited("a", 42)], NOW)
    assert plan.status["uncountedTerminatedPods"]["failed"] is None
    assert (plan.conditions, len(plan.create), len(plan.release)) == ([], 2, 1)


@pytest.mark.parametrize(
    ("spec", "code"),
    [(by_code("FailJob"), 1), (by_code("Ignore", "NotIn"), 42), (by_code("Count"), 42)],
)
def test_other_failures_count(spec: dict[str, Any], code: int) -> None:
    plan = plan_job(a_job(**spec), [exited("a", code)], NOW)
    assert plan.status["uncountedTerminatedPods"]["failed"] == ["a"]
    assert plan.conditions == []


def test_pod_failure_policy_by_condition() -> None:
    rule = {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]}
    job = a_job(podFailurePolicy={"rules": [rule]})
    failed = tracked("a", "Failed")
    plan = plan_job(job, [failed], NOW)
    assert plan.status["uncountedTerminatedPods"]["failed"] == ["a"]
    condition = {"type": "DisruptionTarget", "status": "True"}
    status = msgspec.to_builtins(failed.status) | {"conditions": [condition]}
    evicted = msgspec.convert(msgspec.to_builtins(failed) | {"status": status}, Pod)
    plan = plan_job(job, [evicted], NOW)
    assert plan.status["uncountedTerminatedPods"]["failed"] is None


def test_suspended_job_runs_nothing() -> None:
    plan = plan_job(a_job(suspend=True), [tracked("a", "Running")], NOW)
    assert ([p.metadata.name for p in plan.delete], plan.create) == (["a"], [])
    assert [c.type for c in plan.conditions] == ["Suspended"]


@pytest.mark.parametrize("text", ["", "0", "0,1", "0-2", "1,3-5,7"])
def test_indexes_round_trip(text: str) -> None:
    assert jobindex.format_indexes(jobindex.parse_indexes(text)) == text


def test_pods_that_are_not_needed_do_not_count_as_failed() -> None:
    """Suspending, or asking for less, removes the finalizer before the pod."""
    running = [tracked("a", "Running"), tracked("b", "Running")]
    for job in (a_job(suspend=True), a_job(parallelism=0)):
        plan = plan_job(job, running, NOW)
        assert [p.metadata.name for p in plan.delete] == ["a", "b"]
        assert plan.release == plan.delete
    over = plan_job(a_job({"failed": 9}), running, NOW)
    assert (len(over.delete), over.release) == (2, [])


def test_a_refused_pod_is_backed_off_from_its_creation() -> None:
    refused = tracked("a", "Failed", creationTimestamp="2024-01-01T11:59:58Z")
    assert plan_job(a_job(), [refused], NOW).requeue_s == pytest.approx(8)


# --- indexes --------------------------------------------------------------------------------------


def indexed(status: Any = None, **spec: Any) -> Job:
    return a_job(status, completionMode="Indexed", **spec)


def of_index(
    index: int, phase: str, name: str = "", failures: int | None = None, **meta: Any
) -> Pod:
    marks = {jobindex.INDEX: str(index)}
    if failures is not None:
        marks[jobindex.FAILURES] = str(failures)
    meta = {"creationTimestamp": LONG_AGO, "annotations": marks, **meta}
    return tracked(name or f"p{index}", phase, **meta)


def names(pods: list[Pod]) -> list[str]:
    return [p.metadata.name for p in pods]


def test_doubles_and_pods_of_no_index_are_removed() -> None:
    pods = [of_index(0, "Running"), of_index(0, "Pending", "double"), of_index(7, "Running")]
    assert sorted(names(plan_job(indexed(), pods, NOW).delete)) == ["double", "p7"]


def test_fewer_completions_forget_indexes() -> None:
    plan = plan_job(indexed({"completedIndexes": "0,2-4"}, completions=3), [], NOW)
    assert (plan.status["completedIndexes"], plan.status["succeeded"]) == ("0,2", 2)
    assert plan.create == [NewPod(1)]


def test_the_failed_pod_of_an_index_waits_for_its_replacement() -> None:
    job = indexed(backoffLimitPerIndex=2, backoffLimit=2**31 - 1)
    failed = of_index(0, "Failed", failures=0)
    plan = plan_job(job, [failed, of_index(1, "Running", failures=0)], NOW)
    assert plan.create == [NewPod(0, failures=1)]
    assert plan.release == []
    assert plan.status["uncountedTerminatedPods"]["failed"] is None
    again = of_index(0, "Running", "again", failures=1)
    plan = plan_job(job, [failed, again, of_index(1, "Running", failures=0)], NOW)
    assert names(plan.release) == ["p0"]
    assert plan.status["uncountedTerminatedPods"]["failed"] == ["p0"]


def test_an_index_backs_off_alone() -> None:
    job = indexed(backoffLimitPerIndex=5)
    fresh = of_index(0, "Failed", failures=1, creationTimestamp="2024-01-01T11:59:55Z")
    plan = plan_job(job, [fresh], NOW)
    assert plan.create == [NewPod(1)]
    assert plan.requeue_s == pytest.approx(15)


def test_an_index_is_lost_after_its_limit() -> None:
    job = indexed(backoffLimitPerIndex=1)
    pods = [of_index(0, "Failed", failures=1), of_index(1, "Failed", failures=0)]
    plan = plan_job(job, pods, NOW)
    assert plan.status["failedIndexes"] == "0"
    assert names(plan.release) == ["p0"]
    assert plan.create == [NewPod(1, failures=1), NewPod(2)]


@pytest.mark.parametrize(
    ("spec", "status", "reason", "message"),
    [
        (
            {"maxFailedIndexes": 0},
            {},
            "MaxFailedIndexesExceeded",
            "Job has exceeded the specified maximal number of failed indexes",
        ),
        ({}, {"completedIndexes": "1,2"}, "FailedIndexes", "Job has failed indexes"),
    ],
)
def test_lost_indexes_end_the_job(spec: Any, status: Any, reason: str, message: str) -> None:
    job = indexed(status, backoffLimitPerIndex=0, **spec)
    plan = plan_job(job, [of_index(0, "Failed", failures=0)], NOW)
    (target,) = plan.conditions
    assert (target.type, target.reason, target.message) == ("FailureTarget", reason, message)
    assert plan.status["uncountedTerminatedPods"]["failed"] == ["p0"]


def test_what_waits_for_a_replacement_is_counted_when_the_job_ends() -> None:
    job = indexed(backoffLimitPerIndex=3, activeDeadlineSeconds=5)
    job = msgspec.structs.replace(
        job, status=msgspec.structs.replace(job.status, start_time=LONG_AGO)
    )
    plan = plan_job(job, [of_index(0, "Failed", failures=0)], NOW)
    assert [c.reason for c in plan.conditions] == ["DeadlineExceeded"]
    assert plan.status["uncountedTerminatedPods"]["failed"] == ["p0"]
    assert names(plan.release) == ["p0"]


def test_fail_index_loses_an_index_at_once_and_ignore_costs_no_try() -> None:
    def failing(action: str) -> Job:
        return indexed(backoffLimitPerIndex=1, **by_code(action))

    failed = exited("p0", 42)
    marks = {jobindex.INDEX: "0", jobindex.FAILURES: "1"}
    raw = msgspec.to_builtins(failed)
    raw["metadata"] |= {"annotations": marks, "creationTimestamp": LONG_AGO}
    failed = msgspec.convert(raw, Pod)
    assert plan_job(failing("FailIndex"), [failed], NOW).status["failedIndexes"] == "0"
    ignored = plan_job(failing("Ignore"), [failed], NOW)
    assert ignored.status["failedIndexes"] == ""
    assert ignored.create[0] == NewPod(0, failures=1, ignored=1)


def test_new_pods_carry_their_index_and_its_failures() -> None:
    job = indexed(backoffLimitPerIndex=3, template={"spec": {"containers": [{"name": "c"}]}})
    body = job_template(job, NewPod(1, failures=2, ignored=1))
    assert body["metadata"]["annotations"] == {
        "batch.kubernetes.io/job-completion-index": "1",
        "batch.kubernetes.io/job-index-failure-count": "2",
        "batch.kubernetes.io/job-index-ignored-failure-count": "1",
    }
    assert body["spec"]["hostname"] == "j-1"
    assert job_template(indexed(), NewPod(1))["metadata"]["annotations"] == {jobindex.INDEX: "1"}


# --- success policy -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rules", "succeeded", "message"),
    [
        ([{"succeededIndexes": "0,2-3"}], {0, 2, 3, 5}, "Matched rules at index 0"),
        ([{"succeededIndexes": "0,2-3"}], {0, 2, 5}, ""),
        ([{"succeededIndexes": "0,2-3", "succeededCount": 1}], {2}, "Matched rules at index 0"),
        ([{"succeededIndexes": "0"}, {"succeededCount": 2}], {1, 2}, "Matched rules at index 1"),
        ([{"succeededCount": 0}], set(), ""),
        ([{"succeededIndexes": "9"}], {1}, ""),
    ],
)
def test_success_policy(rules: Any, succeeded: set[int], message: str) -> None:
    job = indexed(completions=6, successPolicy={"rules": rules})
    assert jobindex.met_success_policy(job, succeeded) == message


def test_a_met_success_policy_ends_the_rest_without_failures() -> None:
    job = indexed(successPolicy={"rules": [{"succeededIndexes": "0"}]})
    pods = [of_index(0, "Succeeded"), of_index(1, "Running")]
    plan = plan_job(job, pods, NOW)
    (met,) = plan.conditions
    assert (met.type, met.reason, met.message) == (
        "SuccessCriteriaMet",
        "SuccessPolicy",
        "Matched rules at index 0",
    )
    assert names(plan.delete) == ["p1"]
    assert names(plan.release) == ["p0", "p1"]
    conditions = [msgspec.to_builtins(met)]
    status = {"conditions": conditions, "completedIndexes": "0", "startTime": LONG_AGO}
    job = indexed(status, successPolicy={"rules": [{"succeededIndexes": "0"}]})
    going = of_index(1, "Running", deletionTimestamp=LONG_AGO)
    plan = plan_job(job, [going], NOW)
    assert names(plan.release) == ["p1"]
    assert plan.status["uncountedTerminatedPods"]["failed"] is None
    done = plan_job(job, [], NOW)
    assert done.outcome == "Complete"
    assert {(c.reason, c.message) for c in done.conditions} == {(met.reason, met.message)}


# --- replacement policy ---------------------------------------------------------------------------


@pytest.mark.parametrize(("policy", "created"), [("TerminatingOrFailed", 1), ("Failed", 0)])
def test_replacement_policy(policy: str, created: int) -> None:
    going = tracked("a", "Running", deletionTimestamp=LONG_AGO)
    job = a_job(podReplacementPolicy=policy, parallelism=1)
    plan = plan_job(job, [going], NOW)
    assert len(plan.create) == created
    assert plan.status["terminating"] == 1
    assert plan.status["uncountedTerminatedPods"]["failed"] == (["a"] if created else None)
    ended = tracked("a", "Failed", deletionTimestamp=LONG_AGO)
    assert len(plan_job(job, [ended], NOW).create) == 1


def test_an_index_is_not_replaced_while_its_pod_terminates() -> None:
    going = of_index(0, "Running", deletionTimestamp=LONG_AGO)
    plan = plan_job(indexed(podReplacementPolicy="Failed"), [going], NOW)
    assert plan.create == [NewPod(1)]
