"""The pod table: `printPod` of Kubernetes 1.33, whose STATUS column is a small state machine."""

from __future__ import annotations

from typing import Any

from podwire.apiserver.printers.columns import NONE, Cell, Column, TableSpec, age, get, since
from podwire.objects.meta import JsonObject

_COLUMNS = (
    Column("Name", format="name"),
    Column("Ready"),
    Column("Status"),
    Column("Restarts"),
    Column("Age"),
    Column("IP", wide=True),
    Column("Node", wide=True),
    Column("Nominated Node", wide=True),
    Column("Readiness Gates", wide=True),
)


class _Restarts:
    def __init__(self) -> None:
        self.count = 0
        self.last = ""

    def add(self, status: JsonObject) -> None:
        self.count += status.get("restartCount", 0)
        self.last = max(self.last, get(status, "lastState", "terminated", "finishedAt", default=""))

    def text(self) -> str:
        return f"{self.count} ({since(self.last)} ago)" if self.last else str(self.count)


def _terminated(state: JsonObject) -> str:
    if state.get("reason"):
        return str(state["reason"])
    if state.get("signal"):
        return f"Signal:{state['signal']}"
    return f"ExitCode:{state.get('exitCode', 0)}"


def _is_sidecar(container: JsonObject | None) -> bool:
    return container is not None and container.get("restartPolicy") == "Always"


def _condition(pod: JsonObject, kind: str, reason: str = "") -> bool:
    return any(
        c["type"] == kind and c["status"] == "True" and (not reason or c.get("reason") == reason)
        for c in get(pod, "status", "conditions", default=())
    )


def _init_phase(pod: JsonObject, restarts: _Restarts, sidecars: _Restarts) -> tuple[str, int]:
    """The `Init:...` status, or "" once initialised; and how many sidecars are ready."""
    specs = {c["name"]: c for c in get(pod, "spec", "initContainers", default=())}
    ready = 0
    for index, status in enumerate(get(pod, "status", "initContainerStatuses", default=())):
        sidecar = _is_sidecar(specs.get(status["name"]))
        restarts.add(status)
        if sidecar:
            sidecars.add(status)
        terminated = get(status, "state", "terminated")
        waiting = get(status, "state", "waiting", default={})
        if terminated is not None and not terminated.get("exitCode"):
            continue
        if sidecar and status.get("started"):
            ready += bool(status.get("ready"))
            continue
        if terminated is not None:
            return f"Init:{_terminated(terminated)}", ready
        if waiting.get("reason") and waiting["reason"] != "PodInitializing":
            return f"Init:{waiting['reason']}", ready
        return f"Init:{index}/{len(specs)}", ready
    return "", ready


def _container_phase(pod: JsonObject, reason: str, restarts: _Restarts) -> tuple[str, int]:
    ready, running = 0, False
    for status in reversed(get(pod, "status", "containerStatuses", default=())):
        restarts.add(status)
        waiting = get(status, "state", "waiting", default={})
        terminated = get(status, "state", "terminated")
        if waiting.get("reason"):
            reason = waiting["reason"]
        elif terminated is not None:
            reason = _terminated(terminated)
        elif status.get("ready") and get(status, "state", "running") is not None:
            running = True
            ready += 1
    if reason == "Completed" and running:
        reason = "Running" if _condition(pod, "Ready") else "NotReady"
    return reason, ready


def summary(pod: JsonObject) -> tuple[str, str, str]:
    """READY, STATUS and RESTARTS."""
    specs: list[Any] = get(pod, "spec", "initContainers", default=[])
    total = len(get(pod, "spec", "containers", default=())) + sum(map(_is_sidecar, specs))
    reason = get(pod, "status", "reason") or get(pod, "status", "phase", default="")
    if any(
        c["type"] == "PodScheduled" and c.get("reason") == "SchedulingGated"
        for c in get(pod, "status", "conditions", default=())
    ):
        reason = "SchedulingGated"
    restarts, sidecars = _Restarts(), _Restarts()
    initialising, ready = _init_phase(pod, restarts, sidecars)
    if initialising and not _condition(pod, "Initialized"):
        reason = initialising
    else:
        restarts = sidecars
        reason, main_ready = _container_phase(pod, reason, restarts)
        ready += main_ready
    if get(pod, "metadata", "deletionTimestamp"):
        phase = get(pod, "status", "phase", default="")
        if get(pod, "status", "reason") == "NodeLost":
            reason = "Unknown"
        elif phase not in ("Succeeded", "Failed"):
            reason = "Terminating"
    return f"{ready}/{total}", reason, restarts.text()


def _gates(pod: JsonObject) -> str:
    gates: list[Any] = get(pod, "spec", "readinessGates", default=[])
    if not gates:
        return NONE
    return f"{sum(_condition(pod, gate['conditionType']) for gate in gates)}/{len(gates)}"


def _row(pod: JsonObject) -> list[Cell]:
    ready, status, restarts = summary(pod)
    ips = get(pod, "status", "podIPs", default=())
    return [
        pod["metadata"]["name"],
        ready,
        status,
        restarts,
        age(pod),
        ips[0]["ip"] if ips else get(pod, "status", "podIP") or NONE,
        get(pod, "spec", "nodeName") or NONE,
        get(pod, "status", "nominatedNodeName") or NONE,
        _gates(pod),
    ]


POD = TableSpec(_COLUMNS, _row)
