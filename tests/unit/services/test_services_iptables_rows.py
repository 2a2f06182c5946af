"""The packet table walked over the iptables chains; with real packets: tests/kernel/services."""

from __future__ import annotations

import re
from collections.abc import Callable
from ipaddress import ip_network

import pytest
from service_rows import ROWS, Row, backends_of, translate, variants
from service_worlds import CLUSTER_CIDRS, SERVICE_CIDRS, compiled, make_service, make_slice

from podwire.objects.core import Service
from podwire.objects.discovery import EndpointSlice
from podwire.services.claims import Claims, Owner
from podwire.services.iptplan import TABLES, Ruleset, Tables, parse_save
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
        assert walk.verdict == case.verdict, (case, walk.path)
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


# --- what a table of packets does not show ------------------------------------------------------


def test_without_the_match_recent_a_service_works_and_forgets_its_clients() -> None:
    (row,) = (row for row in ROWS if row.name == GOLDENS["affinity"][0])
    row = translate(row, 4, "TCP")
    ruleset = make_ruleset(row)
    assert "-m recent" in "".join(ruleset.plan().values())
    ruleset.set_ranges(SERVICE_CIDRS, CLUSTER_CIDRS, affinity=False)
    text = ruleset.plan()[4]
    assert "-m statistic" in text
    assert "-m recent" not in "".join(ruleset.tables(4)["nat"].values())
    case = row.cases[0]
    own = {address.packed for address in row.node.addresses}
    walk = CompiledTables(ruleset.tables(4), own).walk(case.packet())
    assert backends_of(walk.backends) == case.backends(case.ends)


def test_one_endpoint_is_one_chain_and_one_service_a_few() -> None:
    """KEP-3453: what did not change is not sent."""
    claims = Claims()
    for number in range(1, 6):
        claims.set(owner(number), compiled(*web(number, "10.244.2.2")).frontends)
    ruleset = Ruleset(claims, (4,))
    ruleset.set_ranges(SERVICE_CIDRS, CLUSTER_CIDRS)
    ruleset.plan()
    claims.set(owner(3), compiled(*web(3, "10.244.2.2", "10.244.2.3")).frontends)
    (text,) = ruleset.plan().values()
    declared = [line for line in text.splitlines() if line.startswith(":")]
    assert len(declared) == 1
    assert declared[0].startswith(":PW-SVC-")
    claims.set(owner(6), compiled(*web(6, "10.244.2.2")).frontends)
    (text,) = ruleset.plan().values()
    assert "10.96.0.1/32" in text, "the dispatch is sent whole"
    (line,) = (line for line in text.splitlines() if "VIPS" in line)
    assert line.startswith("-A PODWIRE-VIPS -d 10.96.0.6/32 "), "an address comes alone"
    claims.set(owner(6), ())
    (text,) = ruleset.plan().values()
    assert re.search(r"^-X PW-SVC-\w+$", text, re.MULTILINE)
    assert "-D PODWIRE-VIPS -d 10.96.0.6/32 " in text
    assert ruleset.plan() == {}


def owner(number: int) -> Owner:
    return Owner("Service", web(number)[0].key)


def web(number: int, *ips: str) -> tuple[Service, EndpointSlice]:
    endpoints = [{"ip": ip, "node": "node-2"} for ip in ips]
    return make_service(f"web-{number}", clusterIP=f"10.96.0.{number}"), make_slice(*endpoints)


def test_other_ranges_change_what_depends_on_them() -> None:
    row = next(row for row in ROWS if row.name == "TestOnlyLocalLoadBalancing")
    ruleset = make_ruleset(row)
    ruleset.plan()
    wider = (*SERVICE_CIDRS, ip_network("10.97.0.0/16"))
    ruleset.set_ranges(wider, CLUSTER_CIDRS)
    text = ruleset.plan()[4]
    assert "-d 10.97.0.0/16 " in text
    assert ":PW-" not in text
    ruleset.set_ranges(wider, (ip_network("10.0.0.0/8"),))
    assert re.search(r"-A PW-EXT-\w+ -s 10\.0\.0\.0/8 ", ruleset.plan()[4])


def test_a_jump_comes_once_and_goes_alone() -> None:
    ruleset = make_ruleset(ROWS[0])
    first = ruleset.plan()[4]
    assert first.count("\n-I ") == 6
    found: Tables = {
        table: parse_save("".join(f":{n} - [0:0]\n{r}" for n, r in chains.items()))
        for table, chains in ruleset.tables(4).items()
    }
    there = {4: found, 6: {table: {} for table in TABLES}}
    assert 4 not in ruleset.mend(there)
    jump = found["nat"]["PREROUTING"]
    found["nat"]["PREROUTING"] = jump * 2
    assert ruleset.mend(there)[4] == f"*nat\n-D {jump.removeprefix('-A ')}COMMIT\n"
    del found["nat"]["PREROUTING"]
    assert ruleset.mend(there)[4] == f"*nat\n-I {jump.removeprefix('-A ')}COMMIT\n"
