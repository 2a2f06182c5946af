"""The packet table run by the meaning and by the compiled nft ruleset; packets: tests/kernel."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import pytest
from service_rows import ROWS, Row, backends_of, variants
from service_worlds import CLUSTER_CIDRS, SERVICE_CIDRS, domain_of

from podwire.kernel.nfpack import Data, Key
from podwire.objects.core import Service, ServicePort, ServiceSpec
from podwire.objects.discovery import Endpoint, EndpointConditions, EndpointHints
from podwire.services.claims import Claims, Owner
from podwire.services.evaluate import evaluate
from podwire.services.model import compile_service
from podwire.services.plan import SETS, Ruleset
from podwire.services.walk import CompiledRuleset

VARIANTS = [
    pytest.param(variant, id=f"{row.name} ({suffix})")
    for row in ROWS
    for suffix, variant in variants(row)
]


def claim(row: Row) -> Claims:
    claims = Claims()
    for number, (service, slices) in enumerate(row.build()):
        compiled = compile_service(service, slices, row.node)
        claims.set(Owner("Service", service.key), compiled.frontends, (f"{number:03}",))
    return claims


@pytest.mark.parametrize("row", VARIANTS)
def test_the_meaning(row: Row) -> None:
    frontends = claim(row).frontends
    domain = domain_of(frozenset(f.key.ip for f in frontends.values() if f.exclusive))
    for case in row.cases:
        outcome = evaluate(case.packet(), frontends, domain)
        assert outcome.verdict == case.verdict, case
        assert backends_of(outcome.backends) == case.backends(case.ends), case
        assert backends_of(outcome.masqueraded) == case.backends(case.masqueraded), case


@pytest.mark.parametrize("row", VARIANTS)
def test_the_compiled_ruleset(row: Row) -> None:
    ruleset = Ruleset(claim(row))
    ruleset.plan()
    elements = ruleset.elements()
    for case in row.cases:
        packet = case.packet()
        version = 4 if len(packet.dst) == 4 else 6
        sets: Mapping[str, Mapping[Key, Data]] = {n: elements[version, n] for n in SETS}
        chains = ruleset.chains()[version]
        own = frozenset(address.packed for address in row.node.addresses)
        walk = CompiledRuleset(version, sets, SERVICE_CIDRS, CLUSTER_CIDRS, chains, own).walk(
            packet
        )
        assert walk.verdict == case.verdict, (case, walk.path)
        assert backends_of(walk.backends) == case.backends(case.ends), (case, walk.path)
        assert backends_of(walk.masqueraded) == case.backends(case.masqueraded), (case, walk.path)


# --- is the table complete? ---------------------------------------------------------------------

# What concerns only the API server and controllers: no proxy reads it.
NOT_READ = {
    "selector",  # the EndpointSlice controller
    "ipFamilies",  # clusterIPs says it
    "ipFamilyPolicy",
}


def fields_of(kind: type) -> set[str]:
    return set(kind.__struct_encode_fields__)


def spec_keys() -> Iterator[str]:
    for row in ROWS:
        for svc in row.services:
            yield from svc.spec


def of_ports(key: str) -> Iterator[object]:
    for row in ROWS:
        for svc in row.services:
            for port in svc.spec.get("ports", ()):
                if key in port:
                    yield port[key]


def test_every_field_of_a_service_that_networking_reads_stands_in_a_row() -> None:
    # make_service fills these in for every row.
    always = {"clusterIP", "clusterIPs", "ports"}
    assert fields_of(ServiceSpec) - NOT_READ - always - set(spec_keys()) == set()
    assert [key for key in fields_of(ServicePort) - {"protocol"} if not any(of_ports(key))] == []


def test_every_value_of_every_choice_stands_in_a_row() -> None:
    specs = [service.spec for row in ROWS for service, _ in row.build()]
    seen = {
        "type": {s.type for s in specs},
        "sessionAffinity": {s.session_affinity for s in specs},
        "internalTrafficPolicy": {s.internal_traffic_policy for s in specs},
        "externalTrafficPolicy": {s.external_traffic_policy for s in specs},
        "ipMode": {i.ip_mode for row in ROWS for s, _ in row.build() for i in _ingress(s)},
    }
    assert seen == {
        "type": {"ClusterIP", "NodePort", "LoadBalancer", "ExternalName"},
        "sessionAffinity": {"None", "ClientIP"},
        "internalTrafficPolicy": {"Cluster", "Local"},
        "externalTrafficPolicy": {"Cluster", "Local"},
        "ipMode": {None, "VIP", "Proxy"},
    }


def _ingress(service: Service) -> Iterable[object]:
    return service.status.load_balancer.ingress


def test_every_condition_and_hint_of_endpoints_stands_in_a_row() -> None:
    endpoints: list[Endpoint] = [
        e for row in ROWS for _, slices in row.build() for piece in slices for e in piece.endpoints
    ]
    for kind, values in (
        (EndpointConditions, [e.conditions for e in endpoints]),
        (EndpointHints, [e.hints for e in endpoints if e.hints]),
    ):
        for name in kind.__struct_fields__:
            assert any(getattr(value, name) for value in values), (kind.__name__, name)
    assert {e.node_name for e in endpoints} == {"node-1", "node-2", "node-3", None}


def test_packets_come_from_everywhere_and_end_in_every_way() -> None:
    cases = [case for row in ROWS for case in row.cases]
    assert {case.verdict for case in cases} == {"dnat", "refuse", "drop", "pass"}
    origins = {case.origin for case in cases}
    assert {"here-a", "here-c", "far-b", "node", "node-2", "outside", "outside-2"} <= origins
    assert any(case.masqueraded and case.masqueraded != case.ends for case in cases)
