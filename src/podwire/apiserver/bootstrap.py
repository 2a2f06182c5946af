"""What a cluster has from its first moment: namespaces, its Service and ServiceCIDR, priority
classes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from podwire.apiserver import pipeline
from podwire.apiserver.authn import ADMIN
from podwire.apiserver.context import Context
from podwire.apiserver.request import Target
from podwire.apiserver.service_allocation import DEFAULT_CIDR
from podwire.apiserver.store import Event, Record
from podwire.apiserver.strategy import now_text
from podwire.errors import InvalidError
from podwire.objects.meta import JsonObject, Key

NAMESPACES = ("default", "kube-system", "kube-public", "kube-node-lease")
API_PORT = 6443
SERVICE = Key("default", "kubernetes")
Ensure = Callable[[Context], None]
_NETWORKING = "networking.k8s.io"
_LOG = logging.getLogger(__name__)


def _priority_class(name: str, value: int) -> JsonObject:
    return {"metadata": {"name": name}, "value": value, "preemptionPolicy": "PreemptLowerPriority"}


async def bootstrap(ctx: Context) -> None:
    """Create what is missing; a second start changes nothing."""
    for name in NAMESPACES:
        _ensure(ctx, ("", "v1", "namespaces"), "", {"metadata": {"name": name}})
    ensure_service_cidr(ctx)
    await ctx.store.committed()
    _ensure_service(ctx)
    for name, value in (
        ("system-cluster-critical", 2_000_000_000),
        ("system-node-critical", 2_000_001_000),
    ):
        _ensure(
            ctx, ("scheduling.k8s.io", "v1", "priorityclasses"), "", _priority_class(name, value)
        )
    await ctx.store.committed()
    ctx.ready = True


def keep(ctx: Context) -> None:
    """Make the cluster's own Service and ServiceCIDR again when they are deleted.

    `kubectl delete all --all` is enough for the Service.
    """
    loop = asyncio.get_running_loop()
    rows = (
        (("", "v1", "services"), SERVICE, _ensure_service),
        ((_NETWORKING, "v1", "servicecidrs"), Key("", DEFAULT_CIDR), ensure_service_cidr),
    )
    for where, key, ensure in rows:

        def hear(events: list[Event], key: Key = key, ensure: Ensure = ensure) -> None:
            if any(event.type == "DELETED" and event.record.key == key for event in events):
                loop.call_soon(ensure, ctx)

        ctx.builtin_table(*where).listeners.append(hear)


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
    where, name = (_NETWORKING, "v1", "servicecidrs"), {"name": DEFAULT_CIDR}
    fresh = {"metadata": name, "spec": {"cidrs": cidrs}, "status": {"conditions": [ready]}}
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


def _ensure_service(ctx: Context) -> None:
    address = str(ctx.service_cidrs[0].network_address + 1)
    try:
        _ensure(ctx, ("", "v1", "services"), SERVICE.namespace, _kubernetes(address))
    except InvalidError as error:
        # Somebody else has its address; everything but this Service works.
        _LOG.error("service default/kubernetes: %s", error)


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
