"""Random worlds: what the specification derives is answered, and nothing else is.

The derivation here is written from the specification's tables alone, forwards: from the objects to
every record there is. The zone works the other way, from a question to its answer.
"""

from __future__ import annotations

import itertools
import random
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from ipaddress import ip_address

import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
from dns_worlds import UDP, World, cluster_ip, endpoint, external, headless, rows, slice_of
from hypothesis import given, settings
from hypothesis import strategies as st

from podwire.dns.index import Changes
from podwire.dns.names import parse_wire, wire_of
from podwire.dns.views import Port, Service, Slice

ZONE = "cluster.local."
# A world is a few hundred questions: a quarter of the profile's examples.
_EXAMPLES = max(1, settings().max_examples // 4)
TYPES = ("A", "AAAA", "SRV", "PTR", "CNAME", "TXT", "MX")
_SVC_NAMES, _NAMESPACES = ("web", "db", "x"), ("shop", "infra", "gone")
_PORTS = (
    Port(name="http", protocol="TCP", port=80),
    Port(name="dns", protocol="UDP", port=53),
    Port(name="dns", protocol="TCP", port=53),
    Port(name="", protocol="TCP", port=9000),
)
_V4 = tuple(f"10.1.0.{n}" for n in range(1, 6))
_V6 = tuple(f"fd00:1::{n}" for n in (1, 2, 0x10))
_OUTSIDE = "db.example.com."


@dataclass
class Derived:
    """Every record, by name and type; names that exist without any are keys with nothing."""

    records: dict[str, dict[str, set[str]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(set))
    )
    aliases: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, kind: str, *data: str) -> None:
        self.records[name][kind].update(data)

    def exists(self, name: str) -> None:
        self.records[name]


def _dashed(address: str) -> str:
    text = address.replace(".", "-").replace(":", "-")
    return text + "0" if text.endswith("-") else text


def _kind(address: str) -> str:
    return "AAAA" if ":" in address else "A"


def _weight(entries: int) -> int:
    return max(1, 100 // entries)


def derive(world: World) -> Derived:
    """Sections 2.2 to 2.5 of the specification, then what CoreDNS pins beyond it."""
    out = Derived()
    exposed = set(world.namespaces)
    out.add(f"dns-version.{ZONE}", "TXT", '"1.1.0"')
    for kind in ("svc", "pod", "dns"):  # `ns.dns` is the server's own name
        out.exists(f"{kind}.{ZONE}")
    for namespace in exposed:
        out.exists(f"{namespace}.svc.{ZONE}")
    claimed: dict[str, list[tuple[str, str]]] = defaultdict(list)
    behind: dict[str, set[str]] = defaultdict(set)
    for service in world.services:
        if service.metadata.namespace in exposed:
            _derive_service(world, service, out, claimed, behind)
    for address in {*claimed, *behind}:
        name = ip_address(address).reverse_pointer + "."
        if address in claimed:
            namespace, own = min(claimed[address])
            out.add(name, "PTR", f"{own}.{namespace}.svc.{ZONE}")
        else:
            out.add(name, "PTR", *behind[address])
    for name in [name for name in out.records if name.endswith(f".{ZONE}")]:
        while (name := name.partition(".")[2]) != ZONE:
            out.exists(name)  # what has names below it (RFC 8020)
    return out


def _ready(world: World, service: Service) -> list[tuple[str, str, tuple[Port, ...]]]:
    found = []
    for item in world.slices:
        if (item.metadata.namespace, item.service_name) != service.key:
            continue
        for entry in item.endpoints:
            if entry.conditions.ready is not False:
                found += [
                    (entry.hostname or _dashed(address), address, tuple(item.ports or ()))
                    for address in entry.addresses
                ]
    return found


def _derive_service(
    world: World,
    service: Service,
    out: Derived,
    claimed: dict[str, list[tuple[str, str]]],
    behind: dict[str, set[str]],
) -> None:
    namespace, short = service.key
    name = f"{short}.{namespace}.svc.{ZONE}"
    if service.spec.type == "ExternalName":
        out.add(name, "CNAME", service.spec.external_name)
        out.aliases[name] = service.spec.external_name
        return
    ready = _ready(world, service)
    for host, address, ports in ready:
        out.add(f"{host}.{name}", _kind(address), address)
        behind[address].add(f"{host}.{name}")
        mine = [entry for entry in ready if entry[0] == host]
        for port in ports:
            weight = _weight(sum(max(1, len(entry[2])) for entry in mine))
            out.add(f"{host}.{name}", "SRV", f"0 {weight} {port.port} {host}.{name}")
    if service.spec.cluster_ip == "None":
        if ready:
            _derive_headless(name, ready, out)
        return
    out.exists(name)
    for address in service.spec.cluster_ips:
        out.add(name, _kind(address), address)
        claimed[address].append((namespace, short))
    _derive_ports(name, name, service.spec.ports, len(service.spec.cluster_ips), out)


def _derive_ports(
    name: str, target: str, ports: tuple[Port, ...], addresses: int, out: Derived
) -> None:
    for port in ports:
        every = _weight(addresses * len(ports))
        out.add(name, "SRV", f"0 {every} {port.port} {target}")
        if port.name:
            owner = f"_{port.name}._{(port.protocol or '').lower()}.{name}"
            out.add(owner, "SRV", f"0 {_weight(addresses)} {port.port} {target}")


def _derive_headless(
    name: str, ready: list[tuple[str, str, tuple[Port, ...]]], out: Derived
) -> None:
    everything = sum(max(1, len(ports)) for _, _, ports in ready)
    named = defaultdict(list)
    for host, address, ports in ready:
        out.add(name, _kind(address), address)
        for port in ports:
            out.add(name, "SRV", f"0 {_weight(everything)} {port.port} {host}.{name}")
            if port.name:
                named[port.name, (port.protocol or "").lower()].append((host, port.port))
    for (port_name, protocol), entries in named.items():
        for host, number in entries:
            owner = f"_{port_name}._{protocol}.{name}"
            out.add(owner, "SRV", f"0 {_weight(len(entries))} {number} {host}.{name}")


# --- worlds -----------------------------------------------------------------------------------

_hosts = st.sampled_from((None, None, "host-a", "host-b"))
_ports = st.lists(st.sampled_from(_PORTS), max_size=3, unique=True).map(tuple)


@st.composite
def _services(draw: st.DrawFn) -> list[Service]:
    found = []
    for namespace in _NAMESPACES:
        for name in draw(st.sets(st.sampled_from(_SVC_NAMES))):
            shape = draw(st.sampled_from(("ip", "dual", "headless", "headless", "external")))
            ports = draw(_ports)
            number = len(found) + 1
            if shape == "external":
                inside = f"{draw(st.sampled_from(_SVC_NAMES))}.shop.svc.{ZONE}"
                target = draw(st.sampled_from((_OUTSIDE, inside)))
                found.append(external(namespace, name, target))
            elif shape == "headless":
                found.append(headless(namespace, name, ports))
            else:
                addresses = [f"10.96.0.{number}", f"fd00:96::{number}"][: 1 + (shape == "dual")]
                found.append(cluster_ip(namespace, name, *addresses, ports=ports))
    return found


@st.composite
def _slices(draw: st.DrawFn) -> list[Slice]:
    found = []
    for number in range(draw(st.integers(0, 6))):
        v6 = draw(st.booleans())
        pool = st.sampled_from(_V6 if v6 else _V4)
        endpoints = [
            endpoint(
                draw(pool), host=draw(_hosts), ready=draw(st.sampled_from((True, None, False)))
            )
            for _ in range(draw(st.integers(0, 3)))
        ]
        found.append(
            slice_of(
                draw(st.sampled_from(_NAMESPACES)),
                draw(st.sampled_from(_SVC_NAMES)),
                *endpoints,
                ports=draw(_ports),
                suffix=str(number),
                family="IPv6" if v6 else "IPv4",
            )
        )
    return found


@st.composite
def worlds(draw: st.DrawFn) -> World:
    exposed = draw(st.sets(st.sampled_from(_NAMESPACES[:2])))
    return World(sorted(exposed), draw(_services()), draw(_slices()))


def _strangers() -> list[str]:
    """Names that might exist, in this world or another."""
    found = [f"nothing.{ZONE}", f"dns.{ZONE}", f"x.dns-version.{ZONE}", f"a.b.c.d.svc.{ZONE}"]
    for namespace in (*_NAMESPACES, "never"):
        found.append(f"{namespace}.svc.{ZONE}")
        found.append(f"{namespace}.pod.{ZONE}")
        for service in (*_SVC_NAMES, "never"):
            name = f"{service}.{namespace}.svc.{ZONE}"
            prefixes = ("_http._tcp", "_dns._udp", "_dns._tcp", "_._tcp", "_tcp", "dns.udp")
            found += [name, *(f"{prefix}.{name}" for prefix in (*prefixes, "host-a", "never"))]
            found += [f"{_dashed(address)}.{name}" for address in (*_V4, *_V6)]
    addresses = (*_V4, *_V6, "10.96.0.1", "fd00:96::1", "10.9.9.9")
    return found + [ip_address(address).reverse_pointer + "." for address in addresses]


STRANGERS = _strangers()


def _follow(truth: Derived, name: str) -> list[str] | None:
    """The names of an alias chain, the first one's included; None where it loops."""
    chain = [name]
    while (target := truth.aliases.get(chain[-1])) is not None:
        if target in chain:
            return None
        chain.append(target)
    return chain


def check(world: World, truth: Derived, name: str, kind: str) -> None:
    chain = _follow(truth, name) if kind != "CNAME" else [name]
    if chain is not None and chain[-1] == _OUTSIDE:
        labels = parse_wire(dns.name.from_text(name).to_wire())
        found = world.answers.zone.lookup(labels, dns.rdatatype.from_text(kind))
        assert found is not None
        assert found.external == dns.name.from_text(_OUTSIDE)
        return
    message = world.ask(name, kind)
    got = {
        (str(rrset.name), dns.rdatatype.to_text(rrset.rdtype), rdata.to_text())
        for rrset in message.answer
        for rdata in rrset
    }
    if chain is None:
        assert (message.rcode(), got) == (dns.rcode.NOERROR, set()), (name, kind)
        return
    wanted = {(at, "CNAME", to) for at, to in itertools.pairwise(chain)}
    last = truth.records.get(chain[-1])
    wanted |= {(chain[-1], kind, data) for data in (last or {}).get(kind, ())}
    assert got == wanted, (name, kind)
    assert message.rcode() == (dns.rcode.NXDOMAIN if last is None else dns.rcode.NOERROR), name
    negative = not any(found[1] == kind for found in wanted)
    assert bool(message.authority) == negative, (name, kind)


@settings(max_examples=_EXAMPLES)
@given(worlds(), st.integers())
def test_all_that_is_derivable_and_nothing_else(world: World, seed: int) -> None:
    truth = derive(world)
    for name in {*truth.records, *random.Random(seed).sample(STRANGERS, 80)}:
        for kind in TYPES:
            check(world, truth, name, kind)


_CHANGE_QUESTIONS = [
    (f"{prefix}{name}.{namespace}.svc.{ZONE}", kind)
    for name in (*_SVC_NAMES, "never")
    for namespace in ("shop", "infra")
    for prefix, kind in (("", "A"), ("", "AAAA"), ("_http._tcp.", "SRV"), ("10-1-0-1.", "A"))
] + [(name, "PTR") for name in STRANGERS if name.endswith("arpa.")]


def _reply(world: World, name: str, kind: str) -> object:
    """By UDP, so that it is kept; None for an alias that leads outside."""
    query = dns.message.make_query(name, kind, id=7, use_edns=False).to_wire()
    response = world.answers.answer(query, UDP)
    if response is None:
        return None
    message = dns.message.from_wire(response)
    return message.rcode(), rows(message.answer), rows(message.additional), rows(message.authority)


def _steps(before: World, after: World) -> list[Callable[[], Changes]]:
    """Every change that leads from one world to the other, bound to the first."""
    services = {service.key for service in after.services}
    slices = {item.key for item in after.slices}
    gone = set(before.namespaces) - set(after.namespaces)
    return [
        *(partial(before.remove_service, s) for s in before.services if s.key not in services),
        *(partial(before.set_service, s) for s in after.services),
        *(partial(before.remove_slice, s) for s in before.slices if s.key not in slices),
        *(partial(before.set_slice, s) for s in after.slices),
        *(partial(before.remove_namespace, name) for name in gone),
        *(partial(before.set_namespace, name) for name in after.namespaces),
    ]


def _aliases(*some: World) -> set[str]:
    """Names whose answers another's change may change: a change names only the other."""
    return {
        f"{service.metadata.name}.{service.metadata.namespace}.svc.{ZONE}"
        for world in some
        for service in world.services
        if service.spec.type == "ExternalName"
    }


@settings(max_examples=_EXAMPLES)
@given(worlds(), worlds(), st.integers())
def test_changes_evict_what_they_touch(before: World, after: World, seed: int) -> None:
    """From one world to another in any order, all asked after each step: nothing stale, and what
    a step does not name stays as it was."""
    steps = _steps(before, after)
    random.Random(seed).shuffle(steps)
    aliases = _aliases(before, after)
    known = {question: _reply(before, *question) for question in _CHANGE_QUESTIONS}
    for step in steps:
        changes = step()
        for question in _CHANGE_QUESTIONS:
            reply = _reply(before, *question)
            wire = dns.name.from_text(question[0]).to_wire()
            if question[0] not in aliases and not changes.covers(wire):
                assert reply == known[question], question
            known[question] = reply
    fresh = World(after.namespaces, after.services, after.slices)
    for question in _CHANGE_QUESTIONS:
        assert known[question] == _reply(fresh, *question), question


@given(st.lists(st.binary(min_size=1, max_size=63), max_size=3).map(tuple))
def test_names_survive_their_wire_form(labels: tuple[bytes, ...]) -> None:
    assert parse_wire(wire_of(labels)) == labels
