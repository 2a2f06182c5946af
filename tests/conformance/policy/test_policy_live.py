"""The field's cases in a lab: every step's connections, by the evaluator and by packets.

Both are asked of the same objects at the same time; a case that brings verdicts of its own is held
to them, too. A representative part runs by itself, all of them with PODWIRE_ALL=1.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import policy_cases_cyclonus
import policy_cases_e2e
import policy_cases_npa
import policy_cases_own
import pytest
from policy_cases import PORTS, PROTOCOLS, WORLDS, Case, Step, static_addresses
from policylab import LiveCluster, every_probe

from podwire.lab import Lab
from podwire.policy.evaluate import evaluate

ALL = os.environ.get("PODWIRE_ALL") == "1"
MAKERS = {
    "xyz": (policy_cases_e2e, policy_cases_own, policy_cases_cyclonus),
    "houses": (policy_cases_npa,),
}


def _names(world: str) -> list[str]:
    """Of the generated matrix every tenth, of the others every fourth, and all with ranges: those
    are the maps in which the kernel compares numbers."""
    addresses = static_addresses(world)
    names = []
    for maker in MAKERS[world]:
        found = [str(case) for case in maker.cases(addresses)]
        part = 10 if maker is policy_cases_cyclonus else 4
        names += [n for i, n in enumerate(found) if ALL or i % part == 0 or "Range" in n]
    return names


@pytest.fixture(scope="module", params=["routed", "kubenet"] if ALL else ["routed"])
def lab(request: pytest.FixtureRequest, root: None) -> Iterator[Lab]:
    with Lab(f"cases-{request.param}", nodes=3, network=request.param, dns="none") as lab:
        yield lab


class _Runner:
    """The cases of one world at the lab's own addresses."""

    def __init__(self, lab: Lab, world: str) -> None:
        self.cluster = LiveCluster(lab, WORLDS[world])
        addresses = self.cluster.addresses()
        self.cases = {str(case): case for maker in MAKERS[world] for case in maker.cases(addresses)}

    def run(self, case: Case) -> None:
        try:
            for step in case.steps:
                self._step(step)
        finally:
            self.cluster.reset()

    def _step(self, step: Step) -> None:
        self.cluster.do(step.actions)
        addresses = self.cluster.addresses()
        if step.expected is None:
            asked = list(every_probe(addresses, PORTS, PROTOCOLS))
            own = None
        else:
            # A pod meets itself through a Service elsewhere.
            rows = [row for row in step.expected if not row.hairpin]
            asked = [self.cluster.asked(row, addresses) for row in rows]
            own = [row.allowed for row in rows]
        world = self.cluster.world
        says = [evaluate(world.flow(a), world.policy_set, world.world).allowed for a in asked]
        packets = self.cluster.probe_as_said(asked, says)
        wrong = [(a, e, p) for a, e, p in zip(asked, says, packets, strict=True) if e != p]
        assert not wrong, f"{step.says}: (asked, evaluator, packets): {wrong[:5]} of {len(wrong)}"
        assert own is None or own == says


@pytest.fixture(scope="module")
def xyz(lab: Lab) -> _Runner:
    return _Runner(lab, "xyz")


@pytest.mark.parametrize("name", _names("xyz"), ids=str)
def test_nine_pods(xyz: _Runner, name: str) -> None:
    xyz.run(xyz.cases[name])


@pytest.fixture(scope="module")
def houses(request: pytest.FixtureRequest, root: None) -> Iterator[_Runner]:
    with Lab("cases-houses", nodes=3, dns="none") as lab:
        yield _Runner(lab, "houses")


@pytest.mark.parametrize("name", _names("houses"), ids=str)
def test_houses(houses: _Runner, name: str) -> None:
    houses.run(houses.cases[name])
