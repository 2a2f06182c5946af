"""What the worker knows of a pod's containers, and the pure decisions over it.

    Slots + now -> plan_containers -> what to start, what to stop, when to look again
    Slots       -> status.render   -> PodStatus

Source of the rules: kubernetes/kubernetes pkg/kubelet/kuberuntime/kuberuntime_manager.go
(computePodActions, doBackOff), KEP-753 (sidecar containers).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from podwire.objects.core import Container, Pod
from podwire.runtime.containers import RunningContainer
from podwire.runtime.probes import ContainerProbes

Role = Literal["init", "sidecar", "main"]

BACKOFF_MIN_S: Final = 10.0
BACKOFF_MAX_S: Final = 300.0
BACKOFF_RESET_S: Final = 600.0
"""A container that ran this long starts over with the shortest back-off."""
CONFIG_REASONS: Final = frozenset(("CreateContainerConfigError", "FailedMount"))
"""Why a container waits for something it refers to."""
CONFIG_RETRY_MIN_S: Final = 1.0
CONFIG_RETRY_MAX_S: Final = 30.0


@dataclass(frozen=True)
class Terminated:
    """How one attempt ended; times are Unix seconds, `started_at` 0 means it never ran."""

    exit_code: int
    signal: int
    reason: str
    message: str
    started_at: float
    finished_at: float
    container_id: str


@dataclass
class Slot:
    """One container of the pod over all its attempts; `attempt` is its restartCount."""

    spec: Container
    role: Role
    attempt: int = 0
    running: RunningContainer | None = None
    probes: ContainerProbes | None = None
    waiting: tuple[str, str] = ("PodInitializing", "")
    ended: Terminated | None = None
    last: Terminated | None = None
    image_id: str = ""
    backoff_s: float = 0.0
    not_before: float = 0.0
    config_retry_s: float = 0.0
    kill_reason: str = ""
    stopping: bool = False
    ready_at: float = 0.0
    ever_started: bool = False
    changed: bool = False
    """It starts again whatever the restart policy: its image is another, or its sandbox is new."""

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def is_running(self) -> bool:
        return self.running is not None

    @property
    def started(self) -> bool:
        return self.running is not None and (self.probes is None or self.probes.started)

    @property
    def waits_for_config(self) -> bool:
        """It could not start because of a ConfigMap, Secret or volume."""
        return self.running is None and self.waiting[0] in CONFIG_REASONS

    def note_start(self, container: RunningContainer) -> None:
        """Record that an attempt runs."""
        if self.ended is not None:
            self.last, self.ended = self.ended, None
        self.running = container
        self.image_id = container.image_id or self.image_id
        self.ever_started = True
        self.kill_reason, self.stopping, self.changed = "", False, False
        self.waiting = ("ContainerCreating", "")
        self.not_before = self.config_retry_s = self.ready_at = 0.0

    def take(self, spec: Container) -> bool:
        """Go on with a changed specification; True when what runs has to be stopped for it."""
        self.spec = spec
        self.backoff_s = self.not_before = self.config_retry_s = 0.0
        self.changed = self.running is not None and self.role != "init"
        return self.changed

    def ready_by(self, now: float) -> bool:
        """Ready as kubelet counts it; an init container is ready once it succeeded."""
        if self.role == "init":
            return self.ended is not None and self.ended.exit_code == 0 and not self.changed
        if self.running is None or now < self.ready_at:
            return False
        return self.probes is None or self.probes.ready


def slots_of(pod: Pod) -> list[Slot]:
    """All containers in start order, init containers and sidecars first."""
    slots = [
        Slot(container, "sidecar" if container.restart_policy == "Always" else "init")
        for container in pod.spec.init_containers
    ]
    first = "PodInitializing" if slots else "ContainerCreating"
    slots += [Slot(container, "main") for container in pod.spec.containers]
    for slot in slots:
        slot.waiting = (first, "")
    return slots


@dataclass(frozen=True)
class Steps:
    """`failed`: an init container failed for good. `finished`: no main container will run again."""

    start: tuple[Slot, ...] = ()
    stop: tuple[Slot, ...] = ()
    wake_at: float | None = None
    initialized: bool = False
    failed: bool = False
    finished: bool = False


def restarts(pod: Pod, slot: Slot) -> bool:
    """Whether an ended container is to be started again."""
    if slot.ended is None or slot.role == "sidecar" or slot.changed:
        return True
    if slot.role == "init":
        return slot.ended.exit_code != 0 and pod.spec.restart_policy != "Never"
    if pod.spec.restart_policy == "Always":
        return True
    return pod.spec.restart_policy == "OnFailure" and slot.ended.exit_code != 0


def plan_containers(pod: Pod, slots: Sequence[Slot], now: float) -> Steps:
    """What has to happen next; `now` is on the clock of `Slot.not_before`."""
    start: list[Slot] = []
    wakes: list[float] = []

    def due(slot: Slot) -> None:
        if slot.not_before <= now:
            start.append(slot)
        else:
            wakes.append(slot.not_before)

    def steps(**more: Any) -> Steps:
        return Steps(tuple(start), wake_at=min(wakes, default=None), **more)

    mains = [slot for slot in slots if slot.role == "main"]
    if all(slot.ended is not None and not restarts(pod, slot) for slot in mains):
        sidecars = tuple(slot for slot in reversed(slots) if slot.is_running)
        return Steps(stop=sidecars, initialized=True, finished=True)
    # A pod whose main containers ran is past its initialisation, whatever became of the records.
    past = any(slot.ever_started for slot in mains)
    for slot in slots:
        if slot.role == "sidecar":
            if not slot.is_running:
                due(slot)
            if not slot.started and not past:
                return steps()
        elif slot.role == "init" and not past:
            if slot.is_running:
                return steps()
            if slot.ended is None or slot.ended.exit_code != 0 or slot.changed:
                if not restarts(pod, slot):
                    return Steps(failed=True, stop=_running(slots))
                due(slot)
                return steps()
    for slot in mains:
        if not slot.is_running and restarts(pod, slot):
            due(slot)
    return steps(initialized=True)


def _running(slots: Sequence[Slot]) -> tuple[Slot, ...]:
    return tuple(slot for slot in reversed(slots) if slot.is_running)


def begin_anew(slots: Sequence[Slot]) -> None:
    """The pod has to have a new sandbox: its init containers run once more (computePodActions)."""
    if not any(slot.role == "init" for slot in slots):
        return
    for slot in slots:
        if slot.role == "init":
            slot.changed = slot.ended is not None
        elif slot.role == "main":
            slot.ever_started = False


def note_exit(slot: Slot, ended: Terminated, now: float, *, innocent: bool) -> None:
    """Record an end and its back-off; the first restart is immediate, as kubelet's.

    `innocent`: the container did not fail, its host process did; no back-off. Neither does one
    that ended for its new image have one (kubelet's back-off is per hash of the container).
    """
    slot.running = None
    slot.ended = ended
    slot.probes = None
    if innocent or slot.changed:
        return
    if ended.started_at and ended.finished_at - ended.started_at >= BACKOFF_RESET_S:
        slot.backoff_s = 0.0
    slot.not_before = now + slot.backoff_s if slot.backoff_s else 0.0
    slot.backoff_s = min(slot.backoff_s * 2, BACKOFF_MAX_S) if slot.backoff_s else BACKOFF_MIN_S
