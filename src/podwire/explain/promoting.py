"""Staging and promoting in a running cluster: one annotation on policies and Namespaces.

refuse_enforced   before manifests are staged: none of them may be in force already
promote           takes the annotation away, by name or everywhere
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from typing import Any

from podwire.client import Api
from podwire.errors import NotFoundError, UsageError
from podwire.explain.policies import list_policies
from podwire.objects import kinds
from podwire.objects.documents import Document
from podwire.objects.meta import Kind, Object
from podwire.policy.staging import PROMOTION, is_staged


async def refuse_enforced(api: Api, documents: Sequence[Document], namespace: str) -> None:
    """A policy that is in force would be taken out of force by staging it: whatever it closes would
    be open meanwhile. Raises `UsageError`."""
    enforced = {
        (kind.kind, obj.metadata.namespace, obj.metadata.name)
        for kind, obj in await list_policies(api)
        if not is_staged(obj.metadata.annotations)
    }
    for document in documents:
        scope = (document.namespace or namespace) if document.kind == "NetworkPolicy" else ""
        if (document.kind, scope, document.name) in enforced:
            where = f"{scope}/" if scope else ""
            raise UsageError(
                f"{document.origin}: {document.kind} {where}{document.name}: is in force, and "
                "staging it would open what it closes; stage the new one under another name, then "
                "promote that and delete this one"
            )


async def promote(
    api: Api, names: Collection[str] = (), namespaces: Collection[str] = ()
) -> list[str]:
    """Put in force: policies `namespace/name`, or `name` of the cluster, and all of `namespaces`
    that are staged by their Namespace. Returns what was changed, in words."""
    found = [(kind, obj) for kind, obj in await list_policies(api) if str(obj.key) in names]
    if absent := set(names) - {str(obj.key) for _, obj in found}:
        raise NotFoundError(f'policies "{min(absent)}" not found')
    for name in sorted(namespaces):
        space = await api.get(kinds.NAMESPACE, name)
        found.append((kinds.NAMESPACE, space))
    return await _promote(api, found)


async def promote_all(api: Api) -> list[str]:
    """Everything that is staged in the cluster."""
    spaces, _ = await api.list(kinds.NAMESPACE)
    found: list[tuple[Kind[Any], Object]] = [
        *((kinds.NAMESPACE, space) for space in spaces),
        *await list_policies(api),
    ]
    return await _promote(api, [(k, o) for k, o in found if is_staged(o.metadata.annotations)])


async def _promote(api: Api, found: Sequence[tuple[Kind[Any], Object]]) -> list[str]:
    staged = [(kind, obj) for kind, obj in found if is_staged(obj.metadata.annotations)]
    await asyncio.gather(
        *(
            api.patch(kind, obj.metadata.name, PROMOTION, obj.metadata.namespace)
            for kind, obj in staged
        )
    )
    promoted = {id(obj) for _, obj in staged}
    return [
        f"{kind.kind} {obj.key} {'promoted' if id(obj) in promoted else 'was in force already'}"
        for kind, obj in found
    ]
