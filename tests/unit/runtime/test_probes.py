"""When a container is probed, and what its answers decide."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, cast

import msgspec

from podwire.objects.core import Container
from podwire.runtime.probeclients import OK, Outcome
from podwire.runtime.probes import ContainerProbes, ProbeKind, Probing, Wheel, _Prober


class Turns:
    """A wheel turned by hand: who is due, in order."""

    def __init__(self) -> None:
        self.due: list[_Prober] = []

    def add(self, prober: _Prober, delay_s: float) -> None:
        self.due.append(prober)

    def turn(self) -> None:
        due, self.due = self.due, []
        for prober in due:
            prober.fire()


class Asked:
    """exec probes that answer when they are told to."""

    def __init__(self) -> None:
        self.open: list[asyncio.Future[Outcome]] = []
        self.changes: list[tuple[ProbeKind, bool]] = []

    async def run(self, _command: Sequence[str]) -> Outcome:
        answer: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self.open.append(answer)
        return await answer

    async def answer(self, *outcomes: Outcome) -> None:
        for outcome in outcomes:
            self.open.pop(0).set_result(outcome)
        await settle()


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def probes(asked: Asked, wheel: Turns, **probe: dict[str, Any]) -> ContainerProbes:
    raw = {"name": "c"} | {
        f"{kind}Probe": {"exec": {"command": ["x"]}, **more} for kind, more in probe.items()
    }
    return ContainerProbes(
        Probing(cast(Wheel, wheel), "10.0.0.1", asked.run, wait_initial=False),
        msgspec.convert(raw, Container),
        on_change=lambda kind, ok, _message: asked.changes.append((kind, ok)),
        on_failure=lambda _kind, _message: None,
    )


BAD = Outcome(False, "no")


async def test_a_probe_slower_than_its_period_goes_on() -> None:
    """kubelet's worker loses the ticks it slept through and asks again at once."""
    asked, wheel = Asked(), Turns()
    made = probes(asked, wheel, readiness={"timeoutSeconds": 9, "periodSeconds": 1})
    made.start()
    await settle()
    wheel.turn()
    wheel.turn()
    await settle()
    assert len(asked.open) == 1
    await asked.answer(BAD)
    assert len(asked.open) == 1, "nobody asks any more"
    await asked.answer(OK)
    assert made.ready
    wheel.turn()
    await settle()
    assert len(asked.open) == 1
    made.stop()


async def test_thresholds_count_answers_in_a_row() -> None:
    asked, wheel = Asked(), Turns()
    made = probes(asked, wheel, readiness={"successThreshold": 2, "failureThreshold": 2})
    made.start()
    ready = []
    for outcome in (OK, BAD, OK, OK, BAD, OK, BAD, BAD):
        await settle()
        await asked.answer(outcome)
        ready.append(made.ready)
        wheel.turn()
    assert ready == [False, False, False, True, True, True, True, False]
    made.stop()


async def test_startup_gates_the_others() -> None:
    asked, wheel = Asked(), Turns()
    made = probes(asked, wheel, startup={"failureThreshold": 2}, readiness={}, liveness={})
    made.start()
    await settle()
    assert (len(asked.open), made.started) == (1, False)
    await asked.answer(BAD)
    wheel.turn()
    await settle()
    await asked.answer(OK)
    assert (made.started, made.ready, len(asked.open)) == (True, False, 2)
    await asked.answer(OK, OK)
    assert made.ready
    assert asked.changes == [("startup", True), ("readiness", True)]
    made.stop()


async def test_liveness_fails_after_its_threshold() -> None:
    asked, wheel = Asked(), Turns()
    made = probes(asked, wheel, liveness={"failureThreshold": 3})
    made.start()
    for _ in range(3):
        await settle()
        assert asked.changes == []
        await asked.answer(BAD)
        wheel.turn()
    assert asked.changes == [("liveness", False)]
    made.stop()
