"""In which order the containers of a pod are stopped."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import msgspec

from podwire.objects.core import Pod
from podwire.runtime.containers import ExitStatus, RunningContainer
from podwire.runtime.livepod import LivePod
from podwire.runtime.podcontainers import PodContainers
from podwire.runtime.state import Slot, slots_of
from podwire.runtime.status import PodView


class Hook:
    """A preStop command that runs until it is let go."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.stdout = self

    async def read(self) -> bytes:
        return b""

    async def wait(self) -> ExitStatus:
        await self.go.wait()
        return ExitStatus(0)


class Container:
    """Notes what is done to it; ends when it is let go."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.id = self.name = name
        self.attempt, self.image_id, self.started_at = 0, "", 0.0
        self.log_path = Path("/nowhere")
        self.hook, self.end = Hook(), asyncio.Event()
        self._log = log

    async def exec(self, _command: Sequence[str], **_how: bool) -> Hook:
        self._log.append(f"hook {self.name}")
        return self.hook

    async def kill(self, _signal: int) -> None:
        self._log.append(f"term {self.name}")

    async def wait(self) -> ExitStatus:
        await self.end.wait()
        return ExitStatus(0)


class Silent:
    def emit(self, *_args: object, **_how: object) -> None:
        pass


def nothing(*_: object) -> None:
    """Nobody has to be woken."""


def world(log: list[str]) -> tuple[PodContainers, dict[str, Container], list[Slot]]:
    hook = {"preStop": {"exec": {"command": ["x"]}}}
    sidecar = {"restartPolicy": "Always"}
    spec = {
        "containers": [{"name": "main", "lifecycle": hook}],
        "initContainers": [
            {"name": "one", **sidecar},
            {"name": "two", "lifecycle": hook, **sidecar},
        ],
    }
    pod = msgspec.convert({"metadata": {"name": "p", "namespace": "n"}, "spec": spec}, Pod)
    slots = slots_of(pod)
    made = {slot.name: Container(slot.name, log) for slot in slots}
    for slot in slots:
        slot.running = cast(RunningContainer, made[slot.name])
    host: Any = type("Host", (), {"events": Silent()})()
    live = LivePod(host, pod, slots, PodView(), nothing, nothing)
    return PodContainers(live), made, slots


async def settle() -> None:
    for _ in range(8):
        await asyncio.sleep(0)


async def test_sidecars_end_after_the_main_containers_but_their_hooks_do_not_wait() -> None:
    log: list[str] = []
    containers, made, _ = world(log)
    stopping = asyncio.ensure_future(containers.stop_all())
    await settle()
    assert log == ["hook main", "hook two"]
    made["two"].hook.go.set()
    await settle()
    assert log == ["hook main", "hook two"]
    made["main"].hook.go.set()
    await settle()
    assert log[2:] == ["term main"]
    made["main"].end.set()
    await settle()
    assert log[3:] == ["term two"]
    made["two"].end.set()
    await settle()
    assert log[4:] == ["term one"]
    made["one"].end.set()
    await stopping


async def test_a_stop_with_less_grace_takes_the_place_of_the_first() -> None:
    log: list[str] = []
    containers, _, _ = world(log)
    stopping = asyncio.ensure_future(containers.stop_all())
    await settle()
    stopping.cancel()
    await settle()
    assert stopping.cancelled()
    assert [task for task in asyncio.all_tasks() if task is not asyncio.current_task()] == []
