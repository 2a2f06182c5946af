"""Startup, readiness and liveness of one container, decided as kubelet decides them.

    Wheel (due) -> Exchange (network) or exec -> threshold counting -> `ContainerProbes.on_change`

The startup probe gates the other two. A stand-in's first probe fires at once and its
`initialDelaySeconds` are not waited for (it serves from its first instant); a container that really
runs is treated as its manifest says. exec probes of a stand-in succeed.
Source: kubernetes/kubernetes pkg/kubelet/prober/worker.go.
"""

from __future__ import annotations

import asyncio
import heapq
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from podwire.errors import ContainerError
from podwire.objects.core import Container, ContainerPort, Probe
from podwire.runtime.probeclients import (
    OK,
    Check,
    Exchange,
    Outcome,
    grpc_check,
    http_check,
    tcp_check,
)

_TICK_S = 0.05
ProbeKind = Literal["startup", "readiness", "liveness"]
ExecProbe = Callable[[Sequence[str]], Awaitable[Outcome]]
Verdict = Callable[[ProbeKind, bool, str], None]


class Wheel:
    """Probes by the tick they are due at: one timer for all, however many there are."""

    def __init__(self, tick_s: float = _TICK_S) -> None:
        self._tick_s = tick_s
        self._slots: dict[int, list[_Prober]] = {}
        self._ticks: list[int] = []
        self._timer: asyncio.TimerHandle | None = None
        self._armed = -1

    def add(self, prober: _Prober, delay_s: float) -> None:
        tick = int((asyncio.get_running_loop().time() + delay_s) / self._tick_s) + 1
        slot = self._slots.get(tick)
        if slot is None:
            self._slots[tick] = [prober]
            heapq.heappush(self._ticks, tick)
            if self._timer is None or tick < self._armed:
                self._arm()
        else:
            slot.append(prober)

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._ticks:
            self._armed = self._ticks[0]
            loop = asyncio.get_running_loop()
            self._timer = loop.call_at(self._armed * self._tick_s, self._fire)

    def _fire(self) -> None:
        self._timer = None
        now = asyncio.get_running_loop().time()
        while self._ticks and self._ticks[0] * self._tick_s <= now:
            for prober in self._slots.pop(heapq.heappop(self._ticks)):
                prober.fire()
        self._arm()


def resolve_port(port: int | str, ports: Sequence[ContainerPort]) -> int:
    """A probe's port number; names are those of the container's ports. Raises ValueError."""
    if isinstance(port, int):
        return port
    if port.isdigit():
        return int(port)
    for known in ports:
        if known.name == port:
            return known.container_port
    raise ValueError(f"couldn't find port {port!r} in the container's ports")


def compile_check(probe: Probe, container: Container, address: str) -> Check | None:
    """The network check of a probe, or None for exec. Raises ValueError for an unknown port."""
    timeout = max(probe.timeout_seconds, 1)
    if probe.http_get is not None:
        port = resolve_port(probe.http_get.port, container.ports)
        return http_check(probe.http_get, address, port, timeout)
    if probe.tcp_socket is not None:
        tcp = probe.tcp_socket
        return tcp_check(tcp.host or address, resolve_port(tcp.port, container.ports), timeout)
    if probe.grpc is not None:
        return grpc_check(address, probe.grpc.port, probe.grpc.service, timeout)
    return None


class _Prober:
    """One probe of one container: when it is due, what it counts, what it decided."""

    def __init__(
        self, owner: ContainerProbes, kind: ProbeKind, probe: Probe, check: Check | str | None
    ) -> None:
        self._owner = owner
        self.kind = kind
        self._probe = probe
        self._check = check
        self._running: Exchange | asyncio.Task[None] | None = None
        self._streak = 0
        self._last: bool | None = None
        self._stopped = False
        self._missed = False
        self.decided = False

    def start(self, delay_s: float) -> None:
        if delay_s <= 0:
            self.fire()
        else:
            self._owner.wheel.add(self, delay_s)

    def stop(self) -> None:
        self._stopped = True
        if self._running is not None:
            self._running.cancel()
            self._running = None

    def fire(self) -> None:
        if self._stopped:
            return
        if self._running is not None:
            # Slower than its period: the next one follows as soon as this one is answered.
            self._missed = True
            return
        # The next one first, so that the period holds however long this one takes.
        self._owner.wheel.add(self, max(self._probe.period_seconds, 1) - _TICK_S)
        if isinstance(self._check, Check):
            self._running = Exchange(self._check, self._outcome)
        elif isinstance(self._check, str):
            self._outcome(Outcome(False, self._check))
        elif self._owner.exec is None:
            self._outcome(OK)
        else:
            command = self._probe.exec.command if self._probe.exec else []
            self._running = asyncio.get_running_loop().create_task(
                self._exec(self._owner.exec, command)
            )

    async def _exec(self, run: ExecProbe, command: Sequence[str]) -> None:
        timeout = max(self._probe.timeout_seconds, 1)
        try:
            async with asyncio.timeout(timeout):
                outcome = await run(command)
        except TimeoutError:
            outcome = Outcome(False, f"command timed out: {' '.join(command)!r} after {timeout}s")
        except (OSError, ContainerError) as error:
            outcome = Outcome(False, str(error))
        self._outcome(outcome)

    def _outcome(self, outcome: Outcome) -> None:
        self._running = None
        if self._stopped:
            return
        if outcome.ok == self._last:
            self._streak += 1
        else:
            self._last, self._streak = outcome.ok, 1
        if not outcome.ok:
            self._owner.on_failure(self.kind, outcome.message)
        threshold = self._probe.success_threshold if outcome.ok else self._probe.failure_threshold
        if self._streak >= max(threshold, 1):
            self.decided = True
            self._owner.decide(self.kind, outcome)
        self._owner.probed(self.kind)
        if self._missed:
            self._missed = False
            self.fire()


@dataclass(frozen=True)
class Probing:
    """How a container is probed: where, by what (`exec_probe` None: exec succeeds), and whether
    `initialDelaySeconds` are waited for."""

    wheel: Wheel
    address: str
    exec_probe: ExecProbe | None
    wait_initial: bool


class ContainerProbes:
    """All probes of one running container.

    `started` and `ready` are the current answers; `on_change(kind, ok, message)` is called when one
    flips or when liveness or startup failed for good (then the container has to be killed).
    `first` is set once every probe that could decide readiness has been asked once.
    """

    def __init__(
        self,
        probing: Probing,
        container: Container,
        *,
        on_change: Verdict,
        on_failure: Callable[[ProbeKind, str], None],
    ) -> None:
        self.wheel = probing.wheel
        self.exec = probing.exec_probe
        self.on_failure = on_failure
        self.first = asyncio.Event()
        self._on_change = on_change
        self._wait_initial = probing.wait_initial
        self._probers: dict[ProbeKind, _Prober] = {}
        self._started_at = asyncio.get_running_loop().time()
        wanted: tuple[tuple[ProbeKind, Probe | None], ...] = (
            ("startup", container.startup_probe),
            ("readiness", container.readiness_probe),
            ("liveness", container.liveness_probe),
        )
        for kind, probe in wanted:
            if probe is not None:
                check: Check | str | None
                try:
                    check = compile_check(probe, container, probing.address)
                except ValueError as error:
                    check = str(error)
                self._probers[kind] = _Prober(self, kind, probe, check)
        self._probes = {kind: probe for kind, probe in wanted if probe is not None}
        self.started = "startup" not in self._probers
        self.ready = self.started and "readiness" not in self._probers

    def start(self, *, resumed: tuple[bool, bool] | None = None) -> None:
        """Begin probing; `resumed` are (started, ready) as another agent left them."""
        if resumed is not None:
            self.started, self.ready = resumed
            if self.started:
                self._probers.pop("startup", None)
        if not self.started:
            self._start("startup", spread=resumed is not None)
            return
        self._start("readiness", spread=resumed is not None)
        self._start("liveness", spread=resumed is not None)
        if resumed is not None or "readiness" not in self._probers:
            self.first.set()

    def stop(self) -> None:
        for prober in self._probers.values():
            prober.stop()
        self.first.set()

    def _start(self, kind: ProbeKind, *, spread: bool = False) -> None:
        prober = self._probers.get(kind)
        if prober is None:
            return
        delay = 0.0
        if self._wait_initial:
            elapsed = asyncio.get_running_loop().time() - self._started_at
            delay = self._probes[kind].initial_delay_seconds - elapsed
        if spread:
            # A restarted agent must not ask a thousand containers in the same instant.
            delay = max(delay, random.random() * self._probes[kind].period_seconds)
        prober.start(delay)

    def decide(self, kind: ProbeKind, outcome: Outcome) -> None:
        if kind == "startup":
            if outcome.ok and not self.started:
                self.started = True
                self._probers.pop("startup").stop()
                self.ready = "readiness" not in self._probers
                self._start("readiness")
                self._start("liveness")
                self._on_change(kind, True, "")
            elif not outcome.ok:
                self._on_change(kind, False, outcome.message)
        elif kind == "readiness":
            if self.ready != outcome.ok:
                self.ready = outcome.ok
                self._on_change(kind, outcome.ok, outcome.message)
        elif not outcome.ok:
            self._on_change(kind, False, outcome.message)

    def probed(self, kind: ProbeKind) -> None:
        """Called after every single probe; sets `first` when readiness (or startup) was asked."""
        if (
            kind == "readiness"
            or (kind == "startup" and not self.started)
            or (kind == "startup" and "readiness" not in self._probers)
        ):
            self.first.set()
