"""Why policies let a connection through or do not, to the line of the manifest. Pure.

    SRC DST:PORT + StaticWorld -> flows (a Service stands for its endpoints) -> evaluate
        -> per direction: the rule that decided, or the policies that isolate and the nearest rule

SRC: [NS/]POD, [NS/]WORKLOAD, ADDRESS, outside
DST: svc/[NS/]NAME[:PORT], [NS/]POD:PORT, [NS/]WORKLOAD:PORT, ADDRESS:PORT, outside:PORT

`outside` is every address beyond the pods: an answer for each part of it that is treated alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final

import msgspec

from podwire.errors import NotFoundError, UsageError
from podwire.explain.entries import Entry, selected_by, target_ports
from podwire.explain.staticworld import StaticWorld
from podwire.explain.workloads import Owner, Talker
from podwire.objects.core import Service
from podwire.objects.meta import Key, View
from podwire.policy.classviews import EXTERNAL
from podwire.policy.evaluate import (
    DEFAULT,
    Case,
    Flow,
    Judgement,
    Party,
    PolicySet,
    Semantics,
    evaluate,
)
from podwire.policy.model import PROTOCOL_NAMES, PROTOCOLS, Address, Direction, PortRange, Rule
from podwire.policy.nearest import Miss, Near, ServicePort, find_nearest
from podwire.policy.reach import Reach
from podwire.policy.world import NodeView, owners_of

OUTSIDE: Final = "outside"
_SHOWN: Final = 3
_MAKE: Final[Mapping[int, Callable[[int], Address]]] = {4: IPv4Address, 6: IPv6Address}
_REASONS: Final = {
    "no policy": "no policy selects it in this direction",
    "no rule": "policies select it and none of their rules decides",
    "not a pod": "it has no policies of its own: it is no pod, or on its node's network",
    "own node": "a pod and its own node may always talk",
    "self": "a pod's own address never leaves it",
}


class Told(View):
    """A policy or rule, and where it was read: `at` is `file:line`, "" for a live one."""

    text: str
    at: str = ""

    def __str__(self) -> str:
        return f"{self.text} at {self.at}" if self.at else self.text


class MissTold(View):
    """One field that differs; see `policy.nearest`."""

    what: str
    field: str
    wanted: str
    found: str
    text: str
    at: str = ""


class NearTold(View):
    """The rule that almost let the connection through."""

    rule: Told
    misses: tuple[MissTold, ...]


class DirectionWhy(View):
    direction: str
    pod: str
    allowed: bool
    reason: str
    text: str
    rule: Told | None = None
    isolating: tuple[Told, ...] = ()
    passed: tuple[Told, ...] = ()
    nearest: NearTold | None = None


class PolicyWhy(View):
    """One connection as policies see it: the pod's own port, after a Service's translation."""

    source: str
    destination: str
    protocol: str
    port: int
    allowed: bool
    via: str = ""
    directions: tuple[DirectionWhy, ...] = ()


@dataclass(frozen=True)
class End:
    """One end of a connection, and what it is called."""

    name: str
    party: Party
    talker: Talker | None = None


@dataclass(frozen=True)
class _Asked:
    """A destination with the port policies see."""

    end: End
    protocol: int
    port: int
    via: str = ""
    services: tuple[ServicePort, ...] = ()


def explain_policies(
    static: StaticWorld,
    source: str,
    destination: str,
    protocol: str | None = None,
    semantics: Semantics = DEFAULT,
    version: int = 4,
) -> list[PolicyWhy]:
    """One per pair of ends that policies tell apart: of a workload, of the endpoints of a Service,
    of the outside in one family of addresses.

    Raises `NotFoundError` and `UsageError` for words that mean nothing.
    """
    reach = Reach(static.world, static.policy_set, semantics, version)
    sources = _sources(static, reach, source)
    namespace = sources[0].talker.view.key.namespace if sources[0].talker else "default"
    asked = list(_destinations(static, reach, destination, protocol, namespace))
    policies = static.policy_set
    found: dict[object, list[PolicyWhy]] = {}
    for one in sources:
        for other in asked:
            why = _explain(static, policies, semantics, one, other)
            key = _whose(one), _whose(other.end), _nameless(why)
            found.setdefault(key, []).append(why)
    return [_together(alike) for alike in found.values()]


def _whose(end: End) -> Owner | str:
    if end.talker is not None:
        return end.talker.owner
    return EXTERNAL if end.name.endswith(EXTERNAL) else end.name


def _nameless(why: PolicyWhy) -> PolicyWhy:
    """What is the same of replicas, and of addresses, that are treated alike."""
    outside = why.source.endswith(EXTERNAL) or why.destination.endswith(EXTERNAL)
    directions = tuple(
        # What almost matched is another for each address.
        msgspec.structs.replace(each, pod="", nearest=None if outside else each.nearest)
        for each in why.directions
    )
    return msgspec.structs.replace(why, source="", destination="", directions=directions)


def _together(alike: Sequence[PolicyWhy]) -> PolicyWhy:
    """The first speaks for all; several ranges of addresses are named."""
    first = alike[0]
    names = {"source": first.source, "destination": first.destination}
    for end, name in names.items():
        ranges = list(dict.fromkeys(getattr(why, end) for why in alike))
        if name.endswith(EXTERNAL) and len(ranges) > 1:
            more = f" and {len(ranges) - _SHOWN} more" if len(ranges) > _SHOWN else ""
            names[end] = ", ".join(ranges[:_SHOWN]) + more
    subjects = {"egress": names["source"], "ingress": names["destination"]}
    directions = tuple(
        msgspec.structs.replace(each, pod=subjects[each.direction]) for each in first.directions
    )
    return msgspec.structs.replace(first, **names, directions=directions)


def _explain(
    static: StaticWorld, policies: PolicySet, semantics: Semantics, source: End, asked: _Asked
) -> PolicyWhy:
    talker = asked.end.talker
    # What a template makes may be several pods, that meet each other and not themselves.
    judged = bool(asked.via) or (talker is not None and not talker.real)
    flow = Flow(source.party, asked.end.party, asked.protocol, asked.port, hairpin=judged)
    decision = evaluate(flow, policies, static.world, semantics)
    teller = _Teller(static, policies, asked.services)
    return PolicyWhy(
        source=source.name,
        destination=asked.end.name,
        protocol=PROTOCOL_NAMES[asked.protocol],
        port=asked.port,
        allowed=decision.allowed,
        via=asked.via,
        directions=(
            teller.tell(
                Case("egress", flow, static.world, semantics), decision.egress, source.name
            ),
            teller.tell(
                Case("ingress", flow, static.world, semantics), decision.ingress, asked.end.name
            ),
        ),
    )


def explain_ends(
    static: StaticWorld,
    source: End,
    destination: End,
    protocol: int,
    port: int,
    *,
    via: str = "",
    services: tuple[ServicePort, ...] = (),
    semantics: Semantics = DEFAULT,
) -> PolicyWhy:
    """Of two ends that are known; `via` is the Service between them, `services` are ports that
    lead to `port`."""
    asked = _Asked(destination, protocol, port, via, services)
    return _explain(static, static.policy_set, semantics, source, asked)


# --- in words -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Teller:
    static: StaticWorld
    policies: PolicySet
    services: tuple[ServicePort, ...]

    def tell(self, case: Case, judgement: Judgement, name: str) -> DirectionWhy:
        near = None
        if not judgement.allowed:
            near = find_nearest(case, judgement, self.policies, self.services)
        origins = self.static.origins
        rule = judgement.rule
        return DirectionWhy(
            direction=judgement.direction,
            pod=name,
            allowed=judgement.allowed,
            reason=judgement.reason,
            text=_text(judgement),
            rule=None if rule is None else self._told(rule),
            isolating=tuple(Told(text=str(r), at=origins.of(r)) for r in judgement.isolating),
            passed=tuple(map(self._told, judgement.passed)),
            nearest=None if near is None else self._near(near),
        )

    def _told(self, rule: Rule) -> Told:
        return Told(text=str(rule), at=self.static.origins.of(rule.policy, rule.path))

    def _near(self, near: Near) -> NearTold:
        return NearTold(
            rule=self._told(near.rule),
            misses=tuple(self._miss(near, miss) for miss in near.misses),
        )

    def _miss(self, near: Near, miss: Miss) -> MissTold:
        return MissTold(
            what=miss.what,
            field=miss.field,
            wanted=miss.wanted,
            found=miss.found,
            text=str(miss),
            at=self.static.origins.of(near.rule.policy, miss.field),
        )


def _text(judgement: Judgement) -> str:
    if judgement.rule is not None:
        verb = {"Accept": "accepts", "Deny": "denies"}.get(judgement.rule.action, "decides")
        return f"a rule {verb} it"
    if judgement.reason == "isolated":
        return "policies isolate it, and none of their rules accepts this"
    return _REASONS[judgement.reason]


# --- who is meant -------------------------------------------------------------------------------


def _sources(static: StaticWorld, reach: Reach, text: str) -> list[End]:
    if text == OUTSIDE:
        return _outside(reach, "ingress")
    if (address := _address(static, text)) is not None:
        return [address]
    return _talkers(static, reach, text, "default")


def _outside(reach: Reach, direction: Direction) -> list[End]:
    """The ranges that rules of the direction tell apart, by an address of each."""
    return [
        End(f"{span}{EXTERNAL}", Party(_MAKE[span.version](span.first)))
        for span in reach.outside(direction)
    ]


def _address(static: StaticWorld, text: str) -> End | None:
    """Who has the address, if anybody here."""
    try:
        address = ip_address(text.strip("[]"))
    except ValueError:
        return None
    owner = owners_of(static.world).get(address)
    if isinstance(owner, NodeView):
        return End(f"node/{owner.name}", Party(address, node=owner))
    for talker in static.talkers:
        if owner is not None and talker.view.key == owner.key:
            return End(str(talker), Party(address, talker.view), talker)
    return End(text, Party(address))


def _talkers(static: StaticWorld, reach: Reach, text: str, namespace: str) -> list[End]:
    """Pods of the name, or a workload's that are not alike."""
    where, _, name = text.rpartition("/")
    wanted = where or namespace
    kind = ""
    if name.endswith("]"):
        name, _, kind = name[:-1].partition("[")
    found = [
        talker
        for talker in static.talkers
        if talker.view.key.namespace == wanted
        and (
            (talker.real and talker.view.key.name == name and kind in ("", "Pod"))
            or (talker.owner.name == name and kind in ("", talker.owner.kind))
        )
    ]
    if not found:
        names = sorted({f"{t.owner.namespace}/{t.owner.name}" for t in static.talkers})
        listed = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
        raise NotFoundError(f"pod or workload {wanted}/{name} not found; there are {listed}")
    return [_end(static, reach, talker) for talker in _unlike(reach, found)]


def _unlike(reach: Reach, talkers: Sequence[Talker]) -> list[Talker]:
    """Of each workload one of each kind of pod: of those that no policy tells apart."""
    seen: dict[object, Talker] = {}
    for talker in talkers:
        key = talker.view.key
        seen.setdefault((talker.owner, reach.group_of.get(key, key), talker.view.ports), talker)
    return list(seen.values())


def _end(static: StaticWorld, reach: Reach, talker: Talker) -> End:
    """Known by its address of the family, where it has one."""
    view = talker.view
    address = next((ip for ip in view.ips if ip.version == reach.version), None)
    node = static.world.nodes.get(view.node) if view.host_network else None
    return End(str(talker), Party(address, view, node), talker)


def _destinations(
    static: StaticWorld, reach: Reach, text: str, protocol: str | None, namespace: str
) -> Iterator[_Asked]:
    if text.startswith(("svc/", "service/")):
        yield from _service(static, reach, text, protocol, namespace)
        return
    host, _, port = text.rpartition(":")
    number = PROTOCOLS[(protocol or "tcp").upper()]
    if not port.isdigit() or not 0 < int(port) < 65536 or not host:
        raise UsageError(f"{text!r}: needs a port between 1 and 65535, as in {host or text}:80")
    if host == OUTSIDE:
        yield from (_Asked(end, number, int(port)) for end in _outside(reach, "egress"))
        return
    known = _address(static, host)
    if known is not None and known.talker is None:
        yield _Asked(known, number, int(port))
        return
    for end in _talkers(static, reach, host, namespace) if known is None else [known]:
        protocol_ = number if protocol else _declared(end, int(port)) or number
        yield _Asked(end, protocol_, int(port), "", _leading(static, end, protocol_, int(port)))


def _declared(end: End, port: int) -> int | None:
    """The protocol of a port the pod declares, where that is one only."""
    ports = end.talker.ports if end.talker else ()
    found = {own.protocol for own in ports if own.number == port}
    return PROTOCOLS.get(found.pop()) if len(found) == 1 else None


def _service(
    static: StaticWorld, reach: Reach, text: str, protocol: str | None, namespace: str
) -> Iterator[_Asked]:
    where, _, port = text.partition("/")[2].partition(":")
    place, _, name = where.rpartition("/")
    key = Key(place or namespace, name)
    service = static.services.get(key)
    if service is None:
        raise NotFoundError(f'services "{name}" not found in namespace {key.namespace}')
    chosen = [talker for talker in static.talkers if selected_by(service, talker.view)]
    if not chosen:
        raise NotFoundError(f"service {key}: its selector matches no pod, so it leads nowhere")
    yield from _endpoints(static, reach, service, chosen, port, protocol)


def _endpoints(
    static: StaticWorld,
    reach: Reach,
    service: Service,
    chosen: Sequence[Talker],
    port: str,
    protocol: str | None,
) -> Iterator[_Asked]:
    wanted = [
        p
        for p in service.spec.ports
        if (not port or port in (p.name, str(p.port)))
        and (protocol is None or p.protocol == protocol.upper())
    ]
    if not wanted:
        there = ", ".join(f"{p.name or '-'} {p.port}/{p.protocol}" for p in service.spec.ports)
        raise UsageError(f"service {service.key}: has no port {port or protocol}; it has {there}")
    first = wanted[0]
    entry = Entry("", service.key, first.port, first.protocol)
    if not any(True for each in chosen for _ in target_ports(service, entry, each.view)):
        raise NotFoundError(
            f"service {service.key}: targetPort {first.target_port} of port {first.port} is a name "
            "that no pod behind it has, so it leads nowhere"
        )
    for talker in _unlike(reach, chosen):
        end = _end(static, reach, talker)
        for span in target_ports(service, entry, talker.view):
            via = f"Service {service.key} port {first.port} leads to {span.first}"
            leading = (ServicePort(str(service.key), span.protocol, first.port),)
            yield _Asked(end, span.protocol, span.first, via, leading)


def _leading(static: StaticWorld, end: End, protocol: int, port: int) -> tuple[ServicePort, ...]:
    """Services' ports that lead to a port of the pod."""
    talker = end.talker
    if talker is None:
        return ()
    target = PortRange(protocol, port, port)
    return tuple(
        ServicePort(str(key), protocol, own.port)
        for key, service in static.services.items()
        if selected_by(service, talker.view)
        for own in service.spec.ports
        if own.port != port
        and target in target_ports(service, Entry("", key, own.port, own.protocol), talker.view)
    )
