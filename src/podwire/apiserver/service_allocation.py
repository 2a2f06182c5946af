"""A Service's cluster IPs and node ports, taken and given back with the write that needs them.

    with reserve(...) as claim:   fields completed, addresses and ports taken in memory
        validate                  an error leaves the block: all is given back
        claim.stage()             IPAddress objects staged next to the Service, one transaction

Upstream has reservations, a second store and loops that mend what a crash tears apart; here an
address, its IPAddress and its Service are one commit. As upstream, allocation runs before
validation, so what cannot be allocated is told first.

Source: pkg/registry/core/service/storage/{alloc,storage}.go of Kubernetes 1.33.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator
from functools import lru_cache

from podwire.apiserver.context import Context
from podwire.apiserver.fields import FieldError, go_strings, invalid, invalid_value
from podwire.apiserver.ipsyntax import parse_cidr, parse_ip
from podwire.apiserver.registry import Resource
from podwire.apiserver.service_addresses import Address, AddressRange, Network, Reservation
from podwire.apiserver.service_families import (
    NONE,
    Spec,
    addresses_of,
    drop_dependent,
    exposes_nodes,
    init_families,
    keep_allocated,
    needs_cluster_ip,
    needs_health_check,
    node_ports_of,
    normalize,
    ports_of,
    unchanged_prefer_dual_stack,
    wants_node_ports,
)
from podwire.apiserver.store import Record
from podwire.apiserver.strategy import now_text
from podwire.errors import AddressError, ApiError, ExhaustedError, InvalidError
from podwire.objects.discovery import IP_ALLOCATOR, IP_FAMILY_LABEL, IP_MANAGED_BY_LABEL
from podwire.objects.meta import JsonObject, Key

DEFAULT_CIDR = "kubernetes"
_GROUP = "networking.k8s.io"


class Claim:
    """What one write of a Service takes and gives back. Use `reserve`."""

    def __init__(self, ctx: Context, new: JsonObject, old: JsonObject | None) -> None:
        self._ctx = ctx
        self._pool = ctx.addresses
        self._spec: Spec = new["spec"]
        self._old: Spec | None = None if old is None else old["spec"]
        self._name: str = new["metadata"]["name"]
        self._owner = Key(new["metadata"]["namespace"], self._name)
        self._reservation = Reservation()

    def fill(self) -> None:
        """Complete the Service. Raises InvalidError, and ApiError 500 when nothing is left."""
        spec, old = self._spec, self._old
        if old is not None:
            keep_allocated(spec, old)
        normalize(spec, old)
        served = [f"IPv{network.version}" for network in self._ctx.service_cidrs]
        if errors := init_families(spec, old, served):
            raise self._invalid(*errors)
        self._cluster_ips()
        self._node_ports()
        self._health_check()
        if old is not None:
            drop_dependent(spec, old)
        if not needs_cluster_ip(spec):
            spec.pop("internalTrafficPolicy", None)

    def stage(self) -> None:
        """Make it so, next to the Service's own write."""
        for address in self._reservation.taken:
            _stage_address(self._ctx, address, self._owner)
        for address in self._reservation.released:
            _unstage_address(self._ctx, address, self._owner)
        self._ctx.store.on_rollback(self._reservation.keep())

    def revert(self) -> None:
        self._reservation.revert()

    def _invalid(self, *errors: FieldError) -> InvalidError:
        return invalid("Service", "", self._name, errors)

    # -- cluster IPs -------------------------------------------------------------------------

    def _cluster_ips(self) -> None:
        spec, old = self._spec, self._old
        if unchanged_prefer_dual_stack(spec, old):
            return
        if old is None or not needs_cluster_ip(old):
            self._assign(spec, 0)
            return
        if list(old.get("clusterIPs") or ())[:1] == [NONE]:
            return
        before = old.get("ipFamilies") or []
        if not needs_cluster_ip(spec):
            self._give_back(addresses_of(old))
        elif len(before) == 1 and len(spec["ipFamilies"]) == 2:
            self._assign(spec, 1)
        elif len(before) == 2 and len(spec["ipFamilies"]) == 1:
            self._give_back(addresses_of(old)[1:])

    def _assign(self, spec: Spec, first: int) -> None:
        """An address for every family from the `first` on: the one asked for, or the next."""
        chosen: list[str] = list(spec.get("clusterIPs") or ())
        if not needs_cluster_ip(spec) or chosen[:1] == [NONE]:
            return
        for index, family in enumerate(spec["ipFamilies"]):
            if index < first:
                continue
            if index < len(chosen):
                self._take(chosen, index, family)
            else:
                chosen.append(self._next(family))
        spec["clusterIPs"] = chosen
        spec["clusterIP"] = chosen[0]

    def _next(self, family: str) -> str:
        ranges = ready_ranges(self._ctx, family)
        try:
            address = self._pool.allocate(ranges, self._exists, self._owner, self._reservation)
        except ExhaustedError as error:
            raise _internal(f"failed to allocate a serviceIP: {error}") from error
        return str(address)

    def _take(self, chosen: list[str], index: int, family: str) -> None:
        text = chosen[index]
        address = parse_ip(text)
        if address is None:
            raise _internal(f'failed to parse service IP "{text}"')
        ranges = ready_ranges(self._ctx, family)
        try:
            self._pool.take(address, ranges, self._exists, self._owner, self._reservation)
        except AddressError as error:
            why = f"failed to allocate IP {text}: {error}"
            wrong = invalid_value("spec.clusterIPs", go_strings(chosen), why)
            raise self._invalid(wrong) from error

    def _give_back(self, texts: list[str]) -> None:
        for text in texts:
            address = parse_ip(text)
            if address is not None:
                self._pool.release(address, self._owner, self._reservation)

    def _exists(self, address: Address) -> bool:
        return _address_record(self._ctx, address) is not None

    # -- node ports --------------------------------------------------------------------------

    def _node_ports(self) -> None:
        spec, old = self._spec, self._old
        if exposes_nodes(spec):
            if old is None:
                self._new_node_ports()
            else:
                self._changed_node_ports(old)
        if old is None:
            return
        kept = node_ports_of(spec)
        for number in node_ports_of(old):
            if number not in kept:
                self._pool.release_port(number, self._owner, self._reservation)

    def _new_node_ports(self) -> None:
        """One number may serve one port number in several protocols (`initNodePorts`)."""
        ports = self._spec.get("ports") or []
        given: dict[int, int] = {}
        for index, port in enumerate(ports):
            if not port.get("nodePort") and not wants_node_ports(self._spec):
                continue
            known = given.get(port.get("port", 0))
            if known is None:
                asked = _asked_for(port, ports)
                number = asked or self._next_port()
                if asked:
                    self._take_port(index, asked)
                port["nodePort"] = given[port.get("port", 0)] = number
            elif not port.get("nodePort"):
                port["nodePort"] = known
            elif port["nodePort"] != known:
                self._take_port(index, port["nodePort"])

    def _changed_node_ports(self, old: Spec) -> None:
        mine = set(node_ports_of(old))
        for index, port in enumerate(self._spec.get("ports") or ()):
            number = port.get("nodePort")
            if number and number not in mine:
                self._take_port(index, number)
                mine.add(number)
            elif not number and wants_node_ports(self._spec):
                port["nodePort"] = self._next_port()

    def _next_port(self) -> int:
        try:
            return self._pool.allocate_port(self._owner, self._reservation)
        except ExhaustedError as error:
            raise _internal(f"failed to allocate a nodePort: {error}") from error

    def _take_port(self, index: int, number: int) -> None:
        try:
            self._pool.take_port(number, self._owner, self._reservation)
        except AddressError as error:
            at = f"spec.ports[{index}].nodePort"
            raise self._invalid(invalid_value(at, number, str(error))) from error

    def _health_check(self) -> None:
        spec, old = self._spec, self._old
        needed = old is not None and needs_health_check(old)
        if needs_health_check(spec) and not needed:
            asked = spec.get("healthCheckNodePort")
            try:
                if asked:
                    what = f"allocate requested HealthCheck NodePort {asked}"
                    self._pool.take_port(asked, self._owner, self._reservation)
                else:
                    what = "allocate a HealthCheck NodePort 0"
                    spec["healthCheckNodePort"] = self._pool.allocate_port(
                        self._owner, self._reservation
                    )
            except AddressError as error:
                raise _internal(f"failed to {what}: {error}") from error
        elif old is not None and needed and not needs_health_check(spec):
            number = old.get("healthCheckNodePort") or 0
            self._pool.release_port(number, self._owner, self._reservation)


def _asked_for(port: JsonObject, ports: list[JsonObject]) -> int:
    """The node port that a port of this number names, in whatever protocol."""
    number = port.get("port", 0)
    named = (p["nodePort"] for p in ports if p.get("port", 0) == number and p.get("nodePort"))
    return next(named, 0)


def _internal(why: str) -> ApiError:
    return ApiError(f"Internal error occurred: {why}", code=500)


@contextlib.contextmanager
def reserve(
    ctx: Context, resource: Resource, new: JsonObject, old: JsonObject | None, subresource: str = ""
) -> Iterator[Claim | None]:
    """Complete a Service on its way in; what is not staged by the end is given back.

    Writes of everything else pass through.
    """
    if resource.storage != "services" or subresource:
        yield None
        return
    claim = Claim(ctx, new, old)
    try:
        claim.fill()
        yield claim
    finally:
        claim.revert()


def release(ctx: Context, service: JsonObject) -> None:
    """A Service is staged to go: so are its addresses, its node ports and its Endpoints.

    That a Service takes its Endpoints with it is upstream's `afterDelete`: a new one of the same
    name must not find them.
    """
    spec, meta = service.get("spec") or {}, service["metadata"]
    owner, reservation = Key(meta["namespace"], meta["name"]), Reservation()
    for text in addresses_of(spec):
        address = parse_ip(text)
        if address is not None:
            ctx.addresses.release(address, owner, reservation)
            _unstage_address(ctx, address, owner)
    for number in ports_of(spec):
        ctx.addresses.release_port(number, owner, reservation)
    ctx.store.on_rollback(reservation.keep())
    table = ctx.builtin_table("", "v1", "endpoints")
    record = ctx.store.latest(table, owner)
    if record is not None:
        _stage_removal(ctx, "", "endpoints", record)


def load(ctx: Context) -> None:
    """Take what the stored Services have."""
    for record in ctx.builtin_table("", "v1", "services").snapshot():
        spec = record.object().get("spec") or {}
        parsed = (parse_ip(text) for text in addresses_of(spec))
        ctx.addresses.hold(record.key, [a for a in parsed if a is not None], ports_of(spec))


# -- ServiceCIDRs and IPAddresses ----------------------------------------------------------------


def ready_ranges(ctx: Context, family: str) -> list[AddressRange]:
    """Where new addresses of a family may come from: the cluster's own CIDRs first."""
    table = ctx.builtin_table(_GROUP, "v1", "servicecidrs")
    records = sorted(
        ctx.store.latest_of(table, ""), key=lambda r: (r.key.name != DEFAULT_CIDR, r.key.name)
    )
    networks = [n for record in records for n in _ready_networks(record)]
    wanted = [n for n in dict.fromkeys(networks) if f"IPv{n.version}" == family]
    return [ctx.addresses.range_of(network) for network in wanted]


@lru_cache(maxsize=256)
def _ready_networks(record: Record) -> tuple[Network, ...]:
    obj = record.object()
    conditions = (obj.get("status") or {}).get("conditions") or ()
    ready = any(c.get("type") == "Ready" and c.get("status") == "True" for c in conditions)
    if not ready or record.deleting:
        return ()
    parsed = [parse_cidr(text) for text in (obj.get("spec") or {}).get("cidrs") or ()]
    return tuple(found[1] for found in parsed if found is not None)


def _address_record(ctx: Context, address: Address) -> Record | None:
    table = ctx.builtin_table(_GROUP, "v1", "ipaddresses")
    return ctx.store.latest(table, Key("", str(address)))


def _stage_address(ctx: Context, address: Address, owner: Key) -> None:
    meta = {
        "name": str(address),
        "uid": str(uuid.uuid4()),
        "creationTimestamp": now_text(),
        "labels": {IP_FAMILY_LABEL: f"IPv{address.version}", IP_MANAGED_BY_LABEL: IP_ALLOCATOR},
    }
    parent = {"resource": "services", "namespace": owner.namespace, "name": owner.name}
    obj = {
        "apiVersion": f"{_GROUP}/v1",
        "kind": "IPAddress",
        "metadata": meta,
        "spec": {"parentRef": parent},
    }
    ctx.store.stage_put(ctx.builtin_table(_GROUP, "v1", "ipaddresses"), obj)


def _unstage_address(ctx: Context, address: Address, owner: Key) -> None:
    """Remove the IPAddress, unless it is somebody else's."""
    record = _address_record(ctx, address)
    if record is None:
        return
    parent = (record.object().get("spec") or {}).get("parentRef") or {}
    named = Key(parent.get("namespace", ""), parent.get("name", ""))
    if not parent.get("group") and parent.get("resource") == "services" and named == owner:
        _stage_removal(ctx, _GROUP, "ipaddresses", record)


def _stage_removal(ctx: Context, group: str, plural: str, record: Record) -> None:
    """Remove, or mark as deleting what has finalizers."""
    table, obj = ctx.builtin_table(group, "v1", plural), record.object()
    meta = obj["metadata"]
    if not meta.get("finalizers"):
        ctx.store.stage_delete(table, obj)
    elif "deletionTimestamp" not in meta:
        meta["deletionTimestamp"] = now_text()
        meta["deletionGracePeriodSeconds"] = 0
        ctx.store.stage_put(table, obj)
