"""Ending a container gracefully: preStop, SIGTERM, the grace period, SIGKILL; and running hooks.

Source: kubernetes/kubernetes pkg/kubelet/kuberuntime/kuberuntime_container.go (killContainer) and
pkg/kubelet/lifecycle/handlers.go.
"""

from __future__ import annotations

import asyncio
import signal
import time

from podwire.errors import ContainerError
from podwire.objects.core import Container, LifecycleHandler
from podwire.runtime.containers import RunningContainer
from podwire.runtime.probeclients import Exchange, Outcome, http_check, tcp_check
from podwire.runtime.probes import resolve_port
from podwire.runtime.standins import StandinContainer

_MIN_GRACE_S = 2.0
"""What remains for SIGTERM after a preStop hook used everything up (kubelet's minimum)."""


async def stop_container(
    container: RunningContainer,
    spec: Container,
    address: str,
    grace_s: float,
    turn: asyncio.Future[None] | None = None,
) -> str:
    """Stop and wait for the end; returns what a failed preStop hook said, or "".

    `turn`: who has to end first. The hook does not wait for it, SIGTERM does while there is grace
    (KEP-753).
    """
    deadline = time.monotonic() + grace_s
    failure = ""
    hook = spec.lifecycle.pre_stop if spec.lifecycle is not None else None
    if hook is not None and grace_s > 0:
        failure = await run_hook(container, spec, hook, address, grace_s)
    if turn is not None and (left := deadline - time.monotonic()) > 0:
        await asyncio.wait([turn], timeout=left)
    left = max(deadline - time.monotonic(), _MIN_GRACE_S)
    await container.kill(signal.SIGTERM)
    try:
        async with asyncio.timeout(left):
            await container.wait()
    except TimeoutError:
        await container.kill(signal.SIGKILL)
        await container.wait()
    return failure


async def run_hook(
    container: RunningContainer,
    spec: Container,
    hook: LifecycleHandler,
    address: str,
    timeout_s: float,
) -> str:
    """Run a postStart or preStop handler; returns why it failed, or "".

    A stand-in has no program of the image to execute: its exec hooks count as done.
    """
    try:
        async with asyncio.timeout(timeout_s):
            if hook.sleep is not None:
                await asyncio.sleep(hook.sleep.seconds)
            elif hook.exec is not None and not isinstance(container, StandinContainer):
                process = await container.exec(hook.exec.command)
                output = await process.stdout.read()
                status = await process.wait()
                if not status.ok:
                    text = output.decode(errors="replace").strip()
                    return f"command exited with {status.exit_code}: {text}"
            elif hook.http_get is not None or hook.tcp_socket is not None:
                outcome = await _call(hook, spec, address, timeout_s)
                return "" if outcome.ok else outcome.message
    except TimeoutError:
        return f"hook did not end within {timeout_s:g}s"
    except (OSError, ContainerError, ValueError) as error:
        return str(error)
    return ""


async def _call(hook: LifecycleHandler, spec: Container, address: str, timeout_s: float) -> Outcome:
    if hook.http_get is not None:
        port = resolve_port(hook.http_get.port, spec.ports)
        check = http_check(hook.http_get, address, port, timeout_s)
    else:
        assert hook.tcp_socket is not None
        tcp = hook.tcp_socket
        check = tcp_check(tcp.host or address, resolve_port(tcp.port, spec.ports), timeout_s)
    done: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
    exchange = Exchange(check, done.set_result)
    try:
        return await done
    finally:
        exchange.cancel()
