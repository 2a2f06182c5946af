"""Kinds served in two versions from one store: how each is read and written.

Events are stored as core/v1 and served as events.k8s.io/v1 too; HorizontalPodAutoscalers are
stored as autoscaling/v2 and served as v1 too. Source: pkg/apis/events/v1, pkg/apis/autoscaling/v1
conversion.go of Kubernetes 1.33.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from podwire.objects.meta import JsonObject

Convert = Callable[[JsonObject], JsonObject]

_EVENT_NAMES = {
    "involvedObject": "regarding",
    "message": "note",
    "firstTimestamp": "deprecatedFirstTimestamp",
    "lastTimestamp": "deprecatedLastTimestamp",
    "count": "deprecatedCount",
    "source": "deprecatedSource",
    "reportingComponent": "reportingController",
}
_EVENT_NAMES_BACK = {new: old for old, new in _EVENT_NAMES.items()}


def _renamed(obj: JsonObject, names: dict[str, str], api_version: str) -> JsonObject:
    converted = {names.get(name, name): value for name, value in obj.items()}
    converted["apiVersion"] = api_version
    return converted


def event_to_new(obj: JsonObject) -> JsonObject:
    return _renamed(obj, _EVENT_NAMES, "events.k8s.io/v1")


def event_to_core(obj: JsonObject) -> JsonObject:
    return _renamed(obj, _EVENT_NAMES_BACK, "v1")


def hpa_to_v1(obj: JsonObject) -> JsonObject:
    spec = {k: v for k, v in obj.get("spec", {}).items() if k not in ("metrics", "behavior")}
    for metric in obj.get("spec", {}).get("metrics") or ():
        if (percent := _cpu_value(metric, "target")) is not None:
            spec["targetCPUUtilizationPercentage"] = percent
    old: JsonObject = obj.get("status") or {}
    status = {k: v for k, v in old.items() if k not in ("currentMetrics", "conditions")}
    for metric in old.get("currentMetrics") or ():
        if (percent := _cpu_value(metric, "current")) is not None:
            status["currentCPUUtilizationPercentage"] = percent
    return {**obj, "apiVersion": "autoscaling/v1", "spec": spec, "status": status}


def _cpu_value(metric: JsonObject, part: str) -> Any:
    resource = metric.get("resource") or {}
    if metric.get("type") != "Resource" or resource.get("name") != "cpu":
        return None
    return (resource.get(part) or {}).get("averageUtilization")


def hpa_to_v2(obj: JsonObject) -> JsonObject:
    spec = dict(obj.get("spec") or {})
    percent = spec.pop("targetCPUUtilizationPercentage", None)
    if percent is not None:
        target = {"type": "Utilization", "averageUtilization": percent}
        spec["metrics"] = [{"type": "Resource", "resource": {"name": "cpu", "target": target}}]
    status = dict(obj.get("status") or {})
    status.pop("currentCPUUtilizationPercentage", None)
    return {**obj, "apiVersion": "autoscaling/v2", "spec": spec, "status": status}


CONVERSIONS: dict[tuple[str, str, str], tuple[Convert, Convert]] = {
    ("events.k8s.io", "v1", "Event"): (event_to_new, event_to_core),
    ("autoscaling", "v1", "HorizontalPodAutoscaler"): (hpa_to_v1, hpa_to_v2),
}
"""(group, version, kind) -> (from the stored version, to the stored version)."""
