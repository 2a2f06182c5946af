"""The packet table walked over the iptables chains; with real packets: tests/kernel/services."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from service_iptables import expected
from service_rows import ROWS, Row, backends_of, translate, variants
from service_worlds import CLUSTER_CIDRS, SERVICE_CIDRS

from podwire.services.claims import Claims, Owner
from podwire.services.iptplan import Ruleset
from podwire.services.iptwalk import CompiledTables
from podwire.services.model import compile_service

Golden = Callable[[str, str], None]
VARIANTS = [
    pytest.param(variant, id=f"{row.name} ({suffix})")
    for row in ROWS
    for suffix, variant in variants(row)
]


def make_ruleset(row: Row) -> Ruleset:
    claims = Claims()
    for number, (service, slices) in enumerate(row.build()):
        compiled = compile_service(service, slices, row.node)
        claims.set(Owner("Service", service.key), compiled.frontends, (f"{number:03}",))
    ruleset = Ruleset(claims, (4, 6))
    ruleset.set_ranges(SERVICE_CIDRS, CLUSTER_CIDRS)
    return ruleset


@pytest.mark.parametrize("row", VARIANTS)
def test_the_chains(row: Row) -> None:
    ruleset = make_ruleset(row)
    ruleset.plan()
    own = frozenset(address.packed for address in row.node.addresses)
    tables = {version: CompiledTables(ruleset.tables(version), own) for version in (4, 6)}
    for case in row.cases:
        walk = tables[6 if ":" in case.dst else 4].walk(case.packet())
        assert walk.verdict == expected(case, row), (case, walk.path)
        assert backends_of(walk.backends) == case.backends(case.ends), (case, walk.path)
        assert backends_of(walk.masqueraded) == case.backends(case.masqueraded), (case, walk.path)


# --- the text itself ----------------------------------------------------------------------------

# file -> the row it shows and in which family
GOLDENS = {
    "cluster-ip": ("hairpin among others", 4),
    "cluster-ip-ipv6": ("hairpin among others", 6),
    "no-endpoints": ("Services should be rejected when no endpoints exist", 4),
    "internal-local-drop": ("internalTrafficPolicy=Local without an endpoint here drops", 4),
    "node-port": ("Services should be able to create a functioning NodePort service", 4),
    "external-local": ("TestOnlyLocalLoadBalancing", 4),
    "policies-local": ("both policies Local", 4),
    "source-ranges": (
        "LoadBalancers should only allow access from service loadbalancer source ranges",
        4,
    ),
    "source-ranges-no-endpoints": (
        "source ranges and no endpoints: dropped before refused",
        4,
    ),
    "affinity": ("Services should have session affinity work for NodePort service", 4),
    "affinity-ipv6": ("Services should have session affinity work for NodePort service", 6),
    "weights": ("weights", 4),
}


@pytest.mark.parametrize("name", GOLDENS)
def test_the_text(name: str, golden: Golden) -> None:
    said, version = GOLDENS[name]
    (row,) = (row for row in ROWS if row.name == said)
    golden(
        f"services-iptables/{name}.txt",
        make_ruleset(translate(row, version, "TCP")).plan()[version],
    )
