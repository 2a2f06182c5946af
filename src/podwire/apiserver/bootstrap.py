"""What a cluster has from its first moment: namespaces, its Service and ServiceCIDR, priority
classes, and the definitions of the cluster's network policies."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from podwire.apiserver import pipeline
from podwire.apiserver.authn import ADMIN
from podwire.apiserver.context import Context
from podwire.apiserver.definitions import DEFINITIONS, definition
from podwire.apiserver.ownservice import ensure_own_service
from podwire.apiserver.request import Target
from podwire.apiserver.service_allocation import DEFAULT_CIDR
from podwire.apiserver.store import Event, Record
from podwire.apiserver.strategy import now_text
from podwire.objects.meta import JsonObject, Key

NAMESPACES = ("default", "kube-system", "kube-public", "kube-node-lease")
_CRDS = ("apiextensions.k8s.io", "v1", "customresourcedefinitions")
_SERVICE_CIDRS = ("networking.k8s.io", "v1", "servicecidrs")
_LOG = logging.getLogger(__name__)


def _priority_class(name: str, value: int) -> JsonObject:
    return {"metadata": {"name": name}, "value": value, "preemptionPolicy": "PreemptLowerPriority"}


async def bootstrap(ctx: Context) -> None:
    """Create what is missing; a second start changes nothing."""
    for name in NAMESPACES:
        _ensure(ctx, ("", "v1", "namespaces"), "", {"metadata": {"name": name}})
    ensure_service_cidr(ctx)
    await ctx.store.committed()
    ensure_own_service(ctx)
    for name, value in (
        ("system-cluster-critical", 2_000_000_000),
        ("system-node-critical", 2_000_001_000),
    ):
        _ensure(
            ctx, ("scheduling.k8s.io", "v1", "priorityclasses"), "", _priority_class(name, value)
        )
    # Created where there are none and never written over: upstream's own, applied by a user, take
    # their place.
    for plural in DEFINITIONS:
        _ensure(ctx, _CRDS, "", definition(plural))
    await ctx.store.committed()
    ctx.ready = True


def keep_service_cidr(ctx: Context) -> None:
    """Make the cluster's own ServiceCIDR again when it is deleted."""
    loop = asyncio.get_running_loop()
    own = Key("", DEFAULT_CIDR)

    def hear(events: list[Event]) -> None:
        if any(event.type == "DELETED" and event.record.key == own for event in events):
            loop.call_soon(ensure_service_cidr, ctx)

    ctx.builtin_table(*_SERVICE_CIDRS).listeners.append(hear)


def ensure_service_cidr(ctx: Context) -> None:
    """The ServiceCIDR of the cluster's own ranges, ready from the start.

    One family more than it has is added; other differences are told, as upstream does
    (pkg/controlplane/controller/defaultservicecidr).
    """
    cidrs = [str(network) for network in ctx.service_cidrs]
    ready = {
        "type": "Ready",
        "status": "True",
        "lastTransitionTime": now_text(),
        "reason": "",
        "message": "Kubernetes default Service CIDR is ready",
    }
    where = _SERVICE_CIDRS
    fresh = {
        "metadata": {"name": DEFAULT_CIDR},
        "spec": {"cidrs": cidrs},
        "status": {"conditions": [ready]},
    }
    found = _ensure(ctx, where, "", fresh)
    if found is None or found.deleting:
        return
    obj = found.object()
    stored = obj["spec"]["cidrs"]
    if len(cidrs) == 2 and stored == cidrs[:1]:
        obj["spec"]["cidrs"] = cidrs
    elif stored != cidrs:
        _LOG.warning("ServiceCIDR %s: has %s, this server has %s", DEFAULT_CIDR, stored, cidrs)
        return
    conditions = obj.setdefault("status", {}).setdefault("conditions", [])
    if not any(each.get("type") == "Ready" for each in conditions):
        conditions.append(ready)
    if obj != found.object():
        ctx.store.stage_put(ctx.builtin_table(*where), obj)


def _ensure(
    ctx: Context, where: tuple[str, str, str], namespace: str, obj: dict[str, Any]
) -> Record | None:
    """Create it; what is there already is returned."""
    resource = ctx.registry.find(*where)
    assert resource is not None
    name = obj["metadata"]["name"]
    found = ctx.store.latest(ctx.table(resource), Key(namespace, name))
    if found is not None:
        return found
    typed = {"apiVersion": resource.api_version, "kind": resource.kind, **obj}
    pipeline.create(ctx, Target(resource, namespace), typed, ADMIN, dry_run=False)
    return None
