"""What the server serves: /api and /apis, read once and again when custom kinds come or go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from podwire.client import Api
from podwire.errors import ApiError
from podwire.objects.meta import Kind, Object


class _Resource(msgspec.Struct):
    name: str
    kind: str
    namespaced: bool
    verbs: list[str] = []


class _ResourceList(msgspec.Struct):
    resources: list[_Resource] = []


class _Version(msgspec.Struct, rename="camel"):
    group_version: str
    version: str


class _Group(msgspec.Struct, rename="camel"):
    name: str
    preferred_version: _Version


class _Groups(msgspec.Struct):
    groups: list[_Group] = []


@dataclass(frozen=True)
class Served:
    """One kind in its preferred version, without subresources."""

    kind: Kind[Object]
    verbs: frozenset[str]


@dataclass(frozen=True)
class Resources:
    served: Sequence[Served] = ()

    def has(self, kind: Kind[Any]) -> bool:
        return any((s.kind.group, s.kind.plural) == (kind.group, kind.plural) for s in self.served)

    def find(self, group: str, kind: str) -> Kind[Object] | None:
        for s in self.served:
            if s.kind.group == group and s.kind.kind == kind:
                return s.kind
        return None


async def discover(api: Api) -> Resources:
    """Read the discovery documents; a group that fails to answer is left out."""
    groups = msgspec.json.decode(await api.request("GET", "/apis"), type=_Groups).groups
    served = await _read(api, "/api/v1", "", "v1")
    for group in groups:
        version = group.preferred_version
        path = f"/apis/{version.group_version}"
        try:
            served += await _read(api, path, group.name, version.version)
        except ApiError:
            continue
    return Resources(tuple(served))


async def _read(api: Api, path: str, group: str, version: str) -> list[Served]:
    page = msgspec.json.decode(await api.request("GET", path), type=_ResourceList)
    return [
        Served(
            Kind(group, version, r.kind, r.name, r.namespaced, Object),
            frozenset(r.verbs),
        )
        for r in page.resources
        if "/" not in r.name
    ]
