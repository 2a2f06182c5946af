"""The garbage collector: objects go when their owners are gone.

    metadata of every kind -> OwnerGraph -> queue of uids whose situation changed
        owner absent (checked live)      -> delete, or drop the dangling reference
        owner waits (foregroundDeletion) -> its dependents go first, then its finalizer
        owner orphans (orphan finalizer) -> its dependents lose the reference, then its finalizer

Source: pkg/controller/garbagecollector.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import Any

import aiohttp

from podwire.client import Change, WorkQueue
from podwire.controllers.cluster import Cluster
from podwire.controllers.discovery import Served, discover
from podwire.controllers.podcontrol import without_owner
from podwire.errors import ApiError, NotFoundError
from podwire.objects.meta import JsonObject, Kind, Object, OwnerReference

_LOG = logging.getLogger(__name__)
_COMPONENT = "garbage-collector-controller"
FOREGROUND, ORPHAN = "foregroundDeletion", "orphan"
_DISCOVER_S = 0.1
_CRD = ("apiextensions.k8s.io", "customresourcedefinitions")
# Written often, own nothing, owned by nothing.
_IGNORED = frozenset((("", "events"), ("events.k8s.io", "events")))
_NEEDED = frozenset(("list", "watch", "delete"))


@dataclass(frozen=True)
class Item:
    """One object in the graph."""

    kind: Kind[Any]
    obj: Object

    @property
    def uid(self) -> str:
        return self.obj.metadata.uid

    @property
    def waits(self) -> bool:
        """Being deleted in the foreground: it waits for its dependents."""
        return self.obj.deleting and FOREGROUND in self.obj.metadata.finalizers

    @property
    def orphans(self) -> bool:
        return self.obj.deleting and ORPHAN in self.obj.metadata.finalizers


class OwnerGraph:
    """Who owns whom, by uid; tells which items a change concerns."""

    def __init__(self) -> None:
        self.items: dict[str, Item] = {}
        self._dependents: dict[str, set[str]] = {}

    def dependents(self, uid: str) -> list[Item]:
        return [self.items[d] for d in self._dependents.get(uid, ()) if d in self.items]

    def unresolved(self) -> list[str]:
        """Uids of items with an owner that the graph does not show."""
        return [
            uid
            for owner, uids in self._dependents.items()
            if owner not in self.items
            for uid in uids
        ]

    def apply(self, kind: Kind[Any], change: Change[Any]) -> set[str]:
        """Take in a change; the uids to look at."""
        if change.new is None:
            assert change.old is not None
            return self._remove(change.old)
        return self._set(Item(kind, change.new))

    def _set(self, item: Item) -> set[str]:
        uid = item.uid
        old = self.items.get(uid)
        self.items[uid] = item
        refs = item.obj.metadata.owner_references
        before = old.obj.metadata.owner_references if old else []
        due: set[str] = set()
        if refs != before:
            for ref in before:
                self._unlink(ref.uid, uid)
            for ref in refs:
                self._dependents.setdefault(ref.uid, set()).add(uid)
            due = self._concerned(item, refs)
            # An owner that waits for this dependent may wait no longer.
            due |= {ref.uid for ref in before if self._waiting(ref.uid)}
        if (item.waits or item.orphans) and not (old and (old.waits or old.orphans)):
            due.add(uid)
        return due

    def _concerned(self, item: Item, refs: list[OwnerReference]) -> set[str]:
        for ref in refs:
            owner = self.items.get(ref.uid)
            if owner is None or owner.waits or not same_place(item, owner, ref):
                return {item.uid}
        return set()

    def _waiting(self, uid: str) -> bool:
        owner = self.items.get(uid)
        return owner is not None and owner.waits

    def _remove(self, obj: Object) -> set[str]:
        uid = obj.metadata.uid
        item = self.items.pop(uid, None)
        due = set(self._dependents.get(uid, ()))
        for ref in item.obj.metadata.owner_references if item else ():
            self._unlink(ref.uid, uid)
            if self._waiting(ref.uid):
                due.add(ref.uid)
        return due

    def _unlink(self, owner: str, dependent: str) -> None:
        links = self._dependents.get(owner)
        if links is not None:
            links.discard(dependent)
            if not links:
                del self._dependents[owner]


def same_place(item: Item, owner: Item, ref: OwnerReference) -> bool:
    """Whether the reference names that owner where owners may be: own namespace or cluster."""
    meta = owner.obj.metadata
    return meta.name == ref.name and meta.namespace in ("", item.obj.metadata.namespace)


def propagation(obj: Object) -> str:
    if ORPHAN in obj.metadata.finalizers:
        return "Orphan"
    return "Foreground" if FOREGROUND in obj.metadata.finalizers else "Background"


class GarbageCollector:
    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._graph = OwnerGraph()
        self._queue: WorkQueue[str] = WorkQueue(_COMPONENT, self._reconcile, workers=32)
        self._watched: dict[tuple[str, str], Kind[Any]] = {}
        self._rediscover = asyncio.Event()
        for served in cluster.resources.served:
            if _collectable(served):
                self._watch(served.kind)

    def _watch(self, kind: Kind[Any]) -> None:
        where = (kind.group, kind.plural)
        self._watched[where] = kind

        def changed(change: Change[Any]) -> None:
            for uid in self._graph.apply(kind, change):
                self._queue.add(uid)
            if where == _CRD:
                self._rediscover.set()

        self._cluster.informer(kind).on_change(changed)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._queue.run())
            while True:
                await self._rediscover.wait()
                await asyncio.sleep(_DISCOVER_S)
                self._rediscover.clear()
                try:
                    await self._follow_kinds(group)
                except (ApiError, aiohttp.ClientError, OSError, TimeoutError) as error:
                    _LOG.info("discovery: %s; retrying", error)
                    self._rediscover.set()

    async def _follow_kinds(self, group: asyncio.TaskGroup) -> None:
        resources = await discover(self._cluster.api)
        self._cluster.resources = resources
        served = {(s.kind.group, s.kind.plural): s for s in resources.served if _collectable(s)}
        for where in [w for w in self._watched if w not in served]:
            self._cluster.forget(self._watched.pop(where))
        for where, one in served.items():
            if where not in self._watched:
                self._watch(one.kind)
        group.create_task(self._follow_new(group))

    async def _follow_new(self, group: asyncio.TaskGroup) -> None:
        """Watch new kinds; owners of such kinds could not be judged before."""
        await self._cluster.follow(group)
        for uid in self._graph.unresolved():
            self._queue.add(uid)

    # --- one item ---

    async def _reconcile(self, uid: str) -> None:
        item = self._graph.items.get(uid)
        if item is None:
            return
        if item.orphans:
            await self._orphan(item)
        elif item.waits:
            await self._wait_for_dependents(item)
        elif not item.obj.deleting and item.obj.metadata.owner_references:
            await self._collect(item)

    async def _collect(self, item: Item) -> None:
        solid: list[OwnerReference] = []
        waiting: list[OwnerReference] = []
        dangling: list[OwnerReference] = []
        for ref in item.obj.metadata.owner_references:
            owner = self._graph.items.get(ref.uid)
            if owner is not None and same_place(item, owner, ref):
                (waiting if owner.waits else solid).append(ref)
            elif await self._exists(item, ref, owner):
                solid.append(ref)
            else:
                dangling.append(ref)
        gone = [*waiting, *dangling]
        if not gone:
            return
        if solid:
            refs = item.obj.metadata.owner_references
            for ref in gone:
                refs = [r for r in refs if r.uid != ref.uid]
            left = without_owner(refs, "")
            body = {"metadata": {"ownerReferences": left}}
            await self._cluster.patch(item.kind, item.obj, body, exact=True)
        elif waiting and self._graph.dependents(item.uid):
            await self._delete(item, "Foreground")
        else:
            await self._delete(item, propagation(item.obj))

    async def _exists(self, item: Item, ref: OwnerReference, elsewhere: Item | None) -> bool:
        """Ask the server for an owner the graph does not show."""
        group = ref.api_version.rpartition("/")[0]
        kind = self._cluster.resources.find(group, ref.kind)
        if kind is None:
            return True  # of a kind not served (any more): nothing can be said
        namespace = item.obj.metadata.namespace
        if kind.namespaced and (not namespace or elsewhere is not None):
            self._say_invalid(item, ref)
            if not namespace:
                return True
        try:
            found = await self._cluster.api.get(
                kind, ref.name, namespace if kind.namespaced else ""
            )
        except NotFoundError:
            return False
        return found.metadata.uid == ref.uid

    def _say_invalid(self, item: Item, ref: OwnerReference) -> None:
        text = (
            f"ownerRef [{ref.api_version}/{ref.kind}, namespace: "
            f"{item.obj.metadata.namespace}, name: {ref.name}, uid: {ref.uid}] does not exist "
            f"in namespace {item.obj.metadata.namespace!r}"
        )
        self._cluster.events.say(
            _COMPONENT, item.kind, item.obj, "Warning", "OwnerRefInvalidNamespace", text
        )

    async def _delete(self, item: Item, policy: str) -> None:
        """Delete exactly what was judged: a changed object is judged again."""
        meta = item.obj.metadata
        options: JsonObject = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "preconditions": {"uid": meta.uid, "resourceVersion": meta.resource_version},
            "propagationPolicy": policy,
        }
        path = item.kind.path(meta.namespace, meta.name)
        try:
            await self._cluster.api.request("DELETE", path, body=options)
        except NotFoundError:
            return

    async def _wait_for_dependents(self, item: Item) -> None:
        dependents = self._graph.dependents(item.uid)
        if any(_blocks(d, item.uid) for d in dependents):
            for dependent in dependents:
                self._queue.add(dependent.uid)
            return
        await self._drop_finalizer(item, FOREGROUND)

    async def _orphan(self, item: Item) -> None:
        for dependent in self._graph.dependents(item.uid):
            refs = without_owner(dependent.obj.metadata.owner_references, item.uid)
            body = {"metadata": {"ownerReferences": refs}}
            await self._cluster.patch(dependent.kind, dependent.obj, body, exact=True)
        await self._drop_finalizer(item, ORPHAN)

    async def _drop_finalizer(self, item: Item, finalizer: str) -> None:
        left = [f for f in item.obj.metadata.finalizers if f != finalizer]
        body = {"metadata": {"finalizers": left}}
        await self._cluster.patch(item.kind, item.obj, body, exact=True)


def _collectable(served: Served) -> bool:
    return served.verbs >= _NEEDED and (served.kind.group, served.kind.plural) not in _IGNORED


def _blocks(dependent: Item, owner: str) -> bool:
    return any(
        ref.uid == owner and ref.block_owner_deletion
        for ref in dependent.obj.metadata.owner_references
    )
