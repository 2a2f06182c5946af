"""Writing core/v1 Events: what `kubectl describe` shows at its end.

The same event about the same object counts up instead of repeating, as client-go's recorder does.
"""

from __future__ import annotations

import datetime as dt
import logging
import uuid
from dataclasses import dataclass

import aiohttp

from podwire.client.http import Api
from podwire.errors import ApiError, NotFoundError
from podwire.objects import kinds
from podwire.objects.meta import JsonObject, Kind, Object, T, format_time

_LOG = logging.getLogger(__name__)
_REMEMBERED = 4096


@dataclass
class _Seen:
    name: str
    count: int


class EventRecorder:
    """`component` and `host` become `source`; an Event that cannot be written is only logged."""

    def __init__(self, api: Api, component: str, host: str = "") -> None:
        self._api = api
        self._component = component
        self._host = host
        self._seen: dict[tuple[str, ...], _Seen] = {}

    async def record(
        self, kind: Kind[T], obj: Object, event_type: str, reason: str, message: str
    ) -> None:
        """`event_type` is Normal or Warning; `reason` is CamelCase, as upstream spells it."""
        meta = obj.metadata
        namespace = meta.namespace or "default"
        identity = (kind.kind, namespace, meta.name, meta.uid, event_type, reason, message)
        now = format_time(dt.datetime.now(dt.UTC))
        try:
            seen = self._seen.get(identity)
            if seen is not None:
                seen.count += 1
                patch = {"count": seen.count, "lastTimestamp": now}
                try:
                    await self._api.patch(kinds.EVENT, seen.name, patch, namespace)
                    return
                except NotFoundError:
                    pass  # expired: write it anew
            name = f"{meta.name}.{uuid.uuid4().hex[:16]}"
            await self._api.create(
                kinds.EVENT,
                self._event(kind, obj, name, now)
                | {
                    "type": event_type,
                    "reason": reason,
                    "message": message,
                },
                namespace,
            )
        except (ApiError, aiohttp.ClientError, OSError, TimeoutError) as error:
            _LOG.info("event %s on %s %s/%s: %s", reason, kind.kind, namespace, meta.name, error)
            return
        if len(self._seen) >= _REMEMBERED:
            self._seen.pop(next(iter(self._seen)))
        self._seen[identity] = _Seen(name, 1)

    def _event(self, kind: Kind[T], obj: Object, name: str, now: str) -> JsonObject:
        meta = obj.metadata
        namespace = meta.namespace or "default"
        source = {"component": self._component}
        if self._host:
            source["host"] = self._host
        return {
            "metadata": {"name": name, "namespace": namespace},
            "involvedObject": {
                "apiVersion": kind.api_version,
                "kind": kind.kind,
                "name": meta.name,
                "namespace": meta.namespace,
                "uid": meta.uid,
                "resourceVersion": meta.resource_version,
            },
            "source": source,
            "reportingComponent": self._component,
            "reportingInstance": self._host,
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        }
