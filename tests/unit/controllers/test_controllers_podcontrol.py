"""Writing pods: refusals stop the rest and are told once; names that are taken are replaced."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any, cast

import msgspec
import pytest

from podwire.controllers.cluster import Cluster
from podwire.controllers.config import ControllerConfig
from podwire.controllers.podcontrol import (
    Expectations,
    Owner,
    PodControl,
    PodTemplate,
    is_namespace_going,
)
from podwire.errors import AlreadyExistsError, ApiError, Cause, ForbiddenError
from podwire.objects import kinds
from podwire.objects.apps import ReplicaSet

RS = msgspec.convert(
    {"metadata": {"name": "rs", "namespace": "ns", "uid": "u"}, "spec": {"template": {}}},
    ReplicaSet,
)
OWNER = Owner(kinds.REPLICA_SET, RS, "replicaset-controller")


@dataclass
class FakeCluster:
    """The part of `Cluster` that writes pods: answers with `errors` first, then with success."""

    errors: list[ApiError] = field(default_factory=list)
    created: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    config: ControllerConfig = field(default_factory=lambda: ControllerConfig(write_limit=2))

    def __post_init__(self) -> None:
        self.api = self.events = self
        self.pod_writes = asyncio.Semaphore(self.config.write_limit)

    async def create(self, kind: Any, body: Any, namespace: str) -> None:
        await asyncio.sleep(0)
        if self.errors:
            raise self.errors.pop(0)
        self.created.append(body["metadata"]["name"])

    def say(self, component: str, kind: Any, obj: Any, how: str, reason: str, text: str) -> None:
        self.said.append(reason)


async def create(cluster: FakeCluster, number: int) -> tuple[ApiError | None, Expectations]:
    expected = Expectations()
    control = PodControl(cast(Cluster, cluster), expected)
    template = PodTemplate({"metadata": {"labels": {"a": "b"}}}, OWNER)
    bodies = [template.generated("rs-") for _ in range(number)]
    return await control.create(OWNER, bodies), expected


async def test_all_are_created_and_expected() -> None:
    cluster = FakeCluster()
    error, expected = await create(cluster, 5)
    assert error is None
    assert len(set(cluster.created)) == 5
    assert expected.pending_s("u") is not None


async def test_a_refusal_stops_the_rest_and_is_reported_once() -> None:
    cluster = FakeCluster([ForbiddenError("no"), ForbiddenError("no")])
    error, expected = await create(cluster, 50)
    assert isinstance(error, ForbiddenError)
    assert len(cluster.created) <= 2
    assert cluster.said.count("FailedCreate") == 1
    assert (expected.pending_s("u") is None) == (not cluster.created)


async def test_a_taken_name_is_chosen_again() -> None:
    cluster = FakeCluster([AlreadyExistsError("taken")])
    error, _ = await create(cluster, 1)
    assert error is None
    assert len(cluster.created) == 1


@pytest.mark.parametrize(
    ("error", "going"),
    [
        (ForbiddenError("x", causes=[Cause("NamespaceTerminating", "")]), True),
        (ForbiddenError("quota"), False),
    ],
)
def test_a_namespace_that_goes_is_nobodys_fault(error: ApiError, going: bool) -> None:
    assert is_namespace_going(error) is going
