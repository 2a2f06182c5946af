"""Creating and deleting pods for an owner, with expectations against stale caches.

A controller that has just written must not plan again on a cache that does not show it yet. Every
write is therefore expected by name (creations) or uid (deletions) until the informer reports it;
while anything is expected, the owner's pods are left alone. Names are chosen here, not by the
server, so that the expectation exists before the request is sent.
Source: pkg/controller/controller_utils.go (UIDTrackingControllerExpectations).
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import msgspec

from podwire.client import Change
from podwire.controllers.cluster import Cluster
from podwire.controllers.views import POD_WRITE, Pod, raw
from podwire.errors import AlreadyExistsError, ApiError, ForbiddenError, NotFoundError
from podwire.objects.meta import JsonObject, Key, Kind, Object, OwnerReference

# Upstream's rand.String alphabet: no vowels, no look-alikes.
_ALPHABET = "bcdfghjklmnpqrstvwxz2456789"
_MAX_PREFIX = 58
# A lost watch event must not block an owner for ever (ExpectationsTimeout is 5 minutes upstream).
_EXPIRE_S = 60.0


def random_name(prefix: str) -> str:
    """What a server makes of `generateName`."""
    return prefix[:_MAX_PREFIX] + "".join(secrets.choice(_ALPHABET) for _ in range(5))


@dataclass
class _Expected:
    created: set[Key] = field(default_factory=set)
    deleted: set[str] = field(default_factory=set)
    since: float = 0.0


class Expectations:
    """Writes not yet seen, by owner uid."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._owners: dict[str, _Expected] = {}
        self._clock = clock

    def expect_created(self, owner: str, key: Key) -> None:
        expected = self._owners.setdefault(owner, _Expected())
        expected.created.add(key)
        expected.since = self._clock()

    def expect_deleted(self, owner: str, uid: str) -> None:
        expected = self._owners.setdefault(owner, _Expected())
        expected.deleted.add(uid)
        expected.since = self._clock()

    def created(self, owner: str, key: Key) -> None:
        expected = self._owners.get(owner)
        if expected is not None:
            expected.created.discard(key)
            self._clean(owner, expected)

    def deleted(self, owner: str, uid: str) -> None:
        expected = self._owners.get(owner)
        if expected is not None:
            expected.deleted.discard(uid)
            self._clean(owner, expected)

    def forget(self, owner: str) -> None:
        self._owners.pop(owner, None)

    def pending_s(self, owner: str) -> float | None:
        """None when everything expected was seen, else seconds until the wait is given up."""
        expected = self._owners.get(owner)
        if expected is None:
            return None
        left = expected.since + _EXPIRE_S - self._clock()
        if left <= 0:
            del self._owners[owner]
            return None
        return left

    def observe(self, owner: str, change: Change[Pod]) -> None:
        if owner not in self._owners:
            return
        pod = change.new or change.old
        assert pod is not None
        self.created(owner, pod.key)
        if change.new is None or pod.deleting:
            self.deleted(owner, pod.metadata.uid)

    def _clean(self, owner: str, expected: _Expected) -> None:
        if not expected.created and not expected.deleted:
            self._owners.pop(owner, None)


@dataclass(frozen=True)
class Owner:
    """Whoever creates pods: its reference, and where its events go."""

    kind: Kind[Any]
    obj: Object
    component: str

    @property
    def uid(self) -> str:
        return self.obj.metadata.uid

    def reference(self) -> JsonObject:
        return controller_ref(self.kind, self.obj)


def controller_ref(kind: Kind[Any], obj: Object) -> JsonObject:
    return {
        "apiVersion": kind.api_version,
        "kind": kind.kind,
        "name": obj.metadata.name,
        "uid": obj.metadata.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }


class PodTemplate:
    """A pod template prepared for many pods: its spec is encoded once."""

    def __init__(self, template: Mapping[str, Any], owner: Owner) -> None:
        meta = template.get("metadata") or {}
        self._meta = {
            "namespace": owner.obj.metadata.namespace,
            "labels": meta.get("labels") or {},
            "ownerReferences": [owner.reference()],
        }
        for name in ("annotations", "finalizers"):
            if meta.get(name):
                self._meta[name] = meta[name]
        self._spec = msgspec.Raw(msgspec.json.encode(template.get("spec") or {}))

    def named(self, name: str) -> JsonObject:
        return {"metadata": {**self._meta, "name": name}, "spec": self._spec}

    def generated(self, prefix: str) -> JsonObject:
        meta = {**self._meta, "name": random_name(prefix), "generateName": prefix}
        return {"metadata": meta, "spec": self._spec}


class PodControl:
    """Applies pod creations and deletions; at most `write_limit` are in flight."""

    def __init__(self, cluster: Cluster, expectations: Expectations) -> None:
        self._cluster = cluster
        self._expectations = expectations

    async def create(self, owner: Owner, bodies: Sequence[JsonObject]) -> ApiError | None:
        """Create all; the first refusal stops the rest, is reported and returned."""
        pending = iter(bodies)
        failed: list[ApiError] = []
        workers = min(len(bodies), self._cluster.config.write_limit)
        if workers == 1:
            await self._create_some(owner, pending, failed)
        else:
            async with asyncio.TaskGroup() as group:
                for _ in range(workers):
                    group.create_task(self._create_some(owner, pending, failed))
        if not failed:
            return None
        self._report(owner, failed[0])
        return failed[0]

    async def create_all(self, owner: Owner, bodies: Sequence[JsonObject]) -> None:
        """`create`, raising what was refused, unless the whole namespace is on its way out."""
        error = await self.create(owner, bodies)
        if error is not None and not is_namespace_going(error):
            raise error

    async def _create_some(
        self, owner: Owner, pending: Iterator[JsonObject], failed: list[ApiError]
    ) -> None:
        for body in pending:
            if failed:
                return
            try:
                async with self._cluster.pod_writes:
                    await self._create_one(owner, body)
            except ApiError as error:
                failed.append(error)
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                failed.append(ApiError(f"pod creation: {error}", code=503))

    async def _create_one(self, owner: Owner, body: JsonObject) -> None:
        meta = body["metadata"]
        key = Key(meta["namespace"], meta["name"])
        self._expectations.expect_created(owner.uid, key)
        try:
            await self._cluster.api.create(POD_WRITE, body, key.namespace)
        except AlreadyExistsError:
            self._expectations.created(owner.uid, key)
            if "generateName" not in meta:
                raise
            await self._create_one(
                owner, {**body, "metadata": {**meta, "name": random_name(meta["generateName"])}}
            )
            return
        except BaseException:
            self._expectations.created(owner.uid, key)
            raise
        self._say(owner, "Normal", "SuccessfulCreate", f"Created pod: {key.name}")

    def _report(self, owner: Owner, error: ApiError) -> None:
        if is_namespace_going(error):
            return
        self._say(owner, "Warning", "FailedCreate", f"Error creating: {error.message}")

    async def delete(self, owner: Owner, pods: Sequence[Pod]) -> None:
        """Delete all; raises the first failure after having tried every one."""
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._delete_one(owner, pod)) for pod in pods]
        for task in tasks:
            error = task.result()
            if error is not None:
                raise error

    async def _delete_one(self, owner: Owner, pod: Pod) -> Exception | None:
        meta = pod.metadata
        self._expectations.expect_deleted(owner.uid, meta.uid)
        try:
            async with self._cluster.pod_writes:
                await self._cluster.api.delete(POD_WRITE, meta.name, meta.namespace, uid=meta.uid)
        except NotFoundError:
            self._expectations.deleted(owner.uid, meta.uid)
        except (ApiError, aiohttp.ClientError, OSError, TimeoutError) as error:
            self._expectations.deleted(owner.uid, meta.uid)
            self._say(owner, "Warning", "FailedDelete", f"Error deleting: {error}")
            return error
        else:
            self._say(owner, "Normal", "SuccessfulDelete", f"Deleted pod: {meta.name}")
        return None

    def _say(self, owner: Owner, event_type: str, reason: str, message: str) -> None:
        self._cluster.events.say(
            owner.component, owner.kind, owner.obj, event_type, reason, message
        )


def is_namespace_going(error: ApiError) -> bool:
    """Creation refused because the namespace is being deleted: nobody needs to be told."""
    return isinstance(error, ForbiddenError) and (
        any(cause.reason == "NamespaceTerminating" for cause in error.causes)
        or "being terminated" in error.message
    )


def with_controller(refs: Sequence[OwnerReference], owner: JsonObject) -> list[JsonObject]:
    return [*(raw(ref) for ref in refs if ref.uid != owner["uid"]), owner]


def without_owner(refs: Sequence[OwnerReference], uid: str) -> list[JsonObject]:
    return [raw(ref) for ref in refs if ref.uid != uid]
