"""Which UDP flows go on when a Service changes: those of every endpoint that serves."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

import pytest
from service_worlds import compiled, domain_of, make_service, make_slice

from podwire.kernel.flows import DST_NAT, Flow, Tuple
from podwire.services.flows import stale_flows

POD, OTHER, CLIENT = "10.244.2.2", "10.244.1.2", "10.244.1.9"
DNS = {"name": "dns", "port": 53, "protocol": "UDP", "nodePort": 30053}
HERE = {"ip": OTHER, "node": "node-1"}


def flow(dst: str, port: int, client: str = CLIENT, end: str = POD) -> Flow:
    src, to, answers = (ip_address(text).packed for text in (client, dst, end))
    return Flow(Tuple(src, to, 40000, port, 17), Tuple(answers, src, 5353, 40000, 17), DST_NAT)


def reasons(
    endpoint: dict[str, Any], found: Flow, service: dict[str, Any] | None = None
) -> list[str]:
    """Why the flow is deleted where POD is as `endpoint` says, beside one that is ready."""
    piece = make_slice(
        HERE,
        {"ip": POD, "node": "node-2", **endpoint},
        ports=[{"name": "dns", "port": 5353, "protocol": "UDP"}],
    )
    whole = make_service(type="NodePort", ports=[DNS], **(service or {}))
    frontends = {f.key: f for f in compiled(whole, piece).frontends}
    return [s.reason for s in stale_flows([found], frontends.get, domain_of(frozenset()))]


ENDING = {"ready": False, "serving": True, "terminating": True}
NOT_READY = {"ready": False, "serving": False}
ENDED = {"ready": False, "serving": False, "terminating": True}


@pytest.mark.parametrize("endpoint", [{}, ENDING], ids=["ready", "ends, but serves"])
def test_a_flow_goes_on_while_its_endpoint_serves(endpoint: dict[str, Any]) -> None:
    assert reasons(endpoint, flow("10.96.0.1", 53)) == []
    assert reasons(endpoint, flow("172.30.0.2", 30053, "203.0.113.10")) == []


@pytest.mark.parametrize("endpoint", [NOT_READY, ENDED], ids=["not ready", "ended"])
def test_a_flow_is_deleted_when_its_endpoint_serves_no_more(endpoint: dict[str, Any]) -> None:
    assert reasons(endpoint, flow("10.96.0.1", 53)) == ["endpoint gone"]
    assert reasons(endpoint, flow("172.30.0.2", 30053, "203.0.113.10")) == ["endpoint gone"]


@pytest.mark.parametrize(
    "policy", [{"internalTrafficPolicy": "Local"}, {"externalTrafficPolicy": "Local"}]
)
def test_policies_choose_for_new_flows_only(policy: dict[str, str]) -> None:
    assert reasons({}, flow("10.96.0.1", 53), policy) == []
    assert reasons({}, flow("172.30.0.2", 30053, "203.0.113.10"), policy) == []


def test_topology_chooses_for_new_flows_only() -> None:
    piece = make_slice(
        {**HERE, "zones": ["zone-a"]},
        {"ip": POD, "node": "node-2", "zones": ["zone-b"]},
        ports=[{"name": "dns", "port": 5353, "protocol": "UDP"}],
    )
    frontends = {f.key: f for f in compiled(make_service(ports=[DNS]), piece).frontends}
    assert [str(b) for f in frontends.values() for b in f.backends] == [f"{OTHER}:5353"]
    found = stale_flows([flow("10.96.0.1", 53)], frontends.get, domain_of(frozenset()))
    assert list(found) == []
