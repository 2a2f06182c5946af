"""Random lives of Services: nothing is ever held twice, nothing is left over, whatever fails.

A world is a list of batches; a batch is what one turn of the event loop stages together, and may be
refused by the disk as a whole. After each, what Services hold, the IPAddress objects and the
allocator must say the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import Iterator
from ipaddress import IPv4Network, IPv6Network, ip_address
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podwire.apiserver import deletion, pipeline
from podwire.apiserver.app import ApiServer, ServerConfig
from podwire.apiserver.authn import ADMIN
from podwire.apiserver.context import Context
from podwire.apiserver.deletion import DeleteOptions
from podwire.apiserver.registry import Resource
from podwire.apiserver.request import Target
from podwire.apiserver.service_families import addresses_of, ports_of
from podwire.apiserver.store import Table
from podwire.errors import ApiError
from podwire.objects.meta import Key

RANGES = (IPv4Network("10.9.0.0/29"), IPv6Network("fd00:9::/125"))
FAMILIES = {"IPv4", "IPv6"}


class Op(NamedTuple):
    verb: str
    name: str
    spec: dict[str, Any]
    dry_run: bool
    held: bool
    """Whether a finalizer holds it."""


TYPES = st.sampled_from(["ClusterIP", "NodePort", "LoadBalancer", "ExternalName", "Odd"])
ADDRESSES = st.sampled_from(["10.9.0.2", "10.9.0.3", "fd00:9::3", "10.8.0.1", "None"])
PORTS = st.lists(
    st.fixed_dictionaries(
        {"port": st.sampled_from([80, 443]), "protocol": st.sampled_from(["TCP", "UDP"])},
        optional={"nodePort": st.sampled_from([30001, 30002, 31000, 80])},
    ),
    min_size=1,
    max_size=3,
).map(lambda ports: [{**port, "name": f"p{i}"} for i, port in enumerate(ports)])
SPECS = st.fixed_dictionaries(
    {"type": TYPES, "ports": PORTS, "selector": st.just({"a": "b"})},
    optional={
        "clusterIP": ADDRESSES,
        "ipFamilyPolicy": st.sampled_from(["SingleStack", "PreferDualStack", "RequireDualStack"]),
        "ipFamilies": st.sampled_from([["IPv4"], ["IPv6"], ["IPv6", "IPv4"]]),
        "externalName": st.just("a.example.com"),
        "externalTrafficPolicy": st.sampled_from(["Local", "Cluster"]),
        "allocateLoadBalancerNodePorts": st.booleans(),
        "healthCheckNodePort": st.sampled_from([30001, 31001]),
    },
)
VERBS = st.sampled_from(["create", "create", "replace", "merge", "delete", "let-go", "address"])
OPS = st.builds(
    Op, VERBS, st.sampled_from("abcd"), SPECS, st.sampled_from([False, False, True]), st.booleans()
)
WORLDS = st.lists(st.tuples(st.lists(OPS, min_size=1, max_size=4), st.booleans()), max_size=12)


@pytest.fixture(scope="module")
def pki() -> Iterator[Path]:
    """One for all worlds: keys take longer to make than everything else."""
    with tempfile.TemporaryDirectory() as directory:
        yield Path(directory)


def found(ctx: Context, plural: str, group: str = "", version: str = "v1") -> Resource:
    resource = ctx.registry.find(group, version, plural)
    assert resource is not None
    return resource


def run(ctx: Context, op: Op) -> None:
    services = found(ctx, "services")
    target = Target(services, "default", op.name)
    meta: dict[str, Any] = {"name": op.name}
    if op.held:
        meta["finalizers"] = ["example.com/hold"]
    body = {"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": op.spec}

    def merged(current: dict[str, Any]) -> dict[str, Any]:
        return {**current, "spec": {**current["spec"], **op.spec}}

    def released(current: dict[str, Any]) -> dict[str, Any]:
        current["metadata"].pop("finalizers", None)
        return {**current, "spec": {**current["spec"], **op.spec}}

    changes = {"replace": lambda _: body, "merge": merged, "let-go": released}
    if op.verb == "create":
        pipeline.create(ctx, Target(services, "default"), body, ADMIN, dry_run=op.dry_run)
    elif op.verb == "delete":
        deletion.delete(ctx, target, DeleteOptions(), ADMIN, dry_run=op.dry_run)
    elif op.verb == "address":
        by_hand(ctx, op)
    else:
        pipeline.update(ctx, target, changes[op.verb], ADMIN, dry_run=op.dry_run)


def by_hand(ctx: Context, op: Op) -> None:
    """Somebody else's IPAddress comes, or goes."""
    addresses = found(ctx, "ipaddresses", "networking.k8s.io")
    parent = {"group": "example.com", "resource": "lbs", "name": op.name}
    body = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "IPAddress",
        "metadata": {"name": "10.9.0.5"},
        "spec": {"parentRef": parent},
    }
    if op.held:
        pipeline.create(ctx, Target(addresses), body, ADMIN, dry_run=op.dry_run)
    elif ctx.latest(addresses, "", "10.9.0.5") is not None and not mine(ctx, "10.9.0.5"):
        target = Target(addresses, "", "10.9.0.5")
        deletion.delete(ctx, target, DeleteOptions(), ADMIN, dry_run=op.dry_run)


def mine(ctx: Context, name: str) -> bool:
    return ip_address(name) in ctx.addresses.addresses.by


def check(ctx: Context) -> None:
    table: Table = ctx.builtin_table("", "v1", "services")
    held: dict[Any, Key] = {}
    ports: dict[int, Key] = {}
    for record in table.snapshot():
        spec = record.object()["spec"]
        for text in addresses_of(spec):
            assert held.setdefault(ip_address(text), record.key) == record.key
        for port in ports_of(spec):
            assert ports.setdefault(port, record.key) == record.key
        if spec["type"] != "ExternalName":
            assert set(spec["ipFamilies"]) <= FAMILIES
            headless = spec["clusterIPs"] == ["None"]
            assert headless or len(spec["clusterIPs"]) == len(spec["ipFamilies"])
            assert spec["clusterIP"] == spec["clusterIPs"][0]
    assert ctx.addresses.addresses.by == held
    assert ctx.addresses.ports.by == ports
    named = {}
    for record in ctx.builtin_table("networking.k8s.io", "v1", "ipaddresses").snapshot():
        parent = record.object()["spec"]["parentRef"]
        if parent.get("resource") == "services":
            named[ip_address(record.key.name)] = Key(parent["namespace"], parent["name"])
    assert named == held


async def live(world: list[tuple[list[Op], bool]], pki: Path) -> None:
    with tempfile.TemporaryDirectory() as directory:
        config = ServerConfig(Path(directory) / "store.db", pki, service_cidrs=RANGES)
        async with ApiServer(config) as server:
            ctx = server.context
            check(ctx)
            for batch, refused in world:
                if refused:
                    ctx.store._db.execute("PRAGMA query_only = 1")
                for op in batch:
                    with contextlib.suppress(ApiError):
                        run(ctx, op)
                with contextlib.suppress(ApiError):
                    await ctx.store.committed()
                ctx.store._db.execute("PRAGMA query_only = 0")
                check(ctx)
            holds = dict(ctx.addresses.addresses.by), dict(ctx.addresses.ports.by)
        async with ApiServer(config) as server:
            pool = server.context.addresses
            assert (pool.addresses.by, pool.ports.by) == holds, "a restart reads the same"


@given(WORLDS)
def test_nothing_is_held_twice_or_left_over(pki: Path, world: list[tuple[list[Op], bool]]) -> None:
    asyncio.run(live(world, pki))
