"""What all controllers of the process share: one informer per kind, indexes, events, the clock.

Controllers take what they need from here when they are made; the manager then starts every
informer asked for, waits until all have listed, and only then lets the controllers work.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
from collections.abc import Callable
from typing import Any, cast

from podwire.client import Api, Informer, PatchType
from podwire.controllers.config import ControllerConfig
from podwire.controllers.discovery import Resources
from podwire.controllers.events import EventWriter
from podwire.controllers.index import NodePods, OwnerIndex
from podwire.controllers.views import POD, Pod
from podwire.errors import NotFoundError
from podwire.objects.meta import Key, Kind, Object, T


def utc_now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


class Cluster:
    """`now` is the clock; `resources` says what the server serves."""

    def __init__(
        self,
        api: Api,
        config: ControllerConfig,
        resources: Resources,
        now: Callable[[], dt.datetime] = utc_now,
    ) -> None:
        self.api = api
        self.config = config
        self.resources = resources
        self.now = now
        self.events = EventWriter(api, config.event_quiet_s)
        self._informers: dict[tuple[str, str], Informer[Any]] = {}
        self._following: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._owners: dict[tuple[str, str], OwnerIndex[Any]] = {}
        self._node_pods: NodePods | None = None
        # One budget for all pod writes of the process: the server is not helped by more.
        self.pod_writes = asyncio.Semaphore(config.write_limit)

    # --- observing ---

    async def follow(self, group: asyncio.TaskGroup) -> None:
        """Start every informer asked for so far that does not run yet; wait for their lists."""
        fresh = {w: i for w, i in self._informers.items() if w not in self._following}
        for where, informer in fresh.items():
            self._following[where] = group.create_task(informer.run())
        for informer in fresh.values():
            await informer.synced.wait()

    def informer(self, kind: Kind[T], *, optional: bool = False) -> Informer[T]:
        """The shared informer of `kind`; the first caller's view is everybody's.

        `optional`: a cluster may not serve it, and then has no objects of it.
        """
        where = (kind.group, kind.plural)
        found = self._informers.get(where)
        if found is None:
            found = self._informers[where] = Informer(self.api, kind, optional=optional)
        return found

    def forget(self, kind: Kind[Any]) -> None:
        """The kind is no longer served (its CustomResourceDefinition is gone)."""
        where = (kind.group, kind.plural)
        self._informers.pop(where, None)
        task = self._following.pop(where, None)
        if task is not None:
            task.cancel()

    def owned(self, kind: Kind[T]) -> OwnerIndex[T]:
        where = (kind.group, kind.plural)
        if where not in self._owners:
            self._owners[where] = OwnerIndex(self.informer(kind))
        return cast(OwnerIndex[T], self._owners[where])

    @property
    def pods(self) -> Informer[Pod]:
        return self.informer(POD)

    @property
    def node_pods(self) -> NodePods:
        if self._node_pods is None:
            self._node_pods = NodePods(self.pods)
        return self._node_pods

    def live(self, kind: Kind[T], key: Key, uid: str) -> T | None:
        """The object of that name if it is still the one with `uid`."""
        obj = self.informer(kind).objects.get(key)
        return obj if obj is not None and obj.metadata.uid == uid else None

    # --- acting ---

    async def patch_status(
        self, kind: Kind[Any], obj: Object, status: Any, patch_type: PatchType = PatchType.MERGE
    ) -> None:
        """Write part of the status; an object that is gone needs none."""
        meta = obj.metadata
        body = {"metadata": {"uid": meta.uid}, "status": status}
        with contextlib.suppress(NotFoundError):
            await self.api.patch(
                _bare(kind),
                meta.name,
                body,
                meta.namespace,
                subresource="status",
                patch_type=patch_type,
            )

    async def patch(
        self,
        kind: Kind[Any],
        obj: Object,
        body: dict[str, Any],
        patch_type: PatchType = PatchType.MERGE,
        *,
        exact: bool = False,
    ) -> Object | None:
        """Patch the object itself; `exact` fails with ConflictError if it changed meanwhile."""
        meta = obj.metadata
        metadata = {**body.get("metadata", {}), "uid": meta.uid}
        if exact:
            metadata["resourceVersion"] = meta.resource_version
        body = {**body, "metadata": metadata}
        try:
            return await self.api.patch(
                _bare(kind), meta.name, body, meta.namespace, patch_type=patch_type
            )
        except NotFoundError:
            return None

    async def delete(
        self,
        kind: Kind[Any],
        obj: Object,
        *,
        grace_period_s: int | None = None,
        propagation: str | None = None,
    ) -> None:
        """Delete this very object (by uid); it being gone already is success."""
        meta = obj.metadata
        with contextlib.suppress(NotFoundError):
            await self.api.delete(
                kind,
                meta.name,
                meta.namespace,
                grace_period_s=grace_period_s,
                uid=meta.uid,
                propagation=propagation,
            )


_BARE: dict[tuple[str, str], Kind[Object]] = {}


def _bare(kind: Kind[Any]) -> Kind[Object]:
    """The same kind with answers decoded to their metadata only."""
    where = (kind.group, kind.plural)
    if where not in _BARE:
        _BARE[where] = Kind(
            kind.group, kind.version, kind.kind, kind.plural, kind.namespaced, Object
        )
    return _BARE[where]
