"""Deployment arithmetic: who grows and shrinks, percentages, revisions, conditions."""

from __future__ import annotations

import datetime as dt
from typing import Any

import msgspec
import pytest

from podwire.controllers import rollout
from podwire.controllers.deployment import plan_new_set
from podwire.objects.apps import Deployment, DeploymentStatus, ReplicaSet

NOW = dt.datetime(2024, 1, 1, 12, tzinfo=dt.UTC)
TEMPLATE = {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c"}]}}


def deployment(replicas: int = 10, **spec: Any) -> Deployment:
    raw = {
        "metadata": {"name": "web", "namespace": "ns", "uid": "d", "generation": 1},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": "web"}},
            "template": TEMPLATE,
            **spec,
        },
    }
    return msgspec.convert(raw, Deployment)


def replica_set(name: str, size: int, up: int | None = None, **annotations: str) -> ReplicaSet:
    raw = {
        "metadata": {
            "name": name,
            "annotations": annotations,
            "creationTimestamp": f"2024-01-01T00:00:0{len(name)}Z",
        },
        "spec": {"replicas": size, "template": TEMPLATE},
        "status": {"replicas": size, "availableReplicas": size if up is None else up},
    }
    return msgspec.convert(raw, ReplicaSet)


def rolling(surge: int | str, unavailable: int | str) -> dict[str, Any]:
    return {"rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}}


@pytest.mark.parametrize(
    ("surge", "unavailable", "new", "new_up", "old", "old_up", "scales"),
    [
        (2, 0, 0, 0, 10, 10, {"new": 2}),
        (2, 2, 2, 0, 10, 10, {"o": 8}),
        (2, 0, 2, 0, 10, 10, {}),
        (2, 0, 2, 2, 10, 10, {"o": 8}),
        (0, 3, 0, 0, 10, 10, {"o": 7}),
        (0, 3, 0, 0, 10, 4, {"o": 7}),
        ("25%", "25%", 0, 0, 10, 10, {"new": 3}),
        (0, 0, 0, 0, 10, 10, {"o": 9}),
        (2, 2, 12, 12, 0, 0, {"new": 10}),
    ],
)
def test_rolling_steps(
    surge: int | str,
    unavailable: int | str,
    new: int,
    new_up: int,
    old: int,
    old_up: int,
    scales: dict[str, int],
) -> None:
    d = deployment(strategy=rolling(surge, unavailable))
    sets = replica_set("new", new, new_up), [replica_set("o", old, old_up)]
    assert rollout.plan_rolling(d, *sets) == scales


def test_rolling_reaches_its_end_within_its_bounds() -> None:
    d = deployment(strategy=rolling("30%", "20%"))
    new, old = 0, 10
    for _ in range(20):
        scales = rollout.plan_rolling(d, replica_set("new", new), [replica_set("o", old)])
        if not scales:
            break
        new, old = scales.get("new", new), scales.get("o", old)
        assert 8 <= new + old <= 13
    assert (new, old) == (10, 0)


def test_proportional_scaling_keeps_shares() -> None:
    d = deployment(20, strategy=rolling(0, 1))
    size = {rollout.MAXIMUM: "10", rollout.DESIRED: "10"}
    new, old = replica_set("new", 4, 0, **size), replica_set("o", 6, 6, **size)
    assert rollout.is_scaling(d, [new, old])
    assert rollout.plan_proportional(d, new, [old]) == {"o": 12, "new": 8}


@pytest.mark.parametrize(
    ("value", "up", "pods"), [("25%", True, 3), ("25%", False, 2), (4, True, 4), (None, False, 2)]
)
def test_percentages(value: int | str | None, up: bool, pods: int) -> None:
    assert rollout.scaled(value, 10, up=up, default="25%") == pods


def test_hash_is_stable_and_collisions_change_it() -> None:
    assert rollout.template_hash(TEMPLATE) == rollout.template_hash(
        dict(reversed(TEMPLATE.items()))
    )
    assert rollout.template_hash(TEMPLATE) != rollout.template_hash(TEMPLATE, 1)


def test_new_set_carries_hash_everywhere_and_is_found_again() -> None:
    d = deployment(3)
    body = plan_new_set(d, [], 1)
    digest = body["metadata"]["labels"][rollout.HASH_LABEL]
    assert body["metadata"]["name"] == f"web-{digest}"
    assert body["spec"]["selector"]["matchLabels"][rollout.HASH_LABEL] == digest
    assert body["metadata"]["annotations"][rollout.REVISION] == "1"
    assert rollout.find_new(d, [msgspec.convert(body, ReplicaSet)]) is not None


def test_rolled_back_set_becomes_the_newest_revision() -> None:
    old = replica_set("o", 0, **{rollout.REVISION: "1"})
    changed = rollout.new_annotations(deployment(), old, 3)
    assert changed == {rollout.REVISION: "3", rollout.REVISION_HISTORY: "1"}
    assert rollout.new_annotations(deployment(), old, 1) == {}


def test_history_keeps_the_limit() -> None:
    old = [replica_set(f"o{'x' * i}", 0, **{rollout.REVISION: str(i)}) for i in range(4)]
    doomed = rollout.plan_history(deployment(revisionHistoryLimit=1), old)
    assert [rollout.revision_of(s) for s in doomed] == [0, 1, 2]


def test_status_texts() -> None:
    d = deployment(2)
    status = rollout.plan_status(d, replica_set("n", 2), [replica_set("n", 2)], NOW)
    reasons = {c.type: (c.status, c.reason) for c in status.conditions}
    assert reasons == {
        "Available": ("True", "MinimumReplicasAvailable"),
        "Progressing": ("True", "NewReplicaSetAvailable"),
    }
    assert status.check_s is None
    waiting = rollout.plan_status(d, replica_set("n", 2, 0), [replica_set("n", 2, 0)], NOW)
    assert {c.reason for c in waiting.conditions} == {
        "MinimumReplicasUnavailable",
        "ReplicaSetUpdated",
    }
    assert waiting.check_s == pytest.approx(601)


def test_progress_deadline() -> None:
    d = msgspec.structs.replace(
        deployment(1, progressDeadlineSeconds=10),
        status=msgspec.convert(
            {
                "replicas": 1,
                "updatedReplicas": 1,
                "conditions": [
                    {
                        "type": "Progressing",
                        "status": "True",
                        "reason": "ReplicaSetUpdated",
                        "lastUpdateTime": "2024-01-01T11:59:00Z",
                    }
                ],
            },
            DeploymentStatus,
        ),
    )
    status = rollout.plan_status(d, replica_set("n", 1, 0), [replica_set("n", 1, 0)], NOW)
    assert "ProgressDeadlineExceeded" in {c.reason for c in status.conditions}
