"""What to start, what to stop, and the status that says so; kubelet's rules, case by case."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from podwire.objects.core import Pod
from podwire.runtime.containers import RunningContainer
from podwire.runtime.state import Slot, Terminated, begin_anew, note_exit, plan_containers, slots_of
from podwire.runtime.status import PodView, difference, phase_of, render

NOW = 1000.0


class Running:
    def __init__(self, name: str) -> None:
        self.id = f"test://{name}"
        self.name = name
        self.attempt = 0
        self.image_id = ""
        self.log_path = Path("/nowhere")
        self.started_at = 500.0


def pod(
    restart: str = "Always", *, inits: tuple[str, ...] = (), mains: str = "a", **more: Any
) -> Pod:
    def init(name: str) -> dict[str, Any]:
        if name.startswith("side"):
            return {"name": name, "restartPolicy": "Always"}
        return {"name": name}

    spec = {
        "containers": [{"name": name} for name in mains],
        "initContainers": [init(name) for name in inits],
        "restartPolicy": restart,
        **more,
    }
    return msgspec.convert({"metadata": {"name": "p", "namespace": "n"}, "spec": spec}, Pod)


def build(which: Pod, **states: str | int) -> list[Slot]:
    """Slots by name: "run" is running, a number has ended with that code, absent never started."""
    slots = slots_of(which)
    for slot in slots:
        state = states.get(slot.name)
        if state == "run":
            slot.running = cast(RunningContainer, Running(slot.name))
            slot.ever_started = True
        elif isinstance(state, int):
            slot.ended = Terminated(state, 0, "", "", 1.0, 2.0, "id")
            slot.ever_started = True
    return slots


def names(slots: tuple[Slot, ...]) -> str:
    return "".join(slot.name for slot in slots)


@pytest.mark.parametrize("policy", ["Always", "OnFailure", "Never"])
def test_a_new_image_restarts_at_once_whatever_the_policy(policy: str) -> None:
    which = pod(policy)
    (slot,) = slots = build(which, a="run")
    slot.backoff_s = 40.0
    assert slot.take(msgspec.structs.replace(slot.spec, image="other"))
    note_exit(slot, Terminated(0, 0, "", "", 1.0, 2.0, "id"), NOW, innocent=False)
    assert plan_containers(which, slots, NOW).start == (slot,)
    slot.note_start(cast(RunningContainer, Running("a")))
    assert not slot.changed
    note_exit(slot, Terminated(0, 0, "", "", 1.0, 2.0, "id"), NOW, innocent=False)
    assert bool(plan_containers(which, slots, NOW).start) is (policy == "Always")


def test_a_new_image_ends_the_back_off_of_what_does_not_run() -> None:
    which = pod()
    (slot,) = slots = build(which, a=1)
    slot.backoff_s, slot.not_before = 160.0, NOW + 160
    assert not slot.take(msgspec.structs.replace(slot.spec, image="other"))
    assert plan_containers(which, slots, NOW).start == (slot,)


def test_init_containers_run_again_in_a_new_sandbox() -> None:
    which = pod(inits=("i", "j"))
    slots = build(which, i=0, j=0, a=137)
    assert names(plan_containers(which, slots, NOW).start) == "a"
    begin_anew(slots)
    started = []
    for _ in range(3):
        steps = plan_containers(which, slots, NOW)
        (slot,) = steps.start
        started.append(slot.name)
        assert not steps.initialized or slot.name == "a"
        slot.note_start(cast(RunningContainer, Running(slot.name)))
        assert plan_containers(which, slots, NOW).start == ()
        if slot.role == "init":
            note_exit(slot, Terminated(0, 0, "", "", 1.0, 2.0, "id"), NOW, innocent=False)
    assert started == ["i", "j", "a"]


def test_what_does_not_restart_stays_ended_in_a_new_sandbox() -> None:
    which = pod("Never", inits=("i",))
    slots = build(which, i=0, a=137)
    begin_anew(slots)
    steps = plan_containers(which, slots, NOW)
    assert (steps.start, steps.finished) == ((), True)


@pytest.mark.parametrize(
    ("which", "states", "start", "stop"),
    [
        (pod(mains="ab"), {}, "ab", ""),
        (pod(mains="ab"), {"a": "run"}, "b", ""),
        (pod(inits=("i", "j")), {}, "i", ""),
        (pod(inits=("i", "j")), {"i": "run"}, "", ""),
        (pod(inits=("i", "j")), {"i": 0}, "j", ""),
        (pod(inits=("i", "j")), {"i": 1}, "i", ""),
        (pod("Never", inits=("i", "j")), {"i": 1}, "", ""),
        (pod(inits=("i", "j")), {"i": 0, "j": 0}, "a", ""),
        (pod(inits=("side",)), {}, "side", ""),
        (pod(inits=("side",)), {"side": "run"}, "a", ""),
        (pod(inits=("side",)), {"side": 1, "a": "run"}, "side", ""),
        (pod("Always"), {"a": 0}, "a", ""),
        (pod("OnFailure"), {"a": 0}, "", ""),
        (pod("OnFailure"), {"a": 2}, "a", ""),
        (pod("Never"), {"a": 2}, "", ""),
        (pod("Never", inits=("side",)), {"side": "run", "a": 0}, "", "side"),
    ],
)
def test_plan(which: Pod, states: dict[str, str | int], start: str, stop: str) -> None:
    steps = plan_containers(which, build(which, **states), NOW)
    assert "".join(slot.name for slot in steps.start) == start
    assert "".join(slot.name for slot in steps.stop) == stop


def test_backoff_doubles_after_an_immediate_first_restart() -> None:
    which = pod()
    (slot,) = build(which, a="run")
    waits = []
    for _ in range(8):
        slot.running = cast(RunningContainer, Running("a"))
        note_exit(slot, Terminated(1, 0, "", "", 1.0, 2.0, "id"), NOW, innocent=False)
        waits.append(slot.not_before - NOW if slot.not_before else 0)
    assert waits == [0, 10, 20, 40, 80, 160, 300, 300]
    assert plan_containers(which, [slot], NOW).wake_at == NOW + 300


def test_backoff_starts_over_after_ten_minutes_and_spares_the_innocent() -> None:
    (slot,) = build(pod(), a="run")
    slot.backoff_s = 160.0
    note_exit(slot, Terminated(1, 0, "", "", 0.5, 700.0, "id"), NOW, innocent=False)
    assert (slot.not_before, slot.backoff_s) == (0.0, 10.0)
    note_exit(slot, Terminated(137, 9, "", "", 1.0, 2.0, "id"), NOW, innocent=True)
    assert slot.not_before == 0.0


@pytest.mark.parametrize(
    ("which", "states", "phase"),
    [
        (pod(), {}, "Pending"),
        (pod(), {"a": "run"}, "Running"),
        (pod(mains="ab"), {"a": "run"}, "Pending"),
        (pod("Always"), {"a": 1}, "Running"),
        (pod("Never", mains="ab"), {"a": 0, "b": 0}, "Succeeded"),
        (pod("Never", mains="ab"), {"a": 0, "b": 3}, "Failed"),
        (pod("Never", mains="ab"), {"a": 3, "b": "run"}, "Running"),
        (pod("Never", inits=("i",)), {"i": 1}, "Failed"),
        (pod("Never", inits=("side",)), {"side": "run", "a": 0}, "Running"),
        (pod("Never", inits=("side",)), {"side": 0, "a": 0}, "Succeeded"),
    ],
)
def test_phase(which: Pod, states: dict[str, str | int], phase: str) -> None:
    slots = build(which, **states)
    initialized = plan_containers(which, slots, NOW).initialized
    assert phase_of(which, slots, initialized=initialized) == phase


def conditions(which: Pod, slots: list[Slot], **view: Any) -> dict[str, tuple[str, ...]]:
    status = render(which, slots, PodView(start_time="t", **view), NOW)
    return {
        c["type"]: (c["status"], c.get("reason", ""), c.get("message", ""))
        for c in status["conditions"]
    }


def test_conditions_of_a_ready_pod() -> None:
    which = pod()
    found = conditions(which, build(which, a="run"), initialized=True, sandbox_ready=True)
    assert set(found.values()) == {("True", "", "")}
    assert set(found) == {"PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady"}


def test_conditions_name_what_is_missing() -> None:
    which = pod(mains="ab", inits=("i",))
    found = conditions(which, build(which, i="run"))
    assert found["Initialized"] == (
        "False",
        "ContainersNotInitialized",
        "containers with incomplete status: [i]",
    )
    unready = ("False", "ContainersNotReady", "containers with unready status: [a b]")
    assert found["Ready"] == found["ContainersReady"] == unready


def test_readiness_gates_and_other_conditions_are_kept() -> None:
    gated = msgspec.structs.replace(
        pod(readinessGates=[{"conditionType": "example.com/lb"}]),
        status=msgspec.convert(
            {"conditions": [{"type": "PodScheduled", "status": "True", "lastTransitionTime": "x"}]},
            type(pod().status),
        ),
    )
    found = conditions(gated, build(gated, a="run"), initialized=True, sandbox_ready=True)
    assert found["Ready"][:2] == ("False", "ReadinessGatesNotReady")
    assert found["ContainersReady"][0] == "True"
    assert found["PodScheduled"][0] == "True"


def test_finished_pods_are_not_ready() -> None:
    which = pod("Never")
    found = conditions(which, build(which, a=0), initialized=True)
    assert found["Ready"][1] == "PodCompleted"
    found = conditions(which, build(which, a=1), initialized=True)
    assert found["Ready"][1] == "PodFailed"


def test_crash_loop_shows_as_waiting_with_its_last_state() -> None:
    which = pod()
    (slot,) = build(which, a=1)
    slot.not_before, slot.waiting = NOW + 10, ("CrashLoopBackOff", "back-off 10s")
    status = render(which, [slot], PodView(start_time="t", initialized=True), NOW)
    (container,) = status["containerStatuses"]
    assert container["state"]["waiting"]["reason"] == "CrashLoopBackOff"
    assert container["lastState"]["terminated"]["exitCode"] == 1


def test_transition_times_stay_while_the_status_stays() -> None:
    old = {"type": "Ready", "status": "True", "lastTransitionTime": "2020-01-01T00:00:00Z"}
    which = msgspec.structs.replace(
        pod(), status=msgspec.convert({"conditions": [old]}, type(pod().status))
    )
    status = render(which, build(which, a="run"), PodView(initialized=True), NOW)
    times = {c["type"]: c["lastTransitionTime"] for c in status["conditions"]}
    assert times["Ready"] == "2020-01-01T00:00:00Z"
    assert times["ContainersReady"] == "1970-01-01T00:16:40Z"


def test_difference_is_a_merge_patch() -> None:
    old = {"phase": "Pending", "podIP": None, "same": [1], "gone": 1}
    new = {"phase": "Running", "podIP": "10.0.0.1", "same": [1]}
    assert difference(old, new) == {"phase": "Running", "podIP": "10.0.0.1", "gone": None}
    assert difference(new, dict(new)) == {}
    assert difference(None, {"a": 1, "b": None}) == {"a": 1}
