"""The cluster's zone: what every name means. Pure.

name, type -> Zone.lookup -> Answer, or None where the name is not ours

Sources: kubernetes/dns docs/specification.md (schema 1.1.0) and, where it is silent, what CoreDNS
answers (plugin/kubernetes handler.go, kubernetes.go, reverse.go, ns.go and their tests). Answers
are derived from the index when they are asked for. An answer names its `roots`, the subtrees it
was derived from, and a change of an object names subtrees too, so whoever keeps an answer knows
when to drop it, a negative one as well.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

import dns.name
import dns.rcode
import dns.rdatatype

from podwire.dns import rdatas
from podwire.dns.index import POD, SVC, Index, PodMode, Target
from podwire.dns.names import (
    Labels,
    canonical,
    dashed,
    is_reverse,
    labels_of,
    name_of,
    parse_reverse,
    parse_target,
    wire_of,
)
from podwire.dns.rdatas import Record
from podwire.dns.views import Port, Service
from podwire.objects.meta import Key

SCHEMA_VERSION = "1.1.0"
_SCHEMA_TTL_S = 28800
_MAX_CHAIN = 8  # CNAMEs in one answer (CoreDNS, plugin/backend_lookup.go)
_A, _AAAA, _SRV = dns.rdatatype.A, dns.rdatatype.AAAA, dns.rdatatype.SRV


@dataclass(frozen=True, slots=True)
class Answer:
    """What a question is answered with; a negative one carries the zone's SOA.

    `external`: an alias that leads out of the cluster; whoever asked wants its records appended.
    `roots`: the subtrees (lower-case wire) it was derived from; none: not to be kept.
    `bounded`: there are at most as many such questions as there are objects.
    """

    zone: Labels
    rcode: dns.rcode.Rcode = dns.rcode.NOERROR
    records: tuple[Record, ...] = ()
    additional: tuple[Record, ...] = ()
    external: dns.name.Name | None = None
    roots: frozenset[bytes] = frozenset()
    bounded: bool = True

    @property
    def negative(self) -> bool:
        return not self.records or self.rcode != dns.rcode.NOERROR


class _Asked(NamedTuple):
    """A question about a Service: `root` is the Service's own name, `key` the Service."""

    zone: Labels
    labels: Labels
    rtype: int
    key: Key
    root: bytes


class Zone:
    """Everything known of the cluster, and every answer derivable from it."""

    def __init__(self, index: Index) -> None:
        self.index = index
        self.options = index.options
        zones = [labels_of(zone) for zone in self.options.zones]
        self._zones = sorted(zones, key=len, reverse=True)
        self._zone_wires = tuple(wire_of(zone) for zone in self._zones)
        self.primary: Labels = next(iter(index.forward_zones), ())
        self._fallthrough = tuple(labels_of(zone) for zone in self.options.fallthrough or ())

    # --- questions ----------------------------------------------------------------------------

    def owns(self, name: bytes) -> bool:
        """Whether `name` (lower-case wire form) is at or below one of the zones."""
        at = 0
        while True:
            if name[at:] in self._zone_wires:
                return True
            length = name[at]
            if not length:
                return False
            at += 1 + length

    def zone_of(self, labels: Labels) -> Labels | None:
        for zone in self._zones:
            if labels[len(labels) - len(zone) :] == zone and len(labels) >= len(zone):
                return zone
        return None

    def falls_through(self, labels: Labels) -> bool:
        """Whether others may answer an unknown name."""
        if self.options.fallthrough is None:
            return False
        return not self._fallthrough or any(
            labels[-len(zone) :] == zone if zone else True for zone in self._fallthrough
        )

    def soa(self, zone: Labels) -> Record:
        ttl = self.options.ttl_s
        return Record(name_of(zone), min(ttl, 300), rdatas.soa(zone, self.index.serial, ttl))

    def lookup(self, labels: Labels, rtype: int) -> Answer | None:
        """The answer to a question of class IN; None: none of our zones has the name."""
        zone = self.zone_of(labels)
        if zone is None:
            return None
        below = labels[: len(labels) - len(zone)]
        if not below:
            return self._apex(zone, rtype)
        if is_reverse(zone):
            return self._reverse(zone, labels, rtype)
        kind = below[-1]
        if kind == SVC:
            return self._service(zone, labels, below[:-1], rtype)
        if kind == POD:
            return self._pod(zone, labels, below[:-1], rtype)
        if below == (b"dns-version",):
            return self._version(zone, labels, rtype)
        if below == (b"ns", b"dns"):
            return self._name_server(zone, labels, rtype)
        if below == (b"dns",):
            return self._empty(zone, wire_of(labels))
        return self._unknown(zone, wire_of(labels))

    def _unknown(self, zone: Labels, root: bytes) -> Answer:
        return Answer(zone, dns.rcode.NXDOMAIN, roots=frozenset({root}), bounded=False)

    def _empty(self, zone: Labels, root: bytes) -> Answer:
        return Answer(zone, roots=frozenset({root}), bounded=False)

    def _apex(self, zone: Labels, rtype: int) -> Answer:
        if rtype == dns.rdatatype.SOA:
            return Answer(zone, records=(self.soa(zone),))
        if rtype == dns.rdatatype.NS:
            servers = self._name_servers(zone)
            names = dict.fromkeys(name for name, _ in servers)
            ttl, origin = self.options.ttl_s, name_of(zone)
            return Answer(
                zone,
                records=tuple(Record(origin, ttl, rdatas.ns(name)) for name in names),
                additional=tuple(self._address(name, address) for name, address in servers),
            )
        return Answer(zone)

    def _name_servers(self, zone: Labels) -> list[tuple[dns.name.Name, str]]:
        """The Services this server is an endpoint of, else itself (CoreDNS, ns.go)."""
        found: dict[tuple[dns.name.Name, str], None] = {}
        for own in self.options.local_addresses:
            for key, _ in self.index.targets_at(own):
                service = self.index.exposed_service(*key)
                if service is None:
                    continue
                if not service.spec.headless:
                    name = self._target_name(self.primary, key)
                    found.update({(name, address): None for address in service.spec.addresses})
                    continue
                for target in self.index.targets(key):
                    found[self._target_name(self.primary, key, target.host), target.address] = None
        if found:
            return list(found)
        own_name = name_of((b"ns", b"dns", *zone))
        return [(own_name, address) for address in self.options.local_addresses]

    def _name_server(self, zone: Labels, labels: Labels, rtype: int) -> Answer:
        addresses = dict.fromkeys(address for _, address in self._name_servers(zone))
        return Answer(zone, records=self._addresses(name_of(labels), addresses, rtype))

    def _version(self, zone: Labels, labels: Labels, rtype: int) -> Answer:
        roots = frozenset({wire_of(labels)})
        if rtype != dns.rdatatype.TXT:
            return Answer(zone, roots=roots)
        record = Record(name_of(labels), _SCHEMA_TTL_S, rdatas.txt(SCHEMA_VERSION))
        return Answer(zone, records=(record,), roots=roots)

    # --- Services -----------------------------------------------------------------------------

    def _service(self, zone: Labels, labels: Labels, below: Labels, rtype: int) -> Answer:
        if len(below) < 2:
            known = not below or self.index.namespace_exposed(_text(below[0]))
            root = wire_of(labels)
            return self._empty(zone, root) if known else self._unknown(zone, root)
        prefix = below[:-2]
        name, namespace = (_text(label) for label in below[-2:])
        root = wire_of(labels[len(prefix) :])
        asked = _Asked(zone, labels, rtype, Key(namespace, name), root)
        service = self.index.exposed_service(namespace, name)
        if service is None or len(prefix) > 2:
            return self._unknown(zone, root)
        if service.spec.type == "ExternalName":
            return self._unknown(zone, root) if prefix else self._alias(asked, service)
        if len(prefix) == 1:
            if prefix[0][:1] == b"_":
                return self._protocol(asked, service, prefix[0])
            targets = self.index.hosts(asked.key).get(_text(prefix[0]), [])
            return self._of_targets(asked, targets)
        if service.spec.headless:
            return self._headless(asked, prefix)
        return self._cluster_ip(asked, service, prefix)

    def _protocol(self, asked: _Asked, service: Service, label: bytes) -> Answer:
        """`_tcp` is above the names of ports, and so exists with them: who is told that it does not
        may take that for all below (RFC 8020), and resolvers that ask label by label (RFC 9156) do.
        """
        ports: Iterable[Port] = service.spec.ports
        if service.spec.headless:
            ports = (port for target in self.index.targets(asked.key) for port in target.ports)
        if any(port.name and _protocol_of(port) == _text(label) for port in ports):
            return Answer(asked.zone, roots=frozenset({asked.root}))
        return self._unknown(asked.zone, asked.root)

    def _cluster_ip(self, asked: _Asked, service: Service, prefix: Labels) -> Answer:
        ports = _matching(service.spec.ports, prefix)
        if prefix and not ports:
            return self._unknown(asked.zone, asked.root)
        addresses = filter(None, map(canonical, service.spec.addresses))
        if asked.rtype == _SRV:
            return self._srv(asked, [Target("", address, ports) for address in addresses])
        return self._of_addresses(asked, () if prefix else addresses)

    def _headless(self, asked: _Asked, prefix: Labels) -> Answer:
        targets = list(self.index.targets(asked.key))
        if prefix:
            targets = [target._replace(ports=_matching(target.ports, prefix)) for target in targets]
            targets = [target for target in targets if target.ports]
        return self._of_targets(asked, targets, addressed=not prefix)

    def _of_targets(
        self, asked: _Asked, targets: list[Target], *, addressed: bool = True
    ) -> Answer:
        """A name that stands for endpoints exists while one of them is ready; a port's name has
        no addresses itself."""
        if not targets:
            return self._unknown(asked.zone, asked.root)
        if asked.rtype == _SRV:
            return self._srv(asked, targets)
        addresses = dict.fromkeys(target.address for target in targets)
        return self._of_addresses(asked, addresses if addressed else ())

    def _of_addresses(self, asked: _Asked, addresses: Iterable[str]) -> Answer:
        records = self._addresses(name_of(asked.labels), addresses, asked.rtype)
        return Answer(asked.zone, records=records, roots=frozenset({asked.root}))

    def _srv(self, asked: _Asked, entries: list[Target]) -> Answer:
        """One record per name and port; weights share 100 among all entries, at least 1 each."""
        count = sum(max(1, len(entry.ports)) for entry in entries)
        weight = max(1, 100 // count) if count else 1
        owner, ttl = name_of(asked.labels), self.options.ttl_s
        names = {
            entry.host: self._target_name(asked.zone, asked.key, entry.host) for entry in entries
        }
        pairs = dict.fromkeys(
            (entry.host, port.port) for entry in entries for port in entry.ports if port.port
        )
        records = tuple(
            Record(owner, ttl, rdatas.srv(weight, port, names[host])) for host, port in pairs
        )
        shown = {host for host, _ in pairs}
        glue = dict.fromkeys(
            (entry.host, entry.address) for entry in entries if entry.host in shown
        )
        additional = tuple(self._address(names[host], address) for host, address in glue)
        return Answer(
            asked.zone, records=records, additional=additional, roots=frozenset({asked.root})
        )

    def _alias(self, asked: _Asked, service: Service) -> Answer:
        """A CNAME, and what it leads to inside the cluster; outside is for the slow path."""
        target = parse_target(service.spec.external_name)
        if target is None:
            return self._unknown(asked.zone, asked.root)
        record = Record(name_of(asked.labels), self.options.ttl_s, rdatas.cname(target))
        answer = Answer(asked.zone, records=(record,), roots=frozenset({asked.root}))
        # ANY asks for what is at the name, and that is the alias (RFC 1034 3.6.2).
        if asked.rtype in (dns.rdatatype.CNAME, dns.rdatatype.ANY):
            return answer
        return self._chase(answer, target, asked.rtype)

    def _chase(self, answer: Answer, target: dns.name.Name, rtype: int) -> Answer:
        seen = {record.name for record in answer.records}
        while target not in seen and len(seen) < _MAX_CHAIN:
            labels = tuple(label.lower() for label in target.labels[:-1])
            zone = self.zone_of(labels)
            if zone is None:
                return replace(answer, external=target)
            found = self._step(zone, labels, rtype)
            answer = replace(
                answer,
                zone=found.zone if found.negative else answer.zone,
                rcode=found.rcode,
                records=answer.records + found.records,
                additional=found.additional,
                # What is not to be kept makes the whole chain so.
                roots=answer.roots | found.roots if found.roots else frozenset(),
            )
            following = rdatas.alias_target(found.records[-1].rdata) if found.records else None
            if following is None:
                return answer
            seen.add(target)
            target = following
        # A loop leads nowhere: the name exists and has nothing (CoreDNS adds no such alias).
        return replace(answer, rcode=dns.rcode.NOERROR, records=(), additional=())

    def _step(self, zone: Labels, labels: Labels, rtype: int) -> Answer:
        """One link: an alias is asked for itself only, so that the chain is walked in one place."""
        alias = self.lookup(labels, dns.rdatatype.CNAME)
        if alias is not None and alias.records:
            return alias
        found = self.lookup(labels, rtype)
        assert found is not None, zone
        return found

    def _target_name(self, zone: Labels, key: Key, host: str = "") -> dns.name.Name:
        labels: Labels = (key.name.encode(), key.namespace.encode(), SVC, *zone)
        return name_of((host.encode(), *labels) if host else labels)

    # --- addresses and pods -------------------------------------------------------------------

    def _reverse(self, zone: Labels, labels: Labels, rtype: int) -> Answer:
        root = wire_of(labels)
        address = parse_reverse(labels)
        names = self._names_at(address) if address else []
        if not names:
            return self._unknown(zone, root)
        records = [Record(name_of(labels), self.options.ttl_s, rdatas.ptr(name)) for name in names]
        wanted = tuple(records) if rtype == dns.rdatatype.PTR else ()
        return Answer(zone, records=wanted, roots=frozenset({root}))

    def _names_at(self, address: str) -> list[dns.name.Name]:
        """The Service whose cluster IP it is, else one name per Service the pod is behind."""
        owner = self.index.owner_of_cluster_ip(address)
        if owner is not None:
            return [self._target_name(self.primary, owner)]
        targets = dict.fromkeys(self.index.targets_at(address))
        return [self._target_name(self.primary, key, host) for key, host in targets]

    def _pod(self, zone: Labels, labels: Labels, below: Labels, rtype: int) -> Answer:
        root = wire_of(labels)
        if not below:
            return self._empty(zone, root)
        mode = self.options.pods
        namespace = _text(below[-1])
        if (
            mode == PodMode.DISABLED
            or not self.index.namespace_exposed(namespace)
            or len(below) > 2
        ):
            return self._unknown(zone, root)
        if len(below) == 1:
            return self._empty(zone, root)
        label = _text(below[0])
        address = _spelt_address(label)
        if address is None:
            return self._unknown(zone, root)
        # A pod has one name, which its changes touch: other spellings of its address are none.
        if mode == PodMode.VERIFIED and not (
            label == dashed(address) and self.index.pod_running(namespace, address)
        ):
            return self._unknown(zone, root)
        records = self._addresses(name_of(labels), (address,), rtype)
        # Insecure, every address is a name.
        bounded = mode == PodMode.VERIFIED
        return Answer(zone, records=records, roots=frozenset({root}), bounded=bounded)

    def _addresses(
        self, owner: dns.name.Name, addresses: Iterable[str], rtype: int
    ) -> tuple[Record, ...]:
        if rtype not in (_A, _AAAA):
            return ()
        return tuple(
            self._address(owner, address)
            for address in addresses
            if (":" in address) == (rtype == _AAAA)
        )

    def _address(self, owner: dns.name.Name, address: str) -> Record:
        return Record(owner, self.options.ttl_s, rdatas.address(address))


def _matching(ports: Iterable[Port], wanted: Labels) -> tuple[Port, ...]:
    """All ports for no prefix; the one named by `_port._protocol`; none for any other prefix."""
    if not wanted:
        return tuple(ports)
    name, protocol = (_text(label) for label in wanted)
    if name[:1] != "_" or protocol[:1] != "_" or len(name) < 2:
        return ()
    return tuple(
        port
        for port in ports
        if (port.name or "").lower() == name[1:] and _protocol_of(port) == protocol
    )


def _protocol_of(port: Port) -> str:
    return f"_{(port.protocol or 'TCP').lower()}"


def _spelt_address(label: str) -> str | None:
    """`10-0-0-1` and `fd00--1`: the address, canonical."""
    v4 = label.count("-") == 3 and "--" not in label
    return canonical(label.replace("-", "." if v4 else ":"))


def _text(label: bytes) -> str:
    return label.decode("latin-1")
