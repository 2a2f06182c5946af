"""Custom kinds at run time: a stored CustomResourceDefinition becomes a served kind at once.

    commit of a CRD -> names accepted? -> Registry.load_crd -> status conditions -> discovery
    delete of a CRD -> its objects deleted -> none left -> finalizer off -> kind gone

Runs as a listener of the store: before a CRD's create is answered its kind is served.
Source: apiextensions-apiserver pkg/controller/{establish,status,finalizer}.
"""

from __future__ import annotations

import asyncio
import functools
import logging

from podwire.apiserver import deletion, pipeline
from podwire.apiserver.authn import ADMIN
from podwire.apiserver.context import Context
from podwire.apiserver.registry import accepted_names
from podwire.apiserver.request import Target
from podwire.apiserver.store import Event, Record
from podwire.apiserver.strategy import CRD_CLEANUP, now_text
from podwire.errors import ApiError, PodwireError
from podwire.objects.meta import JsonObject

log = logging.getLogger(__name__)


class CustomKinds:
    """Keeps the registry in step with the stored CustomResourceDefinitions."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        found = ctx.registry.find("apiextensions.k8s.io", "v1", "customresourcedefinitions")
        assert found is not None
        self._crds = found
        self._specs: dict[str, JsonObject] = {}
        self._watched: set[str] = set()

    def start(self) -> None:
        """Load what is stored, then follow."""
        table = self._ctx.table(self._crds)
        for record in table.snapshot():
            self._load(record)
        table.listeners.append(self._hear)

    def _hear(self, events: list[Event]) -> None:
        for event in events:
            if event.type == "DELETED":
                self._specs.pop(event.record.key.name, None)
                self._unload(event.record)
            else:
                self._load(event.record)

    def _load(self, record: Record) -> None:
        document = record.object()
        name = record.key.name
        if record.deleting:
            asyncio.get_running_loop().call_soon(self._clean, name)
            if name in self._specs:
                return
        if self._specs.get(name) == document["spec"]:
            return
        why = self._ctx.registry.name_conflict(document)
        if not why:
            try:
                self._ctx.registry.load_crd(document)
            except (PodwireError, LookupError, StopIteration, ValueError) as error:
                log.exception("customresourcedefinition %s: cannot be served", name)
                why = str(error)
        self._specs[name] = document["spec"]
        for resource in self._ctx.registry:
            if resource.crd == name:
                self._ctx.table(resource)
        asyncio.get_running_loop().call_soon(self._set_status, name, why)

    def _unload(self, record: Record) -> None:
        for resource in self._ctx.registry.unload_crd(record.key.name):
            self._ctx.store.drop_table(resource.storage)

    def _set_status(self, name: str, why: str) -> None:
        """Write the conditions clients wait for (`kubectl wait --for=condition=established`)."""

        def change(crd: JsonObject) -> JsonObject:
            status = crd.setdefault("status", {})
            status["conditions"] = _conditions(status.get("conditions") or [], why)
            resources = [r for r in self._ctx.registry if r.crd == name]
            if resources and not why:
                status["acceptedNames"] = accepted_names(resources)
            stored = status.get("storedVersions") or []
            current = [v["name"] for v in crd["spec"]["versions"] if v.get("storage")]
            status["storedVersions"] = [*stored, *(v for v in current if v not in stored)]
            return crd

        self._update(name, change, "status")

    def _clean(self, name: str) -> None:
        """Delete the objects of a CRD that goes; the CRD itself once none is left."""
        for resource in [r for r in self._ctx.registry if r.crd == name and r.read is None]:
            table = self._ctx.table(resource)
            if resource.storage not in self._watched:
                self._watched.add(resource.storage)
                table.listeners.append(functools.partial(self._object_gone, name))
            for record in table.snapshot():
                if not record.deleting:
                    target = Target(resource, record.key.namespace, record.key.name)
                    options = deletion.DeleteOptions()
                    deletion.delete(self._ctx, target, options, ADMIN, dry_run=False)
            if table.records:
                return
            self._watched.discard(resource.storage)

        def change(crd: JsonObject) -> JsonObject:
            meta = crd["metadata"]
            meta["finalizers"] = [f for f in meta.get("finalizers") or () if f != CRD_CLEANUP]
            return crd

        self._update(name, change, "")

    def _object_gone(self, name: str, events: list[Event]) -> None:
        if any(event.type == "DELETED" for event in events):
            asyncio.get_running_loop().call_soon(self._clean, name)

    def _update(self, name: str, change: pipeline.Change, subresource: str) -> None:
        target = Target(self._crds, "", name, subresource)
        try:
            pipeline.update(self._ctx, target, change, ADMIN, dry_run=False)
        except ApiError as error:
            if error.code != 404:
                log.warning("customresourcedefinition %s: %s", name, error)


def _conditions(old: list[JsonObject], why: str) -> list[JsonObject]:
    if why:
        wanted = [("NamesAccepted", "False", "NameConflict", why)]
        wanted.append(("Established", "False", "NotAccepted", "not all names are accepted"))
    else:
        wanted = [("NamesAccepted", "True", "NoConflicts", "no conflicts found")]
        wanted.append(
            ("Established", "True", "InitialNamesAccepted", "the initial names have been accepted")
        )
    known = {c["type"]: c for c in old}
    conditions = []
    for kind, status, reason, message in wanted:
        before = known.get(kind) or {}
        changed = before.get("status") != status
        moment = now_text() if changed else before["lastTransitionTime"]
        conditions.append(
            {
                "type": kind,
                "status": status,
                "reason": reason,
                "message": message,
                "lastTransitionTime": moment,
            }
        )
    return conditions
