"""The field's cases in a lab: every step's connections, by the evaluator and by packets.

Both are asked of the same objects at the same time; a case that brings verdicts of its own is held
to them, too. A part of them runs by itself, in every mode of the network; all of them in all modes
with PODWIRE_ALL=1. The cases of a dual lab speak of IPv6 addresses; there both families are asked.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import policy_cases_cyclonus
import policy_cases_e2e
import policy_cases_npa
import policy_cases_own
import pytest
from policy_cases import PORTS, PROTOCOLS, WORLDS, Case, Step, static_addresses
from policy_worlds import Probe
from policylab import LiveCluster, every_probe

from podwire.lab import Lab
from podwire.policy.evaluate import evaluate

ALL = os.environ.get("PODWIRE_ALL") == "1"
MAKERS = {
    "xyz": (policy_cases_e2e, policy_cases_own, policy_cases_cyclonus),
    "houses": (policy_cases_npa,),
}


@dataclass(frozen=True)
class Mode:
    """`fewer`: by itself one case where the first mode runs that many."""

    name: str
    fewer: int
    network: str = "routed"
    ip_family: str = "ipv4"
    versions: tuple[int, ...] = (4,)


MODES = (
    Mode("routed", 1),
    Mode("kubenet", 4, network="kubenet"),
    Mode("dual", 4, ip_family="dual", versions=(4, 6)),
)


def _runs(world: str) -> list[tuple[Mode, str]]:
    """Of the generated matrix every tenth, of the others every fourth, and all with ranges: those
    are the maps in which the kernel compares numbers."""
    addresses = static_addresses(world)
    found: list[tuple[Mode, str]] = []
    for mode in MODES:
        for maker in MAKERS[world]:
            names = [str(case) for case in maker.cases(addresses)]
            part = mode.fewer * (10 if maker is policy_cases_cyclonus else 4)
            ranges = mode.fewer == 1
            found += [
                (mode, name)
                for i, name in enumerate(names)
                if ALL or i % part == 0 or (ranges and "Range" in name)
            ]
    return found


def _parameters(world: str) -> list[object]:
    return [pytest.param(mode, name, id=f"{mode.name}: {name}") for mode, name in _runs(world)]


class _Runner:
    """The cases of one world at the lab's own addresses."""

    def __init__(self, lab: Lab, world: str, versions: tuple[int, ...]) -> None:
        self.cluster = LiveCluster(lab, WORLDS[world])
        self._versions = versions
        addresses = self.cluster.addresses(versions[-1])
        self.cases = {str(case): case for maker in MAKERS[world] for case in maker.cases(addresses)}

    def run(self, case: Case) -> None:
        try:
            for step in case.steps:
                self._step(step)
        finally:
            self.cluster.reset()

    def _step(self, step: Step) -> None:
        self.cluster.do(step.actions)
        asked: list[Probe] = []
        for version in self._versions:
            asked += self._asked(step, version)
        world = self.cluster.world
        says = [evaluate(world.flow(a), world.policy_set, world.world).allowed for a in asked]
        packets = self.cluster.probe_as_said(asked, says)
        wrong = [(a, e, p) for a, e, p in zip(asked, says, packets, strict=True) if e != p]
        assert not wrong, f"{step.says}: (asked, evaluator, packets): {wrong[:5]} of {len(wrong)}"
        if step.expected is not None:
            # A case's own verdicts are about the family whose addresses it speaks of.
            own = [row.allowed for row in step.expected if not row.hairpin]
            assert own == says[-len(own) :]

    def _asked(self, step: Step, version: int) -> list[Probe]:
        addresses = self.cluster.addresses(version)
        if step.expected is None:
            return list(every_probe(addresses, PORTS, PROTOCOLS))
        # A pod meets itself through a Service elsewhere.
        rows = [row for row in step.expected if not row.hairpin]
        return [self.cluster.asked(row, addresses) for row in rows]


class _Labs:
    """The lab of one mode at a time: cases come in the order of their modes."""

    def __init__(self, world: str) -> None:
        self._world = world
        self._mode: Mode | None = None
        self._stack = ExitStack()

    def runner(self, mode: Mode) -> _Runner:
        if self._mode != mode:
            self.close()
            name = f"{self._world}-{mode.name}"
            options = {"network": mode.network, "ip_family": mode.ip_family}
            lab = self._stack.enter_context(Lab(name, nodes=3, dns="none", **options))
            self._runner = _Runner(lab, self._world, mode.versions)
            self._mode = mode
        return self._runner

    def close(self) -> None:
        self._mode = None
        self._stack.close()


@pytest.fixture(scope="module")
def xyz(root: None) -> Iterator[_Labs]:
    labs = _Labs("xyz")
    yield labs
    labs.close()


@pytest.mark.parametrize(("mode", "name"), _parameters("xyz"))
def test_nine_pods(xyz: _Labs, mode: Mode, name: str) -> None:
    runner = xyz.runner(mode)
    runner.run(runner.cases[name])


@pytest.fixture(scope="module")
def houses(root: None) -> Iterator[_Labs]:
    labs = _Labs("houses")
    yield labs
    labs.close()


@pytest.mark.parametrize(("mode", "name"), _parameters("houses"))
def test_houses(houses: _Labs, mode: Mode, name: str) -> None:
    runner = houses.runner(mode)
    runner.run(runner.cases[name])
