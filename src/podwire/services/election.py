"""Which node announces a load balancer's address: every node computes it, and all find the same.

    address + eligible nodes + who is alive -> plan_owner -> one node

Rendezvous hashing (Thaler and Ravishankar, 1998): the eligible node whose hash with the address is
greatest. When a node dies only its own addresses move; when it returns, only they return.

Three states of a node, seen from another:

    alive    its agent was heard of, or nobody had reason to ask (`liveness`)
    frozen   its agent does not answer, but its kernel does: what it announced last it still
             announces, and nobody can take that back from it
    dead     neither

A frozen node keeps exactly the addresses it announced last, as long as it may have them: a second
announcer would only make clients' neighbour caches flap, while the first still forwards. It gets no
new ones.

Only an address's group watches each other: the best nodes by hash, down to the third that the API
calls Ready. So heartbeats cost addresses, not the square of the nodes. Should a whole group die at
once, the next nodes join it when the API calls the dead ones not Ready.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from podwire.objects.core import Service
from podwire.objects.discovery import Endpoint, EndpointSlice
from podwire.services.pools import Address

State: TypeAlias = Literal["alive", "frozen", "dead"]
_GROUP: Final = 3


@dataclass(frozen=True)
class Member:
    """A node that may carry balanced traffic, as the API shows it."""

    address: Address
    ready: bool = True


@dataclass(frozen=True)
class Candidate:
    """A node as the election sees it; `held` are digests of what it said last that it announces."""

    name: str
    state: State = "alive"
    held: frozenset[bytes] = frozenset()


def digest(text: str) -> bytes:
    """Four bytes that stand for an address or a node in a heartbeat."""
    return hashlib.blake2s(text.encode(), digest_size=4).digest()


@functools.lru_cache(maxsize=1 << 16)
def score(node: str, address: Address) -> bytes:
    return hashlib.blake2s(f"{address} {node}".encode(), digest_size=16).digest()


def plan_group(
    address: Address, members: Mapping[str, Member], eligible: frozenset[str] | None
) -> tuple[str, ...]:
    """The nodes that have `address` between them, the best first."""
    names = [name for name in members if eligible is None or name in eligible]
    names.sort(key=lambda name: (score(name, address), name), reverse=True)
    ready = 0
    for index, name in enumerate(names):
        ready += members[name].ready
        if ready == _GROUP:
            return tuple(names[: index + 1])
    return tuple(names)


def plan_owner(address: Address, candidates: Iterable[Candidate]) -> str | None:
    """The node of the group, given best first, that announces `address`."""
    known = list(candidates)
    mark = digest(str(address))
    frozen = [c.name for c in known if c.state == "frozen" and mark in c.held]
    alive = [c.name for c in known if c.state == "alive"]
    return next(iter([*frozen, *alive]), None)


def plan_owners(
    node: str,
    groups: Mapping[Address, Sequence[str]],
    candidates: Mapping[str, Candidate],
) -> dict[Address, str | None]:
    """Who announces what `node` has a part in; a member nobody knows anything of counts as dead."""
    return {
        address: plan_owner(address, [candidates[n] for n in group if n in candidates])
        for address, group in groups.items()
        if node in group
    }


def plan_announced(
    node: str,
    owners: Mapping[Address, str | None],
    candidates: Mapping[str, Candidate],
    before: frozenset[Address],
) -> frozenset[Address]:
    """What `node` announces now. What it has already it keeps until the owner says that it does
    too: a better node that has just come may not serve the address yet."""
    return frozenset(
        address
        for address, owner in owners.items()
        if owner == node
        or (
            owner is not None
            and address in before
            and digest(str(address)) not in candidates[owner].held
        )
    )


def plan_circles(node: str, groups: Mapping[Address, Sequence[str]]) -> dict[str, set[str]]:
    """The others `node` shares an address with, each with those it shares that address with."""
    circles: dict[str, set[str]] = {}
    for group in groups.values():
        if node in group:
            others = set(group) - {node}
            for name in others:
                circles.setdefault(name, set()).update(others - {name})
    return circles


def eligible_nodes(service: Service, slices: Iterable[EndpointSlice]) -> frozenset[str] | None:
    """The nodes a Service's traffic may enter at; None means any.

    With externalTrafficPolicy Local those with a ready endpoint, else with one that still serves
    while it ends (KEP-1669). Without any endpoint every node will do: it refuses.
    """
    if service.spec.external_traffic_policy != "Local":
        return None
    endpoints = [e for piece in slices for e in piece.endpoints if e.node_name]
    ready = _nodes(e for e in endpoints if e.ready)
    return ready or _nodes(e for e in endpoints if e.serving and e.terminating) or None


def _nodes(endpoints: Iterable[Endpoint]) -> frozenset[str]:
    return frozenset(e.node_name for e in endpoints if e.node_name)


def shared_eligibility(each: Iterable[frozenset[str] | None]) -> frozenset[str] | None:
    """Of several Services behind one address: nodes that suit all, else those that suit any."""
    limited = [nodes for nodes in each if nodes is not None]
    if not limited:
        return None
    common = frozenset.intersection(*limited)
    return common or frozenset.union(*limited)
