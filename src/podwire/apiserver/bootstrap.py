"""What a cluster has from its first moment: four namespaces, its own Service, priority classes."""

from __future__ import annotations

from typing import Any

from podwire.apiserver import pipeline
from podwire.apiserver.authn import ADMIN
from podwire.apiserver.context import Context
from podwire.apiserver.ownservice import ensure_own_service
from podwire.apiserver.request import Target
from podwire.errors import AlreadyExistsError
from podwire.objects.meta import JsonObject, Key

NAMESPACES = ("default", "kube-system", "kube-public", "kube-node-lease")


def _priority_class(name: str, value: int) -> JsonObject:
    return {"metadata": {"name": name}, "value": value, "preemptionPolicy": "PreemptLowerPriority"}


async def bootstrap(ctx: Context) -> None:
    """Create what is missing; a second start changes nothing."""
    for name in NAMESPACES:
        _ensure(ctx, ("", "v1", "namespaces"), "", {"metadata": {"name": name}})
    await ctx.store.committed()
    ensure_own_service(ctx)
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
