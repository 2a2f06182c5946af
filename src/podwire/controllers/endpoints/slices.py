"""The EndpointSlices of one Service with a selector: what is to be written. Pure.

    members -> groups by resolved ports -> packed into drafts -> hints -> compared with what exists

One set of slices per address family of the Service and per distinct set of resolved ports. A family
without endpoints has one empty slice, so that a consumer can tell "none" from "not yet".
Source: k8s.io/endpointslice reconciler.go, utils.go.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import NamedTuple

import msgspec
from msgspec.structs import replace

from podwire.controllers.endpoints import hints
from podwire.controllers.endpoints.members import Member, PortKey, port_key
from podwire.controllers.endpoints.packing import MAX_ENDPOINTS, Draft, Group, identity, pack
from podwire.controllers.views import raw
from podwire.objects.core import Service
from podwire.objects.discovery import (
    MANAGED_BY_LABEL,
    SERVICE_NAME_LABEL,
    Endpoint,
    EndpointSlice,
)
from podwire.objects.meta import JsonObject, ObjectMeta, OwnerReference

MANAGER = "endpointslice-controller.k8s.io"
HEADLESS_LABEL = "service.kubernetes.io/headless"
TRIGGER_ANNOTATION = "endpoints.kubernetes.io/last-change-trigger-time"
WEIGHTS_ANNOTATION = "networking.podwire.dev/weights"
_RESERVED = (MANAGED_BY_LABEL, SERVICE_NAME_LABEL, HEADLESS_LABEL)
# A name has 253 characters; the random part of a generated one has five.
_LONGEST_PREFIX = 253


class Saying(NamedTuple):
    """An Event about the object that was planned for."""

    type: str
    reason: str
    message: str


@dataclass
class SlicePlan:
    """`updates` are pairs of the slice as it is and as it is to be, those that grow first, so that
    an endpoint that changes its set of slices is listed twice for a moment rather than nowhere."""

    creates: list[EndpointSlice] = field(default_factory=list)
    updates: list[tuple[EndpointSlice, EndpointSlice]] = field(default_factory=list)
    deletes: list[EndpointSlice] = field(default_factory=list)
    says: list[Saying] = field(default_factory=list)
    hinted: frozenset[str] = frozenset()
    """The families whose endpoints are shared out by zone."""

    @property
    def empty(self) -> bool:
        return not (self.creates or self.updates or self.deletes)


@dataclass(frozen=True)
class Topology:
    """What `topology-mode: Auto` needs: the zones' shares of CPU, and which families had hints."""

    ratios: Mapping[str, float] = field(default_factory=dict)
    hinted: frozenset[str] = frozenset()


def plan_slices(
    service: Service,
    members: Iterable[Member],
    existing: Iterable[EndpointSlice],
    *,
    trigger: str = "",
    topology: Topology | None = None,
) -> SlicePlan:
    """`existing` are the slices this controller manages for the Service; `trigger` is when the
    change that led here happened."""
    planner = _Planner(service, list(members), trigger, topology or Topology())
    return planner.plan([piece for piece in existing if not piece.deleting])


def address_families(service: Service) -> list[str]:
    """Without `ipFamilies` (an API server before 1.20): that of the cluster IP, else both."""
    if service.spec.ip_families:
        return list(service.spec.ip_families)
    if service.spec.cluster_ip and not service.spec.headless:
        return [f"IPv{ip_address(service.spec.cluster_ip).version}"]
    return ["IPv4", "IPv6"]


def slice_labels(service: Service, manager: str = MANAGER) -> dict[str, str]:
    """The Service's labels, and those that say whose slice it is."""
    labels = {k: v for k, v in service.metadata.labels.items() if k not in _RESERVED}
    if not service.spec.cluster_ip or service.spec.headless:
        labels[HEADLESS_LABEL] = ""
    return labels | {SERVICE_NAME_LABEL: service.metadata.name, MANAGED_BY_LABEL: manager}


def name_prefix(name: str) -> str:
    """`generateName` of slices; the dash goes where the name is too long for it."""
    return f"{name}-" if len(name) < _LONGEST_PREFIX else name


def is_owned(piece: EndpointSlice, uid: str) -> bool:
    return any(ref.uid == uid for ref in piece.metadata.owner_references)


class _Planner:
    def __init__(
        self, service: Service, members: Sequence[Member], trigger: str, topology: Topology
    ) -> None:
        self._service = service
        self._members = members
        self._trigger = trigger
        self._topology = topology
        self._auto = hints.topology_mode_auto(service)
        self._labels = slice_labels(service)
        self._weights = {
            address: member.weight
            for member in members
            if member.weight is not None
            for endpoint in member.endpoints.values()
            for address in endpoint.addresses
        }
        self._plan = SlicePlan()

    def plan(self, existing: Sequence[EndpointSlice]) -> SlicePlan:
        plan, families = self._plan, address_families(self._service)
        hinted: set[str] = set()
        for family in families:
            mine = sorted(
                (piece for piece in existing if piece.address_type == family),
                key=lambda piece: piece.metadata.name,
            )
            if self._family(family, mine):
                hinted.add(family)
        plan.deletes += [piece for piece in existing if piece.address_type not in families]
        plan.updates.sort(key=lambda pair: len(pair[0].endpoints) - len(pair[1].endpoints))
        plan.hinted = frozenset(hinted)
        if self._service.deleting:
            # The garbage collector is about to remove what would be created now.
            plan.creates.clear()
        return plan

    def _family(self, family: str, existing: Sequence[EndpointSlice]) -> bool:
        """Plan one family; whether its endpoints have hints by zone."""
        by_ports: dict[PortKey, list[EndpointSlice]] = {}
        for piece in existing:
            # Slices of an earlier Service of this name are the garbage collector's: do not reuse.
            if is_owned(piece, self._service.metadata.uid):
                by_ports.setdefault(port_key(piece.ports), []).append(piece)
            else:
                self._plan.deletes.append(piece)
        drafts: list[Draft] = []
        spare: list[EndpointSlice] = []
        for key, group in self._groups(family).items():
            packed, emptied = pack(
                family, group, by_ports.pop(key, ()), self._labels, self._same, MAX_ENDPOINTS
            )
            drafts += packed
            spare += emptied
        spare += [piece for pieces in by_ports.values() for piece in pieces]
        if not drafts:
            drafts.append(Draft(family, [], []))
        _recycle(drafts, spare)
        hinted = self._hint(family, drafts)
        self._compare(drafts)
        self._plan.deletes += spare
        return hinted

    def _groups(self, family: str) -> dict[PortKey, Group]:
        groups: dict[PortKey, Group] = {}
        for member in self._members:
            endpoint = member.endpoints.get(family)
            if endpoint is not None:
                group = groups.setdefault(member.port_key, Group(member.ports))
                group.wanted[identity(endpoint)] = endpoint
        return groups

    def _same(self, wanted: Endpoint, have: Endpoint) -> bool:
        """Zone hints are given out afterwards, to slices as a whole: they do not count here."""
        if self._auto and have.hints is not None:
            have = replace(have, hints=None)
        return wanted == have

    def _hint(self, family: str, drafts: Sequence[Draft]) -> bool:
        had = family in self._topology.hinted
        if not self._auto:
            if had:
                self._say("Warning", hints.DISABLED, hints.DISABLED_TEXT, family)
            return False
        problem = hints.assign_hints(drafts, self._topology.ratios)
        if problem:
            self._say("Warning", hints.DISABLED, problem, family)
        elif not had:
            self._say("Normal", hints.ENABLED, hints.ENABLED_TEXT, family)
        return not problem

    def _say(self, event_type: str, reason: str, text: str, family: str) -> None:
        self._plan.says.append(Saying(event_type, reason, f"{text}, addressType: {family}"))

    # --- from drafts to writes ---

    def _compare(self, drafts: Iterable[Draft]) -> None:
        for draft in drafts:
            weights = self._weights_of(draft)
            existing = draft.existing
            if existing is None:
                self._plan.creates.append(self._new(draft, weights))
            elif (
                draft.changed
                or existing.metadata.annotations.get(WEIGHTS_ANNOTATION, "") != weights
            ):
                self._update(existing, draft, weights)

    def _weights_of(self, draft: Draft) -> str:
        """The weights annotation's value, "" where no endpoint has a weight."""
        if not self._weights:
            return ""
        found = {
            address: self._weights[address]
            for endpoint in draft.endpoints
            for address in endpoint.addresses
            if address in self._weights
        }
        return msgspec.json.encode(dict(sorted(found.items()))).decode() if found else ""

    def _annotations(self, before: Mapping[str, str], weights: str) -> dict[str, str]:
        ours = {TRIGGER_ANNOTATION: self._trigger, WEIGHTS_ANNOTATION: weights}
        kept = {k: v for k, v in before.items() if k not in ours}
        return kept | {k: v for k, v in ours.items() if v}

    def _new(self, draft: Draft, weights: str) -> EndpointSlice:
        meta = self._service.metadata
        return EndpointSlice(
            metadata=ObjectMeta(
                generate_name=name_prefix(meta.name),
                namespace=meta.namespace,
                labels=self._labels,
                annotations=self._annotations({}, weights),
                owner_references=[controller_reference("Service", meta)],
            ),
            address_type=draft.family,
            endpoints=draft.endpoints,
            ports=list(draft.ports),
        )

    def _update(self, existing: EndpointSlice, draft: Draft, weights: str) -> None:
        meta = existing.metadata
        wanted = replace(
            existing,
            metadata=replace(
                meta,
                labels=self._labels,
                annotations=self._annotations(meta.annotations, weights),
            ),
            endpoints=draft.endpoints,
            ports=list(draft.ports),
        )
        if not same_content(existing, wanted):
            self._plan.updates.append((existing, wanted))


def _recycle(drafts: Iterable[Draft], spare: list[EndpointSlice]) -> None:
    """New slices are written over ones that would be deleted: a Service whose ports change keeps
    its slices, and no watcher sees it without. An empty slice that stays empty is found first."""
    for draft in drafts:
        if draft.existing is None and spare:
            best = next((p for p in spare if _is_like(p, draft)), spare[-1])
            spare.remove(best)
            draft.existing = best


def _is_like(piece: EndpointSlice, draft: Draft) -> bool:
    return piece.endpoints == draft.endpoints and piece.ports == draft.ports


def same_content(one: EndpointSlice, other: EndpointSlice) -> bool:
    """Whether a write would change more than when it was triggered."""
    ours = {k: v for k, v in one.metadata.annotations.items() if k != TRIGGER_ANNOTATION}
    theirs = {k: v for k, v in other.metadata.annotations.items() if k != TRIGGER_ANNOTATION}
    return (
        one.endpoints == other.endpoints
        and one.ports == other.ports
        and one.metadata.labels == other.metadata.labels
        and ours == theirs
    )


def controller_reference(kind: str, owner: ObjectMeta) -> OwnerReference:
    return OwnerReference(
        api_version="v1",
        kind=kind,
        name=owner.name,
        uid=owner.uid,
        controller=True,
        block_owner_deletion=True,
    )


def render_create(piece: EndpointSlice) -> JsonObject:
    """The body of a new slice; `addressType` has no default in the API."""
    body: JsonObject = raw(piece)
    return body | {"addressType": piece.address_type}


def render_patch(old: EndpointSlice, new: EndpointSlice) -> JsonObject:
    """The merge patch that makes `new` of `old` and fails if `old` is not what is there."""
    meta: JsonObject = {
        "uid": old.metadata.uid,
        "resourceVersion": old.metadata.resource_version,
    }
    body: JsonObject = {"metadata": meta}
    for name, before, after in (
        ("labels", old.metadata.labels, new.metadata.labels),
        ("annotations", old.metadata.annotations, new.metadata.annotations),
    ):
        changes = render_changes(before, after)
        if changes:
            meta[name] = changes
    if old.endpoints != new.endpoints:
        body["endpoints"] = [raw(endpoint) for endpoint in new.endpoints]
    if old.ports != new.ports:
        body["ports"] = [raw(port) for port in new.ports]
    return body


def render_changes(before: Mapping[str, str], after: Mapping[str, str]) -> dict[str, str | None]:
    """A map's part of a merge patch."""
    changes: dict[str, str | None] = {k: None for k in before if k not in after}
    return changes | {k: v for k, v in after.items() if before.get(k) != v}
