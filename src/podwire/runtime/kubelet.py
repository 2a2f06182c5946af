"""The kubelet's part of a node: who wires everything together and owns the pod workers.

    register -> adopt what an earlier agent left -> sweep -> watch pods -> one worker per pod

It keeps nothing that cannot be found again: killed at any moment and started anew, it adopts every
running sandbox, stand-in and container without touching them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from podwire.client import Api, Change, Informer
from podwire.cni import PodNetwork
from podwire.errors import KernelError, NodeRemovedError, PodwireError
from podwire.objects import kinds
from podwire.objects.core import Pod
from podwire.runtime import EXIT_NODE_REMOVED
from podwire.runtime import sandbox as sandboxes
from podwire.runtime.admission import Admission
from podwire.runtime.config import KubeletConfig
from podwire.runtime.containers import ContainerRuntime, Spawner
from podwire.runtime.events import PodEvents
from podwire.runtime.launch import Host, PolicyReady, no_policy
from podwire.runtime.node import NodeRegistration, render_node_status
from podwire.runtime.poddns import NO_RESOLVER, ResolvConf
from podwire.runtime.podspec import SpecBuilder
from podwire.runtime.references import References
from podwire.runtime.sandbox import Sandbox
from podwire.runtime.standins import StandinClient
from podwire.runtime.worker import PodWorker

_LOG = logging.getLogger(__name__)
_STANDINS_WAIT_S = 5.0


class Kubelet:
    """Construct it inside the node's network namespace and `run` it on the agent's event loop.

    `builtins` maps a built-in image's NAME to its entry point "module:function".
    """

    def __init__(
        self,
        config: KubeletConfig,
        api: Api,
        network: PodNetwork,
        *,
        runtime: ContainerRuntime | None = None,
        spawner: Spawner | None = None,
        builtins: Mapping[str, str] | None = None,
        policy_ready: PolicyReady = no_policy,
        node_dns: ResolvConf = NO_RESOLVER,
    ) -> None:
        version = f"{runtime.name}://{runtime.version}" if runtime else "podwire://standin"
        allocatable = render_node_status(config, version, "")["allocatable"]
        self.config = config
        self.registration = NodeRegistration(config, api, version)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="pod-network")
        self._host = Host(
            config=config,
            api=api,
            network=network,
            network_thread=self._thread,
            standins=StandinClient(config.standin_socket),
            events=PodEvents(api, config.node_name),
            specs=SpecBuilder(config, api, allocatable),
            references=References(api),
            admission=Admission(self.registration),
            runtime=runtime,
            spawner=spawner,
            builtins=builtins or {},
            policy_ready=policy_ready,
            node_dns=node_dns,
        )
        self._pods = Informer(api, kinds.POD, field_selector=f"spec.nodeName={config.node_name}")
        self._workers: dict[str, PodWorker] = {}
        self._idle = asyncio.Event()
        self.ready = asyncio.Event()

    @property
    def host(self) -> Host:
        return self._host

    @property
    def pod_informer(self) -> Informer[Pod]:
        """Every pod bound to this node."""
        return self._pods

    @property
    def pods(self) -> Mapping[str, PodWorker]:
        """The workers by pod UID."""
        return self._workers

    def find(self, namespace: str, name: str) -> PodWorker | None:
        return next(
            (
                worker
                for worker in self._workers.values()
                if worker.pod.metadata.name == name and worker.pod.metadata.namespace == namespace
            ),
            None,
        )

    async def run(self) -> int:
        """Until cancelled, or until the Node is deleted: then everything is stopped and the
        result is `EXIT_NODE_REMOVED`."""
        self.config.pods_dir.mkdir(parents=True, exist_ok=True)
        try:
            await self.registration.register()
        except NodeRemovedError:
            return await self._leave()
        background: list[Coroutine[Any, Any, None]] = [
            self._host.standins.run(),
            self._host.events.run(),
            self.registration.keep_lease(),
            self.registration.watch(),
            self._pods.run(),
        ]
        tasks = [asyncio.create_task(work) for work in background]
        removed = asyncio.ensure_future(self.registration.removed.wait())
        try:
            await self._resume()
            self.ready.set()
            ended, _ = await asyncio.wait([removed, *tasks], return_when=asyncio.FIRST_COMPLETED)
            if not removed.done():
                # Only a deleted Node may empty the node; a part that failed ends the agent.
                ended.pop().result()
                raise AssertionError("a part of the kubelet ended by itself")
            return await self._leave()
        finally:
            removed.cancel()
            for task in tasks:
                task.cancel()
            await asyncio.gather(removed, *tasks, return_exceptions=True)
            for worker in self._workers.values():
                worker.abandon()
            self._host.references.close()
            self._host.specs.links.close()
            self._thread.shutdown(wait=False, cancel_futures=True)

    # -- start -------------------------------------------------------------------------------------

    async def _resume(self) -> None:
        records = list(sandboxes.load_all(self.config.pods_dir))
        await self._pods.synced.wait()
        if records:
            await self._wait_standins()
        pods = {pod.metadata.uid: pod for pod in self._pods.objects.values()}
        known = {record.uid for record in records}
        # Records end with the node's memory, as after a reboot; what ran is in the API.
        records += [
            sandboxes.new_sandbox(pod, "", 0, 0.0)
            for pod in pods.values()
            if pod.metadata.uid not in known and pod.status.container_statuses
        ]
        for record in records:
            pod = pods.get(record.uid)
            if pod is None:
                await self._remove_left_over(record)
                continue
            try:
                await self._worker(pod).adopt(record)
            except (PodwireError, OSError) as error:
                # A pod that cannot be taken over is made anew; the sweep removes its old sandbox.
                _LOG.warning("pod %s: cannot adopt its sandbox: %s", pod.key, error)
                self._worker(pod)
        # Older pods are admitted first.
        for pod in sorted(pods.values(), key=lambda pod: pod.metadata.creation_timestamp or ""):
            if pod.metadata.uid not in self._workers:
                self._worker(pod)
        self._stop_unknown_standins()
        valid = {w.sandbox.id for w in self._workers.values() if w.sandbox is not None}
        await self._in_thread(lambda: self._host.network.sweep(valid))
        self._pods.on_change(self._changed)
        for worker in self._workers.values():
            worker.wake()

    async def _wait_standins(self) -> None:
        try:
            async with asyncio.timeout(_STANDINS_WAIT_S):
                await self._host.standins.connected.wait()
        except TimeoutError:
            _LOG.warning("the stand-in process of node %s is not there", self.config.node_name)

    async def _remove_left_over(self, record: Sandbox) -> None:
        """The pod was deleted while no agent ran."""
        if self._host.runtime is not None:
            await self._host.runtime.remove_pod(record.uid)
        if not record.host_network:
            try:
                await self._in_thread(lambda: self._host.network.delete(record.id))
            except KernelError as error:
                _LOG.warning("sandbox %s: %s", record.id, error)
        sandboxes.forget(self.config.pods_dir, record.uid)

    def _stop_unknown_standins(self) -> None:
        for held in list(self._host.standins.held.values()):
            self._host.standins.stop(held.id)

    async def _in_thread(self, call: Callable[[], object]) -> None:
        await asyncio.get_running_loop().run_in_executor(self._thread, call)

    # -- pods --------------------------------------------------------------------------------------

    def _worker(self, pod: Pod) -> PodWorker:
        worker = PodWorker(self._host, pod, self._forget)
        self._workers[pod.metadata.uid] = worker
        return worker

    def _forget(self, uid: str) -> None:
        self._workers.pop(uid, None)
        if not self._workers:
            self._idle.set()

    def _changed(self, change: Change[Pod]) -> None:
        if change.new is None:
            assert change.old is not None
            worker = self._workers.get(change.old.metadata.uid)
            if worker is not None:
                worker.remove()
            return
        worker = self._workers.get(change.new.metadata.uid)
        if worker is not None:
            worker.update(change.new)
        else:
            self._worker(change.new).wake()

    # -- the end -----------------------------------------------------------------------------------

    async def _leave(self) -> int:
        """The Node was deleted: end every pod of it, leave nothing behind."""
        _LOG.info("node %s was removed", self.config.node_name)
        self._idle.clear()
        for worker in list(self._workers.values()):
            worker.remove()
        if self._workers:
            await self._idle.wait()
        for record in list(sandboxes.load_all(self.config.pods_dir)):
            await self._remove_left_over(record)
        await self._in_thread(lambda: self._host.network.sweep(set()))
        self.registration.forget()
        return EXIT_NODE_REMOVED
