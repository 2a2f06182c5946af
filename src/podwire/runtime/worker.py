"""One pod's life: woken by the API, an exit, a probe or a timer, it looks and does what is due.

    wake -> sync: sandbox -> plan_containers (pure) -> start/stop -> render (pure) -> one patch

An idle pod has no task. The status is written only when it differs, once for everything that
happened meanwhile: a stand-in pod goes from Pending to Running and Ready in a single patch.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import aiohttp
import msgspec

from podwire.cni import PodAddresses
from podwire.errors import (
    AddressError,
    ContainerError,
    KernelError,
    NotFoundError,
    PodwireError,
)
from podwire.objects import kinds
from podwire.objects.core import ContainerStateTerminated, Pod
from podwire.objects.meta import JsonObject, parse_time
from podwire.runtime import sandbox as sandboxes
from podwire.runtime.builtin import BuiltinContainer
from podwire.runtime.containers import ExitStatus, RunningContainer
from podwire.runtime.launch import BUILTIN_PREFIX, Host, launch, write_host_files
from podwire.runtime.lifecycle import run_hook, stop_container
from podwire.runtime.probeclients import OK, Outcome
from podwire.runtime.probes import ContainerProbes, ProbeKind
from podwire.runtime.sandbox import Sandbox
from podwire.runtime.standins import DIED, StandinContainer
from podwire.runtime.state import (
    BACKOFF_MAX_S,
    BACKOFF_MIN_S,
    Slot,
    Terminated,
    note_exit,
    plan_containers,
    slots_of,
)
from podwire.runtime.status import PodView, difference, render, timestamp

_LOG = logging.getLogger(__name__)
_FIRST_PROBES_S = 0.25
"""How long the first status waits for the first probes, so that one patch says it all."""
_RETRY_MIN_S, _RETRY_MAX_S = 0.1, 10.0
_FORCED_GRACE_S = 1.0


class PodWorker:
    """All methods run on the event loop; `gone` is called when the pod has left this node."""

    def __init__(self, host: Host, pod: Pod, gone: Callable[[str], None]) -> None:
        self.pod = pod
        self.slots: list[Slot] = slots_of(pod)
        self.sandbox: Sandbox | None = None
        self._host = host
        self._gone = gone
        self._task: asyncio.Task[None] | None = None
        self._dirty = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._watches: set[asyncio.Task[None]] = set()
        self._written: JsonObject | None = None
        self._view = PodView(
            host_ips=tuple(map(str, host.config.node_ips)),
            start_time=pod.status.start_time or timestamp(time.time()),
        )
        self._sandbox_attempt = 0
        self._failures = 0
        self._removed = False
        self._stopping: asyncio.Task[None] | None = None
        self._stop_terms: tuple[bool, int | None] = (False, None)
        self._done = False

    # -- being woken ------------------------------------------------------------------------------

    def update(self, pod: Pod) -> None:
        """The API's newest version of the pod; our own status coming back wakes nobody."""
        old, self.pod = self.pod, pod
        if (
            old.metadata.generation != pod.metadata.generation
            or old.deleting != pod.deleting
            or old.metadata.deletion_grace_period_seconds
            != pod.metadata.deletion_grace_period_seconds
            or bool(pod.spec.readiness_gates)
            or (self._written is not None and pod.status.phase != self._written["phase"])
        ):
            self.wake()

    def remove(self) -> None:
        """The pod is gone from the API: end it without telling anybody."""
        self._removed = True
        self.wake()

    def wake(self) -> None:
        self._dirty = True
        if self._task is None and not self._done:
            self._task = asyncio.get_running_loop().create_task(self._work())

    def wake_at(self, when: float) -> None:
        """Wake at a time of the loop's clock; the earliest wins."""
        if self._timer is not None:
            if self._timer_at <= when:
                return
            self._timer.cancel()
        self._timer_at = when
        self._timer = asyncio.get_running_loop().call_at(when, self._due)

    def _due(self) -> None:
        self._timer = None
        self.wake()

    async def _work(self) -> None:
        try:
            while self._dirty and not self._done:
                self._dirty = False
                try:
                    await self._sync()
                    self._failures = 0
                except (PodwireError, aiohttp.ClientError, OSError) as e:
                    self._retry(e)
        except Exception:
            _LOG.exception("pod %s: worker failed", self.pod.key)
            self._retry_later()
        finally:
            self._task = None

    def _retry(self, error: Exception) -> None:
        _LOG.warning("pod %s: %s; retrying", self.pod.key, error)
        self._retry_later()

    def _retry_later(self) -> None:
        delay = min(_RETRY_MIN_S * 2 ** min(self._failures, 10), _RETRY_MAX_S)
        self._failures += 1
        self.wake_at(asyncio.get_running_loop().time() + delay)

    def abandon(self) -> None:
        """The agent ends; the pod goes on."""
        self._done = True
        for task in (self._task, self._stopping, *self._watches):
            if task is not None:
                task.cancel()
        if self._timer is not None:
            self._timer.cancel()
        for slot in self.slots:
            if slot.probes is not None:
                slot.probes.stop()

    # -- the one loop -----------------------------------------------------------------------------

    async def _sync(self) -> None:
        if self._removed or self.pod.deleting:
            await self._terminate()
            return
        if self.pod.finished:
            await self._release()
            return
        if self._deadline_passed():
            await self._fail("DeadlineExceeded", _DEADLINE)
            return
        if not await self._ensure_sandbox():
            await self._write_status()
            return
        now = asyncio.get_running_loop().time()
        steps = plan_containers(self.pod, self.slots, now)
        self._view = replace(self._view, initialized=steps.initialized)
        started = [slot for slot in steps.start if await self._start(slot)]
        for slot in steps.stop:
            self._stop_later(slot)
        if steps.wake_at is not None:
            self.wake_at(steps.wake_at)
        if any(slot.running is None for slot in started):
            # Something ended as it started (init stand-ins): look again before reporting.
            self._dirty = True
            return
        await self._first_probes(started)
        if any(slot.role == "sidecar" and slot.started for slot in started):
            # What comes after a started sidecar can start at once.
            self._dirty = True
        if self._dirty and not self._written:
            return
        await self._write_status()
        if (steps.finished or steps.failed) and not any(slot.is_running for slot in self.slots):
            await self._release()

    def _deadline_passed(self) -> bool:
        limit = self.pod.spec.active_deadline_seconds
        if limit is None:
            return False
        left = parse_time(self._view.start_time).timestamp() + limit - time.time()
        if left > 0:
            self.wake_at(asyncio.get_running_loop().time() + left)
        return left <= 0

    async def _first_probes(self, started: Sequence[Slot]) -> None:
        waiting = [
            asyncio.ensure_future(slot.probes.first.wait())
            for slot in started
            if slot.probes is not None and not slot.probes.first.is_set()
        ]
        if waiting:
            _, late = await asyncio.wait(waiting, timeout=_FIRST_PROBES_S)
            for task in late:
                task.cancel()

    # -- sandbox ----------------------------------------------------------------------------------

    async def _ensure_sandbox(self) -> bool:
        if self.sandbox is not None and self._view.sandbox_ready:
            return True
        host, now = self._host, time.time()
        fresh = sandboxes.new_sandbox(self.pod, host.config.boot_id, self._sandbox_attempt, now)
        if fresh.host_network:
            fresh = _with_ips(fresh, tuple(map(str, host.config.node_ips)))
            sandboxes.save(host.config.pods_dir, fresh)
        else:
            attached = await self._attach(fresh)
            if attached is None:
                return False
            fresh = attached
        write_host_files(host, self.pod, fresh)
        await host.policy_ready(self.pod, fresh.ips)
        self._adopt_sandbox(fresh)
        return True

    def _adopt_sandbox(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox
        self._sandbox_attempt = sandbox.attempt
        self._view = replace(
            self._view, sandbox_ready=True, sandbox_message="", pod_ips=sandbox.ips
        )

    async def _attach(self, fresh: Sandbox) -> Sandbox | None:
        host = self._host
        request = fresh.attachment(host.config.pins_dir, self.pod.metadata.annotations)
        try:
            addresses = await self._network(partial(host.network.add, request))
        except (AddressError, KernelError) as error:
            text = f"Failed to create pod sandbox: {error}"
            host.events.emit(self.pod, "FailedCreatePodSandBox", text, warning=True)
            self._view = replace(self._view, sandbox_ready=False, sandbox_message=text)
            self._sandbox_attempt += 1
            self._retry_later()
            return None
        attached = _with_ips(fresh, tuple(map(str, addresses.ips)))
        sandboxes.save(host.config.pods_dir, attached)
        return attached

    async def _network(self, call: Callable[[], PodAddresses]) -> PodAddresses:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._host.network_thread, call)

    async def _drop_sandbox(self) -> None:
        sandbox = self.sandbox
        if sandbox is None:
            return
        if self._host.runtime is not None:
            await self._host.runtime.remove_pod(sandbox.uid)
        if not sandbox.host_network:
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(
                self._host.network_thread, self._host.network.delete, sandbox.id
            )
        self.sandbox = None
        self._view = replace(self._view, sandbox_ready=False)

    # -- containers -------------------------------------------------------------------------------

    async def _start(self, slot: Slot) -> bool:
        """Start an attempt; False when it could not, then the slot says why and when again."""
        host, loop = self._host, asyncio.get_running_loop()
        assert self.sandbox is not None
        if slot.ended is not None:
            slot.attempt += 1
        try:
            launched = await launch(host, self.pod, slot, self.sandbox)
        except ContainerError as error:
            if slot.ended is not None:
                slot.attempt -= 1
            self._start_failed(slot, error)
            return False
        if slot.ended is not None:
            slot.last, slot.ended = slot.ended, None
        slot.running = launched.container
        slot.image_id = launched.container.image_id or slot.image_id
        slot.ever_started = True
        slot.kill_reason = ""
        slot.not_before = 0.0
        slot.ready_at = 0.0
        if launched.ready_after_s:
            slot.ready_at = time.time() + launched.ready_after_s
            self.wake_at(loop.time() + launched.ready_after_s + 0.01)
        self._follow(slot, launched.container)
        if slot.running is not None and slot.role != "init":
            self._probe(slot, standin=launched.standin)
        lazy = launched.standin
        host.events.emit(self.pod, "Created", f"Created container: {slot.name}", lazy=lazy)
        host.events.emit(self.pod, "Started", f"Started container {slot.name}", lazy=lazy)
        return await self._post_start(slot)

    async def _post_start(self, slot: Slot) -> bool:
        """Run the postStart hook; a container whose hook failed is killed and restarted."""
        hook = slot.spec.lifecycle.post_start if slot.spec.lifecycle is not None else None
        if hook is None or slot.running is None:
            return True
        address = self.sandbox.ips[0] if self.sandbox is not None else ""
        limit = float(self.pod.spec.termination_grace_period_seconds)
        failure = await run_hook(slot.running, slot.spec, hook, address, limit)
        if failure and slot.running is not None:
            self._host.events.emit(self.pod, "FailedPostStartHook", failure, warning=True)
            slot.kill_reason = "postStart"
            self._stop_later(slot)
        return True

    def _start_failed(self, slot: Slot, error: ContainerError) -> None:
        reason, message = error.reason, str(error)
        if reason == "ErrImagePull" and slot.waiting[0] in ("ErrImagePull", "ImagePullBackOff"):
            reason, message = "ImagePullBackOff", f'Back-off pulling image "{slot.spec.image}"'
        slot.waiting = (reason, message)
        retry_s = BACKOFF_MIN_S
        if reason in ("ErrImagePull", "ImagePullBackOff"):
            slot.backoff_s = min(max(slot.backoff_s * 2, BACKOFF_MIN_S), BACKOFF_MAX_S)
            retry_s = slot.backoff_s
        elif reason in ("CreateContainerConfigError", "FailedMount"):
            retry_s = 1.0
        slot.not_before = asyncio.get_running_loop().time() + retry_s
        self.wake_at(slot.not_before)
        event = {"ErrImagePull": "Failed", "ImagePullBackOff": "BackOff"}.get(reason, reason)
        if event not in ("FailedMount", "BackOff"):
            event = "Failed"
        self._host.events.emit(self.pod, event, message, warning=True)

    def _follow(self, slot: Slot, container: RunningContainer) -> None:
        """Have `_ended` called when the container ends; at once if it has already."""
        if isinstance(container, StandinContainer):
            if container.ended.done():
                self._ended(slot, container, container.ended.result())
            else:
                container.ended.add_done_callback(
                    lambda ended: (
                        None if ended.cancelled() else self._ended(slot, container, ended.result())
                    )
                )
            return

        async def watch() -> None:
            self._ended(slot, container, await container.wait())
            with contextlib.suppress(ContainerError, OSError):
                await container.remove()

        task = asyncio.get_running_loop().create_task(watch())
        self._watches.add(task)
        task.add_done_callback(self._watches.discard)

    def _ended(self, slot: Slot, container: RunningContainer, status: ExitStatus) -> None:
        if slot.running is not container:
            return
        if slot.probes is not None:
            slot.probes.stop()
        now = time.time()
        ended = Terminated(
            status.exit_code,
            status.signal,
            status.reason or ("Completed" if status.exit_code == 0 else "Error"),
            status.message or self._last_words(slot),
            container.started_at,
            now,
            container.id,
        )
        note_exit(slot, ended, asyncio.get_running_loop().time(), innocent=status is DIED)
        if slot.not_before:
            meta = self.pod.metadata
            backoff = int(max(slot.not_before - asyncio.get_running_loop().time(), 0) + 0.5)
            who = f"{meta.name}_{meta.namespace}({meta.uid})"
            text = f"back-off {backoff}s restarting failed container={slot.name} pod={who}"
            slot.waiting = ("CrashLoopBackOff", text)
            if not self.pod.deleting and not self._removed:
                text = f"Back-off restarting failed container {slot.name} in pod {who}"
                self._host.events.emit(self.pod, "BackOff", text, warning=True)
        self.wake()

    def _last_words(self, slot: Slot) -> str:
        """The termination message a container left in its file (4 KiB at most, as upstream)."""
        path = self._host.pod_dir(self.pod.metadata.uid) / "termination"
        try:
            with open(f"{path}/{slot.name}.{slot.attempt}", "rb") as file:
                return file.read(4096).decode(errors="replace")
        except OSError:
            return ""

    # -- probes -----------------------------------------------------------------------------------

    def _probe(
        self, slot: Slot, *, standin: bool, resumed: tuple[bool, bool] | None = None
    ) -> None:
        spec = slot.spec
        if not (spec.startup_probe or spec.readiness_probe or spec.liveness_probe):
            return
        assert self.sandbox is not None

        async def exec_probe(command: Sequence[str]) -> Outcome:
            assert slot.running is not None
            return await _run_exec(slot.running, command)

        lenient = standin and self._host.config.probe_delays == "standin"
        slot.probes = ContainerProbes(
            self._host.wheel,
            spec,
            self.sandbox.ips[0],
            exec_probe=None if standin else exec_probe,
            wait_initial=not lenient,
            on_change=partial(self._probed, slot),
            on_failure=partial(self._unhealthy, slot),
        )
        slot.probes.start(resumed=resumed)

    def _unhealthy(self, slot: Slot, kind: ProbeKind, message: str) -> None:
        text = f"{kind.capitalize()} probe failed: {message}"
        self._host.events.emit(self.pod, "Unhealthy", text, warning=True)

    def _probed(self, slot: Slot, kind: ProbeKind, ok: bool, message: str) -> None:
        if not ok and kind in ("liveness", "startup"):
            if slot.kill_reason:
                return
            slot.kill_reason = kind
            text = f"Container {slot.name} failed {kind} probe, will be restarted"
            self._host.events.emit(self.pod, "Killing", text)
            self._stop_later(slot)
        self.wake()

    # -- stopping ---------------------------------------------------------------------------------

    def _grace_s(self, slot: Slot) -> float:
        meta, spec = self.pod.metadata, self.pod.spec
        if self._removed:
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

    def _stop_later(self, slot: Slot) -> None:
        task = asyncio.get_running_loop().create_task(self._stop(slot, self._grace_s(slot)))
        self._watches.add(task)
        task.add_done_callback(self._watches.discard)

    async def _stop(self, slot: Slot, grace_s: float) -> None:
        container = slot.running
        if container is None:
            return
        if slot.probes is not None:
            slot.probes.stop()
        address = self.sandbox.ips[0] if self.sandbox is not None else ""
        failure = await stop_container(container, slot.spec, address, grace_s)
        if failure:
            self._host.events.emit(self.pod, "FailedPreStopHook", failure, warning=True)

    async def _stop_all(self) -> None:
        """Main and init containers together, then the sidecars in reverse order (KEP-753)."""
        group = [slot for slot in self.slots if slot.role != "sidecar" and slot.is_running]
        for slot in group:
            lazy = isinstance(slot.running, StandinContainer)
            text = f"Stopping container {slot.name}"
            self._host.events.emit(self.pod, "Killing", text, lazy=lazy)
        began = asyncio.get_running_loop().time()
        await asyncio.gather(*(self._stop(slot, self._grace_s(slot)) for slot in group))
        for slot in reversed(self.slots):
            if slot.role == "sidecar" and slot.is_running:
                used = asyncio.get_running_loop().time() - began
                await self._stop(slot, max(self._grace_s(slot) - used, 0.0))

    async def _terminate(self) -> None:
        """Stop everything, report the end, and have the API forget the pod."""
        terms = (self._removed, self.pod.metadata.deletion_grace_period_seconds)
        if self._stopping is None:
            self._stopping = asyncio.get_running_loop().create_task(self._stop_all())
            self._stopping.add_done_callback(lambda _: self.wake())
            self._stop_terms = terms
        if not self._stopping.done():
            if terms == self._stop_terms:
                # A stand-in stops within milliseconds; waiting here saves a status in between.
                await asyncio.wait([self._stopping], timeout=0.2)
            else:
                self._stopping.cancel()
                self._stopping = None
                self._dirty = True
                return
        if not self._stopping.done():
            if not self._removed:
                await self._write_status()
            return
        self._stopping.result()
        await self._drop_sandbox()
        if not self._removed:
            await self._report_end()
        sandboxes.forget(self._host.config.pods_dir, self.pod.metadata.uid)
        self._done = True
        self._gone(self.pod.metadata.uid)

    async def _report_end(self) -> None:
        for slot in self.slots:
            if slot.ended is None and slot.role == "main" and slot.ever_started:
                slot.ended = slot.last
        with contextlib.suppress(NotFoundError):
            if not self.pod.finished:
                await self._write_status()
            meta = self.pod.metadata
            await self._host.api.delete(
                kinds.POD, meta.name, meta.namespace, grace_period_s=0, uid=meta.uid
            )

    async def _fail(self, reason: str, message: str) -> None:
        """End the pod as Failed for a reason of its own (deadline)."""
        self._host.events.emit(self.pod, reason, message)
        await self._stop_all()
        self._view = replace(self._view, phase="Failed", reason=reason, message=message)
        await self._write_status()
        await self._release()

    async def _release(self) -> None:
        """The pod has finished: give back its sandbox and address, keep its logs and status."""
        for slot in self.slots:
            if slot.is_running:
                await self._stop(slot, self._grace_s(slot))
        await self._drop_sandbox()
        sandboxes.forget_sandbox(self._host.config.pods_dir, self.pod.metadata.uid)

    # -- status -----------------------------------------------------------------------------------

    async def _write_status(self) -> None:
        status = render(self.pod, self.slots, self._view, time.time())
        if self.pod.deleting and not any(slot.is_running for slot in self.slots):
            status["phase"] = self._final_phase(status["phase"])
        changed = difference(self._written, status)
        if not changed:
            return
        meta = self.pod.metadata
        body = {"metadata": {"uid": meta.uid}, "status": changed}
        try:
            await self._host.api.request(
                "PATCH",
                kinds.POD.path(meta.namespace, meta.name, "status"),
                body=body,
                content_type="application/merge-patch+json",
            )
        except NotFoundError:
            return  # the watch will tell
        self._written = status

    def _final_phase(self, phase: str) -> str:
        if phase in ("Succeeded", "Failed"):
            return phase
        mains = [slot.ended for slot in self.slots if slot.role == "main"]
        good = all(ended is not None and ended.exit_code == 0 for ended in mains)
        return "Succeeded" if good else "Failed"

    # -- after a restart of the agent -------------------------------------------------------------

    async def adopt(self, sandbox: Sandbox) -> None:
        """Take over what an earlier agent left running; what died meanwhile is restarted."""
        host = self._host
        known = {
            status.name: status
            for status in [
                *self.pod.status.container_statuses,
                *self.pod.status.init_container_statuses,
            ]
        }
        if not await self._stands(sandbox):
            self._sandbox_attempt = sandbox.attempt + 1
            self.sandbox = sandbox
            await self._drop_sandbox()
            running: dict[str, RunningContainer] = {}
        else:
            self._adopt_sandbox(sandbox)
            running = await self._recover(sandbox)
        for slot in self.slots:
            before = known.get(slot.name)
            if before is None:
                continue
            slot.attempt = before.restart_count
            slot.image_id = before.image_id
            slot.last = _terminated_from(before.last_state.terminated, before.container_id)
            slot.ever_started = before.state.running is not None or slot.last is not None
            if before.state.terminated is not None:
                slot.ended = _terminated_from(before.state.terminated, before.container_id)
                slot.ever_started = True
            elif slot.name not in running and before.state.running is not None:
                slot.ended = Terminated(
                    137, 0, "ContainerStatusUnknown", _LOST, 0.0, time.time(), before.container_id
                )
        for slot in self.slots:
            container = running.get(slot.name)
            if container is None:
                continue
            before = known.get(slot.name)
            slot.running, slot.ever_started, slot.ended = container, True, None
            slot.attempt = max(slot.attempt, container.attempt)
            standin = isinstance(container, StandinContainer)
            resumed = (bool(before.started), before.ready) if before is not None else None
            if slot.role != "init":
                self._probe(slot, standin=standin, resumed=resumed)
            self._follow(slot, container)
        if any(slot.ever_started for slot in self.slots if slot.role == "main"):
            self._view = replace(self._view, initialized=True)
        if host.config.boot_id != sandbox.boot_id:
            host.events.emit(self.pod, "SandboxChanged", _CHANGED)

    async def _stands(self, sandbox: Sandbox) -> bool:
        host = self._host
        if sandbox.boot_id != host.config.boot_id or not sandbox.ips:
            return False
        if sandbox.host_network:
            return True
        request = sandbox.attachment(host.config.pins_dir, self.pod.metadata.annotations)
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(host.network_thread, host.network.check, request)
        return found is not None and tuple(map(str, found.ips)) == sandbox.ips

    async def _recover(self, sandbox: Sandbox) -> dict[str, RunningContainer]:
        host, uid = self._host, sandbox.uid
        shell = host.shell(self.pod, sandbox)
        specs = {slot.name: slot.spec for slot in self.slots}
        found: list[RunningContainer] = []
        for held in [held for held in host.standins.held.values() if held.pod_uid == uid]:
            spec = specs.get(held.container)
            if spec is None:
                host.standins.stop(held.id)
                continue
            env = partial(host.specs.environment, self.pod, spec, sandbox, lenient=True)
            log_path = host.log_path(self.pod, held.container, held.attempt)
            found.append(host.standins.adopt(held, log_path, shell, env))
        if host.runtime is not None:
            found += await host.runtime.recover(uid)
        builtin = any(spec.image.startswith(BUILTIN_PREFIX) for spec in specs.values())
        if host.spawner is not None and builtin:
            for key, process in (await host.spawner.recover(f"{uid}/")).items():
                name, attempt = key.split("/")[1:3]
                log_path = host.log_path(self.pod, name, int(attempt))
                found.append(
                    BuiltinContainer(process, name, int(attempt), key, log_path, shell, {})
                )
        newest: dict[str, RunningContainer] = {}
        for container in sorted(found, key=lambda c: c.attempt):
            newest[container.name] = container
        return newest


_DEADLINE = "Pod was active on the node longer than the specified deadline"
_LOST = "The container could not be located when the pod was terminated"
_CHANGED = "Pod sandbox changed, it will be killed and re-created."


async def _run_exec(container: RunningContainer, command: Sequence[str]) -> Outcome:
    process = await container.exec(command)
    output = await process.stdout.read(10 * 1024)
    status = await process.wait()
    if status.ok:
        return OK
    errors = await process.stderr.read(10 * 1024) if process.stderr is not None else b""
    return Outcome(False, (output + errors).decode(errors="replace").strip())


def _with_ips(sandbox: Sandbox, ips: tuple[str, ...]) -> Sandbox:
    return msgspec.structs.replace(sandbox, ips=ips)


def _terminated_from(
    state: ContainerStateTerminated | None, container_id: str
) -> Terminated | None:
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
