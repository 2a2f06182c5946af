"""PodStatus as kubelet writes it: a pure function of the slots.

Source: kubernetes/kubernetes pkg/kubelet/kubelet_pods.go (getPhase) and
pkg/kubelet/status/generate.go (the conditions, their reasons and messages).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from podwire.objects.core import Condition, Pod
from podwire.objects.meta import JsonObject
from podwire.runtime.state import Slot, Terminated, restarts

OWNED_CONDITIONS = frozenset(
    ("PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady")
)


@dataclass(frozen=True)
class PodView:
    """What the status says besides its containers; `phase` and `reason` override when set."""

    pod_ips: tuple[str, ...] = ()
    host_ips: tuple[str, ...] = ()
    sandbox_ready: bool = False
    sandbox_message: str = ""
    initialized: bool = False
    start_time: str = ""
    rejected: bool = False
    """Not admitted to the node: nothing of it was ever here."""
    phase: str = ""
    reason: str = ""
    message: str = ""


def timestamp(unix: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(unix))


def phase_of(pod: Pod, slots: Sequence[Slot], *, initialized: bool) -> str:
    """Pending, Running, Succeeded or Failed (kubelet's getPhase)."""
    if any(
        slot.role == "init"
        and slot.ended is not None
        and slot.ended.exit_code != 0
        and not restarts(pod, slot)
        for slot in slots
    ):
        return "Failed"
    mains = [slot for slot in slots if slot.role == "main"]
    if not initialized:
        return "Pending"
    if any(not slot.is_running and slot.ended is None and slot.last is None for slot in mains):
        return "Pending"
    if any(slot.is_running for slot in mains):
        return "Running"
    ended = [slot for slot in mains if slot.ended is not None]
    if len(ended) == len(mains) and not any(restarts(pod, slot) for slot in mains):
        if any(slot.is_running for slot in slots):
            return "Running"  # the sidecars are still to be stopped
        good = all(slot.ended is not None and slot.ended.exit_code == 0 for slot in mains)
        return "Succeeded" if good else "Failed"
    return "Running"


def final_phase(slots: Sequence[Slot], phase: str) -> str:
    """What a deleted pod ends as once nothing of it runs, whatever its restart policy says."""
    if phase in ("Succeeded", "Failed"):
        return phase
    mains = [slot.ended for slot in slots if slot.role == "main"]
    good = all(ended is not None and ended.exit_code == 0 for ended in mains)
    return "Succeeded" if good else "Failed"


def render(pod: Pod, slots: Sequence[Slot], view: PodView, now: float) -> JsonObject:
    """The whole status; conditions keep the transition times of those that did not change."""
    if view.rejected:
        return _rejected(view)
    phase = view.phase or phase_of(pod, slots, initialized=view.initialized)
    status: JsonObject = {
        "phase": phase,
        "conditions": _conditions(pod, slots, view, phase, now),
        "hostIP": view.host_ips[0] if view.host_ips else None,
        "hostIPs": [{"ip": ip} for ip in view.host_ips],
        "podIP": view.pod_ips[0] if view.pod_ips else None,
        "podIPs": [{"ip": ip} for ip in view.pod_ips] or None,
        "startTime": view.start_time,
        "reason": view.reason or None,
        "message": view.message or None,
        "containerStatuses": [_container(pod, slot, now) for slot in slots if slot.role == "main"],
    }
    inits = [_container(pod, slot, now) for slot in slots if slot.role != "main"]
    if inits:
        status["initContainerStatuses"] = inits
    return status


def _rejected(view: PodView) -> JsonObject:
    """Upstream's rejectPod: a phase and its reason, no word of containers or conditions."""
    return {
        "phase": view.phase,
        "conditions": [],
        "startTime": view.start_time,
        "reason": view.reason,
        "message": view.message,
    }


def _container(pod: Pod, slot: Slot, now: float) -> JsonObject:
    running, ended = slot.running, slot.ended
    state: JsonObject
    last = slot.last
    if running is not None:
        state = {"running": {"startedAt": timestamp(running.started_at)}}
    elif ended is not None and not (restarts(pod, slot) and slot.not_before > 0):
        state = {"terminated": _terminated(ended)}
    else:
        reason, message = slot.waiting
        state = {"waiting": {"reason": reason} | ({"message": message} if message else {})}
        last = ended or last
    former = ended or last
    identity = running.id if running is not None else former.container_id if former else ""
    status = {
        "name": slot.name,
        "image": slot.spec.image,
        "imageID": slot.image_id,
        "ready": slot.ready_by(now),
        "started": slot.started,
        "restartCount": slot.attempt,
        "state": state,
        "lastState": {"terminated": _terminated(last)} if last is not None else {},
    }
    if identity:
        status["containerID"] = identity
    return status


def _terminated(ended: Terminated) -> JsonObject:
    state: JsonObject = {
        "exitCode": ended.exit_code,
        "reason": ended.reason or ("Completed" if ended.exit_code == 0 else "Error"),
        "finishedAt": timestamp(ended.finished_at),
        "startedAt": timestamp(ended.started_at) if ended.started_at else None,
    }
    if ended.signal:
        state["signal"] = ended.signal
    if ended.message:
        state["message"] = ended.message
    if ended.container_id:
        state["containerID"] = ended.container_id
    return {name: value for name, value in state.items() if value is not None}


# --- conditions -------------------------------------------------------------------------------


def _conditions(
    pod: Pod, slots: Sequence[Slot], view: PodView, phase: str, now: float
) -> list[JsonObject]:
    containers_ready = _containers_ready(slots, phase, now)
    wanted = [
        _condition(
            "PodReadyToStartContainers",
            view.sandbox_ready,
            "" if view.sandbox_ready or not view.sandbox_message else "FailedCreatePodSandBox",
            view.sandbox_message,
        ),
        _initialized(slots, view, phase),
        _ready(pod, containers_ready),
        containers_ready,
    ]
    former = {condition.type: condition for condition in pod.status.conditions}
    rendered = [_dated(condition, former.get(condition["type"]), now) for condition in wanted]
    kept = [
        msgspec.to_builtins(condition)
        for condition in pod.status.conditions
        if condition.type not in OWNED_CONDITIONS
    ]
    return rendered + kept


def _condition(kind: str, ok: bool, reason: str = "", message: str = "") -> JsonObject:
    condition: dict[str, Any] = {"type": kind, "status": "True" if ok else "False"}
    if reason:
        condition["reason"] = reason
    if message:
        condition["message"] = message
    return condition


def _dated(condition: JsonObject, former: Condition | None, now: float) -> JsonObject:
    same = former is not None and former.status == condition["status"]
    when = former.last_transition_time if same and former is not None else None
    return condition | {"lastProbeTime": None, "lastTransitionTime": when or timestamp(now)}


def _initialized(slots: Sequence[Slot], view: PodView, phase: str) -> JsonObject:
    if phase == "Succeeded":
        return _condition("Initialized", True, "PodCompleted")
    if view.initialized:
        return _condition("Initialized", True)
    missing = [
        slot.name
        for slot in slots
        if (slot.role == "init" and not slot.ready_by(0))
        or (slot.role == "sidecar" and not slot.started)
    ]
    if not missing:
        return _condition("Initialized", True)
    message = f"containers with incomplete status: [{' '.join(missing)}]"
    return _condition("Initialized", False, "ContainersNotInitialized", message)


def _containers_ready(slots: Sequence[Slot], phase: str, now: float) -> JsonObject:
    if phase == "Succeeded":
        return _condition("ContainersReady", False, "PodCompleted")
    if phase == "Failed":
        return _condition("ContainersReady", False, "PodFailed")
    unready = [slot.name for slot in slots if slot.role != "init" and not slot.ready_by(now)]
    if unready:
        message = f"containers with unready status: [{' '.join(unready)}]"
        return _condition("ContainersReady", False, "ContainersNotReady", message)
    return _condition("ContainersReady", True)


def _ready(pod: Pod, containers_ready: JsonObject) -> JsonObject:
    if containers_ready["status"] != "True":
        return containers_ready | {"type": "Ready"}
    conditions = {condition.type: condition.status for condition in pod.status.conditions}
    complaints = []
    for gate in pod.spec.readiness_gates:
        kind = gate.get("conditionType", "")
        if kind not in conditions:
            complaints.append(
                f'corresponding condition of pod readiness gate "{kind}" does not exist.'
            )
        elif conditions[kind] != "True":
            complaints.append(
                f'the status of pod readiness gate "{kind}" is not "True", but {conditions[kind]}'
            )
    if complaints:
        return _condition("Ready", False, "ReadinessGatesNotReady", ", ".join(complaints))
    return _condition("Ready", True)


def difference(old: JsonObject | None, new: JsonObject) -> JsonObject:
    """The merge patch from one status to the next: only the top-level fields that changed."""
    if old is None:
        return {name: value for name, value in new.items() if value is not None}
    changed = {name: value for name, value in new.items() if old.get(name) != value}
    return changed | {name: None for name in old if name not in new and old[name] is not None}
