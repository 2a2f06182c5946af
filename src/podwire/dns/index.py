"""Everything cluster DNS knows of the cluster, indexed for questions; pure.

Service, slice, Namespace, Pod -> Index.set_* -> Changes: the subtrees whose answers may differ
                                                 (none while `telling` is off)

Kept: Services by key, slices by Service, addresses to the slices that have them ready. What a
change touches is told in subtrees of names (lower-case wire form): a Service's name with all that
is below it, the reverse names of addresses that came or went, a pod's name.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from podwire.dns.names import canonical, dashed, is_reverse, labels_of, reverse_wire, wire_of
from podwire.dns.views import Endpoint, Namespace, Pod, Port, Service, Slice
from podwire.objects.meta import Key, LabelSelector, Object

SVC, POD = b"svc", b"pod"
_ALL = LabelSelector()


class PodMode(StrEnum):
    """`pods`: never, whatever address the name spells, or only addresses of running pods."""

    DISABLED = "disabled"
    INSECURE = "insecure"
    VERIFIED = "verified"


@dataclass(frozen=True)
class ZoneOptions:
    """The options of CoreDNS's kubernetes plugin, with its defaults.

    `fallthrough`: zones whose unknown names others may answer; () means every zone, None none.
    `local_addresses`: the server's own, for the NS records of the zone.
    """

    zones: tuple[str, ...] = ("cluster.local", "in-addr.arpa", "ip6.arpa")
    ttl_s: int = 5
    pods: PodMode = PodMode.DISABLED
    endpoint_pod_names: bool = False
    namespaces: frozenset[str] = frozenset()
    namespace_labels: LabelSelector = _ALL
    labels: LabelSelector = _ALL
    endpoints: bool = True
    ignore_empty_service: bool = False
    fallthrough: tuple[str, ...] | None = None
    local_addresses: tuple[str, ...] = ("127.0.0.1",)


@dataclass(frozen=True, slots=True)
class Changes:
    """What a change of an object may have changed: subtrees, each with its root, or everything."""

    subtrees: frozenset[bytes] = frozenset()
    everything: bool = False

    def __bool__(self) -> bool:
        return self.everything or bool(self.subtrees)

    def covers(self, name: bytes) -> bool:
        """Whether the answers of `name` (lower-case wire form) may have changed."""
        if self.everything:
            return True
        at = 0
        while name[at:] not in self.subtrees:
            length = name[at]
            if not length:
                return False
            at += 1 + length
        return True


_NOTHING = Changes()
_EVERYTHING = Changes(everything=True)


class Target(NamedTuple):
    """One address of one ready endpoint, with the ports of its slice."""

    host: str
    address: str
    ports: tuple[Port, ...]


@dataclass
class _ServiceState:
    """A Service's slices by name, and its endpoints by host once one was asked for."""

    slices: dict[str, Slice] = field(default_factory=dict)
    hosts: dict[str, list[Target]] | None = None


class Index:
    """The objects, and what was made of them to find answers without walking them all."""

    def __init__(self, options: ZoneOptions | None = None) -> None:
        self.options = options or ZoneOptions()
        zones = [labels_of(zone) for zone in self.options.zones]
        self.forward_zones = [zone for zone in zones if not is_reverse(zone)]
        self.serial = 1
        # Off while all is listed for the first time: nothing was answered that could be outdated,
        # and telling what would be is two thirds of the work.
        self.telling = True
        self._services: dict[Key, Service] = {}
        self._states: dict[Key, _ServiceState] = {}
        self._slices: dict[Key, Slice] = {}
        self._cluster_ips: dict[str, tuple[Key, ...]] = {}
        # The slices that have an address ready: nearly always one, and a tuple for each is 6 MB.
        self._by_address: dict[str, Key | tuple[Key, ...]] = {}
        self._namespaces: set[str] = set()
        self._pods: dict[str, set[Key]] = {}

    # --- changes ------------------------------------------------------------------------------

    def set_namespace(self, key: Key, new: Namespace | None) -> Changes:
        """Exposed or not: a namespace that does not exist has no names."""
        wanted = self.options.namespaces
        exposed = (
            new is not None
            and (not wanted or key.name in wanted)
            and self.options.namespace_labels.matches(new.metadata.labels)
        )
        if exposed == (key.name in self._namespaces):
            return _NOTHING
        (self._namespaces.add if exposed else self._namespaces.remove)(key.name)
        self._modified(new)
        return _EVERYTHING

    def set_service(self, key: Key, new: Service | None) -> Changes:
        if new is not None and not self.options.labels.matches(new.metadata.labels):
            new = None
        old = self._services.get(key)
        if old is new or (old is not None and new is not None and old.spec == new.spec):
            if new is not None:
                self._services[key] = new
            return _NOTHING
        before = _cluster_ips(old)
        after = _cluster_ips(new)
        for address in before - after:
            self._forget_cluster_ip(address, key)
        for address in after - before:
            owners = {*self._cluster_ips.get(address, ()), key}
            self._cluster_ips[address] = tuple(sorted(owners))
        if new is None:
            del self._services[key]
        else:
            self._services[key] = new
        self._modified(new)
        if not self.telling:
            return _NOTHING
        reverse = before ^ after
        if _has_endpoints(old) != _has_endpoints(new):
            reverse |= {target.address for target in self.targets(key)}
        return self._changed(key, reverse)

    def _forget_cluster_ip(self, address: str, key: Key) -> None:
        left = tuple(owner for owner in self._cluster_ips[address] if owner != key)
        if left:
            self._cluster_ips[address] = left
        else:
            del self._cluster_ips[address]

    def set_slice(self, key: Key, new: Slice | None) -> Changes:
        """A slice's endpoints; slices of names that are no addresses (FQDN) have none."""
        if new is not None and (new.address_type == "FQDN" or not new.service_name):
            new = None
        old = self._slices.get(key)
        if old is None and new is None:
            return _NOTHING
        if old is not None and new is not None and _same_endpoints(old, new):
            self._keep_slice(key, old, new)
            return _NOTHING
        gone, come, kept = _unlike(old, new)
        before, after = _addresses(gone), _addresses(come)
        # One address may be that of several endpoints.
        shared = _addresses(kept) if before or after else set()
        self._keep_slice(key, old, new)
        self._move_addresses(key, before - after - shared, after - before - shared)
        self._modified(new)
        if not self.telling:
            return _NOTHING
        differing = _reverse_entries(old, gone) ^ _reverse_entries(new, come)
        changes = {reverse_wire(entry[0]) for entry in differing}
        for item in (old, new):
            if item is not None:
                changes.update(self._service_wires(_service_key(item)))
        return Changes(frozenset(changes))

    def _keep_slice(self, key: Key, old: Slice | None, new: Slice | None) -> None:
        """Under its own key and among those of its Service, which a label may change."""
        if old is not None:
            del self._slices[key]
            owner = _service_key(old)
            state = self._states[owner]
            del state.slices[key.name]
            state.hosts = None
            if not state.slices:
                del self._states[owner]
        if new is not None:
            self._slices[key] = new
            state = self._states.setdefault(_service_key(new), _ServiceState())
            state.slices[key.name] = new
            state.hosts = None

    def _move_addresses(self, key: Key, gone: set[str], come: set[str]) -> None:
        """The slice has `gone` ready no more, and `come` now."""
        by_address = self._by_address
        for address in gone:
            left = tuple(other for other in _each(by_address[address]) if other != key)
            if not left:
                del by_address[address]
            else:
                by_address[address] = left if len(left) > 1 else left[0]
        for address in come:
            known = by_address.get(address)
            by_address[address] = key if known is None else (*_each(known), key)

    def set_pod(self, key: Key, old: Pod | None, new: Pod | None) -> Changes:
        """Pods count where `pods` is verified only."""
        before = self._pod_addresses(old)
        after = self._pod_addresses(new)
        for address in before - after:
            self._pods[address].discard(key)
            if not self._pods[address]:
                del self._pods[address]
        for address in after - before:
            self._pods.setdefault(address, set()).add(key)
        if before == after:
            return _NOTHING
        self._modified(new)
        if not self.telling:
            return _NOTHING
        return Changes(
            frozenset(
                wire_of((dashed(address).encode(), key.namespace.encode(), POD, *zone))
                for address in before ^ after
                for zone in self.forward_zones
            )
        )

    def _pod_addresses(self, pod: Pod | None) -> frozenset[str]:
        if pod is None or not self.options.labels.matches(pod.metadata.labels):
            return frozenset()
        return frozenset(filter(None, map(canonical, pod.addresses)))

    def _modified(self, obj: Object | None) -> None:
        """The serial is the newest version seen: replicas that saw the same tell the same."""
        version = obj.metadata.resource_version if obj is not None else ""
        if version.isdigit():
            self.serial = max(self.serial, int(version) & 0xFFFFFFFF)

    def _changed(self, key: Key, addresses: Iterable[str]) -> Changes:
        reverse = (reverse_wire(address) for address in addresses)
        return Changes(frozenset((*self._service_wires(key), *reverse)))

    def _service_wires(self, key: Key) -> list[bytes]:
        name, namespace = key.name.encode(), key.namespace.encode()
        return [wire_of((name, namespace, SVC, *zone)) for zone in self.forward_zones]

    # --- look-ups ---------------------------------------------------------------------------

    def service_kind(self, namespace: str, name: str) -> str:
        """The label of the programming latency (SLI dns_programming_latency)."""
        service = self._services.get(Key(namespace, name))
        if service is None or not service.spec.headless:
            return "cluster_ip"
        return f"headless_{'with' if service.spec.selector else 'without'}_selector"

    def namespace_exposed(self, name: str) -> bool:
        return name in self._namespaces

    def exposed_service(self, namespace: str, name: str) -> Service | None:
        service = self._services.get(Key(namespace, name))
        if service is None or namespace not in self._namespaces:
            return None
        spec = service.spec
        if (
            self.options.ignore_empty_service
            and spec.type != "ExternalName"
            and not spec.headless
            and next(self.targets(Key(namespace, name)), None) is None
        ):
            return None
        return service

    def targets(self, key: Key) -> Iterator[Target]:
        """Every address of every ready endpoint, in an order all replicas share."""
        state = self._states.get(key)
        if state is None or not self.options.endpoints:
            return
        for name in sorted(state.slices):
            item = state.slices[name]
            ports = tuple(item.ports or ())
            for endpoint, address in _ready(item.endpoints):
                yield Target(self._host(endpoint, address), address, ports)

    def hosts(self, key: Key) -> dict[str, list[Target]]:
        state = self._states.get(key)
        if state is None:
            return {}
        if state.hosts is None:
            state.hosts = {}
            for target in self.targets(key):
                state.hosts.setdefault(target.host.lower(), []).append(target)
        return state.hosts

    def _host(self, endpoint: Endpoint, address: str) -> str:
        if endpoint.hostname:
            return endpoint.hostname
        target = endpoint.target_ref
        # A pod's name may be longer than a label may be.
        if self.options.endpoint_pod_names and target and 0 < len(target.name) < 64:
            return target.name
        return dashed(address)

    def owner_of_cluster_ip(self, address: str) -> Key | None:
        """The Service with this cluster IP; the first by name, should several claim it."""
        for key in self._cluster_ips.get(address, ()):
            if key.namespace in self._namespaces:
                return key
        return None

    def targets_at(self, address: str) -> Iterator[tuple[Key, str]]:
        """Every exposed Service a ready endpoint with this address is behind, and its host."""
        for slice_key in sorted(_each(self._by_address.get(address, ()))):
            item = self._slices[slice_key]
            key = _service_key(item)
            if not _has_endpoints(self._services.get(key)):
                continue
            if key.namespace not in self._namespaces:
                continue
            for endpoint, own in _ready(item.endpoints):
                if own == address:
                    yield key, self._host(endpoint, address)

    def namespace_at(self, address: str) -> str | None:
        """The namespace of the pod with this address; None where pods of several share it (the
        node's), and where pods are not watched."""
        found = {key.namespace for key in self._pods.get(address, ())}
        return found.pop() if len(found) == 1 else None

    def pod_running(self, namespace: str, address: str) -> bool:
        return any(key.namespace == namespace for key in self._pods.get(address, ()))


def _cluster_ips(service: Service | None) -> frozenset[str]:
    if service is None or service.spec.type == "ExternalName":
        return frozenset()
    return frozenset(filter(None, map(canonical, service.spec.addresses)))


def _has_endpoints(service: Service | None) -> bool:
    """Below an ExternalName nothing exists, whatever slices name it."""
    return service is not None and service.spec.type != "ExternalName"


def _service_key(item: Slice) -> Key:
    return Key(item.metadata.namespace, item.service_name)


def _each(keys: Key | tuple[Key, ...]) -> tuple[Key, ...]:
    return (keys,) if isinstance(keys, Key) else keys


Endpoints = Sequence[Endpoint]


def _ready(endpoints: Endpoints) -> Iterator[tuple[Endpoint, str]]:
    """Every address, canonical, of every ready endpoint."""
    for endpoint in endpoints:
        if endpoint.ready:
            for text in endpoint.addresses:
                address = canonical(text)
                if address is not None:
                    yield endpoint, address


def _addresses(endpoints: Endpoints) -> set[str]:
    return {address for _, address in _ready(endpoints)}


def _unlike(old: Slice | None, new: Slice | None) -> tuple[Endpoints, Endpoints, Endpoints]:
    """Endpoints only `old` has, those only `new` has, and the others: one pod of a hundred comes
    or goes, and the rest of the slice is as it was, mostly in the same order."""
    if old is None or new is None or old.service_name != new.service_name:
        return (old.endpoints if old else ()), (new.endpoints if new else ()), ()
    before, after = old.endpoints, new.endpoints
    least = min(len(before), len(after))
    start = next((n for n in range(least) if before[n] != after[n]), least)
    least -= start
    end = next((n for n in range(least) if before[~n] != after[~n]), least)
    return (
        before[start : len(before) - end],
        after[start : len(after) - end],
        after[:start] + after[len(after) - end :],
    )


def _reverse_entries(item: Slice | None, endpoints: Endpoints) -> set[tuple[str, str, str, str]]:
    """What of a slice's endpoints reaches PTR records: address, Service, hostname, pod."""
    if item is None:
        return set()
    service = item.service_name
    return {
        (
            address,
            service,
            endpoint.hostname or "",
            endpoint.target_ref.name if endpoint.target_ref else "",
        )
        for endpoint, address in _ready(endpoints)
    }


def _same_endpoints(old: Slice, new: Slice) -> bool:
    return (
        old.endpoints == new.endpoints
        and old.ports == new.ports
        and old.service_name == new.service_name
    )
