"""The server's own Service: `kubernetes` in `default`, its Endpoints and its EndpointSlice.

    deleted or changed by anybody -> heard in the store's listeners -> put right in the next turn

The server keeps them itself, as kube-apiserver does, because nobody else knows its addresses.
Endpoints and slice exist only where there is an address to advertise. The label that keeps them
from being mirrored is upstream's. Source: pkg/controlplane/reconcilers (endpointsadapter.go),
pkg/controlplane/controller/kubernetesservice.
"""

from __future__ import annotations

import asyncio
import logging

from podwire.apiserver import pipeline
from podwire.apiserver.authn import ADMIN
from podwire.apiserver.context import Context
from podwire.apiserver.request import Target
from podwire.apiserver.store import Event
from podwire.errors import AlreadyExistsError, InvalidError
from podwire.objects.meta import JsonObject, Key

API_PORT = 6443
SERVICE = Key("default", "kubernetes")
_SERVICES = ("", "v1", "services")
_ENDPOINTS = ("", "v1", "endpoints")
_SLICES = ("discovery.k8s.io", "v1", "endpointslices")
_SERVICE_NAME = "kubernetes.io/service-name"
_SKIP_MIRROR = "endpointslice.kubernetes.io/skip-mirror"

Where = tuple[str, str, str]
_LOG = logging.getLogger(__name__)


def ensure_own_service(ctx: Context) -> None:
    """Create what is missing, put right what was changed."""
    address = str(ctx.service_cidrs[0].network_address + 1)
    _create(ctx, _SERVICES, _service(address))
    for where, wanted in _advertised(ctx):
        if not _create(ctx, where, wanted):
            _reset(ctx, where, wanted)


def keep_own_service(ctx: Context) -> None:
    """Do so again whenever one of them is deleted or changed (`kubectl delete all --all`)."""
    loop = asyncio.get_running_loop()

    def deleted(events: list[Event]) -> None:
        if any(event.type == "DELETED" and event.record.key == SERVICE for event in events):
            loop.call_soon(ensure_own_service, ctx)

    def changed(events: list[Event]) -> None:
        if any(event.record.key == SERVICE for event in events):
            loop.call_soon(ensure_own_service, ctx)

    ctx.builtin_table(*_SERVICES).listeners.append(deleted)
    for where in (_ENDPOINTS, _SLICES):
        ctx.builtin_table(*where).listeners.append(changed)


def _service(address: str) -> JsonObject:
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


def _advertised(ctx: Context) -> list[tuple[Where, JsonObject]]:
    """Endpoints and slice of the Service's own family, as they are to be."""
    family = ctx.service_cidrs[0].version
    mine = sorted(str(a) for a, _ in ctx.advertised if a.version == family)
    if not mine:
        return []
    number = next(port for a, port in ctx.advertised if a.version == family)
    port = {"name": "https", "port": number, "protocol": "TCP"}
    endpoints = {
        "metadata": {"name": SERVICE.name, "labels": {_SKIP_MIRROR: "true"}},
        "subsets": [{"addresses": [{"ip": ip} for ip in mine], "ports": [port]}],
    }
    piece = {
        "metadata": {"name": SERVICE.name, "labels": {_SERVICE_NAME: SERVICE.name}},
        "addressType": f"IPv{family}",
        "endpoints": [{"addresses": [ip], "conditions": {"ready": True}} for ip in mine],
        "ports": [port],
    }
    return [(_ENDPOINTS, endpoints), (_SLICES, piece)]


def _create(ctx: Context, where: Where, obj: JsonObject) -> bool:
    """Whether the object did not exist."""
    resource = ctx.registry.find(*where)
    assert resource is not None
    if ctx.store.latest(ctx.table(resource), SERVICE) is not None:
        return False
    typed = {"apiVersion": resource.api_version, "kind": resource.kind, **obj}
    target = Target(resource, SERVICE.namespace)
    try:
        pipeline.create(ctx, target, typed, ADMIN, dry_run=False)
    except AlreadyExistsError:
        return False
    except InvalidError as error:
        # Somebody else has its address; everything but this Service works.
        _LOG.error("%s %s: %s", resource.plural, SERVICE, error)
    return True


def _reset(ctx: Context, where: Where, wanted: JsonObject) -> None:
    resource = ctx.registry.find(*where)
    assert resource is not None
    record = ctx.latest(resource, SERVICE.namespace, SERVICE.name)
    assert record is not None
    found = record.object()
    if found.get("addressType") != wanted.get("addressType"):
        # Immutable: left by a server of the other family that used this store before.
        pipeline.remove(ctx, resource, found, dry_run=False)
        _create(ctx, where, wanted)
        return

    def change(obj: JsonObject) -> JsonObject:
        obj["metadata"]["labels"] = dict(wanted["metadata"]["labels"])
        return obj | {key: value for key, value in wanted.items() if key != "metadata"}

    target = Target(resource, SERVICE.namespace, SERVICE.name)
    pipeline.update(ctx, target, change, ADMIN, dry_run=False)
