"""EndpointSlices by the Service they name, and how a plan for them is written.

Every write names the uid and version it was planned on: whoever came in between makes it a
conflict, and the Service is planned again on what is there then.
"""

from __future__ import annotations

from collections.abc import Callable

from podwire.controllers.cluster import Cluster
from podwire.controllers.endpoints.slices import SlicePlan, render_create, render_patch
from podwire.controllers.latest import Latest
from podwire.controllers.podcontrol import random_name
from podwire.errors import ConflictError, NotFoundError
from podwire.objects import kinds
from podwire.objects.discovery import MANAGED_BY_LABEL, EndpointSlice
from podwire.objects.meta import Key


def _service_of(piece: EndpointSlice | None) -> Key | None:
    if piece is None or not piece.service_name:
        return None
    return Key(piece.metadata.namespace, piece.service_name)


class SliceStore:
    """`news` is told the Service whose slices somebody else changed."""

    def __init__(self, cluster: Cluster, news: Callable[[Key], None]) -> None:
        self._cluster = cluster
        self._news = news
        self._by_service: dict[Key, dict[Key, EndpointSlice]] = {}
        self._latest = Latest(cluster.informer(kinds.ENDPOINT_SLICE), self._changed)

    def of(self, service: Key, manager: str) -> list[EndpointSlice]:
        """The slices a controller manages for a Service."""
        return [
            piece
            for piece in self._by_service.get(service, {}).values()
            if piece.metadata.labels.get(MANAGED_BY_LABEL) == manager
        ]

    def _changed(self, old: EndpointSlice | None, new: EndpointSlice | None, news: bool) -> None:
        before, after = _service_of(old), _service_of(new)
        if before is not None and old is not None and (after != before or new is None):
            bucket = self._by_service[before]
            bucket.pop(old.key, None)
            if not bucket:
                del self._by_service[before]
        if after is not None and new is not None:
            self._by_service.setdefault(after, {})[new.key] = new
        if news:
            for service in {key for key in (before, after) if key is not None}:
                self._news(service)

    async def apply(self, plan: SlicePlan) -> None:
        """Creations, then updates, then deletions, one after the other: an endpoint appears in its
        new place before it leaves the old one. Raises `ConflictError` where the plan is stale."""
        for piece in plan.creates:
            await self._create(piece)
        for old, new in plan.updates:
            await self._update(old, new)
        for piece in plan.deletes:
            await self.delete(piece)

    async def _create(self, piece: EndpointSlice) -> None:
        body = render_create(piece)
        meta = piece.metadata
        # Named here, so that the answer can be told from what others create.
        name = body["metadata"]["name"] = random_name(meta.generate_name)
        call = self._cluster.api.create(kinds.ENDPOINT_SLICE, body)
        await self._latest.write(Key(meta.namespace, name), call)

    async def _update(self, old: EndpointSlice, new: EndpointSlice) -> None:
        meta, kind = old.metadata, kinds.ENDPOINT_SLICE
        call = self._cluster.api.patch(kind, meta.name, render_patch(old, new), meta.namespace)
        try:
            await self._latest.write(old.key, call)
        except NotFoundError as error:
            raise ConflictError(f"endpoint slice {old.key}: it was deleted meanwhile") from error

    async def delete(self, piece: EndpointSlice) -> None:
        call = self._cluster.delete(kinds.ENDPOINT_SLICE, piece)
        await self._latest.delete(piece, call)
