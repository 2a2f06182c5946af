"""How endpoints are packed into slices: few writes first, full slices second. Pure.

1. Slices keep the endpoints they hold and that are still wanted; the others leave.
2. New endpoints go into slices that must be written anyway, the fullest first.
3. What is left goes into one untouched slice if it fits whole, else into new slices.

So an endpoint that changes costs one write of one slice, and endpoints never move between slices:
a watcher that sees the writes one by one never sees an endpoint twice or not at all.
Source: k8s.io/endpointslice reconciler.go (reconcileByPortMapping).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from podwire.objects.discovery import Endpoint, EndpointSlice, SlicePort

MAX_ENDPOINTS = 100
"""--max-endpoints-per-slice"""

Identity = tuple[tuple[str, ...], str, str, str]
Same = Callable[[Endpoint, Endpoint], bool]
"""Whether an endpoint that is wanted says the same as the one that is there."""


@dataclass(eq=False)
class Draft:
    """A slice as it is to be; `existing` is the one to write it over, None for a new one."""

    family: str
    ports: Sequence[SlicePort]
    endpoints: list[Endpoint]
    existing: EndpointSlice | None = None
    changed: bool = True


@dataclass
class Group:
    """The endpoints that share a set of ports, by identity."""

    ports: Sequence[SlicePort]
    wanted: dict[Identity, Endpoint] = field(default_factory=dict)


def identity(endpoint: Endpoint) -> Identity:
    """What makes two endpoints the same one in two states."""
    target = endpoint.target_ref
    return (
        tuple(sorted(endpoint.addresses)),
        endpoint.hostname or "",
        target.namespace if target is not None else "",
        target.name if target is not None else "",
    )


def pack(
    family: str,
    group: Group,
    existing: Sequence[EndpointSlice],
    labels: Mapping[str, str],
    same: Same,
    limit: int = MAX_ENDPOINTS,
) -> tuple[list[Draft], list[EndpointSlice]]:
    """The slices of one group, and those of `existing` that nothing is left of."""
    drafts: list[Draft] = []
    emptied: list[EndpointSlice] = []
    missing = dict(group.wanted)
    for piece in existing:
        draft = _keep(family, piece, missing, same)
        if piece.endpoints and not draft.endpoints:
            emptied.append(piece)
        else:
            draft.changed |= piece.metadata.labels != labels
            drafts.append(draft)
    left = iter(missing.values())
    count = len(missing)
    for draft in sorted((d for d in drafts if d.changed), key=lambda d: -len(d.endpoints)):
        count -= _fill(draft, left, limit)
    while count:
        target = _fitting([d for d in drafts if not d.changed], count, limit)
        if target is None:
            target = Draft(family, group.ports, [])
            drafts.append(target)
        count -= _fill(target, left, limit)
        target.changed = True
    emptied += [draft.existing for draft in drafts if draft.existing and not draft.endpoints]
    return [draft for draft in drafts if draft.endpoints], emptied


def _keep(
    family: str, piece: EndpointSlice, missing: dict[Identity, Endpoint], same: Same
) -> Draft:
    """The slice with what it holds and is still wanted, taken out of `missing`."""
    kept: list[Endpoint] = []
    changed = False
    for have in piece.endpoints:
        wanted = missing.pop(identity(have), None)
        if wanted is None:
            changed = True
        elif same(wanted, have):
            kept.append(have)
        else:
            kept.append(wanted)
            changed = True
    return Draft(family, piece.ports, kept, piece, changed)


def _fill(draft: Draft, left: Iterator[Endpoint], limit: int) -> int:
    before = len(draft.endpoints)
    for _ in range(limit - before):
        endpoint = next(left, None)
        if endpoint is None:
            break
        draft.endpoints.append(endpoint)
    return len(draft.endpoints) - before


def _fitting(drafts: Sequence[Draft], count: int, limit: int) -> Draft | None:
    """The slice that `count` more endpoints fill best, if any holds them all."""
    fits = [draft for draft in drafts if len(draft.endpoints) + count <= limit]
    return max(fits, key=lambda draft: len(draft.endpoints), default=None)
