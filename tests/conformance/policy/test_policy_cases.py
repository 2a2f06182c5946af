"""The field's cases by the evaluator: every step, every connection, under the cases' own names.

Where a case has no verdicts of its own, the naive reading of the API gives them; where it has, both
must say the same. The same cases run in a lab by packets, elsewhere.
"""

from __future__ import annotations

from collections import Counter

import policy_cases_cyclonus
import policy_cases_e2e
import policy_cases_npa
import policy_cases_own
import pytest
from naive_policy import NaiveWorld, allowed
from policy_cases import Case, CaseCluster, Step, static_addresses
from policy_worlds import PolicyWorld, Probe

from podwire.policy.evaluate import evaluate

XYZ, HOUSES = static_addresses("xyz"), static_addresses("houses")
CYCLONUS = policy_cases_cyclonus.cases(XYZ)
KUBERNETES = policy_cases_e2e.cases(XYZ)
NETWORK_POLICY_API = policy_cases_npa.cases(HOUSES)
OWN = policy_cases_own.cases(XYZ)
CASES = [*CYCLONUS, *KUBERNETES, *NETWORK_POLICY_API, *OWN]


def _evaluated(world: PolicyWorld, probe: Probe) -> bool:
    return evaluate(world.flow(probe), world.policy_set, world.world).allowed


def _read(raw: NaiveWorld, probe: Probe) -> bool:
    return allowed(
        raw,
        probe.source,
        probe.destination,
        probe.protocol,
        probe.port,
        hairpin=probe.hairpin,
    )


def _check(cluster: CaseCluster, step: Step) -> None:
    for action in step.actions:
        cluster.do(action)
    world = cluster.world
    if step.expected is None:
        for probe in cluster.all_probes():
            assert _evaluated(world, probe) == _read(world.raw, probe), probe
        return
    for expect in step.expected:
        probe = cluster.probe(expect)
        assert _evaluated(world, probe) == expect.allowed, expect
        assert _read(world.raw, probe) == expect.allowed, expect


@pytest.mark.parametrize("case", CASES, ids=str)
def test_case(case: Case) -> None:
    cluster = CaseCluster(case.world)
    for step in case.steps:
        _check(cluster, step)


def test_names_are_unique() -> None:
    assert [name for name, count in Counter(map(str, CASES)).items() if count > 1] == []


def test_nothing_of_the_field_is_missing() -> None:
    """As many as upstream's own tests count."""
    groups = policy_cases_cyclonus.GROUPS
    counted = Counter(group for case in CYCLONUS for group in case.tags & groups.keys())
    assert counted == groups
    assert len(CYCLONUS) == 230
    assert Counter(tag for case in KUBERNETES for tag in case.tags) == {
        "TCP": 42,
        "UDP": 3,
        "SCTP": 3,
    }
    # v0.2.0 has 92 subtests; those that came after it are here, too.
    assert len(NETWORK_POLICY_API) == 35
    assert sum(len(case.steps) for case in NETWORK_POLICY_API) == 125


def test_a_step_of_the_matrix_is_486_connections() -> None:
    assert len(list(CaseCluster("xyz").all_probes())) == 486
