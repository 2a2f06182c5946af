"""Jobs: run pods until enough have succeeded, or too many have failed (`jobplan` decides).

Every pod carries a finalizer until it is in the counters, so that a finished pod that somebody
deletes is still counted exactly once:

    finished -> uid into status.uncountedTerminatedPods -> finalizer off -> counter up, uid out

Status writes are exact (resourceVersion): a stale cache loses instead of counting twice.
Source: pkg/controller/job.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence

from podwire.client import Change
from podwire.controllers.cluster import Cluster
from podwire.controllers.jobcount import FINALIZER
from podwire.controllers.jobindex import FAILURES, IGNORED_FAILURES, INDEX
from podwire.controllers.jobplan import JobPlan, NewPod, plan_job
from podwire.controllers.podcontrol import PodTemplate, random_name
from podwire.controllers.podowner import PodOwner
from podwire.controllers.views import POD, Pod, raw
from podwire.errors import NotFoundError
from podwire.objects import kinds
from podwire.objects.apps import Job
from podwire.objects.meta import JsonObject, Key, LabelSelector, parse_time

_OURSELVES = "kubernetes.io/job-controller"


# --- pods -----------------------------------------------------------------------------------------


def job_template(job: Job, new: NewPod) -> JsonObject:
    """The pod template with the Job's labels, the tracking finalizer and the index."""
    template = job.spec.template
    meta = dict(template.get("metadata") or {})
    labels = dict(meta.get("labels") or {})
    for name, value in (("controller-uid", job.metadata.uid), ("job-name", job.metadata.name)):
        labels.setdefault(name, value)
        labels.setdefault(f"batch.kubernetes.io/{name}", value)
    spec = dict(template.get("spec") or {})
    if new.index is not None:
        labels[INDEX] = str(new.index)
        meta["annotations"] = {**(meta.get("annotations") or {}), **_index_marks(job, new)}
        spec["hostname"] = f"{job.metadata.name}-{new.index}"
        for group in ("initContainers", "containers"):
            if spec.get(group):
                spec[group] = [_with_index(container) for container in spec[group]]
    finalizers = [*(f for f in meta.get("finalizers") or [] if f != FINALIZER), FINALIZER]
    return {**template, "metadata": {**meta, "labels": labels, "finalizers": finalizers}} | {
        "spec": spec
    }


def _index_marks(job: Job, new: NewPod) -> dict[str, str]:
    marks = {INDEX: str(new.index)}
    if job.spec.backoff_limit_per_index is not None:
        marks[FAILURES] = str(new.failures)
        if new.ignored:
            marks[IGNORED_FAILURES] = str(new.ignored)
    return marks


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
        if obj.spec.managed_by not in ("", _OURSELVES):
            return None  # somebody else's controller works on it
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

    async def _create(self, obj: Job, pods: Sequence[NewPod]) -> None:
        owner = self.owner(obj)
        name = obj.metadata.name
        bodies = []
        for new in pods:
            template = PodTemplate(job_template(obj, new), owner)
            prefix = f"{name}-" if new.index is None else f"{name}-{new.index}-"
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
            if k not in ("uncountedTerminatedPods", "failedIndexes")
            and (was.get(k) or None) != (v or None)
        }
        # An empty list of failed indexes says that they are kept at all.
        if was.get("failedIndexes") != plan.status["failedIndexes"]:
            body["failedIndexes"] = plan.status["failedIndexes"]
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
