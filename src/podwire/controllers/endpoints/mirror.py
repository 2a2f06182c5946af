"""EndpointSlices for Endpoints written by hand, of a Service without a selector. Pure.

One slice per subset and address family, up to 1,000 addresses, owned by the Endpoints, with its
labels and annotations. Source: pkg/controller/endpointslicemirroring.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address

from msgspec.structs import replace

from podwire.controllers.endpoints.members import PortKey, port_key
from podwire.controllers.endpoints.packing import Identity, identity
from podwire.controllers.endpoints.slices import (
    TRIGGER_ANNOTATION,
    Saying,
    SlicePlan,
    controller_reference,
    is_owned,
    name_prefix,
    same_content,
)
from podwire.objects.core import EndpointAddress, EndpointPort, Endpoints
from podwire.objects.discovery import (
    MANAGED_BY_LABEL,
    SERVICE_NAME_LABEL,
    Endpoint,
    EndpointConditions,
    EndpointSlice,
    SlicePort,
)
from podwire.objects.meta import ObjectMeta

MANAGER = "endpointslicemirroring-controller.k8s.io"
MAX_PER_SUBSET = 1000
_SKIP_LABEL = "endpointslice.kubernetes.io/skip-mirror"
_LEADER_ANNOTATION = "control-plane.alpha.kubernetes.io/leader"
_NOT_COPIED = (TRIGGER_ANNOTATION, "kubectl.kubernetes.io/last-applied-configuration")


@dataclass
class _Group:
    family: str
    ports: list[SlicePort]
    endpoints: dict[Identity, Endpoint] = field(default_factory=dict)


def is_mirrored(endpoints: Endpoints) -> bool:
    """Neither opted out of, nor a leader election's lock."""
    meta = endpoints.metadata
    return meta.labels.get(_SKIP_LABEL) != "true" and _LEADER_ANNOTATION not in meta.annotations


def plan_mirror(endpoints: Endpoints, existing: Iterable[EndpointSlice]) -> SlicePlan:
    """`existing` are the slices mirrored for these Endpoints so far."""
    plan = SlicePlan()
    groups = _groups(endpoints, plan.says)
    found: dict[tuple[str, PortKey], list[EndpointSlice]] = {}
    for piece in sorted(existing, key=lambda piece: piece.metadata.name):
        if piece.deleting:
            continue
        if not is_owned(piece, endpoints.metadata.uid):
            # Of earlier Endpoints of this name: the garbage collector's, so do not reuse it.
            plan.deletes.append(piece)
        else:
            found.setdefault((piece.address_type, port_key(piece.ports)), []).append(piece)
    fresh: list[_Group] = []
    for key, group in groups.items():
        pieces = found.pop(key, [])
        plan.deletes += pieces[1:]
        if pieces:
            _update(plan, endpoints, group, pieces[0])
        else:
            fresh.append(group)
    spare = [piece for pieces in found.values() for piece in pieces]
    for group in fresh:
        reused = next((piece for piece in spare if piece.address_type == group.family), None)
        if reused is None:
            plan.creates.append(_new(endpoints, group))
        else:
            spare.remove(reused)
            _update(plan, endpoints, group, reused)
    plan.deletes += spare
    if endpoints.deleting:
        plan.creates.clear()
    return plan


def _groups(endpoints: Endpoints, says: list[Saying]) -> dict[tuple[str, PortKey], _Group]:
    groups: dict[tuple[str, PortKey], _Group] = {}
    invalid = skipped = 0
    for subset in endpoints.subsets:
        ports = [_port(port) for port in subset.ports]
        key = port_key(ports)
        all_of = [(a, True) for a in subset.addresses]
        all_of += [(a, False) for a in subset.not_ready_addresses]
        added = bad = 0
        for address, ready in all_of:
            if added >= MAX_PER_SUBSET:
                break
            endpoint, family = _endpoint(address, ready=ready)
            if endpoint is None:
                bad += 1
                continue
            group = groups.setdefault((family, key), _Group(family, ports))
            if len(group.endpoints) < MAX_PER_SUBSET:
                group.endpoints[identity(endpoint)] = endpoint
            added += 1
        invalid += bad
        skipped += len(all_of) - added
    if invalid:
        text = f"Skipped {invalid} invalid IP addresses when mirroring to EndpointSlices"
        says.append(Saying("Warning", "InvalidIPAddress", text))
    if skipped > invalid:
        text = (
            f"A max of {MAX_PER_SUBSET} addresses can be mirrored to EndpointSlices per Endpoints "
            f"subset. {skipped} addresses were skipped"
        )
        says.append(Saying("Warning", "TooManyAddressesToMirror", text))
    return groups


def _port(port: EndpointPort) -> SlicePort:
    return SlicePort(
        name=port.name, protocol=port.protocol, port=port.port, app_protocol=port.app_protocol
    )


def _endpoint(address: EndpointAddress, *, ready: bool) -> tuple[Endpoint | None, str]:
    try:
        ip = ip_address(address.ip)
    except ValueError:
        return None, ""
    endpoint = Endpoint(
        addresses=[str(ip)],
        conditions=EndpointConditions(ready=ready),
        hostname=address.hostname or None,
        node_name=address.node_name or None,
        target_ref=address.target_ref,
    )
    return endpoint, f"IPv{ip.version}"


def _metadata(endpoints: Endpoints) -> ObjectMeta:
    meta = endpoints.metadata
    return ObjectMeta(
        generate_name=name_prefix(meta.name),
        namespace=meta.namespace,
        labels={**meta.labels, SERVICE_NAME_LABEL: meta.name, MANAGED_BY_LABEL: MANAGER},
        annotations={k: v for k, v in meta.annotations.items() if k not in _NOT_COPIED},
        owner_references=[controller_reference("Endpoints", meta)],
    )


def _new(endpoints: Endpoints, group: _Group) -> EndpointSlice:
    return EndpointSlice(
        metadata=_metadata(endpoints),
        address_type=group.family,
        endpoints=list(group.endpoints.values()),
        ports=group.ports,
    )


def _update(plan: SlicePlan, endpoints: Endpoints, group: _Group, piece: EndpointSlice) -> None:
    wanted = _metadata(endpoints)
    new = replace(
        piece,
        metadata=replace(piece.metadata, labels=wanted.labels, annotations=wanted.annotations),
        endpoints=_in_order(group.endpoints, piece.endpoints),
        ports=group.ports,
    )
    if not same_content(piece, new):
        plan.updates.append((piece, new))


def _in_order(wanted: dict[Identity, Endpoint], have: Sequence[Endpoint]) -> list[Endpoint]:
    """What is there stays where it is: the order of addresses says nothing."""
    left = dict(wanted)
    kept = [left.pop(key) for key in map(identity, have) if key in left]
    return [*kept, *left.values()]
