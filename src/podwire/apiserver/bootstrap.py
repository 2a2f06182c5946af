"""What a cluster has from its first moment: four namespaces, its own Service, priority classes."""

from __future__ import annotations

import asyncio
from typing import Any

from podwire.apiserver import pipeline
from podwire.apiserver.authn import ADMIN
from podwire.apiserver.context import Context
from podwire.apiserver.request import Target
from podwire.apiserver.store import Event
from podwire.errors import AlreadyExistsError
from podwire.objects.meta import JsonObject, Key

NAMESPACES = ("default", "kube-system", "kube-public", "kube-node-lease")
API_PORT = 6443
SERVICE = Key("default", "kubernetes")


def _priority_class(name: str, value: int) -> JsonObject:
    return {"metadata": {"name": name}, "value": value, "preemptionPolicy": "PreemptLowerPriority"}


async def bootstrap(ctx: Context) -> None:
    """Create what is missing; a second start changes nothing."""
    for name in NAMESPACES:
        _ensure(ctx, ("", "v1", "namespaces"), "", {"metadata": {"name": name}})
    await ctx.store.committed()
    _ensure_service(ctx)
    for name, value in (
        ("system-cluster-critical", 2_000_000_000),
        ("system-node-critical", 2_000_001_000),
    ):
        _ensure(
            ctx, ("scheduling.k8s.io", "v1", "priorityclasses"), "", _priority_class(name, value)
        )
    spec = {"cidrs": [str(network) for network in ctx.service_cidrs]}
    cidr = {"metadata": {"name": "kubernetes"}, "spec": spec}
    _ensure(ctx, ("networking.k8s.io", "v1", "servicecidrs"), "", cidr)
    await ctx.store.committed()
    ctx.ready = True


def keep_service(ctx: Context) -> None:
    """Make the cluster's own Service again when it is deleted (`kubectl delete all --all`)."""
    loop = asyncio.get_running_loop()

    def hear(events: list[Event]) -> None:
        if any(event.type == "DELETED" and event.record.key == SERVICE for event in events):
            loop.call_soon(_ensure_service, ctx)

    ctx.builtin_table("", "v1", "services").listeners.append(hear)


def _ensure_service(ctx: Context) -> None:
    address = str(ctx.service_cidrs[0].network_address + 1)
    _ensure(ctx, ("", "v1", "services"), SERVICE.namespace, _kubernetes(address))


def _kubernetes(address: str) -> JsonObject:
    port = {"name": "https", "port": 443, "protocol": "TCP", "targetPort": API_PORT}
    labels = {"component": "apiserver", "provider": "kubernetes"}
    return {
        "metadata": {"name": SERVICE.name, "labels": labels},
        "spec": {
            "type": "ClusterIP",
            "clusterIP": address,
            "clusterIPs": [address],
            "ports": [port],
            "sessionAffinity": "None",
        },
    }


def _ensure(ctx: Context, where: tuple[str, str, str], namespace: str, obj: dict[str, Any]) -> None:
    resource = ctx.registry.find(*where)
    assert resource is not None
    name = obj["metadata"]["name"]
    if ctx.store.latest(ctx.table(resource), Key(namespace, name)) is not None:
        return
    typed = {"apiVersion": resource.api_version, "kind": resource.kind, **obj}
    try:
        pipeline.create(ctx, Target(resource, namespace), typed, ADMIN, dry_run=False)
    except AlreadyExistsError:
        return
