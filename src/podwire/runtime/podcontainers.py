"""A pod's containers: started, followed, probed, stopped; what becomes of each is in its slot.

    start -> launch -> follow ------------------------> note_exit -> wake
                    -> probes -> liveness failed -> stop (preStop, SIGTERM, grace, SIGKILL)

A container that refers to a ConfigMap or Secret that is not there waits for exactly that object
(and, should the watch lie, for a back-off of 1 s doubling to 30 s).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from functools import partial
from typing import Any, Final

from podwire.errors import ContainerError
from podwire.runtime.containers import ExitStatus, RunningContainer
from podwire.runtime.launch import launch
from podwire.runtime.lifecycle import run_hook, stop_container
from podwire.runtime.livepod import LivePod
from podwire.runtime.podvolumes import PodVolumes
from podwire.runtime.probeclients import OK, Outcome
from podwire.runtime.probes import ContainerProbes, ProbeKind, Probing
from podwire.runtime.standins import DIED, StandinContainer, options_from
from podwire.runtime.state import (
    BACKOFF_MAX_S,
    BACKOFF_MIN_S,
    CONFIG_REASONS,
    CONFIG_RETRY_MAX_S,
    CONFIG_RETRY_MIN_S,
    Slot,
    Terminated,
    note_exit,
)

_LOG = logging.getLogger(__name__)
_FIRST_PROBES_S: Final = 0.25
"""How long the first status waits for the first probes, so that one patch says it all."""
_FORCED_GRACE_S: Final = 1.0
_MESSAGE_BYTES: Final = 4096
_EXEC_OUTPUT_BYTES: Final = 10 * 1024


class PodContainers:
    def __init__(self, live: LivePod) -> None:
        self._live = live
        self._volumes = PodVolumes(live, self._references_changed)

    # -- starting ---------------------------------------------------------------------------------

    async def start(self, slot: Slot) -> bool:
        """Start an attempt; False when it could not, then the slot says why and when again."""
        live = self._live
        assert live.sandbox is not None
        attempt = slot.attempt
        if slot.ended is not None:
            slot.attempt += 1
        try:
            launched = await launch(live.host, live.pod, slot, live.sandbox)
        except ContainerError as error:
            slot.attempt = attempt
            self._start_failed(slot, error)
            return False
        except BaseException:
            slot.attempt = attempt
            raise
        slot.note_start(launched.container)
        if launched.ready_after_s:
            slot.ready_at = time.time() + launched.ready_after_s
            loop = asyncio.get_running_loop()
            live.wake_at(loop.time() + launched.ready_after_s + 0.01)
        self.follow(slot, launched.container)
        if slot.running is not None and slot.role != "init":
            self.probe(slot)
        live.say("Created", f"Created container: {slot.name}", lazy=launched.standin)
        live.say("Started", f"Started container {slot.name}", lazy=launched.standin)
        await self._post_start(slot)
        return True

    async def _post_start(self, slot: Slot) -> None:
        """Run the postStart hook; a container whose hook failed is killed and restarted."""
        hook = slot.spec.lifecycle.post_start if slot.spec.lifecycle is not None else None
        if hook is None or slot.running is None:
            return
        limit = float(self._live.pod.spec.termination_grace_period_seconds)
        failure = await run_hook(slot.running, slot.spec, hook, self._live.address, limit)
        if failure and slot.running is not None:
            self._live.say("FailedPostStartHook", failure, warning=True)
            slot.kill_reason = "postStart"
            self.stop_later(slot)

    def _start_failed(self, slot: Slot, error: ContainerError) -> None:
        reason, message = error.reason, str(error)
        if reason == "ErrImagePull" and slot.waiting[0] in ("ErrImagePull", "ImagePullBackOff"):
            reason, message = "ImagePullBackOff", f'Back-off pulling image "{slot.spec.image}"'
        slot.waiting = (reason, message)
        retry_s = BACKOFF_MIN_S
        if reason in ("ErrImagePull", "ImagePullBackOff"):
            slot.backoff_s = min(max(slot.backoff_s * 2, BACKOFF_MIN_S), BACKOFF_MAX_S)
            retry_s = slot.backoff_s
        elif reason in CONFIG_REASONS:
            slot.config_retry_s = min(
                max(slot.config_retry_s * 2, CONFIG_RETRY_MIN_S), CONFIG_RETRY_MAX_S
            )
            retry_s = slot.config_retry_s
            self._volumes.follow()
        slot.not_before = asyncio.get_running_loop().time() + retry_s
        self._live.wake_at(slot.not_before)
        event = {"FailedMount": "FailedMount", "ImagePullBackOff": "BackOff"}.get(reason, "Failed")
        self._live.say(event, message, warning=True)

    def _references_changed(self) -> None:
        """A ConfigMap or Secret of the pod is new or other: who waited for it may try at once."""
        waiting = [slot for slot in self._live.slots if slot.waits_for_config]
        for slot in waiting:
            slot.not_before = 0.0
        if waiting:
            self._live.wake()

    # -- running ----------------------------------------------------------------------------------

    def follow(self, slot: Slot, container: RunningContainer) -> None:
        """Have the slot told when the container ends; at once if it has already."""
        if isinstance(container, StandinContainer):
            container.on_end(partial(self._ended, slot, container))
            return
        self._volumes.follow()
        self._live.keep(self._watch(slot, container))

    async def _watch(self, slot: Slot, container: RunningContainer) -> None:
        self._ended(slot, container, await container.wait())
        try:
            await container.remove()
        except (ContainerError, OSError) as error:
            _LOG.warning("pod %s: container %s: %s", self._live.pod.key, slot.name, error)

    def _ended(self, slot: Slot, container: RunningContainer, status: ExitStatus) -> None:
        if slot.running is not container:
            return
        if slot.probes is not None:
            slot.probes.stop()
        ended = Terminated(
            status.exit_code,
            status.signal,
            status.reason or ("Completed" if status.exit_code == 0 else "Error"),
            status.message or self._last_words(slot),
            container.started_at,
            time.time(),
            container.id,
        )
        now = asyncio.get_running_loop().time()
        note_exit(slot, ended, now, innocent=status is DIED)
        if slot.not_before:
            self._say_back_off(slot, int(max(slot.not_before - now, 0) + 0.5))
        self._volumes.follow()
        self._live.wake()

    def _say_back_off(self, slot: Slot, seconds: int) -> None:
        live, meta = self._live, self._live.pod.metadata
        who = f"{meta.name}_{meta.namespace}({meta.uid})"
        text = f"back-off {seconds}s restarting failed container={slot.name} pod={who}"
        slot.waiting = ("CrashLoopBackOff", text)
        if not live.pod.deleting and not live.removed:
            text = f"Back-off restarting failed container {slot.name} in pod {who}"
            live.say("BackOff", text, warning=True)

    def _last_words(self, slot: Slot) -> str:
        """The termination message a container left in its file (4 KiB at most, as upstream)."""
        path = self._live.host.pod_dir(self._live.uid) / "termination"
        try:
            with open(f"{path}/{slot.name}.{slot.attempt}", "rb") as file:
                return file.read(_MESSAGE_BYTES).decode(errors="replace")
        except OSError:
            return ""

    def labels_changed(self) -> None:
        """Labels or annotations are others: files of the downward API may show them."""
        self._volumes.stale()

    def annotations_changed(self) -> None:
        """Stand-ins answer with the new `http-status` from now on."""
        for slot in self._live.slots:
            if not isinstance(slot.running, StandinContainer):
                continue
            try:
                options = options_from(self._live.pod, slot.spec)
            except ContainerError as error:
                self._live.say("Failed", str(error), warning=True)
                return
            slot.running.tune(options.http_status)

    def specs_changed(self) -> None:
        """A container whose image is another is restarted, as kubelet does (computePodActions)."""
        spec = self._live.pod.spec
        wanted = {container.name: container for container in spec.init_containers}
        wanted |= {container.name: container for container in spec.containers}
        for slot in self._live.slots:
            container = wanted.get(slot.name, slot.spec)
            if container.image != slot.spec.image and slot.take(container):
                text = f"Container {slot.name} definition changed, will be restarted"
                self._live.say("Killing", text)
                self.stop_later(slot)

    # -- probes -----------------------------------------------------------------------------------

    def probe(self, slot: Slot, *, resumed: tuple[bool, bool] | None = None) -> None:
        """Begin the probes of a running container; `resumed` as `ContainerProbes.start` says."""
        spec = slot.spec
        if not (spec.startup_probe or spec.readiness_probe or spec.liveness_probe):
            return
        standin = isinstance(slot.running, StandinContainer)
        host = self._live.host
        probing = Probing(
            host.wheel,
            self._live.address,
            exec_probe=None if standin else partial(_exec_probe, slot),
            wait_initial=not (standin and host.config.probe_delays == "standin"),
        )
        slot.probes = ContainerProbes(
            probing, spec, on_change=partial(self._probed, slot), on_failure=self._unhealthy
        )
        slot.probes.start(resumed=resumed)

    def _unhealthy(self, kind: ProbeKind, message: str) -> None:
        self._live.say("Unhealthy", f"{kind.capitalize()} probe failed: {message}", warning=True)

    def _probed(self, slot: Slot, kind: ProbeKind, ok: bool, message: str) -> None:
        if not ok and kind in ("liveness", "startup"):
            if slot.kill_reason:
                return
            slot.kill_reason = kind
            text = f"Container {slot.name} failed {kind} probe, will be restarted"
            self._live.say("Killing", text)
            self.stop_later(slot)
        self._live.wake()

    async def first_probes(self, started: Sequence[Slot]) -> None:
        """Wait a moment for the first answers of what has just started."""
        waiting = [
            asyncio.ensure_future(slot.probes.first.wait())
            for slot in started
            if slot.probes is not None and not slot.probes.first.is_set()
        ]
        if waiting:
            _, late = await asyncio.wait(waiting, timeout=_FIRST_PROBES_S)
            for task in late:
                task.cancel()

    # -- stopping ---------------------------------------------------------------------------------

    def _grace_s(self, slot: Slot) -> float:
        meta, spec = self._live.pod.metadata, self._live.pod.spec
        if self._live.removed:
            return _FORCED_GRACE_S
        if meta.deletion_grace_period_seconds is not None:
            return float(meta.deletion_grace_period_seconds)
        probe = {
            "liveness": slot.spec.liveness_probe,
            "startup": slot.spec.startup_probe,
        }.get(slot.kill_reason)
        if probe is not None and probe.termination_grace_period_seconds is not None:
            return float(probe.termination_grace_period_seconds)
        return float(spec.termination_grace_period_seconds)

    def stop_later(self, slot: Slot) -> None:
        """Stop a container in the background, once however often it is asked for."""
        if not slot.stopping:
            slot.stopping = True
            self._live.keep(self._stop_logged(slot))

    async def _stop_logged(self, slot: Slot) -> None:
        try:
            await self._stop(slot, self._grace_s(slot))
        except (ContainerError, OSError) as error:
            _LOG.warning("pod %s: stopping %s: %s", self._live.pod.key, slot.name, error)
            # The next failed probe, or the next look, tries again.
            slot.kill_reason, slot.stopping = "", False

    async def _stop(
        self, slot: Slot, grace_s: float, turn: asyncio.Future[None] | None = None
    ) -> None:
        container = slot.running
        if container is None:
            return
        if slot.probes is not None:
            slot.probes.stop()
        failure = await stop_container(container, slot.spec, self._live.address, grace_s, turn)
        if failure:
            self._live.say("FailedPreStopHook", failure, warning=True)

    async def stop_all(self) -> None:
        """Main and init containers together, then the sidecars in reverse order (KEP-753); hooks
        run at once."""
        running = [slot for slot in self._live.slots if slot.is_running]
        for slot in running:
            lazy = isinstance(slot.running, StandinContainer)
            self._live.say("Killing", f"Stopping container {slot.name}", lazy=lazy)
        first = [slot for slot in running if slot.role != "sidecar"]
        last = asyncio.gather(*(self._stop(slot, self._grace_s(slot)) for slot in first))
        everybody: list[asyncio.Future[Any]] = [last]
        for slot in reversed(running):
            if slot.role == "sidecar":
                stopping = self._stop(slot, self._grace_s(slot), everybody[-1])
                everybody.append(asyncio.ensure_future(stopping))
        await asyncio.gather(*everybody)

    async def stop_rest(self) -> None:
        """What still runs of a pod that has finished, in turn."""
        for slot in self._live.slots:
            if slot.is_running:
                await self._stop(slot, self._grace_s(slot))

    def release(self) -> None:
        """The pod is over: nothing of it is watched or kept fresh any more."""
        self._volumes.release()


async def _exec_probe(slot: Slot, command: Sequence[str]) -> Outcome:
    if slot.running is None:
        return Outcome(False, "the container has ended")
    process = await slot.running.exec(command)
    output = await process.stdout.read(_EXEC_OUTPUT_BYTES)
    status = await process.wait()
    if status.ok:
        return OK
    errors = await process.stderr.read(_EXEC_OUTPUT_BYTES) if process.stderr is not None else b""
    return Outcome(False, (output + errors).decode(errors="replace").strip())
