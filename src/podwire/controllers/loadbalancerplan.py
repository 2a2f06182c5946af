"""Which addresses a Service's load balancer has: pure.

    Service + what others hold + pools -> plan_addresses -> addresses, or the reason there are none

The Services' own status is the only record of what is taken. An address is kept as long as the
Service may have it; of two that cannot share one the older keeps it, so the outcome depends on the
Services alone and not on the order in which they are looked at.

Sharing is MetalLB's (internal/allocator, sharingOK): the same non-empty key, no port twice, and
externalTrafficPolicy Cluster for both, or Local over the same selector.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address

from podwire.errors import AddressError
from podwire.objects.core import Service
from podwire.objects.meta import Key
from podwire.services.loadbalancers import (
    ADDRESSES_ANNOTATION,
    SHARING_ANNOTATION,
    addresses_of,
    families_of,
    scope_of,
)
from podwire.services.pools import Address, AddressRange, Pools

Port = tuple[str, int]


@dataclass(frozen=True)
class Claim:
    """What one Service holds, and what it takes to share it. The older has the lesser `rank`."""

    key: Key
    rank: tuple[str, str, str]
    addresses: frozenset[Address]
    ports: frozenset[Port]
    sharing: str
    backends: str


def claim_of(service: Service, also: Iterable[Address] = ()) -> Claim:
    """`also` are addresses it was given that its status does not show yet."""
    meta, spec = service.metadata, service.spec
    local = spec.external_traffic_policy == "Local"
    return Claim(
        service.key,
        (meta.creation_timestamp or "", meta.namespace, meta.name),
        frozenset(addresses_of(service)) | frozenset(also),
        frozenset((port.protocol, port.port) for port in spec.ports),
        meta.annotations.get(SHARING_ANNOTATION, ""),
        ",".join(f"{k}={v}" for k, v in sorted(spec.selector.items())) if local else "",
    )


def conflict(mine: Claim, other: Claim) -> str:
    """Why the two cannot have one address; "" when they can."""
    if not mine.sharing or not other.sharing:
        return f"it is in use by service {other.key}"
    if mine.sharing != other.sharing:
        return f"service {other.key} shares it by another key ({other.sharing})"
    both = sorted(mine.ports & other.ports)
    if both:
        protocol, port = both[0]
        return f"port {port}/{protocol} is in use by service {other.key}"
    if mine.backends != other.backends:
        return (
            f"service {other.key} has another externalTrafficPolicy, or Local and other pods; "
            "a shared address needs Cluster, or the same selector"
        )
    return ""


def plan_addresses(
    service: Service, claims: Mapping[Key, Claim], pools: Pools
) -> tuple[Address, ...]:
    """One address per family, the Service's primary family first.

    `claims` are everybody's; the Service's own entry counts as what it has. `AddressError` says
    why it cannot be served; an address it must give up is then given up.
    """
    mine = claim_of(service)
    own = claims.get(service.key)
    held = [*addresses_of(service), *sorted(own.addresses if own else (), key=int)]
    others = [c for key, c in claims.items() if key != service.key and c.addresses]
    plan = _Plan(service, mine, others, pools)
    return tuple(plan.choose(version, held) for version in _families(service, pools))


def _families(service: Service, pools: Pools) -> list[int]:
    """Those asked for; PreferDualStack is content with those that have a pool."""
    wanted = families_of(service)
    scope = scope_of(service)
    if service.spec.ip_family_policy == "PreferDualStack":
        served = [version for version in wanted if pools.of(scope, version)]
        return served or wanted
    return wanted


class _Plan:
    def __init__(
        self, service: Service, mine: Claim, others: Sequence[Claim], pools: Pools
    ) -> None:
        self._mine = mine
        self._others = others
        self._scope = scope_of(service)
        self._pools = pools
        self._requested = requested_addresses(service)

    def choose(self, version: int, held: Sequence[Address]) -> Address:
        ranges = self._pools.of(self._scope, version)
        if not ranges:
            raise AddressError(f"there is no {self._scope} address pool for IPv{version}")
        wanted = self._requested.get(version)
        if wanted is not None:
            return self._fixed(wanted, ranges, held)
        for address in held:
            if any(address in r for r in ranges) and not self._loses(address):
                return address
        return self._free(ranges)

    def _fixed(
        self, wanted: Address, ranges: Sequence[AddressRange], held: Sequence[Address]
    ) -> Address:
        if not any(wanted in r for r in ranges):
            raise AddressError(
                f"{wanted} is not in the {self._scope} address pool ({_texts(ranges)})"
            )
        problem = self._loses(wanted) if wanted in held else self._refusal(wanted)
        if problem:
            raise AddressError(f"{wanted} is not available: {problem}")
        return wanted

    def _free(self, ranges: Sequence[AddressRange]) -> Address:
        """One that its key shares already, else the lowest that nobody has."""
        taken = {address for other in self._others for address in other.addresses}
        shared = [a for r in ranges for a in sorted(taken, key=int) if a in r]
        for address in shared if self._mine.sharing else ():
            if not self._refusal(address):
                return address
        for one in ranges:
            for address in one:
                if address not in taken:
                    return address
        raise AddressError(
            f"no address of the {self._scope} pool is free ({_texts(ranges)}); "
            "delete a Service that has one, or make the pool larger"
        )

    def _refusal(self, address: Address) -> str:
        """Why a new claim on the address fails."""
        return next((why for o in self._holders(address) if (why := conflict(self._mine, o))), "")

    def _loses(self, address: Address) -> str:
        """Why an address it has must be given up: an older Service has it too, unshared."""
        older = [o for o in self._holders(address) if o.rank < self._mine.rank]
        return next((why for o in older if (why := conflict(self._mine, o))), "")

    def _holders(self, address: Address) -> list[Claim]:
        return [other for other in self._others if address in other.addresses]


def _texts(ranges: Sequence[AddressRange]) -> str:
    return ", ".join(map(str, ranges))


def requested_addresses(service: Service) -> dict[int, Address]:
    """The addresses a user fixed, by family: by annotation, or by spec.loadBalancerIP."""
    text = service.metadata.annotations.get(ADDRESSES_ANNOTATION, "")
    field = service.spec.load_balancer_ip
    if text and field:
        raise AddressError(
            f"annotation {ADDRESSES_ANNOTATION} and spec.loadBalancerIP are both set; keep one"
        )
    where = f"annotation {ADDRESSES_ANNOTATION}" if text else "spec.loadBalancerIP"
    found: dict[int, Address] = {}
    for part in (text or field).split(","):
        if not part.strip():
            continue
        try:
            address = ip_address(part.strip())
        except ValueError as error:
            raise AddressError(f"{where}: {error}") from error
        if address.version in found:
            raise AddressError(f"{where}: may hold one address of each family")
        found[address.version] = address
    unknown = [a for version, a in found.items() if version not in families_of(service)]
    if unknown:
        raise AddressError(f"{where}: the Service has no address family for {unknown[0]}")
    return found
