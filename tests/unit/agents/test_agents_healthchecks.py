"""What balancers are answered; ports and real requests: tests/kernel/services."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from aiohttp import web

from podwire.agents.healthchecks import HEALTH_TIMEOUT_S, ProxyHealth, answer_check
from podwire.objects.core import Node
from podwire.objects.meta import Key

KEY = Key("shop", "web")


def body(response: web.Response) -> Any:
    assert isinstance(response.body, bytes)
    assert response.headers["Content-Type"] == "application/json"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    return json.loads(response.body)


@pytest.mark.parametrize(
    ("count", "healthy", "status"),
    [(0, True, 503), (1, True, 200), (7, True, 200), (7, False, 503)],
)
def test_a_service_is_healthy_with_endpoints_here_and_a_working_proxy(
    count: int, healthy: bool, status: int
) -> None:
    answer = answer_check(KEY, count, healthy)
    assert answer.status == status
    assert answer.headers["X-Load-Balancing-Endpoint-Weight"] == str(count)
    assert body(answer) == {
        "service": {"namespace": "shop", "name": "web"},
        "localEndpoints": count,
        "serviceProxyHealthy": healthy,
    }


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_change_that_waits_too_long_is_unhealthy() -> None:
    clock = Clock()
    health = ProxyHealth(clock)
    assert (health.healthz().status, health.livez().status) == (200, 200)
    health.queued()
    clock.now += HEALTH_TIMEOUT_S - 1
    health.queued()  # the oldest counts
    assert health.healthy
    clock.now += 1
    assert (health.healthz().status, health.livez().status) == (503, 503)
    health.updated()
    assert health.healthy
    assert body(health.livez()).keys() == {"lastUpdated", "currentTime"}


def node(**fields: Any) -> Node:
    return msgspec.convert({"metadata": {"name": "node-1"}, **fields}, Node)


def test_a_node_about_to_go_fails_healthz_and_not_livez() -> None:
    """KEP-3836."""
    health = ProxyHealth()
    taints = [{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}]
    deleted = {"name": "node-1", "deletionTimestamp": "2024-01-01T00:00:00Z"}
    for going in (node(spec={"taints": taints}), node(metadata=deleted), None):
        health.sync_node(going)
        assert (health.healthz().status, health.livez().status) == (503, 200)
        assert body(health.healthz())["nodeEligible"] is False
        assert health.healthy
        health.sync_node(node(spec={"taints": [{"key": "other", "effect": "NoSchedule"}]}))
        assert health.healthz().status == 200
        assert body(health.healthz())["nodeEligible"] is True
