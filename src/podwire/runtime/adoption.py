"""After a restart of the agent: the slots of a pod as they were, from what runs and what was said.

    stand-in process, runtime, spawner -> what runs  \\
    the pod's status in the API        -> what ended  > slots
"""

from __future__ import annotations

import time
from functools import partial
from typing import Final

from podwire.objects.core import ContainerStateTerminated, ContainerStatus
from podwire.objects.meta import parse_time
from podwire.runtime.builtin import BuiltinContainer
from podwire.runtime.containers import RunningContainer
from podwire.runtime.launch import BUILTIN_PREFIX
from podwire.runtime.livepod import LivePod
from podwire.runtime.sandbox import Sandbox
from podwire.runtime.state import Slot, Terminated

_LOST: Final = "The container could not be located when the pod was terminated"


async def recover(live: LivePod, sandbox: Sandbox) -> dict[str, RunningContainer]:
    """What still runs (or ended unseen), the newest attempt by container name."""
    host, uid = live.host, sandbox.uid
    shell = host.shell(live.pod, sandbox)
    specs = {slot.name: slot.spec for slot in live.slots}
    found: list[RunningContainer] = []
    for held in [held for held in host.standins.held.values() if held.pod_uid == uid]:
        spec = specs.get(held.container)
        if spec is None:
            host.standins.stop(held.id)
            continue
        env = partial(
            host.specs.environment,
            live.pod,
            spec,
            sandbox,
            started_at=held.started_at,
            lenient=True,
        )
        log_path = host.log_path(live.pod, held.container, held.attempt)
        found.append(host.standins.adopt(held, log_path, shell, env))
    if host.runtime is not None:
        found += await host.runtime.recover(uid)
    if host.spawner is not None and any(s.image.startswith(BUILTIN_PREFIX) for s in specs.values()):
        for key, process in (await host.spawner.recover(f"{uid}/")).items():
            _, name, attempt = key.split("/")
            log_path = host.log_path(live.pod, name, int(attempt))
            found.append(BuiltinContainer(process, key, log_path, shell, {}))
    return {container.name: container for container in sorted(found, key=lambda c: c.attempt)}


def statuses_of(live: LivePod) -> dict[str, ContainerStatus]:
    """What the API knows of the pod's containers, by name."""
    status = live.pod.status
    return {s.name: s for s in [*status.container_statuses, *status.init_container_statuses]}


def restore(slot: Slot, before: ContainerStatus | None, running: RunningContainer | None) -> None:
    """Bring a fresh slot to where the agent before had it."""
    if before is not None:
        slot.attempt = before.restart_count
        slot.image_id = before.image_id
        slot.last = _terminated(before.last_state.terminated, before.container_id)
        slot.ever_started = before.state.running is not None or slot.last is not None
        if before.state.terminated is not None:
            slot.ended = _terminated(before.state.terminated, before.container_id)
            slot.ever_started = True
        elif running is None and before.state.running is not None:
            slot.ended = Terminated(
                137, 0, "ContainerStatusUnknown", _LOST, 0.0, time.time(), before.container_id
            )
    if running is not None:
        slot.running, slot.ever_started, slot.ended = running, True, None
        slot.attempt = max(slot.attempt, running.attempt)


def _terminated(state: ContainerStateTerminated | None, container_id: str) -> Terminated | None:
    if state is None:
        return None

    def unix(text: str | None) -> float:
        return parse_time(text).timestamp() if text else 0.0

    return Terminated(
        state.exit_code,
        state.signal,
        state.reason,
        state.message,
        unix(state.started_at),
        unix(state.finished_at),
        container_id,
    )
