"""Tables of apps, batch, autoscaling and policy kinds."""

from __future__ import annotations

import datetime as dt

from podwire.apiserver.printers.columns import (
    AGE,
    NAME,
    NONE,
    UNKNOWN,
    UNSET,
    CellOf,
    at,
    containers,
    duration,
    get,
    images,
    pairs,
    selector,
    since,
    spec,
)
from podwire.objects.meta import JsonObject, parse_time

_TEMPLATE = ("spec", "template", "spec", "containers")
_CONTAINERS: tuple[str, CellOf, str] = ("Containers", containers(*_TEMPLATE), "wide")
_IMAGES: tuple[str, CellOf, str] = ("Images", images(*_TEMPLATE), "wide")
_SELECTOR: tuple[str, CellOf, str] = (
    "Selector",
    lambda obj: selector(get(obj, "spec", "selector")),
    "wide",
)


def _ready(obj: JsonObject) -> str:
    ready = get(obj, "status", "readyReplicas", default=0)
    return f"{ready}/{get(obj, 'spec', 'replicas', default=0)}"


def _replicas(*path: str) -> CellOf:
    return at(*path, default=0)


def _job_status(job: JsonObject) -> str:
    held = {
        c["type"] for c in get(job, "status", "conditions", default=()) if c["status"] == "True"
    }
    if "Complete" in held:
        return "Complete"
    if "Failed" in held:
        return "Failed"
    if get(job, "metadata", "deletionTimestamp"):
        return "Terminating"
    if "Suspended" in held:
        return "Suspended"
    if "FailureTarget" in held:
        return "FailureTarget"
    if "SuccessCriteriaMet" in held:
        return "SuccessCriteriaMet"
    return "Running"


def _completions(job: JsonObject) -> str:
    succeeded = get(job, "status", "succeeded", default=0)
    wanted = get(job, "spec", "completions")
    if wanted is not None:
        return f"{succeeded}/{wanted}"
    parallelism = get(job, "spec", "parallelism", default=0)
    return f"{succeeded}/1 of {parallelism}" if parallelism > 1 else f"{succeeded}/1"


def _job_duration(job: JsonObject) -> str:
    start, end = get(job, "status", "startTime"), get(job, "status", "completionTime")
    if not start:
        return ""
    until = parse_time(end) if end else dt.datetime.now(dt.UTC)
    return duration((until - parse_time(start)).total_seconds())


def _bool(value: object) -> str:
    return "True" if value else "False"


def _last_schedule(job: JsonObject) -> str:
    last = get(job, "status", "lastScheduleTime")
    return since(last) if last else NONE


def _metric(metric: JsonObject, status: JsonObject) -> str:
    source = metric.get("resource") or metric.get("containerResource") or {}
    now = status.get("resource") or status.get("containerResource") or {}
    if not source:
        return f"{UNKNOWN}/{UNKNOWN}"
    wanted = get(source, "target", "averageUtilization")
    if wanted is not None:
        current = get(now, "current", "averageUtilization")
        shown = f"{current}%" if current is not None else UNKNOWN
        return f"{source['name']}: {shown}/{wanted}%"
    current = get(now, "current", "averageValue", default=UNKNOWN)
    return f"{source['name']}: {current}/{get(source, 'target', 'averageValue', default=UNKNOWN)}"


def _targets(hpa: JsonObject) -> str:
    metrics = get(hpa, "spec", "metrics", default=[])
    current = get(hpa, "status", "currentMetrics", default=[])
    padded = [*current, *({} for _ in metrics)]
    shown = [_metric(m, s or {}) for m, s in zip(metrics, padded, strict=False)]
    if len(shown) > 2:
        return f"{', '.join(shown[:2])} + {len(shown) - 2} more..."
    return ", ".join(shown) or NONE


def _reference(hpa: JsonObject) -> str:
    target = get(hpa, "spec", "scaleTargetRef", default={})
    return f"{target.get('kind', '')}/{target.get('name', '')}"


def _controller(obj: JsonObject) -> str:
    for owner in get(obj, "metadata", "ownerReferences", default=()):
        if owner.get("controller"):
            group = owner["apiVersion"].partition("/")[0] if "/" in owner["apiVersion"] else ""
            kind = owner["kind"].lower()
            return f"{kind}.{group}/{owner['name']}" if group else f"{kind}/{owner['name']}"
    return NONE


_REPLICA_SET = spec(
    NAME,
    ("Desired", _replicas("spec", "replicas"), "integer"),
    ("Current", _replicas("status", "replicas"), "integer"),
    ("Ready", _replicas("status", "readyReplicas"), "integer"),
    AGE,
    _CONTAINERS,
    _IMAGES,
    _SELECTOR,
)
TABLES = {
    ("apps", "Deployment"): spec(
        NAME,
        ("Ready", _ready),
        ("Up-to-date", _replicas("status", "updatedReplicas"), "integer"),
        ("Available", _replicas("status", "availableReplicas"), "integer"),
        AGE,
        _CONTAINERS,
        _IMAGES,
        _SELECTOR,
    ),
    ("apps", "ReplicaSet"): _REPLICA_SET,
    ("", "ReplicationController"): spec(
        NAME,
        ("Desired", _replicas("spec", "replicas"), "integer"),
        ("Current", _replicas("status", "replicas"), "integer"),
        ("Ready", _replicas("status", "readyReplicas"), "integer"),
        AGE,
        _CONTAINERS,
        _IMAGES,
        ("Selector", lambda obj: pairs(get(obj, "spec", "selector")), "wide"),
    ),
    ("apps", "StatefulSet"): spec(NAME, ("Ready", _ready), AGE, _CONTAINERS, _IMAGES),
    ("apps", "DaemonSet"): spec(
        NAME,
        ("Desired", _replicas("status", "desiredNumberScheduled"), "integer"),
        ("Current", _replicas("status", "currentNumberScheduled"), "integer"),
        ("Ready", _replicas("status", "numberReady"), "integer"),
        ("Up-to-date", _replicas("status", "updatedNumberScheduled"), "integer"),
        ("Available", _replicas("status", "numberAvailable"), "integer"),
        ("Node Selector", lambda o: pairs(get(o, "spec", "template", "spec", "nodeSelector"))),
        AGE,
        _CONTAINERS,
        _IMAGES,
        _SELECTOR,
    ),
    ("apps", "ControllerRevision"): spec(
        NAME, ("Controller", _controller), ("Revision", at("revision", default=0), "integer"), AGE
    ),
    ("batch", "Job"): spec(
        NAME,
        ("Status", _job_status),
        ("Completions", _completions),
        ("Duration", _job_duration),
        AGE,
        _CONTAINERS,
        _IMAGES,
        _SELECTOR,
    ),
    ("batch", "CronJob"): spec(
        NAME,
        ("Schedule", at("spec", "schedule")),
        ("Timezone", at("spec", "timeZone", default=NONE)),
        ("Suspend", lambda obj: _bool(get(obj, "spec", "suspend"))),
        ("Active", lambda obj: len(get(obj, "status", "active", default=())), "integer"),
        ("Last Schedule", _last_schedule),
        AGE,
        ("Containers", containers("spec", "jobTemplate", *_TEMPLATE), "wide"),
        ("Images", images("spec", "jobTemplate", *_TEMPLATE), "wide"),
        ("Selector", lambda o: selector(get(o, "spec", "jobTemplate", "spec", "selector")), "wide"),
    ),
    ("autoscaling", "HorizontalPodAutoscaler"): spec(
        NAME,
        ("Reference", _reference),
        ("Targets", _targets),
        ("MinPods", lambda obj: str(get(obj, "spec", "minReplicas", default=UNSET))),
        ("MaxPods", _replicas("spec", "maxReplicas"), "integer"),
        ("Replicas", _replicas("status", "currentReplicas"), "integer"),
        AGE,
    ),
    ("policy", "PodDisruptionBudget"): spec(
        NAME,
        ("Min Available", lambda obj: str(get(obj, "spec", "minAvailable", default="N/A"))),
        ("Max Unavailable", lambda obj: str(get(obj, "spec", "maxUnavailable", default="N/A"))),
        ("Allowed Disruptions", _replicas("status", "disruptionsAllowed"), "integer"),
        AGE,
    ),
    ("", "PodTemplate"): spec(
        NAME,
        ("Containers", containers("template", "spec", "containers")),
        ("Images", images("template", "spec", "containers")),
        ("Pod Labels", lambda obj: pairs(get(obj, "template", "metadata", "labels"))),
    ),
}
