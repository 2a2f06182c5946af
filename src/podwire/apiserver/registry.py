"""Which kinds are served, where, and how each is stored, shown and prepared.

    kinds.ROWS ---------------> Resource --+--> by URL (group, version, plural)
    CustomResourceDefinition -> Resource --+--> by kind, for discovery and OpenAPI

A `Resource` is one kind in one version. Versions of one kind share a *storage* name (the table in
`store`); objects are stored in one version and converted on the way in and out. Custom kinds come
and go at run time; `generation` counts those changes so that cached discovery documents know.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from podwire.apiserver import schema as schemas
from podwire.apiserver.conversion import CONVERSIONS
from podwire.apiserver.kinds import ALL, GROUP_ORDER, ROWS, SELECTABLE, Row
from podwire.apiserver.printers import table_for
from podwire.apiserver.printers.columns import TableSpec
from podwire.apiserver.printers.custom import custom_table
from podwire.apiserver.schema import Schema
from podwire.errors import ApiError
from podwire.objects.meta import JsonObject

Convert = Callable[[JsonObject], JsonObject]


@dataclass(frozen=True, eq=False)
class ScalePaths:
    """A custom kind's scale subresource: dotted paths without the leading dot."""

    spec: tuple[str, ...] = ("spec", "replicas")
    status: tuple[str, ...] = ("status", "replicas")
    selector: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Resource:
    """One served kind in one version."""

    group: str
    version: str
    kind: str
    plural: str
    singular: str
    namespaced: bool
    storage: str
    short_names: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    verbs: tuple[str, ...] = ALL
    subresources: tuple[str, ...] = ()
    selectable: tuple[str, ...] = ()
    table: TableSpec | None = None
    list_kind: str = ""
    custom: Schema | None = None
    """The schema of a custom kind; built-in schemas are looked up when first needed."""
    openapi: JsonObject | None = None
    scale: ScalePaths | None = None
    read: Convert | None = None
    """From the stored version to this one; None where they are the same."""
    write: Convert | None = None
    crd: str = ""

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def qualified(self) -> str:
        """`deployments.apps`, `pods`: how messages name the resource."""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    @property
    def is_custom(self) -> bool:
        return bool(self.crd)

    @property
    def stored(self) -> bool:
        return "get" in self.verbs and self.storage != "componentstatuses"

    @property
    def schema(self) -> Schema:
        if self.custom is not None:
            return self.custom
        found = schemas.builtin(self.group, self.version, self.kind)
        if found is None:
            raise ApiError(f"{self.qualified}: no schema for {self.api_version} {self.kind}")
        return found

    def brief(self, obj: JsonObject) -> JsonObject:
        """What selectors look at, as a small object of the same shape."""
        meta = obj["metadata"]
        small: JsonObject = {
            "metadata": {
                "name": meta["name"],
                "namespace": meta.get("namespace", ""),
                "labels": meta.get("labels") or {},
            }
        }
        for part, keys in self._selectable_by_part.items():
            source = obj.get(part)
            if type(source) is dict:
                small[part] = {key: source[key] for key in keys if source.get(key) is not None}
        for path in self._other_selectable:
            _copy_path(obj, small, path)
        return small

    @cached_property
    def _selectable_by_part(self) -> dict[str, list[str]]:
        """Paths of two parts, as nearly all are: {"spec": ["nodeName", ...]}."""
        found: dict[str, list[str]] = {}
        for path in self.selectable:
            if path.count(".") == 1:
                part, key = path.split(".")
                found.setdefault(part, []).append(key)
        return found

    @cached_property
    def _other_selectable(self) -> list[list[str]]:
        return [path.split(".") for path in self.selectable if path.count(".") != 1]


def _copy_path(source: JsonObject, target: JsonObject, path: list[str]) -> None:
    value: Any = source
    for part in path:
        value = value.get(part) if isinstance(value, dict) else None
        if value is None:
            return
    for part in path[:-1]:
        target = target.setdefault(part, {})
    target[path[-1]] = value


@dataclass
class Registry:
    """All served kinds. Built-ins at once, custom kinds by `load_crd` and `unload_crd`."""

    generation: int = 0
    _by_url: dict[tuple[str, str, str], Resource] = field(default_factory=dict)
    _crds: dict[str, list[Resource]] = field(default_factory=dict)

    @classmethod
    def builtin(cls) -> Registry:
        registry = cls()
        for row in ROWS:
            registry._add(_from_row(row))
        return registry

    def _add(self, resource: Resource) -> None:
        self._by_url[resource.group, resource.version, resource.plural] = resource

    def find(self, group: str, version: str, plural: str) -> Resource | None:
        return self._by_url.get((group, version, plural))

    def by_kind(self, group: str, version: str, kind: str) -> Resource | None:
        for resource in self._by_url.values():
            if (resource.group, resource.version, resource.kind) == (group, version, kind):
                return resource
        return None

    def __iter__(self) -> Iterator[Resource]:
        yield from self._by_url.values()

    def stored(self) -> list[Resource]:
        """One resource per storage name: the version its objects are stored in."""
        found: dict[str, Resource] = {}
        for resource in self._by_url.values():
            if resource.stored and resource.read is None:
                found.setdefault(resource.storage, resource)
        return list(found.values())

    def groups(self) -> dict[str, list[str]]:
        """Group -> versions, in discovery order."""
        found: dict[str, list[str]] = {}
        for group, version, _ in self._by_url:
            versions = found.setdefault(group, [])
            if version not in versions:
                versions.append(version)
        order = {group: index for index, group in enumerate(GROUP_ORDER)}
        return {
            group: sorted(found[group], key=version_priority, reverse=True)
            for group in sorted(found, key=lambda name: (order.get(name, len(order)), name))
        }

    def in_version(self, group: str, version: str) -> list[Resource]:
        found = [r for r in self._by_url.values() if (r.group, r.version) == (group, version)]
        return sorted(found, key=lambda resource: resource.plural)

    def has_group_version(self, group: str, version: str) -> bool:
        return any(key[:2] == (group, version) for key in self._by_url)

    # -- custom kinds ----------------------------------------------------------------------

    def load_crd(self, document: JsonObject) -> None:
        """Serve (or serve anew) the kinds of a CustomResourceDefinition whose names are free."""
        self.unload_crd(document["metadata"]["name"], bump=False)
        resources = list(_from_crd(document))
        self._crds[document["metadata"]["name"]] = resources
        for resource in resources:
            self._add(resource)
        self.generation += 1

    def unload_crd(self, name: str, *, bump: bool = True) -> list[Resource]:
        resources = self._crds.pop(name, [])
        for resource in resources:
            self._by_url.pop((resource.group, resource.version, resource.plural), None)
        if bump and resources:
            self.generation += 1
        return resources

    def name_conflict(self, document: JsonObject) -> str:
        """Why a CRD's names cannot be accepted; "" when they can."""
        spec, name = document["spec"], document["metadata"]["name"]
        names = spec["names"]
        wanted = {names["plural"], names.get("singular", ""), *(names.get("shortNames") or ())}
        for other in self._by_url.values():
            if other.group != spec["group"] or other.crd == name:
                continue
            taken = {other.plural, other.singular, *other.short_names}
            if clash := sorted((wanted & taken) - {""}):
                return f'"{clash[0]}" is already in use'
            if names["kind"] == other.kind:
                return f'"{other.kind}" is already in use'
        return ""


def _from_row(row: Row) -> Resource:
    storage = row.storage or (f"{row.group}/{row.plural}" if row.group else row.plural)
    read, write = CONVERSIONS.get((row.group, row.version, row.kind), (None, None))
    return Resource(
        row.group,
        row.version,
        row.kind,
        row.plural,
        row.kind.lower(),
        row.namespaced,
        storage,
        row.short,
        row.categories,
        row.verbs,
        row.subresources,
        SELECTABLE.get(storage, ()),
        table_for(row.group, row.kind),
        f"{row.kind}List",
        read=read,
        write=write,
    )


def _from_crd(document: JsonObject) -> Iterator[Resource]:
    spec = document["spec"]
    names, group = spec["names"], spec["group"]
    storage_version = next(v["name"] for v in spec["versions"] if v.get("storage"))
    for version in spec["versions"]:
        if not version.get("served"):
            continue
        openapi = (version.get("schema") or {}).get("openAPIV3Schema") or {"type": "object"}
        subresources = version.get("subresources") or {}
        same = version["name"] == storage_version
        yield Resource(
            group,
            version["name"],
            names["kind"],
            names["plural"],
            names.get("singular") or names["kind"].lower(),
            spec["scope"] == "Namespaced",
            f"{group}/{names['plural']}",
            tuple(names.get("shortNames") or ()),
            tuple(names.get("categories") or ()),
            ALL,
            tuple(sub for sub in ("scale", "status") if sub in subresources),
            tuple(s["jsonPath"].lstrip(".") for s in version.get("selectableFields") or ()),
            custom_table(version.get("additionalPrinterColumns")),
            names.get("listKind") or f"{names['kind']}List",
            custom=schemas.schema_from_crd(openapi),
            openapi=openapi,
            scale=_scale_paths(subresources.get("scale")),
            read=None if same else _relabel(f"{group}/{version['name']}"),
            write=None if same else _relabel(f"{group}/{storage_version}"),
            crd=document["metadata"]["name"],
        )


def _relabel(api_version: str) -> Convert:
    """Conversion strategy None: only apiVersion changes."""

    def convert(obj: JsonObject) -> JsonObject:
        return {**obj, "apiVersion": api_version}

    return convert


def _scale_paths(scale: JsonObject | None) -> ScalePaths | None:
    if scale is None:
        return None
    return ScalePaths(
        _path(scale.get("specReplicasPath", ".spec.replicas")),
        _path(scale.get("statusReplicasPath", ".status.replicas")),
        _path(scale.get("labelSelectorPath", "")),
    )


def _path(text: str) -> tuple[str, ...]:
    return tuple(part for part in text.split(".") if part)


_VERSION = re.compile(r"v(\d+)(?:(alpha|beta)(\d+))?")
_STAGE = {None: 3, "beta": 2, "alpha": 1}


def version_priority(version: str) -> tuple[int, int, int, str]:
    """Sorts v2 > v1 > v1beta2 > v1alpha1 > other names. Source: version.CompareKubeAwareVersion."""
    match = _VERSION.fullmatch(version)
    if match is None:
        return (0, 0, 0, version)
    major, stage, minor = match.groups()
    return (_STAGE[stage], int(major), int(minor or 0), "")


def accepted_names(resources: Sequence[Resource]) -> JsonObject:
    """`status.acceptedNames` of a CRD."""
    first = resources[0]
    return {
        "kind": first.kind,
        "listKind": first.list_kind,
        "plural": first.plural,
        "singular": first.singular,
        **({"shortNames": list(first.short_names)} if first.short_names else {}),
        **({"categories": list(first.categories)} if first.categories else {}),
    }
