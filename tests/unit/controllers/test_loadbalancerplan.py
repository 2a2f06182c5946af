"""Which Service gets which address; lives of many Services at random."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address
from itertools import combinations
from typing import Any

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from podwire.controllers.loadbalancerplan import (
    Claim,
    claim_of,
    conflict,
    plan_addresses,
    requested_addresses,
)
from podwire.controllers.loadbalancers import needs_cleanup, needs_update, told_changes
from podwire.errors import AddressError
from podwire.objects.core import Service
from podwire.objects.meta import Key
from podwire.services.loadbalancers import FINALIZER, addresses_of, is_ours, vips_of, wants
from podwire.services.pools import make_pools

POOLS = make_pools(
    ["172.30.0.200-172.30.0.203", "fd00:30::200-fd00:30::203"], ["172.30.0.190-172.30.0.191"]
)
SHARED = "networking.podwire.dev/allow-shared-ip"
IPS = "networking.podwire.dev/load-balancer-ips"
INTERNAL = {"networking.podwire.dev/load-balancer": "internal"}


def service(
    name: str,
    *ips: str,
    created: str = "2026-01-01T00:00:00Z",
    annotations: dict[str, str] | None = None,
    meta: dict[str, Any] | None = None,
    **spec: Any,
) -> Service:
    raw = {
        "metadata": {
            "name": name,
            "namespace": "ns",
            "creationTimestamp": created,
            "annotations": annotations or {},
        }
        | (meta or {}),
        "spec": {
            "type": "LoadBalancer",
            "ports": [{"port": 80}],
            "selector": {"app": "x"},
            "ipFamilies": ["IPv4"],
        }
        | spec,
        "status": {"loadBalancer": {"ingress": [{"ip": ip, "ipMode": "VIP"} for ip in ips]}},
    }
    return msgspec.convert(raw, Service)


def claims(*services: Service) -> dict[Key, Claim]:
    return {s.key: claim_of(s) for s in services}


def plan(one: Service, *others: Service) -> list[str]:
    return [str(a) for a in plan_addresses(one, claims(one, *others), POOLS)]


def test_the_lowest_that_is_free() -> None:
    assert plan(service("a")) == ["172.30.0.200"]
    assert plan(service("a"), service("b", "172.30.0.200")) == ["172.30.0.201"]
    assert plan(service("a", annotations=INTERNAL)) == ["172.30.0.190"]
    dual = service("a", ipFamilies=["IPv6", "IPv4"], ipFamilyPolicy="RequireDualStack")
    assert plan(dual) == ["fd00:30::200", "172.30.0.200"]


def test_what_it_has_it_keeps() -> None:
    assert plan(service("a", "172.30.0.203")) == ["172.30.0.203"]
    # Out of the pool it asked for, or no pool of ours: not any more.
    assert plan(service("a", "172.30.0.203", annotations=INTERNAL)) == ["172.30.0.190"]
    assert plan(service("a", "198.51.100.1")) == ["172.30.0.200"]


def test_of_two_that_show_one_address_the_older_keeps_it() -> None:
    old = service("old", "172.30.0.201", created="2025-01-01T00:00:00Z")
    new = service("new", "172.30.0.201")
    assert plan(old, new) == ["172.30.0.201"]
    assert plan(new, old) == ["172.30.0.200"]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"loadBalancerIP": "10.1.1.1"}, "10.1.1.1 is not in the external address pool"),
        ({"loadBalancerIP": "172.30.0.190"}, "is not in the external address pool"),
        ({"loadBalancerIP": "172.30.0.202"}, "is not available: it is in use by service ns/b"),
        ({"loadBalancerIP": "fd00:30::200"}, "has no address family for fd00:30::200"),
        ({"annotations": {IPS: "172.30.0.200,172.30.0.201"}}, "one address of each family"),
        ({"annotations": {IPS: "nonsense"}}, "'nonsense' does not appear to be an IPv4 or IPv6"),
        (
            {"annotations": {IPS: "172.30.0.200"}, "loadBalancerIP": "172.30.0.200"},
            "are both set; keep one",
        ),
        ({"annotations": INTERNAL, "ipFamilies": ["IPv6"]}, "no internal address pool for IPv6"),
    ],
)
def test_refused(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(AddressError, match=says):
        plan(service("a", **fields), service("b", "172.30.0.202"))


def test_exhausted() -> None:
    others = [service(f"o{n}", f"172.30.0.{n}") for n in range(200, 204)]
    with pytest.raises(AddressError, match="no address of the external pool is free"):
        plan(service("a"), *others)
    assert plan(service("a"), *others[:-1]) == ["172.30.0.203"]


def test_fixed() -> None:
    both = {IPS: "172.30.0.203, fd00:30::203"}
    dual = {"ipFamilies": ["IPv4", "IPv6"], "ipFamilyPolicy": "PreferDualStack"}
    assert plan(service("a", annotations=both, **dual)) == ["172.30.0.203", "fd00:30::203"]
    assert plan(service("a", loadBalancerIP="172.30.0.202", **dual)) == [
        "172.30.0.202",
        "fd00:30::200",
    ]
    # PreferDualStack is content where one family has no pool.
    assert plan(service("a", annotations=INTERNAL, **dual)) == ["172.30.0.190"]
    assert requested_addresses(service("a")) == {}


KEY = {SHARED: "k"}
UDP = [{"port": 80, "protocol": "UDP"}]


@pytest.mark.parametrize(
    ("mine", "other", "says"),
    [
        ({}, {}, "in use by service ns/b"),
        ({"annotations": KEY}, {}, "in use by service ns/b"),
        ({"annotations": KEY}, {"annotations": {SHARED: "z"}}, "by another key"),
        ({"annotations": KEY}, {"annotations": KEY}, "port 80/TCP is in use"),
        ({"annotations": KEY}, {"annotations": KEY, "ports": UDP}, ""),
        (
            {"annotations": KEY, "externalTrafficPolicy": "Local"},
            {"annotations": KEY, "ports": UDP},
            "another externalTrafficPolicy",
        ),
        (
            {"annotations": KEY, "externalTrafficPolicy": "Local"},
            {"annotations": KEY, "ports": UDP, "externalTrafficPolicy": "Local"},
            "",
        ),
        (
            {"annotations": KEY, "externalTrafficPolicy": "Local"},
            {
                "annotations": KEY,
                "ports": UDP,
                "externalTrafficPolicy": "Local",
                "selector": {"app": "y"},
            },
            "another externalTrafficPolicy",
        ),
    ],
)
def test_sharing(mine: dict[str, Any], other: dict[str, Any], says: str) -> None:
    one, two = service("a", **mine), service("b", "172.30.0.202", **other)
    found = conflict(claim_of(one), claim_of(two))
    assert (says in found) if says else not found
    # Those that may share come together; the others keep apart.
    assert plan(one, two) == (["172.30.0.200"] if says else ["172.30.0.202"])


# --- whose they are -------------------------------------------------------------------------------


def test_ours() -> None:
    assert is_ours(service("a"))
    assert is_ours(service("a", loadBalancerClass="podwire.dev/l2"))
    assert not is_ours(service("a", loadBalancerClass="example.com/x"))
    assert not is_ours(service("a", type="NodePort"))
    assert not wants(service("a", meta={"deletionTimestamp": "2026-01-01T00:00:00Z"}))
    proxied = {"ingress": [{"ip": "172.30.0.200", "ipMode": "Proxy"}]}
    other = msgspec.convert(
        {"spec": {"type": "LoadBalancer"}, "status": {"loadBalancer": proxied}}, Service
    )
    assert vips_of(other, POOLS) == []
    assert [str(a) for a in vips_of(service("a", "172.30.0.200", "192.0.2.1"), POOLS)] == [
        "172.30.0.200"
    ]


class _Cloud:
    """The part of a LoadBalancer `needs_cleanup` asks."""

    def exists(self, one: Service) -> bool:
        return any(address in POOLS for address in addresses_of(one))


@pytest.mark.parametrize(
    ("ips", "finalized", "deleted", "spec", "wanted"),
    [
        ([], False, False, {}, False),
        (["172.30.0.200"], True, False, {}, False),
        (["172.30.0.200"], True, True, {}, True),
        (["172.30.0.200"], False, True, {}, False),
        (["172.30.0.200"], True, False, {"type": "ClusterIP"}, True),
        (["172.30.0.200"], False, False, {"type": "ClusterIP"}, True),
        ([], True, False, {"type": "NodePort"}, True),
        ([], False, False, {"type": "NodePort"}, False),
        # Somebody else's, before and after its type changed.
        (["192.0.2.1"], True, True, {"loadBalancerClass": "example.com/x"}, False),
        (["192.0.2.1"], True, False, {"type": "ClusterIP"}, False),
    ],
)
def test_cleanup(
    ips: list[str], finalized: bool, deleted: bool, spec: dict[str, Any], wanted: bool
) -> None:
    meta: dict[str, Any] = {"finalizers": [FINALIZER] if finalized else []}
    if deleted:
        meta["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    one = service("a", *ips, meta=meta, **spec)
    assert needs_cleanup(one, _Cloud()) == wanted  # type: ignore[arg-type]


def test_changes_that_matter_and_what_is_told() -> None:
    whole = {"meta": {"finalizers": [FINALIZER]}}
    one = service("a", "172.30.0.200", **whole)
    assert not needs_update(one, service("a", "172.30.0.200", **whole))
    assert needs_update(one, service("a", "172.30.0.200"))
    assert needs_update(one, service("a", **whole))
    local = service("a", "172.30.0.200", **whole, externalTrafficPolicy="Local")
    assert needs_update(one, local)
    assert told_changes(one, local) == [("ExternalTrafficPolicy", "Cluster", "Local")]
    ranges = service("a", loadBalancerSourceRanges=["10.0.0.0/8", "192.0.2.0/24"])
    assert told_changes(one, ranges) == [
        ("LoadBalancerSourceRanges", "[]", "[10.0.0.0/8 192.0.2.0/24]")
    ]
    assert told_changes(one, service("a", type="NodePort", externalTrafficPolicy="Local")) == [
        ("Type", "LoadBalancer", "NodePort")
    ]


# --- lives ----------------------------------------------------------------------------------------

shapes = st.fixed_dictionaries(
    {
        "annotations": st.sampled_from([{}, {}, INTERNAL, KEY, KEY, {SHARED: "other"}]),
        "ports": st.sampled_from(
            [[{"port": 80}], UDP, [{"port": 81}], [{"port": 80}, {"port": 81}]]
        ),
        "externalTrafficPolicy": st.sampled_from(["Cluster", "Local"]),
        "selector": st.sampled_from([{"app": "x"}, {"app": "y"}]),
        "loadBalancerIP": st.sampled_from(["", "", "", "172.30.0.201"]),
    }
)


class Lives(RuleBasedStateMachine):
    """Services come, change and go; whoever is not settled is looked at until all are."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: dict[str, dict[str, Any]] = {}
        self.ips: dict[str, list[str]] = {}
        self.count = 0

    def service(self, name: str) -> Service:
        created = f"2026-01-01T00:00:{int(name[1:]) % 60:02d}Z"
        return service(name, *self.ips[name], created=created, **self.shapes[name])

    def services(self) -> list[Service]:
        return [self.service(name) for name in self.shapes]

    def settle(self, order: Iterable[str]) -> None:
        names = list(order)
        for _ in range(3):
            for name in names:
                one = self.service(name)
                try:
                    self.ips[name] = plan(one, *(s for s in self.services() if s.key != one.key))
                except AddressError:
                    self.ips[name] = []

    @rule(shape=shapes)
    def create(self, shape: dict[str, Any]) -> None:
        name = f"s{self.count}"
        self.count += 1
        self.shapes[name], self.ips[name] = shape, []
        self.settle(self.shapes)

    @precondition(lambda self: self.shapes)
    @rule(data=st.data(), shape=shapes)
    def change(self, data: st.DataObject, shape: dict[str, Any]) -> None:
        self.shapes[data.draw(st.sampled_from(sorted(self.shapes)))] = shape
        self.settle(self.shapes)

    @precondition(lambda self: self.shapes)
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.shapes)))
        del self.shapes[name], self.ips[name]
        self.settle(self.shapes)

    @precondition(lambda self: self.shapes)
    @rule(data=st.data())
    def restart(self, data: st.DataObject) -> None:
        """Everything is read anew, in any order: nothing moves."""
        before = dict(self.ips)
        self.settle(data.draw(st.permutations(sorted(self.shapes))))
        kept = {name: ips for name, ips in before.items() if ips}
        assert {name: self.ips[name] for name in kept} == kept

    @invariant()
    def nobody_is_on_anothers_address(self) -> None:
        for one, other in combinations(self.services(), 2):
            mine, others = claim_of(one), claim_of(other)
            if mine.addresses & others.addresses:
                assert not conflict(mine, others)

    @invariant()
    def everybody_is_where_it_belongs(self) -> None:
        for one in self.services():
            for address in addresses_of(one):
                internal = one.metadata.annotations == INTERNAL
                assert POOLS.scope_of(address) == ("internal" if internal else "external")
                wanted = one.spec.load_balancer_ip
                assert not wanted or address == ip_address(wanted)

    @invariant()
    def nobody_waits_while_there_is_room(self) -> None:
        taken = {ip for ips in self.ips.values() for ip in ips}
        free = {f"172.30.0.{n}" for n in range(200, 204)} - taken
        for name, shape in self.shapes.items():
            if not self.ips[name] and not shape["loadBalancerIP"]:
                assert shape["annotations"] == INTERNAL or not free


TestLives = Lives.TestCase
TestLives.settings = settings(stateful_step_count=12, deadline=None)
