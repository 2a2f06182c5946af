"""Tables as kubectl shows them: the STATUS of pods, ages, and every kind's columns."""

from __future__ import annotations

from typing import Any

import pytest

from podwire.apiserver.printers.columns import duration
from podwire.apiserver.printers.custom import find_path
from podwire.apiserver.printers.pods import summary
from podwire.apiserver.registry import Registry


def pod(*statuses: dict[str, Any], phase: str = "Running", **extra: Any) -> dict[str, Any]:
    init = extra.pop("init", [])
    meta = {"name": "p"} | ({"deletionTimestamp": "x"} if extra.pop("deleting", False) else {})
    return {
        "metadata": meta,
        "spec": {
            "containers": [{"name": s["name"]} for s in statuses],
            "initContainers": [s["spec"] for s in init],
        },
        "status": {
            "phase": phase,
            "containerStatuses": list(statuses),
            "initContainerStatuses": [s["status"] for s in init],
            **extra,
        },
    }


def container(name: str = "c", ready: bool = True, restarts: int = 0, **state: Any) -> Any:
    return {"name": name, "ready": ready, "restartCount": restarts, "state": state}


def init(name: str, restart: str = "", **status: Any) -> Any:
    spec = {"name": name} | ({"restartPolicy": restart} if restart else {})
    return {"spec": spec, "status": {"name": name, **status}}


RUNNING: dict[str, Any] = {"running": {}}
CRASH: dict[str, Any] = {"waiting": {"reason": "CrashLoopBackOff"}}
DONE: dict[str, Any] = {"terminated": {"exitCode": 0, "reason": "Completed"}}
READY = [{"type": "Ready", "status": "True"}]
GATED = [{"type": "PodScheduled", "status": "False", "reason": "SchedulingGated"}]


@pytest.mark.parametrize(
    ("subject", "expected"),
    [
        (pod(phase="Pending"), ("0/0", "Pending", "0")),
        (pod(container(**RUNNING)), ("1/1", "Running", "0")),
        (pod(container(ready=False, restarts=3, **CRASH)), ("0/1", "CrashLoopBackOff", "3")),
        (pod(container(ready=False, **DONE), phase="Succeeded"), ("0/1", "Completed", "0")),
        (
            pod(container(ready=False, terminated={"exitCode": 2}), phase="Failed"),
            ("0/1", "ExitCode:2", "0"),
        ),
        (
            pod(container(ready=False, terminated={"exitCode": 1, "signal": 9})),
            ("0/1", "Signal:9", "0"),
        ),
        (pod(container(**RUNNING), deleting=True), ("1/1", "Terminating", "0")),
        (
            pod(container("a", **RUNNING), container("b", ready=False, **DONE), conditions=READY),
            ("1/2", "Running", "0"),
        ),
        (
            pod(container("a", ready=False, **DONE), container("b", **RUNNING), conditions=READY),
            ("1/2", "Running", "0"),
        ),
        (
            pod(container("a", ready=False, **DONE), container("b", **RUNNING)),
            ("1/2", "NotReady", "0"),
        ),
        (pod(phase="Failed", reason="Evicted"), ("0/0", "Evicted", "0")),
        (pod(phase="Pending", conditions=GATED), ("0/0", "SchedulingGated", "0")),
        (pod(phase="Pending", init=[init("i", state=RUNNING)]), ("0/0", "Init:0/1", "0")),
        (
            pod(phase="Pending", init=[init("i", state={"terminated": {"exitCode": 1}})]),
            ("0/0", "Init:ExitCode:1", "0"),
        ),
        (
            pod(phase="Pending", init=[init("i", state=CRASH, restartCount=2)]),
            ("0/0", "Init:CrashLoopBackOff", "2"),
        ),
        (
            pod(
                container(**RUNNING),
                init=[init("s", "Always", started=True, ready=True, state=RUNNING)],
            ),
            ("2/2", "Running", "0"),
        ),
    ],
)
def test_pod_status(subject: dict[str, Any], expected: tuple[str, str, str]) -> None:
    assert summary(subject) == expected


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5, "<invalid>"),
        (0, "0s"),
        (119, "119s"),
        (120, "2m"),
        (150, "2m30s"),
        (700, "11m"),
        (3 * 3600 + 60, "3h1m"),
        (10 * 3600, "10h"),
        (50 * 3600, "2d2h"),
        (30 * 86400, "30d"),
        (3 * 365 * 86400 + 86400, "3y1d"),
    ],
)
def test_duration(seconds: int, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("path", "found"),
    [
        (".spec.size", [3]),
        ('.status.conditions[?(@.type=="Ready")].status', ["True"]),
        (".status.conditions[*].type", ["Ready", "Other"]),
        (".status.conditions[0].type", ["Ready"]),
        (".metadata.labels.a\\.b/c", ["x"]),
        (".metadata.labels['a.b/c']", ["x"]),
        (".spec.nothing", []),
        ("nonsense[", []),
    ],
)
def test_json_path(path: str, found: list[Any]) -> None:
    obj = {
        "metadata": {"labels": {"a.b/c": "x"}},
        "spec": {"size": 3},
        "status": {
            "conditions": [{"type": "Ready", "status": "True"}, {"type": "Other", "status": "?"}]
        },
    }
    assert find_path(obj, path) == found


@pytest.mark.parametrize(
    "resource",
    [r for r in Registry.builtin() if r.table],
    ids=lambda r: f"{r.qualified}.{r.version}",
)
def test_every_table_prints_a_bare_object(resource: Any) -> None:
    """A row has as many cells as there are columns, whatever the object leaves out."""
    row = resource.table.row({"metadata": {"name": "x"}, "spec": {}, "status": {}})
    assert len(row) == len(resource.table.columns)
    assert "x" in row
