"""Manifests as people keep them, applied to an API server.

    documents (`objects.documents`) -> kinds by discovery -> create, or three-way merge

The merge is the one `kubectl apply` does for kinds without a merge strategy: last applied
configuration, new manifest and live object give a JSON merge patch (RFC 7386), lists whole.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

from podwire.errors import AlreadyExistsError, ApiError, NotFoundError, PodwireError, UsageError
from podwire.objects.documents import Document, refuse_duplicates
from podwire.objects.meta import JsonObject

if TYPE_CHECKING:
    # Manifests are read before anything is built; the HTTP client loads while the holder starts.
    from podwire.client import Api

_MERGE_PATCH = "application/merge-patch+json"
LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
# What others lean on goes first; workloads last, so that they find their configuration.
_ORDER = (
    "Namespace",
    "CustomResourceDefinition",
    "PriorityClass",
    "ServiceAccount",
    "Secret",
    "ConfigMap",
    "Service",
)
_CONCURRENCY = 32
# Objects named in the note of an error.
_TOLD = 5


@dataclass(frozen=True)
class Applied:
    """What became of one document: `created`, `configured`, `unchanged` or `deleted`."""

    document: Document
    namespace: str
    resource: str
    verdict: str
    live: JsonObject = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.resource}/{self.document.name} {self.verdict}"


# --- applying -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Resource:
    plural: str
    singular: str
    namespaced: bool
    group: str

    def __str__(self) -> str:
        """As kubectl prints it: `deployment.apps`."""
        return f"{self.singular}.{self.group}" if self.group else self.singular


class Applier:
    """Applies documents to one API server; discovery is asked once per group and version."""

    def __init__(self, api: Api, namespace: str = "default") -> None:
        self._api = api
        self._namespace = namespace
        self._discovered: dict[str, asyncio.Task[dict[str, _Resource]]] = {}
        self._limit = asyncio.Semaphore(_CONCURRENCY)

    async def apply(self, documents: Sequence[Document]) -> list[Applied]:
        """Create or update all, in dependency order; every failure is collected, then raised."""
        refuse_duplicates(documents, self._namespace)
        done: list[Applied | BaseException] = []
        for stage in _stages(documents):
            done += await asyncio.gather(*map(self._apply_one, stage), return_exceptions=True)
        return _checked(done)

    async def delete(self, documents: Sequence[Document]) -> list[Applied]:
        done: list[Applied | BaseException] = []
        for stage in reversed(list(_stages(documents))):
            done += await asyncio.gather(*map(self._delete_one, stage), return_exceptions=True)
        return _checked(done)

    async def _resource(self, document: Document) -> _Resource:
        version = document.api_version
        task = self._discovered.get(version)
        if task is None:
            task = self._discovered[version] = asyncio.create_task(self._discover(version))
        found = (await task).get(document.kind)
        if found is None:
            # A CRD applied a moment ago may have added it.
            self._discovered.pop(version, None)
            raise UsageError(
                f"{document.origin}: no matches for kind {document.kind!r} in version {version!r}"
            )
        return found

    async def _discover(self, version: str) -> dict[str, _Resource]:
        path = f"/apis/{version}" if "/" in version else f"/api/{version}"
        try:
            listing = msgspec.json.decode(await self._api.request("GET", path))
        except NotFoundError:
            return {}
        group = version.rpartition("/")[0]
        return {
            entry["kind"]: _Resource(
                entry["name"],
                entry.get("singularName") or entry["kind"].lower(),
                entry["namespaced"],
                group,
            )
            for entry in listing["resources"]
            if "/" not in entry["name"]
        }

    async def _where(self, document: Document) -> tuple[_Resource, str, str]:
        """The resource, the namespace and the collection's path."""
        resource = await self._resource(document)
        namespace = ""
        if resource.namespaced:
            namespace = (document.obj["metadata"] or {}).get("namespace") or self._namespace
        version = document.api_version
        base = f"/apis/{version}" if "/" in version else f"/api/{version}"
        scope = f"/namespaces/{namespace}" if namespace else ""
        return resource, namespace, f"{base}{scope}/{resource.plural}"

    async def _apply_one(self, document: Document) -> Applied:
        async with self._limit:
            resource, namespace, path = await self._where(document)
            manifest = _with_last_applied(document.obj, namespace)
            try:
                try:
                    return await self._create(document, resource, namespace, path, manifest)
                except AlreadyExistsError:
                    return await self._update(document, resource, namespace, path, manifest)
            except ApiError as error:
                raise ApplyError(document, error) from error

    async def _create(
        self,
        document: Document,
        resource: _Resource,
        namespace: str,
        path: str,
        manifest: JsonObject,
    ) -> Applied:
        query = {"fieldValidation": "Strict"}
        live = await self._api.request("POST", path, query=query, body=manifest)
        return Applied(document, namespace, str(resource), "created", msgspec.json.decode(live))

    async def _update(
        self,
        document: Document,
        resource: _Resource,
        namespace: str,
        path: str,
        manifest: JsonObject,
    ) -> Applied:
        item = f"{path}/{document.name}"
        live = msgspec.json.decode(await self._api.request("GET", item))
        annotations = live["metadata"].get("annotations") or {}
        last = msgspec.json.decode(annotations.get(LAST_APPLIED) or "{}")
        patch = three_way_patch(last, manifest, live)
        if not patch:
            return Applied(document, namespace, str(resource), "unchanged", live)
        answer = await self._api.request(
            "PATCH",
            item,
            query={"fieldValidation": "Strict"},
            body=patch,
            content_type=_MERGE_PATCH,
        )
        after = msgspec.json.decode(answer)
        same = after["metadata"]["resourceVersion"] == live["metadata"]["resourceVersion"]
        verdict = "unchanged" if same else "configured"
        return Applied(document, namespace, str(resource), verdict, after)

    async def _delete_one(self, document: Document) -> Applied:
        async with self._limit:
            resource, namespace, path = await self._where(document)
            try:
                options = {"propagationPolicy": "Background"}
                await self._api.request("DELETE", f"{path}/{document.name}", body=options)
                verdict = "deleted"
            except NotFoundError:
                verdict = "not found"
            except ApiError as error:
                raise ApplyError(document, error) from error
            return Applied(document, namespace, str(resource), verdict)


class ApplyError(PodwireError):
    """One document the API server refused; says where it was read."""

    def __init__(self, document: Document, error: ApiError) -> None:
        self.document = document
        self.error = error
        super().__init__(f"{document.origin}: {error.message}")


class ApplyFailedError(PodwireError):
    """Several documents failed; what was fine is applied."""

    def __init__(self, errors: Sequence[BaseException], applied: Sequence[Applied]) -> None:
        self.errors = tuple(errors)
        self.applied = tuple(applied)
        super().__init__("\n".join(map(str, errors)))


def _checked(done: Iterable[Applied | BaseException]) -> list[Applied]:
    applied, failed = [], []
    for item in done:
        if isinstance(item, Applied):
            applied.append(item)
        elif isinstance(item, PodwireError):
            failed.append(item)
        else:
            raise item
    if not failed:
        return applied
    error = failed[0] if len(failed) == 1 else ApplyFailedError(failed, applied)
    if changed := [str(item) for item in applied if item.verdict != "unchanged"]:
        more = f" and {len(changed) - _TOLD} more" if len(changed) > _TOLD else ""
        error.add_note(f"done all the same: {', '.join(changed[:_TOLD])}{more}")
    raise error


def _stages(documents: Sequence[Document]) -> Iterator[list[Document]]:
    """Documents by dependency: one list per kind of `_ORDER`, then all the rest."""
    for kind in _ORDER:
        if stage := [document for document in documents if document.kind == kind]:
            yield stage
    if rest := [document for document in documents if document.kind not in _ORDER]:
        yield rest


def _with_last_applied(obj: JsonObject, namespace: str) -> JsonObject:
    metadata = dict(obj.get("metadata") or {})
    if namespace:
        metadata["namespace"] = namespace
    annotations = {
        k: v for k, v in (metadata.get("annotations") or {}).items() if k != LAST_APPLIED
    }
    metadata["annotations"] = annotations
    bare = {**obj, "metadata": metadata}
    text = msgspec.json.encode(bare).decode() + "\n"
    return {**obj, "metadata": {**metadata, "annotations": {**annotations, LAST_APPLIED: text}}}


def three_way_patch(last: JsonObject, new: JsonObject, live: JsonObject) -> JsonObject:
    """The merge patch that sets what `new` says and removes what only `last` said."""
    patch: JsonObject = {}
    for key, value in new.items():
        if key not in live:
            if value is not None:  # null and absent are one
                patch[key] = value
        elif isinstance(value, dict) and isinstance(live[key], dict):
            before = last.get(key)
            inner = three_way_patch(before if isinstance(before, dict) else {}, value, live[key])
            if inner:
                patch[key] = inner
        elif isinstance(value, list) and isinstance(live[key], list):
            if not _covers(live[key], value):
                patch[key] = value
        elif value != live[key]:
            patch[key] = value
    for key in last:
        if key not in new and key in live:
            patch[key] = None
    return patch


def _covers(live: Any, wanted: Any) -> bool:
    """Whether `live` is `wanted` plus defaults: then a list needs no replacing."""
    if isinstance(wanted, dict) and isinstance(live, dict):
        return all(
            value is None or (key in live and _covers(live[key], value))
            for key, value in wanted.items()
        )
    if isinstance(wanted, list) and isinstance(live, list):
        return len(live) == len(wanted) and all(map(_covers, live, wanted))
    return bool(live == wanted)
