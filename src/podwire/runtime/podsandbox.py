"""A pod's sandbox from attachment to removal: network, host files, policy, then containers.

    new_sandbox -> network.add -> record saved -> hosts, resolv.conf -> policy committed -> ready

A crash before the record leaves a namespace that `PodNetwork.sweep` does not know and removes; a
crash after it leaves a sandbox that the next agent adopts and takes the remaining steps for.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import msgspec

from podwire.errors import AddressError, ContainerError, KernelError, PodwireError
from podwire.runtime import sandbox as records
from podwire.runtime.hostfiles import kernel_hostname
from podwire.runtime.launch import write_host_files
from podwire.runtime.livepod import LivePod
from podwire.runtime.sandbox import Sandbox

R = TypeVar("R")


class PodSandbox:
    """Every step may be repeated; `attempt` counts the sandboxes the pod has had."""

    def __init__(self, live: LivePod) -> None:
        self._live = live
        self.attempt = 0

    async def ensure(self) -> bool:
        """Whether the sandbox is ready; False when the network refused, then the view says why."""
        live = self._live
        if live.sandbox is None:
            live.sandbox = await self._make()
            if live.sandbox is None:
                return False
            live.host.starving.pop(live.wake, None)
        if not live.view.sandbox_ready:
            write_host_files(live.host, live.pod, live.sandbox)
            try:
                await live.host.policy_ready(live.pod, live.sandbox.ips)
            except KernelError as error:
                self._refused(error)
                return False
            live.see(sandbox_ready=True, sandbox_message="", pod_ips=live.sandbox.ips)
        return True

    async def _make(self) -> Sandbox | None:
        live, config = self._live, self._live.host.config
        try:
            kernel_hostname(live.pod, config.cluster_domain, config.node_name)
        except ContainerError as error:
            self._refused(error)
            return None
        fresh = records.new_sandbox(live.pod, config.boot_id, self.attempt, time.time())
        if fresh.host_network:
            ips = tuple(map(str, config.node_ips))
        else:
            request = fresh.attachment(config.pins_dir, live.pod.metadata.annotations)
            try:
                added = await self._in_thread(partial(live.host.network.add, request))
            except (AddressError, KernelError) as error:
                live.host.starving[live.wake] = None
                self._refused(error)
                return None
            ips = tuple(map(str, added.ips))
        attached = msgspec.structs.replace(fresh, ips=ips)
        try:
            records.save(config.pods_dir, attached)
        except OSError:
            # Without a record nobody would find it again while this agent lives.
            await self._delete(attached)
            raise
        return attached

    def _refused(self, error: PodwireError) -> None:
        text = f"Failed to create pod sandbox: {error}"
        self._live.say("FailedCreatePodSandBox", text, warning=True)
        self._live.see(sandbox_ready=False, sandbox_message=text)
        self.attempt += 1

    async def adopt(self, sandbox: Sandbox) -> bool:
        """Take over a recorded sandbox; False when it is no more (then its rests are removed)."""
        live = self._live
        live.sandbox = sandbox
        if not await self._stands(sandbox):
            self.attempt = sandbox.attempt + 1
            await self.drop()
            return False
        self.attempt = sandbox.attempt
        # Containers show that the agent before came through every step; without, they are taken.
        ready = any(status.container_id for status in live.pod.status.container_statuses)
        live.see(sandbox_ready=ready, pod_ips=sandbox.ips)
        return True

    async def _stands(self, sandbox: Sandbox) -> bool:
        live, config = self._live, self._live.host.config
        if sandbox.boot_id != config.boot_id or not sandbox.ips:
            return False
        if sandbox.host_network:
            return True
        request = sandbox.attachment(config.pins_dir, live.pod.metadata.annotations)
        found = await self._in_thread(partial(live.host.network.check, request))
        return found is not None and tuple(map(str, found.ips)) == sandbox.ips

    async def drop(self) -> None:
        """End and forget what runs in it, give back its address; the record stays."""
        live = self._live
        if live.sandbox is None:
            return
        live.host.activated.release(live.sandbox.uid)
        if live.host.runtime is not None:
            await live.host.runtime.remove_pod(live.sandbox.uid)
        await self._delete(live.sandbox)
        live.sandbox = None
        live.see(sandbox_ready=False)

    async def _delete(self, sandbox: Sandbox) -> None:
        if sandbox.host_network:
            return
        host = self._live.host
        await self._in_thread(partial(host.network.delete, sandbox.id))
        if host.starving:
            first = next(iter(host.starving))
            del host.starving[first]
            first()

    async def _in_thread(self, call: Callable[[], R]) -> R:
        """Networks are changed by one thread: setns is per thread, and rtnetlink wants order."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._live.host.network_thread, call)
