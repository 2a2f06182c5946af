"""Adoption and release: a controller owns what its selector matches, and nothing else.

Source: pkg/controller/controller_ref_manager.go.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Generic

from podwire.controllers.cluster import Cluster
from podwire.controllers.podcontrol import Owner, with_controller, without_owner
from podwire.errors import InvalidError, NotFoundError
from podwire.objects.meta import Kind, LabelSelector, T


@dataclass(frozen=True)
class Claims(Generic[T]):
    kept: list[T]
    adopt: list[T]
    release: list[T]


def plan_claims(
    selector: LabelSelector, owned: Iterable[T], orphans: Iterable[T], *, deleting: bool
) -> Claims[T]:
    """Keep matching ones, release the others, adopt matching orphans (unless `deleting`)."""
    kept: list[T] = []
    release: list[T] = []
    for obj in owned:
        (kept if selector.matches(obj.metadata.labels) else release).append(obj)
    adopt = [
        obj
        for obj in ([] if deleting or selector.empty else orphans)
        if not obj.deleting and selector.matches(obj.metadata.labels)
    ]
    return Claims(kept, adopt, [] if deleting else release)


async def apply_claims(
    cluster: Cluster, owner: Owner, kind: Kind[Any], claims: Claims[Any]
) -> bool:
    """Write adoptions and releases; True when there were any (their changes bring us back)."""
    if not claims.adopt and not claims.release:
        return False
    if claims.adopt:
        # A cached owner may be a deleted one: adopting for it would get the object collected.
        meta = owner.obj.metadata
        try:
            fresh = await cluster.api.get(owner.kind, meta.name, meta.namespace)
        except NotFoundError:
            return True
        if fresh.metadata.uid != meta.uid or fresh.deleting:
            return True
    for obj in claims.adopt:
        refs = with_controller(obj.metadata.owner_references, owner.reference())
        await cluster.patch(kind, obj, {"metadata": {"ownerReferences": refs}}, exact=True)
    for obj in claims.release:
        refs = without_owner(obj.metadata.owner_references, owner.uid)
        try:
            await cluster.patch(kind, obj, {"metadata": {"ownerReferences": refs}}, exact=True)
        except InvalidError:
            continue  # deleted and made again under the same name
    return True
