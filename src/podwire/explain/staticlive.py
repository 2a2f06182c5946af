"""A running cluster as `StaticWorld`: what policies say of it, without a packet."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from podwire.client import Api
from podwire.errors import NotFoundError, PolicyError
from podwire.explain.endpoints import Snapshot, declared_ports, owner_of
from podwire.explain.entries import KINDS, Entry, read_entries
from podwire.explain.live import read_snapshot
from podwire.explain.policies import list_policies
from podwire.explain.reach import Reachability, ReachOptions, plan_reach
from podwire.explain.staticmatrix import Judge, chosen_connections, describe, judge_plan
from podwire.explain.staticreach import StaticReach
from podwire.explain.staticworld import StaticWorld
from podwire.explain.workloads import Owner, Talker
from podwire.objects import kinds
from podwire.objects.core import Pod, Service
from podwire.objects.documents import Document
from podwire.objects.meta import Key, Kind, Object
from podwire.objects.policy import ClusterPolicy, NetworkPolicy
from podwire.policy.evaluate import DEFAULT, Semantics
from podwire.policy.model import Policy
from podwire.policy.parse import parse_network_policy
from podwire.policy.parse_cluster import parse_cluster_policy
from podwire.policy.staging import is_staged, stage_namespaces
from podwire.policy.world import make_world, view_namespace, view_node, view_pod

_ENTRY_PATHS: Final = {
    "Ingress": "/apis/networking.k8s.io/v1/ingresses",
    "HTTPRoute": "/apis/gateway.networking.k8s.io/v1/httproutes",
    "GRPCRoute": "/apis/gateway.networking.k8s.io/v1/grpcroutes",
}


async def reach_computed(
    api: Api, options: ReachOptions, semantics: Semantics = DEFAULT, version: int = 4
) -> tuple[Reachability, tuple[str, ...]]:
    """The questions `reach --live` asks, answered by the policies, and warnings."""
    snapshot, static = await read_static(api)
    families = {ip.version for talker in static.talkers for ip in talker.view.ips}
    # A cluster of one family has its connections in that one.
    reach = StaticReach(static, semantics, version if version in families else 10 - version)
    judge = Judge(static.world, static.policy_set, semantics)
    connections = [describe(found) for found in chosen_connections(reach, options)]
    return judge_plan(plan_reach(snapshot, options), judge, connections), static.warnings


async def read_static(api: Api) -> tuple[Snapshot, StaticWorld]:
    """Kinds the cluster does not serve have no objects; a policy that cannot be read is told."""
    warnings: list[str] = []
    snapshot, (services, _), found, entries = await asyncio.gather(
        read_snapshot(api), api.list(kinds.SERVICE), list_policies(api), _entries(api, warnings)
    )
    policies = _parse(found, warnings)
    return snapshot, make_static(snapshot, services, policies, entries, warnings)


def make_static(
    snapshot: Snapshot,
    services: Sequence[Service],
    policies: Sequence[Policy],
    entries: Sequence[Entry] = (),
    warnings: Sequence[str] = (),
) -> StaticWorld:
    talkers = [talker for pod in snapshot.pods if (talker := _talker(pod)) is not None]
    return StaticWorld(
        world=make_world(
            [talker.view for talker in talkers],
            dict(map(view_namespace, snapshot.namespaces)),
            map(view_node, snapshot.nodes),
        ),
        talkers=tuple(talkers),
        policies=stage_namespaces(
            policies,
            {n.metadata.name for n in snapshot.namespaces if is_staged(n.metadata.annotations)},
        ),
        services={service.key: service for service in services},
        entries=tuple(entries),
        warnings=tuple(warnings),
    )


def _talker(pod: Pod) -> Talker | None:
    view = view_pod(pod)
    if view is None:
        return None
    kind, _, name = (owner_of(pod) or f"Pod/{pod.metadata.name}").partition("/")
    return Talker(view, Owner(pod.metadata.namespace, kind, name), declared_ports(pod))


async def _entries(api: Api, warnings: list[str]) -> list[Entry]:
    found: list[Entry] = []
    for kind in sorted(_ENTRY_PATHS.keys() & KINDS):
        try:
            listing = msgspec.json.decode(await api.request("GET", _ENTRY_PATHS[kind]))
        except NotFoundError:
            continue
        for obj in listing.get("items") or ():
            key = Key(obj["metadata"]["namespace"], obj["metadata"]["name"])
            document = Document(f"{kind} {key}", {**obj, "kind": kind})
            found += read_entries(document, key.namespace, warnings)
    return found


def _parse(found: Sequence[tuple[Kind[Any], Object]], warnings: list[str]) -> list[Policy]:
    policies = []
    for kind, obj in found:
        try:
            if isinstance(obj, ClusterPolicy):
                # Items of a list do not repeat their kind.
                named = msgspec.structs.replace(obj, kind=kind.kind)
                policies.append(parse_cluster_policy(named))
            elif isinstance(obj, NetworkPolicy):
                policies.append(parse_network_policy(obj))
        except PolicyError as error:
            warnings.append(f"{error}; it is left out")
    return policies
