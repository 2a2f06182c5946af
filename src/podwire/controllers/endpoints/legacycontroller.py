"""core/v1 Endpoints as objects: written after the slices, given up with their Service.

Written from the members the slices were planned from, `endpoints_delay_s` later, so that a burst
of changes costs one write here, however many the slices took.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from podwire.client import WorkQueue
from podwire.controllers.cluster import Cluster
from podwire.controllers.endpoints.legacy import is_managed, plan_endpoints
from podwire.controllers.endpoints.members import Member
from podwire.controllers.endpoints.slices import render_changes
from podwire.controllers.latest import Latest
from podwire.controllers.podcontrol import is_namespace_going
from podwire.controllers.views import Pod, raw
from podwire.errors import AlreadyExistsError, ApiError, ConflictError, NotFoundError
from podwire.objects import kinds
from podwire.objects.core import Endpoints, Service
from podwire.objects.meta import JsonObject, Key

COMPONENT = "endpoint-controller"

Members = Callable[[Key, Service], list[tuple[Pod, Member]]]
Heard = Callable[[Endpoints | None, Endpoints | None], None]


class LegacyEndpoints:
    """`changed` is told of Endpoints somebody else wrote, before and after."""

    def __init__(self, cluster: Cluster, changed: Heard, members: Members) -> None:
        self._cluster = cluster
        self._tell = changed
        self._members = members
        self._services = cluster.informer(kinds.SERVICE).objects
        self._latest = Latest(cluster.informer(kinds.ENDPOINTS), self._changed)
        self._queue: WorkQueue[Key] = WorkQueue(COMPONENT, self._reconcile)
        self._triggers: dict[Key, str] = {}
        self._gone: set[Key] = set()
        """Services whose deletion was seen: their Endpoints go, whoever wrote them."""

    async def run_with(self, other: Coroutine[Any, Any, None]) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._queue.run())
            group.create_task(other)

    def get(self, key: Key) -> Endpoints | None:
        return self._latest.objects.get(key)

    def wake(self, key: Key, trigger: str) -> None:
        """The slices are written; `trigger` is of the last change that had one."""
        if trigger:
            self._triggers[key] = trigger
        self._queue.add_after(key, self._cluster.config.endpoints_delay_s)

    def service_gone(self, key: Key) -> None:
        self._gone.add(key)
        self._triggers.pop(key, None)
        self._queue.add(key)

    def _changed(self, old: Endpoints | None, new: Endpoints | None, news: bool) -> None:
        if not news:
            return
        self._tell(old, new)
        obj = new or old
        if obj is not None:
            self._queue.add_after(obj.key, self._cluster.config.foreign_delay_s)

    async def _reconcile(self, key: Key) -> None:
        service = self._services.get(key)
        existing = self.get(key)
        if service is None:
            await self._give_up(key, existing)
            return
        self._gone.discard(key)
        if not service.spec.selector or service.spec.type == "ExternalName":
            return
        trigger = self._triggers.get(key, "")
        wanted = plan_endpoints(service, self._members(key, service), existing, trigger)
        if wanted is not None:
            await self._write(key, service, existing, wanted)
        self._triggers.pop(key, None)

    async def _give_up(self, key: Key, existing: Endpoints | None) -> None:
        """Endpoints whose Service is gone. What was written by hand before its Service stays."""
        if existing is not None and (key in self._gone or is_managed(existing.metadata.labels)):
            call = self._cluster.delete(kinds.ENDPOINTS, existing)
            await self._latest.delete(existing, call)
        self._gone.discard(key)

    async def _write(
        self, key: Key, service: Service, existing: Endpoints | None, wanted: Endpoints
    ) -> None:
        api, kind = self._cluster.api, kinds.ENDPOINTS
        try:
            if existing is None:
                await self._latest.write(key, api.create(kind, raw(wanted)))
            else:
                body = render_patch(existing, wanted)
                call = api.patch(kind, key.name, body, key.namespace)
                await self._latest.write(key, call)
        except (AlreadyExistsError, NotFoundError) as error:
            raise ConflictError(f"endpoints {key}: created or deleted meanwhile") from error
        except ConflictError:
            raise
        except ApiError as error:
            if is_namespace_going(error):
                return
            verb = "Create" if existing is None else "Update"
            text = f"Failed to {verb.lower()} endpoint {key}: {error.message}"
            reason = f"FailedTo{verb}Endpoint"
            self._cluster.events.say(COMPONENT, kinds.SERVICE, service, "Warning", reason, text)
            raise


def render_patch(old: Endpoints, new: Endpoints) -> JsonObject:
    """The merge patch that makes `new` of `old` and fails if `old` is not what is there."""
    meta: JsonObject = {
        "uid": old.metadata.uid,
        "resourceVersion": old.metadata.resource_version,
    }
    body: JsonObject = {"metadata": meta}
    labels = render_changes(old.metadata.labels, new.metadata.labels)
    if labels:
        meta["labels"] = labels
    annotations = render_changes(old.metadata.annotations, new.metadata.annotations)
    if annotations:
        meta["annotations"] = annotations
    if old.subsets != new.subsets:
        body["subsets"] = [raw(subset) for subset in new.subsets] or None
    return body
