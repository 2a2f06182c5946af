"""ControllerRevisions: the versions of a StatefulSet's or DaemonSet's pod template.

A revision holds the patch that brings the template back (what `kubectl rollout undo` applies), a
name made of the template's hash, and a number that grows. Source: pkg/controller/history.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from podwire.controllers.cluster import Cluster
from podwire.controllers.podcontrol import Owner, controller_ref
from podwire.controllers.rollout import template_hash
from podwire.errors import AlreadyExistsError
from podwire.objects import kinds
from podwire.objects.apps import ControllerRevision
from podwire.objects.meta import JsonObject, Kind, Object

HASH_LABEL = "controller.kubernetes.io/hash"
REVISION_LABEL = "controller-revision-hash"


@dataclass(frozen=True)
class Revisions:
    """The owner's revisions, oldest first; `update` is the one of the current template."""

    every: Sequence[ControllerRevision]
    update: ControllerRevision

    def named(self, name: str) -> ControllerRevision | None:
        return next((r for r in self.every if r.metadata.name == name), None)


def template_patch(template: Mapping[str, Any]) -> JsonObject:
    return {"spec": {"template": {**template, "$patch": "replace"}}}


def template_of(revision: ControllerRevision) -> JsonObject:
    template = dict((revision.data.get("spec") or {}).get("template") or {})
    template.pop("$patch", None)
    return template


def plan_revision(
    kind: Kind[Any],
    obj: Object,
    template: Mapping[str, Any],
    collisions: int,
    known: Sequence[ControllerRevision],
) -> JsonObject:
    """The revision to create for `template`."""
    digest = template_hash(template, collisions)
    labels = (template.get("metadata") or {}).get("labels") or {}
    meta = obj.metadata
    return {
        "metadata": {
            "name": f"{meta.name}-{digest}",
            "namespace": meta.namespace,
            "labels": {**labels, HASH_LABEL: digest},
            "ownerReferences": [controller_ref(kind, obj)],
        },
        "data": template_patch(template),
        "revision": max((r.revision for r in known), default=0) + 1,
    }


async def ensure_revision(
    cluster: Cluster, owner: Owner, template: Mapping[str, Any], collisions: int
) -> Revisions | None:
    """The revisions with one for `template` that has the highest number; None when a name
    collision had to be recorded first (the owner's change brings the caller back)."""
    known = sorted(
        cluster.owned(kinds.CONTROLLER_REVISION).owned(owner.uid), key=lambda r: r.revision
    )
    data = template_patch(template)
    found = next((r for r in reversed(known) if r.data == data), None)
    if found is None:
        body = plan_revision(owner.kind, owner.obj, template, collisions, known)
        try:
            found = await cluster.api.create(kinds.CONTROLLER_REVISION, body)
        except AlreadyExistsError:
            meta = body["metadata"]
            found = await cluster.api.get(
                kinds.CONTROLLER_REVISION, meta["name"], meta["namespace"]
            )
            ref = found.metadata.controller
            if found.data != data or ref is None or ref.uid != owner.uid:
                count = {"collisionCount": collisions + 1}
                await cluster.patch_status(owner.kind, owner.obj, count)
                return None
        return Revisions([*known, found], found)
    if found.revision < known[-1].revision:
        # A rollback: the old template is the newest revision again.
        number = known[-1].revision + 1
        await cluster.patch(kinds.CONTROLLER_REVISION, found, {"revision": number})
        known = [*(r for r in known if r is not found), found]
    return Revisions(known, found)


async def truncate(
    cluster: Cluster, revisions: Revisions, used: Collection[str], limit: int
) -> None:
    """Delete the oldest revisions beyond `limit` that nothing uses."""
    idle = [
        r
        for r in revisions.every
        if r.metadata.name not in used and r.metadata.name != revisions.update.metadata.name
    ]
    for revision in idle[: max(0, len(idle) - limit)]:
        await cluster.delete(kinds.CONTROLLER_REVISION, revision)
