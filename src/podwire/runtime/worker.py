"""One pod's life: woken by the API, an exit, a probe or a timer, it looks and does what is due.

    wake -> look: sandbox -> plan_containers (pure) -> start/stop -> render (pure) -> one patch

An idle pod of stand-ins has no task. The status is written once for everything that happened
meanwhile: a stand-in pod goes from Pending to Running and Ready in a single patch.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from typing import Final

import aiohttp

from podwire.errors import NotFoundError, PodwireError
from podwire.objects import kinds
from podwire.objects.core import Pod
from podwire.objects.meta import parse_time
from podwire.runtime import sandbox as records
from podwire.runtime.adoption import recover, restore, statuses_of
from podwire.runtime.launch import Host
from podwire.runtime.livepod import LivePod
from podwire.runtime.podcontainers import PodContainers
from podwire.runtime.podsandbox import PodSandbox
from podwire.runtime.sandbox import Sandbox
from podwire.runtime.state import Slot, Steps, begin_anew, plan_containers, slots_of
from podwire.runtime.status import PodView, timestamp
from podwire.runtime.statuswriter import StatusWriter

_LOG = logging.getLogger(__name__)
_RETRY_MIN_S, _RETRY_MAX_S = 0.1, 10.0
_QUICK_STOP_S: Final = 0.2
"""A stand-in stops within milliseconds; waiting for that saves a status in between."""
_DEADLINE: Final = "Pod was active on the node longer than the specified deadline"
_CHANGED: Final = "Pod sandbox changed, it will be killed and re-created."


class PodWorker:
    """All methods run on the event loop; `gone` is called when the pod has left this node."""

    def __init__(self, host: Host, pod: Pod, gone: Callable[[str], None]) -> None:
        view = PodView(
            host_ips=tuple(map(str, host.config.node_ips)),
            start_time=pod.status.start_time or timestamp(time.time()),
        )
        self._live = LivePod(host, pod, slots_of(pod), view, self.wake, self.wake_at)
        self._sandbox = PodSandbox(self._live)
        self._containers = PodContainers(self._live)
        self._admitted = bool(pod.status.start_time) and not pod.finished
        if self._admitted:
            host.admission.keep(pod)
        self._status = StatusWriter(self._live)
        self._gone = gone
        self._task: asyncio.Task[None] | None = None
        self._dirty = False
        self._timer: asyncio.TimerHandle | None = None
        self._failures = 0
        self._stopping: asyncio.Task[None] | None = None
        self._stop_terms: tuple[bool, int | None] = (False, None)
        self._done = False

    @property
    def pod(self) -> Pod:
        return self._live.pod

    @property
    def slots(self) -> list[Slot]:
        return self._live.slots

    @property
    def sandbox(self) -> Sandbox | None:
        return self._live.sandbox

    # -- being woken ------------------------------------------------------------------------------

    def update(self, pod: Pod) -> None:
        """The API's newest version of the pod; our own status coming back wakes nobody."""
        old, self._live.pod = self._live.pod, pod
        before, after = old.metadata, pod.metadata
        if (before.labels, before.annotations) != (after.labels, after.annotations):
            self._containers.labels_changed()
        if before.annotations != after.annotations:
            self._containers.annotations_changed()
        if before.generation != after.generation and not pod.deleting:
            self._containers.specs_changed()
        disagrees = self._status.disagrees(pod)
        if disagrees:
            self._status.distrust()
        if (
            disagrees
            or before.generation != after.generation
            or old.deleting != pod.deleting
            or before.deletion_grace_period_seconds != after.deletion_grace_period_seconds
            or bool(pod.spec.readiness_gates)
        ):
            self.wake()

    def remove(self) -> None:
        """The pod is gone from the API: end it without telling anybody."""
        self._live.removed = True
        self.wake()

    def wake(self) -> None:
        self._dirty = True
        if self._task is None and not self._done:
            self._task = asyncio.get_running_loop().create_task(self._work())

    def wake_at(self, when: float) -> None:
        """Wake at a time of the loop's clock; the earliest wins."""
        if self._timer is not None:
            if self._timer.when() <= when:
                return
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_at(when, self._due)

    def _due(self) -> None:
        self._timer = None
        self.wake()

    async def _work(self) -> None:
        try:
            while self._dirty and not self._done:
                self._dirty = False
                try:
                    if await self._look():
                        self._failures = 0
                    else:
                        self._retry_later()
                except (PodwireError, aiohttp.ClientError, OSError) as error:
                    _LOG.warning("pod %s: %s; retrying", self.pod.key, error)
                    self._retry_later()
        except Exception:
            _LOG.exception("pod %s: worker failed", self.pod.key)
            self._retry_later()
        finally:
            self._task = None

    def _retry_later(self) -> None:
        delay = min(_RETRY_MIN_S * 2 ** min(self._failures, 10), _RETRY_MAX_S)
        self._failures += 1
        self.wake_at(asyncio.get_running_loop().time() + delay)

    def abandon(self) -> None:
        """The agent ends; the pod goes on."""
        self._done = True
        if self._task is not None:
            self._task.cancel()
        if self._timer is not None:
            self._timer.cancel()
        self._live.abandon()

    # -- the one loop -----------------------------------------------------------------------------

    async def _look(self) -> bool:
        """Do what is due; False when it is to be tried again after a back-off."""
        if self._live.removed or self.pod.deleting:
            await self._terminate()
        elif self.pod.finished:
            await self._release()
        elif self._deadline_passed():
            await self._fail("DeadlineExceeded", _DEADLINE)
        elif not await self._admit():
            await self._release()
        elif await self._sandbox.ensure():
            await self._run_containers()
        else:
            await self._status.write()
            return False
        return True

    async def _admit(self) -> bool:
        """Whether the pod may run here; what was admitted once stays so."""
        if self._admitted:
            return True
        live = self._live
        if not live.view.rejected:
            refusal = await live.host.admission.admit(self.pod)
            if refusal is None:
                self._admitted = True
                return True
            live.say(refusal.reason, refusal.message, warning=True)
            message = f"Pod was rejected: {refusal.message}"
            live.see(rejected=True, phase="Failed", reason=refusal.reason, message=message)
        await self._status.write()
        return False

    async def _run_containers(self) -> None:
        steps = plan_containers(self.pod, self.slots, asyncio.get_running_loop().time())
        self._live.see(initialized=steps.initialized)
        started = [slot for slot in steps.start if await self._containers.start(slot)]
        for slot in steps.stop:
            self._containers.stop_later(slot)
        if steps.wake_at is not None:
            self.wake_at(steps.wake_at)
        if any(slot.running is None for slot in started):
            # Something ended as it started (init stand-ins): look again before reporting.
            self._dirty = True
            return
        await self._containers.first_probes(started)
        if any(slot.role == "sidecar" and slot.started for slot in started):
            # What comes after a started sidecar can start at once.
            self._dirty = True
        if self._dirty and not self._status.wrote:
            return
        over = self._over(steps)
        if over:
            self._vacate()
        await self._status.write()
        if over:
            await self._release()

    def _over(self, steps: Steps) -> bool:
        return (steps.finished or steps.failed) and not any(s.is_running for s in self.slots)

    def _deadline_passed(self) -> bool:
        limit = self.pod.spec.active_deadline_seconds
        if limit is None:
            return False
        left = parse_time(self._live.view.start_time).timestamp() + limit - time.time()
        if left > 0:
            self.wake_at(asyncio.get_running_loop().time() + left)
        return left <= 0

    # -- the end ----------------------------------------------------------------------------------

    async def _terminate(self) -> None:
        """Stop everything, report the end, and have the API forget the pod."""
        live = self._live
        terms = (live.removed, self.pod.metadata.deletion_grace_period_seconds)
        if self._stopping is None:
            self._stopping = live.keep(self._containers.stop_all())
            self._stopping.add_done_callback(lambda _: self.wake())
            self._stop_terms = terms
        if terms != self._stop_terms and not self._stopping.done():
            self._stopping.cancel()
            self._stopping = None
            self._dirty = True
            return
        await asyncio.wait([self._stopping], timeout=_QUICK_STOP_S)
        if not self._stopping.done():
            if not live.removed:
                await self._status.write()
            return
        # Forgotten first: a stop that failed is tried again.
        stopped, self._stopping = self._stopping, None
        stopped.result()
        self._containers.release()
        await self._sandbox.drop()
        self._vacate()
        if not live.removed:
            await self._report_end()
        await self._forget()

    async def _report_end(self) -> None:
        for slot in self.slots:
            if slot.ended is None and slot.role == "main" and slot.ever_started:
                slot.ended = slot.last
        with contextlib.suppress(NotFoundError):
            if not self.pod.finished:
                await self._status.write()
            meta = self.pod.metadata
            await self._live.host.api.delete(
                kinds.POD, meta.name, meta.namespace, grace_period_s=0, uid=meta.uid
            )

    async def _forget(self) -> None:
        host, uid = self._live.host, self._live.uid
        host.starving.pop(self.wake, None)
        host.specs.volumes.forget(uid)
        if self.pod.spec.volumes:
            # An emptyDir may hold anything.
            await asyncio.to_thread(records.forget, host.config.pods_dir, uid)
        else:
            records.forget(host.config.pods_dir, uid)
        self._done = True
        self._gone(uid)

    async def _fail(self, reason: str, message: str) -> None:
        """End the pod as Failed for a reason of its own (deadline)."""
        self._live.say(reason, message)
        await self._containers.stop_all()
        self._vacate()
        self._live.see(phase="Failed", reason=reason, message=message)
        await self._status.write()
        await self._release()

    def _vacate(self) -> None:
        """Nothing runs any more: others may have its ports and resources. Before anybody is told,
        or the pod that comes instead could be here before this one has left."""
        self._live.host.admission.release(self._live.uid)

    async def _release(self) -> None:
        """The pod has finished: give back its sandbox and address, keep its logs and status."""
        await self._containers.stop_rest()
        self._containers.release()
        self._vacate()
        await self._sandbox.drop()
        records.forget_sandbox(self._live.host.config.pods_dir, self._live.uid)

    # -- after a restart of the agent -------------------------------------------------------------

    async def adopt(self, sandbox: Sandbox) -> None:
        """Take over what an earlier agent left running; what died meanwhile is restarted."""
        live = self._live
        if not self.pod.finished:
            self._admitted = True
            live.host.admission.keep(self.pod)
        stands = await self._sandbox.adopt(sandbox)
        running = await recover(live, sandbox) if stands else {}
        before = statuses_of(live)
        for slot in self.slots:
            restore(slot, before.get(slot.name), running.get(slot.name))
        if not stands:
            begin_anew(self.slots)
        for slot in self.slots:
            if slot.running is None:
                continue
            known = before.get(slot.name)
            if slot.role != "init":
                resumed = (bool(known.started), known.ready) if known is not None else None
                self._containers.probe(slot, resumed=resumed)
            self._containers.follow(slot, slot.running)
        if any(slot.ever_started for slot in self.slots if slot.role == "main"):
            live.see(initialized=True)
        if live.host.config.boot_id != sandbox.boot_id and not self.pod.finished:
            live.say("SandboxChanged", _CHANGED)
