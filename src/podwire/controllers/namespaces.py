"""Namespaces: what each one gets when made, and emptying it when deleted.

    made:    `default` ServiceAccount, `kube-root-ca.crt` ConfigMap
    deleted: delete the collections of every kind (pods first) -> wait until the metadata graph
             shows nothing -> look once more at the server -> finalize

Source: pkg/controller/namespace/deletion, serviceaccounts_controller.go, rootcacertpublisher.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from podwire.client import Change, WorkQueue
from podwire.controllers.cluster import Cluster
from podwire.errors import AlreadyExistsError, ApiError, ForbiddenError, NotFoundError
from podwire.objects import kinds
from podwire.objects.core import ConfigMap, Namespace, ServiceAccount
from podwire.objects.meta import JsonObject, Key, Kind, Object

_LOG = logging.getLogger(__name__)
_FINALIZER = "kubernetes"
_ROOT_CA = "kube-root-ca.crt"
_RETRY_MIN_S, _RETRY_MAX_S = 0.05, 5.0


class NamespaceDefaults:
    """Makes and mends the two objects every namespace has."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._queue: WorkQueue[Key] = WorkQueue("namespace-defaults", self._reconcile)
        self._namespaces = cluster.informer(kinds.NAMESPACE).objects
        self._accounts = cluster.informer(kinds.SERVICE_ACCOUNT).objects
        self._maps = cluster.informer(kinds.CONFIG_MAP).objects
        cluster.informer(kinds.NAMESPACE).on_change(self._namespace_changed)
        cluster.informer(kinds.SERVICE_ACCOUNT).on_change(self._account_changed)
        cluster.informer(kinds.CONFIG_MAP).on_change(self._map_changed)

    async def run(self) -> None:
        await self._queue.run()

    def _namespace_changed(self, change: Change[Namespace]) -> None:
        if change.new is not None and change.old is None:
            self._queue.add(change.key)

    def _account_changed(self, change: Change[ServiceAccount]) -> None:
        if change.new is None and change.key.name == "default":
            self._queue.add(Key("", change.key.namespace))

    def _map_changed(self, change: Change[ConfigMap]) -> None:
        if change.key.name == _ROOT_CA and (change.new is None or change.old is not None):
            self._queue.add(Key("", change.key.namespace))

    async def _reconcile(self, key: Key) -> None:
        namespace = self._namespaces.get(key)
        if namespace is None or namespace.deleting:
            return
        try:
            if Key(key.name, "default") not in self._accounts:
                await self._create(kinds.SERVICE_ACCOUNT, key.name, "default", {})
            if self._cluster.config.ca_text:
                await self._ensure_ca(key.name)
        except ForbiddenError:
            return  # it is being deleted

    async def _ensure_ca(self, namespace: str) -> None:
        data = {"ca.crt": self._cluster.config.ca_text}
        found = self._maps.get(Key(namespace, _ROOT_CA))
        if found is None:
            await self._create(kinds.CONFIG_MAP, namespace, _ROOT_CA, {"data": data})
        elif found.data != data:
            await self._cluster.patch(kinds.CONFIG_MAP, found, {"data": data})

    async def _create(self, kind: Kind[Any], namespace: str, name: str, rest: JsonObject) -> None:
        body = {"metadata": {"name": name, "namespace": namespace}, **rest}
        try:
            await self._cluster.api.create(kind, body, namespace)
        except AlreadyExistsError:
            return


@dataclass
class _Left:
    """What is left of a namespace: instances by resource, and how many hold a finalizer."""

    instances: dict[str, int] = field(default_factory=dict)
    finalizers: Counter[str] = field(default_factory=Counter)


class NamespaceDeleter:
    """Empties namespaces that have a deletionTimestamp, then lets them go."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._queue: WorkQueue[Key] = WorkQueue("namespace-controller", self._reconcile)
        self._namespaces = cluster.informer(kinds.NAMESPACE).objects
        self._tries: dict[Key, int] = {}
        cluster.informer(kinds.NAMESPACE).on_change(self._changed)
        cluster.pods.on_change(self._pod_changed)

    async def run(self) -> None:
        await self._queue.run()

    def _changed(self, change: Change[Namespace]) -> None:
        if change.new is None:
            self._tries.pop(change.key, None)
        elif change.new.deleting and not (change.old and change.old.deleting):
            self._queue.add(change.key)

    def _pod_changed(self, change: Change[Any]) -> None:
        """The last pods leave by themselves, when their nodes have ended them."""
        if change.new is None:
            key = Key("", change.key.namespace)
            if key in self._tries:
                self._queue.add_after(key, self._cluster.config.settle_s)

    async def _reconcile(self, key: Key) -> float | None:
        namespace = self._namespaces.get(key)
        if namespace is None or not namespace.deleting:
            return None
        if _FINALIZER not in namespace.spec.finalizers:
            return None
        tries = self._tries[key] = self._tries.get(key, 0) + 1
        left = await self._empty(key.name)
        if not left.instances:
            await self._finalize(namespace)
            return None
        await self._report(namespace, left)
        return min(_RETRY_MIN_S * 2.0 ** min(tries, 10), _RETRY_MAX_S)

    async def _empty(self, namespace: str) -> _Left:
        """Ask for everything to be deleted; what is left then."""
        served = [
            s.kind
            for s in self._cluster.resources.served
            if s.kind.namespaced and {"list", "deletecollection"} <= s.verbs
        ]
        pods = [kind for kind in served if (kind.group, kind.plural) == ("", "pods")]
        others = [kind for kind in served if kind not in pods]
        left = _Left()
        # Owners and pods go in one sweep: a pod made by an owner in between is refused.
        for batch in (pods, others):
            remaining = await asyncio.gather(*(self._clear(kind, namespace) for kind in batch))
            for kind, items in zip(batch, remaining, strict=True):
                if items:
                    name = f"{kind.plural}.{kind.group}" if kind.group else kind.plural
                    left.instances[name] = len(items)
                    left.finalizers.update(f for item in items for f in item.metadata.finalizers)
        return left

    async def _clear(self, kind: Kind[Object], namespace: str) -> Sequence[Object]:
        try:
            items, _ = await self._cluster.api.list(kind, namespace)
            if any(not item.deleting for item in items):
                options = {"apiVersion": "v1", "kind": "DeleteOptions"}
                options["propagationPolicy"] = "Background"
                await self._cluster.api.request("DELETE", kind.path(namespace), body=options)
                items, _ = await self._cluster.api.list(kind, namespace)
        except (NotFoundError, ForbiddenError):
            return ()  # the kind went away meanwhile
        except ApiError as error:
            if error.code == 405:
                return ()
            raise
        return items

    async def _finalize(self, namespace: Namespace) -> None:
        api = self._cluster.api
        name = namespace.metadata.name
        try:
            body = await api.get_raw(kinds.NAMESPACE, name)
            if body["metadata"]["uid"] != namespace.metadata.uid:
                return
            finalizers = body.get("spec", {}).get("finalizers") or []
            body.setdefault("spec", {})["finalizers"] = [f for f in finalizers if f != _FINALIZER]
            path = kinds.NAMESPACE.path("", name, "finalize")
            await api.request("PUT", path, body=body)
        except NotFoundError:
            return

    async def _report(self, namespace: Namespace, left: _Left) -> None:
        body = {"conditions": remaining_conditions(left.instances, left.finalizers)}
        _LOG.debug("namespace %s: %s", namespace.metadata.name, body)
        await self._cluster.patch_status(kinds.NAMESPACE, namespace, body)


def remaining_conditions(
    instances: Mapping[str, int], finalizers: Mapping[str, int]
) -> list[JsonObject]:
    """Why a namespace does not go, in upstream's words: what is left, and who holds it."""
    left = ", ".join(f"{name} has {n} resource instances" for name, n in sorted(instances.items()))
    held = ", ".join(f"{name} in {n} resource instances" for name, n in sorted(finalizers.items()))
    content = {
        "type": "NamespaceContentRemaining",
        "status": "True",
        "reason": "SomeResourcesRemain",
        "message": f"Some resources are remaining: {left}",
    }
    if not held:
        return [content]
    return [
        content,
        {
            "type": "NamespaceFinalizersRemaining",
            "status": "True",
            "reason": "SomeFinalizersRemain",
            "message": f"Some content in the namespace has finalizers remaining: {held}",
        },
    ]
